// The last step of a score: numerator times norm, or the definition where the norm says so.

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "tiles/steps.h"
#include "common/exact_window.h"
#include "common/tiling.h"

namespace torchcorr {
namespace {

// What a row of sums holds: that of their squares, the largest size; and of its norms the largest,
// and how many are marked.
struct Content {
  double square = 0, peak = 0, norm = 0;
  int64_t marked = 0;

  void add(const Content& other) {
    square += other.square;
    peak = std::max(peak, other.peak);
    norm = std::max(norm, other.norm);
    marked += other.marked;
  }
};

// 64 bytes at a time, of either type.
template <class T>
struct Block {
  static constexpr int64_t kLanes = 64 / sizeof(T);
  typedef T Lanes __attribute__((vector_size(64)));
  typedef T Loose __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
  static Lanes read(const T* p) { return *reinterpret_cast<const Loose*>(p); }
};

template <class T>
using Lanes = typename Block<T>::Lanes;

// Every second of two blocks.
TORCHCORR_INLINE Lanes<float> even(const Lanes<float>& a, const Lanes<float>& b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
TORCHCORR_INLINE Lanes<double> even(const Lanes<double>& a, const Lanes<double>& b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
}

template <class Out, class In>
TORCHCORR_INLINE void write(Out* to, const Lanes<In>& v) {
  typedef Out Loose
      __attribute__((vector_size(Block<In>::kLanes * sizeof(Out)), aligned(sizeof(Out)), may_alias));
  *reinterpret_cast<Loose*>(to) = __builtin_convertvector(v, Loose);
}

// Sums of squares and largest sizes, a lane each.
template <class T>
struct Held {
  Lanes<T> square = {}, peak = {};

  TORCHCORR_INLINE void add(const Lanes<T>& v) {
    const Lanes<T> size = v < 0 ? -v : v;
    square += v * v;
    peak = size > peak ? size : peak;
  }
  TORCHCORR_INLINE void into(Content& found) const {
    for (int64_t l = 0; l < Block<T>::kLanes; ++l) {
      found.square += static_cast<double>(square[l]);
      found.peak = std::max(found.peak, static_cast<double>(peak[l]));
    }
  }
};

TORCHCORR_INLINE void hold(double value, Content& found) {
  found.square += value * value;
  found.peak = std::max(found.peak, std::abs(value));
}

// out = numerator * norm within [-1, 1]; `tail` more numerators count for what the row holds.
template <int STEP, class In, class Out>
TORCHCORR_INLINE Content finish(int64_t n, int64_t tail, const In* numerator, int64_t step,
                                const In* norm, Out* out) {
  constexpr int64_t kLanes = Block<In>::kLanes;
  const int64_t by = STEP > 0 ? STEP : step, all = n + tail;
  Held<In> held;
  Lanes<In> largest = {};
  auto marked = largest < largest;
  int64_t i = 0;
  const auto block = [&]() TORCHCORR_FLAT {
    if constexpr (STEP == 1) return Block<In>::read(numerator + i);
    return even(Block<In>::read(numerator + 2 * i), Block<In>::read(numerator + 2 * i + kLanes));
  };
  if constexpr (STEP == 1 || STEP == 2) {
    // A block of every second number ends with one of the other tile's: the last is left to single
    // steps, as it may end the memory.
    const Lanes<In> one = Lanes<In>{} + 1, none = {};
    for (; i + kLanes <= n && i + kLanes < all + (STEP == 1); i += kLanes) {
      const Lanes<In> value = block(), by_norm = Block<In>::read(norm + i);
      const Lanes<In> score = value * by_norm;
      const Lanes<In> high = score > one ? one : score, clamped = high < -one ? -one : high;
      write<Out, In>(out + i, by_norm == 0 ? none : clamped);
      marked += by_norm < 0;
      largest = by_norm > largest ? by_norm : largest;
      held.add(value);
    }
  }
  Content found;
  const auto single = [&](int64_t end) TORCHCORR_FLAT {
    for (; i < end; ++i) {
      const In value = numerator[i * by], by_norm = norm[i], score = value * by_norm;
      const In high = score > 1 ? In(1) : score, clamped = high < -1 ? In(-1) : high;
      out[i] = static_cast<Out>(by_norm == 0 ? In(0) : clamped);
      found.marked += by_norm < 0;
      if (by_norm > found.norm) found.norm = static_cast<double>(by_norm);
      hold(static_cast<double>(value), found);
    }
  };
  single(n);
  if constexpr (STEP == 1 || STEP == 2) {
    for (; i + kLanes < all; i += kLanes) held.add(block());
  }
  for (; i < all; ++i) hold(static_cast<double>(numerator[i * by]), found);
  held.into(found);
  for (int64_t l = 0; l < kLanes; ++l) {
    found.norm = std::max(found.norm, static_cast<double>(largest[l]));
    found.marked -= static_cast<int64_t>(marked[l]);
  }
  return found;
}

template <class T>
TORCHCORR_INLINE Content content(int64_t n, const T* x) {
  Held<T> held;
  int64_t i = 0;
  for (; i + Block<T>::kLanes <= n; i += Block<T>::kLanes) held.add(Block<T>::read(x + i));
  Content found;
  for (; i < n; ++i) hold(static_cast<double>(x[i]), found);
  held.into(found);
  return found;
}

#define TORCHCORR_FINISH(In, Out)                                                            \
  TORCHCORR_CLONES Content finish_row(int64_t n, int64_t tail, const In* numerator,          \
                                      int64_t step, const In* norm, Out* out) {              \
    return step == 1   ? finish<1>(n, tail, numerator, step, norm, out)                      \
           : step == 2 ? finish<2>(n, tail, numerator, step, norm, out)                      \
                       : finish<0>(n, tail, numerator, step, norm, out);                     \
  }
TORCHCORR_FINISH(float, float)
TORCHCORR_FINISH(double, float)
TORCHCORR_FINISH(double, double)
TORCHCORR_FINISH(float, double)
#undef TORCHCORR_FINISH

#define TORCHCORR_CONTENT(T) \
  TORCHCORR_CLONES Content content_of(int64_t n, const T* x) { return content(n, x); }
TORCHCORR_CONTENT(float)
TORCHCORR_CONTENT(double)
#undef TORCHCORR_CONTENT

// Where the numerators of a tile and a template lie: (tile, template, *positions), or pairs of
// tiles with their elements side by side.
struct Numerators {
  int64_t lanes, templates, full[3] = {1, 1, 1}, skip[3] = {1, 1, 1};

  Numerators(const Tensor& x, const Tensor& norms, const Sizes& stride)
      : lanes(x.dim() - static_cast<int64_t>(stride.size()) - 1), templates(x.size(1)) {
    const int64_t ndim = static_cast<int64_t>(stride.size());
    STD_TORCH_CHECK(lanes == 1 || lanes == 2, "numerators have too many axes");
    for (int64_t i = 0; i < ndim; ++i) {
      const int64_t axis = 3 - ndim + i;
      full[axis] = x.size(2 + i);
      // Those of every position, or only of the positions that are wanted.
      skip[axis] = full[axis] == norms.size(1 + i) ? 1 : stride[i];
    }
  }

  int64_t row(int64_t tile, int64_t k, int64_t z, int64_t y) const {
    const int64_t at = (((tile / lanes * templates + k) * full[0] + z * skip[0]) * full[1] +
                        y * skip[1]) * full[2];
    return at * lanes + tile % lanes;
  }
  int64_t step() const { return skip[2] * lanes; }
  // Whether every position is wanted.
  bool dense() const { return skip[0] * skip[1] * skip[2] == 1; }
};

// The last `ndim` sizes of a tensor as three, ones in front.
void last_three(const Tensor& x, int64_t ndim, int64_t (&to)[3]) {
  for (int64_t i = 0; i < ndim; ++i) to[3 - ndim + i] = x.size(x.dim() - ndim + i);
}

// One call: tiles of numerators to scores.
template <class In, class Out>
struct Finish {
  const TileGrid& grid;
  const Numerators& layout;
  const Sizes& ids;
  const ExactWindow& exact;
  const In *numerators, *norms;
  const double *stats, *taps;
  const Out* image;
  Out* out;
  int64_t own[3] = {1, 1, 1}, size[3] = {1, 1, 1}, step[3] = {1, 1, 1};
  int64_t first_template, all, items_each, window;

  int64_t rows() const { return own[0] * own[1]; }

  // Calls f(positions, first position of the map, z, y, norms) for row `row` of tile t, if it is
  // one of the map's.
  template <class F>
  void in_row(int64_t t, int64_t row, const F& f) const {
    const TilePlace place(grid, ids[t]);
    const int64_t z = place.index[0] * own[0] + row / own[1];
    const int64_t y = place.index[1] * own[1] + row % own[1];
    const int64_t x = place.index[2] * own[2], n = std::min(own[2], size[2] - x);
    if (!place.exists || z >= size[0] || y >= size[1] || n <= 0) return;
    f(place, n, z, y, x, norms + (t * rows() + row) * own[2]);
  }

  Out* target(const TilePlace& p, int64_t k, int64_t z, int64_t y, int64_t x) const {
    const int64_t which = p.item * all + first_template + k;
    return out + ((which * size[0] + z) * size[1] + y) * size[2] + x;
  }

  // Writes the scores of a row, and what it holds for each template.
  void write(int64_t t, int64_t row, Content* found) const {
    in_row(t, row, [&](const TilePlace& p, int64_t n, int64_t z, int64_t y, int64_t x,
                       const In* norm) {
      const int64_t tail = layout.dense() && layout.lanes == 2 ? layout.full[2] - n : 0;
      for (int64_t k = 0; k < layout.templates; ++k) {
        const In* from = numerators + layout.row(t, k, row / own[1], row % own[1]);
        found[k] = finish_row(n, tail, from, layout.step(), norm, target(p, k, z, y, x));
      }
    });
  }

  // Planes and rows of a tile's sums that `write` reads.
  std::pair<int64_t, int64_t> read(int64_t t) const {
    const TilePlace place(grid, ids[t]);
    if (!place.exists || !layout.dense()) return {0, 0};
    return {std::min(own[0], size[0] - place.index[0] * own[0]),
            std::min(own[1], size[1] - place.index[1] * own[1])};
  }

  // What some rows of a pair's sums hold that `write` does not read; of a row that it reads for one
  // of the two, both count again.
  Content rest(int64_t pair, int64_t k, int64_t begin, int64_t end) const {
    const auto one = read(2 * pair), other = read(2 * pair + 1);
    const int64_t planes = std::min(one.first, other.first);
    const int64_t rows = std::min(one.second, other.second);
    const int64_t height = layout.full[1], width = 2 * layout.full[2];
    const In* first = numerators + layout.row(2 * pair, k, 0, 0);
    Content found;
    for (int64_t row = begin; row < end; ++row) {
      if (row / height < planes && row % height < rows) continue;
      found.add(content_of(width, first + row * width));
    }
    return found;
  }

  // The doubtful windows of a row from their definition.
  void recompute(int64_t t, int64_t row, int64_t k, double limit) const {
    in_row(t, row, [&](const TilePlace& p, int64_t n, int64_t z, int64_t y, int64_t x,
                       const In* norm) {
      const int64_t strides[3] = {grid.item_size, grid.size[1] * grid.size[2], grid.size[2]};
      const Out* start = image + p.item * grid.channels * grid.item_size +
                         (z * step[0] * grid.size[1] + y * step[1]) * grid.size[2] + x * step[2];
      const double* own_taps = taps + (p.item / items_each * all + first_template + k) * window;
      Out* to = target(p, k, z, y, x);
      const double scale = stats[t * kStats + 1];
      const auto put = [&](int64_t v, double score) {
        to[v] = static_cast<Out>(score > 1 ? 1.0 : score < -1 ? -1.0 : score);
      };
      int64_t ready = 0, first = 0;  // `sums` holds the windows from first to ready
      double sums[kNeighbours];
      for (int64_t v = 0; v < n; ++v) {
        if (!doubtful(norm[v], limit)) continue;
        const Out* seen = start + v * step[2];
        // An element of the window stands for its offset.
        const double level = exact.zero_mean ? static_cast<double>(*seen) : 0.0;
        if (!std::isfinite(norm[v])) {
          put(v, score_of_window(seen, strides, own_taps, exact, scale));
          continue;
        }
        if (std::is_same_v<Out, float> && v >= ready && step[2] == 1 && n >= kNeighbours) {
          const int64_t begin = std::min(v, n - kNeighbours);
          int64_t many = 0;
          for (int64_t i = v; i < begin + kNeighbours; ++i) many += doubtful(norm[i], limit);
          if (many > kNeighbours / 8) {
            first = begin, ready = begin + kNeighbours;
            products_of_windows(start + first, strides, own_taps, exact, level, sums);
          }
        }
        const double sum =
            v < ready ? sums[v - first] : product_of_window(seen, strides, own_taps, exact, level);
        put(v, sum * scale * std::abs(static_cast<double>(norm[v])));
      }
    });
  }

  static bool doubtful(In norm, double limit) {
    return norm < 0 || norm > static_cast<In>(limit);
  }

  int64_t doubts(int64_t t, int64_t row, double limit) const {
    int64_t found = 0;
    in_row(t, row, [&](const TilePlace&, int64_t n, int64_t, int64_t, int64_t, const In* norm) {
      for (int64_t v = 0; v < n; ++v) found += doubtful(norm[v], limit);
    });
    return found;
  }

  // The largest norm of each pair and template whose scores are told by the sums: both tiles'
  // elements and all their sums bring in rounding (math.md, noise).
  std::vector<double> limits(const std::vector<Content>& rows_found, double noise) const {
    constexpr int64_t kRows = 16;
    const int64_t templates = layout.templates, full_rows = layout.full[0] * layout.full[1];
    const int64_t pairs = static_cast<int64_t>(ids.size()) / 2, lines = pairs * templates;
    const int64_t parts = ceil_div(full_rows, kRows);
    std::vector<Content> found(lines * parts);
    torch::stable::parallel_for(0, lines * parts, 4, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        const int64_t line = u / parts, first = u % parts * kRows;
        const int64_t last = std::min(first + kRows, full_rows);
        found[u] = rest(line / templates, line % templates, first, last);
      }
    });
    std::vector<double> to(lines);
    for (int64_t line = 0; line < lines; ++line) {
      Content all;
      for (int64_t i = 0; i < parts; ++i) all.add(found[line * parts + i]);
      const int64_t pair = line / templates;
      if (layout.dense()) {
        for (int64_t row = 2 * pair * rows(); row < 2 * (pair + 1) * rows(); ++row) {
          all.add(rows_found[row * templates + line % templates]);
        }
      }
      const double volume =
          static_cast<double>(layout.full[0] * layout.full[1] * layout.full[2]);
      const double* own_stats = stats + 2 * pair * kStats;
      const double power = (own_stats[2] + own_stats[kStats + 2]) * exact.count;
      to[line] = 1 / (noise * (std::sqrt(power + all.square / volume) + all.peak / 2));
    }
    return to;
  }

  // All tiles; `left` gets the number of doubtful windows that are too many to compute again.
  void run(double noise, int64_t budget, int64_t* left) const {
    const int64_t tiles = static_cast<int64_t>(ids.size()), templates = layout.templates;
    std::vector<Content> found(tiles * rows() * templates);
    const int64_t grain = std::max<int64_t>(1, (1 << 14) / (own[2] * templates));
    torch::stable::parallel_for(0, tiles * rows(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) write(u / rows(), u % rows(), &found[u * templates]);
    });
    std::vector<double> most;
    if (noise > 0 && layout.lanes == 2) most = limits(found, noise);
    for (int64_t t = 0; t < tiles; ++t) {
      left[t] = 0;
      for (int64_t k = 0; k < templates; ++k) {
        const double limit =
            most.empty() ? std::numeric_limits<double>::infinity() : most[t / 2 * templates + k];
        left[t] += settle(t, k, limit, budget, found.data());
      }
    }
  }

  // Computes the doubtful windows of a tile and template again, or returns how many there are.
  int64_t settle(int64_t t, int64_t k, double limit, int64_t budget, const Content* found) const {
    Content all;
    for (int64_t row = t * rows(); row < (t + 1) * rows(); ++row) {
      all.add(found[row * layout.templates + k]);
    }
    if (all.marked == 0 && !(all.norm > static_cast<In>(limit))) return 0;
    std::vector<int64_t> counts(rows());
    torch::stable::parallel_for(0, rows(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) counts[row] = doubts(t, row, limit);
    });
    int64_t sum = 0;
    for (int64_t n : counts) sum += n;
    if (sum > budget) return sum;
    torch::stable::parallel_for(0, rows(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        if (counts[row] > 0) recompute(t, row, k, limit);
      }
    });
    return 0;
  }
};

}  // namespace

Tensor finish_tiles(const Tensor& numerators_in, const Tensor& norms, const Tensor& stats,
                    const Tensor& input, const Tensor& weights, Sizes ids, Sizes geometry,
                    Sizes stride, int64_t first_template, bool zero_mean, double eps, double noise,
                    int64_t budget, const Tensor& out) {
  const int64_t tiles = static_cast<int64_t>(ids.size());
  Tensor left = torch::stable::new_zeros(stats, {tiles}, ScalarType::Long);
  if (out.numel() == 0 || numerators_in.numel() == 0) return left;
  const Tensor numerators = packed(numerators_in), image = packed(input), taps = packed(weights);
  const TileGrid grid(image, geometry);
  const Numerators layout(numerators, norms, stride);
  const int64_t ndim = grid.ndim;
  ExactWindow by{grid.channels, {1, 1, 1}, 1.0, eps, zero_mean};
  last_three(taps, ndim, by.window);
  const int64_t window = grid.channels * by.window[0] * by.window[1] * by.window[2];
  by.count = static_cast<double>(window);
  with_real_type(numerators, "numerators", [&](auto in_zero) {
    using In = decltype(in_zero);
    with_real_type(out, "out", [&](auto out_zero) {
      using Out = decltype(out_zero);
      Finish<In, Out> call{grid, layout, ids, by, numerators.const_data_ptr<In>(),
                           norms.const_data_ptr<In>(), stats.const_data_ptr<double>(),
                           taps.const_data_ptr<double>(), image.const_data_ptr<Out>(),
                           out.mutable_data_ptr<Out>()};
      last_three(norms, ndim, call.own);
      last_three(out, ndim, call.size);
      for (int64_t i = 0; i < ndim; ++i) call.step[3 - ndim + i] = stride[i];
      call.first_template = first_template;
      call.all = taps.size(1);
      call.items_each = image.size(0) / taps.size(0);
      call.window = window;
      call.run(noise, budget, left.mutable_data_ptr<int64_t>());
    });
  });
  return left;
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("finish_tiles", TORCH_BOX(&torchcorr::finish_tiles));
}
