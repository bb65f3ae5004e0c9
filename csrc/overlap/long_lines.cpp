// Scores of two long lines at few lags, in one pass over both: the overlaps have most elements in
// common, so their moments are those of the common part, merged with what lies at either end.

#include <algorithm>
#include <array>
#include <cmath>

#include "common/parallel.h"
#include "common/targets.h"
#include "overlap/growing.h"
#include "overlap/products.h"
#include "overlap/values.h"

namespace torchcorr::overlap {
namespace {

// Elements that one partial sum is of.
constexpr int64_t kPart = 1 << 16;

// Number, mean and energy of some elements.
struct Part {
  double count = 0, mean = 0, energy = 0;

  // With what other elements have.
  Part with(const Part& other) const {
    if (count == 0 || other.count == 0) return count == 0 ? other : *this;
    const double all = count + other.count, d = other.mean - mean, share = other.count / all;
    return {all, mean + d * share, energy + other.energy + d * d * (count * share)};
  }
};

// Of n elements, in two passes; raises `peak` to the largest size.
template <int BYTES>
TORCHCORR_INLINE Part part_of(int64_t n, const double* x, double& peak) {
  constexpr int64_t kLanes = lanes_of<double, BYTES>, kSums = 4;
  Wide<BYTES> sums[kSums] = {}, squares[kSums] = {}, largest = {};
  int64_t i = 0;
  for (; i + kSums * kLanes <= n; i += kSums * kLanes) {
    for (int64_t j = 0; j < kSums; ++j) sums[j] += load<BYTES>(x + i + j * kLanes);
  }
  double sum = sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; ++i) sum += x[i];
  const double mean = sum / static_cast<double>(n);
  i = 0;
  for (; i + kSums * kLanes <= n; i += kSums * kLanes) {
    for (int64_t j = 0; j < kSums; ++j) {
      const Wide<BYTES> v = load<BYTES>(x + i + j * kLanes), d = v - mean, size = v < 0 ? -v : v;
      squares[j] += d * d;
      largest = size > largest ? size : largest;
    }
  }
  double energy = sum_of_lanes((squares[0] + squares[1]) + (squares[2] + squares[3]));
  for (; i < n; ++i) {
    energy += (x[i] - mean) * (x[i] - mean);
    peak = std::max(peak, std::abs(x[i]));
  }
  for (int64_t l = 0; l < kLanes; ++l) peak = std::max(peak, largest[l]);
  return {static_cast<double>(n), mean, energy};
}
TORCHCORR_FOR_CPUS(Part, part_of, (int64_t n, const double* x, double& peak), (n, x, peak))

TORCHCORR_CLONES void copy_above(double level, int64_t n, const double* from, double* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i] - level;
}

TORCHCORR_CLONES void copy_above(double level, int64_t n, const float* from, double* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<double>(from[i]) - level;
}

// A line, its level, and which of its elements overlap at all lags.
template <class T>
struct Line {
  const T* elements;
  int64_t size;
  double level;
  int64_t begin, end;

  // Writes the elements first, first + 1, ... above the level, and zeros where there are none.
  void copy(int64_t first, int64_t n, double* to) const {
    const int64_t from = std::clamp<int64_t>(-first, 0, n);
    const int64_t until = std::clamp<int64_t>(size - first, from, n);
    std::fill_n(to, from, 0.0);
    copy_above(level, until - from, elements + first + from, to + from);
    std::fill(to + until, to + n, 0.0);
  }

  // Moments of those of the elements first, first + 1, ... that overlap at all lags.
  Part common(int64_t first, int64_t n, const double* above, double& peak) const {
    const int64_t from = std::max(begin, first), until = std::min(end, first + n);
    return from < until ? part_of(until - from, above + from - first, peak) : Part{};
  }

  // Moments of the first 0, 1, ... elements on one side of these, outwards.
  std::vector<Part> beside(bool before, double& peak) const {
    const int64_t n = before ? begin : size - end;
    std::vector<Part> parts(n + 1);
    for (int64_t i = 0; i < n; ++i) {
      const double value = static_cast<double>(elements[before ? begin - 1 - i : end + i]) - level;
      parts[i + 1] = parts[i].with({1, value, 0});
      peak = std::max(peak, std::abs(value));
    }
    return parts;
  }
};

// What a worker has found in a part of the lines.
struct Found {
  Part of_x, of_y;
  double peak_x = 0, peak_y = 0;
};

template <class T>
Found add_part(const Line<T>& x, const Line<T>& y, const AxisLags& lags, int64_t start,
               double* sums) {
  Products products(lags.count());
  Found found;
  const int64_t stop = std::min(lags.moved, start + kPart);
  for (int64_t i = start; i < stop; i += Products::kBlock) {
    const int64_t n = std::min(Products::kBlock, stop - i);
    x.copy(i + lags.low, products.seen(n), products.x());
    y.copy(i, n, products.y());
    found.of_x = found.of_x.with(x.common(i, n, products.x() - lags.low, found.peak_x));
    found.of_y = found.of_y.with(y.common(i, n, products.y(), found.peak_y));
    products.add(n);
  }
  products.take(sums);
  return found;
}

// Writes the scores; returns the largest element of either line.
template <class T>
std::array<double, 2> score_lines(const Line<T>& x, const Line<T>& y, const AxisLags& lags,
                                  double* out) {
  const int64_t count = lags.count(), parts = ceil_div(lags.moved, kPart);
  std::vector<double> partial(parts * count, 0.0);
  std::vector<Found> found(parts);
  torchcorr::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      found[p] = add_part(x, y, lags, p * kPart, partial.data() + p * count);
    }
  });
  Found all;
  std::vector<double> sums(count, 0.0);
  for (int64_t p = 0; p < parts; ++p) {
    all.of_x = all.of_x.with(found[p].of_x), all.of_y = all.of_y.with(found[p].of_y);
    all.peak_x = std::max(all.peak_x, found[p].peak_x);
    all.peak_y = std::max(all.peak_y, found[p].peak_y);
    for (int64_t k = 0; k < count; ++k) sums[k] += partial[p * count + k];
  }
  const auto before_x = x.beside(true, all.peak_x), after_x = x.beside(false, all.peak_x);
  const auto before_y = y.beside(true, all.peak_y), after_y = y.beside(false, all.peak_y);
  Values v;
  int64_t unknown = 0;
  for (int64_t first = 0; first < count; first += kValues) {
    const int64_t n = std::min(kValues, count - first);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t lag = lags.low + first + i;
      const int64_t start = std::max<int64_t>(lag, 0), stop = std::min(lags.size, lag + lags.moved);
      const Part of_x = all.of_x.with(before_x[x.begin - start]).with(after_x[stop - x.end]);
      const Part of_y =
          all.of_y.with(before_y[y.begin - (start - lag)]).with(after_y[stop - lag - y.end]);
      v.mean[0][i] = of_x.mean, v.mean[1][i] = of_y.mean;
      v.energy[0][i] = of_x.energy, v.energy[1][i] = of_y.energy;
      v.elements[i] = of_x.count, v.sum[i] = sums[first + i];
    }
    score(n, 0.0, v, unknown);
    std::copy_n(v.score, n, out + first);
  }
  return {all.peak_x, all.peak_y};
}

// Writes the scores of x (size) and y (moved), each above its level, at the lags low..high, of which
// 0 is one, to float64 `out`. Some elements must overlap at all lags. Returns whether the largest
// element of either is 0 or in a range, or else energies may have no product.
bool score_long_lines(const Tensor& x, const Tensor& y, std::vector<double> levels,
                      std::vector<double> range, Sizes numbers, const Tensor& out) {
  const AxisLags lags(numbers);
  bool in_range = true;
  with_real_type(x, "lines", [&](auto zero) {
    using T = decltype(zero);
    const Line<T> first{x.const_data_ptr<T>(), lags.size, levels.at(0), lags.high,
                        std::min(lags.size, lags.moved + lags.low)};
    const Line<T> second{y.const_data_ptr<T>(), lags.moved, levels.at(1), -lags.low,
                         std::min(lags.moved, lags.size - lags.high)};
    STD_TORCH_CHECK(lags.low <= 0 && lags.high >= 0 && first.begin < first.end &&
                        second.begin < second.end,
                    "some elements must overlap at all lags");
    for (const double peak : score_lines(first, second, lags, out.mutable_data_ptr<double>())) {
      in_range &= peak == 0 || (peak > range.at(0) && peak < range.at(1));
    }
  });
  return in_range;
}

}  // namespace
}  // namespace torchcorr::overlap

STABLE_TORCH_LIBRARY_FRAGMENT(torchcorr_cpu, m) {
  m.def(
      "score_long_lines(Tensor x, Tensor y, float[] levels, float[] range, int[] lags,"
      " Tensor(a!) out) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("score_long_lines", TORCH_BOX(&torchcorr::overlap::score_long_lines));
}
