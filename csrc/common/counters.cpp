#include "common/counters.h"

#include <array>
#include <atomic>

#include "common/tensors.h"

namespace torchcorr {
namespace {

constexpr size_t kWays = static_cast<size_t>(Way::kCount);
std::array<std::atomic<int64_t>, kWays> counts{};

// Writes the counts to an int64 tensor and starts again from 0.
void take_counts(const Tensor& to) {
  STD_TORCH_CHECK(to.scalar_type() == ScalarType::Long && to.numel() == kWays && to.is_contiguous(),
                  "counts go to as many integers as there are ways");
  int64_t* numbers = to.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < kWays; ++i) numbers[i] = counts[i].exchange(0);
}

}  // namespace

void count_way(Way way, int64_t many) {
  counts[static_cast<size_t>(way)].fetch_add(many, std::memory_order_relaxed);
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("take_counts", TORCH_BOX(&torchcorr::take_counts));
}
