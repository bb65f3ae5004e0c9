// A mask that is 1 in a box and 0 around it: what surrounds an input, or its valid part. How much of
// the template lies in the box follows from the place of a window, so that no transform is needed.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "common/tiling.h"

namespace torchcorr {

struct MaskRegion {
  Axes3 begin, end;

  bool contains(int axis, int64_t from, int64_t to) const {
    return begin[axis] <= from && to <= end[axis];
  }

  // What a row (z, y) of a tile has of the region.
  template <class T>
  TileRow<T> clip(TileRow<T> row, const TilePlace& place, int64_t z, int64_t y) const {
    z += place.start[0], y += place.start[1];
    if (!contains(0, z, z + 1) || !contains(1, y, y + 1)) return {};
    row.begin = std::max(row.begin, begin[2] - place.start[2]);
    row.end = std::max(row.begin, std::min(row.end, end[2] - place.start[2]));
    return row;
  }

  bool contains_tile(const Tiling& t, const TilePlace& place) const {
    bool all = place.exists;
    for (int i = 0; i < 3; ++i) {
      const int64_t to = std::min(place.start[i] + t.extent[i], t.size[i]);
      all = all && contains(i, std::max<int64_t>(place.start[i], 0), to);
    }
    return all;
  }

  // Which windows of a row of them lie in the region, all elements.
  std::array<int64_t, 2> whole_windows(const Tiling& t, const TilePlace& place, int64_t row) const {
    const Axes3 at = unravel(row * t.outputs[2], t.outputs);
    for (int i = 0; i < 2; ++i) {
      const int64_t from = place.start[i] + at[i] * t.stride[i];
      if (!contains(i, from, from + t.window[i])) return {0, 0};
    }
    const int64_t last = end[2] - t.window[2] - place.start[2];
    const int64_t first = std::max<int64_t>(begin[2] - place.start[2], 0);
    const int64_t from = std::min(ceil_div(first, t.stride[2]), t.outputs[2]);
    const int64_t to = last < 0 ? 0 : std::min(last / t.stride[2] + 1, t.outputs[2]);
    return {from, std::max(from, to)};
  }
};

// The box of `lines` masks of one size; none if they are anything else, which the first rows show.
template <class T>
std::optional<MaskRegion> region_of(const T* mask, int64_t lines, const Axes3& size) {
  const int64_t n = product(size), width = size[2];
  const auto is_some = [](T w) { return w != T(0); };
  const T* first = std::find_if(mask, mask + n, is_some);
  const T* behind = mask + n;
  while (behind > first && !is_some(behind[-1])) --behind;
  if (first == behind) return std::nullopt;
  const Axes3 begin = unravel(first - mask, size), last = unravel(behind - 1 - mask, size);
  const MaskRegion region{begin, {last[0] + 1, last[1] + 1, last[2] + 1}};
  const std::vector<T> outside(width, T(0));
  std::vector<T> inside = outside;
  for (int64_t x = begin[2]; x < region.end[2]; ++x) inside[x] = T(1);
  for (int64_t row = 0; row < n / width * lines; ++row) {
    const Axes3 at = unravel(row * width % n, size);
    const bool in = at[0] >= begin[0] && at[0] < region.end[0] && at[1] >= begin[1] &&
                    at[1] < region.end[1];
    const T* expected = in ? inside.data() : outside.data();
    if (std::memcmp(mask + row * width, expected, width * sizeof(T)) != 0) return std::nullopt;
  }
  return region;
}

// Sums of the part of a window's weights that lies in the region, for the windows of a tile: those of
// its elements up to each place, of which a box takes differences.
class ClippedSums {
 public:
  ClippedSums(const Tiling& tiling, const MaskRegion& region)
      : t_(tiling), region_(region), pitch_(tiling.window[2] + 1), row_(pitch_),
        totals_((tiling.window[0] + 1) * (tiling.window[1] + 1) * pitch_) {}

  // Takes (channels, *window) numbers whose sizes add up to at most `size`; a bound of the rounding of
  // their sums as M numbers. Sums of whole numbers are exact.
  template <class M>
  double take(const double* values, double size) {
    add_up(values);
    int64_t roundings = 8 + t_.channels;
    for (int axis = 0; axis < 3; ++axis) roundings += t_.window[axis];
    const double of_sums = 8 * static_cast<double>(roundings) * std::numeric_limits<double>::epsilon();
    const int64_t count = t_.channels * product(t_.window);
    const bool narrow = sizeof(M) < sizeof(double);
    const bool exact = (!narrow || size <= 0x1p24) &&
                       std::all_of(values, values + count, [](double x) { return x == std::trunc(x); });
    return exact ? 0.0 : size * (of_sums + (narrow ? std::numeric_limits<float>::epsilon() / 2 : 0.0));
  }

  // Writes the sums (*outputs) of the numbers that were taken.
  template <class M>
  void write(const TilePlace& place, M* to) {
    const int64_t n = t_.outputs[2];
    std::vector<std::array<int64_t, 2>> columns(n);
    for (int64_t x = 0; x < n; ++x) columns[x] = clip(place, 2, x);
    std::array<int64_t, 4> known{-1, -1, -1, -1};
    for (int64_t row = 0; row < t_.outputs[0] * t_.outputs[1]; ++row, to += n) {
      const auto [a0, b0] = clip(place, 0, row / t_.outputs[1]);
      const auto [a1, b1] = clip(place, 1, row % t_.outputs[1]);
      const std::array<int64_t, 4> box{a0, b0, a1, b1};
      if (box == known) {
        std::copy_n(to - n, n, to);
        continue;
      }
      known = box;
      for (int64_t x = 0; x < pitch_; ++x) {
        row_[x] = at(b0, b1)[x] - at(a0, b1)[x] - at(b0, a1)[x] + at(a0, a1)[x];
      }
      for (int64_t x = 0; x < n; ++x) {
        to[x] = static_cast<M>(row_[columns[x][1]] - row_[columns[x][0]]);
      }
    }
  }

 private:
  // Which elements of a window lie in the region.
  std::array<int64_t, 2> clip(const TilePlace& place, int axis, int64_t position) const {
    const int64_t start = place.start[axis] + position * t_.stride[axis], n = t_.window[axis];
    const int64_t from = std::clamp<int64_t>(region_.begin[axis] - start, 0, n);
    return {from, std::clamp<int64_t>(region_.end[axis] - start, from, n)};
  }

  double* at(int64_t z, int64_t y) { return &totals_[(z * (t_.window[1] + 1) + y) * pitch_]; }

  // totals[z, y, x]: of the elements before z, y and x.
  void add_up(const double* values) {
    std::fill(totals_.begin(), totals_.end(), 0.0);
    const Axes3& window = t_.window;
    for (int64_t c = 0; c < t_.channels; ++c) {
      for (int64_t z = 0; z < window[0]; ++z) {
        for (int64_t y = 0; y < window[1]; ++y, values += window[2]) {
          double* row = at(z + 1, y + 1) + 1;
          for (int64_t x = 0; x < window[2]; ++x) row[x] += values[x];
        }
      }
    }
    for (int64_t z = 1; z <= window[0]; ++z) {
      for (int64_t y = 1; y <= window[1]; ++y) {
        double *row = at(z, y), before = 0;
        for (int64_t x = 1; x < pitch_; ++x) before = row[x] += before;
      }
      for (int64_t y = 2; y <= window[1]; ++y) add_row(at(z, y - 1), at(z, y));
    }
    for (int64_t z = 2; z <= window[0]; ++z) {
      for (int64_t y = 1; y <= window[1]; ++y) add_row(at(z - 1, y), at(z, y));
    }
  }
  void add_row(const double* before, double* row) const {
    for (int64_t x = 0; x < pitch_; ++x) row[x] += before[x];
  }

  const Tiling& t_;
  const MaskRegion region_;
  const int64_t pitch_;
  std::vector<double> row_, totals_;
};

}  // namespace torchcorr
