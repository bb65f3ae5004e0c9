#include "overlap/values.h"

#include <cmath>

#include "common/targets.h"

namespace torchcorr::overlap {
namespace {

// Energy that rounding of the mean can leave in a flat overlap of n elements: n (mean * this)².
constexpr double kFlat = 1e-12;
// Two energies whose product is at least this have a product with an exact root.
constexpr double kSmall = 1e-280;

// The energy of an overlap, 0 if it is flat.
template <int BYTES>
TORCHCORR_INLINE Wide<BYTES> live_energy(const Values& v, int recording, int64_t i) {
  const Wide<BYTES> rounding = load<BYTES>(v.mean[recording] + i) * kFlat;
  const Wide<BYTES> energy = load<BYTES>(v.energy[recording] + i);
  return energy > load<BYTES>(v.elements + i) * (rounding * rounding) ? energy : Wide<BYTES>{};
}

template <class V, class F>
TORCHCORR_INLINE V each_lane(const V& v, const F& f) {
  V result;
  for (int64_t l = 0; l < lanes_in<V>; ++l) result[l] = f(v[l]);
  return result;
}

// Scores of n overlaps and what follows them in a vector; whether all roots are exact. Adds up the
// overlaps that are not flat, but too faint.
template <int BYTES, bool BY_ROOTS>
TORCHCORR_INLINE bool score_values(int64_t n, double faint, Values& v, int64_t& unknown) {
  using Vec = Wide<BYTES>;
  const auto root = [](double x) TORCHCORR_FLAT { return std::sqrt(x); };
  const Vec none = {}, one = none + 1.0;
  auto small = none > none;
  auto faint_ones = small;
  for (int64_t i = 0; i < n; i += lanes_in<Vec>) {
    const Vec a = live_energy<BYTES>(v, 0, i), b = live_energy<BYTES>(v, 1, i), both = a * b;
    const Vec scale = BY_ROOTS ? each_lane(a, root) * each_lane(b, root) : each_lane(both, root);
    const Vec mean = load<BYTES>(v.mean[0] + i) * load<BYTES>(v.mean[1] + i);
    const Vec covariance = load<BYTES>(v.sum + i) - mean * load<BYTES>(v.elements + i);
    const auto there = (a > 0) & (b > 0);
    const Vec score = covariance / (scale > faint ? scale : one);
    const Vec capped = score > one ? one : score < -one ? -one : score;
    small -= (both < kSmall) & there;
    faint_ones -= (scale <= faint) & there;
    put(scale > faint ? capped : none, v.score + i);
  }
  int64_t smalls = 0, found = 0;
  for (int64_t l = 0; l < lanes_in<Vec>; ++l) smalls += small[l], found += faint_ones[l];
  if (BY_ROOTS || smalls == 0) unknown += found;
  return smalls == 0;
}

template <int BYTES>
TORCHCORR_INLINE void score_all(int64_t n, double faint, Values& v, int64_t& unknown) {
  if (score_values<BYTES, false>(n, faint, v, unknown)) return;
  score_values<BYTES, true>(n, faint, v, unknown);
}
TORCHCORR_FOR_CPUS(void, score_all, (int64_t n, double faint, Values& v, int64_t& unknown),
                   (n, faint, v, unknown))

}  // namespace

void score(int64_t n, double faint, Values& v, int64_t& unknown) {
  for (int64_t i = n; i % kDoubles != 0; ++i) {
    v.mean[0][i] = v.mean[1][i] = v.energy[0][i] = v.energy[1][i] = v.elements[i] = v.sum[i] = 0;
  }
  score_all(n, faint, v, unknown);
}

}  // namespace torchcorr::overlap
