#include "overlap/products.h"

#include <algorithm>
#include <cstdint>

namespace torchcorr::overlap {
namespace {

// Rows of y, one for each element of a vector.
constexpr int64_t kRows = kDoubles;
// Elements whose products are added up one after another, before their sums are added up.
constexpr int64_t kInOrder = 2048;

template <int ROWS, int VECTORS>
TORCHCORR_INLINE void add_tile(int64_t steps, const double* x, const double* y, double* to,
                               int64_t columns) {
  Doubles sums[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = read(to + r * columns + v * kDoubles);
  }
  for (int64_t q = 0; q < steps; ++q, x += kRows, y += kRows) {
    Doubles seen[VECTORS];
    for (int v = 0; v < VECTORS; ++v) seen[v] = read(x + v * kDoubles);
    for (int r = 0; r < ROWS; ++r) {
      for (int v = 0; v < VECTORS; ++v) sums[r][v] += y[r] * seen[v];
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < VECTORS; ++v) write(to + r * columns + v * kDoubles, sums[r][v]);
  }
}

// For 32 registers of eight numbers, and for 16 registers of four.
TORCHCORR_CLONES void add_wide(int64_t steps, int64_t columns, const double* x, const double* y,
                               double* to) {
  int64_t s = 0;
  for (; s + 3 * kDoubles <= columns; s += 3 * kDoubles) {
    add_tile<kRows, 3>(steps, x + s, y, to + s, columns);
  }
  if (s + 2 * kDoubles <= columns) {
    add_tile<kRows, 2>(steps, x + s, y, to + s, columns);
  } else if (s < columns) {
    add_tile<kRows, 1>(steps, x + s, y, to + s, columns);
  }
}

TORCHCORR_CLONES void add_narrow(int64_t steps, int64_t columns, const double* x, const double* y,
                                 double* to) {
  for (int64_t s = 0; s < columns; s += kDoubles) {
    for (int64_t r = 0; r < kRows; r += 4) {
      add_tile<4, 1>(steps, x + s, y + r, to + r * columns + s, columns);
    }
  }
}

// Fewer elements of y than a vector has, by themselves: what x has beside theirs may be no number.
TORCHCORR_CLONES void add_rest(int64_t n, int64_t lags, int64_t columns, const double* x,
                               const double* y, double* to) {
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t s = r; s < r + lags; ++s) to[r * columns + s] += y[r] * x[s];
  }
}

bool has_wide_registers() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  return has;
#else
  return false;
#endif
}

int64_t whole_rows(int64_t n) { return ceil_div(n, kRows) * kRows; }

}  // namespace

Products::Products(int64_t lags) : lags_(lags), columns_(whole_rows(lags + kRows - 1)), totals_(lags) {
  const int64_t seen = kBlock + columns_;
  room_.resize(kDoubles + kBlock + seen + kRows * columns_);
  // Vectors on lines of cache.
  const auto address = reinterpret_cast<uintptr_t>(room_.data()) / sizeof(double);
  y_ = room_.data() + (kDoubles - address % kDoubles) % kDoubles;
  x_ = y_ + kBlock;
  sums_ = x_ + seen;
}

void Products::add(int64_t n) {
  const int64_t whole = n / kRows * kRows;
  std::fill(x_ + seen(n), x_ + n + columns_, 0.0);
  (has_wide_registers() ? add_wide : add_narrow)(whole / kRows, columns_, x_, y_, sums_);
  add_rest(n - whole, lags_, columns_, x_ + whole, y_ + whole, sums_);
  summed_ += n;
  if (summed_ >= kInOrder) fold();
}

void Products::fold() {
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t k = 0; k < lags_; ++k) totals_[k] += sums_[r * columns_ + r + k];
  }
  std::fill_n(sums_, kRows * columns_, 0.0);
  summed_ = 0;
}

void Products::take(double* to) {
  fold();
  for (int64_t k = 0; k < lags_; ++k) to[k] += totals_[k];
}

}  // namespace torchcorr::overlap
