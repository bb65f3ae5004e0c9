// Sums of the windows of a tile whose own weights are all equal: planes, rows and elements enter and
// leave running sums in float64, which begin anew after as many as a window has.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tiles/moment_rows.h"
#include "tiles/tile_level.h"

namespace torchcorr {

// How large the sums of a tile's windows may be and their rounding; that of each row of windows.
struct SumBounds {
  double largest[kSums] = {}, error[kSums] = {};
  std::vector<RowSize> errors;

  void set_error(int sum, double value) {
    error[sum] = value;
    for (RowSize& row : errors) row.of[sum] = value;
  }
};

// Of n columns, the sums of the windows of `size` neighbours that begin at every step-th.
struct BoxRow {
  int64_t n, size, step;
  double weight;  // of each element
  const double* columns[kSums];
  double* totals;  // scratch: n + 1 numbers for each sum
};
// Writes `count` windows of each sum that has columns, and what all columns together have.
RowSize sum_boxes(const BoxRow& row, int64_t count, double* const (&to)[kSums]);

// `row_of(channel, z, y)` gives a `WeightedRow` of the tile.
template <class T, class F>
class SlidingBoxes {
 public:
  SlidingBoxes(const Tiling& t, const TileLevel& level, const F& row_of, int sums)
      : t_(t), level_(level), row_of_(row_of), sums_(sums), width_(t.extent[2]),
        plane_(t.window[0] > 1 ? t.extent[1] * width_ : 0), planes_(sums * plane_),
        columns_(sums * width_), totals_(kSums * (width_ + 1)) {}

  SumBounds run(double weight, double* const (&to)[kSums]) {
    for (int64_t i = 0; i < t_.outputs[0]; ++i) {
      if (plane_ > 0) {
        slide(0, i, planes_, [&](int64_t z, double sign) {
          for (int64_t y = 0; y < t_.extent[1]; ++y) {
            add_elements_of(z, y, sign, planes_.data() + y * width_, plane_);
          }
        });
      }
      for (int64_t j = 0; j < t_.outputs[1]; ++j) {
        slide(1, j, columns_, [&](int64_t y, double sign) {
          if (plane_ == 0) {
            return add_elements_of(i * t_.stride[0], y, sign, columns_.data(), width_);
          }
          for (int s = 0; s < sums_; ++s) {
            add_signed(width_, sign, &planes_[s * plane_ + y * width_], &columns_[s * width_]);
          }
        });
        BoxRow row{width_, t_.window[2], t_.stride[2], weight, {}, totals_.data()};
        double* to_row[kSums] = {};
        for (int s = 0; s < sums_; ++s) {
          row.columns[s] = &columns_[s * width_];
          to_row[s] = to[s] + (i * t_.outputs[1] + j) * t_.outputs[2];
        }
        const RowSize size = sum_boxes(row, t_.outputs[2], to_row);
        if (plane_ == 0 && begins(1, j)) largest_ = {};
        for (int s = 0; s < kSums; ++s) largest_.of[s] = std::max(largest_.of[s], size.of[s]);
        largest_of_rows_.push_back(largest_);
      }
    }
    return bounds(weight);
  }

 private:
  // Each of so many steps rounds once, and no sum on the way is larger than what all columns of a row
  // of windows have, one of those since the sums began.
  SumBounds bounds(double weight) const {
    int64_t roundings = 16 + t_.channels + 2 * width_;
    for (int axis = 0; axis < 2; ++axis) roundings += 3 * t_.window[axis] + 2 * t_.stride[axis];
    const double unit = std::numeric_limits<double>::epsilon() / 2;
    const double rounding = static_cast<double>(roundings) * unit;
    const double all = static_cast<double>(t_.channels * t_.window[0] * t_.window[1] * width_);
    SumBounds of;
    for (RowSize size : largest_of_rows_) {
      if (sums_ < kSums) size.of[kWeights] = all;
      // Deviations may cancel: by the inequality of Cauchy and Schwarz, their sizes add up to no more.
      size.of[kFirst] = std::sqrt(size.of[kWeights] * size.of[kSecond]);
      for (int s = 0; s < kSums; ++s) {
        of.largest[s] = std::max(of.largest[s], weight * size.of[s]);
        size.of[s] *= s < sums_ ? rounding * weight : 0.0;
        of.error[s] = std::max(of.error[s], size.of[s]);
      }
      of.errors.push_back(size);
    }
    return of;
  }

  // Whether the sums of the i-th window along an axis begin anew.
  bool begins(int axis, int64_t i) const {
    return i % std::max<int64_t>(1, t_.window[axis] / t_.stride[axis]) == 0;
  }

  // Moves running sums to the i-th window along an axis: `add(at, sign)` adds a part, or subtracts it.
  template <class Add>
  void slide(int axis, int64_t i, std::vector<double>& sums, const Add& add) const {
    const int64_t window = t_.window[axis], step = t_.stride[axis], first = i * step;
    int64_t from = first;
    if (begins(axis, i)) {
      std::fill(sums.begin(), sums.end(), 0.0);
    } else {
      for (int64_t at = first - step; at < first; ++at) add(at, -1.0);
      from = first + window - step;
    }
    for (int64_t at = from; at < first + window; ++at) add(at, 1.0);
  }

  // Adds a row about the level to sums that are `pitch` numbers apart.
  void add_elements_of(int64_t z, int64_t y, double sign, double* sums, int64_t pitch) const {
    for (int64_t c = 0; c < t_.channels; ++c) {
      const WeightedRow<T> row = row_of_(c, z, y);
      const int64_t first = row.x.begin, n = row.x.end - first;
      if (n <= 0) continue;
      double* to[kSums] = {};
      for (int s = 0; s < sums_; ++s) to[s] = sums + s * pitch + first;
      add_elements(n, row.x.data + first, sums_ == kSums ? row.weight.data + first : nullptr,
                   {level_.level, level_.scale, sign}, to);
    }
  }

  const Tiling& t_;
  const TileLevel& level_;
  const F& row_of_;
  const int sums_;  // all, or all but the weights
  const int64_t width_, plane_;
  std::vector<double> planes_, columns_, totals_;
  RowSize largest_;  // of all columns, since sums began
  std::vector<RowSize> largest_of_rows_;
};

// Writes the sums (*outputs) of deviations, squares and, if there is a map for them, of weights; each
// element of a window has one weight.
template <class T, class F>
SumBounds box_sums(const Tiling& t, const TileLevel& level, double weight, const F& row_of,
                   double* const (&to)[kSums]) {
  return SlidingBoxes<T, F>(t, level, row_of, to[kWeights] ? kSums : kSums - 1).run(weight, to);
}

}  // namespace torchcorr
