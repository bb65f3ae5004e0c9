// Sums and moments of sliding windows, one axis after another, at one cost for every window.
//
// Along an axis cut into blocks of the window's length, each window is the suffix of one block and
// the prefix of the next (van Herk; Gil and Werman). Sums of parts are added, never subtracted, and
// moments are (mean, sum of squared deviations) summaries merged by Chan's formula: nothing
// cancels, equal elements give exactly 0, and an element reaches only the windows that hold it.

#pragma once

#include <cstdint>
#include <vector>

namespace torchcorr::windows {

constexpr int64_t kLanes = 16;

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TORCHCORR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TORCHCORR_CLONES
#endif

// One axis of a tensor seen as (outer, length, inner).
struct Axis {
  int64_t outer, length, inner;
};

// How windows lie on an axis. A spread (the transpose of a sum) is a sum as well, over the
// gradient dilated by the stride and padded by a window less one.
struct Slide {
  int64_t window, step, outputs, pad = 0, dilation = 1;

  static Slide forward(int64_t window, int64_t stride, int64_t outputs) {
    return {window, stride, outputs};
  }
  static Slide spread(int64_t window, int64_t stride, int64_t outputs) {
    return {window, 1, outputs, window - 1, stride};
  }
  int64_t reach() const { return (outputs - 1) * step + window; }
};

// Summaries of the elements of a tensor: each stands for `count` input elements. Sums keep only
// `mean` (which then holds the sum); `m2` is empty where all deviations are still 0.
struct Summary {
  std::vector<double> mean, m2;
  double count = 1;
};

// Slides windows along one axis.
Summary slide_moments(const Summary& x, const Axis& axis, const Slide& slide);
std::vector<double> slide_sums(const std::vector<double>& x, const Axis& axis, const Slide& slide);

}  // namespace torchcorr::windows
