// The local deviation: moments fused to the map, and the gradients of its window sums.

#include <cmath>

#include "image_source.h"

namespace torchcorr {
namespace {

template <class T>
TORCHCORR_INLINE void deviations(int64_t n, const double* m2, double scale, double eps,
                                 T* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<T>(std::sqrt(m2[i] * scale + eps));
  }
}

TORCHCORR_CLONES void finish(int64_t n, const double* m2, double scale, double eps, float* out) {
  deviations(n, m2, scale, eps, out);
}

TORCHCORR_CLONES void finish(int64_t n, const double* m2, double scale, double eps, double* out) {
  deviations(n, m2, scale, eps, out);
}

template <class T>
struct DeviationSink {
  static constexpr int first_plane = 1;

  const Plan& plan;
  double scale, eps;
  T* out;

  void store(const Stretch& s, Rows r) const {
    finish(s.valid, r.plane[1], scale, eps, out + map_offset(plan, s));
  }
};

Tensor local_std_forward_kernel(const Tensor& input, Sizes window, Sizes stride, double correction,
                                double eps) {
  const Shape shape(sizes_of(input), window.size());
  const Plan plan(shape.leads, shape.channels, shape.size, window, stride, 2);
  Tensor out = torch::stable::new_empty(input, shape.output(plan));
  if (out.numel() == 0) return out;
  double count = static_cast<double>(shape.channels);
  for (int64_t k : window) count *= static_cast<double>(k);
  const Tensor image = packed(input);
  with_real_type(image, "input", [&](auto zero) {
    using T = decltype(zero);
    const ImageSource<T, Moments> source(image.const_data_ptr<T>(), shape.size, shape.channels);
    run_windows<Moments>(plan, source,
                         DeviationSink<T>{plan, 1 / (count - correction), eps,
                                          out.mutable_data_ptr<T>()});
  });
  return out;
}

template <class T>
TORCHCORR_INLINE void window_grads(int64_t n, const T* grad, const double* mean, const double* var,
                                   double count, double ratio, double eps, double* grad_s1,
                                   double* grad_s2) {
  for (int64_t i = 0; i < n; ++i) {
    const double std = std::sqrt(var[i] * ratio + eps);
    const double g = static_cast<double>(grad[i]) * ratio / (2 * std * count);
    grad_s2[i] = var[i] == 0 ? 0.0 : g;
    grad_s1[i] = -2 * mean[i] * grad_s2[i];
  }
}

TORCHCORR_CLONES void prepare(int64_t n, const float* grad, const double* mean, const double* var,
                              double count, double ratio, double eps, double* s1, double* s2) {
  window_grads(n, grad, mean, var, count, ratio, eps, s1, s2);
}

TORCHCORR_CLONES void prepare(int64_t n, const double* grad, const double* mean, const double* var,
                              double count, double ratio, double eps, double* s1, double* s2) {
  window_grads(n, grad, mean, var, count, ratio, eps, s1, s2);
}

std::tuple<Tensor, Tensor> local_std_prepare_grads_kernel(const Tensor& grad, const Tensor& mean,
                                                          const Tensor& var, double count,
                                                          double correction, double eps) {
  const Tensor g = packed(grad), m = packed(mean), v = packed(var);
  STD_TORCH_CHECK(g.numel() == m.numel() && m.numel() == v.numel(),
                  "grad, mean and var must have one shape");
  Tensor s1 = new_float64(m, sizes_of(m)), s2 = new_float64(m, sizes_of(m));
  double *s1_out = s1.mutable_data_ptr<double>(), *s2_out = s2.mutable_data_ptr<double>();
  const double *m_in = m.const_data_ptr<double>(), *v_in = v.const_data_ptr<double>();
  with_real_type(g, "grad", [&](auto zero) {
    const auto* g_in = g.const_data_ptr<decltype(zero)>();
    torch::stable::parallel_for(0, g.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
      prepare(end - begin, g_in + begin, m_in + begin, v_in + begin, count,
              count / (count - correction), eps, s1_out + begin, s2_out + begin);
    });
  });
  return {s1, s2};
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr, CPU, m) {
  m.impl("local_std", TORCH_BOX(&torchcorr::local_std_forward_kernel));
  m.impl("local_std_prepare_grads", TORCH_BOX(&torchcorr::local_std_prepare_grads_kernel));
}
