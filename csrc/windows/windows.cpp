// Sums and moments of windows, and the transposes that spread gradients back over them.

#include <cmath>

#include "tiles/steps.h"
#include "common/large_pages.h"
#include "windows/images.h"
#include "windows/spread.h"

namespace torchcorr {
namespace {

TORCHCORR_CLONES void write_moments(int64_t n, const double* mean, const double* m2, double count,
                                    double* mean_out, double* var_out) {
  for (int64_t i = 0; i < n; ++i) {
    mean_out[i] = mean[i];
    var_out[i] = m2[i] / count;
  }
}

struct MomentsSink {
  static constexpr int first_plane = 0;

  const WindowLayout& layout;
  double count;
  double *mean, *var;

  void store(const Stretch& s, Rows r) const {
    const int64_t at = map_offset(layout, s);
    write_moments(s.valid, r.plane(0), r.plane(1), count, mean + at, var + at);
  }
};

template <class T>
struct SumSink {
  static constexpr int first_plane = 0;

  const WindowLayout& layout;
  T* out;

  void store(const Stretch& s, Rows r) const {
    T* to = out + map_offset(layout, s);
    for (int64_t i = 0; i < s.valid; ++i) to[i] = static_cast<T>(r.plane(0)[i]);
  }
};

template <class T>
struct SpreadSink {
  static constexpr int first_plane = 0;

  const WindowLayout& layout;
  int64_t channels, channel_size;
  T* out;

  void store(const Stretch& s, Rows r) const {
    const int64_t at = map_offset(layout, s) + s.lead * (channels - 1) * channel_size;
    for (int64_t c = 0; c < channels; ++c) {
      T* to = out + at + c * channel_size;
      for (int64_t i = 0; i < s.valid; ++i) to[i] = static_cast<T>(r.plane(0)[i]);
    }
  }
};

template <class T>
struct CombineSink {
  static constexpr int first_plane = 0;

  const WindowLayout& layout;
  int64_t channels, channel_size;
  const T* input;
  T* out;

  void store(const Stretch& s, Rows r) const {
    const int64_t at = map_offset(layout, s) + s.lead * (channels - 1) * channel_size;
    for (int64_t c = 0; c < channels; ++c) {
      const T* from = input + at + c * channel_size;
      T* to = out + at + c * channel_size;
      for (int64_t i = 0; i < s.valid; ++i) {
        to[i] = static_cast<T>(r.plane(0)[i] + 2 * static_cast<double>(from[i]) * r.plane(1)[i]);
      }
    }
  }
};

Tensor window_sum(const Tensor& input, Sizes window, Sizes stride) {
  if (is_half(input)) return in_type_of(input, window_sum(in_float32(input), window, stride));
  const ImageShape shape(sizes_of(input), window.size());
  const WindowLayout layout(shape.leads, shape.channels, shape.size, window, stride, Sums<1>{});
  Tensor out = new_map(input, shape.output(layout));
  if (out.numel() == 0) return out;
  const Tensor image = packed(input);
  with_real_type(image, "input", [&](auto zero) {
    using T = decltype(zero);
    const ImageSource<T, Sums<1>> source{{image.const_data_ptr<T>()}, ImageStrides(shape)};
    run_windows<Sums<1>>(layout, source, SumSink<T>{layout, out.mutable_data_ptr<T>()});
  });
  return out;
}

}  // namespace

std::tuple<Tensor, Tensor> window_moments(const Tensor& input, Sizes window, Sizes stride) {
  if (is_half(input)) return window_moments(in_float32(input), window, stride);
  const ImageShape shape(sizes_of(input), window.size());
  const WindowLayout layout(shape.leads, shape.channels, shape.size, window, stride, Moments{});
  const Sizes output = shape.output(layout);
  Tensor mean = new_float64(output), var = new_float64(output);
  if (mean.numel() == 0) return {mean, var};
  const double count = window_elements(shape, window);
  const Tensor image = packed(input);
  with_real_type(image, "input", [&](auto zero) {
    using T = decltype(zero);
    const ImageSource<T, Moments> source{{image.const_data_ptr<T>()}, ImageStrides(shape)};
    run_windows<Moments>(layout, source,
                         MomentsSink{layout, count, mean.mutable_data_ptr<double>(),
                                     var.mutable_data_ptr<double>()});
  });
  return {mean, var};
}

namespace {

// Checks that a gradient has the shape of the windows' map.
void check_map(const Tensor& grad, const ImageShape& shape, const Sizes& window,
               const Sizes& stride) {
  Sizes expected = shape.lead;
  for (size_t i = 0; i < window.size(); ++i) {
    expected.push_back((shape.size[i] - window[i]) / stride[i] + 1);
  }
  STD_TORCH_CHECK(sizes_of(grad) == expected, "grad must have the shape of the windows' map");
}

Tensor window_spread(const Tensor& grad, Sizes window, Sizes input_shape, Sizes stride) {
  if (is_half(grad)) {
    return in_type_of(grad, window_spread(in_float32(grad), window, input_shape, stride));
  }
  const ImageShape shape(input_shape, window.size());
  const WindowLayout layout = spread_layout(shape.leads, shape.size, window, Sums<1>{});
  check_map(grad, shape, window, stride);
  Tensor out = new_map(grad, input_shape);
  if (out.numel() == 0) return out;
  const Tensor from = packed(grad);
  with_real_type(from, "grad", [&](auto zero) {
    using T = decltype(zero);
    const SpreadSource<T, 1> source({from.const_data_ptr<T>()},
                                    sizes_of(last_sizes(from, shape.ndim()), shape.ndim()), window,
                                    stride);
    const SpreadSink<T> sink{layout, shape.channels, product(last_axes(shape.size)),
                             out.mutable_data_ptr<T>()};
    run_windows<Sums<1>>(layout, source, sink);
  });
  return out;
}

Tensor local_std_combine_grads_kernel(const Tensor& grad_s1, const Tensor& grad_s2,
                                      const Tensor& input, Sizes window, Sizes stride) {
  if (is_half(input)) {
    return in_type_of(
        input, local_std_combine_grads_kernel(grad_s1, grad_s2, in_float32(input), window, stride));
  }
  const ImageShape shape(sizes_of(input), window.size());
  const WindowLayout layout = spread_layout(shape.leads, shape.size, window, Sums<2>{});
  check_map(grad_s1, shape, window, stride);
  check_map(grad_s2, shape, window, stride);
  const Tensor image = packed(input), first = packed(grad_s1), second = packed(grad_s2);
  Tensor out = new_map(image, sizes_of(input));
  if (out.numel() == 0) return out;
  const SpreadSource<double, 2> source(
      {first.const_data_ptr<double>(), second.const_data_ptr<double>()},
      sizes_of(last_sizes(first, shape.ndim()), shape.ndim()), window, stride);
  with_real_type(image, "input", [&](auto zero) {
    using T = decltype(zero);
    const CombineSink<T> sink{layout, shape.channels, product(last_axes(shape.size)),
                              image.const_data_ptr<T>(), out.mutable_data_ptr<T>()};
    run_windows<Sums<2>>(layout, source, sink);
  });
  return out;
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr, CPU, m) {
  m.impl("window_sum", TORCH_BOX(&torchcorr::window_sum));
  m.impl("window_spread", TORCH_BOX(&torchcorr::window_spread));
  m.impl("window_moments", TORCH_BOX(&torchcorr::window_moments));
  m.impl("window_combine", TORCH_BOX(&torchcorr::local_std_combine_grads_kernel));
}
