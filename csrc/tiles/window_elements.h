// The elements of one window whose elements have weights, for sums from their definition.
#pragma once

#include <algorithm>
#include <limits>

#include "common/axes.h"
#include "common/vectors.h"

namespace torchcorr {

// Values (channels, *size) of one item, of which one channel stands for all; or none.
template <class T>
struct ItemRows {
  const T* data = nullptr;
  int64_t channels = 0;
  Axes3 size{1, 1, 1};

  // The row of a window that begins at `at`.
  const T* row(int64_t channel, const Axes3& at, int64_t z, int64_t y) const {
    const int64_t plane = (channels == 1 ? 0 : channel) * size[0] + at[0] + z;
    return data + (plane * size[1] + at[1] + y) * size[2] + at[2];
  }
};

// Where a window lies; the weights of its elements, and of its places, or none where all are 1; and
// the template that it is compared with, if any.
template <class T>
struct WeightedWindow {
  ItemRows<T> seen, there;
  ItemRows<double> mask, other;
  Axes3 from, size;
};

// Calls f(elements, those of the template, weights) for all elements of some channels, as vectors
// that end with weights of 0. Without a template its elements are 0.
template <class T, class F>
TORCHCORR_INLINE void for_elements(const WeightedWindow<T>& of, int64_t begin, int64_t end,
                                   const F& f) {
  const Axes3 &size = of.size, origin{0, 0, 0};
  const int64_t n = size[2];
  const Doubles none = {}, one = none + 1.0;
  for (int64_t c = begin; c < end; ++c) {
    for (int64_t z = 0; z < size[0]; ++z) {
      for (int64_t y = 0; y < size[1]; ++y) {
        const T* x = of.seen.row(c, of.from, z, y);
        const T* g = of.there.data ? of.there.row(c, of.from, z, y) : nullptr;
        const double* m = of.mask.data ? of.mask.row(c, origin, z, y) : nullptr;
        const double* t = of.other.data ? of.other.row(c, origin, z, y) : nullptr;
        int64_t i = 0;
        for (; i + kDoubles <= n; i += kDoubles) {
          const Doubles a = g ? read(g + i) : one, b = m ? read(m + i) : one;
          f(read(x + i), t ? read(t + i) : none, a * b);
        }
        if (i == n) continue;
        const int64_t rest = n - i;
        Doubles there = {};
        for (int64_t l = 0; l < rest; ++l) there[l] = g ? static_cast<double>(g[i + l]) : 1.0;
        f(read_part(rest, x + i), t ? read_part(rest, t + i) : none,
          m ? there * read_part(rest, m + i) : there);
      }
    }
  }
}

// What elements with weight have in common: their weighted mean, and their extremes. In halves, since
// without AVX-512 GCC compares longer vectors element by element.
struct Level {
  using Half = Vector<double, 32>;
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Doubles sum = {};
  Half highest[2] = {Half{} - kInfinity, Half{} - kInfinity};
  Half lowest[2] = {Half{} + kInfinity, Half{} + kInfinity};

  TORCHCORR_INLINE void add(const Doubles& v, const Doubles& weight) {
    sum += weight * v;
    add_half(0, __builtin_shufflevector(v, v, 0, 1, 2, 3),
             __builtin_shufflevector(weight, weight, 0, 1, 2, 3));
    add_half(1, __builtin_shufflevector(v, v, 4, 5, 6, 7),
             __builtin_shufflevector(weight, weight, 4, 5, 6, 7));
  }
  double most() const { return extreme([&](int h, int l) { return highest[h][l]; }); }
  bool is_flat() const { return most() <= -extreme([&](int h, int l) { return -lowest[h][l]; }); }

 private:
  TORCHCORR_INLINE void add_half(int h, const Half& v, const Half& weight) {
    const Half high = weight > 0.0 ? v : highest[h], low = weight > 0.0 ? v : lowest[h];
    highest[h] = high > highest[h] ? high : highest[h];
    lowest[h] = low < lowest[h] ? low : lowest[h];
  }
  template <class Get>
  static double extreme(const Get& get) {
    double most = -kInfinity;
    for (int i = 0; i < kDoubles; ++i) most = std::max(most, get(i / 4, i % 4));
    return most;
  }
};

}  // namespace torchcorr
