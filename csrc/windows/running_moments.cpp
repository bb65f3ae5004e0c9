// Planes, rows and columns enter and leave; see running_moments.h.

#include "windows/running_moments.h"

#include <cmath>
#include <type_traits>

namespace torchcorr::running {
namespace {

// Rounding that running sums accumulate, relative to their largest value.
constexpr double kGathered = 16.0 / (1LL << 53);

template <int SIGN>
TORCHCORR_INLINE void add_values(int64_t n, const float* x, const TileStats& stats,
                                 const Columns& to) {
  const double level = stats.level, scale = stats.scale;
  for (int64_t i = 0; i < n; i += kDoubles) {
    const Doubles d = (read(x + i) - level) * scale, square = d * d;
    const Doubles sum = read(to.first + i), total = read(to.second + i);
    write(to.first + i, SIGN > 0 ? sum + d : sum - d);
    write(to.second + i, SIGN > 0 ? total + square : total - square);
  }
}

// The windows of a row: deviations, or norms, states and means. Energies below `drift` are unknown.
template <bool DEVIATIONS>
TORCHCORR_INLINE void moments_of_row(int64_t n, const Tiling& t, const Columns& totals,
                                     const MomentRule& by, double drift,
                                     const MomentMaps<float>& to, WindowCounts& counts) {
  // Local copies: the compiler must assume that storing a byte may change any of the originals.
  const int64_t step = t.stride[2], window = t.window[2];
  const double count = static_cast<double>(t.window_size()), eps = by.eps;
  const double share = 1 / count, mean_share = by.zero_mean ? share : 0.0;
  const double least_of_window = by.least_of_window, least_of_tile = by.least_of_tile;
  const double least_variance = by.least_variance, deviation = by.deviation;
  const double *first = totals.first, *second = totals.second;
  const float whole_count = static_cast<float>(count);
  const auto [norms, states, means] = to;
  int doubtful = 0, unknown = 0;
  const auto one = [&, norms = norms, states = states, means = means](int64_t i,
                                                                      int64_t at) TORCHCORR_FLAT {
    const double mean = (first[at + window] - first[at]) * mean_share;
    const double total = (second[at + window] - second[at]) * share;
    const double energy = total - mean * mean, of_window = least_of_window * total;
    const double least = of_window > least_of_tile ? of_window : least_of_tile;
    const int lost = (energy <= least_variance * total) | (energy < drift);
    const int low = lost | (energy + eps < least);
    const float root =
        std::sqrt(static_cast<float>(DEVIATIONS ? energy * deviation + eps : energy + eps));
    const float norm = DEVIATIONS ? root : 1 / (whole_count * root);
    norms[i] = lost ? 0.0f : norm;
    if constexpr (!DEVIATIONS) {
      states[i] = state_of(low, lost);
      if (means) means[i] = static_cast<float>(mean);
    }
    doubtful += low;
    unknown += lost;
  };
  if (step == 1) {
    for (int64_t i = 0; i < n; ++i) one(i, i);
  } else {
    for (int64_t i = 0; i < n; ++i) one(i, i * step);
  }
  counts.doubtful += doubtful;
  counts.unknown += unknown;
}

}  // namespace

TORCHCORR_CLONES void moments_of_unit(const MomentsCall& call, int64_t tile, int64_t unit,
                                      const TileStats& stats, const MomentMaps<float>& to,
                                      WindowCounts& counts, std::vector<int64_t>* unknown) {
  const Tiling& t = call.tiling;
  const TilePlace place(t, tile);
  // In the units of the scaled tile.
  MomentRule rule = call.rule;
  rule.eps *= stats.scale * stats.scale;
  rule.least_of_tile *= stats.mean_square;
  const int64_t width = t.extent[2], padded = whole(width);
  const int64_t z0 = call.strips.first_plane(unit), y0 = call.strips.first_row(unit);
  const int64_t z1 = std::min(z0 + call.strips.planes, valid_positions(t, place, 0));
  const int64_t y1 = std::min(y0 + call.strips.rows, valid_positions(t, place, 1));
  const int64_t n = valid_positions(t, place, 2);
  if (z0 >= z1 || y0 >= y1 || n == 0) return;
  const int64_t top = y0 * t.stride[1], tall = (y1 - 1 - y0) * t.stride[1] + t.window[1];
  const bool deep = t.window[0] > 1;
  double gathered = 0;
  ColumnsScratch scratch;
  const Columns slab = deep ? scratch.take(tall * padded) : Columns{};
  const Columns columns = scratch.take(padded), totals = scratch.take(padded + 1, 1);
  std::vector<uint8_t> state_row;
  std::vector<float> norm_row;
  // Windows that leave the input do not count, so numbers that follow a row may be read past its
  // end, except at the end of the input's memory, where the row is copied.
  std::vector<float> line(padded);
  const auto row_of = [&](int64_t c, int64_t z, int64_t y) TORCHCORR_FLAT {
    const TileRow<float> row(t, place, call.input, c, z, y);
    const int64_t left = call.input_end - row.data;
    if (left >= padded) return row.data;
    std::copy_n(row.data, left, line.data());
    return static_cast<const float*>(line.data());
  };
  const auto move_plane = [&](int64_t z, auto sign) TORCHCORR_FLAT {
    for (int64_t c = 0; c < t.channels; ++c) {
      for (int64_t y = 0; y < tall; ++y) {
        add_values<decltype(sign)::value>(padded, row_of(c, z, top + y), stats,
                                          slab.at(y * padded));
      }
    }
  };
  constexpr std::integral_constant<int, 1> enter{};
  constexpr std::integral_constant<int, -1> leave{};
  for (int64_t z = z0; z < z1; ++z) {
    const int64_t depth = z * t.stride[0];
    if (deep) {
      if (z == z0) {
        for (int64_t k = 0; k < t.window[0]; ++k) move_plane(depth + k, enter);
      } else {
        for (int64_t k = depth - t.stride[0]; k < depth; ++k) {
          move_plane(k + t.window[0], enter);
          move_plane(k, leave);
        }
      }
    }
    const auto move_row = [&](int64_t y, auto sign) TORCHCORR_FLAT {
      if (deep) {
        add_columns<decltype(sign)::value>(padded, slab.at((y - top) * padded), columns);
        return;
      }
      for (int64_t c = 0; c < t.channels; ++c) {
        add_values<decltype(sign)::value>(padded, row_of(c, depth, y), stats, columns);
      }
    };
    std::fill_n(columns.first, padded, 0.0);
    std::fill_n(columns.second, padded, 0.0);
    for (int64_t y = y0; y < y1; ++y) {
      const int64_t high = y * t.stride[1];
      if (y == y0) {
        for (int64_t k = 0; k < t.window[1]; ++k) move_row(high + k, enter);
      } else {
        for (int64_t k = high - t.stride[1]; k < high; ++k) {
          move_row(k + t.window[1], enter);
          move_row(k, leave);
        }
      }
      accumulate(padded, columns.first, totals.first);
      accumulate(padded, columns.second, totals.second);
      gathered = std::max(gathered, totals.second[(n - 1) * t.stride[2] + t.window[2]]);
      const double drift = kGathered / rule.error * gathered / static_cast<double>(t.window_size());
      const int64_t offset = (z * t.outputs[1] + y) * t.outputs[2], before = counts.unknown;
      const MomentMaps<float> row = to.at(offset);
      if (rule.deviation == 0) {
        moments_of_row<false>(n, t, totals, rule, drift, row, counts);
        continue;
      }
      moments_of_row<true>(n, t, totals, rule, drift, row, counts);
      if (!unknown || counts.unknown == before) continue;
      // Rare: which of them are unknown.
      WindowCounts counted;
      state_row.resize(n);
      norm_row.resize(n);
      moments_of_row<false>(n, t, totals, rule, drift, {norm_row.data(), state_row.data(), nullptr},
                            counted);
      for (int64_t i = 0; i < n; ++i) {
        if (state_row[i] == kUnknown) unknown->push_back(offset + i);
      }
    }
  }
}

}  // namespace torchcorr::running
