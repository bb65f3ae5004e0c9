// The loops of the march for elements with weights: equation merge of math.md with weights in the
// place of counts. A summary without weight leaves the other as it is.

#include "windows/weighted_march.h"

#include "windows/lanes.h"

namespace torchcorr::weighted {
namespace {

template <int BYTES, bool Fine>
struct WeightedState {
  static constexpr int64_t kVectors = lane_vectors<BYTES>;
  Wide<BYTES> mean[2][kVectors], m2[2][kVectors], product[kVectors], weight[kVectors],
      low[Fine ? 2 : 1][kVectors];

  TORCHCORR_INLINE void load(const Rows& r, int64_t x) {
    for (int v = 0; v < kVectors; ++v) {
      for (int i = 0; i < 2; ++i) {
        mean[i][v] = widened<BYTES>(lane_vector<BYTES>(r.plane(kMeanA + i), x, v));
        m2[i][v] = widened<BYTES>(lane_vector<BYTES>(r.plane(kVarA + i), x, v));
        if constexpr (Fine) low[i][v] = widened<BYTES>(lane_vector<BYTES>(r.plane(kLowA + i), x, v));
      }
      product[v] = widened<BYTES>(lane_vector<BYTES>(r.plane(kCovariance), x, v));
      weight[v] = widened<BYTES>(lane_vector<BYTES>(r.plane(kWeight), x, v));
    }
  }
  TORCHCORR_INLINE void store(const Rows& r, int64_t x) const {
    for (int v = 0; v < kVectors; ++v) {
      for (int i = 0; i < 2; ++i) {
        put(mean[i][v], lane_vector<BYTES>(r.plane(kMeanA + i), x, v));
        put(m2[i][v], lane_vector<BYTES>(r.plane(kVarA + i), x, v));
        if constexpr (Fine) put(low[i][v], lane_vector<BYTES>(r.plane(kLowA + i), x, v));
      }
      put(product[v], lane_vector<BYTES>(r.plane(kCovariance), x, v));
      put(weight[v], lane_vector<BYTES>(r.plane(kWeight), x, v));
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
  TORCHCORR_INLINE void add(const WeightedState& b, double, double) {
    for (int v = 0; v < kVectors; ++v) {
      const Wide<BYTES> total = weight[v] + b.weight[v];
      const Wide<BYTES> share = total > 0 ? b.weight[v] / total : Wide<BYTES>{};
      const Wide<BYTES> factor = weight[v] * share;
      Wide<BYTES> d[2];
      for (int i = 0; i < 2; ++i) {
        d[i] = b.mean[i][v] - mean[i][v];
        if constexpr (Fine) d[i] += b.low[i][v] - low[i][v];
        const Wide<BYTES> before = mean[i][v], step = d[i] * share;
        mean[i][v] += step;
        if constexpr (Fine) low[i][v] += rounded_off(before, step, mean[i][v]);
        m2[i][v] += b.m2[i][v] + d[i] * d[i] * factor;
      }
      product[v] += b.product[v] + d[0] * d[1] * factor;
      weight[v] = total;
    }
  }
};

#define TORCHCORR_WEIGHTED_WINDOWS(name, FINE)                                              \
  template <int BYTES>                                                                      \
  TORCHCORR_INLINE void name(const WindowAxis& axis, int64_t count, const Rows& in,         \
                             const Rows& suffix, const Rows& out, const double* inverse) {  \
    lane_windows<WeightedState<BYTES, FINE>>(axis, count, 1.0, in, suffix, out, inverse);   \
  }                                                                                         \
  TORCHCORR_FOR_CPUS(void, name,                                                            \
                     (const WindowAxis& axis, int64_t count, const Rows& in,                \
                      const Rows& suffix, const Rows& out, const double* inverse),          \
                     (axis, count, in, suffix, out, inverse))
TORCHCORR_WEIGHTED_WINDOWS(weighted_windows, false)
TORCHCORR_WEIGHTED_WINDOWS(fine_weighted_windows, true)
#undef TORCHCORR_WEIGHTED_WINDOWS

template <bool Fine>
TORCHCORR_INLINE void merge_weighted(int64_t n, const Rows& out, const Rows& a, const Rows& b) {
  const auto plane = [](const Rows& r, int p) TORCHCORR_FLAT {
    return r.plane(p < kLowA || Fine ? p : 0);
  };
  const double *wa = plane(a, kWeight), *wb = plane(b, kWeight);
  const double *a0 = plane(a, kMeanA), *a1 = plane(a, kMeanB), *a2 = plane(a, kVarA);
  const double *a3 = plane(a, kVarB), *a4 = plane(a, kCovariance);
  const double *a6 = plane(a, kLowA), *a7 = plane(a, kLowB);
  const double *b0 = plane(b, kMeanA), *b1 = plane(b, kMeanB), *b2 = plane(b, kVarA);
  const double *b3 = plane(b, kVarB), *b4 = plane(b, kCovariance);
  const double *b6 = plane(b, kLowA), *b7 = plane(b, kLowB);
  double *o0 = plane(out, kMeanA), *o1 = plane(out, kMeanB), *o2 = plane(out, kVarA);
  double *o3 = plane(out, kVarB), *o4 = plane(out, kCovariance), *o5 = plane(out, kWeight);
  double *o6 = plane(out, kLowA), *o7 = plane(out, kLowB);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const double total = wa[i] + wb[i];
    const double share = wb[i] / (total > 0 ? total : 1.0), factor = wa[i] * share;
    double d = b0[i] - a0[i], e = b1[i] - a1[i];
    if (Fine) {
      d += b6[i] - a6[i];
      e += b7[i] - a7[i];
    }
    const double first = a0[i], second = a1[i], one = first + d * share, other = second + e * share;
    if (Fine) {
      o6[i] = a6[i] + rounded_off(first, d * share, one);
      o7[i] = a7[i] + rounded_off(second, e * share, other);
    }
    o0[i] = one;
    o1[i] = other;
    o2[i] = a2[i] + (b2[i] + d * d * factor);
    o3[i] = a3[i] + (b3[i] + e * e * factor);
    o4[i] = a4[i] + (b4[i] + d * e * factor);
    o5[i] = total;
  }
}

TORCHCORR_CLONES void merge_plain(int64_t n, const Rows& out, const Rows& a, const Rows& b) {
  merge_weighted<false>(n, out, a, b);
}

TORCHCORR_CLONES void merge_fine(int64_t n, const Rows& out, const Rows& a, const Rows& b) {
  merge_weighted<true>(n, out, a, b);
}

template <class T>
void elements_of(int64_t n, const T* a, const T* b, const T* weight, const Levels& level, Rows to) {
  for (int64_t i = 0; i < n; ++i) {
    const double w = weight == nullptr ? 1.0 : static_cast<double>(weight[i]);
    to.plane(kMeanA)[i] = w > 0 ? static_cast<double>(a[i]) - level.a : 0.0;
    to.plane(kMeanB)[i] = w > 0 ? static_cast<double>(b[i]) - level.b : 0.0;
    to.plane(kWeight)[i] = w;
  }
}

}  // namespace

template <bool Fine>
void WeightedMoments<Fine>::merge(int64_t n, Rows out, Rows a, double, Rows b, double, double) {
  (Fine ? merge_fine : merge_plain)(n, out, a, b);
}

template <bool Fine>
void WeightedMoments<Fine>::windows(const WindowAxis& axis, int64_t count, double, Rows in,
                                    Rows suffix, Rows out) {
  const double* inverse = reciprocals(axis.window);
  if constexpr (Fine) {
    fine_weighted_windows(axis, count, in, suffix, out, inverse);
  } else {
    weighted_windows(axis, count, in, suffix, out, inverse);
  }
}

template struct WeightedMoments<false>;
template struct WeightedMoments<true>;

void load_elements(int64_t n, const float* a, const float* b, const float* weight,
                   const Levels& level, Rows to) {
  elements_of(n, a, b, weight, level, to);
}

void load_elements(int64_t n, const double* a, const double* b, const double* weight,
                   const Levels& level, Rows to) {
  elements_of(n, a, b, weight, level, to);
}

void divide_by_weight(int64_t n, Rows r) {
  const double* weight = r.plane(kWeight);
  for (int p : {kVarA, kVarB, kCovariance}) {
    double* plane = r.plane(p);
    for (int64_t i = 0; i < n; ++i) plane[i] /= weight[i] > 0 ? weight[i] : 1.0;
  }
}

}  // namespace torchcorr::weighted
