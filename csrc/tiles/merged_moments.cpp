// The step `moments` in float64, from sums that are merged from parts, so that nothing cancels: for
// tiles whose windows the quick step leaves unknown.

#include <algorithm>
#include <cmath>

#include "tiles/steps.h"

namespace torchcorr {
namespace {

// The numbers of a batch whose tiles are arrays of their extent, which they exceed elsewhere where a
// transform asks for it, and do not reach where templates are divided.
Sizes of_extent(const Sizes& numbers) {
  const int64_t n = numbers.at(0);
  Sizes whole = numbers;
  // Behind two numbers: grid, step, pad, extent, length, window, stride, parts and folds.
  const auto first = whole.begin() + 2;
  std::copy_n(first + 3 * n, n, first + 4 * n);
  std::fill_n(first + 7 * n, 2 * n, 1);
  return whole;
}

// Means and variances of the windows of tiles, (tiles * groups, *positions), and the tiles' stats.
std::tuple<Tensor, Tensor, Tensor> moments_of_tiles(const Tensor& input, const Sizes& numbers,
                                                    const Tiling& t, int64_t groups) {
  auto [raw, stats] = cut_tiles(input, of_extent(numbers), Levels::kNone, true, false);
  if (groups > 1) raw = torch::stable::unsqueeze(torch::stable::flatten(raw, 0, 1), 1);
  const auto [means, vars] =
      window_moments(raw, sizes_of(t.window, t.ndim), sizes_of(t.stride, t.ndim));
  return {means, vars, stats};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> merged_moments(const Tensor& input, const Tensor& stats,
                                                  Sizes numbers, Numbers rule_numbers, bool pairs,
                                                  bool with_means) {
  const TileBatch batch(numbers, input);
  const Tiling& tiling = batch.tiling;
  const ScoreRule rule(rule_numbers);
  const int64_t groups = rule.own_means ? tiling.channels : 1, count = batch.count();
  const auto [window_means, window_vars, raw_stats] = moments_of_tiles(input, numbers, tiling, groups);
  Sizes shape = sizes_of(window_means);
  // What is written has the place of what it is computed from, where there is as much of it.
  const Tensor means = !with_means    ? new_float64({0})
                       : groups == 1 ? window_means
                                     : new_float64(shape);
  shape[0] = count;
  const Tensor norms = groups == 1 ? window_vars : new_float64(shape);
  const Tensor states = new_tensor(shape, ScalarType::Byte);
  double *norm = norms.mutable_data_ptr<double>(), *centre = means.mutable_data_ptr<double>();
  uint8_t* state = states.mutable_data_ptr<uint8_t>();
  const double *mean = window_means.const_data_ptr<double>(),
               *var = window_vars.const_data_ptr<double>();
  const TileStats *of_tiles = rows_of_stats(stats), *of_raw = rows_of_stats(raw_stats);
  const double* levels = levels_of_stats(stats, count, rule);
  const double elements = static_cast<double>(tiling.window_size());
  const int64_t each = tiling.positions();
  for (int64_t t = 0; t < count; ++t) {
    const TileStats& tile = of_tiles[t];
    const double unit = of_raw[t].scale, scale = tile.scale, ratio = scale / unit;
    // What is transformed together shares its rounding.
    const double mean_square = tile.mean_square + (pairs ? of_tiles[t ^ 1].mean_square : 0.0);
    const double least = rule.least_energy * mean_square;
    for (int64_t i = 0; i < each; ++i) {
      const int64_t at = t * each + i;
      double energy = 0;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t from = (t * groups + g) * each + i;
        const double level = rule.zero_mean ? 0.0 : mean[from];
        energy += var[from] + level * level;
        if (!with_means) continue;
        const double subtracted = levels ? levels[t * groups + g] : tile.level;
        centre[g * count * each + at] =
            rule.zero_mean ? (mean[from] / unit - subtracted) * scale : 0.0;
      }
      energy *= ratio * ratio / static_cast<double>(groups);
      const double softened = energy + scaled_eps(rule.eps, scale);
      norm[at] = energy == 0 ? 0.0 : 1 / (elements * std::sqrt(softened));
      state[at] = energy == 0 ? kFlat : softened < least ? kDoubtful : kGood;
    }
  }
  return {norms, states, means};
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("merged_moments", TORCH_BOX(&torchcorr::merged_moments));
}
