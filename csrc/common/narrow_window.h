// Windows from their definition in float32, where an element of the window is near enough to its mean.
#pragma once

#include <vector>

#include "common/exact_window.h"

namespace torchcorr {

// Sums of products are this far from exact at most, times the product of the roots of the sums of
// squares of both factors: sixteen are added in float32 one after the other, after element, coefficient
// and product were rounded.
constexpr double kNarrowRoundings = 20 * 0x1p-24;

// The coefficients of a template by whole vectors of this CPU, and where the elements of these lie
// from a window's first one on.
class NarrowTemplate {
 public:
  // Of element - level: the sum of products with coefficients, and at least the sum of squares.
  struct Sum {
    double products, squares;
  };

  NarrowTemplate(const double* coefficients, const ExactWindow& by);

  // Rows that are shorter than a vector are left to sums in float64.
  bool empty() const { return offsets_.empty(); }
  // `levels` are elements of the window, one for each group of channels.
  Sum sum_of_window(const float* x, const double* levels) const;
  // Of `kNeighbours` windows side by side, the first of which begins at `x`; the levels are elements
  // near them.
  void sums_of_windows(const float* x, const double* levels, Sum* out) const;

 private:
  ExactWindow by_;
  std::vector<float> coefficients_, vectors_;  // as they are given, and in the order of the offsets
  std::vector<int64_t> offsets_;
};

}  // namespace torchcorr
