#include "tiles/faint_windows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/vectors.h"
#include "tiles/score_rows.h"

namespace torchcorr {
namespace {

using Flags = std::vector<uint8_t>;

// Tiles that are scaled by less, or by more than its inverse, leave the range of float32.
constexpr double kLeastScale = 1e-30;

// Marks doubtful windows whose norms are known.
TORCHCORR_CLONES void mark_row(int64_t n, const uint8_t* states, const float* norms, float limit,
                               uint8_t* marked, uint8_t* left) {
  for (int64_t i = 0; i < n; ++i) {
    marked[i] = (states[i] == kDoubtful) | ((states[i] != kUnknown) & (norms[i] > limit));
    left[i] = states[i] == kDoubtful ? static_cast<uint8_t>(kGood) : states[i];
  }
}

void mark_tile(const Tiling& t, int64_t tile, const uint8_t* states, const float* norms, float limit,
               uint8_t* marked, uint8_t* left) {
  const TilePlace place(t, tile);
  const int64_t n = valid_positions(t, place, 2);
  std::fill_n(marked, product(t.outputs), uint8_t(0));
  for (int64_t z = 0; z < valid_positions(t, place, 0); ++z) {
    for (int64_t y = 0; y < valid_positions(t, place, 1); ++y) {
      const int64_t at = (z * t.outputs[1] + y) * t.outputs[2];
      mark_row(n, states + at, norms + at, limit, marked + at, left + at);
    }
  }
}

TORCHCORR_CLONES int64_t count_above(int64_t n, const uint8_t* marked, const float* norms,
                                     float limit) {
  int count = 0;
  for (int64_t i = 0; i < n; ++i) count += marked[i] & (norms[i] > limit);
  return count;
}

// to[i] = whether one of from[i - n + 1] to from[i] is set, for `all` elements.
TORCHCORR_CLONES void dilate_row(int64_t all, int64_t n, uint8_t* row, uint8_t* other) {
  for (int64_t done = 1; done < n;) {
    const int64_t step = std::min(done, n - done);
    std::copy_n(row, std::min(step, all), other);
    for (int64_t i = step; i < all; ++i) other[i] = row[i] | row[i - step];
    std::copy_n(other, all, row);
    done += step;
  }
}

// counts[i] += added[i] - removed[i]; out[i] = whether the count is not 0.
TORCHCORR_CLONES void slide_rows(int64_t n, const uint8_t* added, const uint8_t* removed,
                                 int32_t* counts, uint8_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    counts[i] += static_cast<int32_t>(added[i]) - static_cast<int32_t>(removed[i]);
    out[i] = counts[i] > 0;
  }
}

// The elements (*extent) that the marked windows of a tile contain.
Flags elements_of(const Tiling& t, const uint8_t* marked) {
  const Axes3 &e = t.extent, &k = t.window, &m = t.outputs;
  Flags rows(m[0] * m[1] * e[2]), planes(m[0] * e[1] * e[2]), spare(e[2]);
  for (int64_t row = 0; row < m[0] * m[1]; ++row) {
    std::copy_n(marked + row * m[2], m[2], &rows[row * e[2]]);
    dilate_row(e[2], k[2], &rows[row * e[2]], spare.data());
  }
  const Flags none(e[1] * e[2]);
  std::vector<int32_t> counts(e[1] * e[2]);
  // Along an axis of `windows` windows, parts of n elements follow each other.
  const auto slide = [&](int64_t windows, int64_t window, int64_t n, const uint8_t* from, uint8_t* to) {
    std::fill(counts.begin(), counts.begin() + n, 0);
    for (int64_t i = 0; i < windows + window - 1; ++i) {
      const uint8_t* added = i < windows ? from + i * n : none.data();
      const uint8_t* removed = i >= window ? from + (i - window) * n : none.data();
      slide_rows(n, added, removed, counts.data(), to + i * n);
    }
  };
  for (int64_t z = 0; z < m[0]; ++z) {
    slide(m[1], k[1], e[2], &rows[z * m[1] * e[2]], &planes[z * e[1] * e[2]]);
  }
  if (k[0] == 1) return planes;
  Flags all(product(e));
  slide(m[0], k[0], e[1] * e[2], planes.data(), all.data());
  return all;
}

TORCHCORR_INLINE double total_of_row(int64_t n, const float* x) {
  Vector<float> sums = {};
  int64_t i = 0;
  for (; i + lanes_of<float> <= n; i += lanes_of<float>) sums += load(x + i);
  double total = 0;
  for (; i < n; ++i) total += static_cast<double>(x[i]);
  for (int64_t l = 0; l < lanes_of<float>; ++l) total += static_cast<double>(sums[l]);
  return total;
}

// (x - level) * scale where `seen`, otherwise 0; their sum, or that of their squares.
TORCHCORR_CLONES double seen_row(int64_t n, const float* x, const uint8_t* seen, float level,
                                 float scale, bool squares, float* out, float* spare) {
  for (int64_t i = 0; i < n; ++i) out[i] = seen[i] ? (x[i] - level) * scale : 0.0f;
  if (!squares) return total_of_row(n, out);
  for (int64_t i = 0; i < n; ++i) spare[i] = out[i] * out[i];
  return total_of_row(n, spare);
}

TORCHCORR_CLONES int64_t count_row(int64_t n, const uint8_t* seen) {
  int count = 0;
  for (int64_t i = 0; i < n; ++i) count += seen[i];
  return count;
}

TORCHCORR_CLONES void put_every_other(int64_t n, const float* from, float* to) {
  for (int64_t i = 0; i < n; ++i) to[2 * i] = from[i];
}

// The elements of one tile that are seen.
class SeenTile {
 public:
  SeenTile(const Tiling& t, int64_t tile, const float* input, Flags seen)
      : t_(t), place_(t, tile), input_(input), seen_(std::move(seen)), out_(t.length[2]),
        spare_(t.length[2]) {}

  // Chooses the level, from one that is known.
  void centre(const TileStats& known) {
    int64_t count = 0;
    level_ = static_cast<float>(known.level);
    double sum = 0;
    for_rows([&](int64_t, const TileRow<float>& row, const uint8_t* seen) {
      const int64_t n = row.end - row.begin;
      count += count_row(n, seen);
      sum += seen_row(n, row.data + row.begin, seen, level_, 1, false, out_.data(), spare_.data());
    });
    if (count == 0) return;
    const float level = static_cast<float>(known.level + sum / static_cast<double>(count));
    if (std::isfinite(level)) level_ = level;
  }

  // Writes every other number of `to`; the sum of the squares.
  double write(float scale, float* to) {
    double squares = 0;
    for_rows([&](int64_t at, const TileRow<float>& row, const uint8_t* seen) {
      const int64_t n = row.end - row.begin;
      squares += seen_row(n, row.data + row.begin, seen, level_, scale, true, out_.data(),
                          spare_.data());
      put_every_other(n, out_.data(), to + 2 * (at + row.begin));
    });
    return squares;
  }

 private:
  // Calls f(place of a row in the tile, the row, flags of the part of it that is in the input).
  template <class F>
  void for_rows(const F& f) const {
    for (int64_t r = 0; r < t_.channels * t_.extent[0] * t_.extent[1]; ++r) {
      const Axes3 at = unravel(r, {t_.channels, t_.extent[0], t_.extent[1]});
      const TileRow<float> row(t_, place_, input_, at[0], at[1], at[2]);
      if (row.end <= row.begin) continue;
      const uint8_t* seen = &seen_[(at[1] * t_.extent[1] + at[2]) * t_.extent[2] + row.begin];
      f(((at[0] * t_.length[0] + at[1]) * t_.length[1] + at[2]) * t_.length[2], row, seen);
    }
  }

  const Tiling& t_;
  const TilePlace place_;
  const float* input_;
  const Flags seen_;
  std::vector<float> out_, spare_;
  float level_ = 0;
};

}  // namespace

FaintTiles cut_faint(const Tensor& input, const Tensors& tensors, const Sizes& numbers,
                     const ScoreRule& rule, double limit) {
  const TileBatch batch(numbers, input);
  const Tiling& t = batch.tiling;
  const TileMoments moments(tensors);
  const int64_t each = product(t.outputs);
  const float* norms = moments.known_norms().const_data_ptr<float>();
  FaintTiles faint;
  Sizes shape{t.channels};
  for (int64_t n : sizes_of(t.length, t.ndim)) shape.push_back(n);
  faint.lines = torch::stable::new_zeros(input, shape, ScalarType::ComplexFloat);
  faint.marked = new_tensor(*moments.states, {2 * each});
  faint.states = new_tensor(*moments.states, {2 * each});
  float* to = static_cast<float*>(faint.lines.mutable_data_ptr());
  uint8_t* marked = faint.marked.mutable_data_ptr<uint8_t>();
  uint8_t* states = faint.states.mutable_data_ptr<uint8_t>();
  for (int64_t lane = 0; lane < 2; ++lane) {
    const TileStats& stats = moments.rows()[lane];
    if (!(stats.scale > kLeastScale && stats.scale < 1 / kLeastScale)) {
      faint.hopeless = std::numeric_limits<int64_t>::max();
      return faint;
    }
    mark_tile(t, batch.tiles[lane], moments.states_or_null() + lane * each, norms + lane * each,
              static_cast<float>(limit), marked + lane * each, states + lane * each);
    SeenTile tile(t, batch.tiles[lane], input.const_data_ptr<float>(),
                  elements_of(t, marked + lane * each));
    tile.centre(stats);
    const double all = static_cast<double>(t.channels * t.tile_size());
    double squares = tile.write(static_cast<float>(stats.scale), to + lane);
    faint.scales[lane] = squares > 0 ? scale_for(std::sqrt(squares / all)) : 1.0;
    if (faint.scales[lane] != 1) {
      squares = tile.write(static_cast<float>(stats.scale * faint.scales[lane]), to + lane);
    }
    faint.mean_square += squares / all;
  }
  // As far as the elements tell: the numerators of the first look, where there was one, contained as
  // much of its elements as those of the second will. Their true content is known later.
  const double window = static_cast<double>(t.window_size());
  const double first = moments.rows()[0].mean_square + moments.rows()[1].mean_square;
  const double best = std::isfinite(limit)
                          ? limit * std::sqrt(first / faint.mean_square)
                          : 1 / (window * std::sqrt(rule.least_energy * faint.mean_square));
  for (int64_t lane = 0; lane < 2; ++lane) {
    const float most = static_cast<float>(best * faint.scales[lane]);
    faint.hopeless = std::max(faint.hopeless, count_above(each, marked + lane * each,
                                                          norms + lane * each, most));
  }
  return faint;
}

}  // namespace torchcorr
