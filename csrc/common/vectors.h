// Vectors of any element type and size, and vectors of eight doubles read from float32 or float64.
#pragma once

#include <type_traits>
#include <utility>

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

using Doubles = Vector<double>;
constexpr int64_t kDoubles = lanes_of<double>;

template <class T>
TORCHCORR_INLINE Doubles read(const T* p) {
  return widened<64>(p);
}
template <class T>
TORCHCORR_INLINE void write(T* p, const Doubles& v) {
  put(v, p);
}

TORCHCORR_INLINE double total_of(const Doubles& v) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

// The sum of n elements, one a lane at a time.
template <int BYTES, class T>
TORCHCORR_INLINE double sum_of_row(int64_t n, const T* x) {
  Wide<BYTES> total = {};
  int64_t i = 0;
  for (; i + lanes_of<double, BYTES> <= n; i += lanes_of<double, BYTES>) {
    total += widened<BYTES>(x + i);
  }
  double rest = 0;
  for (; i < n; ++i) rest += static_cast<double>(x[i]);
  return sum_of_lanes(total) + rest;
}

// What rounding loses is added to the next element: numbers with few digits, less a mean, are all rounded
// in the same direction, and sums of many of them lose four digits.
template <int BYTES>
TORCHCORR_INLINE void subtract_mean(int64_t n, double* x) {
  Wide<BYTES> total = {}, lost = {};
  int64_t whole = 0;
  for (; whole + lanes_of<double, BYTES> <= n; whole += lanes_of<double, BYTES>) {
    const Wide<BYTES> added = load<BYTES>(x + whole) + lost, sum = total + added;
    lost = added - (sum - total);
    total = sum;
  }
  double rest = sum_of_lanes(lost);
  for (int64_t i = whole; i < n; ++i) rest += x[i];
  const double mean = (sum_of_lanes(total) + rest) / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) x[i] -= mean;
}

template <int BYTES>
TORCHCORR_INLINE double dot_of_rows(int64_t n, const double* x, const double* y) {
  Wide<BYTES> total = {};
  int64_t i = 0;
  for (; i + lanes_of<double, BYTES> <= n; i += lanes_of<double, BYTES>) {
    total += load<BYTES>(x + i) * load<BYTES>(y + i);
  }
  double rest = 0;
  for (; i < n; ++i) rest += x[i] * y[i];
  return sum_of_lanes(total) + rest;
}

// The largest size of n elements; those that are not a number have none.
template <int BYTES>
TORCHCORR_INLINE double largest_of_row(int64_t n, const double* x) {
  Wide<BYTES> most = {};
  int64_t i = 0;
  for (; i + lanes_of<double, BYTES> <= n; i += lanes_of<double, BYTES>) {
    const Wide<BYTES> v = load<BYTES>(x + i), size = v < 0 ? -v : v;
    most = size > most ? size : most;
  }
  double largest = 0;
  for (int64_t l = 0; l < lanes_of<double, BYTES>; ++l) {
    largest = most[l] > largest ? most[l] : largest;
  }
  for (; i < n; ++i) {
    const double size = x[i] < 0 ? -x[i] : x[i];
    largest = size > largest ? size : largest;
  }
  return largest;
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
