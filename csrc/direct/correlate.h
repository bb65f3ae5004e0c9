// Correlation by its definition.
#pragma once

#include "common/tensors.h"

namespace torchcorr::direct {

// An input (*lead, C, *size) and a template (*lead, C, *window) whose leading axes broadcast.
Tensor correlate_direct(const Tensor& input, const Tensor& templ, Sizes stride);

}  // namespace torchcorr::direct
