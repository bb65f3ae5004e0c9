// Windows of the images of dense layers, and their sums, in float64.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "common/axes.h"
#include "direct/lines.h"
#include "common/targets.h"

namespace torchcorr::direct {

// Elements that are worth another thread.
constexpr int64_t kGrain = 1 << 15;

// Rows of float64 lie so far apart that whole vectors of them are read and written.
inline int64_t padded(int64_t n) { return ceil_div(n, kDoubles) * kDoubles; }

// Windows of images (items, C, *size), with missing axes in front.
struct Windows {
  int64_t items, channels;
  Axes3 size, window, step, count;

  Windows(const Tensor& x, const Sizes& of, const Sizes& stride)
      : items(x.size(0)), channels(x.size(1)),
        size(last_sizes(x, static_cast<int64_t>(of.size()))), window(last_axes(of)),
        step(last_axes(stride)) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_contiguous(),
                    "dense windows take contiguous float32");
    for (int a = 0; a < 3; ++a) count[a] = (size[a] - window[a]) / step[a] + 1;
  }
  int64_t elements() const { return product(size); }
  int64_t positions() const { return product(count); }
  double of_channel() const { return static_cast<double>(product(window)); }
  double of_window() const { return of_channel() * static_cast<double>(channels); }
  Sizes map() const { return {items, count[0], count[1], count[2]}; }
  int64_t pitch() const { return padded(count[2]); }
  // Elements of a row that is read by whole vectors from any window on.
  int64_t line() const { return padded(padded(size[2]) + window[2]); }
};

// Vectors that lie beside each other, COUNT times kDoubles elements together.
template <int BYTES, int COUNT = 1>
struct Block {
  static constexpr int64_t lanes = lanes_of<double, BYTES>;
  static constexpr int vectors = static_cast<int>(COUNT * kDoubles / lanes);
  Wide<BYTES> values[vectors];

  TORCHCORR_INLINE void add(const double* x) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) values[v] += load<BYTES>(x + v * lanes);
  }
  TORCHCORR_INLINE void multiply(const double* x, double by) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) values[v] *= load<BYTES>(x + v * lanes) * by;
  }
  TORCHCORR_INLINE void write(double* out) const {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) put(values[v], out + v * lanes);
  }
};

// Calls f(how many blocks, i) for all blocks of n elements, two at once, of which neither waits for its
// own last addition.
template <class F>
TORCHCORR_INLINE void for_blocks(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kDoubles < n; i += 2 * kDoubles) f(std::integral_constant<int, 2>{}, i);
  if (i < n) f(std::integral_constant<int, 1>{}, i);
}

// The sums of `window` neighbours from each of n places on, by whole blocks.
template <int BYTES>
TORCHCORR_INLINE void sum_neighbours(int64_t n, int64_t window, const double* x, double* out) {
  for_blocks(n, [&](auto blocks, int64_t i) TORCHCORR_FLAT {
    Block<BYTES, blocks> total = {};
    for (int64_t j = 0; j < window; ++j) total.add(x + i + j);
    total.write(out + i);
  });
}

// The sums of a row of elements along the windows of a row.
template <int BYTES>
TORCHCORR_INLINE void sum_row(const Windows& w, const double* x, double* out) {
  const int64_t step = w.step[2], n = w.count[2];
  if (step == 1) return sum_neighbours<BYTES>(n, w.window[2], x, out);
  for (int64_t i = 0; i < n; ++i) {
    double total = 0;
    for (int64_t j = 0; j < w.window[2]; ++j) total += x[i * step + j];
    out[i] = total;
  }
}

// Rows below each other in some planes.
struct Rows {
  const double* first;
  int64_t planes, plane_pitch, rows, pitch;
};

// What lies in a block's place of all rows.
template <int BYTES, int COUNT = 1>
TORCHCORR_INLINE Block<BYTES, COUNT> sum_of_rows(const Rows& of, int64_t i) {
  Block<BYTES, COUNT> total = {};
  for (int64_t a = 0; a < of.planes; ++a) {
    const double* row = of.first + a * of.plane_pitch + i;
    for (int64_t r = 0; r < of.rows; ++r, row += of.pitch) total.add(row);
  }
  return total;
}

// Writes x - level.
template <int BYTES>
TORCHCORR_INLINE void widen_row(int64_t n, const float* x, double level, double* out) {
  constexpr int64_t lanes = lanes_of<double, BYTES>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) put(widened<BYTES>(x + i) - level, out + i);
  for (; i < n; ++i) out[i] = static_cast<double>(x[i]) - level;
}

}  // namespace torchcorr::direct
