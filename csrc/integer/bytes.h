// Which float32 tensors may hold whole numbers of a byte.
#pragma once

#include "common/tensors.h"

namespace torchcorr {

// Whether the first elements of a tensor, whose last axis has no step, are such numbers, or such
// numbers divided by 255.
bool begins_with_bytes(const Tensor& x);

}  // namespace torchcorr
