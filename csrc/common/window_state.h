// What is known of a window, one byte each: `WindowState` of _plan/tiling.py.
#pragma once

#include "common/tensors.h"

namespace torchcorr {

enum WindowState : uint8_t {
  kGood = 0,
  kFlat = 1,       // all elements equal: the score is 0
  kDoubtful = 2,   // so small a deviation that rounding may exceed what is promised
  kUnknown = 3,    // doubtful, and the norm is not known either
  kNonFinite = 4,  // an element is a NaN or an Inf
};

// 1 if the window must be recomputed exactly, otherwise 0: the bit that both states share.
TORCHCORR_INLINE uint8_t is_doubtful(uint8_t state) { return (state >> 1) & 1; }
static_assert(kFlat < 2 && kDoubtful == 2 && kUnknown == 3 && kNonFinite == 4);

// The state for two flags, each 0 or 1; every unknown window is doubtful.
TORCHCORR_INLINE uint8_t state_of(int doubtful, int unknown) {
  return static_cast<uint8_t>(kDoubtful * doubtful + (kUnknown - kDoubtful) * unknown);
}

}  // namespace torchcorr
