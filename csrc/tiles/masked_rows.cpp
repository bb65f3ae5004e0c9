#include "tiles/masked_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "common/targets.h"

namespace torchcorr {
namespace {

struct WindowMoments {
  double weight, e, f, p;            // weight, both energies, product
  double e_error, f_error, p_error;  // bounds of their rounding
};

// Maps of sums that do not depend on the template's elements, as S numbers.
template <class S>
struct InputMaps {
  const S *count, *first, *square;

  template <class R>
  TORCHCORR_INLINE explicit InputMaps(const ScoreSums<R>& sums) {
    if constexpr (std::is_same_v<S, R>) {
      count = sums.count.map, first = sums.first.map, square = sums.square.map;
    }
    if constexpr (std::is_same_v<S, double>) {
      if (!sums.wide_square) return;
      count = sums.wide_count, first = sums.wide_first, square = sums.wide_square;
    }
  }
};

// Those of one window, from sums. WHOLE: all elements have weight 1, so that three are constants.
template <bool WHOLE, bool CENTRED, class S, class R>
struct MomentsOfSums {
  const S *count, *first, *square;
  const R *product, *other, *energy;
  double n_count, n_first, n_square, n_product, n_other, n_energy;
  double weight_of_all, other_of_all, energy_of_all;

  TORCHCORR_INLINE MomentsOfSums(const ScoreSums<R>& sums, const InputMaps<S>& maps)
      : count(maps.count), first(maps.first), square(maps.square), product(sums.product.map), other(sums.other.map), energy(sums.energy.map),
        n_count(sums.count.error), n_first(sums.first.error), n_square(sums.square.error),
        n_product(sums.product.error), n_other(sums.other.error), n_energy(sums.energy.error),
        weight_of_all(sums.count.constant), other_of_all(sums.other.constant),
        energy_of_all(sums.energy.constant) {}

  TORCHCORR_INLINE WindowMoments at(int64_t i) const {
    WindowMoments of;
    of.weight = WHOLE ? weight_of_all : static_cast<double>(count[i]);
    const double share = 1 / (of.weight > n_count ? of.weight : 1.0);
    const double s = CENTRED ? static_cast<double>(first[i]) : 0.0;
    const double o = !CENTRED ? 0.0 : WHOLE ? other_of_all : static_cast<double>(other[i]);
    const double mean = s * share, of_template = o * share;
    of.e = static_cast<double>(square[i]) - s * mean;
    of.f = (WHOLE ? energy_of_all : static_cast<double>(energy[i])) - o * of_template;
    of.p = static_cast<double>(product[i]) - s * of_template;
    const double a = mean < 0 ? -mean : mean, b = of_template < 0 ? -of_template : of_template;
    of.e_error = n_square + 2 * a * n_first + a * a * n_count;
    of.f_error = n_energy + 2 * b * n_other + b * b * n_count;
    of.p_error = n_product + b * n_first + a * n_other + a * b * n_count;
    return of;
  }
};

// Scores of n neighbouring windows; how many are doubtful. States are 1 where a window is. R is the
// type of the sums: moments are differences, which need float64, quotients of them do not.
template <bool WHOLE, class R, class Get, class T>
TORCHCORR_INLINE int64_t score_each(int64_t n, const Get& get, double n_count,
                                    const ScoreLimits& by, T* __restrict out,
                                    uint8_t* __restrict states) {
  const double softening = by.softening, least = by.least_count, allowed = by.allowed;
  int64_t doubtful = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const WindowMoments of = get(i);
    const double e = of.e, f = of.f;
    const bool live = (e > 0) & (f > 0);
    const R a = static_cast<R>(live ? e + softening * of.weight : 1.0);
    const R b = static_cast<R>(live ? f : 1.0);
    const R root = std::sqrt(a) * std::sqrt(b), ratio = static_cast<R>(of.p) / root;
    const R low = ratio < -1 ? R(-1) : ratio, score = low > 1 ? R(1) : low;
    const double error =
        of.p_error * static_cast<double>(root) + (of.e_error * f + of.f_error * e) / 2;
    const bool known = live & (error <= allowed * e * f);
    const double excess = of.weight - least;
    const bool enough = WHOLE | (excess > 0);
    const bool unsure = !WHOLE & (excess <= n_count) & (-excess <= n_count);
    const bool bad = unsure | (enough & !known);
    out[i] = static_cast<T>(enough & live ? score : R(0));
    states[i] = bad;
    doubtful += bad;
  }
  return doubtful;
}

template <bool WHOLE, bool CENTRED, class S, class R, class T>
TORCHCORR_INLINE int64_t score_windows(int64_t n, const ScoreSums<R>& sums, const ScoreLimits& by,
                                       T* out, uint8_t* states) {
  const MomentsOfSums<WHOLE, CENTRED, S, R> of(sums, InputMaps<S>(sums));
  const auto get = [&](int64_t i) TORCHCORR_FLAT { return of.at(i); };
  return score_each<WHOLE, R>(n, get, of.n_count, by, out, states);
}

// The least energy of windows that are not doubtful, if all elements have weight 1: errors are at most
// those of the largest mean, and p * sqrt(e * f) + (e_error * f + f_error * e) / 2 is at most what is
// allowed from a root of e on. Infinite if there is none.
template <class R>
TORCHCORR_INLINE double least_known(const ScoreSums<R>& sums, double f, double allowed) {
  const double share = 1 / sums.count.constant, a = sums.first.largest * share;
  const double b = std::abs(sums.other.constant) * share;
  const double p_error = sums.product.error + b * sums.first.error;
  const double e_error = sums.square.error + 2 * a * sums.first.error;
  const double linear = p_error * std::sqrt(f), slope = allowed * f;
  if (!(f > 0 && slope > 0)) return std::numeric_limits<double>::infinity();
  const double root = (linear + std::sqrt(linear * linear + 2 * slope * e_error * f)) / (2 * slope);
  return std::max<double>(root * root, std::numeric_limits<R>::min());
}

// Scores of n windows whose elements all have weight 1; how many of them have less than an energy.
template <bool CENTRED, class S, class R, class T>
TORCHCORR_INLINE int64_t score_whole(int64_t n, const ScoreSums<R>& sums, double f, double least,
                                     T* __restrict out) {
  const InputMaps<S> maps(sums);
  const S *first = maps.first, *square = maps.square;
  const R* product = sums.product.map;
  const double share = 1 / sums.count.constant, of_template = sums.other.constant * share;
  const R size = std::sqrt(static_cast<R>(f));
  int64_t few = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const double s = CENTRED ? static_cast<double>(first[i]) : 0.0;
    const double e = static_cast<double>(square[i]) - s * s * share;
    const double p = static_cast<double>(product[i]) - s * of_template;
    const R ratio = static_cast<R>(p) / (std::sqrt(static_cast<R>(e)) * size);
    const R low = ratio < -1 ? R(-1) : ratio;
    out[i] = static_cast<T>(low > 1 ? R(1) : low);
    few += !(e >= least);
  }
  return few;
}

template <bool CENTRED, class S, class R, class T>
TORCHCORR_INLINE int64_t score_all(int64_t n, const ScoreSums<R>& sums, const ScoreLimits& by,
                                   T* out, uint8_t* states) {
  const double of_all = sums.other.constant;
  const double f = sums.energy.constant - of_all * of_all / sums.count.constant;
  const double least = least_known(sums, f, by.allowed);
  if (by.softening == 0 && least <= std::numeric_limits<R>::max() &&
      score_whole<CENTRED, S>(n, sums, f, least, out) == 0) {
    std::fill(states, states + n, uint8_t{0});
    return 0;
  }
  return score_windows<true, CENTRED, S>(n, sums, by, out, states);
}

// S is the type of the sums that do not depend on the template's elements.
template <class S, class R, class T>
TORCHCORR_INLINE int64_t score_row_of(bool whole, int64_t n, const ScoreSums<R>& sums,
                                      const ScoreLimits& by, T* out, uint8_t* states) {
  if (!InputMaps<S>(sums).first) {
    return whole ? score_all<false, S>(n, sums, by, out, states)
                 : score_windows<false, false, S>(n, sums, by, out, states);
  }
  return whole ? score_all<true, S>(n, sums, by, out, states)
               : score_windows<false, true, S>(n, sums, by, out, states);
}

template <bool WHOLE, class S, class R>
TORCHCORR_INLINE void add_moments(int64_t n, const ScoreSums<R>& sums, const ChannelMoments& to) {
  const MomentsOfSums<WHOLE, true, S, R> of(sums, InputMaps<S>(sums));
  double *weight = to.map[0], *e = to.map[1], *f = to.map[2], *p = to.map[3];
  double *e_error = to.map[4], *f_error = to.map[5], *p_error = to.map[6];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const WindowMoments here = of.at(i);
    weight[i] += here.weight, e[i] += here.e, f[i] += here.f, p[i] += here.p;
    e_error[i] += here.e_error, f_error[i] += here.f_error, p_error[i] += here.p_error;
  }
}

template <bool WHOLE, class T>
TORCHCORR_INLINE int64_t score_added(int64_t n, const ChannelMoments& of, const ScoreLimits& by,
                                     T* out, uint8_t* states) {
  const auto get = [&](int64_t i) TORCHCORR_FLAT {
    return WindowMoments{of.map[0][i], of.map[1][i], of.map[2][i], of.map[3][i],
                         of.map[4][i], of.map[5][i], of.map[6][i]};
  };
  return score_each<WHOLE, double>(n, get, by.count_error, by, out, states);
}

// Numbers where there is weight, and 0 elsewhere.
template <int BYTES>
TORCHCORR_INLINE Wide<BYTES> where_weight(const Wide<BYTES>& weight, const Wide<BYTES>& x) {
  return weight > 0.0 ? x : Wide<BYTES>{};
}

// Calls add(elements, weights) for vectors of n elements; without weights all have `one`.
template <int BYTES, class T, class F>
TORCHCORR_INLINE void for_vectors(int64_t n, const T* x, const T* weight, const F& add) {
  constexpr int64_t kLanes = lanes_of<double, BYTES>;
  const Wide<BYTES> one = Wide<BYTES>{} + 1.0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    add(i, kLanes, widened<BYTES>(x + i), weight ? widened<BYTES>(weight + i) : one);
  }
  if (i == n) return;
  Wide<BYTES> there = {};
  for (int64_t l = 0; l < n - i; ++l) there[l] = weight ? static_cast<double>(weight[i + l]) : 1.0;
  add(i, n - i, widened_part<BYTES>(n - i, x + i), there);
}

template <int BYTES, class T>
TORCHCORR_INLINE void survey(int64_t n, const T* x, const T* weight, double level, Survey& to) {
  using Vec = Wide<BYTES>;
  Vec count = {}, sum = {}, squares = {};
  for_vectors<BYTES>(n, x, weight, [&](int64_t, int64_t, const Vec& v, const Vec& w) TORCHCORR_FLAT {
    const Vec d = where_weight<BYTES>(w, v - level);
    count += where_weight<BYTES>(w, Vec{} + 1.0), sum += d, squares += d * d;
  });
  to.count += sum_of_lanes(count), to.sum += sum_of_lanes(sum);
  to.squares += sum_of_lanes(squares);
}

template <int BYTES, class T>
TORCHCORR_INLINE void add_weighted(int64_t n, const T* x, const T* weight, const double* by,
                                   double level, WeightedParts& to) {
  using Vec = Wide<BYTES>;
  Vec count = {}, first = {}, square = {};
  for_vectors<BYTES>(
      n, x, weight, [&](int64_t i, int64_t some, const Vec& v, const Vec& there) TORCHCORR_FLAT {
        const bool whole = some == lanes_of<double, BYTES>;
        const Vec w = there * (whole ? load<BYTES>(by + i) : widened_part<BYTES>(some, by + i));
        const Vec d = where_weight<BYTES>(w, v - level), part = w * d;
        count += w, first += part, square += part * d;
      });
  to.count += sum_of_lanes(count), to.first += sum_of_lanes(first);
  to.square += sum_of_lanes(square);
}

// A is the type of the arithmetic.
template <int WHICH, bool WEIGHTED, class T, class A>
struct CutElement {
  const T* __restrict x;
  const T* __restrict weight;
  const A level, scale;

  TORCHCORR_INLINE explicit CutElement(const CutRow<T>& row)
      : x(row.x), weight(row.weight), level(static_cast<A>(row.of.level)),
        scale(static_cast<A>(row.of.scale)) {}
  TORCHCORR_INLINE A at(int64_t i) const {
    const A w = WEIGHTED ? static_cast<A>(weight[i]) : A(1);
    const A d = (static_cast<A>(x[i]) - level) * scale;
    const A seen = !WEIGHTED || w > 0 ? d : A(0);
    return WHICH == 2 ? w : WHICH == 1 ? w * seen * seen : w * seen;
  }
};

template <int WHICH, bool WEIGHTED, class A, class T, class R>
TORCHCORR_INLINE void cut_rows(int64_t n, const CutRow<T>& first, const CutRow<T>& second,
                               R* __restrict out) {
  const CutElement<WHICH, WEIGHTED, T, A> a(first), b(second);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    out[2 * i] = static_cast<R>(a.at(i)), out[2 * i + 1] = static_cast<R>(b.at(i));
  }
}

// Levels are float32, so that they are subtracted with one rounding in either type, and scales are
// powers of two, the largest of which float32 does not contain.
inline bool fits_float(const TileLevel& of) { return of.scale > 0x1p-100 && of.scale < 0x1p100; }

template <int WHICH, bool WEIGHTED, class T, class R>
TORCHCORR_INLINE void cut_rows_of(int64_t n, const CutRow<T>& a, const CutRow<T>& b, R* out) {
  if (fits_float(a.of) && fits_float(b.of)) return cut_rows<WHICH, WEIGHTED, R>(n, a, b, out);
  cut_rows<WHICH, WEIGHTED, double>(n, a, b, out);
}

template <int WHICH, bool WEIGHTED, class T, class R>
TORCHCORR_INLINE void cut_row(int64_t n, const CutRow<T>& row, R* __restrict out) {
  const CutElement<WHICH, WEIGHTED, T, double> a(row);
  for (int64_t i = 0; i < n; ++i) out[2 * i] = static_cast<R>(a.at(i));
}

template <int STEP, class R, class M>
TORCHCORR_INLINE void take(int64_t n, int64_t step, const R* from, M* one, M* other) {
  const int64_t by = STEP > 0 ? STEP : step;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    one[i] = static_cast<M>(from[i * by]), other[i] = static_cast<M>(from[i * by + 1]);
  }
}

template <int BYTES, class R>
TORCHCORR_INLINE void add_contents(int64_t n, const R* x, Contents& to) {
  constexpr int64_t kLanes = lanes_of<R, BYTES>, kTogether = 64 * kLanes;
  using Part = Vector<R, BYTES>;
  Part peaks = {};
  int64_t i = 0;
  while (i + 2 * kLanes <= n) {
    // Squares are added up in float32 for some vectors only. Of elements that overflow it they are
    // infinite, and the rounding that they bound is unknown.
    Part squares[2] = {};
    for (const int64_t end = std::min(n, i + kTogether); i + 2 * kLanes <= end; i += 2 * kLanes) {
      for (int64_t v = 0; v < 2; ++v) {
        const Part part = load<BYTES>(x + i + v * kLanes), size = part < 0 ? -part : part;
        squares[v] += part * part;
        peaks = size > peaks ? size : peaks;
      }
    }
    for (int64_t l = 0; l < kLanes; ++l) {
      to.squares += static_cast<double>(squares[0][l]) + static_cast<double>(squares[1][l]);
    }
  }
  for (; i < n; ++i) to.add(static_cast<double>(x[i]));
  for (int64_t l = 0; l < kLanes; ++l) {
    to.largest = std::max(to.largest, static_cast<double>(peaks[l]));
  }
}

}  // namespace

#define TORCHCORR_SCORE(R, T)                                                                  \
  TORCHCORR_CLONES int64_t score_row(bool whole, int64_t n, const ScoreSums<R>& sums,          \
                                     const ScoreLimits& by, T* out, uint8_t* states) {         \
    return sums.wide_square ? score_row_of<double>(whole, n, sums, by, out, states)             \
                            : score_row_of<R>(whole, n, sums, by, out, states);                \
  }
TORCHCORR_SCORE(float, float)
TORCHCORR_SCORE(double, float)
TORCHCORR_SCORE(double, double)
#undef TORCHCORR_SCORE
#define TORCHCORR_MOMENTS(T)                                                                    \
  TORCHCORR_CLONES void add_channel(bool whole, int64_t n, const ScoreSums<T>& sums,            \
                                    const ChannelMoments& to) {                                 \
    if (sums.wide_square) {                                                                     \
      return whole ? add_moments<true, double>(n, sums, to)                                     \
                   : add_moments<false, double>(n, sums, to);                                   \
    }                                                                                           \
    whole ? add_moments<true, T>(n, sums, to) : add_moments<false, T>(n, sums, to);             \
  }                                                                                             \
  TORCHCORR_CLONES int64_t score_moments(bool whole, int64_t n, const ChannelMoments& of,       \
                                         const ScoreLimits& by, T* out, uint8_t* states) {      \
    return whole ? score_added<true>(n, of, by, out, states)                                    \
                 : score_added<false>(n, of, by, out, states);                                  \
  }
TORCHCORR_MOMENTS(float)
TORCHCORR_MOMENTS(double)
#undef TORCHCORR_MOMENTS
#define TORCHCORR_SURVEY(T)                                                                       \
  TORCHCORR_FOR_CPUS(void, survey,                                                                \
                     (int64_t n, const T* x, const T* weight, double level, Survey& to),          \
                     (n, x, weight, level, to))                                                   \
  TORCHCORR_FOR_CPUS(void, add_weighted,                                                          \
                     (int64_t n, const T* x, const T* weight, const double* by, double level,     \
                      WeightedParts& to),                                                         \
                     (n, x, weight, by, level, to))
TORCHCORR_SURVEY(float)
TORCHCORR_SURVEY(double)
#undef TORCHCORR_SURVEY
#define TORCHCORR_CUT(T, R)                                                                      \
  TORCHCORR_CLONES void cut_two(int64_t n, const CutRow<T>& a, const CutRow<T>& b, int which,    \
                                R* out) {                                                        \
    const bool weighted = a.weight != nullptr;                                                   \
    which == 0   ? weighted ? cut_rows_of<0, true>(n, a, b, out) : cut_rows_of<0, false>(n, a, b, out) \
    : which == 1 ? weighted ? cut_rows_of<1, true>(n, a, b, out) : cut_rows_of<1, false>(n, a, b, out) \
    : weighted   ? cut_rows_of<2, true>(n, a, b, out)                                               \
                 : cut_rows_of<2, false>(n, a, b, out);                                             \
  }                                                                                              \
  TORCHCORR_CLONES void cut_one(int64_t n, const CutRow<T>& a, int which, R* out) {              \
    const bool weighted = a.weight != nullptr;                                                   \
    which == 0   ? weighted ? cut_row<0, true>(n, a, out) : cut_row<0, false>(n, a, out)         \
    : which == 1 ? weighted ? cut_row<1, true>(n, a, out) : cut_row<1, false>(n, a, out)         \
    : weighted   ? cut_row<2, true>(n, a, out)                                                   \
                 : cut_row<2, false>(n, a, out);                                                 \
  }
TORCHCORR_CUT(float, float)
TORCHCORR_CUT(float, double)
TORCHCORR_CUT(double, double)
#undef TORCHCORR_CUT

TORCHCORR_CLONES int64_t count_faint(int64_t n, const double* first, const double* square,
                                     const double* weight, const FaintLimits& by) {
  const double least = by.least, enough = by.enough, all = by.weight_of_all, flat = by.flat_share;
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double total = weight ? weight[i] : all, sum = first ? first[i] : 0.0;
    const double energy = square[i] - sum * sum / (total > 0 ? total : 1.0);
    count += (total > enough) & (energy < least) & (energy > flat * square[i]);
  }
  return count;
}

#define TORCHCORR_OTHERS(T)                                                                        \
  TORCHCORR_CLONES int64_t count_others(int64_t n, const T* x, const T* weight, const double* by,  \
                                        T value) {                                                 \
    int64_t count = 0;                                                                             \
    for (int64_t i = 0; i < n; ++i) {                                                              \
      const bool there = (by[i] > 0) & (weight ? weight[i] > 0 : true);                            \
      count += there & (x[i] != value);                                                            \
    }                                                                                              \
    return count;                                                                                  \
  }
TORCHCORR_OTHERS(float)
TORCHCORR_OTHERS(double)
#undef TORCHCORR_OTHERS

TORCHCORR_FOR_CPUS(void, add_contents, (int64_t n, const float* x, Contents& to), (n, x, to))
TORCHCORR_FOR_CPUS(void, add_contents, (int64_t n, const double* x, Contents& to), (n, x, to))

#define TORCHCORR_TAKE(R, M)                                                                     \
  TORCHCORR_CLONES void take_row(int64_t n, int64_t step, const R* from, M* one, M* other) {     \
    step == 2 ? take<2>(n, step, from, one, other) : take<0>(n, step, from, one, other);         \
  }
TORCHCORR_TAKE(float, float)
TORCHCORR_TAKE(float, double)
TORCHCORR_TAKE(double, double)
#undef TORCHCORR_TAKE

}  // namespace torchcorr
