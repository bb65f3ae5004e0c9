// Cuts tiles out of an input: some rows determine level and scale, then one pass writes the tile.

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "common/parallel.h"
#include "common/targets.h"
#include "common/tiling.h"
#include "tiles/steps.h"

namespace torchcorr {
namespace {

constexpr int64_t kChunkElements = 1 << 14;  // elements of a tile that one thread takes at once
constexpr int64_t kSampled = 8;              // one row in so many is read to choose level and scale
constexpr int64_t kRowsToSample = 64;        // a tile of fewer rows is read whole
constexpr int64_t kLongLine = 1 << 11;       // elements of a line from which on so few are read of it
constexpr int64_t kPiece = 32;               // that lie side by side
constexpr double kLargest = 16;              // mean square of a tile whose scale fits
constexpr int64_t kAhead = 4;                // rows that are asked for before they are read

// Of some elements: their sum, their squares about a level, and how many are finite.
struct Survey {
  double sum = 0, squares = 0, count = 0;
};

// Of elements that were written: the sum of squares, and whether all were finite.
struct Written {
  double power = 0;
  bool finite = true;
};

// What elements are made of: (x - level) * scale.
struct Centring {
  double level, scale;
};

// v - v is NaN for an Inf or a NaN, and zero otherwise.
template <int BYTES, class T>
TORCHCORR_INLINE void survey(int64_t n, const T* x, double level, double scale, Survey& sums) {
  constexpr int64_t kLanes = lanes_of<double, BYTES>;
  Wide<BYTES> sum = {}, squares = {}, count = {};
  const auto add = [&](const Wide<BYTES>& v) TORCHCORR_FLAT {
    const auto finite = v - v == 0.0;
    const Wide<BYTES> d = (finite ? v - level : Wide<BYTES>{}) * scale;
    sum += d;
    squares += d * d;
    count += finite ? Wide<BYTES>{} + 1.0 : Wide<BYTES>{};
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) add(widened<BYTES>(x + i));
  sums.sum += sum_of_lanes(sum);
  sums.squares += sum_of_lanes(squares);
  sums.count += sum_of_lanes(count);
  for (; i < n; ++i) {
    if (!std::isfinite(x[i])) continue;
    const double d = (static_cast<double>(x[i]) - level) * scale;
    sums.sum += d, sums.squares += d * d, sums.count += 1;
  }
}

#define TORCHCORR_SURVEY(T)                                                                     \
  TORCHCORR_FOR_CPUS(void, survey,                                                              \
                     (int64_t n, const T* x, double level, double scale, Survey& sums),         \
                     (n, x, level, scale, sums))
TORCHCORR_SURVEY(float)
TORCHCORR_SURVEY(double)
#undef TORCHCORR_SURVEY

// out = (x - level) * scale where x is finite, 0 elsewhere.
template <int BYTES, class T, class Out>
TORCHCORR_INLINE void centre_row(int64_t n, const T* x, const Centring& by, Out* out, Written& w) {
  constexpr int64_t kLanes = lanes_of<double, BYTES>;
  const auto [level, scale] = by;
  Wide<BYTES> power = {}, non_finite = {};
  const auto take = [&, level = level, scale = scale](const Wide<BYTES>& v) TORCHCORR_FLAT {
    const Wide<BYTES> nothing = v - v;
    const Wide<BYTES> d = nothing == 0.0 ? (v - level) * scale : Wide<BYTES>{};
    non_finite += nothing;
    power += d * d;
    return d;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) put(take(widened<BYTES>(x + i)), out + i);
  if (i < n) {
    // Lanes past the end get the level, which is centred to zero.
    Wide<BYTES> v = Wide<BYTES>{} + level;
    for (int64_t l = 0; l < n - i; ++l) v[l] = static_cast<double>(x[i + l]);
    const Wide<BYTES> last = take(v);
    for (int64_t l = 0; l < n - i; ++l) out[i + l] = static_cast<Out>(last[l]);
  }
  w.power += sum_of_lanes(power);
  w.finite = w.finite && sum_of_lanes(non_finite) == 0.0;
}

// The same in float32, where a float32 level makes the difference the nearest float32 number too.
// Returns false, and the row is to be written again, if the squares are not finite.
template <int BYTES>
TORCHCORR_INLINE bool centre_narrow(int64_t n, const float* x, const Centring& by, float* out,
                                    Written& w) {
  constexpr double kMost = 0x1p60;  // so that the scale is a float32 number
  if (!(by.scale < kMost && by.scale * kMost > 1)) return false;
  const float level = static_cast<float>(by.level), scale = static_cast<float>(by.scale);
  constexpr int64_t kLanes = lanes_of<float, BYTES>;
  constexpr int64_t kPart = 64 * kLanes;  // squares of so many elements are added up in float32
  double all = 0;
  for (int64_t begin = 0; begin < n; begin += kPart) {
    const int64_t end = std::min(begin + kPart, n);
    Vector<float, BYTES> power = {};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const Vector<float, BYTES> d = (load<BYTES>(x + i) - level) * scale;
      put(d, out + i);
      power += d * d;
    }
    float sum = 0;
    for (; i < end; ++i) {
      out[i] = (x[i] - level) * scale;
      sum += out[i] * out[i];
    }
    for (int64_t l = 0; l < kLanes; ++l) sum += power[l];
    if (!(sum <= std::numeric_limits<float>::max())) return false;
    all += static_cast<double>(sum);
  }
  w.power += all;
  return true;
}

template <int BYTES, class T, class Out>
TORCHCORR_INLINE void centre(int64_t n, const T* x, const Centring& by, Out* out, Written& w) {
  if constexpr (std::is_same_v<T, float> && std::is_same_v<Out, float>) {
    if (centre_narrow<BYTES>(n, x, by, out, w)) return;
  }
  centre_row<BYTES>(n, x, by, out, w);
}

#define TORCHCORR_CENTRE(T, Out)                                                             \
  TORCHCORR_FOR_CPUS(void, centre,                                                           \
                     (int64_t n, const T* x, const Centring& by, Out* out, Written& w),      \
                     (n, x, by, out, w))
TORCHCORR_CENTRE(float, float)
TORCHCORR_CENTRE(float, double)
TORCHCORR_CENTRE(double, double)
TORCHCORR_CENTRE(double, float)
#undef TORCHCORR_CENTRE

template <class Out>
TORCHCORR_INLINE void zip_rows(int64_t n, const Out* a, const Out* b, Out* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    out[2 * i] = a[i];
    out[2 * i + 1] = b[i];
  }
}

TORCHCORR_CLONES void zip(int64_t n, const float* a, const float* b, float* out) {
  zip_rows(n, a, b, out);
}
TORCHCORR_CLONES void zip(int64_t n, const double* a, const double* b, double* out) {
  zip_rows(n, a, b, out);
}

// Cuts one tile at a time, or two (`lanes`) whose elements alternate.
template <class T, class Out>
class CutTiles {
 public:
  CutTiles(const TileBatch& batch, const T* input, Levels levels, int64_t lanes, Out* out,
           double* stats)
      : t_(batch.tiling), cut_(t_.cut_length()), tiles_(batch.tiles), input_(input),
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
  Centring centring(int64_t tile, int64_t channel) const {
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
    const auto survey_rows = [&](int64_t begin, int64_t end, Survey& sums) {
      for (int64_t r = begin * of_channel_; r < end * of_channel_; r += step) {
        const TileRow<T> row = row_of(place, r);
        if (row.end <= row.begin) continue;
        const Centring by = centring(tile, r / of_channel_);
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
      Survey sums;
      survey_rows(c, c + together, sums);
      const double count = sums.count;
      if (count == 0) continue;
      // Rounded to float32, so that subtracting it is exact for elements of a similar size.
      const float level = static_cast<float>(sums.sum / count);
      if (std::isfinite(level)) (own_ ? own_[tile * t_.channels + c] : stats.level) = level;
    }
    Survey sums;
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
    std::vector<Out> line(zipped ? 2 * width : 0);
    std::vector<T> joined;
    for (int64_t r = first; r < last; ++r) {
      Out* target = out_ + (group * rows_ + r) * width * lanes_;
      const Axes3 at = unravel(r, {t_.channels, cut_[0], cut_[1]});
      const int64_t channel = at[0];
      if (!zipped) {
        const int64_t rows = rows_in_one(places[0], r, last);
        if (rows > 1) {
          centre(rows * width, elements_of(places[0], r, rows, joined), centring(group, channel),
                 target, written[unit]);
          r += rows - 1;
          continue;
        }
      }
      for (int64_t lane = 0; lane < lanes_; ++lane) {
        Out* to = zipped ? line.data() + lane * width : target;
        const Centring by = centring(group * lanes_ + lane, channel);
        const TileRow<T> row = row_of(places[lane], at);
        std::fill(to, to + row.begin, Out(0));
        if (row.end > row.begin) {
          prefetch_below(row.end - row.begin, row.data + row.begin, kAhead);
          centre(row.end - row.begin, row.data + row.begin, by, to + row.begin,
                 written[unit * lanes_ + lane]);
        }
        std::fill(to + row.end, to + width, Out(0));
      }
      if (zipped) zip(width, line.data(), line.data() + width, target);
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
  for (int64_t n : sizes_of(batch.tiling.cut_length(), batch.tiling.ndim)) shape.push_back(n);
  if (pairs) shape.push_back(2);
  const Tensor out = wide ? new_float64(input, shape) : torch::stable::new_empty(input, shape);
  const Tensor stats = new_float64(input, shape_of_stats(batch, levels));
  return {cut_tiles_to(out, stats, batch, input, levels, wide, pairs), stats};
}

std::tuple<Tensor, Tensor> cut_operands(Scratch& scratch, const Tensor& input, const Sizes& numbers,
                                        Levels levels, bool wide, bool pairs) {
  const TileBatch batch(numbers, input);
  const int64_t count = batch.count(), channels = batch.tiling.channels;
  const bool narrow = !wide && input.scalar_type() == ScalarType::Float;
  Sizes shape = pairs ? Sizes{count / 2 * channels} : Sizes{count, 1, channels};
  for (int64_t n : sizes_of(batch.tiling.cut_length(), batch.tiling.ndim)) shape.push_back(n);
  const ScalarType type = pairs ? (narrow ? ScalarType::ComplexFloat : ScalarType::ComplexDouble)
                                : (narrow ? ScalarType::Float : ScalarType::Double);
  const Tensor out = torch::stable::new_empty(input, shape, type);
  const Tensor stats =
      scratch.take(Scratch::kStats, input, shape_of_stats(batch, levels), ScalarType::Double);
  return {cut_tiles_to(out, stats, batch, input, levels, wide, pairs), stats};
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
