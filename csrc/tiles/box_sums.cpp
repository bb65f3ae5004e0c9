#include "tiles/box_sums.h"

#include "common/vectors.h"

namespace torchcorr {
namespace {

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
  const auto [first, second, weights] = row.columns;
  double* const totals = row.totals;
  double *const of_second = totals + row.n + 1, *const of_weights = of_second + row.n + 1;
  if (weights) {
    add_up<3>(row.n, {first, second, weights}, {totals, of_second, of_weights});
  } else {
    add_up<2>(row.n, {first, second}, {totals, of_second});
  }
  RowSize size;
  for (int s = 0; s < kSums; ++s) {
    if (!row.columns[s]) continue;
    const double* of_sum = totals + s * (row.n + 1);
    differences(count, row, of_sum, to[s]);
    size.of[s] = of_sum[row.n];
  }
  return size;
}

}  // namespace torchcorr
