// Templates in the form that scores multiply with.
#pragma once

#include "common/tensors.h"

namespace torchcorr {

// float32 or float64 templates without gaps, of n elements each, centred if there are means and with
// a mean square of one: in float64, in a shape of as many elements.
Tensor standardised(const Tensor& templates, int64_t n, bool zero_mean, const Sizes& shape);

}  // namespace torchcorr
