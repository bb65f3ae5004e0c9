// window_sum, its transpose window_spread, and window_moments.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "blocks.h"

namespace torchcorr::windows {
namespace {

template <class T>
void sum(const Tensor& input, const Frame& f, const Tensor& out) {
  T* to = static_cast<T*>(out.mutable_data_ptr());
  for_windows<false, T>(input, f, [&](int64_t at, int64_t n, const Summary& s, double) {
    for (int64_t i = 0; i < n; ++i) to[at + i] = static_cast<T>(s.mean[i]);
  });
}

Tensor window_sum(const Tensor& input, Sizes window, Sizes stride) {
  const Frame frame(shape_of(input), window, stride);
  const Tensor out = torch::stable::new_empty(input, map_shape(input, frame));
  if (out.numel() == 0) return out;
  const Tensor x = torch::stable::contiguous(input);
  is_double(input) ? sum<double>(x, frame, out) : sum<float>(x, frame, out);
  return out;
}

template <class T>
void spread(const Tensor& grad, const Frame& f, const Tensor& out) {
  const T* from = static_cast<const T*>(grad.const_data_ptr());
  T* to = static_cast<T*>(out.mutable_data_ptr());
  const int64_t plane = f.plane(), channel = f.size[0] * plane;
  for_blocks(f.items, f.size[0], f.block_rows(f.size[0]),
             [&](int64_t item, int64_t first, int64_t n) {
    const auto x = spread_block(from + item * Frame::numel(f.outputs), f, first, n);
    for (int64_t c = 0; c < f.channels; ++c) {
      T* row = to + (item * f.channels + c) * channel + first * plane;
      for (int64_t i = 0; i < n * plane; ++i) row[i] = static_cast<T>(x[i]);
    }
  });
}

Tensor window_spread(const Tensor& grad, Sizes window, Sizes input_shape, Sizes stride) {
  const Frame frame(input_shape, window, stride);
  const Tensor out = torch::stable::new_empty(grad, input_shape);
  if (out.numel() == 0) return out;
  const Tensor g = torch::stable::contiguous(grad);
  is_double(grad) ? spread<double>(g, frame, out) : spread<float>(g, frame, out);
  return out;
}

template <class T>
void moments(const Tensor& input, const Frame& f, const Tensor& mean, const Tensor& var) {
  double* to_mean = static_cast<double*>(mean.mutable_data_ptr());
  double* to_var = static_cast<double*>(var.mutable_data_ptr());
  const double share = 1 / f.count();
  for_windows<true, T>(input, f, [&](int64_t at, int64_t n, const Summary& s, double level) {
    for (int64_t i = 0; i < n; ++i) to_mean[at + i] = s.mean[i] + level;
    for (int64_t i = 0; i < n; ++i) to_var[at + i] = squares(s, i) * share;
  });
}

std::tuple<Tensor, Tensor> window_moments(const Tensor& input, Sizes window, Sizes stride) {
  const Frame frame(shape_of(input), window, stride);
  const Sizes shape = map_shape(input, frame);
  const Tensor mean = torch::stable::new_empty(input, shape, ScalarType::Double);
  const Tensor var = torch::stable::new_empty(input, shape, ScalarType::Double);
  if (mean.numel() > 0) {
    const Tensor x = torch::stable::contiguous(input);
    is_double(input) ? moments<double>(x, frame, mean, var) : moments<float>(x, frame, mean, var);
  }
  return {mean, var};
}

}  // namespace
}  // namespace torchcorr::windows

STABLE_TORCH_LIBRARY_IMPL(torchcorr, CPU, m) {
  m.impl("window_sum", TORCH_BOX(&torchcorr::windows::window_sum));
  m.impl("window_spread", TORCH_BOX(&torchcorr::windows::window_spread));
  m.impl("window_moments", TORCH_BOX(&torchcorr::windows::window_moments));
}
