// Sums of products over what overlaps at a few lags, term by term.

#include <algorithm>

#include "common/axes.h"
#include "common/parallel.h"
#include "overlap/products.h"

namespace torchcorr::overlap {
namespace {

// Elements of both recordings that one partial sum is of.
constexpr int64_t kPart = 1 << 16;

template <class T>
struct Problem {
  const T *x, *y;
  Axes3 size, moved, low, lags;
};

// Adds the products of y[start, stop) of two lines to the sums at all lags of the last axis.
template <class T>
void add_line(const Problem<T>& p, const T* x, const T* y, int64_t start, int64_t stop,
              Products& to) {
  for (int64_t i = start; i < stop; i += Products::kBlock) {
    const int64_t n = std::min(Products::kBlock, stop - i), first = i + p.low[2];
    const int64_t length = to.seen(n);
    const int64_t begin = std::clamp<int64_t>(-first, 0, length);
    const int64_t end = std::clamp<int64_t>(p.size[2] - first, begin, length);
    std::fill_n(to.x(), begin, 0.0);
    std::copy(x + first + begin, x + first + end, to.x() + begin);
    std::fill(to.x() + end, to.x() + length, 0.0);
    std::copy_n(y + i, n, to.y());
    to.add(n);
  }
}

// The lags of the first two axes one by one; a line is cut into parts if it is long.
template <class T>
void add_part(const Problem<T>& p, int64_t outer, int64_t part, int64_t parts, double* to) {
  const int64_t lag0 = p.low[0] + outer / p.lags[1], lag1 = p.low[1] + outer % p.lags[1];
  const int64_t begin0 = std::max<int64_t>(0, -lag0), end0 = std::min(p.moved[0], p.size[0] - lag0);
  const int64_t begin1 = std::max<int64_t>(0, -lag1), end1 = std::min(p.moved[1], p.size[1] - lag1);
  const int64_t step = ceil_div(p.moved[2], parts), start = part * step;
  const int64_t stop = std::min(p.moved[2], start + step);
  Products sums(p.lags[2]);
  for (int64_t i = begin0; i < end0; ++i) {
    for (int64_t j = begin1; j < end1; ++j) {
      const T* x = p.x + ((i + lag0) * p.size[1] + j + lag1) * p.size[2];
      add_line(p, x, p.y + (i * p.moved[1] + j) * p.moved[2], start, stop, sums);
    }
  }
  sums.take(to);
}

template <class T>
void add_all(const Problem<T>& p, double* sums) {
  const int64_t outer = p.lags[0] * p.lags[1], parts = ceil_div(p.moved[2], kPart);
  const int64_t width = p.lags[2];
  std::vector<double> partial(outer * parts * width, 0.0);
  torchcorr::parallel_for(0, outer * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      add_part(p, i / parts, i % parts, parts, partial.data() + i * width);
    }
  });
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t k = 0; k < width; ++k) {
      double sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += partial[(o * parts + part) * width + k];
      sums[o * width + k] = sum;
    }
  }
}

// (*lags) of x (*size) and y (*moved), both float32 or float64, in float64.
Tensor overlap_sums(const Tensor& x, const Tensor& y, Sizes low, Sizes high) {
  const int64_t ndim = x.dim();
  Sizes count(low.size());
  for (size_t i = 0; i < low.size(); ++i) count[i] = high[i] - low[i] + 1;
  Axes3 lowest = last_axes(low);
  for (int64_t i = 0; i < 3 - ndim; ++i) lowest[i] = 0;
  const Tensor out = new_float64(count);
  with_real_type(x, "recordings", [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> p{x.const_data_ptr<T>(), y.const_data_ptr<T>(), last_sizes(x, ndim),
                       last_sizes(y, ndim), lowest, last_axes(count)};
    add_all(p, out.mutable_data_ptr<double>());
  });
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
