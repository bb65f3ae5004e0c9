// What passes over tiles share beside their units: numbers of batches, and tiles that are transformed.
#pragma once

#include <utility>

#include "tiles/spectra.h"
#include "tiles/units.h"

namespace torchcorr {

inline Tensor part_of(const Tensor& x, int64_t axis, int64_t first, int64_t count) {
  Tensor whole = x;
  if (count == x.size(axis)) return whole;
  return torch::stable::narrow(whole, axis, first, count);
}

// The numbers of a batch without tiles, followed by tiles.
inline Sizes with_tiles(const Sizes& batch, const Sizes& tiles) {
  Sizes numbers = batch;
  numbers.insert(numbers.end(), tiles.begin(), tiles.end());
  return numbers;
}

// Tiles in one precision, ready to be correlated: as they are cut, or their spectrum, and room for
// products.
struct Operand {
  Tensor tiles, product;
  bool by_channel = false;  // each channel is transformed when it is multiplied
};

// The spectrum of lines of tiles, which may be overwritten by its only product (`once`); channels are
// transformed one by one if there is only one product, so that a spectrum is still in cache. Takes the
// lines, so that their memory is free once they are transformed.
inline Operand spectrum_of(Tensor lines, const Tiling& tiling, bool once) {
  const bool by_channel = once && tiling.channels > 1;
  if (!by_channel) lines = transform(lines, true);
  if (once && tiling.channels == 1) return {lines, lines};
  Sizes shape{lines.size(0) / tiling.channels};
  for (int64_t n : sizes_of(tiling.length, tiling.ndim)) shape.push_back(n);
  return {lines, new_tensor(lines, shape), by_channel};
}

// The same of tiles.
inline Operand transformed(Tensor cut, const Tiling& tiling, bool once) {
  Tensor lines = lines_of_tiles(cut);
  cut = {};
  return spectrum_of(std::move(lines), tiling, once);
}

// Spectra of products with one template: two tiles as one complex one each, (twos, *length).
template <class R>
Tensor product_spectra_of(const Operand& of, const Tiling& tiling, const R* spectrum) {
  const SpectraSizes sizes{of.product.size(0), tiling.channels, tiling.tile_size()};
  R* products = static_cast<R*>(of.product.mutable_data_ptr());
  for (int64_t i = 0; of.by_channel && i < sizes.tiles * sizes.channels; ++i) {
    const int64_t c = i % sizes.channels;
    const Tensor line = transform(part_of(of.tiles, 0, i, 1), true);
    multiply_spectra({1, 1, sizes.size}, c > 0, static_cast<const R*>(line.const_data_ptr()),
                     spectrum + 2 * c * sizes.size, products + 2 * (i / sizes.channels) * sizes.size);
  }
  if (of.by_channel) return of.product;
  const R* tiles = static_cast<const R*>(of.tiles.const_data_ptr());
  multiply_spectra(sizes, false, tiles, spectrum, products);
  return of.product;
}

// Sums of products with one template, (twos of tiles, *length); of a tiling that is not folded.
template <class R>
Tensor complex_products_of(const Operand& of, const Tiling& tiling, const R* spectrum) {
  return transform(product_spectra_of(of, tiling, spectrum), false);
}

// The same as real numbers: (twos of tiles, 1, *length, 2).
template <class R>
Tensor products_of(const Operand& of, const Tiling& tiling, const R* spectrum) {
  return tiles_of_lines(complex_products_of(of, tiling, spectrum));
}

}  // namespace torchcorr
