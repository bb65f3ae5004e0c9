// What one row of elements or windows takes in moments of windows whose elements have weights.
#pragma once

#include <array>

#include "common/vectors.h"

namespace torchcorr {

// Sums over windows: of weighted deviations from a level, of their squares, and of weights.
enum { kFirst, kSecond, kWeights, kSums };

// The largest that the sums of a row of elements can be.
struct RowSize {
  double of[kSums] = {};
};

// How elements are added up: sign * (x - level) * scale.
struct Centring {
  double level, scale, sign = 1;
};

// Adds n elements to those of other channels; weights are 1 where `weight` is null, and not written.
void add_elements(int64_t n, const float* x, const float* weight, const Centring& by,
                  double* const (&to)[kSums]);
void add_elements(int64_t n, const double* x, const double* weight, const Centring& by,
                  double* const (&to)[kSums]);

// How large the sums of any elements of a row can be, from their deviations, squares and weights, or
// without these the sum of all weights.
RowSize size_of_row(int64_t n, const double* first, const double* squares, const double* weights,
                    double weight_of_all);

// n + 1 totals of each row: of no element, of the first one, and so on. Of several rows at once, since
// each total waits for the one before.
template <size_t N>
void add_up(int64_t n, const std::array<const double*, N>& from, const std::array<double*, N>& to) {
  std::array<double, N> totals{};
  for (int64_t i = 0; i < n; ++i) {
    for (size_t s = 0; s < N; ++s) {
      to[s][i] = totals[s];
      totals[s] += from[s][i];
    }
  }
  for (size_t s = 0; s < N; ++s) to[s][n] = totals[s];
}

// to += sign * x
void add_signed(int64_t n, double sign, const double* x, double* to);

// Neighbours of equal weight in a window, relative to its first element.
struct Taps {
  int64_t offset, length;
  double weight;
};

// The elements of a tile and their totals, in rows of one pitch.
struct TileElements {
  const double* values[kSums];
  const double* totals[kSums];  // or null if all taps are single elements
};

// Sums of kAtOnce neighbouring windows, the first of which begins at element `at`. The first `single`
// taps are single elements.
constexpr int64_t kVectors = 4;
constexpr int64_t kAtOnce = kVectors * kDoubles;
void add_taps(int64_t sums, int64_t taps, int64_t single, const Taps* tap, const TileElements& of,
              int64_t at, double (&to)[kSums][kAtOnce]);

// What is the same for all windows of a row: how deviations are measured, the weight of a window whose
// elements all have weight 1, bounds of rounding, and what of it moments may have.
struct MomentLimits {
  double level, scale, weight_of_all, nothing;  // less weight than this is none
  double errors[kSums];
  double allowed, allowed_of_mean;
};

// Weights, means and variances of n windows from their sums; how many are unknown. States are 1 where
// a window is, or 0. Without a map of weights all elements have weight 1.
int64_t moments_of_row(int64_t n, const double* const (&sums)[kSums], const MomentLimits& by,
                       double* count, double* mean, double* var, uint8_t* states);

}  // namespace torchcorr
