// The spectra of a template's gradient in one parallel region: products of the spectra of tiles of
// the input and of the upstream gradient, summed over tiles in float64. A worker sums those of a
// group of tiles in their order, and groups are added in theirs, so no number of threads changes a
// sum.

#include "tiles/pass.h"
#include "tiles/steps.h"

namespace torchcorr {
namespace {

// Spectra of tiles, two by two, in the units of what they were cut from.
template <class R>
Tensor spectra_of_tiles(const Tensor& x, const Sizes& batch) {
  constexpr bool kWide = sizeof(R) == sizeof(double);
  auto [tiles, stats] = cut_tiles(x, batch, Levels::kNone, kWide, true);
  const TileStats* rows = rows_of_stats(stats);
  const int64_t twos = tiles.size(0), each = tiles.numel() / std::max<int64_t>(1, twos);
  R* values = tiles.template mutable_data_ptr<R>();
  for (int64_t i = 0; i < twos; ++i) {
    const R first = static_cast<R>(1 / rows[2 * i].scale);
    const R second = static_cast<R>(1 / rows[2 * i + 1].scale);
    for (int64_t k = i * each; k < (i + 1) * each; k += 2) {
      values[k] *= first, values[k + 1] *= second;
    }
  }
  return transform(lines_of_tiles(tiles), true);
}

template <class R>
Tensor sum_of_spectra(const Tensor& upstream, const Tensor& input, const Sizes& upstream_batch,
                      const Sizes& batch, int64_t pairs, int64_t groups, int64_t parts) {
  const Tiling tiling = TileBatch(batch, input).tiling;
  const int64_t templates = upstream.size(1), channels = tiling.channels, n = tiling.tile_size();
  const int64_t tiles = tiling.layout.count / pairs * tiling.tiles_per_item();
  const int64_t of_group = 2 * ceil_div(ceil_div(tiles, 2), groups);
  const int64_t of_part = ceil_div(templates, parts);
  std::vector<Tensor> upstreams;
  for (int64_t first = 0; first < templates; first += of_part) {
    const int64_t count = std::min(of_part, templates - first);
    upstreams.push_back(part_of(upstream, 1, first, count));
  }
  Sizes shape{groups, pairs, templates, channels};
  for (int64_t length : sizes_of(tiling.length, tiling.ndim)) shape.push_back(length);
  const Tensor total = torch::stable::new_zeros(input, shape, ScalarType::ComplexDouble);
  double* sums = static_cast<double*>(total.mutable_data_ptr());
  const int64_t all_parts = static_cast<int64_t>(upstreams.size());
  const int64_t size = 2 * pairs * templates * channels * n;  // numbers of a group
  run_units(groups * pairs * all_parts, Sharing::kUnits, [&](int64_t unit) {
    const int64_t part = unit % all_parts, pair = unit / all_parts % pairs;
    const int64_t group = unit / all_parts / pairs;
    const int64_t last = std::min((group + 1) * of_group, tiles);
    const Tensor& some = upstreams[part];
    for (int64_t t = group * of_group; t < last; t += 2) {
      const int64_t first = pair * tiles + t;
      const Sizes two{first, t + 1 < last ? first + 1 : -1};
      const Tensor of_input = spectra_of_tiles<R>(input, with_tiles(batch, two));
      const Tensor of_upstream = spectra_of_tiles<R>(some, with_tiles(upstream_batch, two));
      const R* a = static_cast<const R*>(of_input.const_data_ptr());
      const R* b = static_cast<const R*>(of_upstream.const_data_ptr());
      for (int64_t k = 0; k < some.size(1); ++k) {
        const int64_t line = (pair * templates + part * of_part + k) * channels;
        for (int64_t c = 0; c < channels; ++c) {
          add_conjugate_products(n, a + 2 * c * n, b + 2 * k * n,
                                 sums + group * size + 2 * (line + c) * n);
        }
      }
    }
  });
  for (int64_t group = 1; group < groups; ++group) {
    for (int64_t i = 0; i < size; ++i) sums[i] += sums[group * size + i];
  }
  return torch::stable::select(total, 0, 0);
}

Tensor template_grad_spectra(const Tensor& upstream, const Tensor& input, Sizes upstream_batch,
                             Sizes batch, int64_t pairs, int64_t groups, int64_t parts, bool wide) {
  const auto sum = wide ? sum_of_spectra<double> : sum_of_spectra<float>;
  return sum(upstream, input, upstream_batch, batch, pairs, groups, parts);
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("template_grad_spectra", TORCH_BOX(&torchcorr::template_grad_spectra));
}
