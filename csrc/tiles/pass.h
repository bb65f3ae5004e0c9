// What passes over tiles share beside their units: numbers of batches, and tiles that are transformed.
#pragma once

#include "tiles/spectra.h"
#include "tiles/units.h"

namespace torchcorr {

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
