// Scores of overlaps from their moments and sums of products.
#pragma once

#include "common/vectors.h"

namespace torchcorr::overlap {

// Values of overlaps that are in cache at the same time.
constexpr int64_t kValues = 512;

// Moments of some overlaps of both recordings, their elements, sums of products, and scores.
struct Values {
  double mean[2][kValues], energy[2][kValues], elements[kValues], sum[kValues], score[kValues];
};

// Scores of n overlaps; what fills up the last vector becomes flat. Adds up the overlaps that are
// not flat, but whose energies have a product with a root of at most `faint`: they score 0.
void score(int64_t n, double faint, Values& v, int64_t& unknown);

}  // namespace torchcorr::overlap
