#include "integer/amx.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TORCHCORR_MATRIX_TILES
#endif

namespace torchcorr::integer {

#if defined(TORCHCORR_MATRIX_TILES)
namespace {

// A matrix tile: 16 rows of 64 bytes, or of 16 sums. Columns of a line of rows.
constexpr int64_t kSide = 16, kBytes = 64, kLine = kSide * kBytes;
// Numbers of 32 bits of a band, and bytes of bands that are used together.
constexpr int64_t kBand = kSide * kSide, kCached = 1 << 20;

// The sums of one row of a template at 16 columns are rows of bytes times a band matrix, whose column
// j holds the row of the template from place j on. Bytes are loaded from whole cache lines, so there
// are bands for each of the four places of the columns in them.
constexpr int64_t kShifts = kBytes / kSide;

// Cache lines that two neighbouring places read, the first of which is `shift`.
int64_t lines_of(int64_t width, int64_t shift) {
  return ceil_div(width + kSide - 1 + kSide * (shift + 1), kBytes);
}

// Palette 1; every register is a whole tile.
struct Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  Configuration() {
    for (int i = 0; i < 8; ++i) bytes[i] = kBytes, rows[i] = kSide;
  }
};
static_assert(sizeof(Configuration) == 64, "a configuration of matrix tiles has 64 bytes");

// The state of a thread: not kept after use, so that a switch of threads stays cheap.
struct Configured {
  Configured() {
    static const Configuration all;
    asm volatile("ldtilecfg %0" : : "m"(all));
  }
  ~Configured() { asm volatile("tilerelease" : : : "memory"); }
};

#define TORCHCORR_LOAD(tile, from, pitch) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(pitch) : "memory")
#define TORCHCORR_STORE(tile, to, pitch) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(pitch) : "memory")
#define TORCHCORR_CLEAR(tile) asm volatile("tilezero %%tmm" #tile : : :)
// Sums += unsigned bytes times the signed ones of a band.
#define TORCHCORR_ADD(sums, bytes, band) \
  asm volatile("tdpbusd %%tmm" #band ", %%tmm" #bytes ", %%tmm" #sums : : :)

// Where the rows of matrix tiles lie: below each other, or one behind the other in a line.
struct Placement {
  bool in_line;
  int64_t bytes, sums;  // from one row to the next
  int64_t rows;         // rows of results of two matrix tiles
  int64_t columns;      // columns of results that bands of all places give
};

// Rows of a template, numbered through its channels and planes, whose bands are used together.
struct TemplateRows {
  int64_t begin, end;
};

// Adds two places of columns by two matrix tiles of rows, the second of which begins `next` bytes
// and `next_sums` behind the first. Bands lie in the order in which they are loaded.
template <bool BOTH>
void add_bands(const ByteTile& tile, const PackedTemplate& weights, const TemplateRows& rows,
               const Axes3& at, int64_t shift, const Placement& place, int32_t* out, int64_t next,
               int64_t next_sums) {
  const int64_t lines = lines_of(weights.window[2], shift), pitch = place.bytes;
  const int64_t apart = place.sums * static_cast<int64_t>(sizeof(int32_t));
  const int32_t* band = at_cache_line(weights.numbers.get()) + shift / 2 * weights.groups +
                        rows.begin * lines * 2 * kBand;
  if (rows.begin == 0) {
    TORCHCORR_CLEAR(0);
    TORCHCORR_CLEAR(1);
    TORCHCORR_CLEAR(2);
    TORCHCORR_CLEAR(3);
  } else {
    TORCHCORR_LOAD(0, out, apart);
    TORCHCORR_LOAD(1, out + kSide, apart);
    if constexpr (BOTH) {
      TORCHCORR_LOAD(2, out + next_sums, apart);
      TORCHCORR_LOAD(3, out + next_sums + kSide, apart);
    }
  }
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const Axes3 of = unravel(row, {weights.channels, weights.window[0], weights.window[1]});
    const uint8_t* x = tile.row(of[0], at[0] + of[1], at[1] + of[2]) + at[2];
    for (int64_t i = 0; i < lines; ++i, band += 2 * kBand) {
      TORCHCORR_LOAD(4, x + i * kBytes, pitch);
      TORCHCORR_LOAD(6, band, kBytes);
      TORCHCORR_ADD(0, 4, 6);
      TORCHCORR_LOAD(7, band + kBand, kBytes);
      TORCHCORR_ADD(1, 4, 7);
      if constexpr (BOTH) {
        TORCHCORR_LOAD(5, x + next + i * kBytes, pitch);
        TORCHCORR_ADD(2, 5, 6);
        TORCHCORR_ADD(3, 5, 7);
      }
    }
  }
  TORCHCORR_STORE(0, out, apart);
  TORCHCORR_STORE(1, out + kSide, apart);
  if constexpr (BOTH) {
    TORCHCORR_STORE(2, out + next_sums, apart);
    TORCHCORR_STORE(3, out + next_sums + kSide, apart);
  }
}

Placement placement_of(const Tiling& t, const ByteTile& tile, const SumMap& out) {
  if (t.outputs[1] < kFewRows && columns_of(t) % kLine == 0) return {true, kBytes, kBytes, 1, kLine};
  return {false, t.stride[1] * tile.pitch, out.pitch, 2 * kSide, kBytes};
}

}  // namespace

bool has_matrix_tiles() {
  static const bool answer = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned tile = 1U << 24, of_bytes = 1U << 25;  // CPUID.7.0:EDX
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if ((d & tile) == 0 || (d & of_bytes) == 0) return false;
    constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
  }();
  return answer;
}

PackedTemplate pack_bands(const Tiling& t, const uint8_t* elements) {
  PackedTemplate packed;
  packed.channels = t.channels;
  packed.window = t.window;
  const int64_t width = t.window[2], rows = t.channels * t.window[0] * t.window[1];
  const int64_t most = lines_of(width, kShifts - 2);
  packed.groups = rows * lines_of(width, 0) * 2 * kBand;
  packed.numbers.reset(
      new int32_t[packed.groups + rows * most * 2 * kBand + kCacheLine / sizeof(int32_t)]);
  int32_t* bands = at_cache_line(packed.numbers.get());
  // A row between zeros. From each fourth of its bytes on, what a row of a band contains: the four
  // bytes there, then those one byte before them, and so on.
  std::vector<uint8_t> line(kBytes + most * kBytes);
  std::vector<int32_t> fours((1 + most) * kBytes / 4 * kSide);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < width; ++i) {
      line[kBytes + i] = static_cast<uint8_t>(elements[r * width + i] - 128);
    }
    for (size_t at = 4 * kSide; at < fours.size(); ++at) {
      std::memcpy(&fours[at], line.data() + at / kSide * 4 - at % kSide, sizeof(int32_t));
    }
    for (int64_t shift = 0; shift < kShifts; shift += 2) {
      const int64_t lines = lines_of(width, shift);
      int32_t* to = bands + shift / 2 * packed.groups + r * lines * 2 * kBand;
      for (int64_t i = 0; i < lines; ++i) {
        for (int64_t place = shift; place < shift + 2; ++place, to += kBand) {
          const int64_t first = ((i + 1) * kBytes - place * kSide) / 4;
          std::copy_n(fours.data() + first * kSide, kBand, to);
        }
      }
    }
  }
  return packed;
}

static void add_rows(const Tiling& t, const ByteTile& tile, const PackedTemplate& weights,
                     const TemplateRows& rows, SumMap& out) {
  const int64_t columns = (t.outputs[2] - 1) * t.stride[2] + 1;
  const Placement place = placement_of(t, tile, out);
  for (int64_t z = 0; z < t.outputs[0]; ++z) {
    for (int64_t y = 0; y < t.outputs[1]; y += place.rows) {
      int32_t* to = out.sums.get() + z * out.plane + y * out.pitch;
      const bool both = !place.in_line && t.outputs[1] - y > kSide;
      for (int64_t x = 0; x < columns; x += place.columns) {
        const Axes3 at{z * t.stride[0], y * t.stride[1], x};
        for (int64_t shift = 0; shift < kShifts; shift += 2) {
          if (!place.in_line && x + kSide * shift >= columns) break;
          int32_t* first = to + x + kSide * shift;
          if (both) {
            add_bands<true>(tile, weights, rows, at, shift, place, first, kSide * place.bytes,
                            kSide * place.sums);
          } else {
            add_bands<false>(tile, weights, rows, at, shift, place, first, 0, 0);
          }
        }
      }
    }
  }
}

void correlate_bands(const Tiling& t, const ByteTile& tile, const PackedTemplate& weights,
                     SumMap& out) {
  const Configured configured;
  const int64_t all = weights.channels * weights.window[0] * weights.window[1];
  const int64_t bytes = lines_of(weights.window[2], kShifts - 2) * kShifts * kBand * 4;
  const int64_t at_once = std::max<int64_t>(1, kCached / bytes);
  for (int64_t row = 0; row < all; row += at_once) {
    add_rows(t, tile, weights, {row, std::min(row + at_once, all)}, out);
  }
}

#else

bool has_matrix_tiles() { return false; }
PackedTemplate pack_bands(const Tiling&, const uint8_t*) { return {}; }
void correlate_bands(const Tiling&, const ByteTile&, const PackedTemplate&, SumMap&) {}

#endif

}  // namespace torchcorr::integer
