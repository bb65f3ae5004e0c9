#include "integer/dots.h"

#include <cstring>

#include "common/vectors.h"
#include "direct/kernels.h"
#include "integer/amx.h"

namespace torchcorr::integer {
namespace {

using direct::visit_rows;

// Bytes of the widest vector, and the most results that a vector of it stands for.
constexpr int64_t kWidest = 64;
// Rows and columns that a kernel may read and write at once.
constexpr int64_t kRowsAtOnce = 32, kColumnsAtOnce = 1024;

int64_t rounded_up(int64_t n, int64_t step) { return ceil_div(n, step) * step; }

// A way to add products: `lanes` sums of 32 bits, each of `group` neighbours among the elements
// from some place on times the same numbers, for `rows` rows of results at once, as many as the
// registers hold. Here tiles are read as they are, four bytes a sum.
template <int BYTES>
struct FourBytes {
  using Sums = Vector<int32_t, BYTES>;
  static constexpr int group = 4, lanes = BYTES / 4, rows = BYTES == 64 ? 4 : 2;

  static TORCHCORR_INLINE Sums read(const uint8_t* x) {
    return __builtin_bit_cast(Sums, load<BYTES>(x));
  }
};

template <int BYTES>
struct PlainDots : FourBytes<BYTES> {
  using typename FourBytes<BYTES>::Sums;

  static TORCHCORR_INLINE void add(Sums& sums, const Sums& x, int32_t numbers) {
    for (int g = 0; g < FourBytes<BYTES>::group; ++g) {
      const int32_t number = static_cast<int8_t>(numbers >> (8 * g));
      sums += ((x >> (8 * g)) & 255) * number;
    }
  }
};

#if defined(__x86_64__) && defined(__GNUC__)
// Written as assembly, since a function for one kind of CPU cannot be inlined in one for any.
struct Dots512 : FourBytes<64> {
  static TORCHCORR_INLINE void add(Sums& sums, const Sums& x, int32_t numbers) {
    const Sums all = Sums{} + numbers;
    Sums s = sums;
    asm("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(x), "v"(all));
    sums = s;
  }
};

#if (defined(__clang__) && __clang_major__ >= 13) || (!defined(__clang__) && __GNUC__ >= 12)
#define TORCHCORR_AVX_VNNI
struct Dots256 : FourBytes<32> {
  static TORCHCORR_INLINE void add(Sums& sums, const Sums& x, int32_t numbers) {
    const Sums all = Sums{} + numbers;
    Sums s = sums;
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(s) : "x"(x), "x"(all));
    sums = s;
  }
};
#endif

// Two products of 16 bits at once: bytes are widened as they are read.
struct DotsOfPairs {
  using Sums = Vector<int32_t, 32>;
  static constexpr int group = 2, lanes = 8, rows = 4;

  static TORCHCORR_INLINE Sums read(const uint8_t* x) {
    Sums wide;
    asm("vpmovzxbw %1, %0" : "=x"(wide) : "m"(*reinterpret_cast<const uint8_t(*)[16]>(x)));
    return wide;
  }
  static TORCHCORR_INLINE void add(Sums& sums, const Sums& x, int32_t numbers) {
    const Sums all = Sums{} + numbers;
    Sums products;
    asm("vpmaddwd %2, %1, %0" : "=x"(products) : "x"(x), "x"(all));
    sums += products;
  }
};
#endif

// Adds the products of one row of bytes with rows of a template to rows `first` to `last` of results.
template <class Dots, int first, int last, int R>
TORCHCORR_INLINE void add_row(const uint8_t* bytes, const int32_t* numbers, int64_t groups,
                              typename Dots::Sums (&sums)[R][Dots::group]) {
  for (int64_t g = 0; g < groups; ++g) {
#pragma GCC unroll 4
    for (int p = 0; p < Dots::group; ++p) {
      const auto x = Dots::read(bytes + g * Dots::group + p);
#pragma GCC unroll 8
      for (int j = first; j <= last; ++j) Dots::add(sums[j][p], x, numbers[g - j * groups]);
    }
  }
}

// R rows of results by group * lanes columns, in registers over the whole template. Sums of one
// register are `group` columns apart. Compilers keep them in registers where all indices are constants.
template <class Dots, int R>
TORCHCORR_INLINE void block(const ByteTile& tile, const PackedTemplate& weights, const Axes3& at,
                            int32_t* out, int64_t pitch) {
  constexpr int group = Dots::group, lanes = Dots::lanes;
  typename Dots::Sums sums[R][group] = {};
  const int64_t ky = weights.window[1], groups = weights.groups;
  for (int64_t c = 0; c < weights.channels; ++c) {
    for (int64_t z = 0; z < weights.window[0]; ++z) {
      const int32_t* numbers = weights.row(c, z, 0);
      for (int64_t r = 0; r < ky + R - 1; ++r) {
        const uint8_t* row = tile.row(c, at[0] + z, at[1] + r) + at[2];
        visit_rows<R>(r, ky, R, [&](auto first, auto last) TORCHCORR_FLAT {
          add_row<Dots, decltype(first)::value, decltype(last)::value>(row, numbers + r * groups,
                                                                       groups, sums);
        });
      }
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < R; ++j) {
    int32_t parts[group][lanes];
#pragma GCC unroll 4
    for (int p = 0; p < group; ++p) std::memcpy(parts[p], &sums[j][p], sizeof(parts[p]));
    for (int l = 0; l < lanes; ++l) {
#pragma GCC unroll 4
      for (int p = 0; p < group; ++p) out[j * pitch + l * group + p] = parts[p][l];
    }
  }
}

// Dense columns, and only the rows that are wanted.
template <class Dots>
TORCHCORR_INLINE void correlate(const Tiling& t, const ByteTile& tile,
                                const PackedTemplate& weights, SumMap& out) {
  constexpr int64_t width = Dots::group * Dots::lanes, rows = Dots::rows;
  const int64_t columns = (t.outputs[2] - 1) * t.stride[2] + 1;
  for (int64_t z = 0; z < t.outputs[0]; ++z) {
    int32_t* plane = out.sums.get() + z * out.plane;
    for (int64_t y = 0; y < t.outputs[1];) {
      const bool together = t.stride[1] == 1 && t.outputs[1] >= rows;
      for (int64_t x = 0; x < columns; x += width) {
        const Axes3 at{z * t.stride[0], y * t.stride[1], x};
        int32_t* to = plane + y * out.pitch + x;
        if (together) {
          block<Dots, rows>(tile, weights, at, to, out.pitch);
        } else {
          block<Dots, 1>(tile, weights, at, to, out.pitch);
        }
      }
      y += together ? rows : 1;
    }
  }
}

#define TORCHCORR_DOTS(name, target, Dots)                                                    \
  target void name(const Tiling& t, const ByteTile& tile, const PackedTemplate& w, SumMap& o) { \
    correlate<Dots>(t, tile, w, o);                                                           \
  }
TORCHCORR_DOTS(plain, , PlainDots<16>)
// The order of the widest kernel, for CPUs that do not have its instruction.
TORCHCORR_DOTS(plain_wide, , PlainDots<64>)
#if defined(__x86_64__) && defined(__GNUC__)
TORCHCORR_DOTS(pairs, __attribute__((target("avx2"))), DotsOfPairs)
TORCHCORR_DOTS(vnni512, __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))), Dots512)
#if defined(TORCHCORR_AVX_VNNI)
TORCHCORR_DOTS(vnni256, __attribute__((target("avx2,avxvnni"))), Dots256)
#endif
#endif
#undef TORCHCORR_DOTS

// Neighbours in a row that are summed at once lie in one number.
template <int64_t group>
PackedTemplate pack_groups(const Tiling& t, const uint8_t* elements) {
  PackedTemplate packed;
  packed.channels = t.channels;
  packed.window = t.window;
  packed.groups = ceil_div(t.window[2], group);
  constexpr int64_t bits = 32 / group;
  const int64_t rows = t.channels * t.window[0] * t.window[1];
  packed.numbers.reset(new int32_t[rows * packed.groups]());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t x = 0; x < t.window[2]; ++x) {
      const uint32_t number = static_cast<uint32_t>(elements[r * t.window[2] + x] - 128);
      const uint32_t kept = bits == 32 ? number : number & ((1U << bits) - 1);
      uint32_t place = static_cast<uint32_t>(packed.numbers[r * packed.groups + x / group]);
      place |= kept << (bits * (x % group));
      packed.numbers[r * packed.groups + x / group] = static_cast<int32_t>(place);
    }
  }
  return packed;
}

std::vector<Kernel> supported() {
  std::vector<Kernel> all;
  if (has_matrix_tiles()) all.push_back({Loop::kAmx, pack_bands, correlate_bands});
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    all.push_back({Loop::kAvx512Vnni, pack_groups<Dots512::group>, vnni512});
  }
#if defined(TORCHCORR_AVX_VNNI)
  if (__builtin_cpu_supports("avxvnni")) all.push_back({Loop::kAvxVnni, pack_groups<Dots256::group>, vnni256});
#endif
  if (__builtin_cpu_supports("avx2")) all.push_back({Loop::kAvx2, pack_groups<DotsOfPairs::group>, pairs});
#endif
  all.push_back({Loop::kPlain, pack_groups<PlainDots<16>::group>, plain});
  all.push_back({Loop::kPlain, pack_groups<PlainDots<64>::group>, plain_wide});
  return all;
}

}  // namespace

int64_t columns_of(const Tiling& t) {
  const int64_t columns = (t.outputs[2] - 1) * t.stride[2] + 1;
  // In lines, where that does not more than double them.
  const bool lines = t.outputs[1] < kFewRows && columns >= kColumnsAtOnce / 2;
  return rounded_up(columns, lines ? kColumnsAtOnce : kWidest);
}

SumMap::SumMap(const Tiling& t)
    : pitch(columns_of(t)),
      plane(rounded_up(t.outputs[1], kRowsAtOnce) * pitch), sums(new int32_t[t.outputs[0] * plane]) {}

const std::vector<Kernel>& kernels() {
  static const std::vector<Kernel> all = supported();
  return all;
}

ByteTile new_tile(const Tiling& t) {
  ByteTile tile;
  tile.extent = t.extent;
  tile.channels = t.channels;
  // An odd number of cache lines, so that rows below each other do not compete for the same ones.
  const int64_t wide = columns_of(t) + rounded_up(t.window[2], 4) + 2 * kWidest;
  tile.pitch = (ceil_div(wide, kWidest) | 1) * kWidest;
  tile.plane = (t.extent[1] + kRowsAtOnce * t.stride[1]) * tile.pitch;
  tile.bytes.resize(t.channels * t.extent[0] * tile.plane + kCacheLine);
  return tile;
}

}  // namespace torchcorr::integer
