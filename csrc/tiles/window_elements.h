// The elements of one window whose elements have weights, for sums from their definition.
#pragma once

#include <algorithm>
#include <limits>

#include "common/axes.h"
#include "common/targets.h"

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
template <int BYTES, class T, class F>
TORCHCORR_INLINE void for_elements(const WeightedWindow<T>& of, int64_t begin, int64_t end,
                                   const F& f) {
  using Vec = Wide<BYTES>;
  constexpr int64_t kLanes = lanes_of<double, BYTES>;
  const Axes3 &size = of.size, origin{0, 0, 0};
  const int64_t n = size[2];
  const Vec none = {}, one = none + 1.0;
  for (int64_t c = begin; c < end; ++c) {
    for (int64_t z = 0; z < size[0]; ++z) {
      for (int64_t y = 0; y < size[1]; ++y) {
        const T* x = of.seen.row(c, of.from, z, y);
        const T* g = of.there.data ? of.there.row(c, of.from, z, y) : nullptr;
        const double* m = of.mask.data ? of.mask.row(c, origin, z, y) : nullptr;
        const double* t = of.other.data ? of.other.row(c, origin, z, y) : nullptr;
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) {
          const Vec a = g ? widened<BYTES>(g + i) : one, b = m ? widened<BYTES>(m + i) : one;
          f(widened<BYTES>(x + i), t ? widened<BYTES>(t + i) : none, a * b);
        }
        if (i == n) continue;
        const int64_t rest = n - i;
        Vec there = {};
        for (int64_t l = 0; l < rest; ++l) there[l] = g ? static_cast<double>(g[i + l]) : 1.0;
        f(widened_part<BYTES>(rest, x + i), t ? widened_part<BYTES>(rest, t + i) : none,
          m ? there * widened_part<BYTES>(rest, m + i) : there);
      }
    }
  }
}

// What elements with weight have in common: their weighted mean, and their extremes.
template <int BYTES>
struct Level {
  using Vec = Wide<BYTES>;
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Vec sum = {}, highest = Vec{} - kInfinity, lowest = Vec{} + kInfinity;

  TORCHCORR_INLINE void add(const Vec& v, const Vec& weight) {
    sum += weight * v;
    const Vec high = weight > 0.0 ? v : highest, low = weight > 0.0 ? v : lowest;
    highest = high > highest ? high : highest;
    lowest = low < lowest ? low : lowest;
  }
  TORCHCORR_INLINE double most() const {
    double most = -kInfinity;
    for (int64_t l = 0; l < lanes_in<Vec>; ++l) most = std::max(most, highest[l]);
    return most;
  }
  TORCHCORR_INLINE bool is_flat() const {
    double least = kInfinity;
    for (int64_t l = 0; l < lanes_in<Vec>; ++l) least = std::min(least, lowest[l]);
    return most() <= least;
  }
};

}  // namespace torchcorr
