// The last step of a score: numerator times norm, or the definition where the norm says so.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "exact_window.h"
#include "tiles.h"

namespace torchcorr {
namespace {

// out = numerator * norm within [-1, 1]; counts the windows whose norm is marked or beyond `limit`.
template <class In, class Out>
TORCHCORR_INLINE int64_t finish(int64_t n, const In* numerator, int64_t step, const In* norm,
                                In limit, Out* out) {
  int doubts = 0;
  const auto one = [&](int64_t i, In value) TORCHCORR_FLAT {
    const In score = value * norm[i];
    const In high = score > 1 ? In(1) : score;
    const In clamped = high < -1 ? In(-1) : high;
    out[i] = static_cast<Out>(norm[i] == 0 ? In(0) : clamped);
    doubts += (norm[i] < 0) | (norm[i] > limit);
  };
  if (step == 1) {
    for (int64_t i = 0; i < n; ++i) one(i, numerator[i]);
  } else if (step == 2) {
    for (int64_t i = 0; i < n; ++i) one(i, numerator[2 * i]);
  } else {
    for (int64_t i = 0; i < n; ++i) one(i, numerator[i * step]);
  }
  return doubts;
}

// Sum of squares, and the largest size.
struct Content {
  double square = 0, peak = 0;
};

template <class T>
TORCHCORR_INLINE Content content(int64_t n, const T* x) {
  constexpr int64_t kLanes = 16;
  T square[kLanes] = {}, peak[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const T value = x[i + l], size = value < 0 ? -value : value;
      square[l] += value * value;
      peak[l] = size > peak[l] ? size : peak[l];
    }
  }
  Content found;
  for (int64_t l = 0; l < kLanes; ++l) {
    found.square += static_cast<double>(square[l]);
    found.peak = std::max(found.peak, static_cast<double>(peak[l]));
  }
  for (; i < n; ++i) {
    const double size = std::abs(static_cast<double>(x[i]));
    found.square += size * size;
    found.peak = std::max(found.peak, size);
  }
  return found;
}

#define TORCHCORR_FINISH(In, Out)                                                              \
  TORCHCORR_CLONES int64_t finish_row(int64_t n, const In* numerator, int64_t step,            \
                                      const In* norm, In limit, Out* out) {                    \
    return finish(n, numerator, step, norm, limit, out);                                       \
  }
TORCHCORR_FINISH(float, float)
TORCHCORR_FINISH(double, float)
TORCHCORR_FINISH(double, double)
TORCHCORR_FINISH(float, double)
#undef TORCHCORR_FINISH

#define TORCHCORR_CONTENT(T) \
  TORCHCORR_CLONES Content content_of(int64_t n, const T* x) { return content(n, x); }
TORCHCORR_CONTENT(float)
TORCHCORR_CONTENT(double)
#undef TORCHCORR_CONTENT

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

// The largest norm for which a pair of tiles and a template tell the score, in float32 or float64
// transforms: both tiles' elements and all their sums bring in rounding (math.md, noise).
template <class In>
std::vector<double> limits_of(const Numerators& layout, int64_t tiles, const In* numerators,
                              const double* stats, double count, double noise) {
  constexpr int64_t kPart = 1 << 12;
  const int64_t lines = layout.lanes == 2 ? tiles / 2 * layout.templates : 0;
  std::vector<double> limits(lines, std::numeric_limits<double>::infinity());
  if (noise == 0 || lines == 0) return limits;
  const int64_t volume = 2 * layout.full[0] * layout.full[1] * layout.full[2];
  const int64_t parts = ceil_div(volume, kPart);
  std::vector<Content> found(lines * parts);
  torch::stable::parallel_for(0, lines * parts, 16, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t at = u % parts * kPart;
      found[u] = content_of(std::min(kPart, volume - at), numerators + u / parts * volume + at);
    }
  });
  for (int64_t line = 0; line < lines; ++line) {
    Content all;
    for (int64_t u = line * parts; u < (line + 1) * parts; ++u) {
      all.square += found[u].square;
      all.peak = std::max(all.peak, found[u].peak);
    }
    const double* own = stats + line / layout.templates * 2 * kStats;
    const double power = (own[2] + own[kStats + 2]) * count;
    const double spread = std::sqrt(power + 2 * all.square / static_cast<double>(volume));
    limits[line] = 1 / (noise * (spread + all.peak / 2));
  }
  return limits;
}

// One call: tiles of numerators to scores.
template <class In, class Out>
struct Finish {
  const TileGrid& grid;
  const Numerators& layout;
  const Sizes& ids;
  const ExactWindow& exact;
  const In *numerators, *norms;
  const double *stats, *taps;
  const Out* image;
  Out* out;
  int64_t own[3] = {1, 1, 1}, size[3] = {1, 1, 1}, step[3] = {1, 1, 1};
  int64_t first_template, all, items_each, window;

  int64_t rows() const { return own[0] * own[1]; }

  // Calls f(positions, first position of the map, z, y, norms) for row `row` of tile t, if it is
  // one of the map's.
  template <class F>
  void in_row(int64_t t, int64_t row, const F& f) const {
    const TilePlace place(grid, ids[t]);
    const int64_t z = place.index[0] * own[0] + row / own[1];
    const int64_t y = place.index[1] * own[1] + row % own[1];
    const int64_t x = place.index[2] * own[2], n = std::min(own[2], size[2] - x);
    if (!place.exists || z >= size[0] || y >= size[1] || n <= 0) return;
    f(place, n, z, y, x, norms + (t * rows() + row) * own[2]);
  }

  Out* target(const TilePlace& p, int64_t k, int64_t z, int64_t y, int64_t x) const {
    const int64_t which = p.item * all + first_template + k;
    return out + ((which * size[0] + z) * size[1] + y) * size[2] + x;
  }

  // Writes the scores of a row; adds to `doubts` for each template.
  void write(int64_t t, int64_t row, const double* limits, std::atomic<int64_t>* doubts) const {
    in_row(t, row, [&](const TilePlace& p, int64_t n, int64_t z, int64_t y, int64_t x,
                       const In* norm) {
      for (int64_t k = 0; k < layout.templates; ++k) {
        const In* from = numerators + layout.row(t, k, row / own[1], row % own[1]);
        const In limit = limits ? static_cast<In>(limits[k]) : std::numeric_limits<In>::infinity();
        const int64_t found =
            finish_row(n, from, layout.step(), norm, limit, target(p, k, z, y, x));
        if (found > 0) doubts[k] += found;
      }
    });
  }

  // The doubtful windows of a row from their definition.
  void recompute(int64_t t, int64_t row, int64_t k, double limit) const {
    in_row(t, row, [&](const TilePlace& p, int64_t n, int64_t z, int64_t y, int64_t x,
                       const In* norm) {
      const int64_t strides[3] = {grid.item_size, grid.size[1] * grid.size[2], grid.size[2]};
      const Out* start = image + p.item * grid.channels * grid.item_size +
                         (z * step[0] * grid.size[1] + y * step[1]) * grid.size[2] + x * step[2];
      const double* own_taps = taps + (p.item / items_each * all + first_template + k) * window;
      Out* to = target(p, k, z, y, x);
      const double scale = stats[t * kStats + 1];
      const auto doubtful = [&](In value) {
        return value < 0 || value > static_cast<In>(limit);
      };
      const auto put = [&](int64_t v, double score) {
        to[v] = static_cast<Out>(score > 1 ? 1.0 : score < -1 ? -1.0 : score);
      };
      int64_t ready = 0, first = 0;  // `sums` holds the windows from first to ready
      double sums[kNeighbours];
      for (int64_t v = 0; v < n; ++v) {
        if (!doubtful(norm[v])) continue;
        const Out* seen = start + v * step[2];
        // An element of the window stands for its offset.
        const double level = exact.zero_mean ? static_cast<double>(*seen) : 0.0;
        if (!std::isfinite(norm[v])) {
          put(v, score_of_window(seen, strides, own_taps, exact, scale));
          continue;
        }
        if (std::is_same_v<Out, float> && v >= ready && step[2] == 1 && n >= kNeighbours) {
          const int64_t begin = std::min(v, n - kNeighbours);
          int64_t many = 0;
          for (int64_t i = v; i < begin + kNeighbours; ++i) many += doubtful(norm[i]);
          if (many > kNeighbours / 8) {
            first = begin, ready = begin + kNeighbours;
            products_of_windows(start + first, strides, own_taps, exact, level, sums);
          }
        }
        const double sum =
            v < ready ? sums[v - first] : product_of_window(seen, strides, own_taps, exact, level);
        put(v, sum * scale * std::abs(static_cast<double>(norm[v])));
      }
    });
  }

  // All tiles; `left` gets the number of doubtful windows that are too many to compute again.
  void run(double noise, int64_t budget, int64_t* left) const {
    const int64_t tiles = static_cast<int64_t>(ids.size()), templates = layout.templates;
    const std::vector<double> limits =
        limits_of(layout, tiles, numerators, stats, exact.count, noise);
    const auto limits_at = [&](int64_t t) {
      return limits.empty() ? nullptr : limits.data() + t / 2 * templates;
    };
    const std::unique_ptr<std::atomic<int64_t>[]> doubts(new std::atomic<int64_t>[tiles * templates]);
    for (int64_t i = 0; i < tiles * templates; ++i) doubts[i] = 0;
    const int64_t grain = std::max<int64_t>(1, (1 << 14) / (own[2] * templates));
    torch::stable::parallel_for(0, tiles * rows(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        const int64_t t = u / rows();
        write(t, u % rows(), limits_at(t), doubts.get() + t * templates);
      }
    });
    for (int64_t t = 0; t < tiles; ++t) {
      left[t] = 0;
      for (int64_t k = 0; k < templates; ++k) {
        const int64_t found = doubts[t * templates + k];
        if (found > budget) left[t] += found;
        if (found == 0 || found > budget) continue;
        const double limit =
            limits.empty() ? std::numeric_limits<double>::infinity() : limits_at(t)[k];
        torch::stable::parallel_for(0, rows(), 1, [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) recompute(t, row, k, limit);
        });
      }
    }
  }
};

Tensor finish_tiles(const Tensor& numerators_in, const Tensor& norms, const Tensor& stats,
                    const Tensor& input, const Tensor& weights, Sizes ids, Sizes geometry,
                    Sizes stride, int64_t first_template, bool zero_mean, double eps, double noise,
                    int64_t budget, const Tensor& out) {
  const int64_t tiles = static_cast<int64_t>(ids.size());
  Tensor left = torch::stable::new_zeros(stats, {tiles}, ScalarType::Long);
  if (out.numel() == 0 || numerators_in.numel() == 0) return left;
  const Tensor numerators = packed(numerators_in), image = packed(input), taps = packed(weights);
  const TileGrid grid(image, geometry);
  const Numerators layout(numerators, norms, stride);
  const int64_t ndim = grid.ndim;
  ExactWindow by{grid.channels, {1, 1, 1}, 1.0, eps, zero_mean};
  last_three(taps, ndim, by.window);
  const int64_t window = grid.channels * by.window[0] * by.window[1] * by.window[2];
  by.count = static_cast<double>(window);
  with_real_type(numerators, "numerators", [&](auto in_zero) {
    using In = decltype(in_zero);
    with_real_type(out, "out", [&](auto out_zero) {
      using Out = decltype(out_zero);
      Finish<In, Out> call{grid, layout, ids, by, numerators.const_data_ptr<In>(),
                           norms.const_data_ptr<In>(), stats.const_data_ptr<double>(),
                           taps.const_data_ptr<double>(), image.const_data_ptr<Out>(),
                           out.mutable_data_ptr<Out>()};
      last_three(norms, ndim, call.own);
      last_three(out, ndim, call.size);
      for (int64_t i = 0; i < ndim; ++i) call.step[3 - ndim + i] = stride[i];
      call.first_template = first_template;
      call.all = taps.size(1);
      call.items_each = image.size(0) / taps.size(0);
      call.window = window;
      call.run(noise, budget, left.mutable_data_ptr<int64_t>());
    });
  });
  return left;
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr, CPU, m) {
  m.impl("finish_tiles", TORCH_BOX(&torchcorr::finish_tiles));
}
