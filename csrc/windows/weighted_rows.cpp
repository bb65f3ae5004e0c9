// The loops over rows of windows with weights. All elements along an axis are merged at once, about
// their mean, which is taken about that of an element with weight: equal elements have exactly no
// variance, and no large sums are subtracted.

#include "windows/weighted_rows.h"

#include <cmath>

#include "common/targets.h"

namespace torchcorr::weighted {
namespace {

template <int BYTES>
struct Means {
  Wide<BYTES> a, b;
};

template <int BYTES>
struct Variances {
  Wide<BYTES> a, b, both;
};

// Not with the comparison in a variable of its own, which GCC 12 cannot compile for AVX-512.
template <int BYTES>
TORCHCORR_INLINE Wide<BYTES> where_live(Wide<BYTES> weight, Wide<BYTES> value,
                                        Wide<BYTES> otherwise) {
  return weight > 0 ? value : otherwise;
}

template <int BYTES>
TORCHCORR_INLINE Wide<BYTES> inverse(Wide<BYTES> weight) {
  return where_live<BYTES>(weight, 1.0 / weight, Wide<BYTES>{});
}

// The means of a part that has weight, wherever there is one.
template <int BYTES, bool MASKED, class Weight, class Get>
TORCHCORR_INLINE Means<BYTES> level_of(int64_t count, const Weight& weight, const Get& get) {
  if (!MASKED) return get(count / 2);
  Means<BYTES> level = {};
  for (int64_t t = 0; t < count; ++t) {
    const Wide<BYTES> w = weight(t);
    const Means<BYTES> mean = get(t);
    level = {where_live<BYTES>(w, mean.a, level.a), where_live<BYTES>(w, mean.b, level.b)};
  }
  return level;
}

template <int BYTES, class T, bool MASKED, bool LEVEL, bool WHOLE>
TORCHCORR_INLINE void leaves_at(int64_t x, int64_t n, int64_t count, const Leaf<T>* leaves,
                                double share, Row out) {
  const auto get = [&](const T* p) TORCHCORR_FLAT {
    return WHOLE ? widened<BYTES>(p + x) : widened_part<BYTES>(n - x, p + x);
  };
  const auto weight = [&](int64_t t) TORCHCORR_FLAT {
    const Wide<BYTES> tap = Wide<BYTES>{} + leaves[t].tap;
    return MASKED ? tap * get(leaves[t].weight) : tap;
  };
  const auto means = [&](int64_t t) TORCHCORR_FLAT {
    const Means<BYTES> mean{get(leaves[t].a), get(leaves[t].b)};
    if (!LEVEL) return mean;
    return Means<BYTES>{mean.a - leaves[t].level.a, mean.b - leaves[t].level.b};
  };
  const auto live = [&](Wide<BYTES> w, Wide<BYTES> v) TORCHCORR_FLAT {
    return MASKED ? where_live<BYTES>(w, v, Wide<BYTES>{}) : v;
  };
  const Means<BYTES> level = level_of<BYTES, MASKED>(count, weight, means);
  Wide<BYTES> total = {};
  Means<BYTES> sum = {};
  for (int64_t t = 0; t < count; ++t) {
    const Wide<BYTES> w = weight(t);
    const Means<BYTES> mean = means(t);
    if (MASKED) total += w;
    sum.a += live(w, w * (mean.a - level.a));
    sum.b += live(w, w * (mean.b - level.b));
  }
  const Wide<BYTES> each = MASKED ? inverse<BYTES>(total) : Wide<BYTES>{} + share;
  sum = {sum.a * each, sum.b * each};
  const Means<BYTES> mean = {level.a + sum.a, level.b + sum.b};
  const Means<BYTES> low = {(level.a - mean.a) + sum.a, (level.b - mean.b) + sum.b};
  Variances<BYTES> v = {};
  for (int64_t t = 0; t < count; ++t) {
    const Wide<BYTES> w = weight(t);
    const Means<BYTES> one = means(t);
    const Wide<BYTES> da = (one.a - mean.a) - low.a, db = (one.b - mean.b) - low.b;
    v.a += live(w, w * (da * da));
    v.b += live(w, w * (db * db));
    v.both += live(w, w * (da * db));
  }
  const Row to = out.at(x);
  put(mean.a, to.plane(kMeanA)), put(mean.b, to.plane(kMeanB));
  put(low.a, to.plane(kLowA)), put(low.b, to.plane(kLowB));
  put(v.a * each, to.plane(kVarA)), put(v.b * each, to.plane(kVarB));
  put(v.both * each, to.plane(kCovariance));
  put(MASKED ? total : Wide<BYTES>{} + 1 / share, to.plane(kWeight));
}

template <int BYTES, class T, bool MASKED, bool LEVEL>
TORCHCORR_INLINE void leaves_of(int64_t n, int64_t count, const Leaf<T>* leaves, Row out) {
  double sum = 0;
  for (int64_t t = 0; t < count; ++t) sum += leaves[t].tap;
  const double share = 1 / sum;
  int64_t x = 0;
  for (; x + lanes_of<double, BYTES> <= n; x += lanes_of<double, BYTES>) {
    leaves_at<BYTES, T, MASKED, LEVEL, true>(x, n, count, leaves, share, out);
  }
  if (x < n) leaves_at<BYTES, T, MASKED, LEVEL, false>(x, n, count, leaves, share, out);
}

template <int BYTES, bool MASKED, bool FINE>
TORCHCORR_INLINE void rows_of(int64_t n, const Taps& taps, Row in, Row out) {
  const int64_t count = taps.count;
  for (int64_t x = 0; x < n; x += lanes_of<double, BYTES>) {
    const auto get = [&](int p, int64_t t) TORCHCORR_FLAT {
      return widened<BYTES>(in.first + p * in.pitch + x + t * taps.step);
    };
    const auto weight = [&](int64_t t) TORCHCORR_FLAT {
      const Wide<BYTES> tap = Wide<BYTES>{} + taps.values[t];
      return MASKED ? tap * widened<BYTES>(taps.weight + x + t * taps.weight_step) : tap;
    };
    const auto means = [&](int64_t t) TORCHCORR_FLAT {
      return Means<BYTES>{get(kMeanA, t), get(kMeanB, t)};
    };
    const Means<BYTES> level = level_of<BYTES, MASKED>(count, weight, means);
    Wide<BYTES> total = {};
    Means<BYTES> sum = {};
    for (int64_t t = 0; t < count; ++t) {
      const Wide<BYTES> w = weight(t);
      const Means<BYTES> one = means(t);
      if (MASKED) total += w;
      const Wide<BYTES> da = one.a - level.a, db = one.b - level.b;
      sum.a += w * (FINE ? da + get(kLowA, t) : da);
      sum.b += w * (FINE ? db + get(kLowB, t) : db);
    }
    const Wide<BYTES> each = MASKED ? inverse<BYTES>(total) : Wide<BYTES>{} + taps.share;
    sum = {sum.a * each, sum.b * each};
    const Means<BYTES> mean = {level.a + sum.a, level.b + sum.b};
    const Means<BYTES> low = {(level.a - mean.a) + sum.a, (level.b - mean.b) + sum.b};
    Variances<BYTES> v = {};
    for (int64_t t = 0; t < count; ++t) {
      const Wide<BYTES> w = weight(t);
      Wide<BYTES> da = get(kMeanA, t) - mean.a, db = get(kMeanB, t) - mean.b;
      if (FINE) da += get(kLowA, t) - low.a, db += get(kLowB, t) - low.b;
      v.a += w * (get(kVarA, t) + da * da);
      v.b += w * (get(kVarB, t) + db * db);
      v.both += w * (get(kCovariance, t) + da * db);
    }
    const Row to = out.at(x);
    put(mean.a, to.plane(kMeanA)), put(mean.b, to.plane(kMeanB));
    put(v.a * each, to.plane(kVarA)), put(v.b * each, to.plane(kVarB));
    put(v.both * each, to.plane(kCovariance));
    put(MASKED ? total : Wide<BYTES>{} + 1 / taps.share, to.plane(kWeight));
    if (FINE) put(low.a, to.plane(kLowA)), put(low.b, to.plane(kLowB));
  }
}

// The roots of both energies: 1 where either window is flat or has no weight.
struct Roots {
  double a, b;
  bool flat;

  TORCHCORR_INLINE Roots(double var_a, double var_b, double eps) {
    flat = (var_a == 0) | (var_b == 0);
    a = std::sqrt(flat ? 1.0 : var_a + eps);
    b = std::sqrt(flat ? 1.0 : var_b + eps);
  }
};

template <class T>
TORCHCORR_INLINE void scores_of(int64_t n, Row in, double eps, T* out) {
  const double *var_a = in.plane(kVarA), *var_b = in.plane(kVarB), *both = in.plane(kCovariance);
  for (int64_t i = 0; i < n; ++i) {
    const Roots root(var_a[i], var_b[i], eps);
    const double score = both[i] / (root.a * root.b);
    out[i] = static_cast<T>(score > 1 ? 1.0 : score < -1 ? -1.0 : score);
  }
}

template <class T>
TORCHCORR_INLINE void maps_of(int64_t n, Row in, const T* grad, const MapRule& by,
                              double* const (&to)[kMaps]) {
  const double *var_a = in.plane(kVarA), *var_b = in.plane(kVarB), *both = in.plane(kCovariance);
  const double *high_a = in.plane(kMeanA), *high_b = in.plane(kMeanB), *weight = in.plane(kWeight);
  // Without `fine` there may be no such planes.
  const double fine = by.fine ? 1.0 : 0.0;
  const double *low_a = in.plane(by.fine ? kLowA : kMeanA), *low_b = in.plane(by.fine ? kLowB : kMeanB);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const Roots root(var_a[i], var_b[i], by.eps);
    const double roots = root.a * root.b, count = weight[i] * by.weight;
    const double g = root.flat ? 0.0 : static_cast<double>(grad[i]) / count;
    const double scored = root.flat ? 0.0 : g * (both[i] / roots);
    const double p = g / roots, a = scored / (root.a * root.a), b = scored / (root.b * root.b);
    const double mean_a = high_a[i] + fine * low_a[i], mean_b = high_b[i] + fine * low_b[i];
    to[0][i] = p;
    to[1][i] = a;
    to[2][i] = a * mean_a - p * mean_b;
    if (by.maps >= kMapsOfBoth) {
      to[3][i] = b;
      to[4][i] = b * mean_b - p * mean_a;
    }
    if (by.maps == kMaps) {
      to[5][i] = p * (mean_a * mean_b - both[i]) -
                 (a * (mean_a * mean_a - var_a[i]) + b * (mean_b * mean_b - var_b[i])) / 2;
    }
  }
}

template <class T>
TORCHCORR_INLINE void combined(int64_t n, Row maps, const Elements<T>& of) {
  const double *p = maps.plane(0), *factor = maps.plane(of.map), *offset = maps.plane(of.map + 1);
  const Levels level = of.level;
  for (int64_t i = 0; i < n; ++i) {
    const double x = static_cast<double>(of.self[i]) - level.a;
    const double y = static_cast<double>(of.other[i]) - level.b;
    const double w = of.weight == nullptr ? 1.0 : static_cast<double>(of.weight[i]);
    const double value = w * (y * p[i] - x * factor[i] + offset[i]);
    of.out[i] = static_cast<T>(w > 0 ? value : 0.0);
  }
}

template <class T>
TORCHCORR_INLINE void combined_weights(int64_t n, Row maps, const Elements<T>& of) {
  const Levels level = of.level;
  for (int64_t i = 0; i < n; ++i) {
    const double x = static_cast<double>(of.self[i]) - level.a;
    const double y = static_cast<double>(of.other[i]) - level.b;
    const double linear = x * maps.plane(2)[i] + y * maps.plane(4)[i] + maps.plane(5)[i];
    const double square = x * x * maps.plane(1)[i] + y * y * maps.plane(3)[i];
    const double value = x * y * maps.plane(0)[i] - square / 2 + linear;
    of.out[i] = static_cast<T>(static_cast<double>(of.weight[i]) > 0 ? value : 0.0);
  }
}

#define TORCHCORR_MERGE(name, MASKED, FINE)                                        \
  template <int BYTES>                                                             \
  TORCHCORR_INLINE void name(int64_t n, const Taps& taps, Row in, Row out) {       \
    rows_of<BYTES, MASKED, FINE>(n, taps, in, out);                                \
  }                                                                                \
  TORCHCORR_FOR_CPUS(void, name, (int64_t n, const Taps& taps, Row in, Row out), (n, taps, in, out))
TORCHCORR_MERGE(merge_plain, false, false)
TORCHCORR_MERGE(merge_plain_fine, false, true)
TORCHCORR_MERGE(merge_masked, true, false)
TORCHCORR_MERGE(merge_masked_fine, true, true)
#undef TORCHCORR_MERGE

#define TORCHCORR_LEAVES(name, MASKED, LEVEL)                                                    \
  template <int BYTES, class T>                                                                  \
  TORCHCORR_INLINE void name(int64_t n, int64_t count, const Leaf<T>* leaves, Row out) {         \
    leaves_of<BYTES, T, MASKED, LEVEL>(n, count, leaves, out);                                   \
  }                                                                                              \
  TORCHCORR_FOR_CPUS(void, name, (int64_t n, int64_t count, const Leaf<float>* leaves, Row out), \
                     (n, count, leaves, out))                                                    \
  TORCHCORR_FOR_CPUS(void, name, (int64_t n, int64_t count, const Leaf<double>* leaves, Row out), \
                     (n, count, leaves, out))
TORCHCORR_LEAVES(leaves_plain, false, false)
TORCHCORR_LEAVES(leaves_masked, true, false)
TORCHCORR_LEAVES(leaves_level, true, true)
#undef TORCHCORR_LEAVES

template <int BYTES>
TORCHCORR_INLINE void add_rows(int64_t n, int64_t count, const double* const* rows,
                               const double* taps, double* out) {
  for (int64_t x = 0; x < n; x += lanes_of<double, BYTES>) {
    Wide<BYTES> sum = {};
    for (int64_t t = 0; t < count; ++t) sum += load<BYTES>(rows[t] + x) * taps[t];
    put(sum, out + x);
  }
}

}  // namespace

void merge_rows(int64_t n, const Taps& taps, Row in, bool fine, Row out) {
  if (taps.weight != nullptr) {
    fine ? merge_masked_fine(n, taps, in, out) : merge_masked(n, taps, in, out);
  } else {
    fine ? merge_plain_fine(n, taps, in, out) : merge_plain(n, taps, in, out);
  }
}

TORCHCORR_FOR_CPUS(void, add_rows,
                   (int64_t n, int64_t count, const double* const* rows, const double* taps,
                    double* out),
                   (n, count, rows, taps, out))

#define TORCHCORR_ROWS(T)                                                                         \
  void merge_leaves(int64_t n, int64_t count, const Leaf<T>* leaves, bool masked, Row out) {      \
    const bool level = count > 0 && (leaves[0].level.a != 0 || leaves[0].level.b != 0);           \
    if (!masked) return leaves_plain(n, count, leaves, out);                                      \
    level ? leaves_level(n, count, leaves, out) : leaves_masked(n, count, leaves, out);           \
  }                                                                                               \
  TORCHCORR_CLONES void scores(int64_t n, Row in, double eps, T* out) {                           \
    scores_of(n, in, eps, out);                                                                   \
  }                                                                                               \
  TORCHCORR_CLONES void maps_of_windows(int64_t n, Row in, const T* grad, const MapRule& by,      \
                                        double* const(&to)[kMaps]) {                              \
    maps_of(n, in, grad, by, to);                                                                 \
  }                                                                                               \
  TORCHCORR_CLONES void combine(int64_t n, Row maps, const Elements<T>& of) {                     \
    combined(n, maps, of);                                                                        \
  }                                                                                               \
  TORCHCORR_CLONES void combine_weights(int64_t n, Row maps, const Elements<T>& of) {             \
    combined_weights(n, maps, of);                                                                \
  }
TORCHCORR_ROWS(float)
TORCHCORR_ROWS(double)
#undef TORCHCORR_ROWS

}  // namespace torchcorr::weighted
