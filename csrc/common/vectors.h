// Eight doubles at a time, read from float32 or float64.
#pragma once

#include "common/tensors.h"

namespace torchcorr {

constexpr int64_t kVector = 8;
typedef double Vector __attribute__((vector_size(kVector * sizeof(double))));
typedef double LooseVector
    __attribute__((vector_size(kVector * sizeof(double)), aligned(8), may_alias));
typedef float LooseFloats
    __attribute__((vector_size(kVector * sizeof(float)), aligned(4), may_alias));

TORCHCORR_INLINE Vector read(const double* p) { return *reinterpret_cast<const LooseVector*>(p); }
TORCHCORR_INLINE Vector read(const float* p) {
  return __builtin_convertvector(*reinterpret_cast<const LooseFloats*>(p), Vector);
}

// The first n of eight elements, zeros behind them.
template <class T>
TORCHCORR_INLINE Vector read_part(int64_t n, const T* p) {
  Vector v = {};
  for (int64_t l = 0; l < n; ++l) v[l] = static_cast<double>(p[l]);
  return v;
}

TORCHCORR_INLINE void write(double* p, const Vector& v) { *reinterpret_cast<LooseVector*>(p) = v; }
TORCHCORR_INLINE void write(float* p, const Vector& v) {
  *reinterpret_cast<LooseFloats*>(p) = __builtin_convertvector(v, LooseFloats);
}

template <class T>
TORCHCORR_INLINE void write_part(int64_t n, T* p, const Vector& v) {
  for (int64_t l = 0; l < n; ++l) p[l] = static_cast<T>(v[l]);
}

TORCHCORR_INLINE double total_of(const Vector& v) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

TORCHCORR_INLINE double total_of_lanes(const double* lanes) { return total_of(read(lanes)); }

}  // namespace torchcorr
