// Triples (z, y, x): sizes, steps or places along three axes. Missing axes are those in front.
#pragma once

#include <array>

#include "common/tensors.h"

namespace torchcorr {

using Axes3 = std::array<int64_t, 3>;

TORCHCORR_INLINE int64_t product(const Axes3& a) { return a[0] * a[1] * a[2]; }

// One number for each axis, preceded by ones for the axes that are missing.
inline Axes3 last_axes(const int64_t* numbers, int64_t ndim) {
  Axes3 axes{1, 1, 1};
  for (int64_t i = 0; i < ndim; ++i) axes[3 - ndim + i] = numbers[i];
  return axes;
}

inline Axes3 last_axes(const Sizes& numbers) {
  return last_axes(numbers.data(), static_cast<int64_t>(numbers.size()));
}

// The sizes of a tensor's last `ndim` axes.
inline Axes3 last_sizes(const Tensor& x, int64_t ndim) {
  Axes3 axes{1, 1, 1};
  for (int64_t i = 0; i < ndim; ++i) axes[3 - ndim + i] = x.size(x.dim() - ndim + i);
  return axes;
}

// The last `ndim` of three numbers.
inline Sizes sizes_of(const Axes3& a, int64_t ndim) { return Sizes(a.end() - ndim, a.end()); }

// Indices of element i of an array of this size.
TORCHCORR_INLINE Axes3 unravel(int64_t i, const Axes3& size) {
  return {i / size[2] / size[1], i / size[2] % size[1], i % size[2]};
}

}  // namespace torchcorr
