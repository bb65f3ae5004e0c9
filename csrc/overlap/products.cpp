#include "overlap/products.h"

#include <algorithm>
#include <cstdint>

#include "common/targets.h"

namespace torchcorr::overlap {
namespace {

// Rows of y, as many as a vector has elements or several times so many, and vectors of x: their sums
// are kept in registers.
template <int BYTES>
constexpr int kRows = BYTES == 64 ? 8 : 4;
template <int BYTES>
constexpr int kVectors = BYTES == 16 ? 2 : 3;
// Elements whose products are added up one after another, before their sums are added up.
constexpr int64_t kInOrder = 2048;

template <int BYTES, int VECTORS>
TORCHCORR_INLINE void add_tile(int64_t steps, const double* x, const double* y, double* to,
                               int64_t columns) {
  constexpr int64_t kLanes = lanes_of<double, BYTES>;
  Wide<BYTES> sums[kRows<BYTES>][VECTORS];
  for (int r = 0; r < kRows<BYTES>; ++r) {
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = load<BYTES>(to + r * columns + v * kLanes);
  }
  for (int64_t q = 0; q < steps; ++q, x += kRows<BYTES>, y += kRows<BYTES>) {
    Wide<BYTES> seen[VECTORS];
    for (int v = 0; v < VECTORS; ++v) seen[v] = load<BYTES>(x + v * kLanes);
    for (int r = 0; r < kRows<BYTES>; ++r) {
      for (int v = 0; v < VECTORS; ++v) sums[r][v] += y[r] * seen[v];
    }
  }
  for (int r = 0; r < kRows<BYTES>; ++r) {
    for (int v = 0; v < VECTORS; ++v) put(sums[r][v], to + r * columns + v * kLanes);
  }
}

template <int BYTES>
TORCHCORR_INLINE void add_steps(int64_t steps, int64_t columns, const double* x, const double* y,
                                double* to) {
  constexpr int64_t kLanes = lanes_of<double, BYTES>, kMost = kVectors<BYTES>;
  int64_t s = 0;
  for (; s + kMost * kLanes <= columns; s += kMost * kLanes) {
    add_tile<BYTES, kMost>(steps, x + s, y, to + s, columns);
  }
  if (s + 2 * kLanes <= columns) {
    add_tile<BYTES, 2>(steps, x + s, y, to + s, columns);
  } else if (s < columns) {
    add_tile<BYTES, 1>(steps, x + s, y, to + s, columns);
  }
}
TORCHCORR_FOR_CPUS(void, add_steps,
                   (int64_t steps, int64_t columns, const double* x, const double* y, double* to),
                   (steps, columns, x, y, to))

// Fewer elements of y than there are rows, by themselves: what x has beside theirs may be no number.
TORCHCORR_CLONES void add_rest(int64_t n, int64_t lags, int64_t columns, const double* x,
                               const double* y, double* to) {
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t s = r; s < r + lags; ++s) to[r * columns + s] += y[r] * x[s];
  }
}

int64_t rows() { return kVectorBytes >= 64 ? kRows<64> : kRows<32>; }

}  // namespace

Products::Products(int64_t lags)
    : lags_(lags), rows_(rows()), columns_(ceil_div(lags + rows_ - 1, rows_) * rows_), totals_(lags) {
  const int64_t seen = kBlock + columns_;
  room_.resize(kDoubles + kBlock + seen + rows_ * columns_);
  // Vectors on lines of cache.
  const auto address = reinterpret_cast<uintptr_t>(room_.data()) / sizeof(double);
  y_ = room_.data() + (kDoubles - address % kDoubles) % kDoubles;
  x_ = y_ + kBlock;
  sums_ = x_ + seen;
}

void Products::add(int64_t n) {
  const int64_t whole = n / rows_ * rows_;
  std::fill(x_ + seen(n), x_ + n + columns_, 0.0);
  add_steps(whole / rows_, columns_, x_, y_, sums_);
  add_rest(n - whole, lags_, columns_, x_ + whole, y_ + whole, sums_);
  summed_ += n;
  if (summed_ >= kInOrder) fold();
}

void Products::fold() {
  for (int64_t r = 0; r < rows_; ++r) {
    for (int64_t k = 0; k < lags_; ++k) totals_[k] += sums_[r * columns_ + r + k];
  }
  std::fill_n(sums_, rows_ * columns_, 0.0);
  summed_ = 0;
}

void Products::take(double* to) {
  fold();
  for (int64_t k = 0; k < lags_; ++k) to[k] += totals_[k];
}

}  // namespace torchcorr::overlap
