// Sums of planes, which correlations and their gradients are made of.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common/vectors.h"
#include "direct/geometry.h"

namespace torchcorr::direct {

// Products that a register adds one after the other, since rounding grows with their number; those
// and registers that one sum adds up before it is added to one of more digits; and products that one
// of the dense loop adds.
constexpr int64_t kTermsInRow = 24, kAdditions = 32, kTermsInLoop = 64;

// output(i) += sum_v source(i + origin + v) coefficient(v); outside of it the source is zero.
struct Plane {
  int64_t source, coefficients;
  Axes3 size, origin;
  int64_t rows, columns;
};

// A map, and the planes it is the sum of.
template <class T>
struct SumOfPlanes {
  const std::vector<Plane>* planes;
  const T *source, *coefficients;
  T* output;
  Axes3 source_stride, size, output_stride;
};

// Copies what a block reads of a plane, with zeros for what lies outside.
template <class T>
void stage(const SumOfPlanes<T>& sum, const Plane& p, const Axes3& at, int64_t rows,
           int64_t columns, T* to) {
  const T* from = sum.source + p.source + at[0] * sum.source_stride[0];
  const int64_t stride = sum.source_stride[2];
  const int64_t begin = std::clamp<int64_t>(-at[2], 0, columns);
  const int64_t end = std::clamp<int64_t>(p.size[2] - at[2], begin, columns);
  for (int64_t r = 0; r < rows; ++r, to += columns) {
    const int64_t y = at[1] + r;
    if (y < 0 || y >= p.size[1]) {
      std::fill(to, to + columns, T(0));
      continue;
    }
    const T* row = from + y * sum.source_stride[1] + at[2] * stride;
    std::fill(to, to + begin, T(0));
    if (stride == 1) std::copy(row + begin, row + end, to + begin);
    for (int64_t x = begin; stride != 1 && x < end; ++x) to[x] = row[x * stride];
    std::fill(to + end, to + columns, T(0));
  }
}

}  // namespace torchcorr::direct
