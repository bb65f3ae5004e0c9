// The step `moments`: the norms that numerators are multiplied by, and which windows have so small
// a deviation that the product is doubtful.

#include <atomic>
#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include "common/exact_window.h"
#include "common/parallel.h"
#include "tiles/steps.h"
#include "windows/flat.h"
#include "windows/images.h"
#include "windows/line_sums.h"
#include "windows/running_moments.h"

namespace torchcorr {
namespace {

using running::MomentMaps;
using running::MomentRule;
using running::WindowCounts;

// Adds (x - level) * scale and its square; an Inf becomes a NaN, which stays in its windows.
template <class T>
TORCHCORR_INLINE void square_row(int64_t n, const T* x, const TileStats& stats, double* sum,
                                 double* square) {
  const double level = stats.level, scale = stats.scale;
  for (int64_t i = 0; i < n; ++i) {
    const double value = static_cast<double>(x[i]);
    const double d = (value - level) * scale + (value - value);
    sum[i] += d;
    square[i] += d * d;
  }
}

TORCHCORR_CLONES void squares(int64_t n, const float* x, const TileStats& stats, double* sum,
                              double* square) {
  square_row(n, x, stats, sum, square);
}
TORCHCORR_CLONES void squares(int64_t n, const double* x, const TileStats& stats, double* sum,
                              double* square) {
  square_row(n, x, stats, sum, square);
}

// Rows of tiles as sums over channels of centred elements and of their squares.
template <class T>
struct TileSource {
  const TileBatch& batch;
  const T* input;
  const TileStats* stats;

  void load(const Stretch& s, int64_t n, Rows to) const {
    const Tiling& t = batch.tiling;
    const TilePlace place(t, batch.tiles[s.lead]);
    std::fill_n(to.plane(0), n, 0.0);
    std::fill_n(to.plane(1), n, 0.0);
    for (int64_t c = 0; c < t.channels; ++c) {
      const TileRow<T> row(t, place, input, c, s.z, s.y);
      const int64_t begin = std::max(row.begin, s.x), end = std::min(row.end, s.x + s.valid);
      if (end <= begin) continue;
      squares(end - begin, row.data + begin, stats[s.lead], to.plane(0) + begin - s.x,
              to.plane(1) + begin - s.x);
    }
  }
};

// The sums of a row of windows of `count` elements.
struct SumRow {
  const double *sum, *square;
  double count;
};

template <class T>
TORCHCORR_INLINE void norm_row(int64_t n, const SumRow& row, const MomentRule& by,
                               const MomentMaps<T>& to, WindowCounts& counts) {
  // Local copies: the compiler must assume that storing a byte may change any of the originals.
  const auto [sum, square, count] = row;
  const auto [norms, states, means] = to;
  const double share = 1 / count, mean_share = by.zero_mean ? share : 0.0, eps = by.eps;
  const double least_of_window = by.least_of_window, least_of_tile = by.least_of_tile;
  const double least_variance = by.least_variance;
  int64_t doubtful = 0, unknown = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double mean = sum[i] * mean_share, total = square[i] * share;
    const double energy = total - mean * mean, of_window = least_of_window * total;
    const double least = of_window > least_of_tile ? of_window : least_of_tile;
    const int lost = energy <= least_variance * total, low = lost | (energy + eps < least);
    const double norm = 1 / (count * std::sqrt(energy + eps));
    norms[i] = static_cast<T>(lost ? 0.0 : norm);
    states[i] = energy == energy ? state_of(low, lost) : static_cast<uint8_t>(kNonFinite);
    if (means) means[i] = static_cast<T>(mean);
    doubtful += low;
    unknown += lost;
  }
  counts.doubtful += doubtful;
  counts.unknown += unknown;
}

#define TORCHCORR_NORMS(T)                                                           \
  TORCHCORR_CLONES void norms_of(int64_t n, const SumRow& row, const MomentRule& by, \
                                 const MomentMaps<T>& to, WindowCounts& counts) {    \
    norm_row(n, row, by, to, counts);                                                \
  }
TORCHCORR_NORMS(float)
TORCHCORR_NORMS(double)
#undef TORCHCORR_NORMS

// Counts of a tile that several threads add to.
struct SharedCounts {
  std::atomic<int64_t> doubtful{0}, unknown{0};

  void add(const WindowCounts& counts) {
    if (counts.doubtful > 0) doubtful += counts.doubtful;
    if (counts.unknown > 0) unknown += counts.unknown;
  }
};

template <class T>
struct NormSink {
  static constexpr int first_plane = 0;

  const WindowLayout& layout;
  const TileBatch& batch;
  const TileStats* stats;
  MomentRule rule;
  MomentMaps<T> maps;
  SharedCounts* counts;

  // Windows that leave the input are not needed, and do not count.
  void store(const Stretch& s, Rows r) const {
    const Tiling& t = batch.tiling;
    const TilePlace place(t, batch.tiles[s.lead]);
    const int64_t n = std::min(s.valid, valid_positions(t, place, 2) - s.x);
    if (n <= 0 || s.z >= valid_positions(t, place, 0) || s.y >= valid_positions(t, place, 1))
      return;
    // In the units of the scaled tile.
    const TileStats& of_tile = stats[s.lead];
    MomentRule by = rule;
    by.eps = scaled_eps(by.eps, of_tile.scale);
    by.least_of_tile *= of_tile.mean_square;
    WindowCounts counted;
    norms_of(n, {r.plane(0), r.plane(1), static_cast<double>(t.window_size())}, by,
             maps.at(map_offset(layout, s)), counted);
    counts[s.lead].add(counted);
  }
};

// One call of the step.
template <class T>
class TileMomentsStep {
 public:
  TileMomentsStep(const TileBatch& batch, const Tensor& image, const TileStats* stats,
                  const MomentRule& rule, const MomentMaps<T>& maps)
      : batch_(batch), t_(batch.tiling), image_(image), stats_(stats), rule_(rule), maps_(maps),
        counts_(new SharedCounts[batch.count()]) {}

  // Writes the maps, and how many windows of each tile are doubtful.
  void run(int64_t* doubtful) {
    bool finite = true;
    for (int64_t i = 0; i < batch_.count(); ++i) finite = finite && stats_[i].non_finite == 0;
    if constexpr (std::is_same_v<T, float>) {
      if (finite) run_sums();
    }
    if (!finite || !std::is_same_v<T, float>) march();
    parallel_for(0, batch_.count(), 1, [&](int64_t begin, int64_t end) {
      std::unique_ptr<FlatWindows<T>> flat;
      for (int64_t i = begin; i < end; ++i) {
        if (counts_[i].unknown > 0) {
          if (!flat) flat.reset(new FlatWindows<T>(t_, rule_.zero_mean));
          counts_[i].doubtful -= flat->mark(batch_.tiles[i], image_.const_data_ptr<T>(),
                                            maps_.states + i * t_.positions());
        }
        doubtful[i] = counts_[i].doubtful;
      }
    });
  }

 private:
  void run_sums() {
    const running::MomentsCall call(t_, image_.const_data_ptr<float>(), image_.numel(), rule_, 8);
    const int64_t positions = t_.positions(), units = call.strips.units();
    const int64_t grain = std::max<int64_t>(1, kUnitElements * units / positions);
    parallel_for(0, batch_.count() * units, grain, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        const int64_t i = u / units;
        WindowCounts counted;
        if constexpr (std::is_same_v<T, float>) {
          running::moments_of_unit(call, batch_.tiles[i], u % units, stats_[i],
                                   maps_.at(i * positions), counted);
        }
        counts_[i].add(counted);
      }
    });
  }

  void march() {
    const int64_t ndim = t_.ndim;
    const WindowLayout layout(batch_.count(), t_.channels, sizes_of(t_.extent, ndim),
                              sizes_of(t_.window, ndim), sizes_of(t_.stride, ndim), 2);
    const TileSource<T> source{batch_, image_.const_data_ptr<T>(), stats_};
    const NormSink<T> sink{layout, batch_, stats_, rule_, maps_, counts_.get()};
    if (ndim > 1) return run_windows<Sums<2>>(layout, source, sink);
    const int64_t grain = std::max<int64_t>(1, kUnitElements / layout.line_size);
    parallel_for(0, batch_.count(), grain, [&](int64_t begin, int64_t end) {
      march_lines(layout, source, sink, begin, end);
    });
  }

  // Tiles are lines. Those that are long fill no lanes of a march.
  void march_lines(const WindowLayout& layout, const TileSource<T>& source, const NormSink<T>& sink,
                   int64_t begin, int64_t end) const {
    WindowAxis axis = layout.axis[2];
    axis.size = layout.line_size, axis.count = layout.line_count;
    const int64_t pitch = axis.size + kDoubles;
    std::vector<double> elements(2 * pitch), sums(2 * axis.count), scratch(line_scratch(axis));
    const Rows from{elements.data(), pitch}, to{sums.data(), axis.count};
    for (int64_t i = begin; i < end; ++i) {
      source.load({i, 0, 0, 0, axis.size}, axis.size, from);
      for (int p = 0; p < 2; ++p) line_sums(axis, from.plane(p), scratch.data(), to.plane(p));
      sink.store({i, 0, 0, 0, axis.count}, to);
    }
  }

  const TileBatch& batch_;
  const Tiling& t_;
  const Tensor& image_;
  const TileStats* stats_;
  MomentRule rule_;
  MomentMaps<T> maps_;
  std::unique_ptr<SharedCounts[]> counts_;
};

MomentRule rule_of_moments(const ScoreRule& rule) {
  const double least = rule.least_energy;
  return {rule.zero_mean, rule.eps, rule.of_window ? least : 0.0, rule.of_window ? 0.0 : least,
          rule.least_variance};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> tile_moments(const Tensor& input, const Tensor& stats,
                                                        Sizes batch, Numbers rule,
                                                        bool with_means) {
  Scratch scratch;
  return tile_moments_into(scratch, input, stats, batch, rule, with_means);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> tile_moments_into(Scratch& scratch, const Tensor& input,
                                                             const Tensor& stats,
                                                             const Sizes& numbers,
                                                             const Numbers& rule_numbers,
                                                             bool with_means) {
  const Tensor image = packed(input);
  const TileBatch batch(numbers, image);
  const ScoreRule rule(rule_numbers);
  const int64_t n = batch.count();
  Sizes shape{n};
  for (int64_t m : sizes_of(batch.tiling.outputs, batch.tiling.ndim)) shape.push_back(m);
  Tensor norms = scratch.take(Scratch::kNorms, image, shape, image.scalar_type());
  Tensor states = scratch.take_zeros<uint8_t>(Scratch::kStates, image, shape, ScalarType::Byte);
  Tensor doubtful = scratch.take(Scratch::kDoubtful, image, {n}, ScalarType::Long);
  if (!with_means) shape[0] = 0;
  Tensor means = scratch.take(Scratch::kMeans, image, shape, image.scalar_type());
  if (norms.numel() == 0) return {norms, states, means, doubtful};
  std::vector<TileStats> rows(rows_of_stats(stats), rows_of_stats(stats) + n);
  // A pair is one transform: its noise is that of both.
  for (int64_t t = 0; !rule.of_window && t < n; ++t) {
    rows[t].mean_square += rows_of_stats(stats)[t ^ 1].mean_square;
  }
  with_real_type(image, "input", [&](auto zero) {
    using T = decltype(zero);
    const MomentMaps<T> maps{norms.mutable_data_ptr<T>(), states.mutable_data_ptr<uint8_t>(),
                             with_means ? means.mutable_data_ptr<T>() : nullptr};
    TileMomentsStep<T>(batch, image, rows.data(), rule_of_moments(rule), maps)
        .run(doubtful.mutable_data_ptr<int64_t>());
  });
  return {norms, states, means, doubtful};
}

namespace {

// --- norms that sums do not determine ---

// Computes the norms of unknown windows; no window stays doubtful.
template <class In, class T>
class RecomputeNorms {
 public:
  RecomputeNorms(const TileBatch& batch, const In* image, const TileStats* stats,
                 const ScoreRule& rule, const MomentMaps<T>& maps)
      : batch_(batch), image_(image), stats_(stats), maps_(maps),
        exact_{batch.tiling.channels, batch.tiling.window, RowStrides(batch.tiling.size),
               rule.zero_mean, rule.eps} {}

  void run() const {
    const Axes3& outputs = batch_.tiling.outputs;
    const int64_t rows = outputs[0] * outputs[1];
    parallel_for(0, batch_.count() * rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) row(u / rows, u % rows / outputs[1], u % outputs[1]);
    });
  }

 private:
  void row(int64_t tile, int64_t i, int64_t j) const {
    const Tiling& t = batch_.tiling;
    const TilePlace place(t, batch_.tiles[tile]);
    if (i >= valid_positions(t, place, 0) || j >= valid_positions(t, place, 1)) return;
    const int64_t n = valid_positions(t, place, 2);
    const MomentMaps<T> to =
        maps_.at(((tile * t.outputs[0] + i) * t.outputs[1] + j) * t.outputs[2]);
    int any = 0;
    for (int64_t v = 0; v < n; ++v) any |= is_doubtful(to.states[v]);
    if (any == 0) return;
    const TileStats& stats = stats_[tile];
    const In* first = image_ + place.item * t.channels * t.item_size() +
                      (place.start[0] + i * t.stride[0]) * exact_.strides.plane +
                      (place.start[1] + j * t.stride[1]) * exact_.strides.row + place.start[2];
    for (int64_t v = 0; v < n; ++v) {
      if (!is_doubtful(to.states[v])) continue;
      if (to.states[v] == kUnknown) {
        const auto [level, squares] =
            moments_of_window(first + v * t.stride[2], exact_, stats.scale);
        const double energy = squares / exact_.count + scaled_eps(exact_.eps, stats.scale);
        to.norms[v] = static_cast<T>(squares == 0 ? 0.0 : 1 / (exact_.count * std::sqrt(energy)));
        to.means[v] = static_cast<T>(exact_.zero_mean ? level - stats.level * stats.scale : 0.0);
        to.states[v] = squares == 0 ? kFlat : kGood;
      } else {
        to.states[v] = kGood;
      }
    }
  }

  const TileBatch& batch_;
  const In* image_;
  const TileStats* stats_;
  MomentMaps<T> maps_;
  ExactWindow exact_;
};

}  // namespace

void recompute_norms(const Tensors& tensors, const Tensor& input, const Sizes& numbers,
                     const Numbers& rule) {
  const Tensor image = packed(input);
  const TileBatch batch(numbers, image);
  const TileMoments moments(tensors);
  const Tensor& norms = moments.known_norms();
  with_real_type(image, "input", [&](auto zero) {
    using In = decltype(zero);
    with_real_type(norms, "norms", [&](auto norm_zero) {
      using T = decltype(norm_zero);
      const MomentMaps<T> maps{norms.mutable_data_ptr<T>(),
                               moments.states->mutable_data_ptr<uint8_t>(),
                               moments.means->mutable_data_ptr<T>()};
      RecomputeNorms<In, T>(batch, image.const_data_ptr<In>(), moments.rows(), ScoreRule(rule),
                            maps)
          .run();
    });
  });
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("tile_moments", TORCH_BOX(&torchcorr::tile_moments));
}
