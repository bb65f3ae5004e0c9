// Functions that are compiled for several lengths of vectors. GCC 12 keeps a vector that is longer
// than those of the CPU in memory, so that clones of one length do not serve all.
#pragma once

#include "common/vectors.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define TORCHCORR_AVX2 __attribute__((target("avx2,fma")))
#define TORCHCORR_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl,fma")))
#endif

namespace torchcorr {

// Of the vectors that this CPU has.
inline int vector_bytes() {
#if defined(TORCHCORR_AVX2)
  static const int bytes = [] {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      return 64;
    }
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 32 : 16;
  }();
  return bytes;
#else
  return 16;
#endif
}

// Defines name(parameters), which calls the template name<BYTES>(arguments) for this CPU.
#if defined(TORCHCORR_AVX2)
#define TORCHCORR_FOR_CPUS(result, name, parameters, arguments)                       \
  TORCHCORR_AVX512 result name##_avx512 parameters { return name<64> arguments; }     \
  TORCHCORR_AVX2 result name##_avx2 parameters { return name<32> arguments; }         \
  result name##_base parameters { return name<16> arguments; }                        \
  result name parameters {                                                            \
    const int bytes = vector_bytes();                                                 \
    if (bytes == 64) return name##_avx512 arguments;                                  \
    return bytes == 32 ? name##_avx2 arguments : name##_base arguments;               \
  }
#else
#define TORCHCORR_FOR_CPUS(result, name, parameters, arguments) \
  result name parameters { return name<16> arguments; }
#endif

template <int BYTES>
using Wide = Vector<double, BYTES>;

// A vector of doubles, from as many elements; one instruction, unlike a conversion.
template <int BYTES>
TORCHCORR_INLINE Wide<BYTES> widened(const float* p) {
  if constexpr (BYTES == 64) return Wide<64>{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]};
  if constexpr (BYTES == 32) return Wide<32>{p[0], p[1], p[2], p[3]};
  if constexpr (BYTES == 16) return Wide<16>{p[0], p[1]};
}

template <int BYTES>
TORCHCORR_INLINE void narrowed(const Wide<BYTES>& v, float* p) {
  typedef typename VectorOf<float, BYTES / 2>::stored Stored;
  *reinterpret_cast<Stored*>(p) = __builtin_convertvector(v, Stored);
}

template <int BYTES>
TORCHCORR_INLINE void put(const Wide<BYTES>& v, double* p) {
  *reinterpret_cast<typename VectorOf<double, BYTES>::stored*>(p) = v;
}

template <int BYTES>
TORCHCORR_INLINE double sum_of_lanes(const Wide<BYTES>& v) {
  double total = 0;
  for (int l = 0; l < lanes_of<double, BYTES>; ++l) total += v[l];
  return total;
}

}  // namespace torchcorr
