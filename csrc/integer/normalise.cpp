#include "integer/normalise.h"

#include <algorithm>
#include <cmath>

#include "integer/moments.h"

namespace torchcorr::integer {
namespace {

// A numerator, which rounding left near a whole number.
template <class In>
TORCHCORR_INLINE double whole(In numerator) {
  const double value = static_cast<double>(numerator);
  return std::is_integral_v<In> ? value : std::nearbyint(value);
}

// Elements that are STEP apart; 0 stands for any step, which is slow to read.
template <int64_t STEP, class In>
TORCHCORR_INLINE void score_in_float64(const NumeratorRow<In>& row, const Constants& by,
                                       float* out) {
  const double scale = static_cast<double>(by.scale), slope = static_cast<double>(by.slopes[0]);
  const double offset = static_cast<double>(by.offset), norm = by.norm;
  const int64_t step = STEP > 0 ? STEP : row.step;
  const In* first = row.first;
  for (int64_t i = 0; i < row.n; ++i) {
    const double sum = static_cast<double>(row.sums[i]);
    const double score =
        (scale * whole(first[i * step]) - slope * sum - offset) * row.norms[i] * norm;
    const double low = score < -1.0 ? -1.0 : score;
    out[i] = static_cast<float>(low > 1.0 ? 1.0 : low);
  }
}

// The same with several means.
template <class In>
TORCHCORR_INLINE void score_in_parts(const NumeratorRow<In>& row, const Constants& by, float* out) {
  constexpr int64_t kPart = 64;
  const double scale = static_cast<double>(by.scale), offset = static_cast<double>(by.offset);
  const double norm = by.norm;
  const int64_t step = row.step;
  for (int64_t begin = 0; begin < row.n; begin += kPart) {
    const int64_t n = std::min(kPart, row.n - begin);
    double rest[kPart];
    for (int64_t i = 0; i < n; ++i) rest[i] = offset;
    for (size_t c = 0; c < by.slopes.size(); ++c) {
      const double slope = static_cast<double>(by.slopes[c]);
      const uint32_t* sums = row.sums + c * row.pitch + begin;
      for (int64_t i = 0; i < n; ++i) rest[i] += slope * static_cast<double>(sums[i]);
    }
    const In* first = row.first + begin * step;
    for (int64_t i = 0; i < n; ++i) {
      const double score = (scale * whole(first[i * step]) - rest[i]) * row.norms[begin + i] * norm;
      const double low = score < -1.0 ? -1.0 : score;
      out[begin + i] = static_cast<float>(low > 1.0 ? 1.0 : low);
    }
  }
}

template <class In>
void score_in_integers(const NumeratorRow<In>& row, const Constants& by, float* out) {
  for (int64_t i = 0; i < row.n; ++i) {
    const auto numerator = static_cast<int64_t>(whole(row.first[i * row.step]));
    uint64_t sum = static_cast<uint64_t>(by.scale) * static_cast<uint64_t>(numerator) -
                   static_cast<uint64_t>(by.offset);
    for (size_t c = 0; c < by.slopes.size(); ++c) {
      sum -= static_cast<uint64_t>(by.slopes[c]) * row.sums[i + c * row.pitch];
    }
    const double score =
        static_cast<double>(static_cast<int64_t>(sum)) * row.norms[i] * by.norm;
    out[i] = static_cast<float>(std::clamp(score, -1.0, 1.0));
  }
}

#define TORCHCORR_SCORE(In)                                                      \
  TORCHCORR_CLONES void in_float64(const NumeratorRow<In>& row, const Constants& by, float* out) { \
    if (by.slopes.size() > 1) return score_in_parts(row, by, out);                                 \
    if (row.step == 1) return score_in_float64<1>(row, by, out);                                   \
    if (row.step == 2) return score_in_float64<2>(row, by, out);                                   \
    score_in_float64<0>(row, by, out);                                                             \
  }
TORCHCORR_SCORE(float)
TORCHCORR_SCORE(double)
TORCHCORR_SCORE(int32_t)
#undef TORCHCORR_SCORE

template <class In>
void choose(int64_t elements, const NumeratorRow<In>& row, const Constants& by, float* out) {
  // Scores go where nothing was read before: lines are fetched while the first are computed.
  constexpr int64_t kLine = 16;
  for (int64_t i = 0; i < row.n; i += kLine) __builtin_prefetch(out + i, 1);
  elements <= kInFloat64 ? in_float64(row, by, out) : score_in_integers(row, by, out);
}

}  // namespace

void score_row(int64_t elements, const NumeratorRow<float>& row, const Constants& by, float* out) {
  choose(elements, row, by, out);
}
void score_row(int64_t elements, const NumeratorRow<double>& row, const Constants& by, float* out) {
  choose(elements, row, by, out);
}
void score_row(int64_t elements, const NumeratorRow<int32_t>& row, const Constants& by,
               float* out) {
  choose(elements, row, by, out);
}

}  // namespace torchcorr::integer
