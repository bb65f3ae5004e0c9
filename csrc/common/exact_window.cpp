// Means are taken twice: the second removes what rounding left of the first.

#include "common/exact_window.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/tiling.h"
#include "common/vectors.h"

namespace torchcorr {
namespace {

// Sum of f(lane vector of elements, index) over n elements, in eight lanes.
template <class T, class F>
TORCHCORR_INLINE double lane_sum(int64_t n, const T* x, const F& f) {
  Doubles acc = {};
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) acc += f(read(x + i), i, kDoubles);
  if (i < n) {
    Doubles last = f(read_part(n - i, x + i), i, n - i);
    for (int64_t l = n - i; l < kDoubles; ++l) last[l] = 0;
    acc += last;
  }
  return total_of(acc);
}

template <class T>
TORCHCORR_INLINE double row_sum(int64_t n, const T* x, double scale, double level) {
  return lane_sum(
      n, x, [&](const Doubles& v, int64_t, int64_t) TORCHCORR_FLAT { return v * scale - level; });
}

template <class T>
TORCHCORR_INLINE double row_squares(int64_t n, const T* x, double scale, double level) {
  return lane_sum(n, x, [&](const Doubles& v, int64_t, int64_t) TORCHCORR_FLAT {
    const Doubles d = v * scale - level;
    return d * d;
  });
}

template <class T>
TORCHCORR_INLINE double row_products(int64_t n, const T* x, double scale, double level,
                                     const double* w) {
  return lane_sum(n, x, [&](const Doubles& v, int64_t i, int64_t part) TORCHCORR_FLAT {
    return (v * scale - level) * (part == kDoubles ? read(w + i) : read_part(part, w + i));
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

template <class T>
TORCHCORR_INLINE double squares(const T* x, const ExactWindow& by, double scale, double* levels) {
  const int64_t n = by.window[2];
  const double count = by.count / static_cast<double>(by.groups());
  double sum = 0;
  write_levels(x, 0, by, levels);
  for_groups(by, [&](int64_t g, int64_t begin, int64_t end) TORCHCORR_FLAT {
    const auto mean_from = [&](double level) TORCHCORR_FLAT {
      return over_rows(x, nullptr, by, begin, end,
                       [&](const T* r, const double*)
                           TORCHCORR_FLAT { return row_sum(n, r, scale, level); }) /
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
      return row_squares(n, r, scale, level);
    });
  });
  return sum;
}

template <class T>
TORCHCORR_INLINE double score(const T* x, const double* coefficients, const ExactWindow& by,
                              double scale) {
  std::vector<double> levels(by.groups());
  const double energies = squares(x, by, scale, levels.data());
  if (energies == 0) return 0;
  double products = 0;
  for_groups(by, [&](int64_t g, int64_t begin, int64_t end) TORCHCORR_FLAT {
    const double mean = levels[g];
    products += over_rows(x, coefficients, by, begin, end,
                          [&](const T* r, const double* w) TORCHCORR_FLAT {
                            return row_products(by.window[2], r, scale, mean, w);
                          });
  });
  const double energy = energies / by.count + scaled_eps(by.eps, scale);
  return products / (by.count * std::sqrt(energy));
}

// Four accumulators: an addition need not wait for the one before.
template <class T>
TORCHCORR_INLINE double numerator(const T* x, const double* coefficients, const ExactWindow& by,
                                  const double* levels) {
  constexpr int64_t kStep = 4 * kDoubles;
  Doubles acc[4] = {};
  for_groups(by, [&](int64_t g, int64_t begin, int64_t end) TORCHCORR_FLAT {
    const double level = levels[g];
    over_rows(x, coefficients, by, begin, end, [&](const T* r, const double* w) TORCHCORR_FLAT {
      const int64_t n = by.window[2];
      int64_t i = 0;
      for (; i + kStep <= n; i += kStep) {
        for (int64_t k = 0; k < 4; ++k) {
          const int64_t at = i + k * kDoubles;
          acc[k] += (read(r + at) - level) * read(w + at);
        }
      }
      for (; i + kDoubles <= n; i += kDoubles) acc[0] += (read(r + i) - level) * read(w + i);
      // The coefficients past the row's end are zeros, so what is read there adds nothing.
      if (i < n) acc[1] += (read_part(n - i, r + i) - level) * read_part(n - i, w + i);
      return 0.0;
    });
  });
  return total_of((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

constexpr int64_t kNeighbourVectors = kNeighbours / kDoubles;

// Adds the products of a row to the sums of neighbours. It is converted once, not for each of the
// windows that an element belongs to.
template <class T>
TORCHCORR_INLINE void add_row_of_neighbours(int64_t n, const T* x, double level, const double* w,
                                            Doubles* acc) {
  constexpr int64_t kPart = 256;
  double row[kPart + kNeighbours];
  for (int64_t begin = 0; begin < n; begin += kPart, x += kPart, w += kPart) {
    const int64_t part = std::min(kPart, n - begin), all = part + kNeighbours - 1;
    int64_t i = 0;
    for (; i + kDoubles <= all; i += kDoubles) write(row + i, read(x + i) - level);
    for (; i < all; ++i) row[i] = static_cast<double>(x[i]) - level;
    for (i = 0; i < part; ++i) {
      for (int64_t k = 0; k < kNeighbourVectors; ++k) acc[k] += read(row + i + k * kDoubles) * w[i];
    }
  }
}

// One accumulator a position: neighbours read the same elements and the same coefficient.
template <class T>
TORCHCORR_INLINE void numerators(const T* x, const double* coefficients, const ExactWindow& by,
                                 const double* levels, double* out) {
  Doubles acc[kNeighbourVectors] = {};
  for_groups(by, [&](int64_t g, int64_t begin, int64_t end) TORCHCORR_FLAT {
    const double level = levels[g];
    over_rows(x, coefficients, by, begin, end, [&](const T* r, const double* w) TORCHCORR_FLAT {
      add_row_of_neighbours(by.window[2], r, level, w, acc);
      return 0.0;
    });
  });
  for (int64_t k = 0; k < kNeighbourVectors; ++k) write(out + k * kDoubles, acc[k]);
}

template <class T>
TORCHCORR_INLINE double plain_sum(const T* x, const double* coefficients, const ExactWindow& by) {
  double sum = 0;
  over_rows(x, coefficients, by, 0, by.channels, [&](const T* r, const double* w) TORCHCORR_FLAT {
    // A NaN stays one: the rest need not be read.
    if (sum == sum) sum += row_products(by.window[2], r, 1.0, 0.0, w);
    return 0.0;
  });
  return sum;
}

}  // namespace

#define TORCHCORR_WINDOW(T)                                                                       \
  TORCHCORR_CLONES double squares_about_means(const T* x, const ExactWindow& by, double scale,      \
                                            double* levels) {                                     \
    return squares(x, by, scale, levels);                                                         \
  }                                                                                               \
  TORCHCORR_CLONES double score_of_window(const T* x, const double* coefficients,                 \
                                          const ExactWindow& by, double scale) {                  \
    return score(x, coefficients, by, scale);                                                     \
  }                                                                                               \
  TORCHCORR_CLONES double numerator_of_window(const T* x, const double* coefficients,             \
                                              const ExactWindow& by, const double* levels) {      \
    return numerator(x, coefficients, by, levels);                                                \
  }                                                                                               \
  TORCHCORR_CLONES void numerators_of_windows(const T* x, const double* coefficients,             \
                                              const ExactWindow& by, const double* levels,        \
                                              double* out) {                                      \
    numerators(x, coefficients, by, levels, out);                                                 \
  }                                                                                               \
  TORCHCORR_CLONES double sum_of_window(const T* x, const double* coefficients,                   \
                                        const ExactWindow& by) {                                  \
    return plain_sum(x, coefficients, by);                                                        \
  }
TORCHCORR_WINDOW(float)
TORCHCORR_WINDOW(double)
#undef TORCHCORR_WINDOW

int64_t first_seen(const double* coefficients, const ExactWindow& by) {
  const int64_t each = product(by.window), n = by.channels * each;
  int64_t at = 0;
  while (at < n && coefficients[at] == 0) ++at;
  if (at == n) return 0;
  const Axes3 place = unravel(at % each, by.window);
  return at / each * by.strides.channel + place[0] * by.strides.plane +
         place[1] * by.strides.row + place[2];
}

}  // namespace torchcorr
