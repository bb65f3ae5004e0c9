// How windows lie on an image, and the units that their summaries are computed in.
#pragma once

#include <algorithm>

#include "common/axes.h"
#include "windows/march.h"

namespace torchcorr {

constexpr int64_t kScratchBytes = 512 << 10;
// Elements of a window from which on those of a line are summarised one after the other.
constexpr int64_t kLongWindow = 1 << 13;

// How windows lie on an image (lead, channel, axis 0, axis 1, axis 2), and the units of work that
// they are divided into. Missing axes in front have one element.
struct WindowLayout {
  int64_t leads = 1, channels = 1, segments = 1;
  bool lines = false;  // one-dimensional: axis 1 counts the segments of all lines
  bool is_long = false;  // lines whose segments are a block of windows, and a unit each
  WindowAxis axis[3];
  int64_t line_size = 0, line_count = 0;
  int64_t strip = 1, strips = 1;  // outputs of one unit along the last axis
  int64_t rows = 1, row_units = 1, depth_units = 1;

  template <class Policy>
  WindowLayout(int64_t lead_count, int64_t channel_count, const Sizes& size, const Sizes& window,
               const Sizes& step, Policy)
      : leads(lead_count), channels(channel_count) {
    const int ndim = static_cast<int>(window.size());
    for (int i = 0; i < ndim; ++i) {
      WindowAxis& a = axis[3 - ndim + i];
      a.size = size[i], a.window = window[i], a.step = step[i];
      STD_TORCH_CHECK(a.window >= 1 && a.step >= 1, "window and stride must be at least 1");
      STD_TORCH_CHECK(a.size >= a.window, "window is larger than input along axis ", i - ndim,
                      ": got ", a.window, ", input has ", a.size);
      a.count = (a.size - a.window) / a.step + 1;
    }
    for (WindowAxis& a : axis) set_block(a);
    cut(Policy::planes * static_cast<int64_t>(sizeof(double)));
    if (ndim == 1) cut_lines(merges_ones<Policy>);
  }

  int64_t outputs() const {
    return lines ? leads * line_count : leads * axis[0].count * axis[1].count * axis[2].count;
  }
  int64_t unit_outputs() const { return ceil_div(outputs(), units()) + 1; }
  int64_t units() const { return strips * (lines ? 1 : leads) * depth_units * row_units; }

 private:
  static void set_block(WindowAxis& a) {
    const int64_t span = (a.count - 1) * a.step + 1;
    a.block = ceil_div(span, ceil_div(span, a.window));
  }

  void cut(int64_t bytes) {
    const int64_t per_block = (axis[1].block - 1) / axis[1].step + 1;
    rows = std::min(per_block * ceil_div(kLanes, per_block), axis[1].count);
    row_units = ceil_div(axis[1].count, rows);
    depth_units = ceil_div(axis[0].count, (axis[0].block - 1) / axis[0].step + 1);
    const int64_t tall = (rows - 1) * axis[1].step + axis[1].window;
    const int64_t deep = axis[0].window > 1 ? (axis[0].block + 2) * tall : 0;
    const int64_t fit = kScratchBytes / bytes / (deep + axis[1].block + 2 * kLanes);
    const int64_t wide = std::max({fit, 4 * axis[2].window, int64_t{64}});
    const int64_t most = std::max<int64_t>(1, (wide - axis[2].window) / axis[2].step + 1);
    strips = ceil_div(axis[2].count, most);
    strip = ceil_div(axis[2].count, strips);
  }

  // The strips of a line become rows, so that the lanes are filled.
  void cut_lines(bool may_be_long) {
    lines = true;
    line_size = axis[2].size, line_count = axis[2].count;
    is_long = may_be_long && axis[2].window >= kLongWindow;
    if (is_long) strip = (axis[2].block - 1) / axis[2].step + 1;
    segments = ceil_div(line_count, strip);
    axis[1].count = axis[1].size = leads * segments;
    axis[2].count = strip;
    axis[2].size = (strip - 1) * axis[2].step + axis[2].window;
    strips = 1;
    rows = is_long ? 1 : kLanes;
    row_units = ceil_div(axis[1].count, rows);
  }
};

// A stretch of one row: where it lies in the image (or map), and how many elements exist.
struct Stretch {
  int64_t lead, z, y, x, valid;
};

inline Stretch locate(const WindowLayout& layout, int64_t lead, int64_t z, int64_t y, int64_t x,
                      int64_t n, bool output) {
  if (!layout.lines) return {lead, z, y, x, n};
  const int64_t segment = y % layout.segments;
  const int64_t at = x + segment * layout.strip * (output ? 1 : layout.axis[2].step);
  const int64_t left = (output ? layout.line_count : layout.line_size) - at;
  return {y / layout.segments, 0, 0, at, std::clamp<int64_t>(left, 0, n)};
}

}  // namespace torchcorr
