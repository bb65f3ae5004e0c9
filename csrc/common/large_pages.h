// Large results are placed on large pages, where the system offers them.
#pragma once

#include "common/tensors.h"

namespace torchcorr {

// Asks for large pages for a tensor that will be written as a whole. The first touch of each small
// page costs more than most kernels here need to fill it.
void take_large_pages(const Tensor& x);

inline Tensor new_map(const Tensor& like, const Sizes& shape) {
  Tensor out = new_tensor(like, shape);
  take_large_pages(out);
  return out;
}

}  // namespace torchcorr
