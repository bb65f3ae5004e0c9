#include "tiles/centre.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "common/targets.h"

namespace torchcorr {

// v - v is NaN for an Inf or a NaN, and zero otherwise.
template <int BYTES, class T>
TORCHCORR_INLINE void survey(int64_t n, const T* x, double level, double scale, RowSurvey& sums) {
  constexpr int64_t kLanes = lanes_of<double, BYTES>;
  Wide<BYTES> sum = {}, squares = {}, count = {};
  const auto add = [&](const Wide<BYTES>& v) TORCHCORR_FLAT {
    const auto finite = v - v == 0.0;
    const Wide<BYTES> d = (finite ? v - level : Wide<BYTES>{}) * scale;
    sum += d;
    squares += d * d;
    count += finite ? Wide<BYTES>{} + 1.0 : Wide<BYTES>{};
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) add(widened<BYTES>(x + i));
  sums.sum += sum_of_lanes(sum);
  sums.squares += sum_of_lanes(squares);
  sums.count += sum_of_lanes(count);
  for (; i < n; ++i) {
    if (!std::isfinite(x[i])) continue;
    const double d = (static_cast<double>(x[i]) - level) * scale;
    sums.sum += d, sums.squares += d * d, sums.count += 1;
  }
}

#define TORCHCORR_SURVEY(T)                                                                     \
  TORCHCORR_FOR_CPUS(void, survey,                                                              \
                     (int64_t n, const T* x, double level, double scale, RowSurvey& sums),         \
                     (n, x, level, scale, sums))
TORCHCORR_SURVEY(float)
TORCHCORR_SURVEY(double)
#undef TORCHCORR_SURVEY

// out = (x - level) * scale where x is finite, 0 elsewhere.
template <int BYTES, class T, class Out>
TORCHCORR_INLINE void centre_row(int64_t n, const T* x, const LevelAndScale& by, Out* out, Written& w) {
  constexpr int64_t kLanes = lanes_of<double, BYTES>;
  const auto [level, scale] = by;
  Wide<BYTES> power = {}, non_finite = {};
  const auto take = [&, level = level, scale = scale](const Wide<BYTES>& v) TORCHCORR_FLAT {
    const Wide<BYTES> nothing = v - v;
    const Wide<BYTES> d = nothing == 0.0 ? (v - level) * scale : Wide<BYTES>{};
    non_finite += nothing;
    power += d * d;
    return d;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) put(take(widened<BYTES>(x + i)), out + i);
  if (i < n) {
    // Lanes past the end get the level, which is centred to zero.
    Wide<BYTES> v = Wide<BYTES>{} + level;
    for (int64_t l = 0; l < n - i; ++l) v[l] = static_cast<double>(x[i + l]);
    const Wide<BYTES> last = take(v);
    for (int64_t l = 0; l < n - i; ++l) out[i + l] = static_cast<Out>(last[l]);
  }
  w.power += sum_of_lanes(power);
  w.finite = w.finite && sum_of_lanes(non_finite) == 0.0;
}

// The same in float32, where a float32 level makes the difference the nearest float32 number too.
// Returns false, and the row is to be written again, if the squares are not finite.
template <int BYTES>
TORCHCORR_INLINE bool centre_narrow(int64_t n, const float* x, const LevelAndScale& by, float* out,
                                    Written& w) {
  constexpr double kMost = 0x1p60;  // so that the scale is a float32 number
  if (!(by.scale < kMost && by.scale * kMost > 1)) return false;
  const float level = static_cast<float>(by.level), scale = static_cast<float>(by.scale);
  constexpr int64_t kLanes = lanes_of<float, BYTES>;
  constexpr int64_t kPart = 64 * kLanes;  // squares of so many elements are added up in float32
  double all = 0;
  for (int64_t begin = 0; begin < n; begin += kPart) {
    const int64_t end = std::min(begin + kPart, n);
    Vector<float, BYTES> power = {};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const Vector<float, BYTES> d = (load<BYTES>(x + i) - level) * scale;
      put(d, out + i);
      power += d * d;
    }
    float sum = 0;
    for (; i < end; ++i) {
      out[i] = (x[i] - level) * scale;
      sum += out[i] * out[i];
    }
    for (int64_t l = 0; l < kLanes; ++l) sum += power[l];
    if (!(sum <= std::numeric_limits<float>::max())) return false;
    all += static_cast<double>(sum);
  }
  w.power += all;
  return true;
}

template <int BYTES, class T, class Out>
TORCHCORR_INLINE void centre(int64_t n, const T* x, const LevelAndScale& by, Out* out, Written& w) {
  if constexpr (std::is_same_v<T, float> && std::is_same_v<Out, float>) {
    if (centre_narrow<BYTES>(n, x, by, out, w)) return;
  }
  centre_row<BYTES>(n, x, by, out, w);
}

#define TORCHCORR_CENTRE(T, Out)                                                             \
  TORCHCORR_FOR_CPUS(void, centre,                                                           \
                     (int64_t n, const T* x, const LevelAndScale& by, Out* out, Written& w),      \
                     (n, x, by, out, w))
TORCHCORR_CENTRE(float, float)
TORCHCORR_CENTRE(float, double)
TORCHCORR_CENTRE(double, double)
TORCHCORR_CENTRE(double, float)
#undef TORCHCORR_CENTRE

template <class Out>
TORCHCORR_INLINE void zip_rows(int64_t n, const Out* a, const Out* b, Out* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    out[2 * i] = a[i];
    out[2 * i + 1] = b[i];
  }
}

TORCHCORR_CLONES void zip(int64_t n, const float* a, const float* b, float* out) {
  zip_rows(n, a, b, out);
}
TORCHCORR_CLONES void zip(int64_t n, const double* a, const double* b, double* out) {
  zip_rows(n, a, b, out);
}

}  // namespace torchcorr
