// The inner loops: a block of scores, and a block of the template's gradient, in registers.
#pragma once

#include <cmath>

#include "direct/dense_kernels.h"
#include "direct/planes.h"

namespace torchcorr::direct {

constexpr int64_t kRows = 4;
// Sums of products in registers acc[j][v], which are folded into others, and these into memory:
// float32 into float64, and float64 with what rounding left out.
template <class T, int BYTES, int R, int V>
struct Accumulator {
  using Vec = Vector<T, BYTES>;
  static constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>);
  static constexpr bool keeps_lost = std::is_same_v<T, double>;
  Vec acc[R][V] = {}, folded[R][V];
  double wide[R][V * lanes], lost[keeps_lost ? R : 1][keeps_lost ? V * lanes : 1];
  int64_t terms = 0, folded_terms = 0;
  bool spilled = false;

  // Makes room for so many products, kTermsInRow at most.
  TORCHCORR_INLINE void reserve(int64_t count) {
    if (terms > 0 && terms + count > kTermsInRow) {
      fold();
      if (folded_terms + kTermsInRow > kFoldedTerms) spill();
    }
    terms += count;
  }

  TORCHCORR_INLINE void fold() {
    const bool none = folded_terms == 0;
#pragma GCC unroll 16
    for (int j = 0; j < R; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        folded[j][v] = none ? acc[j][v] : folded[j][v] + acc[j][v];
        acc[j][v] = Vec{};
      }
    }
    folded_terms += terms;
    terms = 0;
  }

  TORCHCORR_INLINE void spill() {
    if (!spilled) std::memset(wide, 0, sizeof(wide)), std::memset(lost, 0, sizeof(lost));
#pragma GCC unroll 16
    for (int j = 0; j < R; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        T part[lanes];
        std::memcpy(part, &folded[j][v], sizeof(part));
        double* sum = &wide[j][v * lanes];
        for (int i = 0; i < lanes; ++i) {
          const double before = sum[i], after = before + part[i], added = after - before;
          if constexpr (keeps_lost) {
            lost[j][v * lanes + i] += (before - (after - added)) + (part[i] - added);
          }
          sum[i] = after;
        }
      }
    }
    spilled = true;
    folded_terms = 0;
  }

  // All that was added, once it was spilled.
  TORCHCORR_INLINE double total(int j, int i) const {
    if constexpr (keeps_lost) return std::isfinite(wide[j][i]) ? wide[j][i] + lost[j][i] : wide[j][i];
    return wide[j][i];
  }
};

// Calls visit<first, last>() for the rows j of [0, count) that meet row r of `rows` + count - 1.
template <int R, class Visit>
TORCHCORR_INLINE void visit_rows(int64_t r, int64_t rows, int64_t count, const Visit& visit) {
  const int64_t first = std::max<int64_t>(0, r - rows + 1), last = std::min(r, count - 1);
  if constexpr (R == 1) {
    visit(std::integral_constant<int, 0>{}, std::integral_constant<int, 0>{});
  } else {
#define TORCHCORR_CASE(a, b) \
  case 4 * a + b:            \
    return visit(std::integral_constant<int, a>{}, std::integral_constant<int, b>{})
    switch (4 * first + last) {
      TORCHCORR_CASE(0, 0);
      TORCHCORR_CASE(0, 1);
      TORCHCORR_CASE(0, 2);
      TORCHCORR_CASE(0, 3);
      TORCHCORR_CASE(1, 1);
      TORCHCORR_CASE(1, 2);
      TORCHCORR_CASE(1, 3);
      TORCHCORR_CASE(2, 2);
      TORCHCORR_CASE(2, 3);
      TORCHCORR_CASE(3, 3);
    }
#undef TORCHCORR_CASE
  }
}

// R rows by V vectors of the output at (z, y, x), in registers over all planes and coefficients.
template <class T, int BYTES, int R, int V>
TORCHCORR_INLINE void correlate_registers(const SumOfPlanes<T>& sum, const Axes3& at, T* out,
                                          int64_t pitch, std::vector<T>& scratch) {
  using Vec = Vector<T, BYTES>;
  constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>);
  Accumulator<T, BYTES, R, V> acc;
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
        acc.reserve(end - begin);
        visit_rows<R>(r, p.rows, R, [&](auto first, auto last) __attribute__((always_inline)) {
          for (int64_t k = begin; k < end; ++k) {
            Vec x[V];
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) x[v] = load<BYTES>(source + k + v * lanes);
#pragma GCC unroll 16
            for (int j = 0; j < R; ++j) {
              if (j < first || j > last) continue;
              const T coefficient = coefficients[k - j * p.columns];
#pragma GCC unroll 16
              for (int v = 0; v < V; ++v) acc.acc[j][v] += x[v] * coefficient;
            }
          }
        });
      }
    }
  }
  const bool in_one_row = acc.folded_terms == 0 && !acc.spilled;
  if (!in_one_row) acc.fold();
  if (acc.spilled) acc.spill();
#pragma GCC unroll 16
  for (int j = 0; j < R; ++j) {
    if (acc.spilled) {
      for (int i = 0; i < V * lanes; ++i) out[j * pitch + i] = static_cast<T>(acc.total(j, i));
    } else {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        std::memcpy(out + j * pitch + v * lanes, in_one_row ? &acc.acc[j][v] : &acc.folded[j][v], BYTES);
      }
    }
  }
}

// Rows y .. y + R of one plane of the output. A block that would pass the end of its rows begins
// earlier and writes some values again. Rows above y may belong to another thread, so a block that
// begins above y is computed in a buffer.
template <class T, int BYTES, int R, int V>
TORCHCORR_INLINE void correlate_rows(const SumOfPlanes<T>& sum, int64_t z, int64_t y,
                                     std::vector<T>& scratch) {
  constexpr int64_t width = V * static_cast<int>(lanes_of<T, BYTES>);
  const Axes3& size = sum.size;
  const Axes3& stride = sum.output_stride;
  const int64_t top = std::min(y, size[1] - R), bottom = std::min(y + R, size[1]);
  const bool whole = top == y && stride[2] == 1 && size[2] >= width;
  T* plane = sum.output + z * stride[0];
  for (int64_t begin = 0; begin < size[2]; begin += width) {
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
}

template <class T, int BYTES, int V>
TORCHCORR_INLINE void correlate_block(const SumOfPlanes<T>& sum, int64_t z, int64_t y,
                                      std::vector<T>& scratch) {
  constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>);
  if (sum.size[1] >= kRows) {
    if constexpr (V > 2) {
      // Short rows take narrower blocks where those repeat much less of them.
      const auto computed = [&](int64_t width) { return (sum.size[2] + width - 1) / width * width; };
      if (8 * computed((V - 1) * lanes) < 7 * computed(V * lanes)) {
        return correlate_rows<T, BYTES, kRows, V - 1>(sum, z, y, scratch);
      }
    }
    return correlate_rows<T, BYTES, kRows, V>(sum, z, y, scratch);
  }
  const bool wide = sum.size[2] >= 4 * V * lanes;
  for (int64_t row = y; row < sum.size[1]; ++row) {
    if (wide) {
      correlate_rows<T, BYTES, 1, 4 * V>(sum, z, row, scratch);
    } else {
      correlate_rows<T, BYTES, 1, V>(sum, z, row, scratch);
    }
  }
}

// One block of the template's gradient: up to kRows rows by V elements, from some rows of score and
// image.
template <class T>
struct Dots {
  const T *score, *image;
  int64_t score_pitch, image_pitch, rows, columns, count;
};

template <class T, int BYTES, int V>
TORCHCORR_INLINE void dot_rows(const Dots<T>& d, Accumulator<T, BYTES, kRows, V>& sum) {
  using Vec = Vector<T, BYTES>;
  constexpr int64_t lanes = static_cast<int>(lanes_of<T, BYTES>);
  const int64_t whole = d.columns / lanes * lanes, tail = d.columns - whole;
  for (int64_t r = 0; r < d.rows + d.count - 1; ++r) {
    const T* image = d.image + r * d.image_pitch;
    const T* score = d.score + r * d.score_pitch;
    visit_rows<kRows>(r, d.rows, d.count,
                      [&](auto first, auto last) __attribute__((always_inline)) {
                        for (int64_t begin = 0; begin < whole; begin += kTermsInRow * lanes) {
                          const int64_t end = std::min(begin + kTermsInRow * lanes, whole);
                          sum.reserve((end - begin) / lanes);
                          for (int64_t x = begin; x < end; x += lanes) {
                            Vec pixel[V];
#pragma GCC unroll 16
                            for (int v = 0; v < V; ++v) pixel[v] = load<BYTES>(image + x + v);
#pragma GCC unroll 16
                            for (int j = 0; j < kRows; ++j) {
                              if (j < first || j > last) continue;
                              const Vec weight = load<BYTES>(score + x - j * d.score_pitch);
#pragma GCC unroll 16
                              for (int v = 0; v < V; ++v) sum.acc[j][v] += pixel[v] * weight;
                            }
                          }
                        }
                        if (tail == 0) return;
                        sum.reserve(1);
                        for (int j = first; j <= last; ++j) {
                          Vec weight{};
                          std::memcpy(&weight, score + whole - j * d.score_pitch, tail * sizeof(T));
                          for (int v = 0; v < V; ++v) {
                            Vec pixel{};
                            std::memcpy(&pixel, image + whole + v, tail * sizeof(T));
                            sum.acc[j][v] += pixel * weight;
                          }
                        }
                      });
  }
}

template <class T, int BYTES, int V>
TORCHCORR_INLINE void dot_block(const std::vector<Dots<T>>& runs, double* out, int64_t pitch) {
  constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>);
  Accumulator<T, BYTES, kRows, V> sum;
  for (const Dots<T>& d : runs) dot_rows<T, BYTES, V>(d, sum);
  sum.fold();
  sum.spill();
  for (int64_t j = 0; j < runs.front().count; ++j) {
    for (int v = 0; v < V; ++v) {
      double total = 0.0;
      for (int i = 0; i < lanes; ++i) total += sum.total(j, v * lanes + i);
      out[j * pitch + v] = total;
    }
  }
}

template <class T, int BYTES>
TORCHCORR_INLINE void dot_columns(const std::vector<Dots<T>>& runs, int64_t elements, double* out,
                                  int64_t pitch) {
  if (elements == 1) return dot_block<T, BYTES, 1>(runs, out, pitch);
  if (elements == 2) return dot_block<T, BYTES, 2>(runs, out, pitch);
  dot_block<T, BYTES, 3>(runs, out, pitch);
}

template <class T>
struct Kernels {
  void (*correlate)(const SumOfPlanes<T>&, int64_t, int64_t, std::vector<T>&);
  void (*dots)(const std::vector<Dots<T>>&, int64_t, double*, int64_t);
  void (*dense)(const DenseTask<T>&, DenseScratch<T>&);
  void (*transpose)(const double*, int64_t, int64_t, T*, int64_t);
  int64_t dense_lanes;  // of one of the two vectors of a block of templates
};

#define TORCHCORR_KERNELS(name, target, bytes, vectors, positions)                               \
  template <class T>                                                                             \
  target void correlate_##name(const SumOfPlanes<T>& sum, int64_t z, int64_t y,                  \
                               std::vector<T>& s) {                                              \
    correlate_block<T, bytes, vectors>(sum, z, y, s);                                            \
  }                                                                                              \
  template <class T>                                                                             \
  target void dots_##name(const std::vector<Dots<T>>& runs, int64_t n, double* out, int64_t p) { \
    dot_columns<T, bytes>(runs, n, out, p);                                                      \
  }                                                                                              \
  template <class T>                                                                             \
  target void dense_##name(const DenseTask<T>& task, DenseScratch<T>& s) {                       \
    dense_block<T, bytes, positions>(task, s);                                                   \
  }                                                                                              \
  template <class T>                                                                             \
  target void transpose_##name(const double* from, int64_t n, int64_t width, T* to, int64_t p) { \
    transpose_sums<T, bytes>(from, n, width, to, p);                                             \
  }                                                                                              \
  template <class T>                                                                             \
  Kernels<T> kernels_##name() {                                                                  \
    return {correlate_##name<T>, dots_##name<T>, dense_##name<T>, transpose_##name<T>,           \
            lanes_of<T, bytes>};                                                                 \
  }

TORCHCORR_KERNELS(base, , 16, 2, 6)
#if defined(__x86_64__) && defined(__GNUC__)
TORCHCORR_KERNELS(avx2, __attribute__((target("avx2,fma"))), 32, 2, 6)
TORCHCORR_KERNELS(avx512, __attribute__((target("avx512f,avx512dq,avx512vl,fma"))), 64, 3, 12)
#endif
#undef TORCHCORR_KERNELS

template <class T>
Kernels<T> pick_kernels() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return kernels_avx512<T>();
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kernels_avx2<T>();
#endif
  return kernels_base<T>();
}

template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T> picked = pick_kernels<T>();
  return picked;
}

}  // namespace torchcorr::direct
