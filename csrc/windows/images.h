// Rows of contiguous images (lead, channel, axis 0, axis 1, axis 2) as summaries of their channels.
#pragma once

#include "windows/engine.h"

namespace torchcorr {

// (*lead, C, *S) taken apart.
struct Shape {
  Sizes lead, size;
  int64_t leads = 1, channels = 1;

  Shape(const Sizes& shape, size_t ndim) {
    STD_TORCH_CHECK(ndim >= 1 && ndim <= 3, "window must have 1 to 3 axes, got ", ndim);
    STD_TORCH_CHECK(shape.size() > ndim, "input has too few axes: got ", shape.size(),
                    ", a window of ", ndim, " axes needs ", ndim + 1);
    const size_t batch = shape.size() - ndim - 1;
    lead.assign(shape.begin(), shape.begin() + batch);
    size.assign(shape.end() - ndim, shape.end());
    channels = shape[batch];
    for (int64_t n : lead) leads *= n;
  }

  Sizes output(const Plan& plan) const {
    Sizes out = lead;
    for (size_t i = 0; i < size.size(); ++i) {
      const size_t axis = 3 - size.size() + i;
      out.push_back(axis == 2 && plan.lines ? plan.line_count : plan.axis[axis].count);
    }
    return out;
  }
};

// A window's elements, those of all channels.
inline double window_elements(const Shape& shape, const Sizes& window) {
  double count = static_cast<double>(shape.channels);
  for (int64_t k : window) count *= static_cast<double>(k);
  return count;
}

// Where rows of an image lie.
struct Layout {
  int64_t lead, channel, channels, plane, row;

  explicit Layout(const Shape& shape) : channels(shape.channels) {
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
  Layout layout;

  void load(const Stretch& s, int64_t n, Rows to) const {
    const int64_t from = layout.at(s);
    thread_local std::vector<double> memory;
    if (static_cast<int64_t>(memory.size()) < Policy::planes * n) {
      memory.assign(Policy::planes * n, 0.0);
    }
    for (int64_t c = 0; c < layout.channels; ++c) {
      const Rows own = c == 0 ? to : Rows{memory.data(), n};
      for (int i = 0; i < N; ++i) {
        widen(s.valid, images[i] + from + c * layout.channel, own.plane(i));
        std::fill_n(own.plane(i) + s.valid, n - s.valid, 0.0);
      }
      for (int p = N; p < Policy::planes; ++p) std::fill_n(own.plane(p), n, 0.0);
      if (c > 0) Policy::merge(n, to, to, c, own, 1, 1.0);
    }
  }
};

inline Sizes sizes_of(const Tensor& x) {
  const auto sizes = x.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

// Where a stretch of the map begins in a contiguous output of the plan.
inline int64_t map_offset(const Plan& plan, const Stretch& s) {
  if (plan.lines) return s.lead * plan.line_count + s.x;
  return ((s.lead * plan.axis[0].count + s.z) * plan.axis[1].count + s.y) * plan.axis[2].count +
         s.x;
}

}  // namespace torchcorr
