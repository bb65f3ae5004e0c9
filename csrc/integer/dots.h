// Sums of products of bytes with signed bytes, exact in 32 bits.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "common/tiling.h"

namespace torchcorr::integer {

constexpr int64_t kCacheLine = 64;  // bytes

// The first element from `x` on that begins a cache line.
template <class T>
T* at_cache_line(T* x) {
  const uintptr_t place = reinterpret_cast<uintptr_t>(x) % kCacheLine;
  return x + (kCacheLine - place) % kCacheLine / sizeof(T);
}

// Of a tile of fewer rows of results a kernel may compute stretches of one row together.
constexpr int64_t kFewRows = 8;

// Columns of results, with those behind them that a kernel may write.
int64_t columns_of(const Tiling& tiling);

// A tile (C, z, y, x) of bytes, with room behind rows and planes that blocks of results may read.
struct ByteTile {
  Axes3 extent{};
  int64_t channels = 1, pitch = 0, plane = 0;
  std::vector<uint8_t> bytes;

  // Each begins a cache line.
  const uint8_t* row(int64_t c, int64_t z, int64_t y) const {
    return at_cache_line(bytes.data()) + (c * extent[0] + z) * plane + y * pitch;
  }
  uint8_t* row(int64_t c, int64_t z, int64_t y) {
    return const_cast<uint8_t*>(std::as_const(*this).row(c, z, y));
  }
};

// Positions (z, y, x) of a tile, rows apart by `pitch`.
struct SumMap {
  int64_t pitch = 0, plane = 0;
  std::unique_ptr<int32_t[]> sums;  // which a kernel writes as a whole

  explicit SumMap(const Tiling& tiling);
  const int32_t* row(int64_t z, int64_t y) const { return sums.get() + z * plane + y * pitch; }
};

// The rows of a template as a kernel wants them: groups of signed numbers, each as wide as 32 bits.
struct PackedTemplate {
  int64_t channels = 1, groups = 0;
  Axes3 window{};
  std::unique_ptr<int32_t[]> numbers;

  const int32_t* row(int64_t c, int64_t z, int64_t y) const {
    return &numbers[((c * window[0] + z) * window[1] + y) * groups];
  }
};

// What a loop is written for, the slowest first.
enum class Loop { kPlain, kAvx2, kAvxVnni, kAvx512Vnni, kAmx };

// A loop, and how it wants a template (C, z, y, x), minus 128.
struct Kernel {
  Loop loop;
  PackedTemplate (*pack)(const Tiling&, const uint8_t* elements);
  void (*correlate)(const Tiling&, const ByteTile&, const PackedTemplate&, SumMap&);
};

// Those that this CPU can run, the best first.
const std::vector<Kernel>& kernels();

// Room for a tile, for any kernel.
ByteTile new_tile(const Tiling& tiling);

}  // namespace torchcorr::integer
