#include "overlap/values.h"

#include <cmath>

namespace torchcorr::overlap {
namespace {

// Energy that rounding of the mean can leave in a flat overlap of n elements: n (mean * this)².
constexpr double kFlat = 1e-12;
// Two energies whose product is at least this have a product with an exact root.
constexpr double kSmall = 1e-280;

// The energy of an overlap, 0 if it is flat.
TORCHCORR_INLINE Doubles live_energy(const Values& v, int recording, int64_t i) {
  const Doubles rounding = read(v.mean[recording] + i) * kFlat, energy = read(v.energy[recording] + i);
  return energy > read(v.elements + i) * (rounding * rounding) ? energy : Doubles{};
}

template <class F>
TORCHCORR_INLINE Doubles each_lane(const Doubles& v, const F& f) {
  Doubles result;
  for (int64_t l = 0; l < kDoubles; ++l) result[l] = f(v[l]);
  return result;
}

// Scores of n overlaps and what follows them in a vector; whether all roots are exact. Adds up the
// overlaps that are not flat, but too faint.
template <bool BY_ROOTS>
TORCHCORR_INLINE bool score_values(int64_t n, double faint, Values& v, int64_t& unknown) {
  const auto root = [](double x) TORCHCORR_FLAT { return std::sqrt(x); };
  auto small = Doubles{} > Doubles{};
  auto faint_ones = small;
  for (int64_t i = 0; i < n; i += kDoubles) {
    const Doubles a = live_energy(v, 0, i), b = live_energy(v, 1, i), both = a * b;
    const Doubles scale = BY_ROOTS ? each_lane(a, root) * each_lane(b, root) : each_lane(both, root);
    const Doubles mean = read(v.mean[0] + i) * read(v.mean[1] + i);
    const Doubles covariance = read(v.sum + i) - mean * read(v.elements + i);
    const auto there = (a > 0) & (b > 0);
    const Doubles one = Doubles{} + 1.0, score = covariance / (scale > faint ? scale : one);
    const Doubles capped = score > one ? one : score < -one ? -one : score;
    small -= (both < kSmall) & there;
    faint_ones -= (scale <= faint) & there;
    write(v.score + i, scale > faint ? capped : Doubles{});
  }
  int64_t smalls = 0, found = 0;
  for (int64_t l = 0; l < kDoubles; ++l) smalls += small[l], found += faint_ones[l];
  if (BY_ROOTS || smalls == 0) unknown += found;
  return smalls == 0;
}

TORCHCORR_CLONES bool score_by_product(int64_t n, double faint, Values& v, int64_t& unknown) {
  return score_values<false>(n, faint, v, unknown);
}

TORCHCORR_CLONES void score_by_roots(int64_t n, double faint, Values& v, int64_t& unknown) {
  score_values<true>(n, faint, v, unknown);
}

}  // namespace

void score(int64_t n, double faint, Values& v, int64_t& unknown) {
  for (int64_t i = n; i % kDoubles != 0; ++i) {
    v.mean[0][i] = v.mean[1][i] = v.energy[0][i] = v.energy[1][i] = v.elements[i] = v.sum[i] = 0;
  }
  if (!score_by_product(n, faint, v, unknown)) score_by_roots(n, faint, v, unknown);
}

}  // namespace torchcorr::overlap
