// Cuts tiles out of an input: a look at some rows tells level and scale, one pass writes them.

#include "tiles/steps.h"
#include "common/tiling.h"
#include "common/vectors.h"

#include <algorithm>
#include <limits>

namespace torchcorr {
namespace {

constexpr int64_t kChunkElements = 1 << 14;  // elements of a tile that one thread takes at once
constexpr int64_t kSampled = 8;              // one row in so many tells level and range at first
constexpr int64_t kRowsToSample = 64;        // a tile of fewer rows is read whole
constexpr double kMisjudged = 16;            // a mean square that far from one is scaled again

// What a look at some elements finds: sum, squares about a level, and how many are finite.
struct Range {
  double sum[kVector] = {}, squares[kVector] = {}, count[kVector] = {};
};

// What writing a tile finds: the sum of squares, and whether all was finite.
struct Written {
  double power[kVector] = {};
  bool finite = true;
};

// v - v is NaN for an Inf or a NaN, and zero otherwise.
template <class T>
TORCHCORR_INLINE void survey_row(int64_t n, const T* x, double level, double scale, Range& range) {
  Vector sum = read(range.sum), squares = read(range.squares), count = read(range.count);
  const auto look = [&](const Vector& v) TORCHCORR_FLAT {
    const auto finite = v - v == 0.0;
    const Vector d = (finite ? v - level : Vector{}) * scale;
    sum += d;
    squares += d * d;
    count += finite ? Vector{} + 1.0 : Vector{};
  };
  int64_t i = 0;
  for (; i + kVector <= n; i += kVector) look(read(x + i));
  for (; i < n; ++i) look(Vector{} + static_cast<double>(x[i]));
  write(range.sum, sum);
  write(range.squares, squares);
  write(range.count, count);
}

TORCHCORR_CLONES void survey(int64_t n, const float* x, double level, double scale, Range& r) {
  survey_row(n, x, level, scale, r);
}
TORCHCORR_CLONES void survey(int64_t n, const double* x, double level, double scale, Range& r) {
  survey_row(n, x, level, scale, r);
}

// out = (x - level) * scale where x is finite, 0 elsewhere.
template <class T, class Out>
TORCHCORR_INLINE void centre_row(int64_t n, const T* x, double level, double scale, Out* out,
                                 Written& w) {
  Vector power = read(w.power), strange = {};
  const auto take = [&](const Vector& v) TORCHCORR_FLAT {
    const Vector nothing = v - v;
    const Vector d = nothing == 0.0 ? (v - level) * scale : Vector{};
    strange += nothing;
    power += d * d;
    return d;
  };
  int64_t i = 0;
  for (; i + kVector <= n; i += kVector) write(out + i, take(read(x + i)));
  if (i < n) {
    // Lanes behind the end hold the level, which is centred to zero.
    Vector v = Vector{} + level;
    for (int64_t l = 0; l < n - i; ++l) v[l] = static_cast<double>(x[i + l]);
    write_part(n - i, out + i, take(v));
  }
  write(w.power, power);
  w.finite = w.finite && total_of(strange) == 0.0;
}

#define TORCHCORR_CENTRE(T, Out)                                                               \
  TORCHCORR_CLONES void centre(int64_t n, const T* x, double level, double scale, Out* out,    \
                               Written& w) {                                                   \
    centre_row(n, x, level, scale, out, w);                                                    \
  }
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

// The power of two that brings `value` into [1/2, 1); 1 for zero.
double scale_for(double value) {
  if (!(value > 0 && value <= std::numeric_limits<double>::max())) return 1;
  int exponent = 0;
  std::frexp(value, &exponent);
  return std::ldexp(1.0, -std::clamp(exponent, -1000, 1000));
}

// Tiles of `lanes` at a time: one, or two whose elements lie side by side.
template <class T, class Out>
class Gather {
 public:
  Gather(const TileGrid& grid, const Sizes& tiles, const T* input, bool centred, int64_t lanes,
         Out* out, double* stats)
      : g_(grid), tiles_(tiles), input_(input), centred_(centred), lanes_(lanes), out_(out),
        stats_(stats) {
    rows_ = g_.channels * g_.length[0] * g_.length[1];
    chunk_ = std::max<int64_t>(1, kChunkElements / (g_.length[2] * lanes));
    chunks_ = ceil_div(rows_, chunk_);
  }

  void run() {
    const int64_t count = static_cast<int64_t>(tiles_.size()), groups = count / lanes_;
    const int64_t elements = g_.channels * g_.tile_size();
    std::vector<Written> written(groups * chunks_ * lanes_);
    torch::stable::parallel_for(0, count, ceil_div(kChunkElements, elements),
                                [&](int64_t begin, int64_t end) {
                                  for (int64_t t = begin; t < end; ++t) settle(t);
                                });
    torch::stable::parallel_for(0, groups * chunks_, 1 + kChunkElements / (chunk_ * g_.length[2] * lanes_ + 1),
                                [&](int64_t begin, int64_t end) {
                                  for (int64_t u = begin; u < end; ++u) write(u, written);
                                });
    for (int64_t group = 0; group < groups; ++group) {
      bool again = false;
      for (int64_t lane = 0; lane < lanes_; ++lane) again |= !conclude(group, lane, written);
      if (!again) continue;
      for (int64_t lane = 0; lane < lanes_; ++lane) correct(group * lanes_ + lane);
      for (int64_t c = 0; c < chunks_; ++c) write(group * chunks_ + c, written);
      for (int64_t lane = 0; lane < lanes_; ++lane) conclude(group, lane, written);
    }
  }

 private:
  // Level and scale of a tile, from one row in kSampled where there are many.
  void settle(int64_t tile) const {
    const int64_t step = rows_ >= kRowsToSample ? kSampled : 1;
    const TilePlace place(g_, tiles_[tile]);
    double* own = stats_ + tile * kStats;
    own[0] = 0, own[1] = 1, own[2] = 0, own[3] = 0;
    const auto look_again = [&] {
      Range range;
      for (int64_t r = 0; r < rows_; r += step) {
        const TileRow<T> row = row_of(place, r);
        if (row.end > row.begin) {
          survey(row.end - row.begin, row.data + row.begin, own[0], own[1], range);
        }
      }
      return range;
    };
    Range range = look_again();
    const double count = total_of_lanes(range.count);
    if (count == 0) return;
    if (centred_) {
      // Few digits, so that subtracting it is exact for whatever is not far smaller.
      const float level = static_cast<float>(total_of_lanes(range.sum) / count);
      if (std::isfinite(level)) own[0] = static_cast<double>(level);
      range = look_again();
    }
    own[1] = scale_for(std::sqrt(total_of_lanes(range.squares) / count));
  }

  // After the whole tile was seen: a scale that a sample misjudged, or squares that overflowed.
  void correct(int64_t tile) const {
    double* own = stats_ + tile * kStats;
    const TilePlace place(g_, tiles_[tile]);
    double largest = 0;
    for (int64_t r = 0; r < rows_; ++r) {
      const TileRow<T> row = row_of(place, r);
      for (int64_t x = row.begin; x < row.end; ++x) {
        const double d = std::abs(static_cast<double>(row.data[x]) - own[0]);
        if (d <= std::numeric_limits<double>::max()) largest = std::max(largest, d);
      }
    }
    const double power = own[2], root = std::sqrt(power);
    const bool fits = power > 1e-200 && power < 1e200;
    own[1] = fits ? own[1] * scale_for(root) : scale_for(largest);
  }

  bool conclude(int64_t group, int64_t lane, const std::vector<Written>& written) const {
    double power = 0;
    bool finite = true;
    for (int64_t c = 0; c < chunks_; ++c) {
      const Written& w = written[(group * chunks_ + c) * lanes_ + lane];
      power += total_of_lanes(w.power);
      finite = finite && w.finite;
    }
    double* own = stats_ + (group * lanes_ + lane) * kStats;
    own[2] = power / static_cast<double>(g_.channels * g_.tile_size());
    own[3] = finite ? 0.0 : 1.0;
    // A tile that overhangs its input is mostly zeros, which is no reason to scale again.
    return own[2] == 0 || (own[2] < kMisjudged && own[2] > 1e-12);
  }

  TileRow<T> row_of(const TilePlace& place, int64_t r) const {
    const int64_t y = r % g_.length[1], z = r / g_.length[1] % g_.length[0];
    if (y >= g_.extent[1] || z >= g_.extent[0]) return {};
    return TileRow<T>(g_, place, input_, r / g_.length[1] / g_.length[0], z, y);
  }

  void write(int64_t unit, std::vector<Written>& written) const {
    const int64_t group = unit / chunks_, width = g_.length[2];
    const int64_t first = unit % chunks_ * chunk_, last = std::min(first + chunk_, rows_);
    const bool zipped = lanes_ == 2;
    const TilePlace places[2] = {TilePlace(g_, tiles_[group * lanes_]),
                                 TilePlace(g_, tiles_[group * lanes_ + lanes_ - 1])};
    for (int64_t lane = 0; lane < lanes_; ++lane) written[unit * lanes_ + lane] = {};
    std::vector<Out> line(zipped ? 2 * width : 0);
    for (int64_t r = first; r < last; ++r) {
      Out* target = out_ + (group * rows_ + r) * width * lanes_;
      for (int64_t lane = 0; lane < lanes_; ++lane) {
        Out* to = zipped ? line.data() + lane * width : target;
        const double* own = stats_ + (group * lanes_ + lane) * kStats;
        const TileRow<T> row = row_of(places[lane], r);
        std::fill(to, to + row.begin, Out(0));
        if (row.end > row.begin) {
          centre(row.end - row.begin, row.data + row.begin, own[0], own[1], to + row.begin,
                 written[unit * lanes_ + lane]);
        }
        std::fill(to + row.end, to + width, Out(0));
      }
      if (zipped) zip(width, line.data(), line.data() + width, target);
    }
  }

  const TileGrid& g_;
  const Sizes& tiles_;
  const T* input_;
  bool centred_;
  int64_t lanes_;
  Out* out_;
  double* stats_;
  int64_t rows_, chunk_, chunks_;
};

}  // namespace

std::tuple<Tensor, Tensor> gather_tiles(const Tensor& input, Sizes tiles, Sizes geometry,
                                        bool centred, bool wide, bool pairs) {
  const TileGrid grid(input, geometry);
  const Tensor image = packed(input);
  const int64_t count = static_cast<int64_t>(tiles.size()), lanes = pairs ? 2 : 1;
  STD_TORCH_CHECK(count % lanes == 0, "pairs need an even number of tiles, got ", count);
  const ScalarType type = wide ? ScalarType::Double : image.scalar_type();
  Tensor out = torch::stable::new_empty(image, grid.tile_shape(count / lanes, pairs), type);
  Tensor stats = new_float64(image, {count, kStats});
  if (out.numel() == 0) return {out, stats};
  with_real_type(image, "input", [&](auto zero) {
    using T = decltype(zero);
    with_real_type(out, "tiles", [&](auto out_zero) {
      using Out = decltype(out_zero);
      Gather<T, Out>(grid, tiles, image.const_data_ptr<T>(), centred, lanes,
                     out.mutable_data_ptr<Out>(), stats.mutable_data_ptr<double>())
          .run();
    });
  });
  return {out, stats};
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("gather_tiles", TORCH_BOX(&torchcorr::gather_tiles));
}
