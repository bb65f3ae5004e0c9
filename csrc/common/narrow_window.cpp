#include "common/narrow_window.h"

#include <algorithm>
#include <cstring>

#include "common/targets.h"
#include "common/tiling.h"

namespace torchcorr {
namespace {

// Registers of sums, and vectors that they add before they are added up themselves.
constexpr int64_t kRegisters = 4, kVectorsAtOnce = 8 * kRegisters;
// Products of neighbours that a register adds by twos, and how often before it is added up.
constexpr int64_t kRun = 16, kRuns = 6;
// Rows of which elements are taken together.
constexpr int64_t kRows = 8;

// Of the vectors of this CPU.
int64_t narrow_lanes() { return kVectorBytes / static_cast<int64_t>(sizeof(float)); }

// Adds the elements of float32 vectors.
template <int BYTES>
TORCHCORR_INLINE void add_lanes(const Vector<float, BYTES>& sums, Wide<BYTES>& total) {
  constexpr int64_t lanes = lanes_of<double, BYTES>;
  float parts[2 * lanes];
  std::memcpy(parts, &sums, sizeof(parts));
  total += widened<BYTES>(parts) + widened<BYTES>(parts + lanes);
}

// Of one group, of a multiple of kRegisters vectors.
template <int BYTES>
TORCHCORR_INLINE NarrowTemplate::Sum sum_of_vectors(int64_t n, const float* x, float level,
                                                    const float* coefficients,
                                                    const int64_t* offsets) {
  using Vec = Vector<float, BYTES>;
  constexpr int64_t lanes = lanes_of<float, BYTES>;
  Wide<BYTES> products = {}, squares = {};
  for (int64_t begin = 0; begin < n; begin += kVectorsAtOnce) {
    const int64_t end = std::min(begin + kVectorsAtOnce, n);
    Vec sums[kRegisters] = {}, sizes[kRegisters] = {};
    for (int64_t i = begin; i < end; i += kRegisters) {
#pragma GCC unroll 4
      for (int64_t k = 0; k < kRegisters; ++k) {
        const Vec above = load<BYTES>(x + offsets[i + k]) - level;
        sums[k] += above * load<BYTES>(coefficients + (i + k) * lanes);
        sizes[k] += above * above;
      }
    }
    add_lanes<BYTES>((sums[0] + sums[1]) + (sums[2] + sums[3]), products);
    add_lanes<BYTES>((sizes[0] + sizes[1]) + (sizes[2] + sizes[3]), squares);
  }
  return {sum_of_lanes(products), sum_of_lanes(squares)};
}

TORCHCORR_FOR_CPUS(NarrowTemplate::Sum, sum_of_vectors,
                   (int64_t n, const float* x, float level, const float* coefficients,
                    const int64_t* offsets),
                   (n, x, level, coefficients, offsets))

// Sums of the neighbours, in the order of positions.
template <int BYTES>
struct Neighbours {
  static constexpr int64_t kVectors = kNeighbours / lanes_of<float, BYTES>;
  using Vec = Vector<float, BYTES>;

  double products[kNeighbours] = {}, squares[kNeighbours] = {};
  Vec some[kVectors] = {};  // products that were not added to the others yet
  int64_t runs = 0;

  TORCHCORR_INLINE void fold() {
    float sums[kNeighbours];
    std::memcpy(sums, some, sizeof(sums));
    for (int64_t i = 0; i < kNeighbours; ++i) products[i] += static_cast<double>(sums[i]);
    for (int64_t k = 0; k < kVectors; ++k) some[k] = Vec{};
    runs = 0;
  }

  // Adds the products of a row of at most kRun coefficients, in two registers a vector.
  TORCHCORR_INLINE void add_run(int64_t n, const float* row, const float* w) {
    constexpr int64_t lanes = lanes_of<float, BYTES>;
    Vec even[kVectors] = {}, odd[kVectors] = {};
    int64_t i = 0;
    for (; i + 2 <= n; i += 2) {
#pragma GCC unroll 8
      for (int64_t k = 0; k < kVectors; ++k) {
        even[k] += load<BYTES>(row + i + k * lanes) * w[i];
        odd[k] += load<BYTES>(row + i + 1 + k * lanes) * w[i + 1];
      }
    }
#pragma GCC unroll 8
    for (int64_t k = 0; k < kVectors; ++k) {
      if (i < n) even[k] += load<BYTES>(row + i + k * lanes) * w[i];
      some[k] += even[k] + odd[k];
    }
    if (++runs == kRuns) fold();
  }

  // Adds the squares of all windows, from those of the columns that they see.
  TORCHCORR_INLINE void add_squares(int64_t n, const float* columns) {
    constexpr int64_t lanes = lanes_of<float, BYTES>;
    float sums[kNeighbours];
    for (int64_t k = 0; k < kVectors; ++k) {
      Vec total = {};
      for (int64_t i = 0; i < n; ++i) total += load<BYTES>(columns + i + k * lanes);
      std::memcpy(sums + k * lanes, &total, sizeof(total));
    }
    for (int64_t i = 0; i < kNeighbours; ++i) squares[i] += static_cast<double>(sums[i]);
  }
};

// Of one plane of the windows. `columns` has a place for each element of a row, `above` for those of
// kRows of them: what was just stored cannot be read at other places without waiting.
template <int BYTES>
TORCHCORR_INLINE void add_plane(const ExactWindow& by, const float* x, float level, const float* w,
                                float* above, float* columns, Neighbours<BYTES>& to) {
  using Vec = Vector<float, BYTES>;
  constexpr int64_t lanes = lanes_of<float, BYTES>;
  const int64_t n = by.window[2], all = n + kNeighbours - 1;
  const int64_t last = all - lanes;  // where the last vector of a row begins
  std::fill_n(columns, all, 0.0f);
  for (int64_t first = 0; first < by.window[1]; first += kRows) {
    const int64_t rows = std::min(kRows, by.window[1] - first);
    for (int64_t y = 0; y < rows; ++y, x += by.strides.row) {
      for (int64_t i = 0; i < all; i += lanes) {
        const int64_t at = std::min(i, last);
        const Vec v = load<BYTES>(x + at) - level;
        std::memcpy(above + y * all + at, &v, sizeof(v));
      }
    }
    const Vec before_last = load<BYTES>(columns + last);
    for (int64_t i = 0; i < all; i += lanes) {
      const int64_t at = std::min(i, last);
      Vec sum = at == last ? before_last : load<BYTES>(columns + at);
      for (int64_t y = 0; y < rows; ++y) {
        const Vec v = load<BYTES>(above + y * all + at);
        sum += v * v;
      }
      std::memcpy(columns + at, &sum, sizeof(sum));
    }
    for (int64_t y = 0; y < rows; ++y, w += n) {
      for (int64_t i = 0; i < n; i += kRun) {
        to.add_run(std::min(kRun, n - i), above + y * all + i, w + i);
      }
    }
  }
  to.add_squares(n, columns);
}

template <int BYTES>
TORCHCORR_INLINE void sums_of_neighbours(const ExactWindow& by, const float* x,
                                         const double* levels, const float* coefficients,
                                         NarrowTemplate::Sum* out) {
  const int64_t all = by.window[2] + kNeighbours - 1, plane = by.window[1] * by.window[2];
  std::vector<float> lines((kRows + 1) * all);
  Neighbours<BYTES> sums;
  for (int64_t i = 0; i < by.channels * by.window[0]; ++i) {
    const int64_t c = i / by.window[0], z = i % by.window[0];
    const float level = static_cast<float>(levels[by.own_means ? c : 0]);
    add_plane<BYTES>(by, x + c * by.strides.channel + z * by.strides.plane, level,
                     coefficients + i * plane, lines.data() + all, lines.data(), sums);
  }
  sums.fold();
  for (int64_t i = 0; i < kNeighbours; ++i) out[i] = {sums.products[i], sums.squares[i]};
}

TORCHCORR_FOR_CPUS(void, sums_of_neighbours,
                   (const ExactWindow& by, const float* x, const double* levels,
                    const float* coefficients, NarrowTemplate::Sum* out),
                   (by, x, levels, coefficients, out))

}  // namespace

NarrowTemplate::NarrowTemplate(const double* coefficients, const ExactWindow& by) : by_(by) {
  const int64_t lanes = narrow_lanes(), n = by.window[2];
  if (n < lanes) return;
  const int64_t vectors = ceil_div(n, lanes), groups = by.groups();
  const int64_t rows = by.channels * by.window[0] * by.window[1], rows_each = rows / groups;
  const int64_t of_group = rows_each * vectors;
  const int64_t whole = ceil_div(of_group, kRegisters) * kRegisters;
  coefficients_.assign(coefficients, coefficients + rows * n);
  vectors_.assign(groups * whole * lanes, 0.0f);
  offsets_.assign(groups * whole, 0);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t plane = row / by.window[1];
    const int64_t first = plane / by.window[0] * by.strides.channel +
                          plane % by.window[0] * by.strides.plane +
                          row % by.window[1] * by.strides.row;
    for (int64_t v = 0; v < vectors; ++v) {
      // The last vector of a row begins early enough; what the one before it had counts once.
      const int64_t begin = std::min(v * lanes, n - lanes), seen = v * lanes - begin;
      const int64_t at = row / rows_each * whole + row % rows_each * vectors + v;
      offsets_[at] = first + begin;
      std::copy_n(coefficients_.data() + row * n + begin + seen, lanes - seen,
                  vectors_.data() + at * lanes + seen);
    }
  }
  // What fills the last registers are elements of the group, with coefficients of 0.
  for (int64_t group = 0; group < groups; ++group) {
    int64_t* of = offsets_.data() + group * whole;
    std::fill(of + of_group, of + whole, of[0]);
  }
}

NarrowTemplate::Sum NarrowTemplate::sum_of_window(const float* x, const double* levels) const {
  const int64_t groups = by_.groups(), each = static_cast<int64_t>(offsets_.size()) / groups;
  const int64_t lanes = narrow_lanes();
  Sum all{0, 0};
  for (int64_t g = 0; g < groups; ++g) {
    const float level = static_cast<float>(levels[g]);
    const Sum sum = sum_of_vectors(each, x, level, vectors_.data() + g * each * lanes,
                                   offsets_.data() + g * each);
    all.products += sum.products, all.squares += sum.squares;
  }
  return all;
}

void NarrowTemplate::sums_of_windows(const float* x, const double* levels, Sum* out) const {
  sums_of_neighbours(by_, x, levels, coefficients_.data(), out);
}

}  // namespace torchcorr
