// What the faint windows of tiles see. The rounding of a transform spreads evenly over its tile, which
// is too much for the windows of a smooth region beside a detailed one. Where all elements that no
// such window contains are replaced by zeros and the others are centred anew, a second transform in
// float32 has so much less rounding, in half the time of one in float64.
#pragma once

#include <array>

#include "tiles/steps.h"

namespace torchcorr {

// Of two tiles that are transformed together.
struct FaintTiles {
  Tensor lines;            // the elements that are seen, as complex lines (channels, *length)
  Tensor marked;           // (2, *positions): 1 for windows that are looked at again, otherwise 0
  Tensor states;           // the same: doubtful no more, unless the norm is unknown
  double mean_square = 0;  // of the elements of both tiles
  double scales[2];        // of the elements, relative to those of the first look
  int64_t hopeless = 0;    // marked windows of a tile that are too faint for this look as well
};

// Of the pair of tiles of a batch, whose moments these are; `limit` is the largest norm that the first
// look determined well enough.
FaintTiles cut_faint(const Tensor& input, const Tensors& moments, const Sizes& batch,
                     const ScoreRule& rule, double limit);

// Writes the scores of the windows that are looked at again, of one template, from sums of products;
// how many of each tile are doubtful even so, and too many to be recomputed.
std::array<int64_t, 2> normalise_faint(const Tensor& numerators, const FaintTiles& faint,
                                       const Tensors& moments, const Tensor& input,
                                       const Tensor& coefficients, const Sizes& batch,
                                       const ScoreRule& rule, const Tensor& out);

}  // namespace torchcorr
