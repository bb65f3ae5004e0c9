// Sums of products of two lines at neighbouring lags, term by term.
#pragma once

#include <vector>

#include "common/vectors.h"

namespace torchcorr::overlap {

// sum_i x[i + k] y[i] for k = 0, 1, ... as a product of matrices: with i = R q + r, rows r of y and
// columns s of x that lie R apart have the sum over q of y[R q + r] x[R q + s], and those with
// s - r = k make up the sum at k. Every vector of x that is read serves R elements of y, and none
// lies across two lines of cache.
class Products {
 public:
  // Elements of y that are multiplied at the same time, at most.
  static constexpr int64_t kBlock = 1024;

  explicit Products(int64_t lags);

  // Where the caller writes n elements of y, and `seen(n)` elements of x from lag 0 on.
  double* y() { return y_; }
  double* x() { return x_; }
  int64_t seen(int64_t n) const { return n + lags_ - 1; }

  // Adds the products of what was written there.
  void add(int64_t n);

  // Adds the sums at all lags.
  void take(double* to);

 private:
  void fold();

  const int64_t lags_, rows_, columns_;
  int64_t summed_ = 0;
  std::vector<double> room_, totals_;
  double *x_, *y_, *sums_;
};

}  // namespace torchcorr::overlap
