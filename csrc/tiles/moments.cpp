// The step `moments`: the norms that numerators are multiplied by, and which windows have so small
// a deviation that the product is doubtful.

#include <atomic>
#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

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

// Rows of tiles as sums over some channels of centred elements and of their squares. Channels that
// have a mean each are read one by one.
template <class T>
struct TileSource {
  const TileBatch& batch;
  const T* input;
  const TileStats* stats;
  const double* levels;  // of the channels of each tile, or none
  int64_t begin, end;    // channels

  void load(const Stretch& s, int64_t n, Rows to) const {
    const Tiling& t = batch.tiling;
    const TilePlace place(t, batch.tiles[s.lead]);
    std::fill_n(to.plane(0), n, 0.0);
    std::fill_n(to.plane(1), n, 0.0);
    TileStats of_tile = stats[s.lead];
    for (int64_t c = begin; c < end; ++c) {
      const TileRow<T> row(t, place, input, c, s.z, s.y);
      const int64_t first = std::max(row.begin, s.x), last = std::min(row.end, s.x + s.valid);
      if (last <= first) continue;
      if (levels) of_tile.level = levels[s.lead * t.channels + c];
      squares(last - first, row.data + first, of_tile, to.plane(0) + first - s.x,
              to.plane(1) + first - s.x);
    }
  }
};

// The sums of a row of windows of `count` elements, and the energies of other channels.
struct SumRow {
  const double *sum, *square;
  double count;
  bool zero_mean;
};
struct EnergyRow {
  double *total, *energy;
};

// Adds to energies what sums over some channels give, `share` being that of these channels among all;
// writes means.
template <class T>
TORCHCORR_INLINE void energy_row(int64_t n, const SumRow& row, double share, const EnergyRow& to,
                                 T* means) {
  const double each = 1 / row.count, of_mean = row.zero_mean ? each : 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const double mean = row.sum[i] * of_mean, total = row.square[i] * each;
    to.total[i] += total * share;
    to.energy[i] += (total - mean * mean) * share;
    if (means) means[i] = static_cast<T>(mean);
  }
}

template <class T>
TORCHCORR_INLINE void norm_row(int64_t n, const EnergyRow& row, double count, const MomentRule& by,
                               const MomentMaps<T>& to, WindowCounts& counts) {
  // Local copies: the compiler must assume that storing a byte may change any of the originals.
  const auto [totals, energies] = row;
  T* norms = to.norms;
  uint8_t* states = to.states;
  const double eps = by.eps, least_of_window = by.least_of_window;
  const double least_of_tile = by.least_of_tile, least_variance = by.least_variance;
  int64_t doubtful = 0, unknown = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double total = totals[i], energy = energies[i], of_window = least_of_window * total;
    const double least = of_window > least_of_tile ? of_window : least_of_tile;
    const int lost = energy <= least_variance * total, low = lost | (energy + eps < least);
    const double norm = 1 / (count * std::sqrt(energy + eps));
    norms[i] = static_cast<T>(lost ? 0.0 : norm);
    states[i] = energy == energy ? state_of(low, lost) : static_cast<uint8_t>(kNonFinite);
    doubtful += low;
    unknown += lost;
  }
  counts.doubtful += doubtful;
  counts.unknown += unknown;
}

#define TORCHCORR_NORMS(T)                                                                      \
  TORCHCORR_CLONES void add_energies(int64_t n, const SumRow& row, double share,                \
                                     const EnergyRow& to, T* means) {                           \
    energy_row(n, row, share, to, means);                                                       \
  }                                                                                             \
  TORCHCORR_CLONES void norms_of(int64_t n, const EnergyRow& row, double count,                 \
                                 const MomentRule& by, const MomentMaps<T>& to,                 \
                                 WindowCounts& counts) {                                        \
    norm_row(n, row, count, by, to, counts);                                                    \
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

// Takes rows of sums. Energies of channels that have a mean each are added up in `energies`, which
// become norms later; others become norms at once.
template <class T>
struct NormSink {
  static constexpr int first_plane = 0;

  const WindowLayout& layout;
  const TileBatch& batch;
  const TileStats* stats;
  MomentRule rule;
  MomentMaps<T> maps;
  EnergyRow energies;
  int64_t channel;
  SharedCounts* counts;

  // Windows that leave the input are not needed, and do not count.
  void store(const Stretch& s, Rows r) const {
    const Tiling& t = batch.tiling;
    const TilePlace place(t, batch.tiles[s.lead]);
    const int64_t n = std::min(s.valid, valid_positions(t, place, 2) - s.x);
    if (n <= 0 || s.z >= valid_positions(t, place, 0) || s.y >= valid_positions(t, place, 1))
      return;
    const int64_t at = map_offset(layout, s);
    T* means = maps.means ? maps.means + channel * maps.pitch + at : nullptr;
    const double share = rule.own_means ? 1 / static_cast<double>(t.channels) : 1.0;
    const SumRow sums{r.plane(0), r.plane(1), static_cast<double>(t.window_size()) * share,
                      rule.zero_mean};
    if (rule.own_means) {
      add_energies(n, sums, share, EnergyRow{energies.total + at, energies.energy + at}, means);
      return;
    }
    std::vector<double> of_row(2 * n);
    const EnergyRow row{of_row.data(), of_row.data() + n};
    add_energies(n, sums, share, row, means);
    write_norms(s.lead, n, row, at);
  }

  void write_norms(int64_t lead, int64_t n, const EnergyRow& row, int64_t at) const {
    // In the units of the scaled tile.
    MomentRule by = rule;
    by.eps = scaled_eps(by.eps, stats[lead].scale);
    by.least_of_tile *= stats[lead].mean_square;
    WindowCounts counted;
    const double count = static_cast<double>(batch.tiling.window_size());
    norms_of(n, row, count, by, maps.at(at), counted);
    counts[lead].add(counted);
  }
};

// One call of the step.
template <class T>
class TileMomentsStep {
 public:
  TileMomentsStep(const TileBatch& batch, const Tensor& image, const TileStats* stats,
                  const double* levels, const MomentRule& rule, const MomentMaps<T>& maps)
      : batch_(batch), t_(batch.tiling), image_(image), stats_(stats), levels_(levels),
        rule_(rule), maps_(maps), counts_(new SharedCounts[batch.count()]) {}

  // Writes the maps, and how many windows of each tile are doubtful.
  void run(int64_t* doubtful) {
    bool finite = true;
    for (int64_t i = 0; i < batch_.count(); ++i) finite = finite && stats_[i].non_finite == 0;
    if (!finite || !run_sums()) march();
    parallel_for(0, batch_.count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (counts_[i].unknown > 0) counts_[i].doubtful -= mark_flat(i);
        doubtful[i] = counts_[i].doubtful;
      }
    });
  }

 private:
  int64_t mark_flat(int64_t i) const {
    const T* image = image_.const_data_ptr<T>();
    uint8_t* states = maps_.states + i * t_.positions();
    if (rule_.own_means) {
      return FlatChannels<T>(t_, rule_.zero_mean).mark(batch_.tiles[i], image, states);
    }
    return FlatWindows<T>(t_, rule_.zero_mean).mark(batch_.tiles[i], image, states);
  }

  // By running sums; returns false if there are none for these tiles.
  bool run_sums() {
    if constexpr (std::is_same_v<T, float>) {
      const running::MomentsCall call(t_, image_.const_data_ptr<T>(), t_.layout.reach, rule_, 8);
      if (!has_columns(call)) return false;
      const int64_t positions = t_.positions(), units = call.strips.units();
      const int64_t grain = std::max<int64_t>(1, kUnitElements * units / positions);
      parallel_for(0, batch_.count() * units, grain, [&](int64_t begin, int64_t end) {
        for (int64_t u = begin; u < end; ++u) {
          const int64_t i = u / units;
          WindowCounts counted;
          running::moments_of_unit(call, batch_.tiles[i], u % units, stats_[i],
                                   levels_ ? levels_ + i * t_.channels : nullptr,
                                   maps_.at(i * positions), counted);
          counts_[i].add(counted);
        }
      });
      return true;
    }
    return false;
  }

  void march() {
    if (!rule_.own_means) return march(0, t_.channels, {nullptr, nullptr});
    const int64_t all = batch_.count() * t_.positions(), n = t_.outputs[2];
    std::vector<double> maps(2 * all);
    const EnergyRow energies{maps.data(), maps.data() + all};
    for (int64_t c = 0; c < t_.channels; ++c) march(c, c + 1, energies);
    const WindowLayout none = layout_of(1);
    const NormSink<T> sink = sink_of(none, 0, energies);
    for (int64_t u = 0; u < all / n; ++u) {
      const int64_t lead = u * n / t_.positions();
      const TilePlace place(t_, batch_.tiles[lead]);
      const Axes3 at = unravel(u * n % t_.positions(), t_.outputs);
      const int64_t valid = valid_positions(t_, place, 2);
      if (at[0] >= valid_positions(t_, place, 0) || at[1] >= valid_positions(t_, place, 1)) continue;
      sink.write_norms(lead, valid, {energies.total + u * n, energies.energy + u * n}, u * n);
    }
  }

  WindowLayout layout_of(int64_t channels) const {
    const int64_t ndim = t_.ndim;
    return WindowLayout(batch_.count(), channels, sizes_of(t_.extent, ndim),
                        sizes_of(t_.window, ndim), sizes_of(t_.stride, ndim), Sums<2>{});
  }

  NormSink<T> sink_of(const WindowLayout& layout, int64_t channel,
                      const EnergyRow& energies) const {
    return {layout, batch_, stats_, rule_, maps_, energies, channel, counts_.get()};
  }

  // Channels [first, last).
  void march(int64_t first, int64_t last, const EnergyRow& energies) const {
    const WindowLayout layout = layout_of(last - first);
    const TileSource<T> source{batch_, image_.const_data_ptr<T>(), stats_, levels_, first, last};
    const NormSink<T> sink = sink_of(layout, first, energies);
    if (t_.ndim > 1) return run_windows<Sums<2>>(layout, source, sink);
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
  const double* levels_;
  MomentRule rule_;
  MomentMaps<T> maps_;
  std::unique_ptr<SharedCounts[]> counts_;
};

MomentRule rule_of_moments(const ScoreRule& rule) {
  const double least = rule.least_energy;
  MomentRule by{rule.zero_mean, rule.eps, rule.of_window ? least : 0.0,
                rule.of_window ? 0.0 : least, rule.least_variance};
  by.own_means = rule.own_means;
  return by;
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
  const TileBatch batch(numbers, input);
  const ScoreRule rule(rule_numbers);
  const int64_t n = batch.count();
  Sizes shape{n};
  for (int64_t m : sizes_of(batch.tiling.outputs, batch.tiling.ndim)) shape.push_back(m);
  Tensor norms = scratch.take(Scratch::kNorms, shape, input.scalar_type());
  Tensor states = scratch.take_zeros<uint8_t>(Scratch::kStates, shape, ScalarType::Byte);
  Tensor doubtful = scratch.take(Scratch::kDoubtful, {n}, ScalarType::Long);
  const int64_t groups = rule.own_means ? batch.tiling.channels : 1;
  shape[0] = with_means ? n * groups : 0;
  Tensor means = scratch.take(Scratch::kMeans, shape, input.scalar_type());
  if (norms.numel() == 0) return {norms, states, means, doubtful};
  std::vector<TileStats> rows(rows_of_stats(stats), rows_of_stats(stats) + n);
  // A pair is one transform: its noise is that of both.
  for (int64_t t = 0; !rule.of_window && t < n; ++t) {
    rows[t].mean_square += rows_of_stats(stats)[t ^ 1].mean_square;
  }
  with_real_type(input, "input", [&](auto zero) {
    using T = decltype(zero);
    const MomentMaps<T> maps{norms.mutable_data_ptr<T>(), states.mutable_data_ptr<uint8_t>(),
                             with_means ? means.mutable_data_ptr<T>() : nullptr, norms.numel()};
    TileMomentsStep<T>(batch, input, rows.data(), levels_of_stats(stats, n, rule),
                       rule_of_moments(rule), maps)
        .run(doubtful.mutable_data_ptr<int64_t>());
  });
  return {norms, states, means, doubtful};
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("tile_moments", TORCH_BOX(&torchcorr::tile_moments));
}
