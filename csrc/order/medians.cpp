// The median of each row, and that of the distances from it, exactly: a few elements say between
// which values it lies, and only what lies there is put in order.

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/parallel.h"
#include "common/tensors.h"

namespace torchcorr::order {
namespace {

// Elements that say where the median lies, and elements that are looked at together.
constexpr int64_t kSampled = 1 << 13;
constexpr int64_t kBlock = 1024;
// Standard errors of the rank of the median among the former.
constexpr double kErrors = 4;

// The lower median of f(0) ... f(n - 1); NaN if one of them is. `room` may grow to n elements.
template <class T, class F>
T median(int64_t n, const F& f, std::vector<T>& room) {
  const int64_t step = std::max<int64_t>(1, n / kSampled), count = ceil_div(n, step);
  const int64_t wide = static_cast<int64_t>(kErrors * 0.5 * std::sqrt(static_cast<double>(count)));
  room.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    room[i] = f(i * step);
    if (std::isnan(room[i])) return room[i];
  }
  const auto nth = [&](int64_t i, int64_t from) {
    std::nth_element(room.begin() + from, room.begin() + i, room.end());
    return room[i];
  };
  const int64_t first = std::max<int64_t>(0, count / 2 - wide);
  const T low = nth(first, 0), high = nth(std::min(count - 1, count / 2 + wide), first);
  const int64_t rank = (n - 1) / 2;
  int64_t below = 0, above = 0, inside = 0;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t stop = std::min(n, start + kBlock);
    if (static_cast<int64_t>(room.size()) < inside + kBlock) room.resize(2 * (inside + kBlock));
    for (int64_t i = start; i < stop; ++i) {
      const T v = f(i);
      room[inside] = v;
      below += v < low, above += v > high;
      inside += (v >= low) & (v <= high);
    }
  }
  if (below + inside + above < n) return std::numeric_limits<T>::quiet_NaN();
  if (rank < below || rank >= below + inside) {
    room.resize(n);
    for (int64_t i = 0; i < n; ++i) room[i] = f(i);
    return nth(rank, 0);
  }
  if (low == high) return low;
  room.resize(inside);
  return nth(rank - below, 0);
}

// x (rows, n), n > 0, both results (rows).
std::tuple<Tensor, Tensor> medians(const Tensor& x) {
  const int64_t rows = x.size(0), n = x.size(1);
  const Tensor middle = new_tensor(x, {rows});
  const Tensor deviation = new_tensor(x, {rows});
  with_real_type(x, "rows", [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.const_data_ptr<T>();
    T *to = middle.mutable_data_ptr<T>(), *distance = deviation.mutable_data_ptr<T>();
    torchcorr::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> room;
      for (int64_t r = begin; r < end; ++r) {
        const T* row = from + r * n;
        const T m = median<T>(n, [row](int64_t i) { return row[i]; }, room);
        to[r] = m;
        distance[r] = median<T>(n, [row, m](int64_t i) { return std::abs(row[i] - m); }, room);
      }
    });
  });
  return {middle, deviation};
}

}  // namespace
}  // namespace torchcorr::order

STABLE_TORCH_LIBRARY_FRAGMENT(torchcorr_cpu, m) {
  m.def("medians(Tensor x) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("medians", TORCH_BOX(&torchcorr::order::medians));
}
