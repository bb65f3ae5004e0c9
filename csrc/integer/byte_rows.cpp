#include "integer/byte_rows.h"

#include <algorithm>

#include "common/vectors.h"

namespace torchcorr::integer {

#define TORCHCORR_CENTRE(T)                                                            \
  TORCHCORR_CLONES void centre_row(int64_t n, const uint8_t* x, int64_t level, T* to) { \
    const T subtracted = static_cast<T>(level);                                        \
    for (int64_t i = 0; i < n; ++i) to[2 * i] = static_cast<T>(x[i]) - subtracted;     \
  }
TORCHCORR_CENTRE(float)
TORCHCORR_CENTRE(double)
#undef TORCHCORR_CENTRE

TORCHCORR_CLONES void add_row(int64_t n, const uint8_t* x, int64_t& sum, int64_t& squares) {
  // Parts whose sums 32 bits hold, which take half as long as sums of 64.
  constexpr int64_t kPart = 1 << 15;
  for (int64_t begin = 0; begin < n; begin += kPart) {
    uint32_t a = 0, b = 0;
    for (int64_t i = begin; i < std::min(begin + kPart, n); ++i) {
      a += x[i], b += static_cast<uint32_t>(x[i]) * x[i];
    }
    sum += a, squares += b;
  }
}

}  // namespace torchcorr::integer
