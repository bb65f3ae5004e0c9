// Moments of windows whose elements have weights, and of channels with a mean each.
#pragma once

#include <vector>

#include "tiles/steps.h"

namespace torchcorr {

// Neighbours in a row of a mask that have the same weight, which is not 0.
struct WeightedRun {
  int64_t z, y, x, length;
  double weight;
};

// Those of one channel's weights (*window).
std::vector<WeightedRun> runs_of(const Axes3& window, const double* weights);

// A mask over a template, the same for all channels.
struct WindowWeights {
  double factor;   // norms are `factor` / sqrt(energy)
  bool own_means;  // each channel has its own mean
  bool is_box = false;  // all weights are equal
  double total = 0, of_group = 0;  // weight of a window, and of channels that share a mean
  double largest = 0;  // of all weights
  std::vector<WeightedRun> runs;

  WindowWeights(const Tiling& tiling, const Tensor& mask, const Numbers& numbers);
};

// Norms, states, no means, and how many windows of each tile are doubtful. Every norm is known.
std::tuple<Tensor, Tensor, Tensor, Tensor> weighted_moments(const Tensor& input,
                                                            const Tensor& stats,
                                                            const Sizes& batch,
                                                            const Numbers& rule,
                                                            const WindowWeights& weights);

}  // namespace torchcorr
