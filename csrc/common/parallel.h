// PyTorch's threads.
#pragma once

#include "common/tensors.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace torchcorr {

#if defined(__SANITIZE_THREAD__)

template <class F>
__attribute__((noinline)) void call_part(const F& f, int64_t begin, int64_t end) {
  f(begin, end);
}

// PyTorch's thread pool is not built with the sanitizer, which must be told what is in order: what
// came before the region, its parts, and what comes after it.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  char before = 0, after = 0;
  __tsan_release(&before);
  const auto part = [&](int64_t first, int64_t last) __attribute__((no_sanitize_thread)) {
    __tsan_acquire(&before);
    call_part(f, first, last);
    __tsan_release(&after);
  };
  torch::stable::parallel_for(begin, end, grain, part);
  __tsan_acquire(&after);
}

#else

// Calls f(begin, end) for parts of a range, of at least `grain` numbers each, on several threads.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  torch::stable::parallel_for(begin, end, grain, f);
}

#endif

}  // namespace torchcorr
