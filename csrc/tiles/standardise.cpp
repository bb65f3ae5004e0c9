// Templates in the form that scores multiply with: centred, with a mean square of one.

#include <algorithm>
#include <cmath>

#include "common/parallel.h"
#include "common/vectors.h"

namespace torchcorr {
namespace {

// Centred twice: the first mean is rounded in units of the offset, the second of the contrast.
// Dividing by the peak before squaring keeps the range.
template <class T>
TORCHCORR_INLINE void standardise_one(int64_t n, const T* x, bool zero_mean, double* out) {
  int different = 0;
  for (int64_t i = 0; i < n; ++i) different |= x[i] != x[0];
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<double>(x[i]);
  for (int pass = 0; zero_mean && pass < 2; ++pass) {
    const double mean = sum_of_row(n, out) / static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i) out[i] -= mean;
  }
  double peak = 0;
  const double total = sum_of_row(n, out);
  if (total - total != 0) {
    std::fill_n(out, n, std::nan(""));
    return;
  }
  for (int64_t i = 0; i < n; ++i) peak = std::abs(out[i]) > peak ? std::abs(out[i]) : peak;
  if (peak == 0 || (zero_mean && different == 0)) {
    std::fill_n(out, n, 0.0);
    return;
  }
  for (int64_t i = 0; i < n; ++i) out[i] /= peak;
  const double scale = 1 / std::sqrt(dot_of_rows(n, out, out) / static_cast<double>(n));
  for (int64_t i = 0; i < n; ++i) out[i] *= scale;
}

TORCHCORR_CLONES void standardise_any(int64_t n, const float* x, bool zero_mean, double* out) {
  standardise_one(n, x, zero_mean, out);
}
TORCHCORR_CLONES void standardise_any(int64_t n, const double* x, bool zero_mean, double* out) {
  standardise_one(n, x, zero_mean, out);
}

Tensor standardise(const Tensor& given, int64_t ndim, bool zero_mean) {
  const Tensor x = packed(is_half(given) ? in_float32(given) : given);
  Tensor out = new_float64(x, Sizes(x.sizes().begin(), x.sizes().end()));
  if (x.numel() == 0) return out;
  int64_t n = 1;
  for (int64_t i = x.dim() - ndim - 1; i < x.dim(); ++i) n *= x.size(i);
  double* to = out.mutable_data_ptr<double>();
  with_real_type(x, "template", [&](auto zero) {
    const auto* from = x.const_data_ptr<decltype(zero)>();
    parallel_for(0, x.numel() / n, std::max<int64_t>(1, (1 << 15) / n),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     standardise_any(n, from + i * n, zero_mean, to + i * n);
                   }
                 });
  });
  return out;
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr, CPU, m) {
  m.impl("standardise", TORCH_BOX(&torchcorr::standardise));
}
