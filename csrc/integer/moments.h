// The step `moments` for bytes: exact sums of the elements of windows and of their squares.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "integer/dots.h"

namespace torchcorr::integer {

// Most elements of a window for which N times its sums, and products with them, are exact in float64.
constexpr int64_t kInFloat64 = 1 << 18;

// How bytes are scored: `ByteRule` of _cpu/rules.py. Elements are bytes minus a constant, their zero.
struct ByteRule {
  bool zero_mean;
  double eps;  // added to a window's energy, in squared units of the input
  int64_t zero_of_input, zero_of_template;
  double noise;    // of a float32 transform, relative to what it contains
  int64_t kernel;  // of the direct loop
  bool own_means;  // each channel has a mean of its own

  // Elements that share a mean.
  int64_t count(const Tiling& tiling) const {
    return own_means ? product(tiling.window) : tiling.window_size();
  }
  int64_t means(const Tiling& tiling) const { return own_means ? tiling.channels : 1; }

  explicit ByteRule(const std::vector<double>& n) {
    STD_TORCH_CHECK(n.size() == 7, "a rule of bytes has seven numbers");
    zero_mean = n[0] != 0, eps = n[1];
    zero_of_input = static_cast<int64_t>(n[2]), zero_of_template = static_cast<int64_t>(n[3]);
    noise = n[4], kernel = static_cast<int64_t>(n[5]), own_means = n[6] != 0;
  }
};

// N times the energy of elements about their mean; or their energy, if means are not subtracted.
// Unsigned numbers wrap around, and the result is right if it is less than 2^63.
inline int64_t energy_of(int64_t count, uint64_t sum, uint64_t squares, bool zero_mean,
                         int64_t zero) {
  const uint64_t n = static_cast<uint64_t>(count), z = static_cast<uint64_t>(zero);
  return static_cast<int64_t>(zero_mean ? n * squares - sum * sum
                                        : squares - 2 * z * sum + n * z * z);
}

// Of each position of a tile: the sum of its window, or the sums of its channels, each of which takes
// `pitch` numbers, and 1 / sqrt(energy), 0 if that is 0.
struct ByteMoments {
  int64_t pitch = 0;
  std::unique_ptr<uint32_t[]> sums;
  std::unique_ptr<double[]> norms;
  // Of those that are not 0; see find_smallest_norm.
  double smallest_norm = std::numeric_limits<double>::infinity();
};

ByteMoments moments_of(const Tiling& tiling, const ByteTile& tile, const ByteRule& rule);
void find_smallest_norm(const Tiling& tiling, ByteMoments& moments);

}  // namespace torchcorr::integer
