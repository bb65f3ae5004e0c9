// One window from its definition, for the few whose sums are not to be trusted.
#pragma once

#include "common/tensors.h"

namespace torchcorr {

struct ExactWindow {
  int64_t channels, window[3];
  double count, eps;
  bool zero_mean;
};

// Of the elements times `scale`: their mean (0 where it is not subtracted) and the sum of the
// squares about it.
struct WindowMoments {
  double level, squares;
};

// `x` is the window's first element; strides count elements from channel to channel, plane to
// plane and row to row.
WindowMoments moments_of_window(const float* x, const int64_t (&stride)[3], const ExactWindow& by,
                                double scale);
WindowMoments moments_of_window(const double* x, const int64_t (&stride)[3], const ExactWindow& by,
                                double scale);
double score_of_window(const float* x, const int64_t (&stride)[3], const double* weights,
                       const ExactWindow& by, double scale);
double score_of_window(const double* x, const int64_t (&stride)[3], const double* weights,
                       const ExactWindow& by, double scale);

// Sums of products of element - level with the weights: of one window, and of `kNeighbours` side by
// side, the first of which begins at `x`.
constexpr int64_t kNeighbours = 32;
double product_of_window(const float* x, const int64_t (&stride)[3], const double* weights,
                         const ExactWindow& by, double level);
double product_of_window(const double* x, const int64_t (&stride)[3], const double* weights,
                         const ExactWindow& by, double level);
void products_of_windows(const float* x, const int64_t (&stride)[3], const double* weights,
                         const ExactWindow& by, double level, double* out);
void products_of_windows(const double* x, const int64_t (&stride)[3], const double* weights,
                         const ExactWindow& by, double level, double* out);

// The plain sum of products, with what IEEE says of an Inf or a NaN.
double sum_of_window(const float* x, const int64_t (&stride)[3], const double* weights,
                     const ExactWindow& by);
double sum_of_window(const double* x, const int64_t (&stride)[3], const double* weights,
                     const ExactWindow& by);

}  // namespace torchcorr
