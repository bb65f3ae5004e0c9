// The loops of the march that need vectors; see march.h.

#include "windows/march.h"

#include "windows/lanes.h"

namespace torchcorr {
namespace {

// Swaps the off-diagonal halves, then quarters, then eighths of a square block.
TORCHCORR_INLINE void transpose(Wide<64> (&t)[8]) {
  for (int i = 0; i < 4; ++i) {
    const Wide<64> a = t[i], b = t[i + 4];
    t[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    t[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int i : {0, 1, 4, 5}) {
    const Wide<64> a = t[i], b = t[i + 2];
    t[i] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
    t[i + 2] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i : {0, 2, 4, 6}) {
    const Wide<64> a = t[i], b = t[i + 1];
    t[i] = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
    t[i + 1] = __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  }
}
TORCHCORR_INLINE void transpose(Wide<32> (&t)[4]) {
  for (int i = 0; i < 2; ++i) {
    const Wide<32> a = t[i], b = t[i + 2];
    t[i] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    t[i + 2] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  }
  for (int i : {0, 2}) {
    const Wide<32> a = t[i], b = t[i + 1];
    t[i] = __builtin_shufflevector(a, b, 0, 4, 2, 6);
    t[i + 1] = __builtin_shufflevector(a, b, 1, 5, 3, 7);
  }
}
TORCHCORR_INLINE void transpose(Wide<16> (&t)[2]) {
  const Wide<16> a = t[0], b = t[1];
  t[0] = __builtin_shufflevector(a, b, 0, 2);
  t[1] = __builtin_shufflevector(a, b, 1, 3);
}

// Pébay (2008), equation 2.1 for two sets: every term of M2 is positive, so nothing cancels.
template <int BYTES>
struct MomentState {
  static constexpr int64_t kVectors = lane_vectors<BYTES>;
  Wide<BYTES> mean[kVectors], m2[kVectors];

  TORCHCORR_INLINE void load(const Rows& r, int64_t x) {
    for (int v = 0; v < kVectors; ++v) {
      mean[v] = widened<BYTES>(lane_vector<BYTES>(r.plane(0), x, v));
      m2[v] = widened<BYTES>(lane_vector<BYTES>(r.plane(1), x, v));
    }
  }
  TORCHCORR_INLINE void store(const Rows& r, int64_t x) const {
    for (int v = 0; v < kVectors; ++v) {
      put(mean[v], lane_vector<BYTES>(r.plane(0), x, v));
      put(m2[v], lane_vector<BYTES>(r.plane(1), x, v));
    }
  }
  // mean - mean is NaN where an element was infinite, and 0 elsewhere.
  TORCHCORR_INLINE void mark_non_finite() {
    for (int v = 0; v < kVectors; ++v) m2[v] += mean[v] - mean[v];
  }
  TORCHCORR_INLINE void add(const MomentState& b, double share, double factor) {
    for (int v = 0; v < kVectors; ++v) {
      const Wide<BYTES> d = b.mean[v] - mean[v];
      mean[v] += d * share;
      m2[v] += b.m2[v] + d * d * factor;
    }
  }
};

// The same of two images at once; the error of the products' sum is bounded by the squares'.
template <int BYTES, bool Fine>
struct CoMomentState {
  static constexpr int64_t kVectors = lane_vectors<BYTES>;
  Wide<BYTES> mean[2][kVectors], m2[2][kVectors], product[kVectors], rest[Fine ? 2 : 1][kVectors];

  TORCHCORR_INLINE void load(const Rows& r, int64_t x) {
    for (int v = 0; v < kVectors; ++v) {
      for (int i = 0; i < 2; ++i) {
        mean[i][v] = widened<BYTES>(lane_vector<BYTES>(r.plane(i), x, v));
        m2[i][v] = widened<BYTES>(lane_vector<BYTES>(r.plane(2 + i), x, v));
        if constexpr (Fine) rest[i][v] = widened<BYTES>(lane_vector<BYTES>(r.plane(5 + i), x, v));
      }
      product[v] = widened<BYTES>(lane_vector<BYTES>(r.plane(4), x, v));
    }
  }
  TORCHCORR_INLINE void store(const Rows& r, int64_t x) const {
    for (int v = 0; v < kVectors; ++v) {
      for (int i = 0; i < 2; ++i) {
        put(mean[i][v], lane_vector<BYTES>(r.plane(i), x, v));
        put(m2[i][v], lane_vector<BYTES>(r.plane(2 + i), x, v));
        if constexpr (Fine) put(rest[i][v], lane_vector<BYTES>(r.plane(5 + i), x, v));
      }
      put(product[v], lane_vector<BYTES>(r.plane(4), x, v));
    }
  }
  TORCHCORR_INLINE void mark_non_finite() {
    for (int v = 0; v < kVectors; ++v) {
      for (int i = 0; i < 2; ++i) {
        const Wide<BYTES> non_finite = mean[i][v] - mean[i][v];
        m2[i][v] += non_finite;
        product[v] += non_finite;
      }
    }
  }
  TORCHCORR_INLINE void add(const CoMomentState& b, double share, double factor) {
    for (int v = 0; v < kVectors; ++v) {
      Wide<BYTES> d[2];
      for (int i = 0; i < 2; ++i) {
        d[i] = b.mean[i][v] - mean[i][v];
        if constexpr (Fine) d[i] += b.rest[i][v] - rest[i][v];
        const Wide<BYTES> before = mean[i][v], step = d[i] * share;
        mean[i][v] += step;
        if constexpr (Fine) rest[i][v] += rounded_off(before, step, mean[i][v]);
        m2[i][v] += b.m2[i][v] + d[i] * d[i] * factor;
      }
      product[v] += b.product[v] + d[0] * d[1] * factor;
    }
  }
};

template <int BYTES, int N>
struct SumState {
  static constexpr int64_t kVectors = lane_vectors<BYTES>;
  Wide<BYTES> sum[N][kVectors];

  TORCHCORR_INLINE void load(const Rows& r, int64_t x) {
    for (int p = 0; p < N; ++p) {
      for (int v = 0; v < kVectors; ++v) {
        sum[p][v] = widened<BYTES>(lane_vector<BYTES>(r.plane(p), x, v));
      }
    }
  }
  TORCHCORR_INLINE void store(const Rows& r, int64_t x) const {
    for (int p = 0; p < N; ++p) {
      for (int v = 0; v < kVectors; ++v) put(sum[p][v], lane_vector<BYTES>(r.plane(p), x, v));
    }
  }
  TORCHCORR_INLINE void mark_non_finite() {}
  TORCHCORR_INLINE void add(const SumState& b, double, double) {
    for (int p = 0; p < N; ++p) {
      for (int v = 0; v < kVectors; ++v) sum[p][v] += b.sum[p][v];
    }
  }
};

template <int BYTES>
TORCHCORR_INLINE void moment_windows(const WindowAxis& axis, int64_t count, double weight,
                                     const Rows& in, const Rows& suffix, const Rows& out,
                                     const double* inverse) {
  lane_windows<MomentState<BYTES>>(axis, count, weight, in, suffix, out, inverse);
}
TORCHCORR_FOR_CPUS(void, moment_windows,
                   (const WindowAxis& axis, int64_t count, double weight, const Rows& in,
                    const Rows& suffix, const Rows& out, const double* inverse),
                   (axis, count, weight, in, suffix, out, inverse))

#define TORCHCORR_COMOMENT_WINDOWS(name, FINE)                                                     \
  template <int BYTES>                                                                             \
  TORCHCORR_INLINE void name(const WindowAxis& axis, int64_t count, double weight, const Rows& in, \
                             const Rows& suffix, const Rows& out, const double* inverse) {         \
    lane_windows<CoMomentState<BYTES, FINE>>(axis, count, weight, in, suffix, out, inverse);       \
  }                                                                                                \
  TORCHCORR_FOR_CPUS(void, name,                                                                   \
                     (const WindowAxis& axis, int64_t count, double weight, const Rows& in,        \
                      const Rows& suffix, const Rows& out, const double* inverse),                 \
                     (axis, count, weight, in, suffix, out, inverse))
TORCHCORR_COMOMENT_WINDOWS(comoment_windows, false)
TORCHCORR_COMOMENT_WINDOWS(fine_comoment_windows, true)
#undef TORCHCORR_COMOMENT_WINDOWS

#define TORCHCORR_SUM_WINDOWS(N)                                                               \
  template <int BYTES>                                                                         \
  TORCHCORR_INLINE void sum_windows_##N(const WindowAxis& axis, int64_t count, const Rows& in, \
                                        const Rows& suffix, const Rows& out,                   \
                                        const double* inverse) {                               \
    lane_windows<SumState<BYTES, N>>(axis, count, 1.0, in, suffix, out, inverse);              \
  }                                                                                            \
  TORCHCORR_FOR_CPUS(void, sum_windows_##N,                                                    \
                     (const WindowAxis& axis, int64_t count, const Rows& in,                   \
                      const Rows& suffix, const Rows& out, const double* inverse),             \
                     (axis, count, in, suffix, out, inverse))
TORCHCORR_SUM_WINDOWS(1)
TORCHCORR_SUM_WINDOWS(2)
TORCHCORR_SUM_WINDOWS(3)
TORCHCORR_SUM_WINDOWS(5)
TORCHCORR_SUM_WINDOWS(6)
#undef TORCHCORR_SUM_WINDOWS

TORCHCORR_CLONES void merge_moments(int64_t n, const Rows& out, const Rows& a, const Rows& b,
                                    double share, double factor) {
  const double *mean_a = a.plane(0), *m2_a = a.plane(1), *mean_b = b.plane(0), *m2_b = b.plane(1);
  double *mean = out.plane(0), *m2 = out.plane(1);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const double d = mean_b[i] - mean_a[i];
    mean[i] = mean_a[i] + d * share;
    m2[i] = m2_a[i] + (m2_b[i] + d * d * factor);
  }
}

template <bool Fine>
TORCHCORR_INLINE void merge_pairs(int64_t n, const Rows& out, const Rows& a, const Rows& b,
                                  double share, double factor) {
  const double *a0 = a.plane(0), *a1 = a.plane(1), *a2 = a.plane(2), *a3 = a.plane(3);
  const double *b0 = b.plane(0), *b1 = b.plane(1), *b2 = b.plane(2), *b3 = b.plane(3);
  const double *a4 = a.plane(4), *b4 = b.plane(4);
  const double *a5 = a.plane(Fine ? 5 : 0), *a6 = a.plane(Fine ? 6 : 0);
  const double *b5 = b.plane(Fine ? 5 : 0), *b6 = b.plane(Fine ? 6 : 0);
  double *o0 = out.plane(0), *o1 = out.plane(1), *o2 = out.plane(2), *o3 = out.plane(3);
  double *o4 = out.plane(4), *o5 = out.plane(Fine ? 5 : 0), *o6 = out.plane(Fine ? 6 : 0);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    double d = b0[i] - a0[i], e = b1[i] - a1[i];
    if (Fine) {
      d += b5[i] - a5[i];
      e += b6[i] - a6[i];
    }
    const double first = a0[i], second = a1[i], sum = first + d * share, total = second + e * share;
    if (Fine) {
      o5[i] = a5[i] + rounded_off(first, d * share, sum);
      o6[i] = a6[i] + rounded_off(second, e * share, total);
    }
    o0[i] = sum;
    o1[i] = total;
    o2[i] = a2[i] + (b2[i] + d * d * factor);
    o3[i] = a3[i] + (b3[i] + e * e * factor);
    o4[i] = a4[i] + (b4[i] + d * e * factor);
  }
}

TORCHCORR_CLONES void merge_comoments(int64_t n, const Rows& out, const Rows& a, const Rows& b,
                                      double share, double factor) {
  merge_pairs<false>(n, out, a, b, share, factor);
}

TORCHCORR_CLONES void merge_fine_comoments(int64_t n, const Rows& out, const Rows& a, const Rows& b,
                                           double share, double factor) {
  merge_pairs<true>(n, out, a, b, share, factor);
}

template <int BYTES>
TORCHCORR_INLINE void interleave(int64_t n, const double* const rows[kLanes], double* out) {
  constexpr int64_t kSide = lanes_of<double, BYTES>;
  int64_t x = 0;
  for (; x + kSide <= n; x += kSide) {
    for (int64_t v = 0; v < lane_vectors<BYTES>; ++v) {
      Wide<BYTES> t[kSide];
      for (int64_t r = 0; r < kSide; ++r) t[r] = load<BYTES>(rows[v * kSide + r] + x);
      transpose(t);
      for (int64_t k = 0; k < kSide; ++k) put(t[k], lane_vector<BYTES>(out, x + k, v));
    }
  }
  for (; x < n; ++x) {
    for (int64_t r = 0; r < kLanes; ++r) out[x * kLanes + r] = rows[r][x];
  }
}

template <int BYTES>
TORCHCORR_INLINE void separate(int64_t n, const double* in, double* const rows[kLanes]) {
  constexpr int64_t kSide = lanes_of<double, BYTES>;
  int64_t x = 0;
  for (; x + kSide <= n; x += kSide) {
    for (int64_t v = 0; v < lane_vectors<BYTES>; ++v) {
      Wide<BYTES> t[kSide];
      for (int64_t k = 0; k < kSide; ++k) t[k] = load<BYTES>(in + (x + k) * kLanes + v * kSide);
      transpose(t);
      for (int64_t r = 0; r < kSide; ++r) put(t[r], rows[v * kSide + r] + x);
    }
  }
  for (; x < n; ++x) {
    for (int64_t r = 0; r < kLanes; ++r) rows[r][x] = in[x * kLanes + r];
  }
}

TORCHCORR_CLONES void add(int64_t n, double* out, const double* a, const double* b) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

}  // namespace

void Moments::merge(int64_t n, Rows out, Rows a, double na, Rows b, double nb, double weight) {
  merge_moments(n, out, a, b, nb / (na + nb), weight * na * nb / (na + nb));
}

void Moments::windows(const WindowAxis& axis, int64_t count, double weight, Rows in, Rows suffix,
                      Rows out) {
  moment_windows(axis, count, weight, in, suffix, out, reciprocals(axis.window));
}

template <bool Fine>
void CoMoments<Fine>::merge(int64_t n, Rows out, Rows a, double na, Rows b, double nb,
                            double weight) {
  const double share = nb / (na + nb), factor = weight * na * nb / (na + nb);
  if constexpr (Fine) {
    merge_fine_comoments(n, out, a, b, share, factor);
  } else {
    merge_comoments(n, out, a, b, share, factor);
  }
}

template <bool Fine>
void CoMoments<Fine>::windows(const WindowAxis& axis, int64_t count, double weight, Rows in,
                              Rows suffix, Rows out) {
  const double* inverse = reciprocals(axis.window);
  if constexpr (Fine) {
    fine_comoment_windows(axis, count, weight, in, suffix, out, inverse);
  } else {
    comoment_windows(axis, count, weight, in, suffix, out, inverse);
  }
}

template struct CoMoments<false>;
template struct CoMoments<true>;

template <int N>
void Sums<N>::merge(int64_t n, Rows out, Rows a, double, Rows b, double, double) {
  for (int p = 0; p < N; ++p) add(n, out.plane(p), a.plane(p), b.plane(p));
}

template <int N>
void Sums<N>::windows(const WindowAxis& axis, int64_t count, double, Rows in, Rows suffix,
                      Rows out) {
  const double* inverse = reciprocals(axis.window);
  if constexpr (N == 1) {
    sum_windows_1(axis, count, in, suffix, out, inverse);
  } else if constexpr (N == 2) {
    sum_windows_2(axis, count, in, suffix, out, inverse);
  } else if constexpr (N == 3) {
    sum_windows_3(axis, count, in, suffix, out, inverse);
  } else if constexpr (N == 5) {
    sum_windows_5(axis, count, in, suffix, out, inverse);
  } else {
    sum_windows_6(axis, count, in, suffix, out, inverse);
  }
}

template struct Sums<1>;
template struct Sums<2>;
template struct Sums<3>;
template struct Sums<5>;
template struct Sums<6>;

TORCHCORR_FOR_CPUS(void, interleave, (int64_t n, const double* const rows[kLanes], double* out),
                   (n, rows, out))
TORCHCORR_FOR_CPUS(void, separate, (int64_t n, const double* in, double* const rows[kLanes]),
                   (n, in, rows))

TORCHCORR_CLONES void widen(int64_t n, const float* in, double* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<double>(in[i]);
}

void widen(int64_t n, const double* in, double* out) { std::copy_n(in, n, out); }

}  // namespace torchcorr
