// Rows of a contiguous image (lead, channel, axis 0, axis 1, axis 2) as summaries of its channels.
#pragma once

#include "window_engine.h"

namespace torchcorr {

template <class T, class Policy>
class ImageSource {
 public:
  ImageSource(const T* data, const Sizes& size, int64_t channels)
      : data_(data), channels_(channels) {
    for (size_t i = 0; i < size.size(); ++i) size_[3 - size.size() + i] = size[i];
    channel_size_ = size_[0] * size_[1] * size_[2];
  }

  void load(const Stretch& s, int64_t n, Rows to) const {
    const T* row = data_ + s.lead * channels_ * channel_size_ +
                   (s.z * size_[1] + s.y) * size_[2] + s.x;
    thread_local std::vector<double> buffer;
    if (static_cast<int64_t>(buffer.size()) < 2 * n) buffer.assign(2 * n, 0.0);
    for (int64_t c = 0; c < channels_; ++c, row += channel_size_) {
      double* value = c == 0 ? to.plane(0) : buffer.data();
      widen(s.valid, row, value);
      for (int64_t i = s.valid; i < n; ++i) value[i] = 0;
      if (c == 0 && Policy::planes > 1) std::fill_n(to.plane(1), n, 0.0);
      if (c > 0) {
        std::fill_n(buffer.data() + n, n, 0.0);
        Policy::merge(n, to, to, c, {value, n}, 1, 1.0);
      }
    }
  }

 private:
  const T* data_;
  int64_t size_[3] = {1, 1, 1};
  int64_t channels_, channel_size_;
};

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
