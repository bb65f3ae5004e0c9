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

// Defines name(parameters), which calls the template name<BYTES>(arguments) with the length of the
// vectors that this CPU has.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
inline int longest_vectors() {
  const int longest = __builtin_cpu_supports("x86-64-v4") ? 64
                      : __builtin_cpu_supports("x86-64-v3") ? 32
                                                            : 16;
  // So that one CPU can test the shorter ones too.
  const char* wanted = std::getenv("TORCHCORR_VECTOR_BYTES");
  return wanted ? std::min(longest, std::max(16, std::atoi(wanted))) : longest;
}
inline const int kVectorBytes = longest_vectors();

#define TORCHCORR_FOR_CPUS(result, name, parameters, arguments)                                 \
  __attribute__((target("arch=x86-64-v4"))) static result name##_v4 parameters {                \
    return name<64> arguments;                                                                  \
  }                                                                                             \
  __attribute__((target("arch=x86-64-v3"))) static result name##_v3 parameters {                \
    return name<32> arguments;                                                                  \
  }                                                                                             \
  static result name##_base parameters { return name<16> arguments; }                           \
  result name parameters {                                                                      \
    if (kVectorBytes == 64) return name##_v4 arguments;                                         \
    return kVectorBytes == 32 ? name##_v3 arguments : name##_base arguments;                    \
  }
#else
// Other compilers divide vectors well.
#define TORCHCORR_FOR_CPUS(result, name, parameters, arguments) \
  result name parameters { return name<64> arguments; }
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
