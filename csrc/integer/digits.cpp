#include "integer/digits.h"

#include <cmath>

#include "tiles/spectra.h"

namespace torchcorr::integer {
namespace {

TORCHCORR_CLONES void join_rows(int64_t n, const float* high, const float* low, double* to) {
  for (int64_t i = 0; i < n; ++i) {
    to[i] = static_cast<double>(DigitSpectra::kBase) * std::nearbyint(static_cast<double>(high[i])) +
            std::nearbyint(static_cast<double>(low[i]));
  }
}

}  // namespace

DigitSpectra::DigitSpectra(const Tiling& tiling, const Tensor& coefficients)
    : tiling_(tiling), coefficients_(coefficients),
      digits_(2 * coefficients.size(0) * coefficients.size(1)),
      ready_(new std::once_flag[digits_.size() / 2]) {}

const float* DigitSpectra::of(int64_t line, bool high) {
  std::call_once(ready_[line], [&] { make(line); });
  return static_cast<const float*>(digits_[2 * line + high].const_data_ptr());
}

void DigitSpectra::make(int64_t line) {
  const int64_t size = tiling_.window_size();
  Sizes shape{1, tiling_.channels};
  for (int64_t k : sizes_of(tiling_.window, tiling_.ndim)) shape.push_back(k);
  const Tensor high = new_float64(shape), low = new_float64(shape);
  const double* from = coefficients_.const_data_ptr<double>() + line * size;
  double *upper = high.mutable_data_ptr<double>(), *lower = low.mutable_data_ptr<double>();
  for (int64_t i = 0; i < size; ++i) {
    upper[i] = std::nearbyint(from[i] / kBase);
    lower[i] = from[i] - kBase * upper[i];
  }
  for (const bool of_high : {false, true}) {
    digits_[2 * line + of_high] = torch::stable::to(
        template_spectra(tiling_, of_high ? high : low, true), ScalarType::ComplexFloat);
  }
}

void join_digits(int64_t n, const float* high, const float* low, double* to) {
  join_rows(n, high, low, to);
}

}  // namespace torchcorr::integer
