// What passes over tiles share: the loop in which workers take units of tiles, and tiles that are
// transformed.
#pragma once

#include <algorithm>
#include <atomic>

#include "tiles/spectra.h"

namespace torchcorr {

// Leading indices and templates that are computed at once, and how many tiles make a unit: `Block`
// of _plan/tiling.py.
struct Block {
  int64_t first_pair, last_pair, first_template, last_template, tiles_of_unit;

  explicit Block(const Sizes& n) {
    STD_TORCH_CHECK(n.size() == 5, "a block has five numbers");
    first_pair = n[0], last_pair = n[1], first_template = n[2], last_template = n[3];
    tiles_of_unit = n[4];
  }
  int64_t pairs() const { return last_pair - first_pair; }
  int64_t templates() const { return last_template - first_template; }
};

inline Tensor part_of(const Tensor& x, int64_t axis, int64_t first, int64_t count) {
  Tensor whole = x;
  return torch::stable::narrow(whole, axis, first, count);
}

// The numbers of a batch without tiles, followed by tiles.
inline Sizes with_tiles(const Sizes& batch, const Sizes& tiles) {
  Sizes numbers = batch;
  numbers.insert(numbers.end(), tiles.begin(), tiles.end());
  return numbers;
}

// The units of a call: `tiles` of each leading index, transformed `lanes` at once.
struct Units {
  const Block& block;
  int64_t tiles, lanes;

  int64_t of_pair() const { return ceil_div(tiles, block.tiles_of_unit); }
  int64_t count() const { return of_pair() * block.pairs(); }

  Sizes tiles_of(int64_t unit) const {
    const int64_t pair = block.first_pair + unit / of_pair();
    const int64_t begin = unit % of_pair() * block.tiles_of_unit;
    const int64_t end = std::min(begin + block.tiles_of_unit, tiles);
    Sizes some;
    for (int64_t t = begin; t < end; ++t) some.push_back(pair * tiles + t);
    if (lanes == 2 && some.size() % 2 != 0) some.push_back(-1);
    return some;
  }
};

// Calls work(i) for i < count in one parallel region: a worker that is done takes the next.
template <class F>
void for_each_unit(int64_t count, const F& work) {
  std::atomic<int64_t> next{0};
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, std::max<int64_t>(2, std::min(threads, count)), 1,
                              [&](int64_t, int64_t) {
                                for (int64_t u = next++; u < count; u = next++) work(u);
                              });
}

// Calls work(tiles, pair of the block) for each unit. The threads share the steps of a single unit,
// unless it is a line: MKL would divide its transform among them and round differently for each
// number of threads.
template <class F>
void for_units(const Units& units, int64_t ndim, const F& work) {
  const auto one = [&](int64_t unit) { work(units.tiles_of(unit), unit / units.of_pair()); };
  if (units.count() == 1 && (ndim > 1 || units.lanes == 1)) return one(0);
  for_each_unit(units.count(), one);
}

// Tiles in one precision, ready to be correlated: as they are cut, or their spectrum and room for
// its products.
struct Operand {
  Tensor tiles, product;
};

// The spectrum of tiles, which may be overwritten by its only product (`once`). Takes the tiles, so
// that their memory is free once they are transformed.
inline Operand transformed(Tensor cut, const Tiling& tiling, bool once) {
  const Tensor spectrum = transform(lines_of_tiles(cut), true);
  if (once && tiling.channels == 1) return {spectrum, spectrum};
  Sizes shape = sizes_of(spectrum);
  shape[0] /= tiling.channels;
  return {spectrum, torch::stable::new_empty(spectrum, shape)};
}

// Sums of products with one template: (twos of tiles, 1, *length, 2).
template <class R>
Tensor products_of(const Operand& of, const Tiling& tiling, const R* spectrum) {
  multiply_spectra(of.product.size(0), tiling.channels, tiling.tile_size(),
                   static_cast<const R*>(of.tiles.const_data_ptr()), spectrum,
                   static_cast<R*>(of.product.mutable_data_ptr()));
  return tiles_of_lines(transform(of.product, false));
}

}  // namespace torchcorr
