// Functions that are compiled for vectors of several lengths. GCC 12 keeps vectors that are longer
// than those of the CPU in memory and compares them element by element: clones of one length are
// slow on CPUs without AVX-512.
#pragma once

#include <algorithm>
#include <cstdlib>

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

}  // namespace torchcorr
