// Direct scores of a batch of tiles, all steps in one call: for inputs so small that a direct sum
// is the quickest, four calls would take longer than the sums.

#include <algorithm>

#include "direct/correlate.h"
#include "tiles/steps.h"

namespace torchcorr {
namespace {

// The templates of the tiles' leading indices (groups, 1, templates, C, *window) in the input's
// type. The tiles come from neighbouring groups in equal parts.
Tensor templates_of(const Tensor& coefficients, const TileBatch& batch, const Tensor& input) {
  const int64_t inputs = input.size(0) / coefficients.size(0);
  const auto group_of = [&](int64_t tile) { return tile / batch.tiling.tiles_per_item() / inputs; };
  const int64_t first = group_of(batch.tiles.front());
  const int64_t groups = group_of(batch.tiles.back()) + 1 - first;
  Tensor part = coefficients;
  if (groups < coefficients.size(0)) part = torch::stable::narrow(part, 0, first, groups);
  part = packed(in_type_of(input, part));
  Sizes shape{groups, 1};
  for (int64_t axis = 1; axis < part.dim(); ++axis) shape.push_back(part.size(axis));
  return torch::stable::view(part, shape);
}

std::tuple<Tensor, Tensor, Tensor> direct_scores(const Tensor& input, const Tensor& coefficients,
                                                 Sizes numbers, Numbers rule, int64_t at_once,
                                                 const Tensor& out) {
  const TileBatch batch(numbers, input);
  const int64_t tiles = batch.count(), templates = coefficients.size(1);
  const Tensor rounded = templates_of(coefficients, batch, input);
  const auto [cut, stats] = cut_tiles(input, numbers, ScoreRule(rule).zero_mean, false, false);
  const auto [norms, states, means, doubtful] = tile_moments(input, stats, numbers, rule, false);
  Sizes shape{rounded.size(0), tiles / rounded.size(0), 1};
  for (int64_t axis = 1; axis < cut.dim(); ++axis) shape.push_back(cut.size(axis));
  const Tensor grouped = torch::stable::view(cut, shape);
  Tensor left = torch::stable::new_zeros(stats, {tiles}, ScalarType::Long);
  for (int64_t first = 0; first < templates; first += at_once) {
    const int64_t some = std::min(at_once, templates - first);
    Tensor part = rounded;
    if (some < templates) part = packed(torch::stable::narrow(part, 2, first, some));
    const Tensor numerators =
        direct::correlate_direct(grouped, part, sizes_of(batch.tiling.stride, batch.tiling.ndim));
    Sizes flat{tiles, some};
    for (int64_t axis = 3; axis < numerators.dim(); ++axis) flat.push_back(numerators.size(axis));
    set_first_template(numbers, first);
    const Tensor more =
        normalise_tiles(torch::stable::view(numerators, flat), {stats, norms, states, means}, input,
                        coefficients, numbers, rule, out);
    for (int64_t t = 0; t < tiles; ++t) {
      left.mutable_data_ptr<int64_t>()[t] += more.const_data_ptr<int64_t>()[t];
    }
  }
  return {left, norms, states};
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("direct_scores", TORCH_BOX(&torchcorr::direct_scores));
}
