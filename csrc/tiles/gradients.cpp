// The gradient of scores tile by tile: upstream gradients as the tiles that are transformed, and
// what the transforms and the windows give back, added to the input's gradient.

#include <cmath>
#include <type_traits>

#include "common/exact_window.h"
#include "tiles/spread.h"
#include "common/tiling.h"
#include "common/vectors.h"

namespace torchcorr {
namespace {

void last_three(const Tensor& x, int64_t ndim, int64_t behind, int64_t (&to)[3]) {
  for (int64_t i = 0; i < ndim; ++i) to[3 - ndim + i] = x.size(x.dim() - behind - ndim + i);
}

// --- windows that are too faint for sums ---

template <class T>
TORCHCORR_INLINE bool below_zero(int64_t n, const T* x) {
  int found = 0;
  for (int64_t i = 0; i < n; ++i) found |= x[i] < 0;
  return found != 0;
}

TORCHCORR_CLONES bool any_below_zero(int64_t n, const float* x) { return below_zero(n, x); }
TORCHCORR_CLONES bool any_below_zero(int64_t n, const double* x) { return below_zero(n, x); }

void repair_norms(const Tensor& norms, const Tensor& means, const Tensor& stats,
                  const Tensor& input, Sizes ids, Sizes geometry, Sizes window, Sizes stride,
                  bool zero_mean, double eps) {
  const Tensor image = packed(input);
  const TileGrid grid(image, geometry);
  int64_t own[3] = {1, 1, 1}, step[3] = {1, 1, 1};
  last_three(norms, grid.ndim, 0, own);
  ExactWindow by{grid.channels, {1, 1, 1}, 1.0, eps, zero_mean};
  for (int64_t i = 0; i < grid.ndim; ++i) {
    by.window[3 - grid.ndim + i] = window[i];
    step[3 - grid.ndim + i] = stride[i];
  }
  by.count = static_cast<double>(grid.channels * by.window[0] * by.window[1] * by.window[2]);
  const int64_t strides[3] = {grid.item_size, grid.size[1] * grid.size[2], grid.size[2]};
  const int64_t rows = own[0] * own[1];
  const double* stat = stats.const_data_ptr<double>();
  with_real_type(image, "input", [&](auto zero) {
    using In = decltype(zero);
    const In* x = image.const_data_ptr<In>();
    with_real_type(norms, "norms", [&](auto norm_zero) {
      using T = decltype(norm_zero);
      T *norm = norms.mutable_data_ptr<T>(), *mean = means.mutable_data_ptr<T>();
      const auto repair_row = [&](int64_t u) {
        const TilePlace place(grid, ids[u / rows]);
        const int64_t i = u % rows / own[1], j = u % own[1];
        const auto valid = [&](int axis) {
          return valid_positions(grid, place, axis, by.window[axis], step[axis]);
        };
        if (i >= valid(0) || j >= valid(1)) return;
        const double* s = stat + u / rows * kStats;
        const In* start = x + place.item * grid.channels * grid.item_size +
                          ((place.start[0] + i * step[0]) * grid.size[1] + place.start[1] +
                           j * step[1]) * grid.size[2] + place.start[2];
        const int64_t n = valid(2);
        if (!any_below_zero(n, norm + u * own[2])) return;
        for (int64_t v = 0; v < n; ++v) {
          const int64_t at = u * own[2] + v;
          if (!(norm[at] < 0)) continue;
          if (std::isfinite(norm[at])) {
            norm[at] = -norm[at];
            continue;
          }
          const WindowMoments found = moments_of_window(start + v * step[2], strides, by, s[1]);
          const double energy = found.squares / by.count + eps * s[1] * s[1];
          norm[at] = static_cast<T>(found.squares == 0 ? 0.0 : 1 / (by.count * std::sqrt(energy)));
          mean[at] = static_cast<T>(zero_mean ? found.level - s[0] * s[1] : 0.0);
        }
      };
      torch::stable::parallel_for(0, static_cast<int64_t>(ids.size()) * rows, 16,
                                  [&](int64_t begin, int64_t end) {
                                    for (int64_t u = begin; u < end; ++u) repair_row(u);
                                  });
    });
  });
}

// --- upstream gradients as tiles ---

// A row: alpha = g norm, b = g Z N norm^2 and c = b mean, and the sums that the caller checks.
struct RowSums {
  double squares = 0, offset = 0, largest = 0;
};

template <class G, class S, class T>
TORCHCORR_INLINE void grad_row(int64_t n, const G* grad, const S* score, const T* norm,
                               const T* mean, double count, T* alpha, T* b, T* c, RowSums& sums) {
  double squares[kVector] = {}, offset[kVector] = {}, largest[kVector] = {};
  const auto one = [&](int64_t l, int64_t i) TORCHCORR_FLAT {
    const double scale = static_cast<double>(norm[i]), m = static_cast<double>(mean[i]);
    const double a = scale == 0 ? 0.0 : static_cast<double>(grad[i]) * scale;
    const double share = a * static_cast<double>(score[i]) * count * scale;
    alpha[i] = static_cast<T>(a);
    b[i] += static_cast<T>(share);
    c[i] += static_cast<T>(share * m);
    squares[l] += a * a;
    offset[l] += a * m;
    const double size = a < 0 ? -a : a;
    largest[l] = size > largest[l] ? size : largest[l];
  };
  int64_t i = 0;
  for (; i + kVector <= n; i += kVector) {
    for (int64_t l = 0; l < kVector; ++l) one(l, i + l);
  }
  for (; i < n; ++i) one(i % kVector, i);
  sums.squares += total_of_lanes(squares);
  sums.offset += total_of_lanes(offset);
  for (double size : largest) sums.largest = std::max(sums.largest, size);
}

template <class T>
TORCHCORR_INLINE void scatter_row(int64_t n, int64_t step, T sign, const T* from, T* to) {
  if (step == 2) {
    for (int64_t i = 0; i < n; ++i) to[2 * i] = sign * from[i];
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * step] = sign * from[i];
  }
}

TORCHCORR_CLONES void scatter(int64_t n, int64_t step, float sign, const float* from, float* to) {
  scatter_row(n, step, sign, from, to);
}
TORCHCORR_CLONES void scatter(int64_t n, int64_t step, double sign, const double* from,
                              double* to) {
  scatter_row(n, step, sign, from, to);
}

#define TORCHCORR_GRAD_ROW(G, S, T)                                                            \
  TORCHCORR_CLONES void grads_of(int64_t n, const G* grad, const S* score, const T* norm,      \
                                 const T* mean, double count, T* alpha, T* b, T* c,            \
                                 RowSums& sums) {                                              \
    grad_row(n, grad, score, norm, mean, count, alpha, b, c, sums);                            \
  }
TORCHCORR_GRAD_ROW(float, float, float)
TORCHCORR_GRAD_ROW(float, double, double)
TORCHCORR_GRAD_ROW(double, double, double)
TORCHCORR_GRAD_ROW(double, float, float)
#undef TORCHCORR_GRAD_ROW

// `score` is a map like grad, or that of these tiles. Adds to b and c; returns alpha as pairs (first, minus second) in zeros, and for each tile and
// template the sums of squares, of alpha times the mean, and the largest alpha.
std::tuple<Tensor, Tensor> tile_upstream(const Tensor& grad, const Tensor& score,
                                         const Tensor& norms, const Tensor& means, Sizes ids,
                                         Sizes geometry, Sizes stride, double count,
                                         int64_t first_template, int64_t templates, bool of_tiles,
                                         const Tensor& b, const Tensor& c) {
  const int64_t ndim = static_cast<int64_t>(stride.size()), tiles = ids.size();
  int64_t own[3] = {1, 1, 1}, size[3] = {1, 1, 1}, step[3] = {1, 1, 1}, length[3] = {1, 1, 1},
          grid[3] = {1, 1, 1};
  last_three(norms, ndim, 0, own);
  last_three(grad, ndim, 0, size);
  Sizes shape{tiles / 2, templates};
  int64_t per_item = 1;
  for (int64_t i = 0; i < ndim; ++i) {
    step[3 - ndim + i] = stride[i];
    grid[3 - ndim + i] = geometry[i];
    length[3 - ndim + i] = geometry[4 * ndim + i];
    per_item *= geometry[i];
    shape.push_back(geometry[4 * ndim + i]);
  }
  shape.push_back(2);
  Tensor alpha = torch::stable::new_zeros(norms, shape);
  Tensor sums = torch::stable::new_zeros(norms, {tiles, templates, 3}, ScalarType::Double);
  const int64_t all = grad.size(1), rows = own[0] * own[1];
  const int64_t volume = length[0] * length[1] * length[2];
  with_real_type(norms, "norms", [&](auto zero) {
    using T = decltype(zero);
    T *to = alpha.mutable_data_ptr<T>(), *bs = b.mutable_data_ptr<T>(),
      *cs = c.mutable_data_ptr<T>();
    const T *norm = norms.const_data_ptr<T>(), *mean = means.const_data_ptr<T>();
    double* found = sums.mutable_data_ptr<double>();
    with_real_type(grad, "grad", [&](auto grad_zero) {
      using G = decltype(grad_zero);
      const G* g = grad.const_data_ptr<G>();
      const auto one_tile = [&](int64_t t, std::vector<T>& line) {
        if (ids[t] < 0) return;
        int64_t rest = ids[t] % per_item, index[3];
        for (int axis = 2; axis >= 0; --axis) index[axis] = rest % grid[axis], rest /= grid[axis];
        const int64_t x = index[2] * own[2], n = std::min(own[2], size[2] - x);
        const T sign = t % 2 == 0 ? T(1) : T(-1);
        for (int64_t k = 0; k < templates; ++k) {
          RowSums sum;
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t i = r / own[1], j = r % own[1];
            const int64_t z = index[0] * own[0] + i, y = index[1] * own[1] + j;
            if (z >= size[0] || y >= size[1]) continue;
            const int64_t at = (t * rows + r) * own[2];
            const int64_t map = (((ids[t] / per_item * all + first_template + k) * size[0] + z) *
                                     size[1] + y) * size[2] + x;
            const auto run = [&](const auto* score_row) {
              grads_of(n, g + map, score_row, norm + at, mean + at, count, line.data(), bs + at,
                       cs + at, sum);
            };
            if (of_tiles) {
              run(score.const_data_ptr<T>() + ((t * templates + k) * rows + r) * own[2]);
            } else if constexpr (std::is_same_v<T, G>) {
              run(score.const_data_ptr<G>() + map);
            }
            T* target = to + ((t / 2 * templates + k) * volume +
                              (i * step[0] * length[1] + j * step[1]) * length[2]) * 2 + t % 2;
            scatter(n, 2 * step[2], sign, line.data(), target);
          }
          double* own_sums = found + (t * templates + k) * 3;
          own_sums[0] = sum.squares, own_sums[1] = sum.offset, own_sums[2] = sum.largest;
        }
      };
      STD_TORCH_CHECK(of_tiles || (std::is_same_v<T, G>), "scores of a map share grad's dtype");
      torch::stable::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
        std::vector<T> line(own[2]);
        for (int64_t t = begin; t < end; ++t) one_tile(t, line);
      });
    });
  });
  return {alpha, sums};
}

// --- back to the input ---

// found (pairs, C, *length, 2) becomes, tile by tile, scale (found - d B(b) + B(c)), B being the
// sum over the windows that hold an element; then tiles are added to `out` in their order.
template <class T, class In>
void spread_tiles(const TileGrid& g, const Sizes& ids, const spread::Job& job, const In* image,
                  const double* stats, const T* b, const T* c, T* found, In* out) {
  const int64_t tiles = static_cast<int64_t>(ids.size()), units = job.units();
  torch::stable::parallel_for(0, tiles * units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t t = u / units;
      if (ids[t] < 0) continue;
      spread::run_unit(job, g, ids[t], t % 2, u % units, image, stats + t * kStats,
                       b + t * job.positions(), c + t * job.positions(),
                       found + t / 2 * 2 * g.channels * g.tile_size());
    }
  });
  int64_t first = g.item_size, last = -1;
  for (int64_t id : ids) {
    if (id < 0) continue;
    first = std::min(first == g.item_size ? id / g.tiles_per_item : first, id / g.tiles_per_item);
    last = std::max(last, id / g.tiles_per_item);
  }
  if (last < 0) return;
  const int64_t rows = g.channels * g.size[0] * g.size[1];
  torch::stable::parallel_for(0, (last - first + 1) * rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t item = first + r / rows, channel = r % rows / (g.size[0] * g.size[1]);
      const int64_t z = r / g.size[1] % g.size[0], y = r % g.size[1];
      In* row = out + (item * rows + r % rows) * g.size[2];
      for (int64_t t = 0; t < tiles; ++t) {
        const TilePlace p(g, ids[t]);
        if (!p.exists || p.item != item) continue;
        const int64_t i = z - p.start[0], j = y - p.start[1];
        if (i < 0 || i >= g.extent[0] || j < 0 || j >= g.extent[1]) continue;
        const T* from = found + (t / 2 * g.channels + channel) * g.tile_size() * 2 +
                        (i * g.length[1] + j) * g.length[2] * 2 + t % 2;
        spread::add_row(std::min(g.extent[2], g.size[2] - p.start[2]), from, row + p.start[2]);
      }
    }
  });
}

void tile_input_grad(const Tensor& found, const Tensor& b, const Tensor& c, const Tensor& stats,
                     const Tensor& input, Sizes ids, Sizes geometry, Sizes window, Sizes stride,
                     const Tensor& out) {
  const Tensor image = packed(input);
  const TileGrid grid(image, geometry);
  const spread::Job job(grid, window, stride);
  with_real_type(found, "found", [&](auto zero) {
    using T = decltype(zero);
    with_real_type(out, "out", [&](auto out_zero) {
      using In = decltype(out_zero);
      if constexpr (sizeof(T) >= sizeof(In)) {
        spread_tiles<T, In>(grid, ids, job, image.const_data_ptr<In>(),
                            stats.const_data_ptr<double>(), b.const_data_ptr<T>(),
                            c.const_data_ptr<T>(), found.mutable_data_ptr<T>(),
                            out.mutable_data_ptr<In>());
      } else {
        STD_TORCH_CHECK(false, "tiles must be as wide as the gradient they are added to");
      }
    });
  });
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("repair_norms", TORCH_BOX(&torchcorr::repair_norms));
  m.impl("tile_upstream", TORCH_BOX(&torchcorr::tile_upstream));
  m.impl("tile_input_grad", TORCH_BOX(&torchcorr::tile_input_grad));
}
