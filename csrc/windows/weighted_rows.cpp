// The loops over rows of windows with weights. All elements along an axis are merged at once, about
// their mean, which is taken about that of an element with weight: equal elements have exactly no
// variance, and no large sums are subtracted.

#include "windows/weighted_rows.h"

#include <cmath>

namespace torchcorr::weighted {
namespace {

struct Means {
  Doubles a, b;
};

struct Variances {
  Doubles a, b, both;
};

TORCHCORR_INLINE Doubles all(double x) {
  return Doubles{x, x, x, x, x, x, x, x};
}

// Not with the comparison in a variable of its own, which GCC 12 cannot compile for AVX-512.
TORCHCORR_INLINE Doubles where_live(Doubles weight, Doubles value, Doubles otherwise) {
  return weight > 0 ? value : otherwise;
}

TORCHCORR_INLINE Doubles inverse(Doubles weight) {
  return where_live(weight, all(1) / weight, Doubles{});
}

// The means of a part that has weight, wherever there is one.
template <bool MASKED, class Weight, class Get>
TORCHCORR_INLINE Means level_of(int64_t count, const Weight& weight, const Get& get) {
  if (!MASKED) return get(count / 2);
  Means level = {};
  for (int64_t t = 0; t < count; ++t) {
    const Doubles w = weight(t);
    const Means mean = get(t);
    level = {where_live(w, mean.a, level.a), where_live(w, mean.b, level.b)};
  }
  return level;
}

template <class T, bool MASKED, bool LEVEL, bool WHOLE>
TORCHCORR_INLINE void leaves_at(int64_t x, int64_t n, int64_t count, const Leaf<T>* leaves,
                                double share, Row out) {
  const auto get = [&](const T* p) TORCHCORR_FLAT {
    return WHOLE ? read(p + x) : read_part(n - x, p + x);
  };
  const auto weight = [&](int64_t t) TORCHCORR_FLAT {
    const Doubles tap = all(leaves[t].tap);
    return MASKED ? tap * get(leaves[t].weight) : tap;
  };
  const auto means = [&](int64_t t) TORCHCORR_FLAT {
    const Means mean{get(leaves[t].a), get(leaves[t].b)};
    if (!LEVEL) return mean;
    return Means{mean.a - all(leaves[t].level.a), mean.b - all(leaves[t].level.b)};
  };
  const auto live = [&](Doubles w, Doubles v) TORCHCORR_FLAT {
    return MASKED ? where_live(w, v, Doubles{}) : v;
  };
  const Means level = level_of<MASKED>(count, weight, means);
  Doubles total = {};
  Means sum = {};
  for (int64_t t = 0; t < count; ++t) {
    const Doubles w = weight(t);
    const Means mean = means(t);
    if (MASKED) total += w;
    sum.a += live(w, w * (mean.a - level.a));
    sum.b += live(w, w * (mean.b - level.b));
  }
  const Doubles each = MASKED ? inverse(total) : all(share);
  sum = {sum.a * each, sum.b * each};
  const Means mean = {level.a + sum.a, level.b + sum.b};
  const Means low = {(level.a - mean.a) + sum.a, (level.b - mean.b) + sum.b};
  Variances v = {};
  for (int64_t t = 0; t < count; ++t) {
    const Doubles w = weight(t);
    const Means one = means(t);
    const Doubles da = (one.a - mean.a) - low.a, db = (one.b - mean.b) - low.b;
    v.a += live(w, w * (da * da));
    v.b += live(w, w * (db * db));
    v.both += live(w, w * (da * db));
  }
  const Row to = out.at(x);
  write(to.plane(kMeanA), mean.a), write(to.plane(kMeanB), mean.b);
  write(to.plane(kLowA), low.a), write(to.plane(kLowB), low.b);
  write(to.plane(kVarA), v.a * each), write(to.plane(kVarB), v.b * each);
  write(to.plane(kCovariance), v.both * each);
  write(to.plane(kWeight), MASKED ? total : all(1) / all(share));
}

template <class T, bool MASKED, bool LEVEL>
TORCHCORR_INLINE void leaves_of(int64_t n, int64_t count, const Leaf<T>* leaves, Row out) {
  double sum = 0;
  for (int64_t t = 0; t < count; ++t) sum += leaves[t].tap;
  const double share = 1 / sum;
  int64_t x = 0;
  for (; x + kDoubles <= n; x += kDoubles) {
    leaves_at<T, MASKED, LEVEL, true>(x, n, count, leaves, share, out);
  }
  if (x < n) leaves_at<T, MASKED, LEVEL, false>(x, n, count, leaves, share, out);
}

template <bool MASKED, bool FINE>
TORCHCORR_INLINE void rows_of(int64_t n, const Taps& taps, Row in, Row out) {
  const int64_t count = taps.count;
  for (int64_t x = 0; x < n; x += kDoubles) {
    const auto get = [&](int p, int64_t t) TORCHCORR_FLAT {
      return read(in.first + p * in.pitch + x + t * taps.step);
    };
    const auto weight = [&](int64_t t) TORCHCORR_FLAT {
      const Doubles tap = all(taps.values[t]);
      return MASKED ? tap * read(taps.weight + x + t * taps.weight_step) : tap;
    };
    const auto means = [&](int64_t t) TORCHCORR_FLAT { return Means{get(kMeanA, t), get(kMeanB, t)}; };
    const Means level = level_of<MASKED>(count, weight, means);
    Doubles total = {};
    Means sum = {};
    for (int64_t t = 0; t < count; ++t) {
      const Doubles w = weight(t);
      const Means one = means(t);
      if (MASKED) total += w;
      const Doubles da = one.a - level.a, db = one.b - level.b;
      sum.a += w * (FINE ? da + get(kLowA, t) : da);
      sum.b += w * (FINE ? db + get(kLowB, t) : db);
    }
    const Doubles each = MASKED ? inverse(total) : all(taps.share);
    sum = {sum.a * each, sum.b * each};
    const Means mean = {level.a + sum.a, level.b + sum.b};
    const Means low = {(level.a - mean.a) + sum.a, (level.b - mean.b) + sum.b};
    Variances v = {};
    for (int64_t t = 0; t < count; ++t) {
      const Doubles w = weight(t);
      Doubles da = get(kMeanA, t) - mean.a, db = get(kMeanB, t) - mean.b;
      if (FINE) da += get(kLowA, t) - low.a, db += get(kLowB, t) - low.b;
      v.a += w * (get(kVarA, t) + da * da);
      v.b += w * (get(kVarB, t) + db * db);
      v.both += w * (get(kCovariance, t) + da * db);
    }
    const Row to = out.at(x);
    write(to.plane(kMeanA), mean.a), write(to.plane(kMeanB), mean.b);
    write(to.plane(kVarA), v.a * each), write(to.plane(kVarB), v.b * each);
    write(to.plane(kCovariance), v.both * each);
    write(to.plane(kWeight), MASKED ? total : all(1) / all(taps.share));
    if (FINE) write(to.plane(kLowA), low.a), write(to.plane(kLowB), low.b);
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

TORCHCORR_CLONES void merge_plain(int64_t n, const Taps& taps, Row in, Row out) {
  rows_of<false, false>(n, taps, in, out);
}
TORCHCORR_CLONES void merge_plain_fine(int64_t n, const Taps& taps, Row in, Row out) {
  rows_of<false, true>(n, taps, in, out);
}
TORCHCORR_CLONES void merge_masked(int64_t n, const Taps& taps, Row in, Row out) {
  rows_of<true, false>(n, taps, in, out);
}
TORCHCORR_CLONES void merge_masked_fine(int64_t n, const Taps& taps, Row in, Row out) {
  rows_of<true, true>(n, taps, in, out);
}

#define TORCHCORR_LEAVES(T)                                                                        \
  TORCHCORR_CLONES void leaves_plain(int64_t n, int64_t count, const Leaf<T>* leaves, Row out) {   \
    leaves_of<T, false, false>(n, count, leaves, out);                                             \
  }                                                                                                \
  TORCHCORR_CLONES void leaves_masked(int64_t n, int64_t count, const Leaf<T>* leaves, Row out) {  \
    leaves_of<T, true, false>(n, count, leaves, out);                                              \
  }                                                                                                \
  TORCHCORR_CLONES void leaves_level(int64_t n, int64_t count, const Leaf<T>* leaves, Row out) {   \
    leaves_of<T, true, true>(n, count, leaves, out);                                               \
  }
TORCHCORR_LEAVES(float)
TORCHCORR_LEAVES(double)
#undef TORCHCORR_LEAVES

}  // namespace

void merge_rows(int64_t n, const Taps& taps, Row in, bool fine, Row out) {
  if (taps.weight != nullptr) {
    (fine ? merge_masked_fine : merge_masked)(n, taps, in, out);
  } else {
    (fine ? merge_plain_fine : merge_plain)(n, taps, in, out);
  }
}

TORCHCORR_CLONES void add_rows(int64_t n, int64_t count, const double* const* rows,
                               const double* taps, double* out) {
  for (int64_t x = 0; x < n; x += kDoubles) {
    Doubles sum = {};
    for (int64_t t = 0; t < count; ++t) sum += all(taps[t]) * read(rows[t] + x);
    write(out + x, sum);
  }
}

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
