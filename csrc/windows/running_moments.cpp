// The sliding sums of running_norms.h, compiled for several CPUs.

#include "windows/running_moments.h"

namespace torchcorr::running {

TORCHCORR_CLONES void run_unit(const Job& job, const float* input, int64_t tile, int64_t unit,
                               const double* stats, float* out, float* means,
                               Found& found) {
  norms_of_unit(job, input, tile, unit, stats, out, means, found);
}

}  // namespace torchcorr::running
