// What is known of plain sums before they are transformed: bounds from below of the sums of absolute
// products, which decide the precision of a tile.
#pragma once

#include <algorithm>

#include "common/tiling.h"

namespace torchcorr {

// The size of a tile's elements.
struct TileMass {
  double largest = 0;  // of all elements of the tile
  double least = 0;    // at most the sum of the sizes in any of its windows
  double most = 0;     // about the largest of these sums
  // The same for sizes of which no more than `clip` counts.
  double clip = 0, clipped_least = 0;
};

// For a tile of finite elements.
TileMass mass_of(const Tiling& tiling, int64_t tile, const float* input);

// Sums of the smallest absolute values of a template.
class SmallestWeights {
 public:
  SmallestWeights(int64_t n, const double* weights);

  // At most the sum of the smallest absolute values that weigh `count` elements, which need not be a
  // whole number.
  double sum_of(double count) const;

 private:
  // Bins of sizes: how many values are in the bins before, their sum, and the least size in the bin.
  std::vector<double> counts_, sums_, least_;
};

// At most the sum of absolute products of a template with any window of the tile: the mass of a
// window is least by as few elements as can have it, on the smallest weights (math.md, eq.
// least-products). Clipped sizes are less, but more elements are needed for their mass.
inline double least_products(const TileMass& mass, const SmallestWeights& weights) {
  const auto bound = [&](double largest, double least) {
    return largest > 0 ? largest * weights.sum_of(least / largest) : 0.0;
  };
  return std::max(bound(mass.largest, mass.least), bound(mass.clip, mass.clipped_least));
}

}  // namespace torchcorr
