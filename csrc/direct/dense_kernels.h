// The inner loops of dense.h: a block of positions by a block of templates in registers.
#pragma once

#include <utility>

#include "direct/planes.h"

namespace torchcorr::direct {

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

// Where a product finds its factors: from the source's place of a position on, and from the first
// coefficient of a task on.
struct DenseTerm {
  int64_t source, coefficient;
};

// The terms of a task, and copies of what lies at the edge of planes.
template <class T>
struct DenseScratch {
  size_t first = 0, last = 0;  // the planes, lanes and place that the terms are those of
  int64_t width = 0, columns = 0;
  Axes3 place{};
  std::vector<DenseTerm> terms, copied;
  std::vector<int64_t> rows, sizes;  // of the copied terms: their row of a plane, and its rows
  std::vector<DenseTerm> live;       // copied terms that are not zero at some row of positions
  int64_t live_row;
  std::vector<T> copies;
  int64_t pitch;                         // of copies
  int64_t low[2], high[2];               // rows and columns whose windows lie within all planes
};

// For blocks of at most so many rows and columns. Tasks of one scratch differ in planes, lanes, place
// and source only, and the terms do not depend on the source.
template <class T>
void locate_terms(const DenseTask<T>& task, int64_t most_rows, int64_t most_columns,
                  DenseScratch<T>& scratch) {
  const SumOfPlanes<T>& sum = task.sum;
  if (scratch.first == task.first && scratch.last == task.last && scratch.width == task.width &&
      scratch.place == task.at && scratch.columns == task.columns) {
    return;
  }
  scratch.first = task.first, scratch.last = task.last;
  scratch.width = task.width, scratch.place = task.at, scratch.columns = task.columns;
  scratch.terms.clear();
  scratch.copied.clear();
  scratch.rows.clear();
  scratch.sizes.clear();
  scratch.live_row = -1;
  const bool unit = sum.source_stride[2] == 1;
  for (int a = 0; a < 2; ++a) scratch.low[a] = unit ? 0 : 1, scratch.high[a] = unit ? INT64_MAX : 0;
  int64_t widest = 0, copies = 0;
  for (size_t i = task.first; i < task.last; ++i) {
    widest = std::max(widest, (*sum.planes)[i].columns);
  }
  scratch.pitch = most_columns + widest - 1;
  for (size_t i = task.first; i < task.last; ++i) {
    const Plane& p = (*sum.planes)[i];
    const int64_t taps[2] = {p.rows, p.columns};
    int64_t from = p.source;
    for (int a = 0; a < 3; ++a) from += (task.at[a] + p.origin[a]) * sum.source_stride[a];
    for (int a = 0; a < 2; ++a) {
      const int64_t at = p.origin[a + 1] + task.at[a + 1];
      scratch.low[a] = std::max(scratch.low[a], -at);
      scratch.high[a] = std::min(scratch.high[a], p.size[a + 1] - at - taps[a] + 1);
    }
    const int64_t z = task.at[0] + p.origin[0], y = task.at[1] + p.origin[1];
    const bool exists = z >= 0 && z < p.size[0];
    if (!exists) scratch.high[0] = 0;
    for (int64_t r = 0; r < p.rows; ++r) {
      for (int64_t k = 0; k < p.columns; ++k) {
        const int64_t i = static_cast<int64_t>(scratch.terms.size()) * task.width;
        scratch.terms.push_back({from + r * sum.source_stride[1] + k, i});
        scratch.copied.push_back({copies + r * scratch.pitch + k, i});
        scratch.rows.push_back(y + r);
        scratch.sizes.push_back(exists ? p.size[1] : INT64_MIN);
      }
    }
    copies += (most_rows + p.rows - 1) * scratch.pitch;
  }
  if (static_cast<int64_t>(scratch.copies.size()) < copies) scratch.copies.resize(copies);
}

template <class T>
void copy_planes(const DenseTask<T>& task, int64_t y, int64_t x, int64_t most_rows,
                 DenseScratch<T>& scratch) {
  const SumOfPlanes<T>& sum = task.sum;
  T* to = scratch.copies.data();
  for (size_t i = task.first; i < task.last; ++i) {
    const Plane& p = (*sum.planes)[i];
    Axes3 from{task.at[0] + p.origin[0], task.at[1] + y + p.origin[1],
               task.at[2] + x + p.origin[2]};
    const int64_t rows = most_rows + p.rows - 1;
    if (from[0] < 0 || from[0] >= p.size[0]) {
      std::fill(to, to + rows * scratch.pitch, T(0));
    } else {
      stage(sum, p, from, rows, scratch.pitch, to);
    }
    to += rows * scratch.pitch;
  }
}

// Adds to float64 sums. GCC 12 converts a vector of float32 in two halves, but elements of memory
// in one instruction.
template <class T, int BYTES, int COUNT>
TORCHCORR_INLINE void add_wide(double* total, const T* x) {
  using Wide = Vector<double, BYTES>;
  using Stored = typename VectorOf<double, BYTES>::stored;
  constexpr int lanes = static_cast<int>(lanes_of<double, BYTES>);
#pragma GCC unroll 64
  for (int i = 0; i < COUNT; i += lanes) {
    Wide part;
    if constexpr (std::is_same_v<T, float> && BYTES == 64) {
      part = read(x + i);
    } else {
      part = __builtin_convertvector(load<lanes * static_cast<int>(sizeof(T))>(x + i), Wide);
    }
    Stored* to = reinterpret_cast<Stored*>(total + i);
    *to = *to + part;
  }
}

// The copied terms that rows y to y + rows of positions meet.
template <class T>
void find_live(int64_t y, int64_t rows, DenseScratch<T>& scratch) {
  if (scratch.live_row == y) return;
  scratch.live_row = y;
  scratch.live.clear();
  for (size_t i = 0; i < scratch.copied.size(); ++i) {
    const int64_t row = scratch.rows[i] + y;
    if (row + rows > 0 && row < scratch.sizes[i]) scratch.live.push_back(scratch.copied[i]);
  }
}

// R rows by P columns of positions. A register adds few products before it is added to its total.
template <class T, int BYTES, int V, int R, int P>
TORCHCORR_INLINE void add_products(const T* source, int64_t pitch, const DenseTerm* terms,
                                   int64_t count, const T* coefficients, double* totals,
                                   int64_t totals_pitch) {
  using Vec = Vector<T, BYTES>;
  constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>);
  Vec acc[R * P][V] = {};
  for (int64_t i = 0; i < count; ++i) {
    const T* at = source + terms[i].source;
    const T* from = coefficients + terms[i].coefficient;
    Vec w[V];
#pragma GCC unroll 64
    for (int v = 0; v < V; ++v) w[v] = load<BYTES>(from + v * lanes);
#pragma GCC unroll 64
    for (int j = 0; j < R * P; ++j) {
      const T value = at[j / P * pitch + j % P];
#pragma GCC unroll 64
      for (int v = 0; v < V; ++v) acc[j][v] += w[v] * value;
    }
  }
  T sums[R * P * V * lanes];
  std::memcpy(sums, acc, sizeof(sums));
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    add_wide<T, BYTES, P * V * lanes>(totals + r * totals_pitch, sums + r * P * V * lanes);
  }
}

template <class T, int BYTES, int V, int R, int P>
TORCHCORR_INLINE void dense_registers(const DenseTask<T>& task, int64_t y, int64_t x,
                                      int64_t most_rows, DenseScratch<T>& scratch) {
  constexpr int64_t width = V * static_cast<int>(lanes_of<T, BYTES>);
  const SumOfPlanes<T>& sum = task.sum;
  const bool inside = y >= scratch.low[0] && y + R <= scratch.high[0] && x >= scratch.low[1] &&
                      x + P <= scratch.high[1];
  if (!inside) {
    copy_planes(task, y, x, most_rows, scratch);
    find_live(y, R, scratch);
  }
  const T* source = inside ? sum.source + y * sum.source_stride[1] + x : scratch.copies.data();
  const int64_t pitch = inside ? sum.source_stride[1] : scratch.pitch;
  const auto& terms = inside ? scratch.terms : scratch.live;
  double* totals = task.totals + (y * task.columns + x) * width;
  const int64_t count = static_cast<int64_t>(terms.size());
  for (int64_t i = 0; i < count; i += kTermsInLoop) {
    add_products<T, BYTES, V, R, P>(source, pitch, terms.data() + i,
                                    std::min(kTermsInLoop, count - i), sum.coefficients, totals,
                                    task.columns * width);
  }
}

template <class T, int BYTES, int V, int P>
TORCHCORR_INLINE void dense_positions(const DenseTask<T>& task, int64_t y, int64_t x, int64_t count,
                                      int64_t most_rows, DenseScratch<T>& scratch) {
  if constexpr (P > 1) {
    if (count < P) return dense_positions<T, BYTES, V, P - 1>(task, y, x, count, most_rows, scratch);
  }
  dense_registers<T, BYTES, V, 1, P>(task, y, x, most_rows, scratch);
}

// P positions at most.
template <class T, int BYTES, int V, int P>
TORCHCORR_INLINE void dense_rows(const DenseTask<T>& task, DenseScratch<T>& scratch) {
  constexpr int R = P < 9 ? 2 : 3;
  const int64_t columns = task.columns, blocks = (columns + P - 1) / P;
  const int64_t most_rows = columns <= 3 ? std::min<int64_t>(R, task.rows) : 1;
  locate_terms(task, most_rows, std::min<int64_t>(columns, P), scratch);
  int64_t y = 0;
  if (columns <= 3) {
    for (; y + R <= task.rows; y += R) {
      if (columns == 1) dense_registers<T, BYTES, V, R, 1>(task, y, 0, R, scratch);
      if (columns == 2) dense_registers<T, BYTES, V, R, 2>(task, y, 0, R, scratch);
      if (columns == 3) dense_registers<T, BYTES, V, R, 3>(task, y, 0, R, scratch);
    }
  }
  for (; y < task.rows; ++y) {
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t x = columns * i / blocks, count = columns * (i + 1) / blocks - x;
      dense_positions<T, BYTES, V, P>(task, y, x, count, most_rows, scratch);
    }
  }
}

template <class T, int BYTES, int P>
TORCHCORR_INLINE void dense_block(const DenseTask<T>& task, DenseScratch<T>& scratch) {
  if (task.width > lanes_of<T, BYTES>) return dense_rows<T, BYTES, 2, P>(task, scratch);
  dense_rows<T, BYTES, 1, P>(task, scratch);
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
