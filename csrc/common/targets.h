// Functions that are compiled for vectors of several lengths. GCC 12 keeps vectors that are longer
// than those of the CPU in memory and compares them element by element: clones of one length are
// slow on CPUs without AVX-512.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <type_traits>
#include <utility>

#include "common/vectors.h"

namespace torchcorr {

#if defined(__x86_64__) && defined(__GNUC__)
#define TORCHCORR_AVX2 __attribute__((target("avx2,fma,bmi2")))
#define TORCHCORR_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,bmi2")))
#endif

// Of the vectors that this CPU has. A test on one CPU can ask for shorter ones.
inline int longest_vectors() {
  int longest = 16;
#if defined(TORCHCORR_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) longest = 32;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    longest = 64;
  }
#endif
  const char* wanted = std::getenv("TORCHCORR_VECTOR_BYTES");
  return wanted ? std::min(longest, std::atoi(wanted)) : longest;
}
inline const int kVectorBytes = longest_vectors();

// Defines name(parameters), which calls the template name<BYTES>(arguments) for this CPU.
#if defined(TORCHCORR_AVX2)
#define TORCHCORR_FOR_CPUS(result, name, parameters, arguments)                                   \
  TORCHCORR_AVX512 static result name##_avx512 parameters { return name<64> arguments; }          \
  TORCHCORR_AVX2 static result name##_avx2 parameters { return name<32> arguments; }              \
  static result name##_base parameters { return name<16> arguments; }                             \
  result name parameters {                                                                        \
    if (kVectorBytes >= 64) return name##_avx512 arguments;                                       \
    return kVectorBytes >= 32 ? name##_avx2 arguments : name##_base arguments;                    \
  }
#else
#define TORCHCORR_FOR_CPUS(result, name, parameters, arguments) \
  result name parameters { return name<16> arguments; }
#endif

template <int BYTES>
using Wide = Vector<double, BYTES>;

// A vector of doubles, from as many elements; of floats in one instruction, unlike a conversion.
template <int BYTES>
TORCHCORR_INLINE Wide<BYTES> widened(const float* p) {
  if constexpr (BYTES == 64) return Wide<BYTES>{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]};
  if constexpr (BYTES == 32) return Wide<BYTES>{p[0], p[1], p[2], p[3]};
  if constexpr (BYTES == 16) return Wide<BYTES>{p[0], p[1]};
}
template <int BYTES>
TORCHCORR_INLINE Wide<BYTES> widened(const double* p) {
  return load<BYTES>(p);
}

// The first n elements, followed by zeros.
template <int BYTES, class T>
TORCHCORR_INLINE Wide<BYTES> widened_part(int64_t n, const T* p) {
  Wide<BYTES> v = {};
  for (int64_t l = 0; l < n; ++l) v[l] = static_cast<double>(p[l]);
  return v;
}

template <class V>
using Element = std::remove_cvref_t<decltype(std::declval<V>()[0])>;
template <class V>
constexpr int64_t lanes_in = static_cast<int64_t>(sizeof(V) / sizeof(Element<V>));

// Stores the elements of a vector, converted to Out.
template <class V, class Out>
TORCHCORR_INLINE void put(const V& v, Out* p) {
  typedef typename VectorOf<Out, lanes_in<V>* static_cast<int64_t>(sizeof(Out))>::stored Stored;
  *reinterpret_cast<Stored*>(p) = __builtin_convertvector(v, Stored);
}

template <class V>
TORCHCORR_INLINE double sum_of_lanes(const V& v) {
  double total = 0;
  for (int64_t l = 0; l < lanes_in<V>; ++l) total += static_cast<double>(v[l]);
  return total;
}

}  // namespace torchcorr
