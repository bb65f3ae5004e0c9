// Planes, rows and columns enter and leave; see running_moments.h.

#include "windows/running_moments.h"

#include <cmath>
#include <cstring>

namespace torchcorr::running {
namespace {

// Rounding that running sums accumulate, relative to their largest value.
constexpr double kGathered = 16.0 / (1LL << 53);
// Windows of more energy, in units of the scaled tile, are unknown: float32 ends soon.
constexpr float kLargest = 1e37f;

// Most numbers of columns that a unit keeps, so that they stay in the second cache.
constexpr int64_t kMostColumns = 1 << 18;

// Sums of elements about a level, and of their squares.
template <int BYTES>
TORCHCORR_INLINE void add_values(int64_t n, const float* x, double level, const Columns& to) {
  for (int64_t i = 0; i < n; i += lanes_of<double, BYTES>) {
    const Wide<BYTES> d = widened<BYTES>(x + i) - level;
    put(load<BYTES>(to.first + i) + d, to.first + i);
    put(load<BYTES>(to.second + i) + d * d, to.second + i);
  }
}

template <int BYTES>
TORCHCORR_INLINE void exchange_values(int64_t n, const float* enter, const float* leave,
                                      double level, const Columns& to) {
  const double twice = 2 * level;
  for (int64_t i = 0; i < n; i += lanes_of<double, BYTES>) {
    const Wide<BYTES> x = widened<BYTES>(enter + i), old = widened<BYTES>(leave + i), step = x - old;
    put(load<BYTES>(to.first + i) + step, to.first + i);
    put(load<BYTES>(to.second + i) + step * (x + old - twice), to.second + i);
  }
}

// Rows are computed in whole blocks of this many windows, so that no loop ends with single ones.
constexpr int64_t kBlock = 64;

// A row of windows: the loops over it take a few quantities each, which compilers turn into vectors.
struct WindowRow {
  std::vector<double> squares;  // of sums of channels
  std::vector<float> totals, energies, softened, means, norms;
  std::vector<int32_t> lows, losts;  // 1 where doubtful, and where unknown
  std::vector<uint8_t> states;

  explicit WindowRow(int64_t n)
      : squares(n), totals(n), energies(n), softened(n), means(n), norms(n), lows(n), losts(n),
        states(n) {}
};

// Calls f(window, first of its columns) for n windows, or for whole blocks of them.
template <class F>
TORCHCORR_INLINE void for_windows(int64_t n, int64_t step, const F& f) {
  if (step == 1) {
#pragma GCC ivdep
    for (int64_t i = 0; i < ceil_div(n, kBlock) * kBlock; ++i) f(i, i);
  } else {
    for (int64_t i = 0; i < n; ++i) f(i, i * step);
  }
}

// Adds the squares of the sums of one channel's windows, from totals of its columns; writes their
// means times `scale` if asked.
TORCHCORR_INLINE void add_squares(int64_t n, const Tiling& t, const double* totals, bool is_first,
                                  double scale, float* means, WindowRow& row) {
  const int64_t window = t.window[2];
  const double keep = is_first ? 0.0 : 1.0;
  double* squares = row.squares.data();
  for_windows(n, t.stride[2], [=](int64_t i, int64_t at) TORCHCORR_FLAT {
    const double sum = totals[at + window] - totals[at];
    squares[i] = squares[i] * keep + sum * sum;
  });
  if (!means) return;
  const double by = scale / static_cast<double>(product(t.window));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = i * t.stride[2];
    means[i] = static_cast<float>((totals[at + window] - totals[at]) * by);
  }
}

// Mean squares, energies and means of n windows from the totals of columns before the first window and
// at its end, in units of elements that are multiplied by `scale`. With `OWN`, from the squares of the
// sums of channels.
template <bool OWN>
TORCHCORR_INLINE void energies_of(int64_t n, const Tiling& t, const Columns& behind,
                                  const Columns& ahead, const MomentRule& rule, double scale,
                                  WindowRow& row) {
  const double each = 1 / static_cast<double>(t.window_size()), share = each * scale * scale;
  const double by = rule.zero_mean ? each * scale : 0.0;
  const double of_squares = share / static_cast<double>(product(t.window));
  const double factor = rule.deviation == 0 ? 1.0 : rule.deviation, eps = rule.eps;
  const double *first = behind.first, *second = behind.second, *squares = row.squares.data();
  const double *next_first = ahead.first, *next_second = ahead.second;
  float *totals = row.totals.data(), *energies = row.energies.data(), *means = row.means.data();
  float* softened = row.softened.data();
  for_windows(n, t.stride[2], [=](int64_t i, int64_t at) TORCHCORR_FLAT {
    const double total = (next_second[at] - second[at]) * share;
    double energy;
    if constexpr (OWN) {
      energy = total - squares[i] * of_squares;
    } else {
      const double mean = (next_first[at] - first[at]) * by;
      energy = total - mean * mean;
      means[i] = static_cast<float>(mean);
    }
    totals[i] = static_cast<float>(total);
    energies[i] = static_cast<float>(energy);
    softened[i] = static_cast<float>(energy * factor + eps);
  });
}

// 1 / sqrt(x) of a positive number by Newton's iteration, within two roundings, from half of the
// exponent and a line through the fraction. A root and a quotient take three times as long.
TORCHCORR_INLINE float inverse_root(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = 0x5F3759DF - (bits >> 1);
  float y;
  std::memcpy(&y, &bits, sizeof y);
  const float half = 0.5f * x;
  for (int i = 0; i < 2; ++i) y = y * (1.5f - half * y * y);
  return y + y * (0.5f - half * y * y);
}

// Norms, or deviations of windows of an input that was multiplied by `scale`. Energies below
// `drift` are unknown.
template <bool DEVIATIONS>
TORCHCORR_INLINE void norms_of(int64_t n, const MomentRule& by, double count, double drift,
                               double scale, WindowRow& row) {
  const float share = static_cast<float>(1 / (DEVIATIONS ? scale : count));
  const float least_of_window = static_cast<float>(by.least_of_window);
  const float least_of_tile = static_cast<float>(by.least_of_tile);
  const float least_variance = static_cast<float>(by.least_variance);
  const float least = static_cast<float>(drift);
  const float *totals = row.totals.data(), *energies = row.energies.data();
  const float* softened = row.softened.data();
  float* norms = row.norms.data();
  int32_t *lows = row.lows.data(), *losts = row.losts.data();
#pragma GCC ivdep
  for (int64_t i = 0; i < ceil_div(n, kBlock) * kBlock; ++i) {
    const float energy = energies[i], total = totals[i];
    const bool lost = (energy <= least_variance * total) | (energy < least) | (energy > kLargest);
    if constexpr (DEVIATIONS) {
      const float root = std::sqrt(softened[i]) * share;
      norms[i] = lost ? 0.0f : root;
    } else {
      const float of_window = least_of_window * total, soft = softened[i];
      const float needed = of_window > least_of_tile ? of_window : least_of_tile;
      const float norm = share * inverse_root(soft < kLargest ? soft : kLargest);
      norms[i] = lost ? 0.0f : norm;
      lows[i] = lost | (soft < needed);
    }
    losts[i] = lost;
  }
}

// The windows of a row whose energies are known: deviations, or norms, states and means.
template <bool DEVIATIONS>
TORCHCORR_INLINE void moments_of_row(int64_t n, const Tiling& t, const MomentRule& by, double drift,
                                     double scale, const MomentMaps<float>& to,
                                     WindowCounts& counts, WindowRow& row) {
  norms_of<DEVIATIONS>(n, by, static_cast<double>(t.window_size()), drift, scale, row);
  const int32_t *lows = row.lows.data(), *losts = row.losts.data();
  std::copy_n(row.norms.data(), n, to.norms);
  int32_t unknown = 0, doubtful = 0;
  for (int64_t i = 0; i < n; ++i) unknown += losts[i];
  if constexpr (!DEVIATIONS) {
    for (int64_t i = 0; i < n; ++i) doubtful += lows[i];
    uint8_t* states = row.states.data();
#pragma GCC ivdep
    for (int64_t i = 0; i < ceil_div(n, kBlock) * kBlock; ++i) {
      states[i] = state_of(lows[i], losts[i]);
    }
    std::copy_n(states, n, to.states);
    if (to.means && !by.own_means) std::copy_n(row.means.data(), n, to.means);
  }
  counts.doubtful += DEVIATIONS ? unknown : doubtful;
  counts.unknown += unknown;
}

}  // namespace

const float* Border::row(const float* channel, int64_t z, int64_t y, int64_t x, int64_t n,
                         float* copy) const {
  z -= before[0], y -= before[1], x -= before[2];
  const bool inside = z >= 0 && z < size[0] && y >= 0 && y < size[1];
  const int64_t begin = inside ? std::clamp<int64_t>(-x, 0, n) : n;
  const int64_t end = inside ? std::clamp<int64_t>(size[2] - x, begin, n) : n;
  const float* first = begin < end ? channel + (z * size[1] + y) * size[2] + x + begin : nullptr;
  if (end - begin == n) return first;
  std::fill_n(copy, begin, value);
  if (begin < end) std::copy_n(first, end - begin, copy + begin);
  std::fill_n(copy + end, n - end, value);
  return copy;
}

namespace {

// The sums of columns: squares over all channels, and elements of all or of each. Slabs have them for
// each of `rows` rows.
struct UnitColumns {
  int64_t padded, rows;
  std::vector<Columns> of_channel;  // share the second quantity

  UnitColumns(ColumnsScratch& scratch, int64_t n, int64_t rows_of_unit, int64_t channels)
      : padded(n), rows(rows_of_unit), of_channel{scratch.take(n * rows_of_unit)} {
    for (int64_t c = 1; c < channels; ++c) {
      of_channel.push_back({scratch.take(n * rows_of_unit).first, of_channel[0].second});
    }
  }

  Columns at(int64_t channel, int64_t row) const {
    return of_channel[channel].at(row * padded);
  }
  void clear() const {
    for (const Columns& of : of_channel) std::fill_n(of.first, padded * rows, 0.0);
    std::fill_n(of_channel[0].second, padded * rows, 0.0);
  }
};

// Row `r` of a slab enters; the row `old` leaves.
template <int BYTES>
TORCHCORR_INLINE void add_slab(const UnitColumns& slab, int64_t r, const UnitColumns& to) {
  add_columns<BYTES>(slab.padded, slab.at(0, r), to.at(0, 0));
  for (size_t c = 1; c < slab.of_channel.size(); ++c) {
    add_column<BYTES>(slab.padded, slab.at(c, r).first, to.at(c, 0).first);
  }
}
template <int BYTES>
TORCHCORR_INLINE void exchange_slab(const UnitColumns& slab, int64_t r, int64_t old,
                                    const UnitColumns& to) {
  exchange_columns<BYTES>(slab.padded, slab.at(0, r), slab.at(0, old), to.at(0, 0));
  for (size_t c = 1; c < slab.of_channel.size(); ++c) {
    exchange_column<BYTES>(slab.padded, slab.at(c, r).first, slab.at(c, old).first, to.at(c, 0).first);
  }
}

// Rows that a unit's windows reach.
int64_t tall_of(const Tiling& t, int64_t rows) {
  return (rows - 1) * t.stride[1] + t.window[1];
}

}  // namespace

bool has_columns(const MomentsCall& call) {
  const Tiling& t = call.tiling;
  const int64_t rows = t.window[0] > 1 ? tall_of(t, call.strips.size[1]) : 1;
  const int64_t width = (call.strips.size[2] - 1) * t.stride[2] + t.window[2];
  return !call.rule.own_means || (t.channels + 1) * rows * width <= kMostColumns;
}

template <int BYTES>
TORCHCORR_INLINE void moments_of_unit(const MomentsCall& call, int64_t tile, int64_t unit,
                                      const TileStats& stats, const double* levels,
                                      const MomentMaps<float>& to, WindowCounts& counts,
                                      std::vector<int64_t>* unknown) {
  const Tiling& t = call.tiling;
  const TilePlace place(t, tile);
  // In the units of the scaled tile.
  MomentRule rule = call.rule;
  rule.eps = scaled_eps(rule.eps, stats.scale);
  rule.least_of_tile *= stats.mean_square;
  const Axes3 from = call.strips.first(unit), size = call.strips.size;
  const auto end = [&](int axis) {
    return std::min(from[axis] + size[axis], valid_positions(t, place, axis));
  };
  const int64_t z0 = from[0], z1 = end(0), y0 = from[1], y1 = end(1), n = end(2) - from[2];
  if (z0 >= z1 || y0 >= y1 || n <= 0) return;
  const int64_t left = from[2] * t.stride[2], last = (n - 1) * t.stride[2] + t.window[2];
  const int64_t padded = whole(last), groups = rule.own_means ? t.channels : 1;
  const int64_t top = y0 * t.stride[1], tall = tall_of(t, y1 - y0);
  const bool deep = t.window[0] > 1;
  const bool is_long = t.window[0] * t.window[1] == 1 && z1 - z0 == 1 && y1 - y0 == 1 &&
                       groups == 1 && padded >= kLongLine && t.stride[2] <= kPiece / kDoubles;
  double gathered = 0;
  ColumnsScratch scratch;
  const int64_t kept = is_long ? kPiece : padded;
  const UnitColumns slab(scratch, padded, deep ? tall : 0, groups);
  const UnitColumns columns(scratch, kept, 1, groups);
  const Columns totals = scratch.take(kept + 1 + kBlock, 1);
  WindowRow windows(ceil_div(std::min(n, kept), kBlock) * kBlock);
  // Windows that leave the input do not count, so numbers that follow a row may be read past its
  // end, except at the end of the input's memory, where the row is copied.
  std::vector<float> copies[2] = {std::vector<float>(kept), std::vector<float>(kept)};
  const auto part_of_row = [&](int64_t c, int64_t z, int64_t y, int64_t x, int64_t some,
                               std::vector<float>& copy) TORCHCORR_FLAT {
    if (call.border) {
      const int64_t channel = place.item * t.channels + c;
      return call.border->row(call.input + channel * product(call.border->size), z, y, left + x,
                              some, copy.data());
    }
    const TileRow<float> row(t, place, call.input, c, z, y);
    const float* first = row.data + left + x;
    if (call.input_end - first >= some) return first;
    std::copy_n(first, std::max<int64_t>(0, call.input_end - first), copy.data());
    return static_cast<const float*>(copy.data());
  };
  const auto row_of = [&](int64_t c, int64_t z, int64_t y, std::vector<float>& copy) TORCHCORR_FLAT {
    return part_of_row(c, z, y, 0, padded, copy);
  };
  const auto level_of = [&](int64_t c) TORCHCORR_FLAT { return levels ? levels[c] : stats.level; };
  // To row `r` of columns.
  const auto add_row = [&](int64_t z, int64_t y, const UnitColumns& sums, int64_t r) TORCHCORR_FLAT {
    for (int64_t c = 0; c < t.channels; ++c) {
      add_values<BYTES>(padded, row_of(c, z, y, copies[0]), level_of(c), sums.at(c % groups, r));
    }
  };
  const auto exchange_row = [&](int64_t z, int64_t y, int64_t old_z, int64_t old_y,
                                const UnitColumns& sums, int64_t r) TORCHCORR_FLAT {
    const int64_t next = t.stride[1] * t.layout.strides.row;
    for (int64_t c = 0; c < t.channels; ++c) {
      const float *enter = row_of(c, z, y, copies[0]), *leave = row_of(c, old_z, old_y, copies[1]);
      prefetch(padded, enter + next);
      prefetch(padded, leave + next);
      exchange_values<BYTES>(padded, enter, leave, level_of(c), sums.at(c % groups, r));
    }
  };
  // Writes what is known of windows whose energies are computed, from the `begin`th of a row on; `total`
  // is the sum of all squares so far.
  const auto emit = [&](int64_t z, int64_t y, int64_t begin, int64_t some,
                        double total) TORCHCORR_FLAT {
    const int64_t offset = (z * t.outputs[1] + y) * t.outputs[2] + from[2] + begin;
    const int64_t before = counts.unknown;
    gathered = std::max(gathered, total * stats.scale * stats.scale);
    const double drift = kGathered / rule.error * gathered / static_cast<double>(t.window_size());
    if (rule.deviation == 0) {
      moments_of_row<false>(some, t, rule, drift, 1, to.at(offset), counts, windows);
      return;
    }
    moments_of_row<true>(some, t, rule, drift, stats.scale, to.at(offset), counts, windows);
    if (!unknown || counts.unknown == before) return;
    for (int64_t i = 0; i < some; ++i) {
      if (windows.losts[i]) unknown->push_back(offset + i);
    }
  };
  if (is_long) {
    // Totals behind and ahead of windows, the same numbers by the same additions; those ahead begin with
    // a whole vector.
    const int64_t first = t.window[2] / kDoubles * kDoubles, more = t.window[2] - first;
    const Columns behind = totals, ahead = scratch.take(kPiece + kDoubles + 1 + kBlock, 1);
    RunningTotals<BYTES> of_behind, of_ahead;
    const auto add_up = [&](RunningTotals<BYTES>& sums, int64_t x, int64_t some,
                            const Columns& out) TORCHCORR_FLAT {
      columns.clear();
      for (int64_t c = 0; c < t.channels; ++c) {
        add_values<BYTES>(some, part_of_row(c, z0, y0, x, some, copies[0]), level_of(c),
                          columns.at(0, 0));
      }
      sums.next(some, columns.at(0, 0), out.at(1));
    };
    const auto begin_with = [](const Columns& of, int64_t at, int64_t some) {
      std::copy_n(of.first + at, some, of.first);
      std::copy_n(of.second + at, some, of.second);
    };
    for (int64_t x = 0; x < first; x += kPiece) {
      const int64_t some = std::min(kPiece, first - x);
      add_up(of_ahead, x, some, ahead);
      begin_with(ahead, some, 1);
    }
    add_up(of_ahead, first, kDoubles, ahead);
    const int64_t step = t.stride[2], at_once = kPiece / step / kDoubles * kDoubles;
    for (int64_t i = 0; i < n; i += at_once) {
      const int64_t some = std::min(at_once, n - i), elements = at_once * step;
      add_up(of_behind, i * step, elements, behind);
      add_up(of_ahead, first + kDoubles + i * step, elements, ahead.at(kDoubles));
      energies_of<false>(some, t, behind, ahead.at(more), rule, stats.scale, windows);
      const double total = ahead.second[more + (some - 1) * step];
      emit(z0, y0, i, some, total);
      begin_with(behind, elements, 1);
      begin_with(ahead, elements, kDoubles + 1);
      counts.finite = counts.finite && std::isfinite(total);
    }
    return;
  }
  for (int64_t z = z0; z < z1; ++z) {
    const int64_t depth = z * t.stride[0];
    if (deep) {
      for (int64_t y = 0; y < tall; ++y) {
        if (z == z0) {
          for (int64_t k = 0; k < t.window[0]; ++k) add_row(depth + k, top + y, slab, y);
        } else {
          for (int64_t k = depth - t.stride[0]; k < depth; ++k) {
            exchange_row(k + t.window[0], top + y, k, top + y, slab, y);
          }
        }
      }
    }
    columns.clear();
    for (int64_t y = y0; y < y1; ++y) {
      const int64_t high = y * t.stride[1];
      if (y == y0) {
        for (int64_t k = high; k < high + t.window[1]; ++k) {
          if (deep) {
            add_slab<BYTES>(slab, k - top, columns);
          } else {
            add_row(depth, k, columns, 0);
          }
        }
      } else {
        for (int64_t k = high - t.stride[1]; k < high; ++k) {
          if (deep) {
            exchange_slab<BYTES>(slab, k + t.window[1] - top, k - top, columns);
          } else {
            exchange_row(depth, k + t.window[1], depth, k, columns, 0);
          }
        }
      }
      if (rule.own_means) {
        const int64_t row = (z * t.outputs[1] + y) * t.outputs[2] + from[2];
        for (int64_t c = 0; c < groups; ++c) {
          accumulate<BYTES>(padded, columns.at(c, 0).first, totals.first);
          float* means = to.means ? to.at(row).means + c * to.pitch : nullptr;
          add_squares(n, t, totals.first, c == 0, stats.scale, means, windows);
        }
        accumulate<BYTES>(padded, columns.at(0, 0).second, totals.second);
        energies_of<true>(n, t, totals, totals.at(t.window[2]), rule, stats.scale, windows);
      } else {
        accumulate<BYTES>(padded, columns.at(0, 0), totals);
        energies_of<false>(n, t, totals, totals.at(t.window[2]), rule, stats.scale, windows);
      }
      emit(z, y, 0, n, totals.second[last]);
    }
    // What is not finite stays in a sum.
    counts.finite = counts.finite && std::isfinite(totals.second[last]);
  }
}

TORCHCORR_FOR_CPUS(void, moments_of_unit,
                   (const MomentsCall& call, int64_t tile, int64_t unit, const TileStats& stats,
                    const double* levels, const MomentMaps<float>& to, WindowCounts& counts,
                    std::vector<int64_t>* unknown),
                   (call, tile, unit, stats, levels, to, counts, unknown))

}  // namespace torchcorr::running
