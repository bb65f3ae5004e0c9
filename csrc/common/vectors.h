// Vectors of any element type and size, and vectors of eight doubles read from float32 or float64.
#pragma once

#include "common/tensors.h"

namespace torchcorr {

template <class T, int BYTES>
struct VectorOf {
  typedef T type __attribute__((vector_size(BYTES)));
  // The same in memory, where only its elements are aligned.
  typedef T stored __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
};

template <class T, int BYTES = 64>
using Vector = typename VectorOf<T, BYTES>::type;

template <class T, int BYTES = 64>
constexpr int64_t lanes_of = BYTES / static_cast<int64_t>(sizeof(T));

template <int BYTES = 64, class T>
TORCHCORR_INLINE Vector<T, BYTES> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T, BYTES>::stored*>(p);
}

// Stores the elements of a vector of In, converted to Out.
template <class In, class Out>
TORCHCORR_INLINE void store(Out* p, const Vector<In>& v) {
  typedef typename VectorOf<Out, lanes_of<In>* static_cast<int64_t>(sizeof(Out))>::stored Stored;
  *reinterpret_cast<Stored*>(p) = __builtin_convertvector(v, Stored);
}

using Doubles = Vector<double>;
constexpr int64_t kDoubles = lanes_of<double>;

TORCHCORR_INLINE Doubles read(const double* p) { return load(p); }
// GCC 12 converts a vector of floats in two halves; this is one instruction.
TORCHCORR_INLINE Doubles read(const float* p) {
  return Doubles{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]};
}

// The first n of eight elements, followed by zeros.
template <class T>
TORCHCORR_INLINE Doubles read_part(int64_t n, const T* p) {
  Doubles v = {};
  for (int64_t l = 0; l < n; ++l) v[l] = static_cast<double>(p[l]);
  return v;
}

template <class T>
TORCHCORR_INLINE void write(T* p, const Doubles& v) {
  store<double>(p, v);
}

template <class T>
TORCHCORR_INLINE void write_part(int64_t n, T* p, const Doubles& v) {
  for (int64_t l = 0; l < n; ++l) p[l] = static_cast<T>(v[l]);
}

TORCHCORR_INLINE double total_of(const Doubles& v) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

// The sum of n elements, one a lane at a time.
template <class T>
TORCHCORR_INLINE double sum_of_row(int64_t n, const T* x) {
  Doubles total = {};
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) total += read(x + i);
  return total_of(total + read_part(n - i, x + i));
}

TORCHCORR_INLINE double dot_of_rows(int64_t n, const double* x, const double* y) {
  Doubles total = {};
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) total += read(x + i) * read(y + i);
  return total_of(total + read_part(n - i, x + i) * read_part(n - i, y + i));
}

TORCHCORR_INLINE double total_of_lanes(const double* lanes) { return total_of(read(lanes)); }

// Asks for n elements that will be read soon: rows of an image are too far apart for the CPU to foresee
// the next one. They need not exist.
template <class T>
TORCHCORR_INLINE void prefetch(int64_t n, const T* x) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(x + i);
}

}  // namespace torchcorr
