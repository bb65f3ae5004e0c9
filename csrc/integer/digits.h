// Templates of bytes as two digits, whose correlations float32 transforms give exactly.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "common/tiling.h"

namespace torchcorr::integer {

// Spectra of the digits of templates: elements minus their centre are kBase * high + low. Each digit
// has sums so small that float32 holds them; made when a tile first needs them.
class DigitSpectra {
 public:
  static constexpr int64_t kBase = 16;

  // Coefficients are (pairs, templates, C, *window).
  DigitSpectra(const Tiling& tiling, const Tensor& coefficients);

  const float* of(int64_t line, bool high);

 private:
  void make(int64_t line);

  const Tiling tiling_;
  const Tensor coefficients_;
  std::vector<Tensor> digits_;
  std::unique_ptr<std::once_flag[]> ready_;
};

// to = kBase * high + low, of numbers that are rounded to whole ones.
void join_digits(int64_t n, const float* high, const float* low, double* to);

}  // namespace torchcorr::integer
