// How many tiles and windows took which way since the counters were read: for tests and benchmarks.
#pragma once

#include <cstdint>

namespace torchcorr {

// In the order of `Ways` of _cpu/counters.py.
enum class Way {
  kFloat32, kFloat64, kIntegers, kDigits, kExactWindows, kRepeated, kLookedAgain, kCount
};

void count_way(Way way, int64_t many);

}  // namespace torchcorr
