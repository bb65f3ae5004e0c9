// The loops of line_sums.h.

#include "windows/line_sums.h"

#include "windows/running_sums.h"

namespace torchcorr {
namespace {

// Running totals begin with a zero and are stored in whole vectors.
int64_t totals_of(int64_t n) { return running::whole(n) + kDoubles; }

template <int BYTES>
TORCHCORR_INLINE void line_sums(const WindowAxis& axis, const double* x, double* scratch,
                                double* sums) {
  double* const reversed = scratch;
  double* const ends = reversed + running::whole(axis.block);  // of the last elements of a block
  double* const begins = ends + totals_of(axis.block);         // of the first behind it
  const int64_t span = (axis.count - 1) * axis.step + 1;
  int64_t done = 0;
  for (int64_t first = 0; first < span; first += axis.block) {
    const int64_t n = std::min(axis.block, span - first);
    const double* const block = x + first;
    for (int64_t i = 0; i < n; ++i) reversed[i] = block[n - 1 - i];
    running::accumulate<BYTES>(n, reversed, ends);
    running::accumulate<BYTES>(axis.window - 1, block + n, begins);
    // From element `at` of the block on.
    const int64_t at = done * axis.step - first, count = ceil_div(n - at, axis.step);
    if (count <= 0) continue;  // a stride passed over the block
    const double *const end = ends + n - at, *const begin = begins + axis.window - n + at;
    double* const to = sums + done;
    if (axis.step == 1) {
      for (int64_t i = 0; i < count; ++i) to[i] = end[-i] + begin[i];
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = end[-i * axis.step] + begin[i * axis.step];
    }
    done += count;
  }
}

}  // namespace

int64_t line_scratch(const WindowAxis& axis) {
  return running::whole(axis.block) + totals_of(axis.block) + totals_of(axis.window);
}

TORCHCORR_FOR_CPUS(void, line_sums,
                   (const WindowAxis& axis, const double* x, double* scratch, double* sums),
                   (axis, x, scratch, sums))

}  // namespace torchcorr
