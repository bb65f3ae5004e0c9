// Templates in the form that scores multiply with: centred, with a mean square of one.

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "common/parallel.h"
#include "common/targets.h"
#include "tiles/standardise.h"

namespace torchcorr {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements that are worth another thread

// One template of `groups` times n elements, each group of which has a mean; the deviation that it was
// divided by. Centred twice: the first mean is rounded in units of the offset, the second of the
// contrast. Dividing by the peak before squaring keeps the range.
template <int BYTES, class T>
TORCHCORR_INLINE double standardise_any(int64_t groups, int64_t n, const T* x, bool zero_mean,
                                        double* out) {
  const int64_t all = groups * n;
  for (int64_t g = 0; g < groups; ++g) {
    const T* from = x + g * n;
    double* to = out + g * n;
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<double>(from[i]);
    if (!zero_mean) continue;
    int different = 0;
    for (int64_t i = 0; i < n; ++i) different |= from[i] != from[0];
    if (different == 0) {
      std::fill_n(to, n, to[0] - to[0]);  // zeros, or NaN
      continue;
    }
    for (int pass = 0; pass < 2; ++pass) subtract_mean<BYTES>(n, to);
  }
  const double peak = largest_of_row<BYTES>(all, out);
  if (peak == 0) {
    std::fill_n(out, all, sum_of_row<BYTES>(all, out));  // a NaN, if there is one
    return 0;
  }
  for (int64_t i = 0; i < all; ++i) out[i] /= peak;
  const double size = std::sqrt(dot_of_rows<BYTES>(all, out, out) / static_cast<double>(all));
  const double by = 1 / size;
  for (int64_t i = 0; i < all; ++i) out[i] *= by;
  return size * peak;
}

TORCHCORR_FOR_CPUS(double, standardise_any,
                   (int64_t groups, int64_t n, const float* x, bool zero_mean, double* out),
                   (groups, n, x, zero_mean, out))
TORCHCORR_FOR_CPUS(double, standardise_any,
                   (int64_t groups, int64_t n, const double* x, bool zero_mean, double* out),
                   (groups, n, x, zero_mean, out))

// All templates of x.
void standardise_all(const Tensor& x, int64_t groups, int64_t n, bool zero_mean, double* to) {
  const int64_t all = groups * n;
  with_real_type(x, "template", [&](auto zero) {
    const auto* from = x.const_data_ptr<decltype(zero)>();
    parallel_for(0, x.numel() / all, std::max<int64_t>(1, kGrain / all),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t at = begin * all; at < end * all; at += all) {
                     standardise_any(groups, n, from + at, zero_mean, to + at);
                   }
                 });
  });
}

// What a gradient for such a template, of the same form, is for the template before it: nothing of it
// goes along means, nor along the template itself. `gradient` is overwritten, `standard` is scratch.
template <int BYTES, class T>
TORCHCORR_INLINE void through_any(int64_t groups, int64_t n, const T* x, bool zero_mean,
                                  double* standard, double* gradient, T* out) {
  const int64_t all = groups * n;
  const double size = standardise_any<BYTES>(groups, n, x, zero_mean, standard);
  if (size == 0) {
    std::fill_n(out, all, static_cast<T>(standard[0]));  // zeros, or NaN
    return;
  }
  for (int64_t g = 0; zero_mean && g < groups; ++g) subtract_mean<BYTES>(n, gradient + g * n);
  const double along = dot_of_rows<BYTES>(all, gradient, standard) / static_cast<double>(all);
  for (int64_t i = 0; i < all; ++i) {
    out[i] = static_cast<T>((gradient[i] - standard[i] * along) / size);
  }
}

TORCHCORR_FOR_CPUS(void, through_any,
                   (int64_t groups, int64_t n, const float* x, bool zero_mean, double* standard,
                    double* gradient, float* out),
                   (groups, n, x, zero_mean, standard, gradient, out))
TORCHCORR_FOR_CPUS(void, through_any,
                   (int64_t groups, int64_t n, const double* x, bool zero_mean, double* standard,
                    double* gradient, double* out),
                   (groups, n, x, zero_mean, standard, gradient, out))

// Gradients in float64 of templates x of `groups` times n elements, in the type and shape of x.
Tensor through_standardised(const Tensor& x, const Tensor& grad, int64_t groups, int64_t n,
                            bool zero_mean) {
  STD_TORCH_CHECK(grad.scalar_type() == ScalarType::Double && grad.numel() == x.numel(),
                  "gradients of standardised templates are float64, one for each element");
  const Tensor out = torch::stable::empty_like(x), given = packed(grad);
  const int64_t all = groups * n;
  if (x.numel() == 0) return out;
  const double* gradients = given.const_data_ptr<double>();
  with_real_type(x, "template", [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    parallel_for(0, x.numel() / all, std::max<int64_t>(1, kGrain / all),
                 [&](int64_t begin, int64_t end) {
                   std::vector<double> standard(all), gradient(all);
                   for (int64_t at = begin * all; at < end * all; at += all) {
                     std::copy_n(gradients + at, all, gradient.data());
                     through_any(groups, n, from + at, zero_mean, standard.data(), gradient.data(),
                                 to + at);
                   }
                 });
  });
  return out;
}

// One template of `groups` times n elements with weights: these times deviations, and times squares of
// them. Centred as above; the largest element is at most 1, by a power of two.
template <int BYTES, class T>
TORCHCORR_INLINE void weigh_any(int64_t groups, int64_t n, const T* x, const T* weights,
                                bool zero_mean, double* products, double* energies) {
  const int64_t all = groups * n;
  const auto weight = [&](int64_t i) TORCHCORR_FLAT {
    return weights ? static_cast<double>(weights[i]) : 1.0;
  };
  for (int64_t i = 0; i < all; ++i) products[i] = weight(i) > 0 ? static_cast<double>(x[i]) : 0.0;
  int exponent = 0;
  std::frexp(largest_of_row<BYTES>(all, products), &exponent);
  const double scale = std::ldexp(1.0, -exponent);
  for (int64_t i = 0; i < all; ++i) products[i] *= scale;
  for (int64_t from = 0; zero_mean && from < all; from += n) {
    double *t = products + from, *w = energies + from, value = 0;
    int64_t first = n, different = 0;
    for (int64_t i = 0; i < n; ++i) w[i] = weight(from + i);
    for (int64_t i = n; i-- > 0;) first = w[i] > 0 ? i : first;
    if (first < n) value = t[first];
    for (int64_t i = 0; i < n; ++i) different += (w[i] > 0) & (t[i] != value);
    if (different == 0) {
      std::fill_n(t, n, 0.0);
      continue;
    }
    const double total = sum_of_row<BYTES>(n, w);
    for (int pass = 0; pass < 2; ++pass) {
      const double mean = dot_of_rows<BYTES>(n, t, w) / total;
      for (int64_t i = 0; i < n; ++i) t[i] = w[i] > 0 ? t[i] - mean : 0.0;
    }
  }
  for (int64_t i = 0; i < all; ++i) {
    const double t = products[i], product = weight(i) * t;
    products[i] = product, energies[i] = product * t;
  }
}

TORCHCORR_FOR_CPUS(void, weigh_any,
                   (int64_t groups, int64_t n, const float* x, const float* weights,
                    bool zero_mean, double* products, double* energies),
                   (groups, n, x, weights, zero_mean, products, energies))
TORCHCORR_FOR_CPUS(void, weigh_any,
                   (int64_t groups, int64_t n, const double* x, const double* weights,
                    bool zero_mean, double* products, double* energies),
                   (groups, n, x, weights, zero_mean, products, energies))

// Finite templates (K, groups, n), each group with its mean, and weights as many or (1, groups, n): in
// float64, the weights times deviations from the mean and times squares of them.
std::tuple<Tensor, Tensor> weigh_templates(const Tensor& given, const std::optional<Tensor>& by,
                                           bool zero_mean) {
  const Tensor x = packed(given);
  std::optional<Tensor> weight;
  if (by) weight = packed(*by);
  const Sizes shape{x.size(0), x.size(1), x.size(2)};
  STD_TORCH_CHECK(!weight || (weight->scalar_type() == x.scalar_type() &&
                              (weight->size(0) == 1 || weight->size(0) == shape[0]) &&
                              weight->size(1) == shape[1] && weight->size(2) == shape[2]),
                  "weights must be those of one template, or of all");
  const Tensor products = new_float64(shape), energies = new_float64(shape);
  const int64_t all = shape[1] * shape[2];
  const bool shared = weight && weight->size(0) == 1;
  with_real_type(x, "template", [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.const_data_ptr<T>();
    const T* weights = weight ? weight->const_data_ptr<T>() : nullptr;
    double *to = products.mutable_data_ptr<double>(), *squares = energies.mutable_data_ptr<double>();
    parallel_for(0, shape[0], std::max<int64_t>(1, kGrain / std::max<int64_t>(1, all)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t k = begin; k < end; ++k) {
                     const T* own = weights && !shared ? weights + k * all : weights;
                     weigh_any(shape[1], shape[2], from + k * all, own, zero_mean, to + k * all,
                               squares + k * all);
                   }
                 });
  });
  return {products, energies};
}

// Of a template: its last axes.
int64_t elements(const Tensor& x, int64_t ndim) {
  int64_t n = 1;
  for (int64_t i = x.dim() - ndim - 1; i < x.dim(); ++i) n *= x.size(i);
  return n;
}

Tensor in_real_type(const Tensor& x) { return packed(is_half(x) ? in_float32(x) : x); }

Tensor standardise(const Tensor& given, int64_t ndim, bool zero_mean) {
  const Tensor x = in_real_type(given);
  return standardised(x, elements(x, ndim), zero_mean, Sizes(x.sizes().begin(), x.sizes().end()));
}

Tensor standardise_grad(const Tensor& given, const Tensor& grad, int64_t ndim, bool zero_mean) {
  const Tensor x = in_real_type(given);
  const Tensor out = through_standardised(x, grad, 1, elements(x, ndim), zero_mean);
  return is_half(given) ? in_type_of(given, out) : out;
}

// Templates (K, C, n) with a mean for each channel.
Tensor standardise_channels(const Tensor& given) {
  const Tensor x = packed(given);
  const Tensor out = new_float64({x.size(0), x.size(1), x.size(2)});
  standardise_all(x, x.size(1), x.size(2), true, out.mutable_data_ptr<double>());
  return out;
}

// The gradient behind it, (K, C, n), in the type of the templates.
Tensor standardise_channels_grad(const Tensor& given, const Tensor& grad) {
  const Tensor x = packed(given);
  return through_standardised(x, grad, x.size(1), x.size(2), true);
}

}  // namespace

Tensor standardised(const Tensor& templates, int64_t n, bool zero_mean, const Sizes& shape) {
  const Tensor out = new_float64(shape);
  if (templates.numel() == 0) return out;
  standardise_all(templates, 1, n, zero_mean, out.mutable_data_ptr<double>());
  return out;
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr, CPU, m) {
  m.impl("standardise", TORCH_BOX(&torchcorr::standardise));
  m.impl("standardise_grad", TORCH_BOX(&torchcorr::standardise_grad));
}

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("weigh_templates", TORCH_BOX(&torchcorr::weigh_templates));
  m.impl("standardise_channels", TORCH_BOX(&torchcorr::standardise_channels));
  m.impl("standardise_channels_grad", TORCH_BOX(&torchcorr::standardise_channels_grad));
}
