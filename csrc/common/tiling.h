// Tiles of an input: what an engine transforms at once. A tile is cut out, centred on a level of
// its own and scaled by a power of two to a mean square of about one. Two tiles make one complex
// one, which takes a single complex transform.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/tensors.h"

namespace torchcorr {

constexpr int kStats = 4;  // level, scale, mean square, elements not finite: one row a tile

// How tiles lie on items (C, z, y, x), short of axes in front. Tile t of an item begins at
// step * t - pad and shows `extent` elements an axis, zeros where the item ends, in an array of
// `length` elements an axis.
struct TileGrid {
  int64_t ndim = 0, channels = 1, item_size = 1, tiles_per_item = 1;
  int64_t size[3] = {1, 1, 1}, grid[3] = {1, 1, 1}, step[3] = {1, 1, 1}, pad[3] = {0, 0, 0},
          extent[3] = {1, 1, 1}, length[3] = {1, 1, 1};

  TileGrid() = default;

  // `geometry` holds grid, step, pad, extent and length, one after the other.
  TileGrid(const Tensor& input, const Sizes& geometry) : ndim(geometry.size() / 5) {
    STD_TORCH_CHECK(ndim >= 1 && ndim <= 3 && geometry.size() == 5 * static_cast<size_t>(ndim),
                    "geometry must have five numbers for each of 1 to 3 axes");
    STD_TORCH_CHECK(input.dim() == ndim + 2, "input must have axes (item, channel, *size)");
    channels = input.size(1);
    for (int64_t i = 0; i < ndim; ++i) {
      const int64_t axis = 3 - ndim + i;
      size[axis] = input.size(2 + i);
      grid[axis] = geometry[i];
      step[axis] = geometry[ndim + i];
      pad[axis] = geometry[2 * ndim + i];
      extent[axis] = geometry[3 * ndim + i];
      length[axis] = geometry[4 * ndim + i];
      STD_TORCH_CHECK(extent[axis] >= 1 && length[axis] >= extent[axis], "a tile must hold its extent");
    }
    item_size = size[0] * size[1] * size[2];
    tiles_per_item = grid[0] * grid[1] * grid[2];
  }

  // Of `count` tiles, or of as many pairs whose elements lie side by side.
  Sizes tile_shape(int64_t count, bool pairs) const {
    Sizes shape{count, channels};
    for (int64_t i = 3 - ndim; i < 3; ++i) shape.push_back(length[i]);
    if (pairs) shape.push_back(2);
    return shape;
  }

  int64_t tile_size() const { return length[0] * length[1] * length[2]; }
};

// Where one tile lies: its item, its index along each axis, its first element.
struct TilePlace {
  int64_t item = 0, index[3] = {}, start[3] = {};
  bool exists;  // tile -1 is empty: it fills up a pair

  TilePlace(const TileGrid& g, int64_t tile) : exists(tile >= 0) {
    if (!exists) return;
    item = tile / g.tiles_per_item;
    int64_t rest = tile % g.tiles_per_item;
    for (int i = 2; i >= 0; --i) {
      index[i] = rest % g.grid[i];
      rest /= g.grid[i];
      start[i] = index[i] * g.step[i] - g.pad[i];
    }
  }
};

// How many of a tile's positions along an axis have their window inside the input.
inline int64_t valid_positions(const TileGrid& g, const TilePlace& p, int axis, int64_t window,
                               int64_t stride) {
  const int64_t room = std::min(g.extent[axis], g.size[axis] - p.start[axis]) - window;
  return !p.exists || room < 0 ? 0 : room / stride + 1;
}

// The row (c, z, y) of a tile in its input: first element and the part [begin, end) of the
// extent that is there.
template <class T>
struct TileRow {
  const T* data = nullptr;  // of the tile's element 0; only [begin, end) may be read
  int64_t begin = 0, end = 0;

  TileRow() = default;
  TileRow(const TileGrid& g, const TilePlace& p, const T* input, int64_t c, int64_t z, int64_t y) {
    const int64_t at_z = p.start[0] + z, at_y = p.start[1] + y;
    if (!p.exists || at_z < 0 || at_z >= g.size[0] || at_y < 0 || at_y >= g.size[1]) return;
    begin = std::clamp<int64_t>(-p.start[2], 0, g.extent[2]);
    end = std::clamp<int64_t>(g.size[2] - p.start[2], begin, g.extent[2]);
    data = input + (p.item * g.channels + c) * g.item_size +
           (at_z * g.size[1] + at_y) * g.size[2] + p.start[2];
  }
};

}  // namespace torchcorr
