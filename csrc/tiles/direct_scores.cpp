// Direct scores of a batch of tiles, all steps in one call: inputs so small that a direct sum is the
// quickest would feel four.

#include <algorithm>

#include "tiles/steps.h"

namespace torchcorr {
namespace {

// `taps` are the templates (groups, 1, templates, C, *window) in the input's type.
std::tuple<Tensor, Tensor> direct_scores(const Tensor& input, const Tensor& weights,
                                         const Tensor& taps, Sizes ids, Sizes geometry, Sizes window,
                                         Sizes stride, int64_t at_once, bool zero_mean, double eps,
                                         double faint, double exact, int64_t budget,
                                         const Tensor& out) {
  const int64_t tiles = static_cast<int64_t>(ids.size()), templates = weights.size(1);
  const int64_t groups = taps.size(0);
  const auto [cut, stats] = gather_tiles(input, ids, geometry, zero_mean, false, false);
  const auto [norms, counts, means] = tile_norms(stats, input, ids, geometry, window, stride,
                                                 zero_mean, true, eps, faint, exact, false);
  Sizes shape{groups, tiles / groups, 1};
  for (int64_t axis = 1; axis < cut.dim(); ++axis) shape.push_back(cut.size(axis));
  const Tensor seen = torch::stable::view(cut, shape);
  Tensor left = torch::stable::new_zeros(stats, {tiles}, ScalarType::Long);
  for (int64_t first = 0; first < templates; first += at_once) {
    const int64_t some = std::min(at_once, templates - first);
    Tensor part = taps;
    if (some < templates) {
      Tensor all = taps;
      part = torch::stable::contiguous(torch::stable::narrow(all, 2, first, some));
    }
    Tensor found = direct::correlate_direct(seen, part, stride);
    Sizes flat{tiles, some};
    for (int64_t axis = 3; axis < found.dim(); ++axis) flat.push_back(found.size(axis));
    const Tensor more = finish_tiles(torch::stable::view(found, flat), norms, stats, input, weights,
                                     ids, geometry, stride, first, zero_mean, eps, 0.0, budget, out);
    for (int64_t t = 0; t < tiles; ++t) {
      left.mutable_data_ptr<int64_t>()[t] += more.const_data_ptr<int64_t>()[t];
    }
  }
  return {left, norms};
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("direct_scores", TORCH_BOX(&torchcorr::direct_scores));
}
