// Sums of products of bytes with signed bytes, exact in 32 bits.
#pragma once

#include <cstdint>
#include <vector>

#include "common/tiling.h"

namespace torchcorr::integer {

// A tile (C, z, y, x) of bytes, with room behind rows and planes that blocks of results may read.
struct ByteTile {
  Axes3 extent{};
  int64_t channels = 1, pitch = 0, plane = 0;
  std::vector<uint8_t> bytes;

  const uint8_t* row(int64_t c, int64_t z, int64_t y) const {
    return bytes.data() + (c * extent[0] + z) * plane + y * pitch;
  }
};

// Positions (z, y, x) of a tile, rows apart by `pitch`.
struct SumMap {
  int64_t pitch = 0, plane = 0;
  std::vector<int32_t> sums;

  explicit SumMap(const Tiling& tiling);
  const int32_t* row(int64_t z, int64_t y) const { return sums.data() + z * plane + y * pitch; }
};

// How a kernel wants the rows of a template: groups of signed numbers, each as wide as 32 bits.
struct PackedTemplate {
  int64_t channels = 1, groups = 0;
  Axes3 window{};
  std::vector<int32_t> numbers;

  const int32_t* row(int64_t c, int64_t z, int64_t y) const {
    return numbers.data() + ((c * window[0] + z) * window[1] + y) * groups;
  }
};

// Loops for one kind of CPU.
struct Kernel {
  const char* name;
  int64_t group;  // neighbours in a row that are summed at once
  void (*correlate)(const Tiling&, const ByteTile&, const PackedTemplate&, SumMap&);
};

// Those that this CPU can run, the best first.
const std::vector<Kernel>& kernels();

// Room for a tile, for any kernel.
ByteTile new_tile(const Tiling& tiling);

// A template (C, z, y, x) minus 128, packed.
PackedTemplate pack(const Tiling& tiling, const uint8_t* elements, int64_t group);

}  // namespace torchcorr::integer
