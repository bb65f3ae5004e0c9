// Masses from sums of coarse blocks, weights from a histogram of sizes; see sum_bounds.h.

#include "tiles/sum_bounds.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "common/vectors.h"

namespace torchcorr {
namespace {

constexpr int64_t kFloats = lanes_of<float>;
using Floats = Vector<float>;

// Adds sizes to columns; `largest` has kFloats elements.
TORCHCORR_CLONES void add_sizes(int64_t n, const float* x, float* columns, float* largest) {
  Floats most = load(largest);
  int64_t i = 0;
  for (; i + kFloats <= n; i += kFloats) {
    const Floats v = load(x + i), size = v < 0 ? -v : v;
    store<float>(columns + i, load(columns + i) + size);
    most = size > most ? size : most;
  }
  for (; i < n; ++i) {
    const float size = std::abs(x[i]);
    columns[i] += size;
    most[0] = size > most[0] ? size : most[0];
  }
  store<float>(largest, most);
}

// The blocks along an axis: every window contains `inside` neighbouring ones whole.
struct Blocks {
  int64_t size, inside, starts = 0;

  Blocks(int64_t window, int64_t positions, int64_t stride)
      : size(std::max<int64_t>(1, (window + 2) / 6)), inside((window - size + 1) / size) {
    if (positions > 0) starts = ceil_div((positions - 1) * stride, size) + 1;
  }
  int64_t count() const { return starts + inside - 1; }
};

// Sums of `inside` neighbours along the middle axis of (outer, count, inner).
void sum_neighbours(int64_t outer, const Blocks& blocks, int64_t inner,
                    std::vector<double>& cells) {
  std::vector<double> sums(outer * blocks.starts * inner, 0.0);
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t s = 0; s < blocks.starts; ++s) {
      double* to = sums.data() + (o * blocks.starts + s) * inner;
      for (int64_t k = 0; k < blocks.inside; ++k) {
        const double* from = cells.data() + (o * blocks.count() + s + k) * inner;
        for (int64_t i = 0; i < inner; ++i) to[i] += from[i];
      }
    }
  }
  cells.swap(sums);
}

}  // namespace

TileMass mass_of(const Tiling& t, int64_t tile, const float* input) {
  const TilePlace place(t, tile);
  const auto blocks_of = [&](int axis) {
    return Blocks(t.window[axis], valid_positions(t, place, axis), t.stride[axis]);
  };
  const Blocks z = blocks_of(0), y = blocks_of(1), x = blocks_of(2);
  TileMass mass;
  if (!place.exists) return mass;
  const int64_t width = t.extent[2];
  std::vector<double> cells(std::max<int64_t>(0, z.count() * y.count() * x.count()), 0.0);
  std::vector<float> columns(width), largest(kFloats, 0.0f);
  const int64_t planes = ceil_div(t.extent[0], z.size), rows = ceil_div(t.extent[1], y.size);
  for (int64_t i = 0; i < planes * rows; ++i) {
    const int64_t bz = i / rows, by = i % rows;
    std::fill(columns.begin(), columns.end(), 0.0f);
    for (int64_t c = 0; c < t.channels; ++c) {
      for (int64_t k = bz * z.size; k < std::min((bz + 1) * z.size, t.extent[0]); ++k) {
        for (int64_t j = by * y.size; j < std::min((by + 1) * y.size, t.extent[1]); ++j) {
          const TileRow<float> row(t, place, input, c, k, j);
          if (row.end <= row.begin) continue;
          add_sizes(row.end - row.begin, row.data + row.begin, columns.data() + row.begin,
                    largest.data());
        }
      }
    }
    if (bz >= z.count() || by >= y.count()) continue;
    double* to = cells.data() + (bz * y.count() + by) * x.count();
    for (int64_t b = 0; b < x.count(); ++b) {
      for (int64_t k = b * x.size; k < std::min((b + 1) * x.size, width); ++k) {
        to[b] += static_cast<double>(columns[k]);
      }
    }
  }
  for (float size : largest) mass.largest = std::max(mass.largest, static_cast<double>(size));
  if (cells.empty()) return mass;
  sum_neighbours(z.count() * y.count(), x, 1, cells);
  sum_neighbours(z.count(), y, x.starts, cells);
  sum_neighbours(1, z, y.starts * x.starts, cells);
  // Less what rounding may have added in float32.
  const double added = static_cast<double>(t.channels * z.size * y.size);
  const double kept = std::max(0.0, 1 - added * 0x1p-23);
  const auto [least, most] = std::minmax_element(cells.begin(), cells.end());
  mass.least = kept * *least;
  mass.most = *most;
  return mass;
}

SmallestWeights::SmallestWeights(int64_t n, const double* weights) {
  // Sizes that share their exponent and three bits of their fraction.
  constexpr int64_t kBins = 1 << 11, kShift = 20;
  std::vector<double> counts(kBins, 0.0), sums(kBins, 0.0);
  for (int64_t i = 0; i < n; ++i) {
    const float size = static_cast<float>(std::abs(weights[i]));
    const int64_t bin = std::bit_cast<uint32_t>(size) >> kShift;
    counts[bin] += 1, sums[bin] += static_cast<double>(size);
  }
  double count = 0, sum = 0;
  for (int64_t bin = 0; bin < kBins; ++bin) {
    if (counts[bin] == 0) continue;
    counts_.push_back(count), sums_.push_back(sum);
    least_.push_back(static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(bin << kShift))));
    count += counts[bin], sum += sums[bin];
  }
}

double SmallestWeights::sum_of(double count) const {
  const auto after = std::upper_bound(counts_.begin(), counts_.end(), count);
  if (after == counts_.begin()) return 0;
  const size_t bin = after - counts_.begin() - 1;
  return sums_[bin] + (count - counts_[bin]) * least_[bin];
}

}  // namespace torchcorr
