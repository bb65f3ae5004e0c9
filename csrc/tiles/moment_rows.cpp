#include "tiles/moment_rows.h"

#include <cmath>

namespace torchcorr {
namespace {

template <bool WEIGHTED, class T>
TORCHCORR_INLINE void add_row(int64_t n, const T* x, const T* weight, double level, double scale,
                              double* const (&to)[kSums], RowSize& size) {
  double *first = to[kFirst], *second = to[kSecond], *count = to[kWeights];
  Doubles sizes[kSums] = {};
  const auto add = [&](const Doubles& v, const Doubles& w, Doubles& a, Doubles& b) TORCHCORR_FLAT {
    const Doubles d = w > 0.0 ? (v - level) * scale : Doubles{}, part = w * d, square = part * d;
    sizes[kFirst] += part < 0.0 ? -part : part, sizes[kSecond] += square, sizes[kWeights] += w;
    a += part, b += square;
  };
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) {
    const Doubles w = WEIGHTED ? read(weight + i) : Doubles{} + 1.0;
    Doubles a = read(first + i), b = read(second + i);
    add(read(x + i), w, a, b);
    write(first + i, a), write(second + i, b);
    if (WEIGHTED) write(count + i, read(count + i) + w);
  }
  if (i < n) {
    const int64_t rest = n - i;
    Doubles w = {};
    for (int64_t l = 0; l < rest; ++l) w[l] = WEIGHTED ? static_cast<double>(weight[i + l]) : 1.0;
    Doubles a = read_part(rest, first + i), b = read_part(rest, second + i);
    add(read_part(rest, x + i), w, a, b);
    write_part(rest, first + i, a), write_part(rest, second + i, b);
    if (WEIGHTED) write_part(rest, count + i, read_part(rest, count + i) + w);
  }
  for (int s = 0; s < kSums; ++s) size.of[s] += total_of(sizes[s]);
}

template <int SUMS>
TORCHCORR_INLINE void add_all(int64_t taps, int64_t single, const Taps* tap, const TileElements& of,
                              int64_t at, double (&to)[kSums][kAtOnce]) {
  Doubles sum[SUMS][kVectors] = {};
  for (int64_t k = 0; k < single; ++k) {
    const int64_t from = at + tap[k].offset;
    const double weight = tap[k].weight;
    for (int s = 0; s < SUMS; ++s) {
      for (int64_t v = 0; v < kVectors; ++v) {
        sum[s][v] += read(of.values[s] + from + v * kDoubles) * weight;
      }
    }
  }
  for (int64_t k = single; k < taps; ++k) {
    const int64_t from = at + tap[k].offset, end = from + tap[k].length;
    const double weight = tap[k].weight;
    for (int s = 0; s < SUMS; ++s) {
      for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t to_vector = v * kDoubles;
        sum[s][v] +=
            (read(of.totals[s] + end + to_vector) - read(of.totals[s] + from + to_vector)) * weight;
      }
    }
  }
  for (int s = 0; s < SUMS; ++s) {
    for (int64_t v = 0; v < kVectors; ++v) write(&to[s][v * kDoubles], sum[s][v]);
  }
}

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

#define TORCHCORR_ADD(T)                                                                     \
  TORCHCORR_CLONES void add_elements(int64_t n, const T* x, const T* weight, double level,   \
                                     double scale, double* const (&to)[kSums], RowSize& size) { \
    weight ? add_row<true>(n, x, weight, level, scale, to, size)                             \
           : add_row<false>(n, x, weight, level, scale, to, size);                           \
  }
TORCHCORR_ADD(float)
TORCHCORR_ADD(double)
#undef TORCHCORR_ADD

TORCHCORR_CLONES void add_up(int64_t n, const double* from, double* to) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) to[i] = total, total += from[i];
  to[n] = total;
}

TORCHCORR_CLONES void add_taps(int64_t sums, int64_t taps, int64_t single, const Taps* tap,
                               const TileElements& of, int64_t at,
                               double (&to)[kSums][kAtOnce]) {
  sums == kSums ? add_all<kSums>(taps, single, tap, of, at, to)
                : add_all<kSums - 1>(taps, single, tap, of, at, to);
}

TORCHCORR_CLONES int64_t moments_of_row(int64_t n, const double* const (&sums)[kSums],
                                        const MomentLimits& by, double* count, double* mean,
                                        double* var, uint8_t* states) {
  return sums[kWeights] ? decide<true>(n, sums, by, count, mean, var, states)
                        : decide<false>(n, sums, by, count, mean, var, states);
}

}  // namespace torchcorr
