// The last step of a correlation through transforms: back to the input's level and units, and the
// few sums that cancel below what rounding left, from their definition.

#include <cmath>
#include <optional>

#include "common/exact_window.h"
#include "windows/flat.h"
#include "common/tiling.h"

namespace torchcorr {
namespace {

struct Restore {
  double unscale, offset;  // value = numerator * unscale + offset
  double least;            // below it a value says nothing of its own accuracy
};

// Writes values; counts those that are not known to be within the bound. `bound` may hold sums of
// absolute products, which tell what a value cannot.
template <class B, class Out>
TORCHCORR_INLINE int64_t restore_row(int64_t n, const double* numerator, int64_t step,
                                     const B* bound, double unbound, const Restore& by, Out* out,
                                     uint8_t* doubtful) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double value = numerator[i * step] * by.unscale + by.offset;
    const double size = bound ? static_cast<double>(bound[i * step]) * unbound : std::abs(value);
    const uint8_t doubt = !(size >= by.least);
    out[i] = static_cast<Out>(value);
    doubtful[i] = doubt;
    count += doubt;
  }
  return count;
}

#define TORCHCORR_RESTORE(B, Out)                                                              \
  TORCHCORR_CLONES int64_t restore(int64_t n, const double* numerator, int64_t step,           \
                                   const B* bound, double unbound, const Restore& by, Out* out, \
                                   uint8_t* doubtful) {                                        \
    return restore_row(n, numerator, step, bound, unbound, by, out, doubtful);                 \
  }
TORCHCORR_RESTORE(float, float)
TORCHCORR_RESTORE(float, double)
#undef TORCHCORR_RESTORE

TORCHCORR_CLONES double squares_of(int64_t n, const double* x, int64_t step) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int64_t l = 0; l < 8; ++l) lanes[l] += x[(i + l) * step] * x[(i + l) * step];
  }
  for (; i < n; ++i) lanes[0] += x[i * step] * x[i * step];
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
         ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

// Sum, norm and sum of absolute values of each template.
struct TapSums {
  double sum = 0, norm = 0;

  TapSums(int64_t n, const double* w) {
    for (int64_t i = 0; i < n; ++i) sum += w[i], norm += w[i] * w[i];
    norm = std::sqrt(norm);
  }
};

template <class Out>
class Sums {
 public:
  Sums(const TileGrid& grid, const Sizes& ids, const Tensor& numerators, const Tensor& stats,
       const std::optional<Tensor>& bound, const std::optional<Tensor>& marked, const Tensor& image,
       const Tensor& taps, const Sizes& stride, int64_t first_template, double noise,
       double allowed, const Tensor& out)
      : g_(grid), ids_(ids), from_(numerators.const_data_ptr<double>()),
        stats_(stats.const_data_ptr<double>()),
        bound_(bound ? bound->const_data_ptr<float>() : nullptr),
        marked_(marked ? marked->const_data_ptr<bool>() : nullptr),
        image_(image.const_data_ptr<Out>()), taps_(taps.const_data_ptr<double>()),
        out_(out.mutable_data_ptr<Out>()), templates_(numerators.size(1)), all_(taps.size(1)),
        items_each_(image.size(0) / taps.size(0)), first_(first_template), noise_(noise),
        allowed_(allowed), exact_{grid.channels, {1, 1, 1}, 1.0, 0.0, false} {
    const int64_t ndim = grid.ndim;
    for (int64_t i = 0; i < ndim; ++i) {
      const int64_t axis = 3 - ndim + i;
      step_[axis] = stride[i];
      size_[axis] = out.size(2 + i);
      exact_.window[axis] = taps.size(3 + i);
      own_[axis] = grid.step[axis] / stride[i];
    }
    window_ = grid.channels * exact_.window[0] * exact_.window[1] * exact_.window[2];
    exact_.count = static_cast<double>(window_);
  }

  // Windows of tile t that stay in doubt: those beyond the budget, which are left as they are.
  int64_t finish(int64_t t, int64_t budget, std::vector<uint8_t>& doubts) const {
    const TilePlace place(g_, ids_[t]);
    if (!place.exists) return 0;
    const int64_t size = own_[0] * own_[1] * own_[2];
    int64_t left = 0;
    for (int64_t k = 0; k < templates_; ++k) {
      doubts.assign(size, 0);
      int64_t count = write(place, t, k, doubts);
      if (count > budget && !marked_) count -= clear_zeros(place, t, k, doubts);
      if (count > budget) {
        left += count;
      } else if (count > 0) {
        recompute(place, k, doubts);
      }
    }
    return left;
  }

 private:
  template <class F>
  void for_rows(const TilePlace& p, const F& f) const {
    const int64_t x = p.index[2] * own_[2], n = std::min(own_[2], size_[2] - x);
    for (int64_t i = 0; i < own_[0]; ++i) {
      for (int64_t j = 0; j < own_[1]; ++j) {
        const int64_t z = p.index[0] * own_[0] + i, y = p.index[1] * own_[1] + j;
        if (z < size_[0] && y < size_[1]) f(i, j, z, y, x, n);
      }
    }
  }

  Out* row_of(const TilePlace& p, int64_t k, int64_t z, int64_t y, int64_t x) const {
    return out_ + (((p.item * all_ + first_ + k) * size_[0] + z) * size_[1] + y) * size_[2] + x;
  }

  const double* taps_of(const TilePlace& p, int64_t k) const {
    return taps_ + (p.item / items_each_ * all_ + first_ + k) * window_;
  }

  int64_t at(int64_t t, int64_t k, int64_t i, int64_t j) const {
    return (((t / 2 * templates_ + k) * g_.length[0] + i * step_[0]) * g_.length[1] +
            j * step_[1]) * g_.length[2] * 2 + t % 2;
  }

  int64_t write(const TilePlace& p, int64_t t, int64_t k, std::vector<uint8_t>& doubts) const {
    const TapSums taps(window_, taps_of(p, k));
    const double* own = stats_ + t * kStats;
    // What the transform of a pair mixes: both tiles' elements, both tiles' sums.
    const int64_t partner = t ^ 1, volume = g_.tile_size();
    double power = 0;
    for (int64_t lane = 0; lane < 2; ++lane) {
      power += squares_of(volume, from_ + (t / 2 * templates_ + k) * volume * 2 + lane, 2);
    }
    const double rms = std::sqrt(power / static_cast<double>(volume));
    const double tile = std::sqrt(own[2] + stats_[partner * kStats + 2]) * taps.norm;
    const double error = noise_ * std::sqrt(tile * tile + rms * rms) / own[1];
    const Restore by{1 / own[1], own[0] * taps.sum, error / allowed_};
    int64_t count = 0;
    for_rows(p, [&](int64_t i, int64_t j, int64_t z, int64_t y, int64_t x, int64_t n) {
      const int64_t source = at(t, k, i, j), place = (i * own_[1] + j) * own_[2];
      uint8_t* doubt = doubts.data() + place;
      count += restore(n, from_ + source, 2 * step_[2], bound_ ? bound_ + source : nullptr,
                       1 / own[1], by, row_of(p, k, z, y, x), doubt);
      if (marked_) {
        const bool* mark = marked_ + t * own_[0] * own_[1] * own_[2] + place;
        for (int64_t v = 0; v < n; ++v) {
          count += mark[v] && !doubt[v];
          doubt[v] |= mark[v];
        }
      }
    });
    return count;
  }

  // A window of zeros sums to zero.
  int64_t clear_zeros(const TilePlace& p, int64_t t, int64_t k, std::vector<uint8_t>& doubts) const {
    const Plan plan(1, g_.channels, Sizes(g_.extent + 3 - g_.ndim, g_.extent + 3),
                    Sizes(exact_.window + 3 - g_.ndim, exact_.window + 3),
                    Sizes(step_ + 3 - g_.ndim, step_ + 3), 2);
    Plan tile = plan;
    if (plan.lines) {
      tile.axis[1].count = tile.axis[1].size = 1;
      tile.axis[2].size = plan.line_size, tile.axis[2].count = plan.line_count;
    }
    std::vector<Out> marks(doubts.size());
    for (size_t i = 0; i < marks.size(); ++i) marks[i] = doubts[i] ? Out(-1) : Out(1);
    const int64_t found = FlatWindows<Out>(g_, tile, false).clear(ids_[t], image_, marks.data());
    for_rows(p, [&](int64_t i, int64_t j, int64_t z, int64_t y, int64_t x, int64_t n) {
      const int64_t place = (i * own_[1] + j) * own_[2];
      Out* row = row_of(p, k, z, y, x);
      for (int64_t v = 0; v < n; ++v) {
        if (marks[place + v] == 0) doubts[place + v] = 0, row[v] = 0;
      }
    });
    return found;
  }

  void recompute(const TilePlace& p, int64_t k, const std::vector<uint8_t>& doubts) const {
    const int64_t strides[3] = {g_.item_size, g_.size[1] * g_.size[2], g_.size[2]};
    const Out* item = image_ + p.item * g_.channels * g_.item_size;
    for_rows(p, [&](int64_t i, int64_t j, int64_t z, int64_t y, int64_t x, int64_t n) {
      const uint8_t* doubt = doubts.data() + (i * own_[1] + j) * own_[2];
      Out* row = row_of(p, k, z, y, x);
      const Out* start = item + (z * step_[0] * g_.size[1] + y * step_[1]) * g_.size[2] +
                         x * step_[2];
      for (int64_t v = 0; v < n; ++v) {
        if (!doubt[v]) continue;
        row[v] = static_cast<Out>(
            sum_of_window(start + v * step_[2], strides, taps_of(p, k), exact_));
      }
    });
  }

  const TileGrid& g_;
  const Sizes& ids_;
  const double *from_, *stats_;
  const float* bound_;
  const bool* marked_;
  const Out* image_;
  const double* taps_;
  Out* out_;
  int64_t templates_, all_, items_each_, first_, window_ = 1;
  double noise_, allowed_;
  ExactWindow exact_;
  int64_t step_[3] = {1, 1, 1}, size_[3] = {1, 1, 1}, own_[3] = {1, 1, 1};
};

Tensor finish_sums(const Tensor& numerators, const Tensor& stats, std::optional<Tensor> bound,
                   std::optional<Tensor> marked, const Tensor& input, const Tensor& weights,
                   Sizes ids, Sizes geometry, Sizes stride, int64_t first_template, double noise,
                   double allowed, int64_t budget, const Tensor& out) {
  const Tensor image = packed(input), taps = packed(weights);
  const TileGrid grid(image, geometry);
  const int64_t tiles = static_cast<int64_t>(ids.size());
  Tensor left = torch::stable::new_empty(stats, {tiles}, ScalarType::Long);
  int64_t* counts = left.mutable_data_ptr<int64_t>();
  with_real_type(out, "out", [&](auto zero) {
    const Sums<decltype(zero)> sums(grid, ids, numerators, stats, bound, marked, image, taps,
                                    stride, first_template, noise, allowed, out);
    torch::stable::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
      std::vector<uint8_t> doubts;
      for (int64_t t = begin; t < end; ++t) counts[t] = sums.finish(t, budget, doubts);
    });
  });
  return left;
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("finish_sums", TORCH_BOX(&torchcorr::finish_sums));
}
