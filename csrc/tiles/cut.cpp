// Cuts tiles out of an input: some rows determine level and scale, then one pass writes the tile.

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/parallel.h"
#include "common/targets.h"
#include "common/tiling.h"
#include "tiles/centre.h"
#include "tiles/steps.h"

namespace torchcorr {
namespace {

constexpr int64_t kChunkElements = 1 << 14;  // elements of a tile that one thread takes at once
constexpr int64_t kSampled = 8;              // one row in so many is read to choose level and scale
constexpr int64_t kRowsToSample = 64;        // a tile of fewer rows is read whole
constexpr int64_t kLongLine = 1 << 11;       // elements of a line from which on so few are read of it
constexpr int64_t kPiece = 32;               // that lie side by side
constexpr double kLargest = 16;              // mean square of a tile whose scale fits
constexpr int64_t kUncached = 1 << 18;       // elements of tiles that no core keeps in its cache
constexpr int64_t kAhead = 4;                // rows that are asked for before they are read

// Elements of a row from x on, zeros where it has none.
template <class T, class Out>
void centre_row(const TileRow<T>& row, int64_t x, int64_t n, const LevelAndScale& by, Out* to,
                Written& written) {
  const int64_t first = std::clamp<int64_t>(row.begin - x, 0, n);
  const int64_t last = std::clamp<int64_t>(row.end - x, first, n);
  std::fill(to, to + first, Out(0));
  if (last > first) centre(last - first, row.data + x + first, by, to + first, written);
  std::fill(to + last, to + n, Out(0));
}

// Cuts one tile at a time, or two (`lanes`) whose elements alternate; or only finds out what is known
// of tiles once they are cut, without an `out`.
template <class T, class Out>
class CutTiles {
 public:
  CutTiles(const TileBatch& batch, const T* input, Levels levels, int64_t lanes, Out* out,
           double* stats)
      : t_(batch.tiling), cut_(out ? t_.length : t_.extent), tiles_(batch.tiles), input_(input),
        levels_(levels), lanes_(lanes), out_(out), stats_(reinterpret_cast<TileStats*>(stats)),
        own_(levels == Levels::kOwn ? stats + kStats * batch.count() : nullptr),
        is_packed_(t_.layout.strides == RowStrides(t_.size)) {
    of_channel_ = cut_[0] * cut_[1];
    rows_ = t_.channels * of_channel_;
    chunk_ = std::max<int64_t>(1, kChunkElements / (cut_[2] * lanes));
    chunks_ = ceil_div(rows_, chunk_);
  }

  void run() {
    const int64_t count = static_cast<int64_t>(tiles_.size()), groups = count / lanes_;
    const int64_t elements = t_.channels * product(cut_);
    std::vector<Written> written(groups * chunks_ * lanes_);
    parallel_for(0, count, ceil_div(kChunkElements, elements), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) choose_levels_and_scale(t);
    });
    const int64_t grain = 1 + kChunkElements / (chunk_ * cut_[2] * lanes_ + 1);
    parallel_for(0, groups * chunks_, grain, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) write(u, written);
    });
    for (int64_t group = 0; group < groups; ++group) {
      bool misfit = false;
      for (int64_t lane = 0; lane < lanes_; ++lane) misfit |= !complete_stats(group, lane, written);
      if (!misfit) continue;
      for (int64_t lane = 0; lane < lanes_; ++lane) correct_scale(group * lanes_ + lane);
      for (int64_t c = 0; c < chunks_; ++c) write(group * chunks_ + c, written);
      for (int64_t lane = 0; lane < lanes_; ++lane) complete_stats(group, lane, written);
    }
  }

 private:
  LevelAndScale centring(int64_t tile, int64_t channel) const {
    const TileStats& stats = stats_[tile];
    return {own_ ? own_[tile * t_.channels + channel] : stats.level, stats.scale};
  }

  // A line by itself has no rows below.
  void prefetch_below(int64_t n, const T* row, int64_t rows) const {
    if (rows_ > 1) prefetch(n, row + rows * t_.layout.strides.row);
  }

  // Levels and scale of a tile, from one row in kSampled where there are many, or piece of a line.
  void choose_levels_and_scale(int64_t tile) const {
    const int64_t step = rows_ >= kRowsToSample ? kSampled : 1;
    const bool in_pieces = step == 1 && of_channel_ == 1;
    const TilePlace place(t_, tiles_[tile]);
    TileStats& stats = stats_[tile];
    stats = {0, 1, 0, 0};
    if (own_) std::fill_n(own_ + tile * t_.channels, t_.channels, 0.0);
    // Of channels [begin, end).
    const auto survey_rows = [&](int64_t begin, int64_t end, RowSurvey& sums) {
      for (int64_t r = begin * of_channel_; r < end * of_channel_; r += step) {
        const TileRow<T> row = row_of(place, r);
        if (row.end <= row.begin) continue;
        const LevelAndScale by = centring(tile, r / of_channel_);
        const int64_t n = row.end - row.begin;
        prefetch_below(n, row.data + row.begin, step);
        const int64_t piece = in_pieces && n >= kLongLine ? kPiece : n;
        const int64_t apart = piece < n ? kSampled * piece : n;
        for (int64_t x = row.begin; x < row.end; x += apart) {
          survey(std::min(piece, row.end - x), row.data + x, by.level, by.scale, sums);
        }
      }
    };
    const int64_t together = own_ ? 1 : t_.channels;
    for (int64_t c = 0; levels_ != Levels::kNone && c < t_.channels; c += together) {
      RowSurvey sums;
      survey_rows(c, c + together, sums);
      const double count = sums.count;
      if (count == 0) continue;
      // Rounded to float32, so that subtracting it is exact for elements of a similar size.
      const float level = static_cast<float>(sums.sum / count);
      if (std::isfinite(level)) (own_ ? own_[tile * t_.channels + c] : stats.level) = level;
    }
    RowSurvey sums;
    survey_rows(0, t_.channels, sums);
    const double count = sums.count;
    if (count > 0) stats.scale = scale_for(std::sqrt(sums.squares / count));
  }

  // After the whole tile was read: for a scale that does not fit it, or squares that overflowed.
  void correct_scale(int64_t tile) const {
    TileStats& stats = stats_[tile];
    const TilePlace place(t_, tiles_[tile]);
    double largest = 0;
    for (int64_t r = 0; r < rows_; ++r) {
      const TileRow<T> row = row_of(place, r);
      const double level = centring(tile, r / of_channel_).level;
      for (int64_t x = row.begin; x < row.end; ++x) {
        const double d = std::abs(static_cast<double>(row.data[x]) - level);
        if (d <= std::numeric_limits<double>::max()) largest = std::max(largest, d);
      }
    }
    const double power = stats.mean_square, root = std::sqrt(power);
    const bool fits = power > 1e-200 && power < 1e200;
    stats.scale = fits ? stats.scale * scale_for(root) : scale_for(largest);
  }

  // Whether the scale fits the tile.
  bool complete_stats(int64_t group, int64_t lane, const std::vector<Written>& written) const {
    double power = 0;
    bool finite = true;
    for (int64_t c = 0; c < chunks_; ++c) {
      const Written& w = written[(group * chunks_ + c) * lanes_ + lane];
      power += w.power;
      finite = finite && w.finite;
    }
    TileStats& stats = stats_[group * lanes_ + lane];
    stats.mean_square = power / static_cast<double>(t_.channels * t_.tile_size());
    stats.non_finite = finite ? 0.0 : 1.0;
    // Squares of small float64 elements may have vanished.
    if (stats.mean_square == 0) return sizeof(T) < sizeof(double) || tiles_[&stats - stats_] < 0;
    // A tile that overhangs its input is mostly zeros, which is no reason for another scale.
    return stats.mean_square < kLargest && stats.mean_square > 1e-12;
  }

  TileRow<T> row_of(const TilePlace& place, int64_t r) const {
    return row_of(place, unravel(r, {t_.channels, cut_[0], cut_[1]}));
  }
  // Of a channel, at z and y.
  TileRow<T> row_of(const TilePlace& place, const Axes3& at) const {
    if (at[2] >= t_.extent[1] || at[1] >= t_.extent[0]) return {};
    return TileRow<T>(t_, place, input_, at[0], at[1], at[2]);
  }

  // How many rows from r on are whole and follow each other in an item.
  int64_t rows_in_one(const TilePlace& place, int64_t r, int64_t last) const {
    if (t_.size[2] != cut_[2]) return 0;
    const auto number_of = [&](int64_t i) {
      const Axes3 at = unravel(i, {t_.channels, cut_[0], cut_[1]});
      return (at[0] * t_.size[0] + place.start[0] + at[1]) * t_.size[1] + place.start[1] + at[2];
    };
    const int64_t first = number_of(r);
    const auto follows = [&](int64_t i) {
      const TileRow<T> row = row_of(place, r + i);
      return row.begin == 0 && row.end == cut_[2] && number_of(r + i) == first + i;
    };
    if (own_) last = std::min(last, (r / of_channel_ + 1) * of_channel_);
    int64_t count = 0;
    while (r + count < last && follows(count)) ++count;
    return count;
  }

  // The elements of such rows, copied to `joined` if items have gaps, so that the sum of their squares
  // is rounded in the same way.
  const T* elements_of(const TilePlace& place, int64_t r, int64_t rows,
                       std::vector<T>& joined) const {
    if (is_packed_) return row_of(place, r).data;
    joined.resize(rows * cut_[2]);
    for (int64_t i = 0; i < rows; ++i) {
      std::copy_n(row_of(place, r + i).data, cut_[2], joined.data() + i * cut_[2]);
    }
    return joined.data();
  }

  void write(int64_t unit, std::vector<Written>& written) const {
    const int64_t group = unit / chunks_, width = cut_[2];
    const int64_t first = unit % chunks_ * chunk_, last = std::min(first + chunk_, rows_);
    const bool zipped = lanes_ == 2;
    const TilePlace places[2] = {TilePlace(t_, tiles_[group * lanes_]),
                                 TilePlace(t_, tiles_[group * lanes_ + lanes_ - 1])};
    for (int64_t lane = 0; lane < lanes_; ++lane) written[unit * lanes_ + lane] = {};
    // Rows of two tiles, and what is only looked at, are centred piece by piece.
    const int64_t piece = std::min(width, kChunkElements);
    std::vector<Out> line(!out_ ? piece : zipped ? lanes_ * piece : 0);
    std::vector<T> joined;
    for (int64_t r = first; r < last; ++r) {
      Out* target = out_ ? out_ + (group * rows_ + r) * width * lanes_ : line.data();
      const Axes3 at = unravel(r, {t_.channels, cut_[0], cut_[1]});
      const int64_t channel = at[0];
      if (!zipped && out_) {
        const int64_t rows = rows_in_one(places[0], r, last);
        if (rows > 1) {
          centre(rows * width, elements_of(places[0], r, rows, joined), centring(group, channel),
                 target, written[unit]);
          r += rows - 1;
          continue;
        }
      }
      TileRow<T> rows[2];
      for (int64_t lane = 0; lane < lanes_; ++lane) {
        rows[lane] = row_of(places[lane], at);
        const TileRow<T>& row = rows[lane];
        if (row.end > row.begin) prefetch_below(row.end - row.begin, row.data + row.begin, kAhead);
        if (out_) continue;
        const LevelAndScale by = centring(group * lanes_ + lane, channel);
        for (int64_t x = row.begin; x < row.end; x += piece) {
          const int64_t n = std::min(piece, row.end - x);
          centre(n, row.data + x, by, line.data(), written[unit * lanes_ + lane]);
        }
      }
      if (!out_) continue;
      const int64_t at_once = zipped ? piece : width;
      for (int64_t x = 0; x < width; x += at_once) {
        const int64_t n = std::min(at_once, width - x);
        for (int64_t lane = 0; lane < lanes_; ++lane) {
          const LevelAndScale by = centring(group * lanes_ + lane, channel);
          centre_row(rows[lane], x, n, by, zipped ? line.data() + lane * n : target,
                     written[unit * lanes_ + lane]);
        }
        if (zipped) zip(n, line.data(), line.data() + n, target + lanes_ * x);
      }
    }
  }

  const Tiling& t_;
  const Axes3 cut_;
  const Sizes& tiles_;
  const T* input_;
  Levels levels_;
  int64_t lanes_;
  Out* out_;
  TileStats* stats_;
  double* own_;  // levels of channels, or none
  const bool is_packed_;  // items have no gaps
  int64_t of_channel_, rows_, chunk_, chunks_;
};

// Tiles minus their levels, written to `out`.
Tensor cut_tiles_to(const Tensor& out, const Tensor& stats, const TileBatch& batch,
                    const Tensor& image, Levels levels, bool wide, bool pairs) {
  STD_TORCH_CHECK(!batch.tiling.is_divided(), "tiles that are larger than their transforms are cut "
                                              "part by part");
  if (out.numel() == 0) return out;
  with_real_type(image, "input", [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto out_zero) {
      using Out = decltype(out_zero);
      CutTiles<T, Out>(batch, image.const_data_ptr<T>(), levels, pairs ? 2 : 1,
                       static_cast<Out*>(out.mutable_data_ptr()),
                       stats.mutable_data_ptr<double>())
          .run();
    };
    wide ? run(double{}) : run(T{});
  });
  return out;
}

template <class T, class Out>
void write_part(const Tensor& input, const Tiling& t, int64_t tile, const LevelAndScale& by,
                const PartOfTile& part) {
  const T* image = input.const_data_ptr<T>();
  const TilePlace place(t, tile);
  const Axes3 &from = part.from, &size = part.size;
  const int64_t grain = ceil_div(kChunkElements, part.pitch);
  parallel_for(0, size[0] * size[1], grain, [&](int64_t begin, int64_t end) {
    Written ignored;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t z = from[0] + r / size[1], y = from[1] + r % size[1];
      TileRow<T> row;
      if (z < t.extent[0] && y < t.extent[1]) row = {t, place, image, part.channel, z, y};
      Out* to = static_cast<Out*>(part.to) + r * part.pitch;
      centre_row(row, from[2], size[2], by, to, ignored);
      std::fill(to + size[2], to + part.pitch, Out(0));
    }
  });
}

Sizes shape_of_stats(const TileBatch& batch, Levels levels) {
  const int64_t count = batch.count();
  if (levels != Levels::kOwn) return {count, kStats};
  return {count * (kStats + batch.tiling.channels)};
}

}  // namespace

std::tuple<Tensor, Tensor> cut_tiles(const Tensor& input, const Sizes& numbers, Levels levels,
                                     bool wide, bool pairs) {
  const TileBatch batch(numbers, input);
  const int64_t count = batch.count(), lanes = pairs ? 2 : 1;
  STD_TORCH_CHECK(count % lanes == 0, "pairs need an even number of tiles, got ", count);
  Sizes shape{count / lanes, batch.tiling.channels};
  for (int64_t n : sizes_of(batch.tiling.length, batch.tiling.ndim)) shape.push_back(n);
  if (pairs) shape.push_back(2);
  const Tensor out = wide ? new_float64(shape) : new_tensor(input, shape);
  const Tensor stats = new_float64(shape_of_stats(batch, levels));
  return {cut_tiles_to(out, stats, batch, input, levels, wide, pairs), stats};
}

std::tuple<Tensor, Tensor> cut_operands(Scratch& scratch, const Tensor& input, const Sizes& numbers,
                                        Levels levels, bool wide, bool pairs) {
  const TileBatch batch(numbers, input);
  const int64_t count = batch.count(), channels = batch.tiling.channels;
  const bool narrow = !wide && input.scalar_type() == ScalarType::Float;
  Sizes shape = pairs ? Sizes{count / 2 * channels} : Sizes{count, 1, channels};
  for (int64_t n : sizes_of(batch.tiling.length, batch.tiling.ndim)) shape.push_back(n);
  const ScalarType type = pairs ? (narrow ? ScalarType::ComplexFloat : ScalarType::ComplexDouble)
                                : (narrow ? ScalarType::Float : ScalarType::Double);
  const bool is_kept = count * channels * batch.tiling.tile_size() > kUncached;
  const Tensor out = is_kept ? scratch.take(Scratch::kTiles, shape, type)
                             : new_tensor(shape, type);
  const Tensor stats =
      scratch.take(Scratch::kStats, shape_of_stats(batch, levels), ScalarType::Double);
  return {cut_tiles_to(out, stats, batch, input, levels, wide, pairs), stats};
}

Tensor stats_of_tiles(const Tensor& input, const Sizes& numbers, Levels levels) {
  const TileBatch batch(numbers, input);
  const Tensor stats = new_float64(shape_of_stats(batch, levels));
  with_real_type(input, "input", [&](auto zero) {
    using T = decltype(zero);
    CutTiles<T, T>(batch, input.const_data_ptr<T>(), levels, 1, nullptr,
                   stats.mutable_data_ptr<double>())
        .run();
  });
  return stats;
}

void cut_part(const Tensor& input, const Tiling& t, int64_t tile, const LevelAndScale& by,
              const PartOfTile& part) {
  with_real_type(input, "input", [&](auto zero) {
    using T = decltype(zero);
    part.wide ? write_part<T, double>(input, t, tile, by, part)
              : write_part<T, float>(input, t, tile, by, part);
  });
}

namespace {

std::tuple<Tensor, Tensor> cut_shared(const Tensor& input, Sizes numbers, bool centred, bool wide,
                                      bool pairs) {
  return cut_tiles(input, numbers, centred ? Levels::kShared : Levels::kNone, wide, pairs);
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("cut_tiles", TORCH_BOX(&torchcorr::cut_shared));
}
