// Maps of windows spread over the windows' elements, as windows over a dilated map.
#pragma once

#include <algorithm>

#include "common/vectors.h"
#include "windows/engine.h"

namespace torchcorr {

// A map with zeros between its values and around them: the windows that contain an element are then
// the window of that size that begins at it.
template <class T, int N>
class SpreadSource {
 public:
  // `skipped`: elements before the first that is asked for, minus elements before the first window
  // of the map, along the first axis. `pitch` is from one lead of a map to the next.
  SpreadSource(const T* const (&data)[N], const Sizes& count, const Sizes& window,
               const Sizes& step, int64_t skipped = 0, int64_t pitch = 0)
      : pitch_(pitch) {
    for (int p = 0; p < N; ++p) data_[p] = data[p];
    const size_t front = 3 - count.size();
    for (size_t i = 0; i < count.size(); ++i) {
      Line& a = axis_[front + i];
      a.count = count[i], a.step = step[i];
      a.shift = window[i] - 1 - (i == 0 ? skipped : 0);
    }
    if (pitch == 0) pitch_ = axis_[0].count * axis_[1].count * axis_[2].count;
  }

  void load(const Stretch& s, int64_t n, Rows to) const {
    const int64_t z = axis_[0].index(s.z), y = axis_[1].index(s.y);
    if (z < 0 || y < 0) return fill(0, n, to);
    const Line& a = axis_[2];
    const int64_t from = s.lead * pitch_ + (z * axis_[1].count + y) * a.count;
    const int64_t shift = a.shift - s.x;
    const int64_t first = std::max<int64_t>(0, ceil_div(std::max<int64_t>(0, -shift), a.step));
    const int64_t left = s.valid - 1 - shift;
    const int64_t behind = left < 0 ? 0 : std::min(a.count - 1, left / a.step) + 1;
    if (a.step == 1 && first < behind) {
      fill(0, first + shift, to);
      for (int p = 0; p < N; ++p) {
        const T* row = data_[p] + from + first;
        prefetch(behind - first, row + a.count);
        widen(behind - first, row, to.plane(p) + first + shift);
      }
      return fill(behind + shift, n, to);
    }
    fill(0, n, to);
    for (int p = 0; p < N; ++p) {
      for (int64_t u = first; u < behind; ++u) {
        to.plane(p)[u * a.step + shift] = static_cast<double>(data_[p][from + u]);
      }
    }
  }

 private:
  struct Line {
    int64_t count = 1, step = 1, shift = 0;

    // Index of the value at a position; -1 where there is none.
    int64_t index(int64_t position) const {
      const int64_t at = position - shift;
      return at < 0 || at % step != 0 || at / step >= count ? -1 : at / step;
    }
  };

  static void fill(int64_t begin, int64_t end, Rows to) {
    for (int p = 0; p < N; ++p) std::fill(to.plane(p) + begin, to.plane(p) + end, 0.0);
  }

  const T* data_[N];
  Line axis_[3];
  int64_t pitch_;
};

// Windows of a spread: stride one over the map dilated and padded by window - 1.
template <class Policy>
WindowLayout spread_layout(int64_t leads, const Sizes& size, const Sizes& window, Policy policy) {
  Sizes padded = size;
  for (size_t i = 0; i < window.size(); ++i) padded[i] += window[i] - 1;
  return WindowLayout(leads, 1, padded, window, Sizes(window.size(), 1), policy);
}

}  // namespace torchcorr
