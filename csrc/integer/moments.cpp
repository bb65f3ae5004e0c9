#include "integer/moments.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace torchcorr::integer {
namespace {

// Most elements of a window whose sum of squares is less than 2^32.
constexpr int64_t kIn32Bits = 66051;

// Sums of elements and of their squares along a row. They wrap around: what counts is the
// difference of two, which is in range.
template <class U>
struct Sums {
  std::vector<U> first, second;

  explicit Sums(int64_t n) : first(n), second(n) {}
};

template <class U>
TORCHCORR_INLINE void add_bytes_to(int64_t n, const uint8_t* x, U sign, U* first, U* second) {
  for (int64_t i = 0; i < n; ++i) {
    const U value = x[i];
    first[i] += sign * value;
    second[i] += sign * (value * value);
  }
}

template <class U>
TORCHCORR_INLINE void add_sums_to(int64_t n, const U* a, const U* b, U sign, U* first, U* second) {
  for (int64_t i = 0; i < n; ++i) {
    first[i] += sign * a[i];
    second[i] += sign * b[i];
  }
}

// Windows of a row from the sums of its columns.
template <class U>
TORCHCORR_INLINE void slide(int64_t n, int64_t window, int64_t stride, const Sums<U>& columns,
                            Sums<U>& out) {
  const U *first = columns.first.data(), *second = columns.second.data();
  U a = 0, b = 0;
  for (int64_t x = 0; x < window; ++x) a += first[x], b += second[x];
  for (int64_t i = 0; i < n; ++i) {
    out.first[i] = a, out.second[i] = b;
    if (i + 1 == n) break;
    for (int64_t x = i * stride; x < (i + 1) * stride; ++x) {
      a += first[x + window] - first[x], b += second[x + window] - second[x];
    }
  }
}

// What a norm is made of, once for a tile.
struct Norms {
  double count, zero, softening;
  bool zero_mean, in_float64;
  int64_t elements, zero_point;
};

// The largest and the smallest norm of a row that are not 0; 0 and infinity if there is none.
struct Range {
  double largest = 0.0, smallest = std::numeric_limits<double>::infinity();
};

template <class U>
TORCHCORR_INLINE Range norm_row(int64_t n, const Norms& by, const U* sums, const U* squares,
                                 uint32_t* out_sums, double* norms) {
  const double count = by.count, zero = by.zero, softening = by.softening;
  const bool zero_mean = by.zero_mean;
  const double none = std::numeric_limits<double>::infinity();
  double largest = 0, smallest = none;
  for (int64_t i = 0; i < n; ++i) out_sums[i] = static_cast<uint32_t>(sums[i]);
  if (by.in_float64) {
    for (int64_t i = 0; i < n; ++i) {
      const double sum = static_cast<double>(sums[i]), square = static_cast<double>(squares[i]);
      // Whole numbers below 2^53, so contraction would round nothing.
      const double energy =
          zero_mean ? count * square - sum * sum : square - 2 * zero * sum + count * zero * zero;
      const double norm = energy > 0 ? 1 / std::sqrt(energy + softening) : 0.0;
      const double positive = norm > 0 ? norm : none;
      largest = norm > largest ? norm : largest;
      smallest = positive < smallest ? positive : smallest;
      norms[i] = norm;
    }
    return {largest, smallest};
  }
  for (int64_t i = 0; i < n; ++i) {
    const double energy =
        static_cast<double>(energy_of(by.elements, sums[i], squares[i], zero_mean, by.zero_point));
    norms[i] = energy > 0 ? 1 / std::sqrt(energy + softening) : 0.0;
    largest = std::max(largest, norms[i]);
    if (norms[i] > 0) smallest = std::min(smallest, norms[i]);
  }
  return {largest, smallest};
}

#define TORCHCORR_BYTE_SUMS(U)                                                                   \
  TORCHCORR_CLONES void add_bytes(int64_t n, const uint8_t* x, U sign, U* first, U* second) {    \
    add_bytes_to(n, x, sign, first, second);                                                     \
  }                                                                                              \
  TORCHCORR_CLONES void add_sums(int64_t n, const U* a, const U* b, U sign, U* first,            \
                                 U* second) {                                                    \
    add_sums_to(n, a, b, sign, first, second);                                                   \
  }                                                                                              \
  TORCHCORR_CLONES Range norms_of(int64_t n, const Norms& by, const U* sums, const U* squares,  \
                                   uint32_t* out_sums, double* norms) {                          \
    return norm_row(n, by, sums, squares, out_sums, norms);                                      \
  }
TORCHCORR_BYTE_SUMS(uint32_t)
TORCHCORR_BYTE_SUMS(uint64_t)
#undef TORCHCORR_BYTE_SUMS

// Sums over channels and the planes of a window slide along z, sums of columns along y.
template <class U>
class SlidingMoments {
 public:
  SlidingMoments(const Tiling& tiling, const ByteTile& tile, const ByteRule& rule)
      : t_(tiling), tile_(tile), width_(t_.extent[2]), one_plane_(t_.channels * t_.window[0] == 1),
        slab_(one_plane_ ? 0 : t_.extent[1] * width_), columns_(width_), windows_(t_.outputs[2]) {
    const int64_t count = t_.window_size();
    const double n = static_cast<double>(count);
    norms_ = {n,
              static_cast<double>(rule.zero_of_input),
              rule.eps * (rule.zero_mean ? n * n : n),
              rule.zero_mean,
              count <= kInFloat64,
              count,
              rule.zero_of_input};
  }

  void run(ByteMoments& to) {
    const Axes3 &outputs = t_.outputs, &stride = t_.stride, &window = t_.window;
    double smallest = std::numeric_limits<double>::infinity();
    for (int64_t z = 0; z < outputs[0]; ++z) {
      if (!one_plane_) move_slab(z);
      std::fill(columns_.first.begin(), columns_.first.end(), U(0));
      std::fill(columns_.second.begin(), columns_.second.end(), U(0));
      int64_t begin = 0, end = 0;
      for (int64_t y = 0; y < outputs[1]; ++y) {
        // Rows before a window that overlaps the last one leave, those behind it enter.
        for (const int64_t last = y * stride[1] + window[1]; end < last; ++end) add_row(z, end, 1);
        for (; begin < y * stride[1]; ++begin) add_row(z, begin, U(0) - 1);
        slide(outputs[2], window[2], stride[2], columns_, windows_);
        const int64_t at = (z * outputs[1] + y) * outputs[2];
        const Range range = norms_of(outputs[2], norms_, windows_.first.data(),
                                     windows_.second.data(), &to.sums[at], &to.norms[at]);
        to.largest_norm = std::max(to.largest_norm, range.largest);
        smallest = std::min(smallest, range.smallest);
      }
    }
    to.smallest_norm = to.largest_norm > 0 ? smallest : 0.0;
  }

 private:
  void move_slab(int64_t z) {
    for (const int64_t last = z * t_.stride[0] + t_.window[0]; end_ < last; ++end_) {
      add_plane(end_, 1);
    }
    for (; begin_ < z * t_.stride[0]; ++begin_) add_plane(begin_, U(0) - 1);
  }

  void add_plane(int64_t z, U sign) {
    for (int64_t c = 0; c < t_.channels; ++c) {
      for (int64_t y = 0; y < t_.extent[1]; ++y) {
        add_bytes(width_, tile_.row(c, z, y), sign, &slab_.first[y * width_],
                  &slab_.second[y * width_]);
      }
    }
  }

  void add_row(int64_t z, int64_t y, U sign) {
    U *first = columns_.first.data(), *second = columns_.second.data();
    if (one_plane_) return add_bytes(width_, tile_.row(0, z * t_.stride[0], y), sign, first, second);
    add_sums(width_, &slab_.first[y * width_], &slab_.second[y * width_], sign, first, second);
  }

  const Tiling& t_;
  const ByteTile& tile_;
  const int64_t width_;
  const bool one_plane_;
  Sums<U> slab_, columns_, windows_;
  int64_t begin_ = 0, end_ = 0;  // planes in the slab
  Norms norms_;
};

}  // namespace

ByteMoments moments_of(const Tiling& tiling, const ByteTile& tile, const ByteRule& rule) {
  ByteMoments moments;
  moments.sums.resize(tiling.positions());
  moments.norms.resize(tiling.positions());
  if (tiling.window_size() <= kIn32Bits) {
    SlidingMoments<uint32_t>(tiling, tile, rule).run(moments);
  } else {
    SlidingMoments<uint64_t>(tiling, tile, rule).run(moments);
  }
  return moments;
}

}  // namespace torchcorr::integer
