// Transforms of tiles by PyTorch's FFT, and the spectra of templates that they are multiplied by.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>

#include "common/tiling.h"

namespace torchcorr {

// The unscaled transform of a complex tensor over all axes from the second one on.
Tensor transform(const Tensor& x, bool forward);
// The same over one axis.
Tensor transform_axis(const Tensor& x, int64_t axis, bool forward);

// The unscaled spectra (rows, width / 2 + 1) of rows of real numbers, and the reverse.
Tensor transform_real(const Tensor& rows);
Tensor transform_to_real(const Tensor& rows, int64_t width);
// Complex numbers (...) as real ones (..., 2).
Tensor view_as_real(const Tensor& x);

// (tiles, C, *length, 2) real numbers as (tiles * C, *length) complex ones, and the reverse for
// one template: (tiles, *length) as (tiles, 1, *length, 2).
Tensor lines_of_tiles(const Tensor& tiles);
Tensor tiles_of_lines(const Tensor& lines);

// out = a * b of n complex numbers, or out += a * b.
void multiply_complex(int64_t n, bool add, const float* a, const float* b, float* out);
void multiply_complex(int64_t n, bool add, const double* a, const double* b, double* out);
// The same of a times the conjugate of b.
void multiply_conjugate(int64_t n, bool add, const float* a, const float* b, float* out);
void multiply_conjugate(int64_t n, bool add, const double* a, const double* b, double* out);

// Spectra of tiles: `channels` of `size` complex elements each.
struct SpectraSizes {
  int64_t tiles, channels, size;
};

// out = sum_c spectrum[i, c] * other[c] for each tile i, or out += that.
void multiply_spectra(const SpectraSizes& sizes, bool add, const float* spectrum,
                      const float* other, float* out);
void multiply_spectra(const SpectraSizes& sizes, bool add, const double* spectrum,
                      const double* other, double* out);

// The spectra of every `folds`th element of lines from their spectra (lines, *length), which are
// overwritten: (lines, *folded). Each of their frequencies is a sum of several. And the reverse: the
// spectra of lines with zeros between such elements repeat theirs.
Tensor fold_spectra(const Tiling& tiling, const Tensor& spectra);
Tensor repeat_spectra(const Tiling& tiling, const Tensor& spectra);

// out += a * conj(b) of `size` complex elements.
void add_conjugate_products(int64_t size, const float* a, const float* b, double* out);
void add_conjugate_products(int64_t size, const double* a, const double* b, double* out);

// The conjugate spectra (lines, C, *length) of float64 templates (lines, C, *window) that are not divided,
// over the number of elements that are transformed; in float64 if `wide`, otherwise in float32, and if
// `in_lines` in the order of long lines (in_place.h). Threads share them.
Tensor template_spectra(const Tiling& tiling, const Tensor& templates, bool wide,
                        bool in_lines = false);
// The spectrum of a part of one channel, (*window), divided in the same way but not conjugate, or half of
// it: written to the complex array (1, *length), which is a line in an order of its own (in_place.h), or
// (1, *half).
void template_part_spectrum(const Tiling& tiling, const double* channel, int64_t part,
                            const Tensor& x);

// The same: those that are given, if any, and others, made when a tile first needs them.
class TemplateSpectra {
 public:
  TemplateSpectra(const Tiling& tiling, const Tensor& coefficients,
                  const std::optional<Tensor>& given, bool in_lines = false);

  template <class T>
  const T* of(int64_t line) {
    return static_cast<const T*>(numbers(line, sizeof(T) == sizeof(double)));
  }

  // Makes one that will be needed soon, unless another worker has begun to. Workers that need several
  // make one each, where they would wait for the one who makes the first.
  template <class T>
  void prepare(int64_t line) {
    auto& begun = sizeof(T) == sizeof(double) ? wide_begun_ : narrow_begun_;
    if (!begun[line].exchange(true)) of<T>(line);
  }

 private:
  const void* numbers(int64_t line, bool wide);

  const Tiling tiling_;
  const Tensor coefficients_;
  const std::optional<Tensor> given_;
  const bool in_lines_;
  std::vector<Tensor> wide_, narrow_;
  std::unique_ptr<std::once_flag[]> wide_ready_, narrow_ready_;
  std::unique_ptr<std::atomic<bool>[]> wide_begun_, narrow_begun_;
};

}  // namespace torchcorr
