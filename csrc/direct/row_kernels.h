// The inner loops: a block of scores, and a block of the template's gradient, in registers.
#pragma once

#include <cmath>
#include <utility>

#include "direct/planes.h"

namespace torchcorr::direct {

// Rows of a block, and of a block where fewer are left.
constexpr int64_t kRows = 6, kFewRows = 4;

// Keeps a vector in a register: compilers would read it again from memory for each product, and
// reading what crosses a cache line costs two loads.
template <class V>
TORCHCORR_INLINE V in_register(V v) {
#if defined(__x86_64__) && defined(__GNUC__)
  asm("" : "+v"(v));
#endif
  return v;
}

// Where an object lies, with everything stored that was written to it: compilers would keep copies of
// parts of it on the stack, and move registers aside for them.
template <class X>
TORCHCORR_INLINE X& in_memory(X& x) {
  X* at = &x;
#if defined(__GNUC__)
  asm volatile("" : "+r"(at) : : "memory");
#endif
  return *at;
}

template <class T, int BYTES, int R, int V>
using Registers = Vector<T, BYTES>[R][V];

// What registers of sums are folded into, one addition for all their products; after many of them it
// is added to sums in memory: float32 to float64, and float64 with what rounding left out.
template <class T, int BYTES, int R, int V>
struct Totals {
  static constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>), numbers = R * V * lanes;
  static constexpr bool keeps_lost = std::is_same_v<T, double>;
  Registers<T, BYTES, R, V> folded;
  double wide[numbers], lost[keeps_lost ? numbers : 1];
  int64_t terms = 0, longest = 0, folds = 0;
  bool spilled = false;

  // Makes room for so many products in the registers, kTermsInRow at most.
  TORCHCORR_INLINE void reserve(int64_t count, Registers<T, BYTES, R, V>& sums) {
    if (terms > 0 && terms + count > kTermsInRow) fold(sums);
    terms += count;
  }

  TORCHCORR_INLINE void fold(Registers<T, BYTES, R, V>& sums) {
    const bool none = folds == 0;
#pragma GCC unroll 16
    for (int j = 0; j < R; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        folded[j][v] = none ? sums[j][v] : folded[j][v] + sums[j][v];
        sums[j][v] = Vector<T, BYTES>{};
      }
    }
    in_memory(folded);
    longest = std::max(longest, terms);
    terms = 0;
    if (++folds + longest > kAdditions) spill();
  }

  TORCHCORR_INLINE void spill() {
    T part[numbers];
    std::memcpy(part, folded, sizeof(part));
    for (int i = 0; i < numbers; ++i) {
      const double before = spilled ? wide[i] : 0.0, after = before + part[i];
      if constexpr (keeps_lost) {
        const double added = after - before, left = (before - (after - added)) + (part[i] - added);
        lost[i] = spilled ? lost[i] + left : left;
      }
      wide[i] = after;
    }
    spilled = true;
    folds = 0;
  }

  // Spills all that was added.
  TORCHCORR_INLINE void finish(Registers<T, BYTES, R, V>& sums) {
    fold(sums);
    if (folds > 0) spill();
  }

  // All that was added, once it was spilled.
  TORCHCORR_INLINE double total(int i) const {
    if constexpr (keeps_lost) return std::isfinite(wide[i]) ? wide[i] + lost[i] : wide[i];
    return wide[i];
  }
};

// Calls visit<first, last>() for the rows j of [0, count) that meet row r of `rows` + count - 1.
template <int R, class Visit>
TORCHCORR_INLINE void visit_rows(int64_t r, int64_t rows, int64_t count, const Visit& visit) {
  const int64_t first = std::max<int64_t>(0, r - rows + 1), last = std::min(r, count - 1);
  const auto visit_pair = [&](auto pair) __attribute__((always_inline)) {
    constexpr int a = decltype(pair)::value / R, b = decltype(pair)::value % R;
    if constexpr (a <= b) {
      if (first != a || last != b) return false;
      visit(std::integral_constant<int, a>{}, std::integral_constant<int, b>{});
      return true;
    }
    return false;
  };
  [&]<int... pair>(std::integer_sequence<int, pair...>) __attribute__((always_inline)) {
    (visit_pair(std::integral_constant<int, pair>{}) || ...);
  }
  (std::make_integer_sequence<int, R * R>{});
}

// V vectors in registers, each `step` elements behind the one before. A record for each, since
// compilers move an array of vectors to memory.
template <class T, int BYTES, int V>
struct Held {
  Vector<T, BYTES> x;
  Held<T, BYTES, V - 1> rest;

  TORCHCORR_INLINE Held(const T* from, int64_t step)
      : x(in_register(load<BYTES>(from))), rest(from + step, step) {}

  // Adds the products with a vector, or with a number.
  template <class Factor>
  TORCHCORR_INLINE void add_products(const Factor& factor, Vector<T, BYTES>* sums) const {
    *sums += x * factor;
    rest.add_products(factor, sums + 1);
  }
};

template <class T, int BYTES>
struct Held<T, BYTES, 0> {
  TORCHCORR_INLINE Held(const T*, int64_t) {}
  template <class Factor>
  TORCHCORR_INLINE void add_products(const Factor&, Vector<T, BYTES>*) const {}
};

// Adds the products of coefficients [begin, end) of one row with V vectors of the source to rows
// `first` to `last`.
template <int BYTES, int first, int last, int R, int V, class T>
TORCHCORR_INLINE void add_row(const T* source, const T* coefficients, int64_t columns, int64_t begin,
                              int64_t end, Vector<T, BYTES> (&sums)[R][V]) {
  constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>);
  for (int64_t k = begin; k < end; ++k) {
    if constexpr (first == last) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        sums[first][v] += load<BYTES>(source + k + v * lanes) * coefficients[k - first * columns];
      }
    } else {
      const Held<T, BYTES, V> x(source + k, lanes);
#pragma GCC unroll 16
      for (int j = first; j <= last; ++j) x.add_products(coefficients[k - j * columns], sums[j]);
    }
  }
}

// R rows by V vectors of the output at (z, y, x), in registers over all planes and coefficients.
template <class T, int BYTES, int R, int V>
TORCHCORR_INLINE void correlate_registers(const SumOfPlanes<T>& sum, const Axes3& at, T* out,
                                          int64_t pitch, std::vector<T>& scratch) {
  using Vec = Vector<T, BYTES>;
  constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>);
  Registers<T, BYTES, R, V> sums = {};
  Totals<T, BYTES, R, V> room, &totals = in_memory(room);
  for (const Plane& p : *sum.planes) {
    const Axes3 from{at[0] + p.origin[0], at[1] + p.origin[1], at[2] + p.origin[2]};
    if (from[0] < 0 || from[0] >= p.size[0]) continue;
    const int64_t rows = R + p.rows - 1, columns = V * lanes + p.columns - 1;
    const bool inside = from[1] >= 0 && from[1] + rows <= p.size[1] && from[2] >= 0 &&
                        from[2] + columns <= p.size[2] && sum.source_stride[2] == 1;
    const T* source = sum.source + p.source + from[0] * sum.source_stride[0] +
                      from[1] * sum.source_stride[1] + from[2];
    int64_t source_pitch = sum.source_stride[1];
    if (!inside) {
      if (static_cast<int64_t>(scratch.size()) < rows * columns) scratch.resize(rows * columns);
      stage(sum, p, from, rows, columns, scratch.data());
      source = scratch.data();
      source_pitch = columns;
    }
    for (int64_t r = 0; r < rows; ++r, source += source_pitch) {
      const T* coefficients = sum.coefficients + p.coefficients + r * p.columns;
      for (int64_t begin = 0; begin < p.columns; begin += kTermsInRow) {
        const int64_t end = std::min(begin + kTermsInRow, p.columns);
        totals.reserve(end - begin, sums);
        visit_rows<R>(r, p.rows, R, [&](auto first, auto last) __attribute__((always_inline)) {
          add_row<BYTES, decltype(first)::value, decltype(last)::value>(
              source, coefficients, p.columns, begin, end, sums);
        });
      }
    }
  }
  if (totals.spilled) {
    totals.finish(sums);
    for (int j = 0; j < R; ++j) {
      for (int i = 0; i < V * lanes; ++i) {
        out[j * pitch + i] = static_cast<T>(totals.total(j * V * lanes + i));
      }
    }
    return;
  }
  const bool in_one_row = totals.folds == 0;
#pragma GCC unroll 16
  for (int j = 0; j < R; ++j) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const Vec sum = in_one_row ? sums[j][v] : totals.folded[j][v] + sums[j][v];
      std::memcpy(out + j * pitch + v * lanes, &sum, BYTES);
    }
  }
}

// Rows y .. y + R of one plane of the output, from column `begin` on, in blocks of V vectors, as long
// as more than `least` columns are left; where they end. A block that would pass the end of its rows
// begins earlier and writes some values again. Rows above y may belong to another thread, so a block
// that begins above y is computed in a buffer.
template <class T, int BYTES, int R, int V>
TORCHCORR_INLINE int64_t correlate_rows(const SumOfPlanes<T>& sum, int64_t z, int64_t y,
                                        int64_t begin, int64_t least, std::vector<T>& scratch) {
  constexpr int64_t width = V * static_cast<int>(lanes_of<T, BYTES>);
  const Axes3& size = sum.size;
  const Axes3& stride = sum.output_stride;
  const int64_t top = std::min(y, size[1] - R), bottom = std::min(y + R, size[1]);
  const bool whole = top == y && stride[2] == 1 && size[2] >= width;
  T* plane = sum.output + z * stride[0];
  for (; begin + least < size[2]; begin += width) {
    const int64_t end = std::min(begin + width, size[2]);
    const int64_t x = std::max<int64_t>(0, end - width);
    T tile[R * width];
    T* out = whole ? plane + top * stride[1] + x : tile;
    correlate_registers<T, BYTES, R, V>(sum, {z, top, x}, out, whole ? stride[1] : width, scratch);
    if (whole) continue;
    for (int64_t r = y; r < bottom; ++r) {
      const T* row = tile + (r - top) * width - x;
      for (int64_t i = begin; i < end; ++i) plane[r * stride[1] + i * stride[2]] = row[i];
    }
  }
  return begin;
}

// Rows in blocks of kRows, and in blocks of kFewRows or one by one where that computes fewer rows.
struct RowBlocks {
  int64_t size, many, few, single;

  explicit RowBlocks(int64_t n) : size(n), many(n / kRows), few(0), single(0) {
    const int64_t left = n % kRows;
    if (left == kRows - 1 && many > 0) {
      ++many;
    } else if (left > 0 && left <= kRows - kFewRows && many > 0) {
      --many;
    }
    const int64_t rest = n - many * kRows;
    if (rest >= kFewRows) {
      few = (rest + kFewRows - 1) / kFewRows;
    } else if (rest > 0 && many > 0) {
      few = 1;
    } else if (rest > 0) {
      single = rest;
    }
  }

  int64_t count() const { return many + few + single; }
};

template <class T, int BYTES, int R, int V>
TORCHCORR_INLINE void correlate_block(const SumOfPlanes<T>& sum, int64_t z, int64_t y,
                                      std::vector<T>& scratch) {
  constexpr int many = R == 1 ? 4 * V : V, few = R == 1 ? V : V / 2;
  constexpr int64_t lanes = lanes_of<T, BYTES>;
  const int64_t begin = correlate_rows<T, BYTES, R, many>(sum, z, y, 0, few * lanes, scratch);
  correlate_rows<T, BYTES, R, few>(sum, z, y, begin, 0, scratch);
}

// Block `i` of a plane's rows.
template <class T, int BYTES, int V>
TORCHCORR_INLINE void correlate_rows_of(const SumOfPlanes<T>& sum, int64_t z, int64_t i,
                                        std::vector<T>& scratch) {
  const RowBlocks blocks(sum.size[1]);
  if (i < blocks.many) return correlate_block<T, BYTES, kRows, V>(sum, z, i * kRows, scratch);
  const int64_t first = blocks.many * kRows, j = i - blocks.many;
  if (blocks.few == 0) return correlate_block<T, BYTES, 1, V>(sum, z, first + j, scratch);
  correlate_block<T, BYTES, kFewRows, V>(sum, z, first + j * kFewRows, scratch);
}

// One block of the template's gradient: up to kRows rows by kColumns elements, from some rows of
// score and image.
constexpr int64_t kColumns = 4;

template <class T>
struct Dots {
  const T *score, *image;
  int64_t score_pitch, image_pitch, rows, columns, count;
};

// Ends of rows that fill no vector, followed by zeros: of the image from each column on, and of the
// scores' rows.
template <class T, int BYTES, int V>
struct RowEnds {
  static constexpr int64_t lanes = lanes_of<T, BYTES>;
  T image[V * lanes] = {}, score[kRows * lanes] = {};

  void read(const Dots<T>& d, int64_t r, int64_t whole) {
    const int64_t n = d.columns - whole;
    for (int64_t v = 0; v < V; ++v) {
      std::copy_n(d.image + r * d.image_pitch + whole + v, n, image + v * lanes);
    }
    for (int64_t j = std::max<int64_t>(0, r - d.rows + 1); j <= std::min(r, d.count - 1); ++j) {
      std::copy_n(d.score + (r - j) * d.score_pitch + whole, n, score + (kRows - 1 - j) * lanes);
    }
  }
};

template <class T, int BYTES, int V>
TORCHCORR_INLINE void dot_rows(const Dots<T>& d, Registers<T, BYTES, kRows, V>& sums,
                               Totals<T, BYTES, kRows, V>& totals) {
  constexpr int64_t lanes = lanes_of<T, BYTES>;
  const int64_t vectors = d.columns / lanes, whole = vectors * lanes;
  const int64_t all = vectors + (whole < d.columns);
  RowEnds<T, BYTES, V> ends;
  for (int64_t r = 0; r < d.rows + d.count - 1; ++r) {
    if (all > vectors) ends.read(d, r, whole);
    for (int64_t begin = 0; begin < all;) {
      // Some vectors of the rows, and then their ends.
      const bool inside = begin < vectors;
      const int64_t n = inside ? std::min(kTermsInRow, vectors - begin) : 1;
      const T* image = inside ? d.image + r * d.image_pitch + begin * lanes : ends.image;
      const T* score = inside ? d.score + r * d.score_pitch + begin * lanes
                              : ends.score + (kRows - 1) * lanes;
      const int64_t step = inside ? 1 : lanes, pitch = inside ? d.score_pitch : lanes;
      totals.reserve(n, sums);
      visit_rows<kRows>(r, d.rows, d.count, [&](auto a, auto b) __attribute__((always_inline)) {
        constexpr int first = decltype(a)::value, last = decltype(b)::value;
        for (int64_t i = 0; i < n; ++i) {
          const Held<T, BYTES, V> pixels(image + i * lanes, step);
#pragma GCC unroll 16
          for (int j = first; j <= last; ++j) {
            pixels.add_products(load<BYTES>(score + i * lanes - j * pitch), sums[j]);
          }
        }
      });
      begin += n;
    }
  }
}

template <class T, int BYTES, int V>
TORCHCORR_INLINE void dot_block(const std::vector<Dots<T>>& runs, int64_t from, double* out,
                                int64_t pitch) {
  constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>);
  Registers<T, BYTES, kRows, V> sums = {};
  Totals<T, BYTES, kRows, V> room, &totals = in_memory(room);
  for (Dots<T> d : runs) {
    d.image += from;
    dot_rows<T, BYTES, V>(d, sums, totals);
  }
  totals.finish(sums);
  for (int64_t j = 0; j < runs.front().count; ++j) {
    for (int v = 0; v < V; ++v) {
      double total = 0.0;
      for (int i = 0; i < lanes; ++i) total += totals.total((j * V + v) * lanes + i);
      out[j * pitch + from + v] = total;
    }
  }
}

template <class T, int BYTES, int V>
TORCHCORR_INLINE void dot_columns(const std::vector<Dots<T>>& runs, int64_t elements, double* out,
                                  int64_t pitch) {
  int64_t from = 0;
  for (; from + V <= elements; from += V) dot_block<T, BYTES, V>(runs, from, out, pitch);
  if constexpr (V > 1) {
    if (from < elements) {
      // At most one block of fewer columns, each in one variant.
      [&]<int... W>(std::integer_sequence<int, W...>) __attribute__((always_inline)) {
        ((elements - from == W + 1 && (dot_block<T, BYTES, W + 1>(runs, from, out, pitch), true)) ||
         ...);
      }
      (std::make_integer_sequence<int, V - 1>{});
    }
  }
}

}  // namespace torchcorr::direct
