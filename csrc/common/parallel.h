// Loops whose parts are shared among threads.
#pragma once

#include <algorithm>

#include "common/threads.h"
#include "common/tiling.h"

namespace torchcorr {

// Calls f(begin, end) for parts of a range, of at least `grain` numbers each, one for each thread.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (begin >= end) return;
  const int64_t n = end - begin;
  const int64_t threads = n > 1 && n > grain ? threads_to_share() : 1;
  const int64_t most = std::min(threads, ceil_div(n, std::max<int64_t>(1, grain)));
  if (most <= 1) return f(begin, end);
  const int64_t size = ceil_div(n, most);
  share(ceil_div(n, size), [&](int64_t part) {
    f(begin + part * size, std::min(end, begin + (part + 1) * size));
  });
}

}  // namespace torchcorr
