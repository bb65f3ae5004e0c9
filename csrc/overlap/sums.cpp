// Sums of products over what overlaps at a few lags, term by term.

#include <algorithm>

#include "common/axes.h"
#include "common/vectors.h"

namespace torchcorr::overlap {
namespace {

// Vectors of lags that are summed at the same time, and elements of a line that are in cache.
constexpr int64_t kMost = 7;
constexpr int64_t kBlock = 1024;
// Elements of both recordings that one partial sum is of.
constexpr int64_t kPart = 1 << 16;

// sum_i y[i] x[i + lag] for 8 V lags; x is read up to 8 V elements beyond the last.
template <int V>
TORCHCORR_INLINE void add_products(int64_t n, const double* x, const double* y, double* to) {
  Doubles sums[V];
  for (int v = 0; v < V; ++v) sums[v] = read(to + v * kDoubles);
  int64_t i = 0;
  // Two elements eight apart share what they read of x.
  for (; i + 2 * kDoubles <= n; i += 2 * kDoubles) {
    for (int64_t l = 0; l < kDoubles; ++l) {
      const double* from = x + i + l;
      const double first = y[i + l], second = y[i + l + kDoubles];
      Doubles seen = read(from);
      sums[0] += first * seen;
      for (int v = 1; v < V; ++v) {
        seen = read(from + v * kDoubles);
        sums[v - 1] += second * seen;
        sums[v] += first * seen;
      }
      sums[V - 1] += second * read(from + V * kDoubles);
    }
  }
  for (; i < n; ++i) {
    for (int v = 0; v < V; ++v) sums[v] += y[i] * read(x + i + v * kDoubles);
  }
  for (int v = 0; v < V; ++v) write(to + v * kDoubles, sums[v]);
}

TORCHCORR_CLONES void add_block(int64_t vectors, int64_t n, const double* x, const double* y,
                                double* to) {
  switch (vectors) {
    case 1: return add_products<1>(n, x, y, to);
    case 2: return add_products<2>(n, x, y, to);
    case 3: return add_products<3>(n, x, y, to);
    case 4: return add_products<4>(n, x, y, to);
    case 5: return add_products<5>(n, x, y, to);
    case 6: return add_products<6>(n, x, y, to);
    default: return add_products<kMost>(n, x, y, to);
  }
}

struct Problem {
  const double *x, *y;
  Axes3 size, moved, low, lags;

  int64_t vectors() const { return ceil_div(lags[2], kDoubles); }
};

// Adds the products of y[start, stop) of two lines to the sums at all lags of the last axis.
void add_line(const Problem& p, const double* x, const double* y, int64_t start, int64_t stop,
              double* to) {
  const int64_t vectors = p.vectors(), groups = ceil_div(vectors, kMost);
  const int64_t each = ceil_div(vectors, groups);
  std::vector<double> seen(kBlock + (vectors + 1) * kDoubles);
  for (int64_t i = start; i < stop; i += kBlock) {
    const int64_t n = std::min(kBlock, stop - i), first = i + p.low[2];
    const int64_t length = n + (vectors + 1) * kDoubles;
    const int64_t begin = std::clamp<int64_t>(-first, 0, length);
    const int64_t end = std::clamp<int64_t>(p.size[2] - first, begin, length);
    std::fill_n(seen.data(), begin, 0.0);
    std::copy(x + first + begin, x + first + end, seen.data() + begin);
    std::fill(seen.data() + end, seen.data() + length, 0.0);
    for (int64_t v = 0; v < vectors; v += each) {
      add_block(std::min(each, vectors - v), n, seen.data() + v * kDoubles, y + i,
                to + v * kDoubles);
    }
  }
}

// The lags of the first two axes one by one; a line is cut into parts if it is long.
void add_part(const Problem& p, int64_t outer, int64_t part, int64_t parts, double* to) {
  const int64_t lag0 = p.low[0] + outer / p.lags[1], lag1 = p.low[1] + outer % p.lags[1];
  const int64_t begin0 = std::max<int64_t>(0, -lag0), end0 = std::min(p.moved[0], p.size[0] - lag0);
  const int64_t begin1 = std::max<int64_t>(0, -lag1), end1 = std::min(p.moved[1], p.size[1] - lag1);
  const int64_t step = ceil_div(p.moved[2], parts), start = part * step;
  const int64_t stop = std::min(p.moved[2], start + step);
  for (int64_t i = begin0; i < end0; ++i) {
    for (int64_t j = begin1; j < end1; ++j) {
      const double* x = p.x + ((i + lag0) * p.size[1] + j + lag1) * p.size[2];
      add_line(p, x, p.y + (i * p.moved[1] + j) * p.moved[2], start, stop, to);
    }
  }
}

// (*lags) of x (*size) and y (*moved), float64.
Tensor overlap_sums(const Tensor& x, const Tensor& y, Sizes low, Sizes high) {
  const int64_t ndim = x.dim();
  Sizes count(low.size());
  for (size_t i = 0; i < low.size(); ++i) count[i] = high[i] - low[i] + 1;
  Axes3 lowest = last_axes(low);
  for (int64_t i = 0; i < 3 - ndim; ++i) lowest[i] = 0;
  const Problem p{x.const_data_ptr<double>(), y.const_data_ptr<double>(), last_sizes(x, ndim),
                  last_sizes(y, ndim), lowest, last_axes(count)};
  const Tensor out = new_float64(x, count);
  double* sums = out.mutable_data_ptr<double>();
  const int64_t outer = p.lags[0] * p.lags[1], parts = ceil_div(p.moved[2], kPart);
  const int64_t width = p.vectors() * kDoubles;
  std::vector<double> partial(outer * parts * width, 0.0);
  torch::stable::parallel_for(0, outer * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      add_part(p, i / parts, i % parts, parts, partial.data() + i * width);
    }
  });
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t k = 0; k < p.lags[2]; ++k) {
      double sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += partial[(o * parts + part) * width + k];
      sums[o * p.lags[2] + k] = sum;
    }
  }
  return out;
}

}  // namespace
}  // namespace torchcorr::overlap

STABLE_TORCH_LIBRARY_FRAGMENT(torchcorr_cpu, m) {
  m.def("overlap_sums(Tensor x, Tensor y, int[] low, int[] high) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("overlap_sums", TORCH_BOX(&torchcorr::overlap::overlap_sums));
}
