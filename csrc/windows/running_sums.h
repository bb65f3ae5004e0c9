// Parts of running sums: columns that rows enter and leave, and totals along a row.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "common/axes.h"
#include "common/targets.h"

namespace torchcorr::running {

// How the positions of a tile are divided into units of work.
struct Strips {
  Axes3 size, units_along;  // of a unit, and how many along each axis

  // A unit has at least `least` positions along each axis, if the tile does.
  Strips(const Axes3& positions, const Axes3& least) {
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t n = positions[axis];
      size[axis] = ceil_div(n, ceil_div(n, std::min(least[axis], n)));
      units_along[axis] = ceil_div(n, size[axis]);
    }
  }

  int64_t units() const { return product(units_along); }
  Axes3 first(int64_t unit) const {
    const Axes3 at = unravel(unit, units_along);
    return {at[0] * size[0], at[1] * size[1], at[2] * size[2]};
  }
};

// Elements of a line from which on only pieces of its totals are kept, of so many elements.
constexpr int64_t kLongLine = 1 << 14, kPiece = 1 << 11;

// Rows are padded to whole vectors; numbers past their end are never used.
inline int64_t whole(int64_t n) { return ceil_div(n, kDoubles) * kDoubles; }

// Sums of two quantities, one number of each a column.
struct Columns {
  double *first, *second;
  Columns at(int64_t offset) const { return {first + offset, second + offset}; }
};

template <int BYTES>
TORCHCORR_INLINE void add_column(int64_t n, const double* x, double* to) {
  for (int64_t i = 0; i < n; i += lanes_of<double, BYTES>) {
    put(load<BYTES>(to + i) + load<BYTES>(x + i), to + i);
  }
}
template <int BYTES>
TORCHCORR_INLINE void add_columns(int64_t n, const Columns& x, const Columns& to) {
  add_column<BYTES>(n, x.first, to.first);
  add_column<BYTES>(n, x.second, to.second);
}

template <int BYTES>
TORCHCORR_INLINE void exchange_column(int64_t n, const double* enter, const double* leave,
                                      double* to) {
  for (int64_t i = 0; i < n; i += lanes_of<double, BYTES>) {
    put(load<BYTES>(to + i) + load<BYTES>(enter + i) - load<BYTES>(leave + i), to + i);
  }
}
template <int BYTES>
TORCHCORR_INLINE void exchange_columns(int64_t n, const Columns& enter, const Columns& leave,
                                       const Columns& to) {
  exchange_column<BYTES>(n, enter.first, leave.first, to.first);
  exchange_column<BYTES>(n, enter.second, leave.second, to.second);
}

// Running totals of vectors that follow each other.
template <int BYTES>
class RunningTotal {
 public:
  // The sums of all numbers so far up to each of the next ones.
  TORCHCORR_INLINE Wide<BYTES> next(Wide<BYTES> v) {
    const Wide<BYTES> none = {};  // zeros before the first of v
    Wide<BYTES> last;             // of the sums of v alone
    if constexpr (BYTES == 64) {
      v += __builtin_shufflevector(none, v, 7, 8, 9, 10, 11, 12, 13, 14);
      v += __builtin_shufflevector(none, v, 6, 7, 8, 9, 10, 11, 12, 13);
      v += __builtin_shufflevector(none, v, 4, 5, 6, 7, 8, 9, 10, 11);
      last = __builtin_shufflevector(v, v, 7, 7, 7, 7, 7, 7, 7, 7);
    } else if constexpr (BYTES == 32) {
      v += __builtin_shufflevector(none, v, 3, 4, 5, 6);
      v += __builtin_shufflevector(none, v, 2, 3, 4, 5);
      last = __builtin_shufflevector(v, v, 3, 3, 3, 3);
    } else {
      v += __builtin_shufflevector(none, v, 1, 2);
      last = __builtin_shufflevector(v, v, 1, 1);
    }
    const Wide<BYTES> sums = v + before_;
    before_ += last;  // without waiting for the sums
    return sums;
  }

 private:
  Wide<BYTES> before_ = {};
};

// Running totals along a row; to[0] is zero and to[i] the sum of the first i numbers.
template <int BYTES>
TORCHCORR_INLINE void accumulate(int64_t n, const double* x, double* to) {
  RunningTotal<BYTES> total;
  to[0] = 0;
  for (int64_t i = 0; i < n; i += lanes_of<double, BYTES>) {
    put(total.next(load<BYTES>(x + i)), to + 1 + i);
  }
}

// Those of both quantities.
template <int BYTES>
struct RunningTotals {
  RunningTotal<BYTES> first, second;

  // to[i] is the sum of all numbers so far up to the i-th of the next ones.
  TORCHCORR_INLINE void next(int64_t n, const Columns& x, const Columns& to) {
    for (int64_t i = 0; i < n; i += lanes_of<double, BYTES>) {
      put(first.next(load<BYTES>(x.first + i)), to.first + i);
      put(second.next(load<BYTES>(x.second + i)), to.second + i);
    }
  }
};

template <int BYTES>
TORCHCORR_INLINE void accumulate(int64_t n, const Columns& x, const Columns& to) {
  to.first[0] = 0, to.second[0] = 0;
  RunningTotals<BYTES>().next(n, x, to.at(1));
}

class ColumnsScratch {
 public:
  // Zeros; the element at `aligned` begins a cache line.
  Columns take(int64_t n, int64_t aligned = 0) {
    const int64_t each = whole(n + kDoubles);
    const size_t bytes = 2 * each * sizeof(double);
    memory_.emplace_back(static_cast<double*>(::operator new(bytes, kLine)));
    double* start = memory_.back().get();
    std::fill_n(start, 2 * each, 0.0);
    const int64_t shift = (kDoubles - aligned % kDoubles) % kDoubles;
    return {start + shift, start + each + shift};
  }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(double* p) const { ::operator delete(p, kLine); }
  };
  std::vector<std::unique_ptr<double, Free>> memory_;
};

}  // namespace torchcorr::running
