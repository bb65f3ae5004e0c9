// The inner loops of direct sums, compiled for the vectors of each CPU.
#pragma once

#include "common/targets.h"
#include "direct/dense_kernels.h"
#include "direct/row_kernels.h"

namespace torchcorr::direct {

template <class T>
struct Kernels {
  void (*correlate)(const SumOfPlanes<T>&, int64_t, int64_t, std::vector<T>&);
  void (*dots)(const std::vector<Dots<T>>&, int64_t, double*, int64_t);
  void (*dense)(const DenseTask<T>&, DenseScratch<T>&);
  AddDenseRow<T> dense_row;
  void (*interleave)(const T* const*, int64_t, T*, int64_t);
  void (*transpose)(const double*, int64_t, int64_t, T*, int64_t);
  int64_t dense_lanes;  // of one of the two vectors of a block of templates
};

#define TORCHCORR_KERNELS(name, target, bytes, vectors, positions)                               \
  template <class T>                                                                             \
  target void correlate_##name(const SumOfPlanes<T>& sum, int64_t z, int64_t i,                  \
                               std::vector<T>& s) {                                              \
    correlate_rows_of<T, bytes, vectors>(sum, z, i, s);                                            \
  }                                                                                              \
  template <class T>                                                                             \
  target void dots_##name(const std::vector<Dots<T>>& runs, int64_t n, double* out, int64_t p) { \
    dot_columns<T, bytes, vectors>(runs, n, out, p);                                             \
  }                                                                                              \
  template <class T>                                                                             \
  target void dense_row_##name(const DenseRow<T>& row, int64_t columns, int64_t width) {         \
    dense_row_of<T, bytes, positions>(row, columns, width);                                      \
  }                                                                                              \
  template <class T>                                                                             \
  target void dense_##name(const DenseTask<T>& task, DenseScratch<T>& s) {                       \
    dense_block<T, bytes, positions>(task, s, dense_row_##name<T>);                              \
  }                                                                                              \
  template <class T>                                                                             \
  target void interleave_##name(const T* const* rows, int64_t n, T* to, int64_t width) {         \
    interleave_rows<T, bytes>(rows, n, to, width);                                               \
  }                                                                                              \
  template <class T>                                                                             \
  target void transpose_##name(const double* from, int64_t n, int64_t width, T* to, int64_t p) { \
    transpose_sums<T, bytes>(from, n, width, to, p);                                             \
  }                                                                                              \
  template <class T>                                                                             \
  Kernels<T> kernels_##name() {                                                                  \
    return {correlate_##name<T>, dots_##name<T>, dense_##name<T>, dense_row_##name<T>,             \
            interleave_##name<T>, transpose_##name<T>, lanes_of<T, bytes>};                      \
  }

TORCHCORR_KERNELS(base, , 16, 2, 6)
#if defined(TORCHCORR_AVX2)
TORCHCORR_KERNELS(avx2, TORCHCORR_AVX2, 32, 2, 6)
TORCHCORR_KERNELS(avx512, TORCHCORR_AVX512, 64, 4, 12)
#endif
#undef TORCHCORR_KERNELS

template <class T>
Kernels<T> pick_kernels() {
#if defined(TORCHCORR_AVX2)
  if (kVectorBytes >= 64) return kernels_avx512<T>();
  if (kVectorBytes >= 32) return kernels_avx2<T>();
#endif
  return kernels_base<T>();
}

template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T> picked = pick_kernels<T>();
  return picked;
}

}  // namespace torchcorr::direct
