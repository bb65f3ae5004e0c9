// One window from its definition, for the few whose sums are doubtful.
#pragma once

#include "common/axes.h"

namespace torchcorr {

// Elements from channel to channel, plane to plane and row to row.
struct RowStrides {
  int64_t channel, plane, row;

  explicit RowStrides(const Axes3& size)
      : channel(product(size)), plane(size[1] * size[2]), row(size[2]) {}
};

// The shape and options of windows that are computed from their definition. A window is given by
// its first element; coefficients are contiguous, (channel, *window).
struct ExactWindow {
  int64_t channels;
  Axes3 window;
  RowStrides strides;
  bool zero_mean;
  double eps;
  double count = static_cast<double>(channels * product(window));
};

// The place of the first element whose coefficient is not 0: others may be hidden.
int64_t first_seen(const double* coefficients, const ExactWindow& by);

// Of the elements times `scale`: their mean (0 where it is not subtracted) and the sum of the
// squares about it.
struct WindowMoments {
  double level, squares;
};

WindowMoments moments_of_window(const float* x, const ExactWindow& by, double scale);
WindowMoments moments_of_window(const double* x, const ExactWindow& by, double scale);

double score_of_window(const float* x, const double* coefficients, const ExactWindow& by,
                       double scale);
double score_of_window(const double* x, const double* coefficients, const ExactWindow& by,
                       double scale);

// Sums of products of element - level with the coefficients: of one window, and of `kNeighbours`
// side by side, the first of which begins at `x`.
constexpr int64_t kNeighbours = 32;
double numerator_of_window(const float* x, const double* coefficients, const ExactWindow& by,
                           double level);
double numerator_of_window(const double* x, const double* coefficients, const ExactWindow& by,
                           double level);
void numerators_of_windows(const float* x, const double* coefficients, const ExactWindow& by,
                           double level, double* out);
void numerators_of_windows(const double* x, const double* coefficients, const ExactWindow& by,
                           double level, double* out);

// The plain sum of products; an Inf or a NaN propagates as IEEE 754 says.
double sum_of_window(const float* x, const double* coefficients, const ExactWindow& by);
double sum_of_window(const double* x, const double* coefficients, const ExactWindow& by);

}  // namespace torchcorr
