// Rows on vectors; see score_rows.h.

#include "tiles/score_rows.h"

#include "common/targets.h"

namespace torchcorr {
namespace {

// Every second of two vectors.
TORCHCORR_INLINE Vector<float> even(const Vector<float>& a, const Vector<float>& b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
TORCHCORR_INLINE Vector<double> even(const Vector<double>& a, const Vector<double>& b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
}
TORCHCORR_INLINE Vector<float, 32> even(const Vector<float, 32>& a, const Vector<float, 32>& b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
}
TORCHCORR_INLINE Vector<double, 32> even(const Vector<double, 32>& a, const Vector<double, 32>& b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6);
}
TORCHCORR_INLINE Vector<float, 16> even(const Vector<float, 16>& a, const Vector<float, 16>& b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6);
}
TORCHCORR_INLINE Vector<double, 16> even(const Vector<double, 16>& a, const Vector<double, 16>& b) {
  return __builtin_shufflevector(a, b, 0, 2);
}

// Sums of squares and largest sizes, one a lane.
template <class T, int BYTES>
struct LaneContent {
  Vector<T, BYTES> square = {}, peak = {};

  TORCHCORR_INLINE void add(const Vector<T, BYTES>& v) {
    const Vector<T, BYTES> size = v < 0 ? -v : v;
    square += v * v;
    peak = size > peak ? size : peak;
  }
  TORCHCORR_INLINE void add_to(RowContent& content) const {
    for (int64_t l = 0; l < lanes_of<T, BYTES>; ++l) {
      content.square += static_cast<double>(square[l]);
      content.peak = std::max(content.peak, static_cast<double>(peak[l]));
    }
  }
};

// out = numerator * norm within [-1, 1], 0 where the norm is. STEP is 2 or, for all others, 0.
template <int BYTES, int STEP, class In, class Out>
TORCHCORR_INLINE RowContent normalise(const NumeratorRow<In>& row, const In* norm, Out* out) {
  using Vec = Vector<In, BYTES>;
  constexpr int64_t kLanes = lanes_of<In, BYTES>;
  const int64_t n = row.n, by = STEP > 0 ? STEP : row.step, all = n + row.tail;
  const In* numerator = row.first;
  LaneContent<In, BYTES> lanes;
  Vec largest = {};
  int64_t i = 0;
  const auto block = [&]() TORCHCORR_FLAT {
    return even(load<BYTES>(numerator + 2 * i), load<BYTES>(numerator + 2 * i + kLanes));
  };
  if constexpr (STEP == 2) {
    // A vector of every second number reads one number further, which may lie past the end of the
    // memory: the last numbers are taken one by one.
    const Vec one = Vec{} + 1, none = {};
    for (; i + kLanes <= n && i + kLanes < all; i += kLanes) {
      const Vec value = block(), by_norm = load<BYTES>(norm + i);
      const Vec score = value * by_norm;
      const Vec high = score > one ? one : score, clamped = high < -one ? -one : high;
      put(by_norm == 0 ? none : clamped, out + i);
      largest = by_norm > largest ? by_norm : largest;
      lanes.add(value);
    }
  }
  RowContent content;
  for (; i < n; ++i) {
    const In value = numerator[i * by], by_norm = norm[i], score = value * by_norm;
    const In high = score > 1 ? In(1) : score, clamped = high < -1 ? In(-1) : high;
    out[i] = static_cast<Out>(by_norm == 0 ? In(0) : clamped);
    if (by_norm > content.norm) content.norm = static_cast<double>(by_norm);
    content.add_numerator(static_cast<double>(value));
  }
  if constexpr (STEP == 2) {
    for (; i + kLanes < all; i += kLanes) lanes.add(block());
  }
  for (; i < all; ++i) content.add_numerator(static_cast<double>(numerator[i * by]));
  lanes.add_to(content);
  for (int64_t l = 0; l < kLanes; ++l) {
    content.norm = std::max(content.norm, static_cast<double>(largest[l]));
  }
  return content;
}

template <int BYTES, class In, class Out>
TORCHCORR_INLINE RowContent normalise_row(const NumeratorRow<In>& row, const In* norm, Out* out) {
  return row.step == 2 ? normalise<BYTES, 2>(row, norm, out) : normalise<BYTES, 0>(row, norm, out);
}

template <class In, class Out>
TORCHCORR_INLINE void scale(int64_t n, const In* numerator, const In* norm, Out* out) {
  for (int64_t i = 0; i < n; ++i) {
    const In score = numerator[i] * norm[i];
    const In high = score > 1 ? In(1) : score, clamped = high < -1 ? In(-1) : high;
    out[i] = static_cast<Out>(norm[i] == 0 ? In(0) : clamped);
  }
}

template <int BYTES, class T>
TORCHCORR_INLINE RowContent content_of(int64_t n, const T* x) {
  LaneContent<T, BYTES> lanes;
  constexpr int64_t kLanes = lanes_of<T, BYTES>;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) lanes.add(load<BYTES>(x + i));
  RowContent content;
  for (; i < n; ++i) content.add_numerator(static_cast<double>(x[i]));
  lanes.add_to(content);
  return content;
}

template <class T>
TORCHCORR_INLINE int64_t doubtful_beyond(int64_t n, const uint8_t* states, const T* norms,
                                         T limit) {
  int count = 0;
  for (int64_t i = 0; i < n; ++i) count += is_doubtful(states[i]) | (norms[i] > limit);
  return count;
}

}  // namespace

#define TORCHCORR_NORMALISE(In, Out)                                                          \
  TORCHCORR_FOR_CPUS(RowContent, normalise_row,                                               \
                     (const NumeratorRow<In>& row, const In* norm, Out* out), (row, norm, out)) \
  TORCHCORR_CLONES void scale_row(int64_t n, const In* numerator, const In* norm, Out* out) { \
    scale(n, numerator, norm, out);                                                           \
  }
TORCHCORR_NORMALISE(float, float)
TORCHCORR_NORMALISE(double, float)
TORCHCORR_NORMALISE(double, double)
TORCHCORR_NORMALISE(float, double)
#undef TORCHCORR_NORMALISE

TORCHCORR_CLONES void rescore_row(int64_t n, const float* numerator, const float* norm,
                                  const SecondLook& by, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const float score = numerator[2 * i] * (norm[i] * by.scale);
    const float high = score > 1 ? 1.0f : score, clamped = high < -1 ? -1.0f : high;
    out[i] = (by.marked[i] != 0) & (norm[i] <= by.limit) ? clamped : out[i];
  }
}

TORCHCORR_FOR_CPUS(RowContent, content_of, (int64_t n, const float* x), (n, x))
TORCHCORR_FOR_CPUS(RowContent, content_of, (int64_t n, const double* x), (n, x))

// Counts in bytes as long as a byte suffices.
TORCHCORR_CLONES int64_t count_state(int64_t n, const uint8_t* states, uint8_t state) {
  int count = 0;
  for (int64_t i = 0; i < n; ++i) count += states[i] == state;
  return count;
}

TORCHCORR_CLONES int64_t count_doubtful(int64_t n, const uint8_t* states) {
  constexpr int64_t kPart = 128;
  int64_t count = 0, i = 0;
  for (; i + kPart <= n; i += kPart) {
    uint8_t part = 0;
    for (int64_t l = 0; l < kPart; ++l) part += is_doubtful(states[i + l]);
    count += part;
  }
  for (; i < n; ++i) count += is_doubtful(states[i]);
  return count;
}

TORCHCORR_CLONES int64_t count_beyond(int64_t n, const uint8_t* states, const float* norms,
                                      float limit) {
  return doubtful_beyond(n, states, norms, limit);
}
TORCHCORR_CLONES int64_t count_beyond(int64_t n, const uint8_t* states, const double* norms,
                                      double limit) {
  return doubtful_beyond(n, states, norms, limit);
}


}  // namespace torchcorr
