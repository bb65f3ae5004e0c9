// What is known of plain sums before they are transformed: bounds from below of the sums of absolute
// products, which decide the precision of a tile.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "common/tiling.h"
#include "tiles/border_windows.h"

namespace torchcorr {

// Sizes are cut into layers: what of each lies between two levels. The last one is open.
constexpr size_t kLayers = 4;

// The size of a tile's elements.
struct TileMass {
  struct Layer {
    double thickness = 0;  // no element has more in the layer
    double least = 0;      // at most what any window has in it
  };
  bool has_windows = false;  // none, if all reach over the border of the input
  double largest = 0;        // of all elements of the tile
  double swing = 0;    // about half of the range of sums of sizes of windows
  std::array<Layer, kLayers> layers;
};

// Blocks along an axis that masses are known of: every window contains `inside` neighbouring ones
// whole, and the first of them begins within its first `size` elements.
struct Blocks {
  int64_t size, inside;

  // About `fineness` blocks to a window. Smaller ones leave less out and take more time.
  Blocks(int64_t window, int64_t fineness)
      : size(whole_power(std::max<int64_t>(1, window / fineness))),
        inside((window - size + 1) / size) {}
  int64_t length() const { return inside * size; }

 private:
  static int64_t whole_power(int64_t n) {
    return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(n)));
  }
};
constexpr int64_t kCoarse = 8, kFine = 16;

// Of the windows that lie inside the input, for a tile of finite elements; of others only `largest` is
// known.
TileMass mass_of(const Tiling& tiling, int64_t tile, const float* input, int64_t fineness);

// Sums of the smallest absolute values of a template.
class SmallestWeights {
 public:
  // Of those in the blocks that a window contains, wherever these lie, or of all if the first would
  // take too long.
  SmallestWeights(const Tiling& tiling, const double* weights, int64_t fineness);

  // At most the sum of the smallest absolute values that weigh `count` elements, which need not be a
  // whole number.
  double sum_of(double count) const;

 private:
  // Bins of sizes: how many values are in the bins before, at most their sum, and the least size in
  // the bin.
  std::vector<double> counts_, sums_, least_;
};

// At most the sum of absolute products of a template with any window of the tile: the mass of a layer
// is least by as few elements as can have it, on the smallest weights (math.md, eq. least-products).
inline double least_products(const TileMass& mass, const SmallestWeights& weights) {
  double least = 0;
  for (const TileMass::Layer& layer : mass.layers) {
    const double thick = layer.thickness;
    if (thick > 0) least += thick * weights.sum_of(layer.least / thick);
  }
  return least;
}

// The smallest weights of a template, those of fine blocks only if they are asked for.
class TemplateBounds {
 public:
  TemplateBounds(const Tiling& tiling, const double* weights)
      : tiling_(&tiling), weights_(weights), coarse_(tiling, weights, kCoarse) {}

  const SmallestWeights& coarse() const { return coarse_; }
  const SmallestWeights& fine() const {
    std::call_once(*ready_, [&] { fine_.emplace(*tiling_, weights_, kFine); });
    return *fine_;
  }

 private:
  const Tiling* tiling_;
  const double* weights_;
  SmallestWeights coarse_;
  mutable std::optional<SmallestWeights> fine_;
  std::unique_ptr<std::once_flag> ready_ = std::make_unique<std::once_flag>();
};

// The masses of a tile, those of fine blocks only where coarse ones nearly suffice. One worker's.
class TileBounds {
 public:
  // Of a tile with so many positions that belong to the map.
  TileBounds(const Tiling& tiling, int64_t tile, const Axes3& positions, const float* input)
      : tiling_(&tiling), tile_(tile), input_(input),
        coarse_(mass_of(tiling, tile, input, kCoarse)) {
    if (largest() == 0 || tiling.pad == Axes3{0, 0, 0}) return;
    border_ = std::make_shared<BorderWindows>(tiling, TilePlace(tiling, tile), positions);
    if (border_->none()) border_.reset();
    else border_->measure(input, largest());
  }

  double largest() const { return coarse_.largest; }
  double swing() const { return coarse_.swing; }
  // The windows that reach over the border of the input, if there are any.
  const BorderWindows* border() const { return border_.get(); }

  // Whether the sums of absolute products of all other windows are known to be at least `needed`.
  bool reach(double needed, const TemplateBounds& weights) const {
    if (!coarse_.has_windows) return true;
    const double least = least_products(coarse_, weights.coarse());
    if (least >= needed) return true;
    if (!(least * kGain >= needed)) return false;
    if (!fine_) fine_ = mass_of(*tiling_, tile_, input_, kFine);
    return least_products(*fine_, weights.fine()) >= needed;
  }

 private:
  static constexpr double kGain = 2.5;  // of fine blocks at most

  const Tiling* tiling_;
  int64_t tile_;
  const float* input_;
  TileMass coarse_;
  mutable std::optional<TileMass> fine_;
  std::shared_ptr<BorderWindows> border_;
};

}  // namespace torchcorr
