// What to divide the numerators of a tile by, and which windows are too faint for them.

#include <atomic>
#include <cmath>
#include <memory>
#include <type_traits>

#include "tiles/steps.h"
#include "windows/flat.h"
#include "windows/images.h"
#include "windows/running_moments.h"
#include "common/tiling.h"

namespace torchcorr {
namespace {

// Adds (x - level) * scale and its square; an Inf becomes a NaN, which stays in its windows.
template <class T>
TORCHCORR_INLINE void square_row(int64_t n, const T* x, double level, double scale, double* sum,
                                 double* square) {
  for (int64_t i = 0; i < n; ++i) {
    const double value = static_cast<double>(x[i]);
    const double d = (value - level) * scale + (value - value);
    sum[i] += d;
    square[i] += d * d;
  }
}

TORCHCORR_CLONES void squares(int64_t n, const float* x, double level, double scale, double* sum,
                              double* square) {
  square_row(n, x, level, scale, sum, square);
}
TORCHCORR_CLONES void squares(int64_t n, const double* x, double level, double scale, double* sum,
                              double* square) {
  square_row(n, x, level, scale, sum, square);
}

// Rows of tiles as sums over channels of centred elements and of their squares.
template <class T>
struct TileSource {
  const TileGrid& grid;
  const Sizes& ids;
  const T* input;
  const double* stats;

  void load(const Stretch& s, int64_t n, Rows to) const {
    const TilePlace place(grid, ids[s.lead]);
    const double* own = stats + s.lead * kStats;
    std::fill_n(to.plane(0), n, 0.0);
    std::fill_n(to.plane(1), n, 0.0);
    for (int64_t c = 0; c < grid.channels; ++c) {
      const TileRow<T> row(grid, place, input, c, s.z, s.y);
      const int64_t begin = std::max(row.begin, s.x), end = std::min(row.end, s.x + s.valid);
      if (end <= begin) continue;
      squares(end - begin, row.data + begin, own[0], own[1], to.plane(0) + begin - s.x,
              to.plane(1) + begin - s.x);
    }
  }
};

template <class T>
TORCHCORR_INLINE void norm_row(int64_t n, const double* sum, const double* square, double count,
                               double eps, double power, const Limits& by, T* out, T* means,
                               int64_t& faint, int64_t& level) {
  const double share = 1 / count, mean_share = by.zero_mean ? share : 0.0;
  const double of_window = by.local ? by.faint : 0.0;
  const double of_tile = by.local ? 0.0 : by.faint * power;
  int64_t low = 0, candidates = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double mean = sum[i] * mean_share, total = square[i] * share;
    const double energy = total - mean * mean;
    const double tiny = by.exact * total, least = of_window * total;
    const bool maybe_flat = energy <= tiny;
    const bool is_faint = maybe_flat | (energy + eps < (least > of_tile ? least : of_tile));
    const double norm = 1 / (count * std::sqrt(energy + eps));
    out[i] = static_cast<T>(maybe_flat ? kUnknown : is_faint ? -norm : norm);
    if (means) means[i] = static_cast<T>(mean);
    low += is_faint;
    candidates += maybe_flat;
  }
  faint += low;
  level += candidates;
}

#define TORCHCORR_NORMS(T)                                                                     \
  TORCHCORR_CLONES void norms_of(int64_t n, const double* sum, const double* square,           \
                                 double count, double eps, double power, const Limits& by,     \
                                 T* out, T* means, int64_t& faint, int64_t& level) {           \
    norm_row(n, sum, square, count, eps, power, by, out, means, faint, level);                 \
  }
TORCHCORR_NORMS(float)
TORCHCORR_NORMS(double)
#undef TORCHCORR_NORMS

struct Counts {
  std::atomic<int64_t> faint{0}, level{0};
};

template <class T>
struct NormSink {
  static constexpr int first_plane = 0;

  const Plan& plan;
  const TileGrid& grid;
  const Sizes& ids;
  double count;
  const double* stats;
  Limits by;
  T *out, *means;
  Counts* counts;

  // Windows that leave the input are not asked for, and do not count.
  void store(const Stretch& s, Rows r) const {
    const TilePlace place(grid, ids[s.lead]);
    const auto valid = [&](int axis) {
      return valid_positions(grid, place, axis, plan.axis[axis].window, plan.axis[axis].step);
    };
    const int64_t n = std::min(s.valid, valid(2) - s.x);
    if (n <= 0 || s.z >= valid(0) || s.y >= valid(1)) return;
    const double* own = stats + s.lead * kStats;
    int64_t faint = 0, level = 0;
    norms_of(n, r.plane(0), r.plane(1), count, by.eps * own[1] * own[1], own[2], by,
             out + map_offset(plan, s), means ? means + map_offset(plan, s) : nullptr, faint, level);
    if (faint > 0) counts[s.lead].faint += faint;
    if (level > 0) counts[s.lead].level += level;
  }
};

Sizes extent_of(const TileGrid& grid) {
  return Sizes(grid.extent + 3 - grid.ndim, grid.extent + 3);
}

void slide(const running::Job& job, const Sizes& ids, const float* input, const double* stats,
           float* norms, float* means, Counts* counts) {
  const int64_t size = job.count[0] * job.count[1] * job.count[2], units = job.units();
  const int64_t grain = std::max<int64_t>(1, kUnitElements * units / size);
  const int64_t tiles = static_cast<int64_t>(ids.size());
  torch::stable::parallel_for(0, tiles * units, grain, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t t = u / units;
      running::Found found;
      running::run_unit(job, input, ids[t], u % units, stats + t * kStats, norms + t * size,
                        means ? means + t * size : nullptr, found);
      if (found.faint > 0) counts[t].faint += found.faint;
      if (found.level > 0) counts[t].level += found.level;
    }
  });
}

template <class T>
void find_norms(const TileGrid& grid, const Sizes& ids, const Plan& plan, const Plan& tile,
                const Sizes& window, const Sizes& stride, double count, const double* stats,
                const Tensor& input, const Limits& by, const Tensor& norms, const Tensor& means,
                int64_t* faint) {
  const int64_t n = static_cast<int64_t>(ids.size()), size = norms.numel() / n;
  const std::unique_ptr<Counts[]> counts(new Counts[n]);
  const T* image = input.const_data_ptr<T>();
  T* out = norms.mutable_data_ptr<T>();
  T* mean = means.numel() > 0 ? means.mutable_data_ptr<T>() : nullptr;
  bool finite = true;
  for (int64_t t = 0; t < n; ++t) finite = finite && stats[t * kStats + 3] == 0;
  bool done = false;
  if constexpr (std::is_same_v<T, float>) {
    if (finite) {
      slide(running::Job(grid, image + input.numel(), window, stride, by), ids, image, stats, out,
            mean, counts.get());
    }
    done = finite;
  }
  if (!done) {
    run_windows<Sums<2>>(plan, TileSource<T>{grid, ids, image, stats},
                         NormSink<T>{plan, grid, ids, count, stats, by, out, mean, counts.get()});
  }
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    std::unique_ptr<FlatWindows<T>> flat;
    for (int64_t t = begin; t < end; ++t) {
      if (counts[t].level > 0) {
        if (!flat) flat.reset(new FlatWindows<T>(grid, tile, by.zero_mean));
        counts[t].faint -= flat->clear(ids[t], image, out + t * size);
      }
      faint[t] = counts[t].faint;
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> tile_norms(const Tensor& stats, const Tensor& input, Sizes ids,
                                      Sizes geometry, Sizes window, Sizes stride, bool zero_mean,
                                      bool local, double eps, double faint, double exact,
                                      bool with_means) {
  const Tensor image = packed(input);
  const TileGrid grid(image, geometry);
  const int64_t n = static_cast<int64_t>(ids.size());
  const Plan plan(n, grid.channels, extent_of(grid), window, stride, 2);
  // One axis stays one axis: the flat search wants a tile, not the lines it is swept in.
  Plan tile = plan;
  if (plan.lines) {
    tile.axis[1].count = tile.axis[1].size = 1;
    tile.axis[2].size = plan.line_size, tile.axis[2].count = plan.line_count;
  }
  Sizes shape{n};
  for (int64_t i = 3 - grid.ndim; i < 3; ++i) shape.push_back(tile.axis[i].count);
  Tensor norms = torch::stable::new_empty(image, shape);
  Tensor counts = torch::stable::new_empty(image, {n}, ScalarType::Long);
  if (!with_means) shape[0] = 0;
  Tensor means = torch::stable::new_empty(image, shape);
  if (norms.numel() == 0) return {norms, counts, means};
  double count = static_cast<double>(grid.channels);
  for (int64_t k : window) count *= static_cast<double>(k);
  const Limits by{eps, faint, exact, zero_mean, local};
  // A pair is one transform: its noise is that of both.
  std::vector<double> own(stats.const_data_ptr<double>(),
                          stats.const_data_ptr<double>() + n * kStats);
  for (int64_t t = 0; !local && t < n; ++t) {
    own[t * kStats + 2] += stats.const_data_ptr<double>()[(t ^ 1) * kStats + 2];
  }
  with_real_type(image, "input", [&](auto zero) {
    find_norms<decltype(zero)>(grid, ids, plan, tile, window, stride, count, own.data(), image, by,
                               norms, means, counts.mutable_data_ptr<int64_t>());
  });
  return {norms, counts, means};
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("tile_norms", TORCH_BOX(&torchcorr::tile_norms));
}
