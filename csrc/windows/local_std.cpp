// The local deviation: moments fused to the map, and the gradients of its window sums.

#include <atomic>
#include <cmath>

#include "common/exact_window.h"
#include "windows/images.h"
#include "common/large_pages.h"
#include "windows/running_moments.h"

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

TORCHCORR_CLONES bool is_finite(int64_t n, const float* x) {
  float strange[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int64_t l = 0; l < 16; ++l) strange[l] += x[i + l] - x[i + l];
  }
  for (; i < n; ++i) strange[0] += x[i] - x[i];
  float total = 0;
  for (float s : strange) total += s;
  return total == 0;
}

template <class T>
struct DeviationSink {
  static constexpr int first_plane = 1;

  const Plan& plan;
  double scale, eps;
  T* out;

  void store(const Stretch& s, Rows r) const {
    finish(s.valid, r.plane(1), scale, eps, out + map_offset(plan, s));
  }
};

// --- float32: sums that slide, where they tell enough ---

constexpr double kOwn = 1e-7;          // smallest variance beside the mean square about the level
constexpr int64_t kAgain = 16;         // multiply-adds of windows again, for each element, worth it
constexpr int64_t kLevelSamples = 1024;

// False where the whole must be computed otherwise: windows that hold what is not finite, or too
// many whose sums do not tell.
bool slide_deviations(const Tensor& image, const Shape& shape, const Sizes& window,
                      const Sizes& stride, double count, double correction, double eps,
                      float* out) {
  TileGrid grid;
  grid.ndim = static_cast<int64_t>(window.size());
  grid.channels = shape.channels;
  for (int64_t i = 0; i < grid.ndim; ++i) {
    const int64_t axis = 3 - grid.ndim + i;
    grid.size[axis] = grid.step[axis] = grid.extent[axis] = grid.length[axis] = shape.size[i];
  }
  grid.item_size = grid.size[0] * grid.size[1] * grid.size[2];
  const float* x = image.const_data_ptr<float>();
  const int64_t item = grid.channels * grid.item_size;
  std::vector<double> stats(shape.leads * kStats, 0.0);
  for (int64_t t = 0; t < shape.leads; ++t) {
    // Any level near the elements will do.
    double sum = 0;
    const int64_t step = std::max<int64_t>(1, item / kLevelSamples), n = ceil_div(item, step);
    for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[t * item + i * step]);
    const float level = static_cast<float>(sum / static_cast<double>(n));
    if (!std::isfinite(level)) return false;
    stats[t * kStats] = static_cast<double>(level);
    stats[t * kStats + 1] = 1;
  }
  Limits by{eps, 0.0, kOwn, true, true};
  by.error = 1e-7;
  by.deviation = count / (count - correction);
  const running::Job job(grid, x + image.numel(), window, stride, by);
  const int64_t positions = job.count[0] * job.count[1] * job.count[2], units = job.units();
  const int64_t grain = std::max<int64_t>(1, kUnitElements * units / positions);
  std::atomic<int64_t> lost{0};
  torch::stable::parallel_for(0, shape.leads * units, grain, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      running::Found found;
      const int64_t t = u / units;
      running::run_unit(job, x, t, u % units, &stats[t * kStats], out + t * positions, nullptr,
                        found);
      if (found.faint > 0) lost += found.faint;
    }
  });
  if (lost == 0) return true;
  if (static_cast<double>(lost) * count > kAgain * static_cast<double>(image.numel())) return false;
  ExactWindow exact{grid.channels, {1, 1, 1}, count, eps, true};
  for (int i = 0; i < 3; ++i) exact.window[i] = job.window[i];
  const int64_t strides[3] = {grid.item_size, grid.size[1] * grid.size[2], grid.size[2]};
  const int64_t rows = job.count[0] * job.count[1];
  torch::stable::parallel_for(0, shape.leads * rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t z = r % rows / job.count[1], y = r % job.count[1];
      const float* start = x + r / rows * item + (z * job.stride[0] * grid.size[1] +
                                                  y * job.stride[1]) * grid.size[2];
      for (int64_t v = 0; v < job.count[2]; ++v) {
        float& value = out[r * job.count[2] + v];
        if (!(value < 0)) continue;
        const double squares =
            moments_of_window(start + v * job.stride[2], strides, exact, 1.0).squares;
        value = static_cast<float>(std::sqrt(squares / (count - correction) + eps));
      }
    }
  });
  return true;
}

bool all_finite(int64_t n, const float* x) {
  // A NaN or an Inf in a window makes its sums NaN, which the comparisons above let through.
  std::atomic<bool> finite{true};
  torch::stable::parallel_for(0, n, 1 << 18, [&](int64_t begin, int64_t end) {
    if (!is_finite(end - begin, x + begin)) finite = false;
  });
  return finite;
}

Tensor local_std_forward_kernel(const Tensor& input, Sizes window, Sizes stride, double correction,
                                double eps) {
  if (is_half(input)) {
    return in_type_of(input, local_std_forward_kernel(in_float32(input), window, stride, correction,
                                                      eps));
  }
  const Shape shape(sizes_of(input), window.size());
  const Plan plan(shape.leads, shape.channels, shape.size, window, stride, 2);
  Tensor out = new_map(input, shape.output(plan));
  if (out.numel() == 0) return out;
  const double count = window_elements(shape, window);
  const Tensor image = packed(input);
  if (image.scalar_type() == ScalarType::Float &&
      all_finite(image.numel(), image.const_data_ptr<float>()) &&
      slide_deviations(image, shape, window, stride, count, correction, eps,
                       out.mutable_data_ptr<float>())) {
    return out;
  }
  with_real_type(image, "input", [&](auto zero) {
    using T = decltype(zero);
    const ImageSource<T, Moments> source{{image.const_data_ptr<T>()}, Layout(shape)};
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
  const Tensor g = packed(is_half(grad) ? in_float32(grad) : grad);
  const Tensor m = packed(mean), v = packed(var);
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
