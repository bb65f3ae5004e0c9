// The step `normalise` of scores of bytes: from whole numerators to scores.
#pragma once

#include <cstdint>
#include <vector>

#include "common/tensors.h"

namespace torchcorr::integer {

// score = (scale * numerator - the sum of slope * sum over means of the window - offset) * norms.
struct Constants {
  int64_t scale, offset;
  double norm;
  std::vector<int64_t> slopes;
};

// A row of numerators, `step` apart, and of the windows they belong to, whose sums are `pitch` apart.
template <class In>
struct NumeratorRow {
  int64_t n, step;
  const In* first;
  const uint32_t* sums;
  int64_t pitch;
  const double* norms;
};

// Scores of `elements` of a window. Numerators are rounded to whole numbers first.
void score_row(int64_t elements, const NumeratorRow<float>& row, const Constants& by, float* out);
void score_row(int64_t elements, const NumeratorRow<double>& row, const Constants& by, float* out);
void score_row(int64_t elements, const NumeratorRow<int32_t>& row, const Constants& by, float* out);

}  // namespace torchcorr::integer
