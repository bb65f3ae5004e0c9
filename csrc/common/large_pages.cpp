#include "common/large_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace torchcorr {

void take_large_pages(const Tensor& x) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const uintptr_t start = reinterpret_cast<uintptr_t>(x.mutable_data_ptr());
  const uintptr_t bytes =
      static_cast<uintptr_t>(x.numel()) * static_cast<uintptr_t>(x.element_size());
  const uintptr_t begin = (start + kPage - 1) & ~(kPage - 1), end = (start + bytes) & ~(kPage - 1);
  // Only advice: a system may ignore it.
  if (end > begin) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)x;
#endif
}

namespace {

void take_large_pages_of(const Tensor& x) { take_large_pages(x); }

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("take_large_pages", TORCH_BOX(&torchcorr::take_large_pages_of));
}
