// The inner loops of dense.h: a block of positions by a block of templates in registers.
#pragma once

#include <utility>

#include "direct/lines.h"
#include "direct/planes.h"

namespace torchcorr::direct {

// Bytes of coefficients that stay near while positions pass.
constexpr int64_t kNearBytes = 24 << 10;

// Some planes of a sum over rows of positions, for a block of templates.
template <class T>
struct DenseTask {
  const SumOfPlanes<T>& sum;  // its coefficients are those of the first plane
  size_t first, last;         // planes
  Axes3 at;                   // the first position
  int64_t rows, columns;      // of positions
  int64_t width;              // lanes
  double* totals;             // (rows, columns, width)
};

template <class T>
constexpr int64_t size_of = static_cast<int64_t>(sizeof(T));

// Products of elements of a source, each so many bytes behind the place of a position, and rows of
// coefficients one behind the other.
template <class T>
struct DenseTerms {
  const int64_t* sources;
  const T* coefficients;
  int64_t count;
};

// The terms of a task, and copies of the planes where they are not read in place.
template <class T>
struct DenseScratch {
  size_t first = 0, last = 0;  // the planes and place that the terms are those of
  int64_t rows = 0, columns = 0;
  Axes3 place{};
  std::vector<int64_t> sources;
  std::vector<int64_t> row_of, rows_of;  // of a term: its row of a plane, and the plane's rows
  std::vector<int64_t> live;             // of terms that are not zero at some row of positions
  LineVector<T> live_coefficients;
  bool in_place = false;
  int64_t low = 0, high = 0;  // between these rows of positions all terms are live
  LineVector<T> copies;
  const T* copied = nullptr;  // the source that they are of
  int64_t pitch = 0;          // of copies
};

// Planes are read in place if all that the positions meet lies within them.
template <class T>
bool lies_within(const DenseTask<T>& task) {
  const SumOfPlanes<T>& sum = task.sum;
  if (sum.source_stride[2] != 1) return false;
  for (size_t i = task.first; i < task.last; ++i) {
    const Plane& p = (*sum.planes)[i];
    const Axes3 extent{1, task.rows + p.rows - 1, task.columns + p.columns - 1};
    for (int a = 0; a < 3; ++a) {
      const int64_t from = task.at[a] + p.origin[a];
      if (from < 0 || from + extent[a] > p.size[a]) return false;
    }
  }
  return true;
}

// Tasks of one scratch differ in planes, lanes, place and source only, and where terms lie depends
// neither on lanes nor on the source.
template <class T>
void locate_terms(const DenseTask<T>& task, DenseScratch<T>& scratch) {
  const SumOfPlanes<T>& sum = task.sum;
  if (scratch.first == task.first && scratch.last == task.last && scratch.place == task.at &&
      scratch.rows == task.rows && scratch.columns == task.columns) {
    return;
  }
  scratch.copied = nullptr;
  scratch.first = task.first, scratch.last = task.last;
  scratch.place = task.at, scratch.rows = task.rows, scratch.columns = task.columns;
  scratch.in_place = lies_within(task);
  scratch.low = 0, scratch.high = task.rows;
  int64_t widest = 0, copied = 0, count = 0;
  for (size_t i = task.first; i < task.last; ++i) {
    const Plane& p = (*sum.planes)[i];
    widest = std::max(widest, p.columns);
    count += p.rows * p.columns;
  }
  scratch.sources.resize(count);
  scratch.row_of.resize(count);
  scratch.rows_of.resize(count);
  int64_t at = 0;
  scratch.pitch = scratch.in_place ? sum.source_stride[1] : task.columns + widest - 1;
  for (size_t i = task.first; i < task.last; ++i) {
    const Plane& p = (*sum.planes)[i];
    int64_t from = copied;
    if (scratch.in_place) {
      from = p.source;
      for (int a = 0; a < 3; ++a) from += (task.at[a] + p.origin[a]) * sum.source_stride[a];
    }
    const int64_t z = task.at[0] + p.origin[0], y = task.at[1] + p.origin[1];
    const int64_t size = z >= 0 && z < p.size[0] ? p.size[1] : 0;
    scratch.low = std::max(scratch.low, -y);
    scratch.high = std::min(scratch.high, size - y - p.rows + 1);
    for (int64_t r = 0; r < p.rows; ++r, at += p.columns) {
      const int64_t row = from + r * scratch.pitch, columns = p.columns;
      int64_t* to = scratch.sources.data() + at;
      for (int64_t k = 0; k < columns; ++k) to[k] = (row + k) * size_of<T>;
      if (scratch.in_place) continue;
      std::fill_n(scratch.row_of.data() + at, columns, y + r);
      std::fill_n(scratch.rows_of.data() + at, columns, size);
    }
    copied += (task.rows + p.rows - 1) * scratch.pitch;
  }
  if (!scratch.in_place && static_cast<int64_t>(scratch.copies.size()) < copied) {
    scratch.copies.resize(copied);
  }
}

// Copies what the task meets, with zeros around the planes.
template <class T>
void copy_planes(const DenseTask<T>& task, DenseScratch<T>& scratch) {
  const SumOfPlanes<T>& sum = task.sum;
  if (scratch.copied == sum.source) return;
  scratch.copied = sum.source;
  T* to = scratch.copies.data();
  for (size_t i = task.first; i < task.last; ++i) {
    const Plane& p = (*sum.planes)[i];
    Axes3 from = task.at;
    for (int a = 0; a < 3; ++a) from[a] += p.origin[a];
    const int64_t rows = task.rows + p.rows - 1;
    if (from[0] < 0 || from[0] >= p.size[0]) {
      std::fill(to, to + rows * scratch.pitch, T(0));
    } else {
      stage(sum, p, from, rows, scratch.pitch, to);
    }
    to += rows * scratch.pitch;
  }
}

// Adds to float64 sums.
template <class T, int BYTES, int COUNT>
TORCHCORR_INLINE void add_wide(double* total, const T* x) {
  constexpr int lanes = static_cast<int>(lanes_of<double, BYTES>);
#pragma GCC unroll 64
  for (int i = 0; i < COUNT; i += lanes) {
    put(load<BYTES>(total + i) + widened<BYTES>(x + i), total + i);
  }
}

// Those terms, of `count` from the first on, that rows y to y + rows of positions meet. Unless all
// do, their coefficients are copied.
template <class T>
DenseTerms<T> live_terms(const DenseTask<T>& task, int64_t y, int64_t rows, int64_t first,
                         int64_t count, DenseScratch<T>& scratch) {
  const T* from = task.sum.coefficients + first * task.width;
  if (y >= scratch.low && y + rows <= scratch.high) {
    return {scratch.sources.data() + first, from, count};
  }
  scratch.live.clear();
  scratch.live_coefficients.resize(count * task.width);
  T* to = scratch.live_coefficients.data();
  for (int64_t i = first; i < first + count; ++i, from += task.width) {
    const int64_t row = scratch.row_of[i] + y;
    if (row + rows <= 0 || row >= scratch.rows_of[i]) continue;
    scratch.live.push_back(scratch.sources[i]);
    to = std::copy_n(from, task.width, to);
  }
  return {scratch.live.data(), scratch.live_coefficients.data(),
          static_cast<int64_t>(scratch.live.size())};
}

// The same address, about which the compiler knows nothing: it would keep one for each position.
template <class T>
TORCHCORR_INLINE const T* settled(const T* p) {
#if defined(__GNUC__)
  __asm__("" : "+r"(p));
#endif
  return p;
}

// Adds the products of one term.
template <class T, int BYTES, int V, int R, int P>
TORCHCORR_INLINE void add_term(const T* source, int64_t bytes, int64_t pitch, const T* coefficients,
                               Vector<T, BYTES> (&sums)[R * P][V]) {
  constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>);
  Vector<T, BYTES> w[V];
#pragma GCC unroll 64
  for (int v = 0; v < V; ++v) w[v] = load<BYTES>(coefficients + v * lanes);
#pragma GCC unroll 64
  for (int r = 0; r < R; ++r) {
    const char* at = reinterpret_cast<const char*>(settled(source + r * pitch)) + bytes;
    const T* row = reinterpret_cast<const T*>(at);
#pragma GCC unroll 64
    for (int j = 0; j < P; ++j) {
#pragma GCC unroll 64
      for (int v = 0; v < V; ++v) sums[r * P + j][v] += w[v] * row[j];
    }
  }
}

// R rows by P columns of positions. A register adds few products before it is added to a second one,
// and that to its total.
template <class T, int BYTES, int V, int R, int P>
TORCHCORR_INLINE void add_products(const T* source, int64_t pitch, const DenseTerms<T>& terms,
                                   double* totals, int64_t totals_pitch) {
  using Vec = Vector<T, BYTES>;
  constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>), width = V * lanes;
  if (terms.count == 0) return;
  Vec folded[R * P][V];
  for (int64_t first = 0; first < terms.count; first += kTermsInLoop) {
    const int64_t count = std::min(terms.count - first, kTermsInLoop);
    const int64_t* sources = terms.sources + first;
    const T* coefficients = terms.coefficients + first * width;
    Vec acc[R * P][V] = {};
    for (int64_t i = 0; i < count; ++i) {
      add_term<T, BYTES, V, R, P>(source, sources[i], pitch, coefficients + i * width, acc);
    }
    if (first == 0) {
      std::memcpy(folded, acc, sizeof(acc));
    } else {
#pragma GCC unroll 64
      for (int j = 0; j < R * P; ++j) {
#pragma GCC unroll 64
        for (int v = 0; v < V; ++v) folded[j][v] += acc[j][v];
      }
    }
  }
  const T* sums = reinterpret_cast<const T*>(folded);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    add_wide<T, BYTES, P * V * lanes>(totals + r * totals_pitch, sums + r * P * V * lanes);
  }
}

// Where a row of a task's positions lies, and what meets it.
template <class T>
struct DenseRow {
  const T* source;
  int64_t pitch;
  DenseTerms<T> terms;
  double* totals;
  int64_t totals_pitch;
};

template <class T, int BYTES, int V, int R, int P>
TORCHCORR_INLINE void dense_registers(const DenseRow<T>& row, int64_t x) {
  constexpr int64_t width = V * static_cast<int>(lanes_of<T, BYTES>);
  add_products<T, BYTES, V, R, P>(row.source + x, row.pitch, row.terms, row.totals + x * width,
                                  row.totals_pitch);
}

template <class T, int BYTES, int V, int P>
TORCHCORR_INLINE void dense_positions(const DenseRow<T>& row, int64_t x, int64_t count) {
  if constexpr (P > 1) {
    if (count < P) return dense_positions<T, BYTES, V, P - 1>(row, x, count);
  }
  dense_registers<T, BYTES, V, 1, P>(row, x);
}

// One row of positions, P at a time at most.
template <class T, int BYTES, int V, int P>
TORCHCORR_INLINE void dense_row(const DenseRow<T>& row, int64_t columns) {
  const int64_t blocks = ceil_div(columns, P), each = columns / blocks, more = columns % blocks;
  for (int64_t i = 0, x = 0; i < blocks; ++i) {
    const int64_t number = i < more ? each + 1 : each;
    dense_positions<T, BYTES, V, P>(row, x, number);
    x += number;
  }
}

// Up to 2 P vectors of sums.
template <class T, int BYTES, int P>
TORCHCORR_INLINE void dense_row_of(const DenseRow<T>& row, int64_t columns, int64_t width) {
  if (width > lanes_of<T, BYTES>) return dense_row<T, BYTES, 2, P>(row, columns);
  dense_row<T, BYTES, 1, 2 * P>(row, columns);
}

// Adds the products of a row of `columns` positions, `width` lanes of totals for each.
template <class T>
using AddDenseRow = void (*)(const DenseRow<T>& row, int64_t columns, int64_t width);

// Few terms at a time, whose coefficients stay near while positions pass. R rows of few columns at once.
template <class T, int BYTES, int V, int R>
TORCHCORR_INLINE void dense_rows(const DenseTask<T>& task, DenseScratch<T>& scratch,
                                 AddDenseRow<T> add) {
  constexpr int64_t width = V * static_cast<int>(lanes_of<T, BYTES>);
  locate_terms(task, scratch);
  if (!scratch.in_place) copy_planes(task, scratch);
  const T* source = scratch.in_place ? task.sum.source : scratch.copies.data();
  const int64_t columns = task.columns;
  const int64_t count = static_cast<int64_t>(scratch.sources.size());
  const int64_t near = kNearBytes / (width * static_cast<int64_t>(sizeof(T)));
  const int64_t parts = (count + near - 1) / near;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = count * part / parts, some = count * (part + 1) / parts - first;
    const auto row_at = [&](int64_t y, int64_t rows) TORCHCORR_FLAT {
      return DenseRow<T>{source + y * scratch.pitch, scratch.pitch,
                         live_terms(task, y, rows, first, some, scratch),
                         task.totals + y * columns * width, columns * width};
    };
    int64_t y = 0;
    if (columns <= 3) {
      for (; y + R <= task.rows; y += R) {
        const DenseRow<T> row = row_at(y, R);
        if (columns == 1) dense_registers<T, BYTES, V, R, 1>(row, 0);
        if (columns == 2) dense_registers<T, BYTES, V, R, 2>(row, 0);
        if (columns == 3) dense_registers<T, BYTES, V, R, 3>(row, 0);
      }
    }
    for (; y < task.rows; ++y) add(row_at(y, 1), columns, width);
  }
}

template <class T, int BYTES, int P>
TORCHCORR_INLINE void dense_block(const DenseTask<T>& task, DenseScratch<T>& scratch,
                                  AddDenseRow<T> add) {
  if (task.width > lanes_of<T, BYTES>) {
    return dense_rows<T, BYTES, 2, (P < 9 ? 2 : 3)>(task, scratch, add);
  }
  dense_rows<T, BYTES, 1, (2 * P < 9 ? 2 : 3)>(task, scratch, add);
}

// Lanes of a vector and of the one `STEP` rows below, whose bit `STEP` of the lane is `HIGH`.
template <int STEP, bool HIGH, class Vec, size_t... I>
TORCHCORR_INLINE Vec exchanged(const Vec& a, const Vec& b, std::index_sequence<I...>) {
  constexpr size_t lanes = sizeof...(I), high = HIGH ? STEP : 0;
  return __builtin_shufflevector(a, b, ((I & STEP) ? lanes + I - STEP + high : I + high)...);
}

template <int STEP, class Vec, int LANES>
TORCHCORR_INLINE void exchange_blocks(Vec (&rows)[LANES]) {
  if constexpr (STEP < LANES) {
#pragma GCC unroll 64
    for (int i = 0; i < LANES; ++i) {
      if (i & STEP) continue;
      const Vec a = rows[i], b = rows[i + STEP];
      rows[i] = exchanged<STEP, false>(a, b, std::make_index_sequence<LANES>{});
      rows[i + STEP] = exchanged<STEP, true>(a, b, std::make_index_sequence<LANES>{});
    }
    exchange_blocks<2 * STEP>(rows);
  }
}

// Rows of as many elements as a vector has lanes, side by side, `width` apart.
template <class T, int BYTES>
TORCHCORR_INLINE void interleave_rows(const T* const* rows, int64_t count, T* to, int64_t width) {
  constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>);
  int64_t x = 0;
  for (; x + lanes <= count; x += lanes) {
    Vector<T, BYTES> block[lanes];
#pragma GCC unroll 64
    for (int i = 0; i < lanes; ++i) block[i] = load<BYTES>(rows[i] + x);
    exchange_blocks<1>(block);
#pragma GCC unroll 64
    for (int i = 0; i < lanes; ++i) std::memcpy(to + (x + i) * width, &block[i], BYTES);
  }
  for (; x < count; ++x) {
    for (int i = 0; i < lanes; ++i) to[x * width + i] = rows[i][x];
  }
}

// (count, width) sums as (width, count) outputs, `pitch` apart.
template <class T, int BYTES>
TORCHCORR_INLINE void transpose_sums(const double* from, int64_t count, int64_t width, T* to,
                                     int64_t pitch) {
  constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>);
  int64_t x = 0;
  for (; x + lanes <= count; x += lanes) {
    for (int64_t t = 0; t < width; t += lanes) {
      Vector<T, BYTES> rows[lanes];
#pragma GCC unroll 64
      for (int i = 0; i < lanes; ++i) {
        const double* row = from + (x + i) * width + t;
        rows[i] = __builtin_convertvector(load<lanes * 8>(row), Vector<T, BYTES>);
      }
      exchange_blocks<1>(rows);
#pragma GCC unroll 64
      for (int i = 0; i < lanes; ++i) std::memcpy(to + (t + i) * pitch + x, &rows[i], BYTES);
    }
  }
  for (; x < count; ++x) {
    for (int64_t t = 0; t < width; ++t) to[t * pitch + x] = static_cast<T>(from[x * width + t]);
  }
}

}  // namespace torchcorr::direct
