// Norms of float32 scores by sums that slide: one element enters, one leaves. In float64 the
// rounding this gathers stays far below what float32 transforms show; a tile that is not finite,
// or float64, takes the merged sums of window_engine.h.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "windows/running_sums.h"
#include "common/tiling.h"

namespace torchcorr {

// A norm below zero marks a window whose numerator is not to be trusted in this precision; minus
// infinity one whose sums are not either.
constexpr double kUnknown = -std::numeric_limits<double>::infinity();

// Rounding that sliding gathers, beside the largest sum that was held.
constexpr double kGathered = 16.0 / (1LL << 53);

struct Limits {
  double eps, faint, exact;  // smallest energy: of the transform's power, of the window's own
  bool zero_mean, local;
  double error = 1e-6;    // what an energy may be off, beside itself
  double deviation = 0;   // if not 0: deviations, sqrt(deviation energy + eps), and no norms
};

namespace running {

template <int SIGN, class T>
TORCHCORR_INLINE void add_values(int64_t n, const T* x, double level, double scale,
                                 const Columns& to) {
  for (int64_t i = 0; i < n; i += kVector) {
    const Vector d = (read(x + i) - level) * scale, square = d * d;
    const Vector sum = read(to.sum + i), total = read(to.square + i);
    write(to.sum + i, SIGN > 0 ? sum + d : sum - d);
    write(to.square + i, SIGN > 0 ? total + square : total - square);
  }
}

struct Found {
  int64_t faint = 0, level = 0;
};

TORCHCORR_INLINE void norms_of_row(int64_t n, int64_t step, int64_t window, const Columns& totals,
                                   double count, double eps, double power, double drift,
                                   const Limits& by, float* out, float* means, Found& found) {
  const double share = 1 / count, mean_share = by.zero_mean ? share : 0.0;
  const double of_window = by.local ? by.faint : 0.0;
  const double of_tile = by.local ? 0.0 : by.faint * power;
  const bool wanted = by.deviation != 0;
  const float unknown = static_cast<float>(kUnknown);
  const float whole_count = static_cast<float>(count);
  int faint = 0, level = 0;
  const auto one = [&](int64_t i, int64_t at) TORCHCORR_FLAT {
    const double mean = (totals.sum[at + window] - totals.sum[at]) * mean_share;
    const double total = (totals.square[at + window] - totals.square[at]) * share;
    const double energy = total - mean * mean, least = of_window * total;
    const int flat = energy <= by.exact * total, lost = flat | (energy < drift);
    const int low = lost | (energy + eps < (least > of_tile ? least : of_tile));
    const float root =
        std::sqrt(static_cast<float>(wanted ? energy * by.deviation + eps : energy + eps));
    const float norm = wanted ? root : 1 / (whole_count * root);
    out[i] = lost ? unknown : low ? -norm : norm;
    if (means) means[i] = static_cast<float>(mean);
    faint += low;
    level += flat;
  };
  if (step == 1) {
    for (int64_t i = 0; i < n; ++i) one(i, i);
  } else {
    for (int64_t i = 0; i < n; ++i) one(i, i * step);
  }
  found.faint += faint;
  found.level += level;
}

struct Job {
  const TileGrid* grid;
  const float* end;  // of the input
  int64_t window[3], stride[3], count[3];  // positions of a tile
  int64_t strip[2], strips[2];             // positions of a unit along planes and rows
  double elements;
  Limits by;

  Job(const TileGrid& g, const float* input_end, const Sizes& windows, const Sizes& strides,
      const Limits& limits)
      : grid(&g), end(input_end), window{1, 1, 1}, stride{1, 1, 1}, count{1, 1, 1}, by(limits) {
    elements = static_cast<double>(g.channels);
    for (int64_t i = 0; i < g.ndim; ++i) {
      const int64_t axis = 3 - g.ndim + i;
      window[axis] = windows[i];
      stride[axis] = strides[i];
      count[axis] = (g.extent[axis] - windows[i]) / strides[i] + 1;
      elements *= static_cast<double>(windows[i]);
    }
    // A unit begins with the sums of a whole window, so it covers at least half of one.
    for (int i = 0; i < 2; ++i) {
      const int64_t least = std::max<int64_t>(i == 0 ? 4 : 32, window[i] / 2) / stride[i] + 1;
      strips[i] = ceil_div(count[i], least);
      strip[i] = ceil_div(count[i], strips[i]);
      strips[i] = ceil_div(count[i], strip[i]);
    }
  }

  int64_t units() const { return strips[0] * strips[1]; }
};

// The norms of one unit of one tile: planes, then rows, then columns slide.
TORCHCORR_INLINE void norms_of_unit(const Job& job, const float* input, int64_t tile, int64_t unit,
                                    const double* stats, float* out, float* means,
                                    Found& found) {
  const TileGrid& g = *job.grid;
  const TilePlace place(g, tile);
  const double level = stats[0], scale = stats[1];
  const double eps = job.by.eps * scale * scale, power = stats[2];
  double gathered = 0;
  const int64_t width = g.extent[2], padded = whole(width);
  const int64_t z0 = unit / job.strips[1] * job.strip[0], y0 = unit % job.strips[1] * job.strip[1];
  const auto valid = [&](int axis) {
    return valid_positions(g, place, axis, job.window[axis], job.stride[axis]);
  };
  const int64_t z1 = std::min(z0 + job.strip[0], valid(0)), n = valid(2);
  const int64_t y1 = std::min(y0 + job.strip[1], valid(1));
  if (z0 >= z1 || y0 >= y1 || n == 0) return;
  const int64_t top = y0 * job.stride[1];
  const int64_t tall = (y1 - 1 - y0) * job.stride[1] + job.window[1];
  const bool deep = job.window[0] > 1;
  Scratch scratch;
  const Columns slab = deep ? scratch.take(tall * padded) : Columns{};
  const Columns columns = scratch.take(padded), totals = scratch.take(padded + 1, 1);
  // Only windows inside the input count, so what follows a row may be read in its place, and
  // only where memory ends is there less.
  std::vector<float> line(padded);
  const auto row_of = [&](int64_t c, int64_t z, int64_t y) TORCHCORR_FLAT {
    const TileRow<float> row(g, place, input, c, z, y);
    const int64_t left = job.end - row.data;
    if (left >= padded) return row.data;
    std::copy_n(row.data, left, line.data());
    return static_cast<const float*>(line.data());
  };
  const auto slide_plane = [&](int64_t z, auto sign) TORCHCORR_FLAT {
    for (int64_t c = 0; c < g.channels; ++c) {
      for (int64_t y = 0; y < tall; ++y) {
        add_values<decltype(sign)::value>(padded, row_of(c, z, top + y), level, scale,
                                          slab.at(y * padded));
      }
    }
  };
  constexpr std::integral_constant<int, 1> enter{};
  constexpr std::integral_constant<int, -1> leave{};
  for (int64_t z = z0; z < z1; ++z) {
    const int64_t depth = z * job.stride[0];
    if (deep) {
      if (z == z0) {
        for (int64_t k = 0; k < job.window[0]; ++k) slide_plane(depth + k, enter);
      } else {
        for (int64_t k = depth - job.stride[0]; k < depth; ++k) {
          slide_plane(k + job.window[0], enter);
          slide_plane(k, leave);
        }
      }
    }
    const auto slide_row = [&](int64_t y, auto sign) TORCHCORR_FLAT {
      if (deep) return add_columns<decltype(sign)::value>(padded, slab.at((y - top) * padded), columns);
      for (int64_t c = 0; c < g.channels; ++c) {
        add_values<decltype(sign)::value>(padded, row_of(c, depth, y), level, scale, columns);
      }
    };
    std::fill_n(columns.sum, padded, 0.0);
    std::fill_n(columns.square, padded, 0.0);
    for (int64_t y = y0; y < y1; ++y) {
      const int64_t high = y * job.stride[1];
      if (y == y0) {
        for (int64_t k = 0; k < job.window[1]; ++k) slide_row(high + k, enter);
      } else {
        for (int64_t k = high - job.stride[1]; k < high; ++k) {
          slide_row(k + job.window[1], enter);
          slide_row(k, leave);
        }
      }
      accumulate(padded, columns.sum, totals.sum);
      accumulate(padded, columns.square, totals.square);
      gathered = std::max(gathered, totals.square[(n - 1) * job.stride[2] + job.window[2]]);
      const double drift = kGathered / job.by.error * gathered / job.elements;
      norms_of_row(n, job.stride[2], job.window[2], totals, job.elements, eps, power,
                   drift, job.by, out + (z * job.count[1] + y) * job.count[2],
                   means ? means + (z * job.count[1] + y) * job.count[2] : nullptr, found);
    }
  }
}

void run_unit(const Job& job, const float* input, int64_t tile, int64_t unit, const double* stats,
              float* out, float* means, Found& found);

}  // namespace running
}  // namespace torchcorr
