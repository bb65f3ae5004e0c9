// The local deviation, written while its moments are in registers, and the gradients of its sums.

#include <atomic>
#include <cmath>
#include <optional>

#include "common/exact_window.h"
#include "common/large_pages.h"
#include "common/parallel.h"
#include "windows/images.h"
#include "windows/running_moments.h"

namespace torchcorr {
namespace {

template <class T>
TORCHCORR_INLINE void deviations(int64_t n, const double* m2, double scale, double eps, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<T>(std::sqrt(m2[i] * scale + eps));
  }
}

TORCHCORR_CLONES void write_deviations(int64_t n, const double* m2, double scale, double eps,
                                       float* out) {
  deviations(n, m2, scale, eps, out);
}

TORCHCORR_CLONES void write_deviations(int64_t n, const double* m2, double scale, double eps,
                                       double* out) {
  deviations(n, m2, scale, eps, out);
}

template <class T>
struct DeviationSink {
  static constexpr int first_plane = 1;

  const WindowLayout& layout;
  double scale, eps;
  T* out;

  void store(const Stretch& s, Rows r) const {
    write_deviations(s.valid, r.plane(1), scale, eps, out + map_offset(layout, s));
  }
};

// --- float32: running sums, where they determine enough ---

constexpr double kLeastVariance = 1e-7;  // relative to the mean square about the level
constexpr int64_t kRecomputed =
    16;  // multiply-adds of recomputed windows, for each element, that pay
constexpr int64_t kLevelSamples = 1024;

// Items and what surrounds them.
struct Surrounded {
  const Tensor& image;
  Tiling tiling;  // of items with their border
  std::optional<running::Border> border;

  const running::Border* around() const { return border ? &*border : nullptr; }
  int64_t item() const { return tiling.channels * product(border ? border->size : tiling.size); }
};

// How many elements lie before an item along each axis, from pairs of pads.
Axes3 before_axes(const Sizes& pads) {
  Axes3 before{0, 0, 0};
  for (size_t i = 0; i < pads.size(); i += 2) before[3 - pads.size() / 2 + i / 2] = pads[i];
  return before;
}

// A level near the elements of each item, and the power of two that brings their deviations from it
// near 1, so that squares stay within float32.
std::vector<TileStats> sampled_levels(int64_t items, int64_t item, const float* x) {
  std::vector<TileStats> stats;
  for (int64_t t = 0; t < items; ++t) {
    double sum = 0;
    const int64_t step = std::max<int64_t>(1, item / kLevelSamples), n = ceil_div(item, step);
    for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[t * item + i * step]);
    const float level = static_cast<float>(sum / static_cast<double>(n));
    double power = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double d = static_cast<double>(x[t * item + i * step]) - static_cast<double>(level);
      power += d * d;
    }
    const double scale = scale_for(std::sqrt(power / static_cast<double>(n)));
    stats.push_back({static_cast<double>(level), scale, 0.0, 0.0});
  }
  return stats;
}

// Squares about the mean of one window of an item, from their definition.
double squares_of_window(const Surrounded& of, const float* item, const Axes3& at,
                         std::vector<float>& copy) {
  const Tiling& t = of.tiling;
  if (!of.border) {
    const ExactWindow exact{t.channels, t.window, RowStrides(t.size), true, 0.0};
    const float* first = item + at[0] * exact.strides.plane + at[1] * exact.strides.row + at[2];
    double level = 0;
    return squares_about_means(first, exact, 1.0, &level);
  }
  const ExactWindow exact{t.channels, t.window, RowStrides(t.window), true, 0.0};
  copy.resize(t.window_size());
  for (int64_t r = 0; r < t.window_size() / t.window[2]; ++r) {
    const Axes3 row = unravel(r, {t.channels, t.window[0], t.window[1]});
    float* to = copy.data() + r * t.window[2];
    const float* from = of.border->row(item + row[0] * product(of.border->size), at[0] + row[1],
                                       at[1] + row[2], at[2], t.window[2], to);
    if (from != to) std::copy_n(from, t.window[2], to);
  }
  double level = 0;
  return squares_about_means(copy.data(), exact, 1.0, &level);
}

// Returns false if the result must be computed another way: too many windows are unknown, or a
// sum of elements is not finite.
bool write_by_running_sums(const Surrounded& of, double correction, double eps, float* out) {
  const Tensor& image = of.image;
  const Tiling& tiling = of.tiling;
  const float* x = image.const_data_ptr<float>();
  const int64_t item = of.item(), items = image.numel() / item;
  const std::vector<TileStats> stats = sampled_levels(items, item, x);
  for (const TileStats& s : stats) {
    if (!std::isfinite(s.level)) return false;
  }
  const double count = static_cast<double>(tiling.window_size());
  running::MomentRule rule{true, eps, 0.0, 0.0, kLeastVariance};
  rule.error = 1e-7;
  rule.deviation = count / (count - correction);
  const running::MomentsCall call(tiling, x, image.numel(), rule, 2, of.around());
  const int64_t positions = tiling.positions(), units = call.strips.units();
  const int64_t grain = std::max<int64_t>(1, kUnitElements * units / positions);
  const int64_t most = kRecomputed * image.numel() / tiling.window_size();
  std::vector<std::vector<int64_t>> unknown(items * units);
  std::atomic<int64_t> total{0};
  std::atomic<bool> finite{true};
  parallel_for(0, items * units, grain, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end && total <= most && finite; ++u) {
      running::WindowCounts counts;
      const int64_t t = u / units;
      running::moments_of_unit(call, t, u % units, stats[t], nullptr,
                               {out + t * positions, nullptr, nullptr}, counts, &unknown[u]);
      if (counts.unknown > 0) total += counts.unknown;
      if (!counts.finite) finite = false;
    }
  });
  if (total > most || !finite) return false;
  if (total == 0) return true;
  parallel_for(0, items * units, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> copy;
    for (int64_t u = begin; u < end; ++u) {
      for (int64_t place : unknown[u]) {
        const Axes3 to = unravel(place, tiling.outputs);
        const Axes3 at{to[0] * tiling.stride[0], to[1] * tiling.stride[1], to[2] * tiling.stride[2]};
        const double squares = squares_of_window(of, x + u / units * item, at, copy);
        out[u / units * positions + place] =
            static_cast<float>(std::sqrt(squares / (count - correction) + eps));
      }
    }
  });
  return true;
}

// The items with their border in memory.
Tensor with_border(const Tensor& image, const Sizes& pads, double value) {
  Sizes last_axis_first;
  for (size_t i = pads.size(); i > 0; i -= 2) {
    last_axis_first.insert(last_axis_first.end(), {pads[i - 2], pads[i - 1]});
  }
  return torch::stable::pad(image, last_axis_first, "constant", value);
}

Tensor local_std_forward_kernel(const Tensor& input, Sizes window, Sizes stride, double correction,
                                double eps, Sizes pads, double pad_value) {
  if (is_half(input)) {
    return in_type_of(input, local_std_forward_kernel(in_float32(input), window, stride, correction,
                                                      eps, pads, pad_value));
  }
  const ImageShape inner(sizes_of(input), window.size());
  ImageShape shape = inner;
  STD_TORCH_CHECK(pads.empty() || pads.size() == 2 * window.size(), "an axis has two pads");
  for (size_t i = 0; i < pads.size(); ++i) shape.size[i / 2] += pads[i];
  const WindowLayout layout(shape.leads, shape.channels, shape.size, window, stride, Moments{});
  Tensor out = new_map(input, shape.output(layout));
  if (out.numel() == 0) return out;
  const double count = window_elements(shape, window);
  const Tensor image = packed(input);
  if (image.scalar_type() == ScalarType::Float) {
    Surrounded of{
        image, Tiling::of_items(image, shape.channels, shape.size, window, stride), {}};
    if (!pads.empty()) {
      of.border = {before_axes(pads), last_axes(inner.size), static_cast<float>(pad_value)};
    }
    if (write_by_running_sums(of, correction, eps, out.mutable_data_ptr<float>())) return out;
  }
  with_real_type(image, "input", [&](auto zero) {
    using T = decltype(zero);
    const Tensor whole = pads.empty() ? image : with_border(image, pads, pad_value);
    const ImageSource<T, Moments> source{{whole.const_data_ptr<T>()}, ImageStrides(shape)};
    run_windows<Moments>(
        layout, source,
        DeviationSink<T>{layout, 1 / (count - correction), eps, out.mutable_data_ptr<T>()});
  });
  return out;
}

// N elements of a window, N / (N - correction), and what is added to a variance.
struct DeviationRule {
  double count, ratio, eps;
};

// Moments of windows, and the gradients of their sums and of their sums of squares.
struct GradRows {
  const double *mean, *var;
  double *grad_s1, *grad_s2;
};

template <class T>
TORCHCORR_INLINE void window_grads(int64_t n, const T* grad, const GradRows& rows,
                                   const DeviationRule& by) {
  const auto [mean, var, grad_s1, grad_s2] = rows;
  for (int64_t i = 0; i < n; ++i) {
    const double std = std::sqrt(var[i] * by.ratio + by.eps);
    const double g = static_cast<double>(grad[i]) * by.ratio / (2 * std * by.count);
    grad_s2[i] = var[i] == 0 ? 0.0 : g;
    grad_s1[i] = -2 * mean[i] * grad_s2[i];
  }
}

TORCHCORR_CLONES void prepare(int64_t n, const float* grad, const GradRows& rows,
                              const DeviationRule& by) {
  window_grads(n, grad, rows, by);
}

TORCHCORR_CLONES void prepare(int64_t n, const double* grad, const GradRows& rows,
                              const DeviationRule& by) {
  window_grads(n, grad, rows, by);
}

std::tuple<Tensor, Tensor> local_std_prepare_grads_kernel(const Tensor& grad, const Tensor& mean,
                                                          const Tensor& var, double count,
                                                          double correction, double eps) {
  const Tensor g = packed(is_half(grad) ? in_float32(grad) : grad);
  const Tensor m = packed(mean), v = packed(var);
  STD_TORCH_CHECK(g.numel() == m.numel() && m.numel() == v.numel(),
                  "grad, mean and var must have one shape");
  Tensor s1 = new_float64(sizes_of(m)), s2 = new_float64(sizes_of(m));
  double *s1_out = s1.mutable_data_ptr<double>(), *s2_out = s2.mutable_data_ptr<double>();
  const double *m_in = m.const_data_ptr<double>(), *v_in = v.const_data_ptr<double>();
  with_real_type(g, "grad", [&](auto zero) {
    const auto* g_in = g.const_data_ptr<decltype(zero)>();
    parallel_for(0, g.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
      prepare(end - begin, g_in + begin,
              {m_in + begin, v_in + begin, s1_out + begin, s2_out + begin},
              {count, count / (count - correction), eps});
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
