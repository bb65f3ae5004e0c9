// Templates in the form that scores multiply with: centred, with a mean square of one.

#include <algorithm>
#include <cmath>

#include "common/parallel.h"
#include "common/vectors.h"

namespace torchcorr {
namespace {

// Sums of squares between these have lost nothing to the range of numbers.
constexpr double kLeastSquares = 1e-200, kMostSquares = 1e200;

// to = f(from), whose sums g are added up in an order of their own.
template <class T, class F, class G>
TORCHCORR_INLINE double map_and_sum(int64_t n, const T* from, double* to, const F& f, const G& g) {
  Doubles sums[4] = {};
  const int64_t whole = n / (4 * kDoubles) * (4 * kDoubles);
  for (int64_t i = 0; i < whole; i += 4 * kDoubles) {
    for (int64_t k = 0; k < 4; ++k) {
      const Doubles v = f(read(from + i + k * kDoubles));
      write(to + i + k * kDoubles, v);
      sums[k] += g(v);
    }
  }
  double sum = total_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (int64_t i = whole; i < n; ++i) {
    to[i] = f(static_cast<double>(from[i]));
    sum += g(to[i]);
  }
  return sum;
}

// Whether elements are finite, not all equal, and of a size whose squares are numbers; otherwise
// nothing is decided.
template <class T>
TORCHCORR_INLINE bool standardise_usual(int64_t n, const T* x, bool zero_mean, double* out) {
  if (std::all_of(x, x + n, [&](T v) { return v == x[0]; })) return false;
  const double count = static_cast<double>(n);
  const auto same = [](const auto& v) TORCHCORR_FLAT { return v; };
  const auto square = [](const auto& v) TORCHCORR_FLAT { return v * v; };
  double mean = 0;
  if (zero_mean) {
    mean = map_and_sum(n, x, out, same, same) / count;
    const auto centred = [&](const auto& v) TORCHCORR_FLAT { return v - mean; };
    mean = map_and_sum(n, out, out, centred, same) / count;
  } else {
    map_and_sum(n, x, out, same, same);
  }
  const auto centred = [&](const auto& v) TORCHCORR_FLAT { return v - mean; };
  const double squares = map_and_sum(n, out, out, centred, square);
  if (!(squares > kLeastSquares && squares < kMostSquares)) return false;
  const double scale = 1 / std::sqrt(squares / count);
  map_and_sum(n, out, out, [&](const auto& v) TORCHCORR_FLAT { return v * scale; }, same);
  return true;
}

TORCHCORR_CLONES bool is_standardised(int64_t n, const float* x, bool zero_mean, double* out) {
  return standardise_usual(n, x, zero_mean, out);
}
TORCHCORR_CLONES bool is_standardised(int64_t n, const double* x, bool zero_mean, double* out) {
  return standardise_usual(n, x, zero_mean, out);
}

// Centred twice: the first mean is rounded in units of the offset, the second of the contrast.
// Where squares may leave the range of numbers they are those of shares of the peak.
template <class T>
void standardise_one(int64_t n, const T* x, bool zero_mean, double* out) {
  if (is_standardised(n, x, zero_mean, out)) return;
  const auto [low, high] = std::minmax_element(x, x + n);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<double>(x[i]);
  for (int pass = 0; zero_mean && pass < 2; ++pass) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += out[i];
    const double mean = sum / static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i) out[i] -= mean;
  }
  double peak = 0, non_finite = 0;
  for (int64_t i = 0; i < n; ++i) non_finite += out[i] - out[i];
  if (non_finite != 0) {
    std::fill_n(out, n, std::nan(""));
    return;
  }
  for (int64_t i = 0; i < n; ++i) peak = std::abs(out[i]) > peak ? std::abs(out[i]) : peak;
  if (peak == 0 || (zero_mean && *low == *high)) {
    std::fill_n(out, n, 0.0);
    return;
  }
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    out[i] /= peak;
    squares += out[i] * out[i];
  }
  const double scale = 1 / std::sqrt(squares / static_cast<double>(n));
  for (int64_t i = 0; i < n; ++i) out[i] *= scale;
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
                     standardise_one(n, from + i * n, zero_mean, to + i * n);
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
