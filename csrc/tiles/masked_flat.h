// Windows of a tile that are flat in their elements with weight, from sliding extremes: exact,
// whatever the sums are.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "tiles/tile_level.h"

namespace torchcorr {

// Replaces each of n elements by the largest of the `size` elements that begin with it and are `step`
// apart, or by the smallest of them. Those that would end behind the last element are not complete.
void slide_largest(int64_t n, int64_t size, int64_t step, float* x);
void slide_largest(int64_t n, int64_t size, int64_t step, double* x);
void slide_smallest(int64_t n, int64_t size, int64_t step, float* x);
void slide_smallest(int64_t n, int64_t size, int64_t step, double* x);

// Which windows (*outputs) of a tile are flat, whatever the weights of the window, or contain nothing
// that has weight. `row_of(r)` gives a `WeightedRow` of the tile's channels, planes and rows. With
// `any_value` a flat window has any value, otherwise zeros.
template <class T, class F>
std::vector<uint8_t> flat_windows(const Tiling& t, bool any_value, const F& row_of) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const int64_t width = t.extent[2], rows = t.extent[0] * t.extent[1], n = rows * width;
  std::vector<T> high(n, -kInfinity), low(n, kInfinity);
  for (int64_t r = 0; r < t.channels * rows; ++r) {
    const WeightedRow<T> row = row_of(r / rows, r % rows / t.extent[1], r % t.extent[1]);
    T *highest = &high[r % rows * width], *lowest = &low[r % rows * width];
    for (int64_t x = row.x.begin; x < row.x.end; ++x) {
      if (row.weight.data && !(row.weight.data[x] > 0)) continue;
      highest[x] = std::max(highest[x], row.x.data[x]);
      lowest[x] = std::min(lowest[x], row.x.data[x]);
    }
  }
  const Axes3 step{t.extent[1] * width, width, 1};
  for (int i = 0; i < 3; ++i) {
    slide_largest(n, t.window[i], step[i], high.data());
    slide_smallest(n, t.window[i], step[i], low.data());
  }
  std::vector<uint8_t> flat(t.positions());
  for (int64_t at = 0; at < t.positions(); ++at) {
    const Axes3 u = unravel(at, t.outputs);
    int64_t from = 0;
    for (int i = 0; i < 3; ++i) from += u[i] * t.stride[i] * step[i];
    flat[at] = any_value ? high[from] <= low[from] : high[from] <= 0 && low[from] >= 0;
  }
  return flat;
}

}  // namespace torchcorr
