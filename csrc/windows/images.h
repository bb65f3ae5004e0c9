// Rows of contiguous images (lead, channel, axis 0, axis 1, axis 2) as summaries of their channels.
#pragma once

#include "common/axes.h"
#include "windows/engine.h"

namespace torchcorr {

// The parts of a shape (*lead, C, *size).
struct ImageShape {
  Sizes lead, size;
  int64_t leads = 1, channels = 1;

  ImageShape(const Sizes& shape, size_t ndim) {
    STD_TORCH_CHECK(ndim >= 1 && ndim <= 3, "window must have 1 to 3 axes, got ", ndim);
    STD_TORCH_CHECK(shape.size() > ndim, "input has too few axes: got ", shape.size(),
                    ", a window of ", ndim, " axes needs ", ndim + 1);
    const size_t batch = shape.size() - ndim - 1;
    lead.assign(shape.begin(), shape.begin() + batch);
    size.assign(shape.end() - ndim, shape.end());
    channels = shape[batch];
    for (int64_t n : lead) leads *= n;
  }

  int64_t ndim() const { return static_cast<int64_t>(size.size()); }

  Sizes output(const WindowLayout& layout) const {
    Sizes out = lead;
    for (size_t i = 0; i < size.size(); ++i) {
      const size_t axis = 3 - size.size() + i;
      out.push_back(axis == 2 && layout.lines ? layout.line_count : layout.axis[axis].count);
    }
    return out;
  }
};

// A window's elements, those of all channels.
inline double window_elements(const ImageShape& shape, const Sizes& window) {
  double count = static_cast<double>(shape.channels);
  for (int64_t k : window) count *= static_cast<double>(k);
  return count;
}

// Where rows of an image lie.
struct ImageStrides {
  int64_t lead, channel, channels, plane, row;

  explicit ImageStrides(const ImageShape& shape) : channels(shape.channels) {
    const size_t ndim = shape.size.size();
    row = ndim > 1 ? shape.size[ndim - 1] : 0;
    plane = ndim > 2 ? shape.size[1] * row : 0;
    channel = 1;
    for (int64_t n : shape.size) channel *= n;
    lead = channels * channel;
  }

  int64_t at(const Stretch& s) const { return s.lead * lead + s.z * plane + s.y * row + s.x; }
};

// The elements of N images are the first planes of their summaries; the others begin at zero.
template <class T, class Policy, int N = 1>
struct ImageSource {
  const T* images[N];
  ImageStrides strides;

  void load(const Stretch& s, int64_t n, Rows to) const {
    const int64_t from = strides.at(s);
    thread_local std::vector<double> memory;
    if (static_cast<int64_t>(memory.size()) < Policy::planes * n) {
      memory.assign(Policy::planes * n, 0.0);
    }
    for (int64_t c = 0; c < strides.channels; ++c) {
      const Rows channel = c == 0 ? to : Rows{memory.data(), n};
      for (int i = 0; i < N; ++i) {
        widen(s.valid, images[i] + from + c * strides.channel, channel.plane(i));
        std::fill_n(channel.plane(i) + s.valid, n - s.valid, 0.0);
      }
      for (int p = N; p < Policy::planes; ++p) std::fill_n(channel.plane(p), n, 0.0);
      if (c > 0) Policy::merge(n, to, to, c, channel, 1, 1.0);
    }
  }
};

inline Sizes sizes_of(const Tensor& x) {
  const auto sizes = x.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

// Where a stretch of the map begins in a contiguous output of the layout.
inline int64_t map_offset(const WindowLayout& layout, const Stretch& s) {
  if (layout.lines) return s.lead * layout.line_count + s.x;
  return ((s.lead * layout.axis[0].count + s.z) * layout.axis[1].count + s.y) *
             layout.axis[2].count +
         s.x;
}

}  // namespace torchcorr
