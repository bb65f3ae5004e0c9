// Products and sums are rounded one by one on every CPU, so that roots are the same bits.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "integer/moments.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/vectors.h"

namespace torchcorr::integer {
namespace {

// Most elements of a window whose sum of squares is less than 2^32.
constexpr int64_t kIn32Bits = 66051;

// Rows are computed in whole blocks of this many windows, so that no loop ends with single ones.
constexpr int64_t kBlock = 16;
int64_t whole_blocks(int64_t n) { return ceil_div(n, kBlock) * kBlock; }

// Sums of elements and of their squares along a row. They wrap around: what counts is the
// difference of two, which is in range. Zeros follow, two blocks at least.
template <class U>
struct Sums {
  std::vector<U> first, second;

  explicit Sums(int64_t n) : first(whole_blocks(n) + 2 * kBlock), second(first.size()) {}
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
TORCHCORR_INLINE void exchange_bytes_in(int64_t n, const uint8_t* enter, const uint8_t* leave,
                                        U* first, U* second) {
  for (int64_t i = 0; i < n; ++i) {
    const U in = enter[i], out = leave[i];
    first[i] += in - out;
    second[i] += in * in - out * out;
  }
}

template <class U>
TORCHCORR_INLINE void add_sums_to(int64_t n, const U* a, const U* b, U sign, U* first, U* second) {
  for (int64_t i = 0; i < n; ++i) {
    first[i] += sign * a[i];
    second[i] += sign * b[i];
  }
}

// The sums of the first one to all elements of a vector.
TORCHCORR_INLINE Vector<uint32_t> prefix(Vector<uint32_t> v) {
  const Vector<uint32_t> none = {};  // zeros before the first of v
  v += __builtin_shufflevector(none, v, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29,
                               30);
  v += __builtin_shufflevector(none, v, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
                               29);
  v += __builtin_shufflevector(none, v, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26,
                               27);
  return v + __builtin_shufflevector(none, v, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                     22, 23);
}
TORCHCORR_INLINE Vector<uint64_t> prefix(Vector<uint64_t> v) {
  const Vector<uint64_t> none = {};
  v += __builtin_shufflevector(none, v, 7, 8, 9, 10, 11, 12, 13, 14);
  v += __builtin_shufflevector(none, v, 6, 7, 8, 9, 10, 11, 12, 13);
  return v + __builtin_shufflevector(none, v, 4, 5, 6, 7, 8, 9, 10, 11);
}

// Totals of columns: to[i] is the sum of the first i numbers.
template <class U>
TORCHCORR_INLINE void accumulate(int64_t n, const Sums<U>& columns, Sums<U>& to) {
  constexpr int64_t kLanes = lanes_of<U>;
  const U *first = columns.first.data(), *second = columns.second.data();
  U *to_first = to.first.data(), *to_second = to.second.data();
  U a = 0, b = 0;
  to_first[0] = a, to_second[0] = b;
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vector<U> sums = prefix(load(first + i)), squares = prefix(load(second + i));
    put(sums + a, to_first + 1 + i);
    put(squares + b, to_second + 1 + i);
    a += sums[kLanes - 1], b += squares[kLanes - 1];
  }
}

// Windows of a row from the totals of its columns; behind the last one anything.
template <class U>
TORCHCORR_INLINE void slide(int64_t n, int64_t window, int64_t stride, const U* totals, U* out) {
  if (stride == 1) {
    for (int64_t i = 0; i < ceil_div(n, kBlock) * kBlock; ++i) {
      out[i] = totals[i + window] - totals[i];
    }
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = totals[i * stride + window] - totals[i * stride];
  }
}

// What a norm is made of, once for a tile.
struct Norms {
  double count, zero, softening;
  bool zero_mean, in_float64;
  int64_t elements, zero_point;
};

// The smallest norm of a row that is not 0; infinity if there is none.
TORCHCORR_INLINE double smallest_of(int64_t n, const double* norms) {
  // Numbers that are not negative are ordered as their bits are; 0 less one is the largest.
  uint64_t smallest = std::numeric_limits<uint64_t>::max();
  for (int64_t i = 0; i < n; ++i) {
    uint64_t bits;
    std::memcpy(&bits, norms + i, sizeof bits);
    smallest = bits - 1 < smallest ? bits - 1 : smallest;
  }
  if (++smallest == 0) return std::numeric_limits<double>::infinity();
  double norm;
  std::memcpy(&norm, &smallest, sizeof norm);
  return norm;
}

// 1 / sqrt(x) for 0 < x < 1e300 by Newton's iteration, within two roundings, from half of the
// exponent and a line through the fraction. A root and a quotient take three times as long.
TORCHCORR_INLINE double inverse_root(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = 0x5FE6EB50C7B537A9 - (bits >> 1);
  double y;
  std::memcpy(&y, &bits, sizeof y);
  const double half = 0.5 * x;
  for (int i = 0; i < 3; ++i) y = y * (1.5 - half * y * y);
  return y + y * (0.5 - half * y * y);
}

// Keeps the sums of a channel and adds its energy, times its elements, to that of others. Unsigned
// numbers wrap around.
template <class U>
TORCHCORR_INLINE void add_energy_row(int64_t positions, uint64_t count, const U* sums,
                                     const U* squares, uint32_t* out_sums, uint64_t* energies) {
  const int64_t n = ceil_div(positions, kBlock) * kBlock;
  for (int64_t i = 0; i < n; ++i) out_sums[i] = static_cast<uint32_t>(sums[i]);
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t sum = sums[i], square = squares[i];
    energies[i] += count * square - sum * sum;
  }
}

TORCHCORR_CLONES void norms_of_energies(int64_t n, const uint64_t* energies, double softening,
                                        double* norms) {
  for (int64_t i = 0; i < n; ++i) {
    const double energy = static_cast<double>(static_cast<int64_t>(energies[i]));
    const double norm = inverse_root(energy + softening);
    norms[i] = energy > 0 ? norm : 0.0;
  }
}

template <class U>
TORCHCORR_INLINE void norm_row(int64_t positions, const Norms& by, const U* sums, const U* squares,
                               uint32_t* out_sums, double* norms) {
  // Behind the row lies the next one, which is written later.
  const int64_t n = ceil_div(positions, kBlock) * kBlock;
  const double count = by.count, zero = by.zero, softening = by.softening;
  for (int64_t i = 0; i < n; ++i) out_sums[i] = static_cast<uint32_t>(sums[i]);
  if (!by.in_float64) {
    for (int64_t i = 0; i < n; ++i) {
      const double energy = static_cast<double>(
          energy_of(by.elements, sums[i], squares[i], by.zero_mean, by.zero_point));
      norms[i] = energy > 0 ? inverse_root(energy + softening) : 0.0;
    }
    return;
  }
  // Whole numbers below 2^53.
  if (by.zero_mean) {
    for (int64_t i = 0; i < n; ++i) {
      const double sum = static_cast<double>(sums[i]), square = static_cast<double>(squares[i]);
      const double energy = count * square - sum * sum;
      const double norm = inverse_root(energy + softening);
      norms[i] = energy > 0 ? norm : 0.0;
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const double sum = static_cast<double>(sums[i]), square = static_cast<double>(squares[i]);
      const double energy = square - 2 * zero * sum + count * zero * zero;
      const double norm = inverse_root(energy + softening);
      norms[i] = energy > 0 ? norm : 0.0;
    }
  }
}

#define TORCHCORR_BYTE_SUMS(U)                                                                   \
  TORCHCORR_CLONES void add_bytes(int64_t n, const uint8_t* x, U sign, U* first, U* second) {    \
    add_bytes_to(n, x, sign, first, second);                                                     \
  }                                                                                              \
  TORCHCORR_CLONES void exchange_bytes(int64_t n, const uint8_t* enter, const uint8_t* leave,    \
                                       U* first, U* second) {                                    \
    exchange_bytes_in(n, enter, leave, first, second);                                           \
  }                                                                                              \
  TORCHCORR_CLONES void add_sums(int64_t n, const U* a, const U* b, U sign, U* first,            \
                                 U* second) {                                                    \
    add_sums_to(n, a, b, sign, first, second);                                                   \
  }                                                                                              \
  TORCHCORR_CLONES void totals_of(int64_t n, const Sums<U>& columns, Sums<U>& to) {              \
    accumulate(n, columns, to);                                                                  \
  }                                                                                              \
  TORCHCORR_CLONES void slide_row(int64_t n, int64_t window, int64_t stride, const U* totals,    \
                                  U* out) {                                                      \
    slide(n, window, stride, totals, out);                                                       \
  }                                                                                              \
  TORCHCORR_CLONES void norms_of(int64_t n, const Norms& by, const U* sums, const U* squares,    \
                                 uint32_t* out_sums, double* norms) {                            \
    norm_row(n, by, sums, squares, out_sums, norms);                                             \
  }                                                                                              \
  TORCHCORR_CLONES void add_energies(int64_t n, uint64_t count, const U* sums, const U* squares, \
                                     uint32_t* out_sums, uint64_t* energies) {                   \
    add_energy_row(n, count, sums, squares, out_sums, energies);                                 \
  }
TORCHCORR_BYTE_SUMS(uint32_t)
TORCHCORR_BYTE_SUMS(uint64_t)
#undef TORCHCORR_BYTE_SUMS
TORCHCORR_CLONES double smallest_norm(int64_t n, const double* norms) { return smallest_of(n, norms); }

// Sums over the planes of a window, and over some channels, slide along z, sums of columns along y.
template <class U>
class SlidingMoments {
 public:
  SlidingMoments(const Tiling& tiling, const ByteTile& tile, int64_t first, int64_t channels)
      : t_(tiling), tile_(tile), first_(first), channels_(channels), width_(t_.extent[2]),
        one_plane_(channels * t_.window[0] == 1), slab_(one_plane_ ? 0 : t_.extent[1] * width_),
        columns_(width_), totals_(width_ + 1), windows_(t_.outputs[2]) {}

  // Calls f(place of the first, sums, sums of squares) for each row of positions.
  template <class F>
  void run(const F& f) {
    const Axes3 &outputs = t_.outputs, &stride = t_.stride, &window = t_.window;
    for (int64_t z = 0; z < outputs[0]; ++z) {
      if (!one_plane_) move_slab(z);
      std::fill(columns_.first.begin(), columns_.first.end(), U(0));
      std::fill(columns_.second.begin(), columns_.second.end(), U(0));
      int64_t begin = 0, end = 0;
      for (int64_t y = 0; y < outputs[1]; ++y) {
        // Rows before a window that overlaps the last one leave, those behind it enter.
        const int64_t first = y * stride[1], last = first + window[1];
        for (; one_plane_ && begin < first && end < last; ++begin, ++end) exchange_row(z, end, begin);
        for (; end < last; ++end) add_row(z, end, 1);
        for (; begin < first; ++begin) add_row(z, begin, U(0) - 1);
        totals_of(width_, columns_, totals_);
        const int64_t n = outputs[2], k = window[2], s = stride[2];
        slide_row(n, k, s, totals_.first.data(), windows_.first.data());
        slide_row(n, k, s, totals_.second.data(), windows_.second.data());
        f((z * outputs[1] + y) * outputs[2], windows_.first.data(), windows_.second.data());
      }
    }
  }

 private:
  void move_slab(int64_t z) {
    for (const int64_t last = z * t_.stride[0] + t_.window[0]; end_ < last; ++end_) {
      add_plane(end_, 1);
    }
    for (; begin_ < z * t_.stride[0]; ++begin_) add_plane(begin_, U(0) - 1);
  }

  void add_plane(int64_t z, U sign) {
    for (int64_t c = first_; c < first_ + channels_; ++c) {
      for (int64_t y = 0; y < t_.extent[1]; ++y) {
        add_bytes(width_, tile_.row(c, z, y), sign, &slab_.first[y * width_],
                  &slab_.second[y * width_]);
      }
    }
  }

  void add_row(int64_t z, int64_t y, U sign) {
    U *first = columns_.first.data(), *second = columns_.second.data();
    if (one_plane_) {
      return add_bytes(width_, tile_.row(first_, z * t_.stride[0], y), sign, first, second);
    }
    add_sums(width_, &slab_.first[y * width_], &slab_.second[y * width_], sign, first, second);
  }

  void exchange_row(int64_t z, int64_t enter, int64_t leave) {
    const int64_t depth = z * t_.stride[0];
    exchange_bytes(width_, tile_.row(first_, depth, enter), tile_.row(first_, depth, leave),
                   columns_.first.data(), columns_.second.data());
  }

  const Tiling& t_;
  const ByteTile& tile_;
  const int64_t first_, channels_, width_;
  const bool one_plane_;
  Sums<U> slab_, columns_, totals_, windows_;
  int64_t begin_ = 0, end_ = 0;  // planes in the slab
};

template <class U>
void add_moments(const Tiling& t, const ByteTile& tile, const ByteRule& rule, ByteMoments& to) {
  const int64_t count = rule.count(t), positions = t.outputs[2];
  const double n = static_cast<double>(count), all = static_cast<double>(t.window_size());
  const double softening = std::min(1e299, rule.eps * (rule.zero_mean ? n * all : n));
  if (!rule.own_means) {
    const Norms by{n, static_cast<double>(rule.zero_of_input), softening, rule.zero_mean,
                   count <= kInFloat64, count, rule.zero_of_input};
    SlidingMoments<U>(t, tile, 0, t.channels).run([&](int64_t at, const U* sums, const U* squares) {
      norms_of(positions, by, sums, squares, &to.sums[at], &to.norms[at]);
    });
    return;
  }
  std::vector<uint64_t> energies(to.pitch);
  for (int64_t c = 0; c < t.channels; ++c) {
    // A row writes behind its end, where the next one begins, which must not be added up.
    std::vector<uint64_t> row(positions + kBlock);
    SlidingMoments<U>(t, tile, c, 1).run([&](int64_t at, const U* sums, const U* squares) {
      std::copy_n(&energies[at], positions, row.data());
      add_energies(positions, static_cast<uint64_t>(count), sums, squares,
                   &to.sums[c * to.pitch + at], row.data());
      std::copy_n(row.data(), positions, &energies[at]);
    });
  }
  norms_of_energies(t.positions(), energies.data(), softening, to.norms.get());
}

}  // namespace

ByteMoments moments_of(const Tiling& tiling, const ByteTile& tile, const ByteRule& rule) {
  ByteMoments moments;
  moments.pitch = tiling.positions() + kBlock;
  moments.sums.reset(new uint32_t[rule.means(tiling) * moments.pitch]);
  moments.norms.reset(new double[moments.pitch]);
  if (rule.count(tiling) <= kIn32Bits) {
    add_moments<uint32_t>(tiling, tile, rule, moments);
  } else {
    add_moments<uint64_t>(tiling, tile, rule, moments);
  }
  return moments;
}

void find_smallest_norm(const Tiling& tiling, ByteMoments& moments) {
  moments.smallest_norm = smallest_norm(tiling.positions(), moments.norms.get());
}

}  // namespace torchcorr::integer
