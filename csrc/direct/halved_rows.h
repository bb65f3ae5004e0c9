// Direct sums of products from halves of the rows of templates and tiles (math.md, eq. halves), which take
// three quarters of the products each time.
//
// A sum is made of nothing but elements of its window. Its rounding is relative to the norms of window and
// template, not to the products that it is the sum of: enough for scores, not for plain sums.
#pragma once

#include "common/tensors.h"

namespace torchcorr::direct {

// Sums (tiles, templates, *positions) of tiles (tiles, 1, C, *size) with templates
// (1, templates, C, *window): of planes, or of volumes with one channel, with windows of eight rows or more,
// at sixteen positions along a row or more. Which sums are made in this way says `is_halved` of
// _plan/predict.py.
Tensor correlate_halved(const Tensor& tiles, const Tensor& templates);

}  // namespace torchcorr::direct
