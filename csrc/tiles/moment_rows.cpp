#include "tiles/moment_rows.h"

#include <algorithm>
#include <cmath>

#include "common/targets.h"

namespace torchcorr {
namespace {

template <bool WEIGHTED, class T>
TORCHCORR_INLINE void add_each(int64_t n, const T* x, const T* weight, const Centring& by,
                               double* const (&to)[kSums]) {
  double *first = to[kFirst], *second = to[kSecond], *count = to[kWeights];
  const double level = by.level, scale = by.scale, sign = by.sign;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const double w = WEIGHTED ? sign * static_cast<double>(weight[i]) : sign;
    const double seen = (static_cast<double>(x[i]) - level) * scale;
    const double d = !WEIGHTED || weight[i] > 0 ? seen : 0.0, part = w * d;
    first[i] += part, second[i] += part * d;
    if (WEIGHTED) count[i] += w;
  }
}

// Sums of some vectors of the windows, from the `part`-th on, in registers.
template <int BYTES, int SUMS>
TORCHCORR_INLINE void add_part(int64_t taps, int64_t single, const Taps* tap,
                               const TileElements& of, int64_t at, int64_t part,
                               double (&to)[kSums][kAtOnce]) {
  constexpr int64_t kLanes = lanes_of<double, BYTES>;
  Wide<BYTES> sum[SUMS][kVectors] = {};
  for (int64_t k = 0; k < single; ++k) {
    const int64_t from = at + part + tap[k].offset;
    const double weight = tap[k].weight;
    for (int s = 0; s < SUMS; ++s) {
      for (int64_t v = 0; v < kVectors; ++v) {
        sum[s][v] += load<BYTES>(of.values[s] + from + v * kLanes) * weight;
      }
    }
  }
  for (int64_t k = single; k < taps; ++k) {
    const int64_t from = at + part + tap[k].offset, end = from + tap[k].length;
    const double weight = tap[k].weight;
    for (int s = 0; s < SUMS; ++s) {
      for (int64_t v = 0; v < kVectors; ++v) {
        const double* totals = of.totals[s] + v * kLanes;
        sum[s][v] += (load<BYTES>(totals + end) - load<BYTES>(totals + from)) * weight;
      }
    }
  }
  for (int s = 0; s < SUMS; ++s) {
    for (int64_t v = 0; v < kVectors; ++v) put(sum[s][v], &to[s][part + v * kLanes]);
  }
}

template <int BYTES>
TORCHCORR_INLINE void add_taps(int64_t sums, int64_t taps, int64_t single, const Taps* tap,
                               const TileElements& of, int64_t at, double (&to)[kSums][kAtOnce]) {
  for (int64_t part = 0; part < kAtOnce; part += kVectors * lanes_of<double, BYTES>) {
    sums == kSums ? add_part<BYTES, kSums>(taps, single, tap, of, at, part, to)
                  : add_part<BYTES, kSums - 1>(taps, single, tap, of, at, part, to);
  }
}

template <int BYTES>
TORCHCORR_INLINE double sum_of_sizes(int64_t n, const double* x) {
  constexpr int64_t kLanes = lanes_of<double, BYTES>;
  Wide<BYTES> total = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Wide<BYTES> v = load<BYTES>(x + i);
    total += v < 0 ? -v : v;
  }
  double sum = sum_of_lanes(total);
  for (; i < n; ++i) sum += std::abs(x[i]);
  return sum;
}
TORCHCORR_FOR_CPUS(double, sum_of_sizes, (int64_t n, const double* x), (n, x))

template <bool WEIGHTED>
TORCHCORR_INLINE int64_t decide(int64_t n, const double* const (&sums)[kSums],
                                const MomentLimits& by, double* __restrict count,
                                double* __restrict mean, double* __restrict var,
                                uint8_t* __restrict states) {
  const double *first = sums[kFirst], *second = sums[kSecond], *weights = sums[kWeights];
  const double n_first = by.errors[kFirst], n_second = by.errors[kSecond],
               n_count = by.errors[kWeights], level = by.level, all = by.weight_of_all,
               nothing = by.nothing, allowed = by.allowed, of_mean = by.allowed_of_mean;
  const double per_scale = 1 / by.scale, per_square = per_scale * per_scale;
  const bool is_one_value = n_first == 0;  // no element differs from the level
  int64_t unknown = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const double weight = WEIGHTED ? weights[i] : all;
    const bool there = weight >= nothing;
    const double share = 1 / (there ? weight : 1.0), m = first[i] * share;
    const double energy = second[i] - first[i] * m, size = m < 0 ? -m : m;
    const double wrong = n_second + 2 * size * n_first + size * size * n_count;
    const double whole = level + m * per_scale, positive = energy > 0 ? energy * share : 0.0;
    const double square = positive * per_square + whole * whole;
    const double error = (n_first + size * n_count) * share * per_scale;
    const bool clear = (wrong <= allowed * energy) & (energy > 4 * wrong) &
                       (error * error <= of_mean * of_mean * square) &
                       (n_count <= allowed * weight);
    const bool known = clear | is_one_value | !there;
    count[i] = there ? weight : 0.0;
    mean[i] = there ? whole : 0.0;
    var[i] = there & !is_one_value ? positive * per_square : 0.0;
    states[i] = !known;
    unknown += !known;
  }
  return unknown;
}

}  // namespace

#define TORCHCORR_ADD(T)                                                                           \
  TORCHCORR_CLONES void add_elements(int64_t n, const T* x, const T* weight, const Centring& by,   \
                                     double* const (&to)[kSums]) {                                 \
    weight ? add_each<true>(n, x, weight, by, to) : add_each<false>(n, x, weight, by, to);         \
  }
TORCHCORR_ADD(float)
TORCHCORR_ADD(double)
#undef TORCHCORR_ADD

// Deviations of several channels may cancel in `first`: by the inequality of Cauchy and Schwarz, the sum
// of their sizes is at most what squares and weights say. Squares may be too small for a number.
RowSize size_of_row(int64_t n, const double* first, const double* squares, const double* weights,
                    double weight_of_all) {
  RowSize size;
  size.of[kSecond] = sum_of_sizes(n, squares);
  size.of[kWeights] = weights ? sum_of_sizes(n, weights) : weight_of_all;
  const double most = std::sqrt(size.of[kSecond] * size.of[kWeights]);
  size.of[kFirst] = std::max(most, sum_of_sizes(n, first));
  return size;
}

TORCHCORR_CLONES void add_signed(int64_t n, double sign, const double* __restrict x,
                                 double* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] += sign * x[i];
}

TORCHCORR_FOR_CPUS(void, add_taps,
                   (int64_t sums, int64_t taps, int64_t single, const Taps* tap,
                    const TileElements& of, int64_t at, double (&to)[kSums][kAtOnce]),
                   (sums, taps, single, tap, of, at, to))

TORCHCORR_CLONES int64_t moments_of_row(int64_t n, const double* const (&sums)[kSums],
                                        const MomentLimits& by, double* count, double* mean,
                                        double* var, uint8_t* states) {
  return sums[kWeights] ? decide<true>(n, sums, by, count, mean, var, states)
                        : decide<false>(n, sums, by, count, mean, var, states);
}

}  // namespace torchcorr
