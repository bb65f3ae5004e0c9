// Coefficients of two images in windows, and what their gradients are made of, for a vector of
// windows at a time.
#pragma once

#include <cmath>

#include "common/targets.h"

namespace torchcorr {

// Calls f(i, count) for whole vectors, whose count the compiler knows, and for what is left of n.
template <int BYTES, class F>
TORCHCORR_INLINE void for_vectors(int64_t n, const F& f) {
  constexpr int64_t lanes = lanes_of<double, BYTES>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) f(i, std::integral_constant<int64_t, lanes>{});
  if (i < n) f(i, n - i);
}

template <int BYTES, class T>
TORCHCORR_INLINE Wide<BYTES> read_some(int64_t count, const T* p) {
  return count == lanes_of<double, BYTES> ? widened<BYTES>(p) : widened_part<BYTES>(count, p);
}

template <class V, class T>
TORCHCORR_INLINE void write_some(int64_t count, const V& v, T* p) {
  if (count == lanes_in<V>) return put(v, p);
  for (int64_t l = 0; l < count; ++l) p[l] = static_cast<T>(v[l]);
}

template <int BYTES>
TORCHCORR_INLINE Wide<BYTES> roots_of(Wide<BYTES> v) {
#pragma GCC unroll 8
  for (int64_t l = 0; l < lanes_of<double, BYTES>; ++l) v[l] = std::sqrt(v[l]);
  return v;
}

// From squares of both images about their means and sums of their products, times `share`; `eps`
// is added to the squares.
template <int BYTES>
struct PairScores {
  Wide<BYTES> a, b, product;  // the roots of both energies: 1 where either window is flat
  decltype(Wide<BYTES>{} == 0) flat;

  TORCHCORR_INLINE PairScores(Wide<BYTES> square_a, Wide<BYTES> square_b, Wide<BYTES> products,
                              double share, double eps) {
    const Wide<BYTES> one = Wide<BYTES>{} + 1;
    flat = (square_a == 0) | (square_b == 0);
    a = roots_of<BYTES>(flat ? one : square_a * share + eps);
    b = roots_of<BYTES>(flat ? one : square_b * share + eps);
    product = products * share;
  }

  // 0 in flat windows, or NaN if the other window contains a NaN.
  TORCHCORR_INLINE Wide<BYTES> clamped() const {
    const Wide<BYTES> one = Wide<BYTES>{} + 1, score = product / (a * b);
    const Wide<BYTES> low = score < -one ? -one : score;
    return low > one ? one : low;
  }
};

// Of upstream gradients g: the gradient of an element of a is a sum over its windows of
// through * (the element of b - its mean) - factor_a * (the element - its mean).
template <int BYTES>
struct PairFactors {
  Wide<BYTES> through, factor_a, factor_b;

  TORCHCORR_INLINE PairFactors(const PairScores<BYTES>& of, Wide<BYTES> g) {
    const Wide<BYTES> none = {}, inverse = 1 / (of.a * of.b);
    const Wide<BYTES> of_a = of.b * inverse, of_b = of.a * inverse;  // inverse roots
    through = of.flat ? none : g * inverse;
    const Wide<BYTES> scored = of.flat ? none : through * of.product;
    factor_a = scored * of_a * of_a;
    factor_b = scored * of_b * of_b;
  }
};

}  // namespace torchcorr
