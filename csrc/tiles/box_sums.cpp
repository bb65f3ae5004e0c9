#include "tiles/box_sums.h"

#include "common/vectors.h"

namespace torchcorr {
namespace {

// Totals of N sums at once, since each waits for the one before.
template <int N>
void add_up_all(int64_t n, const double* const (&x)[kSums], double* to) {
  double total[N] = {};
  for (int64_t i = 0; i < n; ++i) {
    for (int s = 0; s < N; ++s) {
      to[s * (n + 1) + i] = total[s];
      total[s] += x[s][i];
    }
  }
  for (int s = 0; s < N; ++s) to[s * (n + 1) + n] = total[s];
}

TORCHCORR_CLONES void differences(int64_t n, const BoxRow& row, const double* totals,
                                  double* __restrict to) {
  const int64_t size = row.size, step = row.step;
  const double weight = row.weight;
  if (step == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = weight * (totals[i + size] - totals[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = weight * (totals[i * step + size] - totals[i * step]);
  }
}

}  // namespace

RowSize sum_boxes(const BoxRow& row, int64_t count, double* const (&to)[kSums]) {
  row.columns[kWeights] ? add_up_all<kSums>(row.n, row.columns, row.totals)
                        : add_up_all<kSums - 1>(row.n, row.columns, row.totals);
  RowSize size;
  for (int s = 0; s < kSums; ++s) {
    if (!row.columns[s]) continue;
    const double* totals = row.totals + s * (row.n + 1);
    differences(count, row, totals, to[s]);
    size.of[s] = totals[row.n];
  }
  return size;
}

TORCHCORR_CLONES void add_row(int64_t n, double sign, const double* __restrict x,
                              double* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] += sign * x[i];
}

}  // namespace torchcorr
