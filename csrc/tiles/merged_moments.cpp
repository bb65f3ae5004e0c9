// The step `moments` in float64, from sums that are merged from parts, so that nothing cancels: for
// tiles whose windows the quick step leaves unknown.

#include <cmath>

#include "tiles/steps.h"

namespace torchcorr {

std::tuple<Tensor, Tensor, Tensor> merged_moments(const Tensor& input, const Tensor& stats,
                                                  Sizes numbers, Numbers rule_numbers, bool pairs,
                                                  bool with_means) {
  const TileBatch batch(numbers, input);
  const Tiling& tiling = batch.tiling;
  const ScoreRule rule(rule_numbers);
  auto [raw, raw_stats] = cut_tiles(input, numbers, false, true, false);
  for (int64_t i = 0; i < tiling.ndim; ++i) {
    raw = torch::stable::narrow(raw, 2 + i, 0, tiling.extent[3 - tiling.ndim + i]);
  }
  const auto [window_means, window_vars] = window_moments(
      raw, sizes_of(tiling.window, tiling.ndim), sizes_of(tiling.stride, tiling.ndim));
  const Sizes shape = sizes_of(window_means);
  const Tensor norms = new_float64(stats, shape);
  const Tensor states = torch::stable::new_empty(stats, shape, ScalarType::Byte);
  const Tensor means = new_float64(stats, with_means ? shape : Sizes{0});
  double *norm = norms.mutable_data_ptr<double>(), *centre = means.mutable_data_ptr<double>();
  uint8_t* state = states.mutable_data_ptr<uint8_t>();
  const double *mean = window_means.const_data_ptr<double>(),
               *var = window_vars.const_data_ptr<double>();
  const TileStats *of_tiles = rows_of_stats(stats), *of_raw = rows_of_stats(raw_stats);
  const double elements = static_cast<double>(tiling.window_size());
  const int64_t each = tiling.positions();
  for (int64_t t = 0; t < batch.count(); ++t) {
    const TileStats& tile = of_tiles[t];
    const double unit = of_raw[t].scale, scale = tile.scale, ratio = scale / unit;
    // What is transformed together shares its rounding.
    const double mean_square = tile.mean_square + (pairs ? of_tiles[t ^ 1].mean_square : 0.0);
    const double least = rule.least_energy * mean_square;
    for (int64_t at = t * each; at < (t + 1) * each; ++at) {
      const double level = rule.zero_mean ? 0.0 : mean[at];
      const double energy = (var[at] + level * level) * (ratio * ratio);
      const double softened = energy + scaled_eps(rule.eps, scale);
      norm[at] = energy == 0 ? 0.0 : 1 / (elements * std::sqrt(softened));
      state[at] = energy == 0 ? kFlat : softened < least ? kDoubtful : kGood;
      if (with_means) centre[at] = rule.zero_mean ? (mean[at] / unit - tile.level) * scale : 0.0;
    }
  }
  return {norms, states, means};
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("merged_moments", TORCH_BOX(&torchcorr::merged_moments));
}
