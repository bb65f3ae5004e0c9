// Means are taken twice: the second removes what rounding left of the first.

#include "common/exact_window.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/targets.h"
#include "common/tiling.h"

namespace torchcorr {
namespace {

// Sum of f(lane vector of elements, index) over n elements, in lanes.
template <int BYTES, class T, class F>
TORCHCORR_INLINE double lane_sum(int64_t n, const T* x, const F& f) {
  constexpr int64_t kLanes = lanes_of<double, BYTES>;
  Wide<BYTES> acc = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) acc += f(widened<BYTES>(x + i), i, kLanes);
  if (i < n) {
    Wide<BYTES> last = f(widened_part<BYTES>(n - i, x + i), i, n - i);
    for (int64_t l = n - i; l < kLanes; ++l) last[l] = 0;
    acc += last;
  }
  return sum_of_lanes(acc);
}

template <int BYTES, class T>
TORCHCORR_INLINE double row_sum(int64_t n, const T* x, double scale, double level) {
  return lane_sum<BYTES>(
      n, x, [&](const Wide<BYTES>& v, int64_t, int64_t) TORCHCORR_FLAT { return v * scale - level; });
}

template <int BYTES, class T>
TORCHCORR_INLINE double row_squares(int64_t n, const T* x, double scale, double level) {
  return lane_sum<BYTES>(n, x, [&](const Wide<BYTES>& v, int64_t, int64_t) TORCHCORR_FLAT {
    const Wide<BYTES> d = v * scale - level;
    return d * d;
  });
}

template <int BYTES, class T>
TORCHCORR_INLINE double row_products(int64_t n, const T* x, double scale, double level,
                                     const double* w) {
  return lane_sum<BYTES>(n, x, [&](const Wide<BYTES>& v, int64_t i, int64_t part) TORCHCORR_FLAT {
    const bool whole = part == lanes_of<double, BYTES>;
    return (v * scale - level) * (whole ? widened<BYTES>(w + i) : widened_part<BYTES>(part, w + i));
  });
}

// Sum of of_row(row, coefficients of the row) over the rows of some channels of a window.
template <class T, class F>
TORCHCORR_INLINE double over_rows(const T* x, const double* coefficients, const ExactWindow& by,
                                  int64_t begin, int64_t end, const F& of_row) {
  double sum = 0;
  for (int64_t c = begin; c < end; ++c) {
    for (int64_t z = 0; z < by.window[0]; ++z) {
      for (int64_t y = 0; y < by.window[1]; ++y) {
        const int64_t row = (c * by.window[0] + z) * by.window[1] + y;
        sum += of_row(x + c * by.strides.channel + z * by.strides.plane + y * by.strides.row,
                      coefficients + row * by.window[2]);
      }
    }
  }
  return sum;
}

// Calls f(group, first of its channels, last + 1) for the groups of channels that share a mean.
template <class F>
TORCHCORR_INLINE void for_groups(const ExactWindow& by, const F& f) {
  const int64_t groups = by.groups(), each = by.channels / groups;
  for (int64_t g = 0; g < groups; ++g) f(g, g * each, (g + 1) * each);
}

template <int BYTES, class T>
TORCHCORR_INLINE double squares_about_means(const T* x, const ExactWindow& by, double scale,
                                            double* levels) {
  const int64_t n = by.window[2];
  const double count = by.count / static_cast<double>(by.groups());
  double sum = 0;
  write_levels(x, 0, by, levels);
  for_groups(by, [&](int64_t g, int64_t begin, int64_t end) TORCHCORR_FLAT {
    const auto mean_from = [&](double level) TORCHCORR_FLAT {
      return over_rows(x, nullptr, by, begin, end,
                       [&](const T* r, const double*)
                           TORCHCORR_FLAT { return row_sum<BYTES>(n, r, scale, level); }) /
             count;
    };
    double level = 0;
    if (by.zero_mean) {
      // Relative to the first element, so that a large offset costs no digits.
      level = levels[g] * scale;
      level += mean_from(level);
      level += mean_from(level);
    }
    levels[g] = level;
    sum += over_rows(x, nullptr, by, begin, end, [&](const T* r, const double*) TORCHCORR_FLAT {
      return row_squares<BYTES>(n, r, scale, level);
    });
  });
  return sum;
}

template <int BYTES, class T>
TORCHCORR_INLINE double score_of_window(const T* x, const double* coefficients,
                                        const ExactWindow& by, double scale) {
  std::vector<double> levels(by.groups());
  const double energies = squares_about_means<BYTES>(x, by, scale, levels.data());
  if (energies == 0) return 0;
  double products = 0;
  for_groups(by, [&](int64_t g, int64_t begin, int64_t end) TORCHCORR_FLAT {
    const double mean = levels[g];
    products += over_rows(x, coefficients, by, begin, end,
                          [&](const T* r, const double* w) TORCHCORR_FLAT {
                            return row_products<BYTES>(by.window[2], r, scale, mean, w);
                          });
  });
  const double energy = energies / by.count + scaled_eps(by.eps, scale);
  return products / (by.count * std::sqrt(energy));
}

// Four accumulators: an addition need not wait for the one before.
template <int BYTES, class T>
TORCHCORR_INLINE double numerator_of_window(const T* x, const double* coefficients,
                                            const ExactWindow& by, const double* levels) {
  constexpr int64_t kLanes = lanes_of<double, BYTES>, kStep = 4 * kLanes;
  Wide<BYTES> acc[4] = {};
  for_groups(by, [&](int64_t g, int64_t begin, int64_t end) TORCHCORR_FLAT {
    const double level = levels[g];
    over_rows(x, coefficients, by, begin, end, [&](const T* r, const double* w) TORCHCORR_FLAT {
      const int64_t n = by.window[2];
      int64_t i = 0;
      for (; i + kStep <= n; i += kStep) {
        for (int64_t k = 0; k < 4; ++k) {
          const int64_t at = i + k * kLanes;
          acc[k] += (widened<BYTES>(r + at) - level) * widened<BYTES>(w + at);
        }
      }
      for (; i + kLanes <= n; i += kLanes) {
        acc[0] += (widened<BYTES>(r + i) - level) * widened<BYTES>(w + i);
      }
      // The coefficients past the row's end are zeros, so what is read there adds nothing.
      if (i < n) {
        acc[1] += (widened_part<BYTES>(n - i, r + i) - level) * widened_part<BYTES>(n - i, w + i);
      }
      return 0.0;
    });
  });
  return sum_of_lanes((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

template <int BYTES>
constexpr int64_t neighbour_vectors = kNeighbours / lanes_of<double, BYTES>;

// Adds the products of a row to the sums of neighbours. It is converted once, not for each of the
// windows that an element belongs to.
template <int BYTES, class T>
TORCHCORR_INLINE void add_row_of_neighbours(int64_t n, const T* x, double level, const double* w,
                                            Wide<BYTES>* acc) {
  constexpr int64_t kPart = 256, kLanes = lanes_of<double, BYTES>;
  double row[kPart + kNeighbours];
  for (int64_t begin = 0; begin < n; begin += kPart, x += kPart, w += kPart) {
    const int64_t part = std::min(kPart, n - begin), all = part + kNeighbours - 1;
    int64_t i = 0;
    for (; i + kLanes <= all; i += kLanes) put(widened<BYTES>(x + i) - level, row + i);
    for (; i < all; ++i) row[i] = static_cast<double>(x[i]) - level;
    for (i = 0; i < part; ++i) {
      for (int64_t k = 0; k < neighbour_vectors<BYTES>; ++k) {
        acc[k] += widened<BYTES>(row + i + k * kLanes) * w[i];
      }
    }
  }
}

// One accumulator a position: neighbours read the same elements and the same coefficient.
template <int BYTES, class T>
TORCHCORR_INLINE void numerators_of_windows(const T* x, const double* coefficients,
                                            const ExactWindow& by, const double* levels,
                                            double* out) {
  Wide<BYTES> acc[neighbour_vectors<BYTES>] = {};
  for_groups(by, [&](int64_t g, int64_t begin, int64_t end) TORCHCORR_FLAT {
    const double level = levels[g];
    over_rows(x, coefficients, by, begin, end, [&](const T* r, const double* w) TORCHCORR_FLAT {
      add_row_of_neighbours<BYTES>(by.window[2], r, level, w, acc);
      return 0.0;
    });
  });
  for (int64_t k = 0; k < neighbour_vectors<BYTES>; ++k) {
    put(acc[k], out + k * lanes_of<double, BYTES>);
  }
}

template <int BYTES, class T>
TORCHCORR_INLINE double sum_of_window(const T* x, const double* coefficients,
                                      const ExactWindow& by) {
  double sum = 0;
  over_rows(x, coefficients, by, 0, by.channels, [&](const T* r, const double* w) TORCHCORR_FLAT {
    // A NaN stays one: the rest need not be read.
    if (sum == sum) sum += row_products<BYTES>(by.window[2], r, 1.0, 0.0, w);
    return 0.0;
  });
  return sum;
}

}  // namespace

#define TORCHCORR_WINDOW(T)                                                                        \
  TORCHCORR_FOR_CPUS(double, squares_about_means,                                                  \
                     (const T* x, const ExactWindow& by, double scale, double* levels),            \
                     (x, by, scale, levels))                                                       \
  TORCHCORR_FOR_CPUS(double, score_of_window,                                                      \
                     (const T* x, const double* coefficients, const ExactWindow& by, double scale), \
                     (x, coefficients, by, scale))                                                 \
  TORCHCORR_FOR_CPUS(double, numerator_of_window,                                                  \
                     (const T* x, const double* coefficients, const ExactWindow& by,               \
                      const double* levels),                                                       \
                     (x, coefficients, by, levels))                                                \
  TORCHCORR_FOR_CPUS(void, numerators_of_windows,                                                  \
                     (const T* x, const double* coefficients, const ExactWindow& by,               \
                      const double* levels, double* out),                                          \
                     (x, coefficients, by, levels, out))                                           \
  TORCHCORR_FOR_CPUS(double, sum_of_window,                                                        \
                     (const T* x, const double* coefficients, const ExactWindow& by),              \
                     (x, coefficients, by))
TORCHCORR_WINDOW(float)
TORCHCORR_WINDOW(double)
#undef TORCHCORR_WINDOW

int64_t first_seen(const double* coefficients, const ExactWindow& by) {
  const int64_t each = product(by.window), n = by.channels * each;
  int64_t at = 0;
  while (at < n && coefficients[at] == 0) ++at;
  if (at == n) return 0;
  const Axes3 place = unravel(at % each, by.window);
  const int64_t channel = by.own_means ? 0 : at / each;
  return channel * by.strides.channel + place[0] * by.strides.plane + place[1] * by.strides.row +
         place[2];
}

}  // namespace torchcorr
