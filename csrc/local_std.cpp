// The local deviation in three fused steps: sums to map, gradient to the gradients of the sums, and
// those to the gradient of the input.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "blocks.h"

namespace torchcorr::windows {
namespace {

template <class T>
void deviations(const Tensor& input, const Frame& f, double correction, double eps,
                const Tensor& out) {
  T* to = static_cast<T*>(out.mutable_data_ptr());
  const double share = 1 / (f.count() - correction);
  for_windows<true, T>(input, f, [&](int64_t at, int64_t n, const Summary& s, double) {
    for (int64_t i = 0; i < n; ++i) {
      to[at + i] = static_cast<T>(std::sqrt(squares(s, i) * share + eps));
    }
  });
}

Tensor local_std_forward_kernel(const Tensor& input, Sizes window, Sizes stride,
                                double correction, double eps) {
  const Frame frame(shape_of(input), window, stride);
  const Tensor out = torch::stable::new_empty(input, map_shape(input, frame));
  if (out.numel() == 0) return out;
  const Tensor x = torch::stable::contiguous(input);
  is_double(input) ? deviations<double>(x, frame, correction, eps, out)
                   : deviations<float>(x, frame, correction, eps, out);
  return out;
}

template <class T>
void prepare(const Tensor& grad, const Tensor& mean, const Tensor& var, double count,
             double correction, double eps, const Tensor& s1, const Tensor& s2) {
  const T* g = static_cast<const T*>(grad.const_data_ptr());
  const double* m = static_cast<const double*>(mean.const_data_ptr());
  const double* v = static_cast<const double*>(var.const_data_ptr());
  double* to_s1 = static_cast<double*>(s1.mutable_data_ptr());
  double* to_s2 = static_cast<double*>(s2.mutable_data_ptr());
  const double ratio = count / (count - correction);
  torch::stable::parallel_for(0, grad.numel(), kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double std = std::sqrt(v[i] * ratio + eps);
      const double live = static_cast<double>(g[i]) * ratio / (2 * std) / count;
      to_s2[i] = v[i] == 0 ? 0 : live;
      to_s1[i] = -2 * m[i] * to_s2[i];
    }
  });
}

std::tuple<Tensor, Tensor> local_std_prepare_grads_kernel(const Tensor& grad, const Tensor& mean,
                                                          const Tensor& var, double count,
                                                          double correction, double eps) {
  const Tensor s1 = torch::stable::new_empty(mean, shape_of(mean));
  const Tensor s2 = torch::stable::new_empty(mean, shape_of(mean));
  const Tensor g = torch::stable::contiguous(grad), m = torch::stable::contiguous(mean),
               v = torch::stable::contiguous(var);
  is_double(grad) ? prepare<double>(g, m, v, count, correction, eps, s1, s2)
                  : prepare<float>(g, m, v, count, correction, eps, s1, s2);
  return {s1, s2};
}

template <class T>
void combine(const Tensor& s1, const Tensor& s2, const Tensor& input, const Frame& f,
             const Tensor& out) {
  const double* a = static_cast<const double*>(s1.const_data_ptr());
  const double* b = static_cast<const double*>(s2.const_data_ptr());
  const T* x = static_cast<const T*>(input.const_data_ptr());
  T* to = static_cast<T*>(out.mutable_data_ptr());
  const int64_t plane = f.plane(), channel = f.size[0] * plane, map = Frame::numel(f.outputs);
  for_blocks(f.items, f.size[0], f.block_rows(f.size[0]),
             [&](int64_t item, int64_t first, int64_t n) {
    const auto first_sum = spread_block(a + item * map, f, first, n);
    const auto second_sum = spread_block(b + item * map, f, first, n);
    for (int64_t c = 0; c < f.channels; ++c) {
      const int64_t at = (item * f.channels + c) * channel + first * plane;
      for (int64_t i = 0; i < n * plane; ++i) {
        const double value = static_cast<double>(x[at + i]);
        to[at + i] = static_cast<T>(first_sum[i] + 2 * value * second_sum[i]);
      }
    }
  });
}

Tensor local_std_combine_grads_kernel(const Tensor& s1, const Tensor& s2, const Tensor& input,
                                      Sizes window, Sizes stride) {
  const Frame frame(shape_of(input), window, stride);
  const Tensor out = torch::stable::new_empty(input, shape_of(input));
  if (out.numel() == 0) return out;
  const Tensor a = torch::stable::contiguous(s1), b = torch::stable::contiguous(s2),
               x = torch::stable::contiguous(input);
  is_double(input) ? combine<double>(a, b, x, frame, out) : combine<float>(a, b, x, frame, out);
  return out;
}

}  // namespace
}  // namespace torchcorr::windows

STABLE_TORCH_LIBRARY_IMPL(torchcorr, CPU, m) {
  m.impl("local_std", TORCH_BOX(&torchcorr::windows::local_std_forward_kernel));
  m.impl("local_std_prepare_grads",
         TORCH_BOX(&torchcorr::windows::local_std_prepare_grads_kernel));
  m.impl("window_combine", TORCH_BOX(&torchcorr::windows::local_std_combine_grads_kernel));
}
