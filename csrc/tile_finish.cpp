// The last step of a score: numerator times norm, or the definition where the norm says so.

#include <cmath>

#include "exact_window.h"
#include "tiles.h"

namespace torchcorr {
namespace {

// out = numerator * norm within [-1, 1]; returns whether a window is marked as faint.
template <class In, class Out>
TORCHCORR_INLINE bool finish(int64_t n, const In* numerator, int64_t step, const In* norm,
                             Out* out) {
  int faint = 0;
  const auto one = [&](int64_t i, In value) TORCHCORR_FLAT {
    const In score = value * norm[i];
    const In high = score > 1 ? In(1) : score;
    const In clamped = high < -1 ? In(-1) : high;
    out[i] = static_cast<Out>(norm[i] == 0 ? In(0) : clamped);
    faint |= norm[i] < 0;
  };
  if (step == 1) {
    for (int64_t i = 0; i < n; ++i) one(i, numerator[i]);
  } else if (step == 2) {
    for (int64_t i = 0; i < n; ++i) one(i, numerator[2 * i]);
  } else {
    for (int64_t i = 0; i < n; ++i) one(i, numerator[i * step]);
  }
  return faint != 0;
}

#define TORCHCORR_FINISH(In, Out)                                                              \
  TORCHCORR_CLONES bool finish_row(int64_t n, const In* numerator, int64_t step, const In* norm, \
                                   Out* out) {                                                 \
    return finish(n, numerator, step, norm, out);                                              \
  }
TORCHCORR_FINISH(float, float)
TORCHCORR_FINISH(double, float)
TORCHCORR_FINISH(double, double)
TORCHCORR_FINISH(float, double)
#undef TORCHCORR_FINISH

// Where the numerators of a tile and a template lie: (tile, template, *positions), or pairs of
// tiles with their elements side by side.
struct Numerators {
  int64_t lanes, templates, full[3] = {1, 1, 1}, skip[3] = {1, 1, 1};

  Numerators(const Tensor& x, const Tensor& norms, const Sizes& stride)
      : lanes(x.dim() - static_cast<int64_t>(stride.size()) - 1), templates(x.size(1)) {
    const int64_t ndim = static_cast<int64_t>(stride.size());
    STD_TORCH_CHECK(lanes == 1 || lanes == 2, "numerators have too many axes");
    for (int64_t i = 0; i < ndim; ++i) {
      const int64_t axis = 3 - ndim + i;
      full[axis] = x.size(2 + i);
      // Those of every position, or only of the positions that are wanted.
      skip[axis] = full[axis] == norms.size(1 + i) ? 1 : stride[i];
    }
  }

  int64_t row(int64_t tile, int64_t k, int64_t z, int64_t y) const {
    const int64_t at = (((tile / lanes * templates + k) * full[0] + z * skip[0]) * full[1] +
                        y * skip[1]) * full[2];
    return at * lanes + tile % lanes;
  }
  int64_t step() const { return skip[2] * lanes; }
};

// The last `ndim` sizes of a tensor as three, ones in front.
void last_three(const Tensor& x, int64_t ndim, int64_t (&to)[3]) {
  for (int64_t i = 0; i < ndim; ++i) to[3 - ndim + i] = x.size(x.dim() - ndim + i);
}

void finish_tiles(const Tensor& numerators_in, const Tensor& norms, const Tensor& stats,
                  const Tensor& input, const Tensor& weights, Sizes ids, Sizes geometry,
                  Sizes stride, int64_t first_template, bool zero_mean, double eps,
                  const Tensor& out) {
  if (out.numel() == 0 || numerators_in.numel() == 0) return;
  const Tensor numerators = packed(numerators_in), image = packed(input), taps = packed(weights);
  const TileGrid grid(image, geometry);
  const Numerators layout(numerators, norms, stride);
  const int64_t ndim = grid.ndim, all = taps.size(1), items_each = image.size(0) / taps.size(0);
  int64_t own[3] = {1, 1, 1}, size[3] = {1, 1, 1}, step[3] = {1, 1, 1};
  last_three(norms, ndim, own);
  last_three(out, ndim, size);
  ExactWindow by{grid.channels, {1, 1, 1}, 1.0, eps, zero_mean};
  last_three(taps, ndim, by.window);
  for (int64_t i = 0; i < ndim; ++i) step[3 - ndim + i] = stride[i];
  const int64_t window = grid.channels * by.window[0] * by.window[1] * by.window[2];
  by.count = static_cast<double>(window);
  const int64_t strides[3] = {grid.item_size, grid.size[1] * grid.size[2], grid.size[2]};
  const double *w = taps.const_data_ptr<double>(), *stat = stats.const_data_ptr<double>();
  const int64_t rows = own[0] * own[1], units = static_cast<int64_t>(ids.size()) * rows;
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / (own[2] * layout.templates));
  with_real_type(numerators, "numerators", [&](auto in_zero) {
    using In = decltype(in_zero);
    const In *from = numerators.const_data_ptr<In>(), *norm = norms.const_data_ptr<In>();
    with_real_type(out, "out", [&](auto out_zero) {
      using Out = decltype(out_zero);
      const Out* x = image.const_data_ptr<Out>();
      Out* to = out.mutable_data_ptr<Out>();
      const auto finish_one = [&](int64_t t, int64_t i, int64_t j) {
        const TilePlace place(grid, ids[t]);
        const int64_t z = place.index[0] * own[0] + i, y = place.index[1] * own[1] + j;
        const int64_t first = place.index[2] * own[2], n = std::min(own[2], size[2] - first);
        if (!place.exists || z >= size[0] || y >= size[1] || n <= 0) return;
        const In* scale = norm + (t * rows + i * own[1] + j) * own[2];
        const Out* start = x + place.item * grid.channels * grid.item_size +
                           (z * step[0] * grid.size[1] + y * step[1]) * grid.size[2] +
                           first * step[2];
        for (int64_t k = 0; k < layout.templates; ++k) {
          const int64_t which = place.item * all + first_template + k;
          Out* target = to + ((which * size[0] + z) * size[1] + y) * size[2] + first;
          if (!finish_row(n, from + layout.row(t, k, i, j), layout.step(), scale, target)) continue;
          const double* own_taps =
              w + (place.item / items_each * all + first_template + k) * window;
          for (int64_t v = 0; v < n; ++v) {
            if (!(scale[v] < 0)) continue;
            const double score =
                score_of_window(start + v * step[2], strides, own_taps, by, stat[t * kStats + 1]);
            target[v] = static_cast<Out>(score > 1 ? 1.0 : score < -1 ? -1.0 : score);
          }
        }
      };
      torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
        for (int64_t u = begin; u < end; ++u) finish_one(u / rows, u % rows / own[1], u % own[1]);
      });
    });
  });
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr, CPU, m) {
  m.impl("finish_tiles", TORCH_BOX(&torchcorr::finish_tiles));
}
