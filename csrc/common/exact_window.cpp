// Means are taken twice: the second removes what rounding left of the first.

#include "common/exact_window.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/targets.h"
#include "common/tiling.h"

namespace torchcorr {
namespace {

// Calls f(row, coefficients of the row) for the rows of some channels of a window.
template <class T, class F>
TORCHCORR_INLINE void for_rows(const T* x, const double* coefficients, const ExactWindow& by,
                               int64_t begin, int64_t end, const F& f) {
  for (int64_t c = begin; c < end; ++c) {
    for (int64_t z = 0; z < by.window[0]; ++z) {
      for (int64_t y = 0; y < by.window[1]; ++y) {
        const int64_t row = (c * by.window[0] + z) * by.window[1] + y;
        f(x + c * by.strides.channel + z * by.strides.plane + y * by.strides.row,
          coefficients + row * by.window[2]);
      }
    }
  }
}

// Calls f(register, elements, coefficients, how many there are) for the vectors of a row of n elements,
// and zeros for coefficients where there are none. Four registers: an addition need not wait for the
// one before.
template <int BYTES, class T, class F>
TORCHCORR_INLINE void for_vectors(int64_t n, const T* x, const double* w, const F& f) {
  constexpr int64_t kLanes = lanes_of<double, BYTES>;
  const auto whole = [&](int64_t k, int64_t i) TORCHCORR_FLAT {
    f(k, widened<BYTES>(x + i), w ? widened<BYTES>(w + i) : Wide<BYTES>{}, kLanes);
  };
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    whole(0, i), whole(1, i + kLanes), whole(2, i + 2 * kLanes), whole(3, i + 3 * kLanes);
  }
  if (i + 2 * kLanes <= n) {
    whole(0, i), whole(1, i + kLanes);
    i += 2 * kLanes;
  }
  if (i + kLanes <= n) {
    whole(2, i);
    i += kLanes;
  }
  if (i < n) {
    f(3, widened_part<BYTES>(n - i, x + i),
      w ? widened_part<BYTES>(n - i, w + i) : Wide<BYTES>{}, n - i);
  }
}

// The first lanes of a vector, and zeros.
template <int BYTES>
TORCHCORR_INLINE Wide<BYTES> first_lanes(int64_t part, Wide<BYTES> v) {
  for (int64_t l = part; l < lanes_of<double, BYTES>; ++l) v[l] = 0;
  return v;
}

template <int BYTES>
struct Registers {
  Wide<BYTES> sums[4] = {};

  TORCHCORR_INLINE double total() const {
    return sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
};

// The sum of term(elements, coefficients) over some channels of a window.
template <int BYTES, class T, class F>
TORCHCORR_INLINE double sum_over(const T* x, const double* coefficients, const ExactWindow& by,
                                 int64_t begin, int64_t end, const F& term) {
  Registers<BYTES> all;
  for_rows(x, coefficients, by, begin, end, [&](const T* r, const double* w) TORCHCORR_FLAT {
    for_vectors<BYTES>(by.window[2], r, coefficients ? w : nullptr,
                       [&](int64_t k, const Wide<BYTES>& v, const Wide<BYTES>& c, int64_t part)
                           TORCHCORR_FLAT { all.sums[k] += first_lanes<BYTES>(part, term(v, c)); });
  });
  return all.total();
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
  const double count = by.count / static_cast<double>(by.groups());
  double sum = 0;
  write_levels(x, 0, by, levels);
  for_groups(by, [&](int64_t g, int64_t begin, int64_t end) TORCHCORR_FLAT {
    const auto mean_from = [&](double level) TORCHCORR_FLAT {
      return sum_over<BYTES>(x, nullptr, by, begin, end,
                             [&](const Wide<BYTES>& v, const Wide<BYTES>&)
                                 TORCHCORR_FLAT { return v * scale - level; }) /
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
    sum += sum_over<BYTES>(x, nullptr, by, begin, end,
                           [&](const Wide<BYTES>& v, const Wide<BYTES>&) TORCHCORR_FLAT {
                             const Wide<BYTES> d = v * scale - level;
                             return d * d;
                           });
  });
  return sum;
}

// Sums of (element times scale - level of its group) times coefficients.
template <int BYTES, class T>
TORCHCORR_INLINE double products_above(const T* x, const double* coefficients,
                                       const ExactWindow& by, double scale, const double* levels) {
  double sum = 0;
  for_groups(by, [&](int64_t g, int64_t begin, int64_t end) TORCHCORR_FLAT {
    const double level = levels[g];
    sum += sum_over<BYTES>(x, coefficients, by, begin, end,
                           [&](const Wide<BYTES>& v, const Wide<BYTES>& c)
                               TORCHCORR_FLAT { return (v * scale - level) * c; });
  });
  return sum;
}

// In one pass, relative to the first element of each group. That is at most the root of a group's count
// of deviations from its mean, which costs as many roundings of float64: none that float32 shows.
template <int BYTES>
TORCHCORR_INLINE double score_in_one_pass(const float* x, const double* coefficients,
                                          const ExactWindow& by, double scale) {
  const double count = by.count / static_cast<double>(by.groups());
  double energies = 0;
  Registers<BYTES> products;
  for_groups(by, [&](int64_t g, int64_t begin, int64_t end) TORCHCORR_FLAT {
    const double level = static_cast<double>(x[g * by.strides.channel]);
    Registers<BYTES> sums, squares;
    for_rows(x, coefficients, by, begin, end, [&](const float* r, const double* w) TORCHCORR_FLAT {
      for_vectors<BYTES>(by.window[2], r, w, [&](int64_t k, const Wide<BYTES>& v,
                                                 const Wide<BYTES>& c, int64_t part) TORCHCORR_FLAT {
        const Wide<BYTES> above = first_lanes<BYTES>(part, v - level);
        sums.sums[k] += above;
        squares.sums[k] += above * above;
        products.sums[k] += above * c;
      });
    });
    const double sum = sums.total();
    energies += squares.total() - sum * sum / count;
  });
  if (energies <= 0) return 0;
  const double energy = energies * scale * scale / by.count + scaled_eps(by.eps, scale);
  return products.total() * scale / (by.count * std::sqrt(energy));
}

template <int BYTES, class T>
TORCHCORR_INLINE double score_of_window(const T* x, const double* coefficients,
                                        const ExactWindow& by, double scale) {
  if constexpr (std::is_same_v<T, float>) {
    if (by.zero_mean) return score_in_one_pass<BYTES>(x, coefficients, by, scale);
  }
  std::vector<double> levels(by.groups());
  const double energies = squares_about_means<BYTES>(x, by, scale, levels.data());
  if (energies == 0) return 0;
  const double products = products_above<BYTES>(x, coefficients, by, scale, levels.data());
  const double energy = energies / by.count + scaled_eps(by.eps, scale);
  return products / (by.count * std::sqrt(energy));
}

template <int BYTES, class T>
TORCHCORR_INLINE double numerator_of_window(const T* x, const double* coefficients,
                                            const ExactWindow& by, const double* levels) {
  return products_above<BYTES>(x, coefficients, by, 1.0, levels);
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
    for_rows(x, coefficients, by, begin, end, [&](const T* r, const double* w) TORCHCORR_FLAT {
      add_row_of_neighbours<BYTES>(by.window[2], r, level, w, acc);
    });
  });
  for (int64_t k = 0; k < neighbour_vectors<BYTES>; ++k) {
    put(acc[k], out + k * lanes_of<double, BYTES>);
  }
}

template <int BYTES, class T>
TORCHCORR_INLINE double sum_of_window(const T* x, const double* coefficients,
                                      const ExactWindow& by) {
  return sum_over<BYTES>(x, coefficients, by, 0, by.channels,
                         [&](const Wide<BYTES>& v, const Wide<BYTES>& w)
                             TORCHCORR_FLAT { return v * w; });
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
