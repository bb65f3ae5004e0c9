#include "tiles/masked_flat.h"

namespace torchcorr {
namespace {

template <bool LARGEST, class T>
TORCHCORR_INLINE void join(int64_t n, int64_t by, T* x) {
  for (int64_t i = 0; i + by < n; ++i) {
    const T other = x[i + by];
    x[i] = (LARGEST ? x[i] < other : other < x[i]) ? other : x[i];
  }
}

// Elements twice as many each time, and at last so many that they overlap.
template <bool LARGEST, class T>
TORCHCORR_INLINE void slide(int64_t n, int64_t size, int64_t step, T* x) {
  int64_t joined = 1;
  for (; 2 * joined <= size; joined *= 2) join<LARGEST>(n, joined * step, x);
  if (joined < size) join<LARGEST>(n, (size - joined) * step, x);
}

}  // namespace

#define TORCHCORR_SLIDE(T)                                                           \
  TORCHCORR_CLONES void slide_largest(int64_t n, int64_t size, int64_t step, T* x) {  \
    slide<true>(n, size, step, x);                                                   \
  }                                                                                  \
  TORCHCORR_CLONES void slide_smallest(int64_t n, int64_t size, int64_t step, T* x) { \
    slide<false>(n, size, step, x);                                                  \
  }
TORCHCORR_SLIDE(float)
TORCHCORR_SLIDE(double)
#undef TORCHCORR_SLIDE

}  // namespace torchcorr
