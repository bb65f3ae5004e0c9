// One window from its definition, for the few whose sums are doubtful.
#pragma once

#include "common/item_layout.h"

namespace torchcorr {

// The shape and options of windows that are computed from their definition. A window is given by
// its first element; coefficients are contiguous, (channel, *window).
struct ExactWindow {
  int64_t channels;
  Axes3 window;
  RowStrides strides;
  bool zero_mean;
  double eps;
  bool own_means = false;  // each channel has its own
  double count = static_cast<double>(channels * product(window));

  int64_t groups() const { return own_means ? channels : 1; }  // of channels that share a mean
};

// The place of the first element whose coefficient is not 0, as others may be hidden; in its channel, if
// channels have their own means.
int64_t first_seen(const double* coefficients, const ExactWindow& by);

// Levels of a window's groups: where means are subtracted, the element of each at `seen`; otherwise 0.
template <class T>
void write_levels(const T* x, int64_t seen, const ExactWindow& by, double* levels) {
  for (int64_t g = 0; g < by.groups(); ++g) {
    levels[g] = by.zero_mean ? static_cast<double>(x[seen + g * by.strides.channel]) : 0.0;
  }
}

// Of the elements times `scale`: the sum of the squares about their means, which are written to
// `levels`, one for each group (0 where they are not subtracted).
double squares_about_means(const float* x, const ExactWindow& by, double scale, double* levels);
double squares_about_means(const double* x, const ExactWindow& by, double scale, double* levels);

double score_of_window(const float* x, const double* coefficients, const ExactWindow& by,
                       double scale);
double score_of_window(const double* x, const double* coefficients, const ExactWindow& by,
                       double scale);

// Sums of products of element - level of its group with the coefficients: of one window, and of
// `kNeighbours` side by side, the first of which begins at `x`.
constexpr int64_t kNeighbours = 32;
double numerator_of_window(const float* x, const double* coefficients, const ExactWindow& by,
                           const double* levels);
double numerator_of_window(const double* x, const double* coefficients, const ExactWindow& by,
                           const double* levels);
void numerators_of_windows(const float* x, const double* coefficients, const ExactWindow& by,
                           const double* levels, double* out);
void numerators_of_windows(const double* x, const double* coefficients, const ExactWindow& by,
                           const double* levels, double* out);

// The plain sum of products; an Inf or a NaN propagates as IEEE 754 says.
double sum_of_window(const float* x, const double* coefficients, const ExactWindow& by);
double sum_of_window(const double* x, const double* coefficients, const ExactWindow& by);

}  // namespace torchcorr
