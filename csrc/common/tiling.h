// Tiles of an input, and the records that describe them. A tile is cut out, centred on a level and
// scaled by a power of two to a mean square of about one. Two tiles make one complex tile, which
// takes a single complex transform.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/item_layout.h"

namespace torchcorr {

// How tiles cover items (C, z, y, x): `Tiling` of _plan/tiling.py. Tile t of an item begins at
// element step * t - pad and has `extent` elements an axis, zeros where the item ends, in an array
// of `length` elements. It covers `outputs` positions of a window. A window may be divided into
// `parts` an axis, each of which meets `length` elements of a tile of more. Of the sums of
// a tile, transforms give every `folds`th, so that spectra of those are as much shorter.
struct Tiling {
  int64_t ndim = 1, channels = 1;
  Axes3 size{1, 1, 1}, grid{1, 1, 1}, step{1, 1, 1}, pad{0, 0, 0}, extent{1, 1, 1}, length{1, 1, 1},
      window{1, 1, 1}, stride{1, 1, 1}, parts{1, 1, 1}, folds{1, 1, 1}, outputs{1, 1, 1};
  ItemLayout layout;  // of what tiles are cut from

  Tiling() = default;

  // `numbers` are those of the Python record: grid, step, pad, extent, length, window, stride,
  // parts and folds.
  Tiling(int64_t axes, const int64_t* numbers) : ndim(axes) {
    for (Axes3* a : {&grid, &step, &pad, &extent, &length, &window, &stride, &parts, &folds}) {
      for (int64_t i = 3 - ndim; i < 3; ++i) (*a)[i] = *numbers++;
    }
    for (int64_t i = 3 - ndim; i < 3; ++i) {
      STD_TORCH_CHECK(parts[i] >= 1 && extent[i] >= 1 &&
                          (parts[i] - 1) * ceil_div(window[i], parts[i]) + length[i] >= extent[i],
                      "a tile must cover its extent");
      STD_TORCH_CHECK(window[i] >= 1 && window[i] <= extent[i] && stride[i] >= 1,
                      "a window must lie in its tile");
      STD_TORCH_CHECK(folds[i] >= 1 && stride[i] % folds[i] == 0 && length[i] % folds[i] == 0,
                      "a fold must divide the stride and the length");
      outputs[i] = (extent[i] - window[i]) / stride[i] + 1;
    }
  }

  // Whole items of a tensor as tiles.
  static Tiling of_items(const Tensor& items, int64_t channels, const Sizes& size,
                         const Sizes& window, const Sizes& stride) {
    Tiling t;
    t.layout = ItemLayout(items, static_cast<int64_t>(size.size()));
    t.ndim = static_cast<int64_t>(window.size());
    t.channels = channels;
    t.size = t.step = t.extent = t.length = last_axes(size);
    t.window = last_axes(window);
    t.stride = last_axes(stride);
    for (int i = 0; i < 3; ++i) t.outputs[i] = (t.extent[i] - t.window[i]) / t.stride[i] + 1;
    return t;
  }

  bool is_divided() const { return product(parts) > 1; }
  Axes3 part() const {
    return {ceil_div(window[0], parts[0]), ceil_div(window[1], parts[1]),
            ceil_div(window[2], parts[2])};
  }
  bool is_folded() const { return product(folds) > 1; }
  // Sums of a tile that transforms give, an axis, and how many of them from position to position.
  Axes3 folded() const {
    return {length[0] / folds[0], length[1] / folds[1], length[2] / folds[2]};
  }
  Axes3 folded_stride() const {
    return {stride[0] / folds[0], stride[1] / folds[1], stride[2] / folds[2]};
  }
  int64_t tiles_per_item() const { return product(grid); }
  int64_t item_size() const { return product(size); }  // elements of one channel
  int64_t tile_size() const { return product(length); }
  int64_t folded_size() const { return product(folded()); }
  int64_t positions() const { return product(outputs); }
  int64_t window_size() const { return channels * product(window); }
};

// Tiles of one tiling that a step works on, and the first of the templates that it works with:
// `TileBatch` of _plan/tiling.py.
struct TileBatch {
  Tiling tiling;
  int64_t first_template;
  Sizes tiles;

  explicit TileBatch(const Sizes& numbers) {
    STD_TORCH_CHECK(numbers.size() >= 2, "a batch of tiles needs its numbers");
    const int64_t ndim = numbers[0];
    STD_TORCH_CHECK(ndim >= 1 && ndim <= 3 && numbers.size() >= static_cast<size_t>(2 + 9 * ndim),
                    "a tiling has nine numbers for each of 1 to 3 axes");
    tiling = Tiling(ndim, numbers.data() + 2);
    first_template = numbers[1];
    tiles.assign(numbers.begin() + 2 + 9 * ndim, numbers.end());
  }

  TileBatch(const Sizes& numbers, const Tensor& input) : TileBatch(numbers) {
    STD_TORCH_CHECK(input.dim() >= tiling.ndim + 1, "input must have axes (*items, channel, *size)");
    tiling.channels = input.size(input.dim() - tiling.ndim - 1);
    tiling.size = last_sizes(input, tiling.ndim);
    tiling.layout = ItemLayout(input, tiling.ndim);
  }

  int64_t count() const { return static_cast<int64_t>(tiles.size()); }
};

inline void set_first_template(Sizes& batch, int64_t first) { batch.at(1) = first; }

// What is known of a tile once it is cut: a row of `TileStats` of _plan/tiling.py.
struct TileStats {
  double level, scale, mean_square, non_finite;
};
constexpr int64_t kStats = sizeof(TileStats) / sizeof(double);
static_assert(kStats == 4);

// The power of two that brings `value` into [1/2, 1); 1 for zero.
inline double scale_for(double value) {
  if (!(value > 0 && value <= std::numeric_limits<double>::max())) return 1;
  int exponent = 0;
  std::frexp(value, &exponent);
  return std::ldexp(1.0, -std::clamp(exponent, -1000, 1000));
}

// What is added to a variance, in squared units of elements that are multiplied by `scale`. The square
// of a scale may be infinite.
inline double scaled_eps(double eps, double scale) { return eps > 0 ? eps * scale * scale : 0.0; }

inline const TileStats* rows_of_stats(const Tensor& stats) {
  return reinterpret_cast<const TileStats*>(stats.const_data_ptr<double>());
}

// The same tiles of one channel: the first of what they are cut from.
inline Tiling one_channel(Tiling t) {
  t.channels = 1;
  return t;
}

// Where one tile lies: its item, its index and its first element along each axis.
struct TilePlace {
  int64_t item = 0, origin = 0;  // the origin: where the item begins in memory
  Axes3 index{}, start{};
  bool exists;  // tile -1 is empty: it fills up a pair

  TilePlace(const Tiling& t, int64_t tile) : exists(tile >= 0) {
    if (!exists) return;
    item = tile / t.tiles_per_item();
    origin = t.layout.first(item);
    index = unravel(tile % t.tiles_per_item(), t.grid);
    for (int i = 0; i < 3; ++i) start[i] = index[i] * t.step[i] - t.pad[i];
  }

  // First of the tile's positions along an axis.
  int64_t first(const Tiling& t, int axis) const { return index[axis] * t.outputs[axis]; }
};

// How many of a tile's positions along an axis have their window inside the input.
inline int64_t valid_positions(const Tiling& t, const TilePlace& p, int axis) {
  const int64_t room = std::min(t.extent[axis], t.size[axis] - p.start[axis]) - t.window[axis];
  return !p.exists || room < 0 ? 0 : room / t.stride[axis] + 1;
}

// The row (c, z, y) of a tile in its input: first element and the part [begin, end) of the
// extent that is there.
template <class T>
struct TileRow {
  const T* data = nullptr;  // of the tile's element 0; only [begin, end) may be read
  int64_t begin = 0, end = 0;

  TileRow() = default;
  TileRow(const Tiling& t, const TilePlace& p, const T* input, int64_t c, int64_t z, int64_t y) {
    const int64_t at_z = p.start[0] + z, at_y = p.start[1] + y;
    if (!p.exists || at_z < 0 || at_z >= t.size[0] || at_y < 0 || at_y >= t.size[1]) return;
    begin = std::clamp<int64_t>(-p.start[2], 0, t.extent[2]);
    end = std::clamp<int64_t>(t.size[2] - p.start[2], begin, t.extent[2]);
    const RowStrides& by = t.layout.strides;
    data = input + p.origin + c * by.channel + at_z * by.plane + at_y * by.row + p.start[2];
  }
};

}  // namespace torchcorr
