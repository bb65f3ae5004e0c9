// The march along the last axis, on lanes of rows: what every kind of summary shares.
#pragma once

#include <vector>

#include "common/targets.h"
#include "windows/march.h"

namespace torchcorr {

// Vectors that hold the lanes of a column.
template <int BYTES>
constexpr int64_t lane_vectors = kLanes / lanes_of<double, BYTES>;

// Vector v of the lanes of column x.
template <int BYTES>
TORCHCORR_INLINE double* lane_vector(double* plane, int64_t x, int64_t v) {
  return plane + x * kLanes + v * lanes_of<double, BYTES>;
}

// The rounding error of the sum of two numbers (Knuth's two-sum).
template <class T>
TORCHCORR_INLINE T rounded_off(T a, T b, T sum) {
  const T other = sum - a;
  return (a - (sum - other)) + (b - other);
}

// 1/k for the counts of a block and of a window's remainder.
inline const double* reciprocals(int64_t n) {
  thread_local std::vector<double> table{0.0};
  for (int64_t k = static_cast<int64_t>(table.size()); k <= n; ++k) table.push_back(1.0 / k);
  return table.data();
}

template <class State>
TORCHCORR_INLINE void lane_windows(const WindowAxis& axis, int64_t count, double weight,
                                   const Rows& in, const Rows& suffix, const Rows& out,
                                   const double* inverse) {
  State back{}, front{};
  const double part = inverse[axis.window];
  window_march(
      axis, 0, count,
      [&](int64_t x, int64_t slot, int64_t k) {
        if (k == 1) {
          back.load(in, x);
        } else {
          State element;
          element.load(in, x);
          back.add(element, inverse[k], weight * (1 - inverse[k]));
        }
        back.store(suffix, slot);
      },
      [&](int64_t x, int64_t k) {
        if (k == 1) {
          front.load(in, x);
        } else {
          State element;
          element.load(in, x);
          front.add(element, inverse[k], weight * (1 - inverse[k]));
        }
      },
      [&](int64_t i, int64_t slot, int64_t na, int64_t nb) {
        State whole;
        whole.load(suffix, slot);
        if (nb > 0) whole.add(front, nb * part, weight * na * nb * part);
        whole.mark_non_finite();
        whole.store(out, i);
      });
}

}  // namespace torchcorr
