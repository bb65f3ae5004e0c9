// Masses from sums of coarse blocks, weights from a histogram of sizes; see sum_bounds.h.

#include "tiles/sum_bounds.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "common/targets.h"

namespace torchcorr {
namespace {

// Between layers, in units of the mean size of a tile. More layers are no better for noise, and these
// suit photographs too.
using Levels = std::array<float, kLayers - 1>;
constexpr Levels kLevels = {0.5f, 1.0f, 2.0f};
// Rows of a tile from which its mean size is taken, since any number will do.
constexpr int64_t kRowsOfMean = 16;
// Elements of sub-boxes of a template that are worth counting.
constexpr int64_t kCounted = 1 << 15;

// Sums of layers of rows, a column each: kLayers arrays of `width`. Returns the largest size, or
// `largest` if that is larger.
template <int BYTES>
TORCHCORR_INLINE float add_layers(const std::vector<const float*>& rows, int64_t n,
                                  const Levels& levels, int64_t width, float* columns,
                                  float largest) {
  static_assert(kLayers == 4);
  using Floats = Vector<float, BYTES>;
  constexpr int64_t kFloats = lanes_of<float, BYTES>;
  const Floats low = Floats{} + levels[0], middle = Floats{} + levels[1], high = Floats{} + levels[2];
  Floats most = Floats{} + largest;
  int64_t i = 0;
  for (; i + kFloats <= n; i += kFloats) {
    Floats sums[kLayers] = {};
    for (const float* row : rows) {
      const Floats v = load<BYTES>(row + i), size = v < 0 ? -v : v;
      const Floats a = size < low ? size : low, b = size < middle ? size : middle;
      const Floats c = size < high ? size : high;
      sums[0] += a, sums[1] += b - a, sums[2] += c - b, sums[3] += size - c;
      most = size > most ? size : most;
    }
    for (size_t l = 0; l < kLayers; ++l) put(sums[l], columns + l * width + i);
  }
  for (; i < n; ++i) {
    float sums[kLayers] = {};
    for (const float* row : rows) {
      const float size = std::abs(row[i]);
      const float a = std::min(size, levels[0]), b = std::min(size, levels[1]);
      const float c = std::min(size, levels[2]);
      sums[0] += a, sums[1] += b - a, sums[2] += c - b, sums[3] += size - c;
      largest = size > largest ? size : largest;
    }
    for (size_t l = 0; l < kLayers; ++l) columns[l * width + i] = sums[l];
  }
  for (int64_t l = 0; l < kFloats; ++l) largest = most[l] > largest ? most[l] : largest;
  return largest;
}
TORCHCORR_FOR_CPUS(float, add_layers,
                   (const std::vector<const float*>& rows, int64_t n, const Levels& levels,
                    int64_t width, float* columns, float largest),
                   (rows, n, levels, width, columns, largest))

template <int BYTES>
TORCHCORR_INLINE float sum_of_sizes(int64_t n, const float* x) {
  using Floats = Vector<float, BYTES>;
  constexpr int64_t kFloats = lanes_of<float, BYTES>;
  Floats sums = {};
  int64_t i = 0;
  for (; i + kFloats <= n; i += kFloats) {
    const Floats v = load<BYTES>(x + i);
    sums += v < 0 ? -v : v;
  }
  float sum = 0;
  for (int64_t l = 0; l < kFloats; ++l) sum += sums[l];
  for (; i < n; ++i) sum += std::abs(x[i]);
  return sum;
}
TORCHCORR_FOR_CPUS(float, sum_of_sizes, (int64_t n, const float* x), (n, x))

// From rows of columns, kLayers arrays of `width`, the sums of blocks of `size` columns, a power of
// two: in `before`, of all blocks before each, layers side by side.
TORCHCORR_CLONES void sum_blocks(int64_t width, int64_t size, int64_t blocks, float* columns,
                                 double* before) {
  static_assert(kLayers == 4);
  float* cells[kLayers];
  for (size_t l = 0; l < kLayers; ++l) {
    cells[l] = columns + static_cast<int64_t>(l) * width;
    for (int64_t n = width / 2; n * size >= width; n /= 2) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) cells[l][i] = cells[l][2 * i] + cells[l][2 * i + 1];
    }
  }
  using Layers = Vector<double, kLayers * sizeof(double)>;
  Layers sums = {};
  for (int64_t b = 0; b < blocks; ++b) {
    sums += Layers{cells[0][b], cells[1][b], cells[2][b], cells[3][b]};
    before += kLayers;
    for (size_t l = 0; l < kLayers; ++l) before[l] = sums[l];
  }
}

// to = later - earlier, of n numbers.
TORCHCORR_CLONES void subtract(int64_t n, const double* later, const double* earlier, double* to) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) to[i] = later[i] - earlier[i];
}

// Blocks in which the windows at some positions may start.
int64_t starts_of(const Blocks& blocks, int64_t positions, int64_t stride) {
  return positions > 0 ? ceil_div((positions - 1) * stride, blocks.size) + 1 : 0;
}

// Sums of `inside` neighbours along the middle axis of (outer, starts + inside - 1, inner).
TORCHCORR_CLONES void sum_neighbours(int64_t outer, int64_t starts, int64_t inside, int64_t inner,
                                     std::vector<double>& cells) {
  if (inside == 1) return;
  std::vector<double> sums(outer * starts * inner, 0.0);
  for (int64_t o = 0; o < outer; ++o) {
    const double* from = cells.data() + o * (starts + inside - 1) * inner;
    double* to = sums.data() + o * starts * inner;
    for (int64_t k = 0; k < inside; ++k) {
#pragma GCC ivdep
      for (int64_t i = 0; i < inner; ++i) to[i] += from[k * inner + i];
    }
    for (int64_t s = 1; s < starts; ++s, to += inner, from += inner) {
#pragma GCC ivdep
      for (int64_t i = 0; i < inner; ++i) {
        to[inner + i] = to[i] + (from[inside * inner + i] - from[i]);
      }
    }
  }
  cells.swap(sums);
}

// The masses of one tile.
class Masses {
 public:
  Masses(const Tiling& tiling, const TilePlace& place, const float* input, int64_t fineness)
      : t_(tiling), place_(place), input_(input), z_(t_.window[0], fineness),
        y_(t_.window[1], fineness), x_(t_.window[2], fineness) {
    for (int axis = 0; axis < 3; ++axis) {
      const Blocks& blocks = axis == 0 ? z_ : axis == 1 ? y_ : x_;
      starts_[axis] = starts_of(blocks, valid_positions(t_, place_, axis), t_.stride[axis]);
      count_[axis] = starts_[axis] + blocks.inside - 1;
    }
  }

  TileMass mass() {
    choose_levels();
    width_ = ceil_div(t_.extent[2], x_.size) * x_.size;
    columns_.resize(kLayers * width_);
    before_.assign(kLayers * (count_[2] + 1), 0.0);
    const bool empty = product(starts_) == 0;
    sums_.resize(empty ? 0 : count_[0] * count_[1] * row_size());
    const int64_t planes = ceil_div(t_.extent[0], z_.size), rows = ceil_div(t_.extent[1], y_.size);
    for (int64_t i = 0; i < planes * rows; ++i) {
      sum_columns(i / rows, i % rows);
      if (!empty && i / rows < count_[0] && i % rows < count_[1]) {
        sum_row(i / rows * count_[1] + i % rows);
      }
    }
    TileMass mass;
    mass.has_windows = !empty;
    mass.largest = static_cast<double>(largest_);
    if (!empty && finite_) complete(mass);
    return mass;
  }

 private:
  template <class F>
  void each_row(int64_t z, int64_t y, const F& f) const {
    for (int64_t c = 0; c < t_.channels; ++c) {
      const TileRow<float> row(t_, place_, input_, c, z, y);
      if (row.end > row.begin) f(row);
    }
  }

  void choose_levels() {
    double sum = 0, count = 0;
    const int64_t rows = t_.extent[0] * t_.extent[1];
    for (int64_t i = 0; i < rows; i += ceil_div(rows, kRowsOfMean)) {
      each_row(i / t_.extent[1], i % t_.extent[1], [&](const TileRow<float>& row) {
        const int64_t n = row.end - row.begin;
        sum += static_cast<double>(sum_of_sizes(n, row.data + row.begin));
        count += static_cast<double>(n);
      });
    }
    const float mean = count > 0 ? static_cast<float>(sum / count) : 0.0f;
    for (size_t l = 0; l < levels_.size(); ++l) levels_[l] = kLevels[l] * mean;
  }

  // Layers of a row of blocks.
  void sum_columns(int64_t bz, int64_t by) {
    rows_.clear();
    int64_t begin = 0, end = 0;
    for (int64_t z = bz * z_.size; z < std::min((bz + 1) * z_.size, t_.extent[0]); ++z) {
      for (int64_t y = by * y_.size; y < std::min((by + 1) * y_.size, t_.extent[1]); ++y) {
        each_row(z, y, [&](const TileRow<float>& row) {
          rows_.push_back(row.data + row.begin);
          begin = row.begin, end = row.end;  // the same for all rows
        });
      }
    }
    for (size_t l = 0; l < kLayers; ++l) {
      float* row = columns_.data() + static_cast<int64_t>(l) * width_;
      std::fill(row, row + begin, 0.0f);
      std::fill(row + end, row + width_, 0.0f);
    }
    largest_ = add_layers(rows_, end - begin, levels_, width_, columns_.data() + begin, largest_);
  }

  // Sums of the blocks of a row that windows contain along it.
  void sum_row(int64_t row) {
    sum_blocks(width_, x_.size, count_[2], columns_.data(), before_.data());
    for (auto total = before_.end() - kLayers; total != before_.end(); ++total) {
      finite_ = finite_ && std::isfinite(*total);
      total_ += *total;
    }
    subtract(row_size(), before_.data() + x_.inside * static_cast<int64_t>(kLayers), before_.data(),
             sums_.data() + row * row_size());
  }

  // From the sums of rows: what windows have in each layer, without their margins.
  void complete(TileMass& mass) {
    sum_neighbours(count_[0], starts_[1], y_.inside, row_size(), sums_);
    sum_neighbours(1, starts_[0], z_.inside, starts_[1] * row_size(), sums_);
    std::array<double, kLayers> least;
    least.fill(std::numeric_limits<double>::infinity());
    double lowest = least[0], highest = 0;
    for (size_t i = 0; i < sums_.size(); i += kLayers) {
      double all = 0;
      for (size_t l = 0; l < kLayers; ++l) {
        least[l] = std::min(least[l], sums_[i + l]);
        all += sums_[i + l];
      }
      lowest = std::min(lowest, all), highest = std::max(highest, all);
    }
    mass.swing = (highest - lowest) / 2;
    // What rounding may have added in float32, and in float64 where sums are differences.
    const double added = static_cast<double>(t_.channels * z_.size * y_.size);
    const double share = (added + 24) * 0x1p-23;
    const double slid = static_cast<double>(count_[0] + count_[1] + count_[2]) * 0x1p-51 * total_;
    double below = 0;
    for (size_t l = 0; l < kLayers; ++l) {
      const double top = l < levels_.size() ? static_cast<double>(levels_[l]) : mass.largest;
      const double level = std::min(top, mass.largest);
      mass.layers[l] = {level - below, std::max(0.0, (1 - share) * least[l] - slid)};
      below = level;
    }
  }

  int64_t row_size() const { return starts_[2] * static_cast<int64_t>(kLayers); }

  const Tiling& t_;
  const TilePlace& place_;
  const float* input_;
  const Blocks z_, y_, x_;
  Axes3 starts_, count_;  // blocks in which windows start, and all that they contain
  int64_t width_ = 0;  // of a row, in whole blocks
  Levels levels_{};
  std::vector<const float*> rows_;
  float largest_ = 0;
  std::vector<float> columns_;
  std::vector<double> before_;  // sums of all blocks of a row before each
  std::vector<double> sums_;    // of windows, layers side by side
  double total_ = 0;
  bool finite_ = true;
};

// Bins of sizes that share their exponent and four bits of their fraction, down to 2^-20 of the
// largest; smaller ones are as good as zero.
constexpr int64_t kBins = 20 << 4;
constexpr int kShift = 19;

int64_t bin_of(float size) { return std::bit_cast<uint32_t>(size) >> kShift; }
double least_in(int64_t bin) {
  return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(bin << kShift)));
}

}  // namespace

TileMass mass_of(const Tiling& t, int64_t tile, const float* input, int64_t fineness) {
  TilePlace place(t, tile);
  if (!place.exists) return {};
  // What lies inside the input, as a tile of its own.
  const TileInside inside(t, place);
  Tiling part = t;
  for (int a = 0; a < 3; ++a) {
    place.start[a] += inside.begin[a];
    part.extent[a] = inside.end[a] - inside.begin[a];
    if (part.extent[a] < t.extent[a]) part.stride[a] = 1;
  }
  return Masses(part, place, input, fineness).mass();
}

SmallestWeights::SmallestWeights(const Tiling& t, const double* weights, int64_t fineness) {
  const int64_t n = t.window_size();
  std::vector<int64_t> bins(n);
  for (int64_t i = 0; i < n; ++i) bins[i] = bin_of(static_cast<float>(std::abs(weights[i])));
  const int64_t first = std::max<int64_t>(0, *std::max_element(bins.begin(), bins.end()) - kBins + 1);
  for (int64_t& bin : bins) bin = std::max<int64_t>(0, bin - first);

  // The blocks that a window contains are one of some boxes of the template; `most` is how many
  // weights of any of them are in the bins up to each.
  const Blocks z(t.window[0], fineness), y(t.window[1], fineness), x(t.window[2], fineness);
  Axes3 offsets{z.size, y.size, x.size}, size{z.length(), y.length(), x.length()};
  const int64_t most_counted = kCounted * (fineness / kCoarse) * (fineness / kCoarse);
  if (product(offsets) * product(size) * t.channels > most_counted) {
    offsets = {1, 1, 1}, size = t.window;
  }
  std::vector<int64_t> most(kBins, 0), counts(kBins);
  for (int64_t box = 0; box < product(offsets); ++box) {
    const Axes3 at = unravel(box, offsets);
    std::fill(counts.begin(), counts.end(), 0);
    for (int64_t row = 0; row < t.channels * size[0] * size[1]; ++row) {
      const Axes3 of = unravel(row, {t.channels, size[0], size[1]});
      const int64_t plane = of[0] * t.window[0] + at[0] + of[1];
      const int64_t* from = &bins[(plane * t.window[1] + at[1] + of[2]) * t.window[2] + at[2]];
      for (int64_t i = 0; i < size[2]; ++i) ++counts[from[i]];
    }
    int64_t count = 0;
    for (int64_t bin = 0; bin < kBins; ++bin) most[bin] = std::max(most[bin], count += counts[bin]);
  }

  double sum = 0;
  int64_t count = 0;
  for (int64_t bin = 0; bin < kBins; ++bin) {
    if (most[bin] == count) continue;
    const double least = bin > 0 || first == 0 ? least_in(first + bin) : 0.0;
    counts_.push_back(static_cast<double>(count)), sums_.push_back(sum), least_.push_back(least);
    sum += static_cast<double>(most[bin] - count) * least;
    count = most[bin];
  }
}

double SmallestWeights::sum_of(double count) const {
  const auto after = std::upper_bound(counts_.begin(), counts_.end(), count);
  if (after == counts_.begin()) return 0;
  const size_t bin = after - counts_.begin() - 1;
  return sums_[bin] + (count - counts_[bin]) * least_[bin];
}

}  // namespace torchcorr
