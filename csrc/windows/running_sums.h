// Parts of running sums: columns that rows enter and leave, and totals along a row.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "common/axes.h"
#include "common/vectors.h"

namespace torchcorr::running {

// How the planes and rows of a tile are divided into units of work.
struct Strips {
  int64_t planes, rows;  // of a unit
  int64_t plane_units, row_units;

  // A unit has at least `least_planes` planes and `least_rows` rows, if the tile does.
  Strips(const Axes3& size, int64_t least_planes, int64_t least_rows) {
    planes = even_part(size[0], least_planes), plane_units = ceil_div(size[0], planes);
    rows = even_part(size[1], least_rows), row_units = ceil_div(size[1], rows);
  }

  int64_t units() const { return plane_units * row_units; }
  int64_t first_plane(int64_t unit) const { return unit / row_units * planes; }
  int64_t first_row(int64_t unit) const { return unit % row_units * rows; }

 private:
  static int64_t even_part(int64_t n, int64_t least) { return ceil_div(n, ceil_div(n, least)); }
};

// Rows are padded to whole vectors; numbers past their end are never used.
inline int64_t whole(int64_t n) { return ceil_div(n, kDoubles) * kDoubles; }

// Sums of two quantities, one number of each a column.
struct Columns {
  double *first, *second;
  Columns at(int64_t offset) const { return {first + offset, second + offset}; }
};

template <int SIGN>
TORCHCORR_INLINE void add_columns(int64_t n, const Columns& x, const Columns& to) {
  for (int64_t i = 0; i < n; i += kDoubles) {
    const Doubles a = read(to.first + i), b = read(to.second + i);
    write(to.first + i, SIGN > 0 ? a + read(x.first + i) : a - read(x.first + i));
    write(to.second + i, SIGN > 0 ? b + read(x.second + i) : b - read(x.second + i));
  }
}

// Running totals along a row; to[0] is zero and to[i] the sum of the first i numbers.
TORCHCORR_INLINE void accumulate(int64_t n, const double* x, double* to) {
  const Doubles none = {};
  Doubles carry = {};
  to[0] = 0;
  for (int64_t i = 0; i < n; i += kDoubles) {
    Doubles v = read(x + i);
    v += __builtin_shufflevector(none, v, 0, 8, 9, 10, 11, 12, 13, 14);
    v += __builtin_shufflevector(none, v, 0, 1, 8, 9, 10, 11, 12, 13);
    v += __builtin_shufflevector(none, v, 0, 1, 2, 3, 8, 9, 10, 11);
    v += carry;
    write(to + 1 + i, v);
    carry = __builtin_shufflevector(v, v, 7, 7, 7, 7, 7, 7, 7, 7);
  }
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
