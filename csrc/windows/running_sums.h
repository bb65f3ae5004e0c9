// What sliding sums are made of: columns that rows enter and leave, and totals along a row.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "common/vectors.h"

namespace torchcorr::running {

// Rows are padded to whole vectors; what lies behind their end is never used.
inline int64_t whole(int64_t n) { return ceil_div(n, kVector) * kVector; }

// Sums of the elements and of their squares, one number of each a column.
struct Columns {
  double *sum, *square;
  Columns at(int64_t offset) const { return {sum + offset, square + offset}; }
};

template <int SIGN>
TORCHCORR_INLINE void add_columns(int64_t n, const Columns& x, const Columns& to) {
  for (int64_t i = 0; i < n; i += kVector) {
    const Vector a = read(to.sum + i), b = read(to.square + i);
    write(to.sum + i, SIGN > 0 ? a + read(x.sum + i) : a - read(x.sum + i));
    write(to.square + i, SIGN > 0 ? b + read(x.square + i) : b - read(x.square + i));
  }
}

// Running totals along a row; to[0] is zero and to[i] the sum of the first i numbers.
TORCHCORR_INLINE void accumulate(int64_t n, const double* x, double* to) {
  const Vector none = {};
  Vector carry = {};
  to[0] = 0;
  for (int64_t i = 0; i < n; i += kVector) {
    Vector v = read(x + i);
    v += __builtin_shufflevector(none, v, 0, 8, 9, 10, 11, 12, 13, 14);
    v += __builtin_shufflevector(none, v, 0, 1, 8, 9, 10, 11, 12, 13);
    v += __builtin_shufflevector(none, v, 0, 1, 2, 3, 8, 9, 10, 11);
    v += carry;
    write(to + 1 + i, v);
    carry = __builtin_shufflevector(v, v, 7, 7, 7, 7, 7, 7, 7, 7);
  }
}

class Scratch {
 public:
  // Zeros; the element at `aligned` begins a cache line.
  Columns take(int64_t n, int64_t aligned = 0) {
    const int64_t each = whole(n + kVector);
    const size_t bytes = 2 * each * sizeof(double);
    memory_.emplace_back(static_cast<double*>(::operator new(bytes, kLine)));
    double* first = memory_.back().get();
    std::fill_n(first, 2 * each, 0.0);
    const int64_t shift = (kVector - aligned % kVector) % kVector;
    return {first + shift, first + each + shift};
  }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(double* p) const { ::operator delete(p, kLine); }
  };
  std::vector<std::unique_ptr<double, Free>> memory_;
};

}  // namespace torchcorr::running
