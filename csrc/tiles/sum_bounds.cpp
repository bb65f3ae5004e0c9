// Masses from sums of coarse blocks, weights from a histogram of sizes; see sum_bounds.h.

#include "tiles/sum_bounds.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <tuple>
#include <utility>

#include "common/vectors.h"

namespace torchcorr {
namespace {

constexpr int64_t kFloats = lanes_of<float>;
using Floats = Vector<float>;

// Sizes are clipped at this multiple of their mean, which suits noise of most distributions.
constexpr float kClipped = 1.25f;

// Adds sizes to columns, and sizes clipped to others; `largest` has kFloats elements.
TORCHCORR_CLONES void add_sizes(int64_t n, const float* x, float clip, float* columns,
                                float* clipped, float* largest) {
  Floats most = load(largest);
  const Floats limit = Floats{} + clip;
  int64_t i = 0;
  for (; i + kFloats <= n; i += kFloats) {
    const Floats v = load(x + i), size = v < 0 ? -v : v;
    store<float>(columns + i, load(columns + i) + size);
    store<float>(clipped + i, load(clipped + i) + (size < limit ? size : limit));
    most = size > most ? size : most;
  }
  for (; i < n; ++i) {
    const float size = std::abs(x[i]);
    columns[i] += size, clipped[i] += std::min(size, clip);
    most[0] = size > most[0] ? size : most[0];
  }
  store<float>(largest, most);
}

TORCHCORR_CLONES float sum_of_sizes(int64_t n, const float* x) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::abs(x[i]);
  return sum;
}

// The blocks along an axis: every window contains `inside` neighbouring ones whole. Smaller ones
// leave less out, but take time that only large windows repay.
struct Blocks {
  int64_t size, inside, starts = 0;

  Blocks(int64_t window, int64_t positions, int64_t stride)
      : size(std::max<int64_t>(1, window / (window < 48 ? 8 : 16))), inside((window - size + 1) / size) {
    if (positions > 0) starts = ceil_div((positions - 1) * stride, size) + 1;
  }
  int64_t count() const { return starts + inside - 1; }
};

// Sums of `inside` neighbours along the middle axis of (outer, count, inner).
void sum_neighbours(int64_t outer, const Blocks& blocks, int64_t inner,
                    std::vector<double>& cells) {
  std::vector<double> sums(outer * blocks.starts * inner, 0.0);
  for (int64_t o = 0; o < outer; ++o) {
    const double* from = cells.data() + o * blocks.count() * inner;
    double* to = sums.data() + o * blocks.starts * inner;
    for (int64_t k = 0; k < blocks.inside; ++k) {
      for (int64_t i = 0; i < inner; ++i) to[i] += from[k * inner + i];
    }
    for (int64_t s = inner; s < blocks.starts * inner; ++s) {
      to[s] = to[s - inner] + (from[s + (blocks.inside - 1) * inner] - from[s - inner]);
    }
  }
  cells.swap(sums);
}

// The masses of one tile.
class Masses {
 public:
  Masses(const Tiling& tiling, const TilePlace& place, const float* input)
      : t_(tiling), place_(place), input_(input), z_(blocks_of(0)), y_(blocks_of(1)),
        x_(blocks_of(2)), largest_(kFloats, 0.0f) {
    for (auto* of : {&plain_, &clipped_}) {
      of->columns.resize(t_.extent[2]);
      of->cells.resize(std::max<int64_t>(0, z_.count() * y_.count() * x_.count()));
    }
  }

  TileMass mass() {
    TileMass mass;
    const float clip = clip_of();
    const int64_t planes = ceil_div(t_.extent[0], z_.size);
    const int64_t rows = ceil_div(t_.extent[1], y_.size);
    for (int64_t i = 0; i < planes * rows; ++i) add_blocks(i / rows, i % rows, clip);
    for (float size : largest_) mass.largest = std::max(mass.largest, static_cast<double>(size));
    if (plain_.cells.empty()) return mass;
    mass.clip = static_cast<double>(clip);
    std::tie(mass.least, mass.most) = range_of(plain_);
    mass.clipped_least = range_of(clipped_).first;
    return mass;
  }

 private:
  // Sums of columns of a row of blocks, and of blocks.
  struct Sums {
    std::vector<float> columns;
    std::vector<double> cells;
  };

  Blocks blocks_of(int axis) const {
    return Blocks(t_.window[axis], valid_positions(t_, place_, axis), t_.stride[axis]);
  }

  template <class F>
  void each_row(int64_t z, int64_t y, const F& f) const {
    for (int64_t c = 0; c < t_.channels; ++c) {
      const TileRow<float> row(t_, place_, input_, c, z, y);
      if (row.end > row.begin) f(row);
    }
  }

  // From a part of the rows, since any number will do.
  float clip_of() const {
    double sum = 0, count = 0;
    const int64_t rows = t_.extent[0] * t_.extent[1], step = std::max<int64_t>(1, rows / 32);
    for (int64_t i = 0; i < rows; i += step) {
      each_row(i / t_.extent[1], i % t_.extent[1], [&](const TileRow<float>& row) {
        const int64_t n = row.end - row.begin;
        sum += static_cast<double>(sum_of_sizes(n, row.data + row.begin));
        count += static_cast<double>(n);
      });
    }
    return count > 0 ? kClipped * static_cast<float>(sum / count) : 0.0f;
  }

  void add_blocks(int64_t bz, int64_t by, float clip) {
    for (auto* of : {&plain_, &clipped_}) std::fill(of->columns.begin(), of->columns.end(), 0.0f);
    for (int64_t z = bz * z_.size; z < std::min((bz + 1) * z_.size, t_.extent[0]); ++z) {
      for (int64_t y = by * y_.size; y < std::min((by + 1) * y_.size, t_.extent[1]); ++y) {
        each_row(z, y, [&](const TileRow<float>& row) {
          add_sizes(row.end - row.begin, row.data + row.begin, clip,
                    plain_.columns.data() + row.begin, clipped_.columns.data() + row.begin,
                    largest_.data());
        });
      }
    }
    if (bz >= z_.count() || by >= y_.count()) return;
    for (auto* of : {&plain_, &clipped_}) {
      double* to = of->cells.data() + (bz * y_.count() + by) * x_.count();
      for (int64_t b = 0; b < x_.count(); ++b) {
        for (int64_t k = b * x_.size; k < std::min((b + 1) * x_.size, t_.extent[2]); ++k) {
          to[b] += static_cast<double>(of->columns[k]);
        }
      }
    }
  }

  // The least and the largest mass of windows, of which all but their margins count.
  std::pair<double, double> range_of(Sums& of) const {
    const double total = std::accumulate(of.cells.begin(), of.cells.end(), 0.0);
    sum_neighbours(z_.count() * y_.count(), x_, 1, of.cells);
    sum_neighbours(z_.count(), y_, x_.starts, of.cells);
    sum_neighbours(1, z_, y_.starts * x_.starts, of.cells);
    const auto [least, most] = std::minmax_element(of.cells.begin(), of.cells.end());
    // Less what rounding may have added in float32, and in float64 where a sum slides.
    const double added = static_cast<double>(t_.channels * z_.size * y_.size);
    const double slid = static_cast<double>(z_.count() + y_.count() + x_.count()) * 0x1p-51 * total;
    return {std::max(0.0, (1 - added * 0x1p-23) * *least - slid), *most};
  }

  const Tiling& t_;
  const TilePlace& place_;
  const float* input_;
  const Blocks z_, y_, x_;
  std::vector<float> largest_;
  Sums plain_, clipped_;
};

}  // namespace

TileMass mass_of(const Tiling& t, int64_t tile, const float* input) {
  const TilePlace place(t, tile);
  return place.exists ? Masses(t, place, input).mass() : TileMass{};
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
