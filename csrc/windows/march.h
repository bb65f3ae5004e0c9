// A march along one axis that summarises its windows in O(1) merges an element: each window is a
// suffix of one block merged with a prefix of what follows (van Herk; Gil and Werman). Only a
// window's elements enter its summary, so a NaN stays in the windows that contain it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "common/tensors.h"

namespace torchcorr {

constexpr int64_t kLanes = 16;  // rows that are marched along together on the last axis

struct WindowAxis {
  int64_t size = 1, window = 1, step = 1, count = 1;
  int64_t block = 1;  // positions of one block, at most the window
};

// Rows of numbers, one plane for each number of a summary: means and squares, or sums.
struct Rows {
  double* first = nullptr;
  int64_t pitch = 0;  // from one plane to the next

  double* plane(int p) const { return first + p * pitch; }
  Rows at(int64_t offset) const { return {first + offset, pitch}; }
};

// Windows [first, last) of an axis. Calls suffix(element, slot, elements), which extends the suffix
// of the block by the element before it and keeps it in a slot; prefix(element, elements), which
// extends the prefix by the element after it; and emit(window, slot, elements of the suffix,
// elements of the prefix).
template <class Suffix, class Prefix, class Emit>
TORCHCORR_INLINE void window_march(const WindowAxis& a, int64_t first, int64_t last,
                                   const Suffix& suffix, const Prefix& prefix, const Emit& emit) {
  for (int64_t i = first; i < last;) {
    const int64_t origin = i * a.step;
    const int64_t more = std::min(last - 1 - i, (a.block - 1) / a.step);
    const int64_t slots = more * a.step + 1;
    for (int64_t k = 1; k <= slots; ++k) suffix(origin + slots - k, slots - k, k);
    int64_t added = 0;
    for (int64_t j = 0; j <= more; ++j) {
      const int64_t needed = j * a.step + a.window - slots;
      for (; added < needed; ++added) prefix(origin + slots + added, added + 1);
      emit(i + j, j * a.step, slots - j * a.step, added);
    }
    i += more + 1;
  }
}

// The numbers of one summary.
template <int N>
using Summary = std::array<double, N>;

// Whether a policy merges single summaries too, as long lines ask for.
template <class Policy>
constexpr bool merges_ones =
    requires(Summary<Policy::planes> one) { Policy::merge_one(one, 1.0, one, 1.0, 1.0); };

// Elementwise over n numbers: out = a with b added, where a has na and b has nb parts of
// `weight` elements each. `out` may be a or b.
struct Moments {
  static constexpr int planes = 2;
  static void merge(int64_t n, Rows out, Rows a, double na, Rows b, double nb, double weight);
  TORCHCORR_INLINE static Summary<2> merge_one(const Summary<2>& a, double na, const Summary<2>& b,
                                               double nb, double weight) {
    const double share = nb / (na + nb), d = b[0] - a[0];
    return {a[0] + d * share, a[1] + (b[1] + d * d * (weight * na * share))};
  }
  // The mean minus itself is NaN where an element was infinite, and 0 elsewhere.
  static void mark_non_finite(Summary<2>& of) { of[1] += of[0] - of[0]; }
  // Lane-interleaved windows: numbers of column x are at [x * kLanes, (x + 1) * kLanes).
  static void windows(const WindowAxis& axis, int64_t count, double weight, Rows in, Rows suffix,
                      Rows out);
};

// Of two images: both means, both sums of squares about them, and that of their products. With
// `Fine`, for float64, also what rounding took from either mean.
template <bool Fine>
struct CoMoments {
  static constexpr int planes = Fine ? 7 : 5;
  static void merge(int64_t n, Rows out, Rows a, double na, Rows b, double nb, double weight);
  static void windows(const WindowAxis& axis, int64_t count, double weight, Rows in, Rows suffix,
                      Rows out);
};

template <int N>
struct Sums {
  static constexpr int planes = N;
  static void merge(int64_t n, Rows out, Rows a, double na, Rows b, double nb, double weight);
  TORCHCORR_INLINE static Summary<N> merge_one(Summary<N> a, double, const Summary<N>& b, double,
                                               double) {
    for (int p = 0; p < N; ++p) a[p] += b[p];
    return a;
  }
  static void mark_non_finite(Summary<N>&) {}
  static void windows(const WindowAxis& axis, int64_t count, double weight, Rows in, Rows suffix,
                      Rows out);
};

// (kLanes rows of n) to (n columns of kLanes) and back.
void interleave(int64_t n, const double* const rows[kLanes], double* out);
void separate(int64_t n, const double* in, double* const rows[kLanes]);

void widen(int64_t n, const float* in, double* out);
void widen(int64_t n, const double* in, double* out);

}  // namespace torchcorr
