// Templates of dense layers, (K, C, *window), in float32, and the last steps of their gradients.

#include <algorithm>
#include <cmath>
#include <optional>

#include "common/parallel.h"
#include "common/targets.h"

namespace torchcorr {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements that are worth another thread

template <int BYTES>
TORCHCORR_INLINE double narrow_row(int64_t n, const double* x, float* out) {
  constexpr int64_t lanes = lanes_of<double, BYTES>;
  Wide<BYTES> total = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const Wide<BYTES> v = load<BYTES>(x + i);
    put(v, out + i);
    total += v < 0 ? -v : v;
  }
  double rest = 0;
  for (; i < n; ++i) {
    out[i] = static_cast<float>(x[i]);
    rest += std::abs(x[i]);
  }
  return sum_of_lanes(total) + rest;
}
TORCHCORR_FOR_CPUS(double, narrow_row, (int64_t n, const double* x, float* out), (n, x, out))

// Standardised templates (K, C, n) in float32, and of each channel the sum of all sizes.
std::tuple<Tensor, Tensor> dense_weights(const Tensor& given) {
  const Tensor x = packed(given);
  const int64_t templates = x.size(0), channels = x.size(1), n = x.size(2);
  const Tensor out = new_tensor({templates, channels, n}, ScalarType::Float);
  const Tensor sums = new_float64({channels});
  const double* from = x.const_data_ptr<double>();
  float* to = out.mutable_data_ptr<float>();
  double* sum = sums.mutable_data_ptr<double>();
  parallel_for(0, channels, std::max<int64_t>(1, kGrain / (templates * n)),
               [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      sum[c] = 0;
      for (int64_t k = 0; k < templates; ++k) {
        const int64_t at = (k * channels + c) * n;
        sum[c] += narrow_row(n, from + at, to + at);
      }
    }
  });
  return {out, sums};
}

// What a template's gradient is besides its own sums.
struct Common {
  double each;         // of a template
  const double* sums;  // of the images (C, n), or none
  bool zero_mean, own_means;
};

// One gradient without what goes along means and, if these are the channels', along the
// standardised template; the largest size of what is left behind the standardisation.
template <int BYTES, class T>
TORCHCORR_INLINE double project_any(int64_t channels, int64_t n, const T* x, const double* weights,
                                    const Common& common, double* out) {
  const int64_t all = channels * n;
  const double* sums = common.sums;
  for (int64_t i = 0; i < all; ++i) out[i] = static_cast<double>(x[i]);
  if (sums) {
    for (int64_t i = 0; i < all; ++i) out[i] += common.each * sums[i];
  }
  if (common.zero_mean) {
    const int64_t groups = common.own_means ? channels : 1, each = all / groups;
    for (int64_t g = 0; g < groups; ++g) subtract_mean<BYTES>(each, out + g * each);
  }
  const double along = dot_of_rows<BYTES>(all, out, weights) / static_cast<double>(all);
  constexpr int64_t lanes = lanes_of<double, BYTES>;
  Wide<BYTES> most = {};
  int64_t i = 0;
  for (; i + lanes <= all; i += lanes) {
    const Wide<BYTES> left = load<BYTES>(out + i) - load<BYTES>(weights + i) * along;
    if (common.own_means) put(left, out + i);
    const Wide<BYTES> size = left < 0 ? -left : left;
    most = size > most ? size : most;
  }
  double largest = 0;
  for (int64_t l = 0; l < lanes; ++l) largest = std::max(largest, most[l]);
  for (; i < all; ++i) {
    const double left = out[i] - weights[i] * along;
    if (common.own_means) out[i] = left;
    largest = std::max(largest, std::abs(left));
  }
  return largest;
}
TORCHCORR_FOR_CPUS(double, project_any,
                   (int64_t channels, int64_t n, const float* x, const double* weights,
                    const Common& common, double* out),
                   (channels, n, x, weights, common, out))
TORCHCORR_FOR_CPUS(double, project_any,
                   (int64_t channels, int64_t n, const double* x, const double* weights,
                    const Common& common, double* out),
                   (channels, n, x, weights, common, out))

// Gradients (K, C, n) plus `common` (K) times `sums` (C, n), if given, through `project_any`.
std::tuple<Tensor, Tensor> dense_project(const Tensor& given, std::optional<Tensor> common,
                                         const Tensor& sums, const Tensor& weights, bool zero_mean,
                                         bool own_means) {
  const Tensor x = packed(given), standard = packed(weights), of_images = packed(sums);
  const int64_t templates = x.size(0), channels = x.size(1), n = x.size(2), all = channels * n;
  const Tensor out = new_float64({templates, channels, n}), sizes = new_float64({templates});
  const double *by = standard.const_data_ptr<double>(),
               *each = common ? common->const_data_ptr<double>() : nullptr;
  double *to = out.mutable_data_ptr<double>(), *largest = sizes.mutable_data_ptr<double>();
  with_real_type(x, "gradient", [&](auto zero) {
    const auto* from = x.const_data_ptr<decltype(zero)>();
    parallel_for(0, templates, std::max<int64_t>(1, kGrain / all), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const Common of{each ? each[k] : 0.0, each ? of_images.const_data_ptr<double>() : nullptr,
                        zero_mean, own_means};
        largest[k] = project_any(channels, n, from + k * all, by + k * all, of, to + k * all);
      }
    });
  });
  return {out, sizes};
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("dense_weights", TORCH_BOX(&torchcorr::dense_weights));
  m.impl("dense_project", TORCH_BOX(&torchcorr::dense_project));
}
