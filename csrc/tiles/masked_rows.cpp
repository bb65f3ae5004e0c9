#include "tiles/masked_rows.h"

#include <cmath>

namespace torchcorr {
namespace {

// Scores of n neighbouring windows; how many are doubtful. States are 1 where a window is. WHOLE: all
// elements have weight 1, so that three of the sums are constants.
template <bool WHOLE, bool CENTRED, class R, class T>
TORCHCORR_INLINE int64_t score_windows(int64_t n, const ScoreSums<R>& sums, const ScoreLimits& by,
                                       T* __restrict out,
                                       uint8_t* __restrict states) {
  const R *count = sums.count.map, *first = sums.first.map, *square = sums.square.map;
  const R *product = sums.product.map, *other = sums.other.map, *energy = sums.energy.map;
  const double n_count = sums.count.error, n_first = sums.first.error;
  const double n_square = sums.square.error, n_product = sums.product.error;
  const double n_other = sums.other.error, n_energy = sums.energy.error;
  const double weight_of_all = sums.count.constant, other_of_all = sums.other.constant;
  const double energy_of_all = sums.energy.constant, softening = by.softening;
  const double least = by.least_count, allowed = by.allowed;
  int64_t doubtful = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const double weight = WHOLE ? weight_of_all : static_cast<double>(count[i]);
    const double share = 1 / (weight > n_count ? weight : 1.0);
    const double s = CENTRED ? static_cast<double>(first[i]) : 0.0;
    const double o = !CENTRED ? 0.0 : WHOLE ? other_of_all : static_cast<double>(other[i]);
    const double mean = s * share, of_template = o * share;
    const double e = static_cast<double>(square[i]) - s * mean;
    const double f = (WHOLE ? energy_of_all : static_cast<double>(energy[i])) - o * of_template;
    const double p = static_cast<double>(product[i]) - s * of_template;
    const double a = mean < 0 ? -mean : mean, b = of_template < 0 ? -of_template : of_template;
    const double e_error = n_square + 2 * a * n_first + a * a * n_count;
    const double f_error = n_energy + 2 * b * n_other + b * b * n_count;
    const double p_error = n_product + b * n_first + a * n_other + a * b * n_count;
    const bool live = (e > 0) & (f > 0);
    const double root = std::sqrt(live ? (e + softening * weight) * f : 1.0);
    const double ratio = p / root, low = ratio < -1 ? -1.0 : ratio, score = low > 1 ? 1.0 : low;
    const double error = p_error * root + (e_error * f + f_error * e) / 2;
    const bool known = live & (error <= allowed * e * f);
    const double excess = weight - least;
    const bool enough = WHOLE | (excess > 0);
    const bool unsure = !WHOLE & (excess <= n_count) & (-excess <= n_count);
    const bool bad = unsure | (enough & !known);
    out[i] = static_cast<T>(enough & live ? score : 0.0);
    states[i] = bad;
    doubtful += bad;
  }
  return doubtful;
}

template <class T>
TORCHCORR_INLINE void survey_row(int64_t n, const T* x, const T* weight, double level, Survey& s) {
  Doubles count = read(s.count), sum = read(s.sum), squares = read(s.squares);
  const auto add = [&](const Doubles& v, const Doubles& w) TORCHCORR_FLAT {
    const Doubles d = w > 0.0 ? v - level : Doubles{};
    count += w > 0.0 ? Doubles{} + 1.0 : Doubles{};
    sum += d, squares += d * d;
  };
  const Doubles one = Doubles{} + 1.0;
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) add(read(x + i), weight ? read(weight + i) : one);
  if (i < n) {
    Doubles there = {};
    for (int64_t l = 0; l < n - i; ++l) there[l] = weight ? static_cast<double>(weight[i + l]) : 1.0;
    add(read_part(n - i, x + i), there);
  }
  write(s.count, count), write(s.sum, sum), write(s.squares, squares);
}

template <int WHICH, class T, class R>
TORCHCORR_INLINE void cut_row(int64_t n, const T* x, const T* weight, const TileLevel& of, R* out) {
  const double level = of.level, scale = of.scale;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const double w = weight ? static_cast<double>(weight[i]) : 1.0;
    const double d = w > 0 ? (static_cast<double>(x[i]) - level) * scale : 0.0;
    out[2 * i] = static_cast<R>(WHICH == 2 ? w : WHICH == 1 ? w * d * d : w * d);
  }
}

template <int STEP, class R>
TORCHCORR_INLINE void take(int64_t n, int64_t step, const R* from, R* one, R* other) {
  const int64_t by = STEP > 0 ? STEP : step;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) one[i] = from[i * by], other[i] = from[i * by + 1];
}

}  // namespace

#define TORCHCORR_SCORE(R, T)                                                                  \
  TORCHCORR_CLONES int64_t score_row(bool whole, int64_t n, const ScoreSums<R>& sums,          \
                                     const ScoreLimits& by, T* out, uint8_t* states) {         \
    if (!sums.first.map) {                                                                     \
      return whole ? score_windows<true, false>(n, sums, by, out, states)                      \
                   : score_windows<false, false>(n, sums, by, out, states);                    \
    }                                                                                          \
    return whole ? score_windows<true, true>(n, sums, by, out, states)                         \
                 : score_windows<false, true>(n, sums, by, out, states);                       \
  }
TORCHCORR_SCORE(float, float)
TORCHCORR_SCORE(double, float)
TORCHCORR_SCORE(double, double)
#undef TORCHCORR_SCORE
TORCHCORR_CLONES void survey(int64_t n, const float* x, const float* w, double level, Survey& s) {
  survey_row(n, x, w, level, s);
}
TORCHCORR_CLONES void survey(int64_t n, const double* x, const double* w, double level, Survey& s) {
  survey_row(n, x, w, level, s);
}
#define TORCHCORR_CUT(T, R)                                                                      \
  TORCHCORR_CLONES void cut(int64_t n, const T* x, const T* weight, const TileLevel& of,         \
                            int which, R* out) {                                                 \
    which == 0   ? cut_row<0>(n, x, weight, of, out)                                             \
    : which == 1 ? cut_row<1>(n, x, weight, of, out)                                             \
                 : cut_row<2>(n, x, weight, of, out);                                            \
  }
TORCHCORR_CUT(float, float)
TORCHCORR_CUT(float, double)
TORCHCORR_CUT(double, double)
#undef TORCHCORR_CUT

#define TORCHCORR_TAKE(R)                                                                        \
  TORCHCORR_CLONES void take_row(int64_t n, int64_t step, const R* from, R* one, R* other) {     \
    step == 2 ? take<2>(n, step, from, one, other) : take<0>(n, step, from, one, other);         \
  }
TORCHCORR_TAKE(float)
TORCHCORR_TAKE(double)
#undef TORCHCORR_TAKE

}  // namespace torchcorr
