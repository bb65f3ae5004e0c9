// The spectra of templates that units of tiles are multiplied by. Most are made before the units are
// shared out, which for small images is a large part of the time that a second thread does not shorten.

#include <algorithm>
#include <array>

#include "common/threads.h"
#include "tiles/spectra.h"

namespace torchcorr {
namespace {

template <class T>
using Complex = std::array<T, 2>;

// Elements that are transformed at once. A transform may be rounded in another way among others, so
// their number does not depend on the threads.
constexpr int64_t kAtOnce = 1 << 14;

// Templates (lines, C, *window) over the elements of a tile as complex numbers: the parts of their
// windows, (lines * parts * C, *part), with zeros from the end of a window on.
template <class T>
void write_parts(const Tiling& t, const Tensor& templates, T* to) {
  const double* from = templates.const_data_ptr<double>();
  const double count = static_cast<double>(t.tile_size());
  const Axes3 part = t.part();
  for (int64_t line = 0; line < templates.size(0); ++line, from += t.window_size()) {
    for (int64_t u = 0; u < product(t.parts) * t.channels * part[0] * part[1]; ++u) {
      const Axes3 which = unravel(u / (t.channels * part[0] * part[1]), t.parts);
      const Axes3 at = unravel(u, {t.channels, part[0], part[1]});
      const int64_t c = at[0] % t.channels;
      const int64_t z = which[0] * part[0] + at[1], y = which[1] * part[1] + at[2];
      const int64_t x = which[2] * part[2];
      int64_t n = 0;
      if (z < t.window[0] && y < t.window[1]) n = std::clamp<int64_t>(t.window[2] - x, 0, part[2]);
      const double* row = from + ((c * t.window[0] + z) * t.window[1] + y) * t.window[2] + x;
      for (int64_t i = 0; i < n; ++i, to += 2) to[0] = static_cast<T>(row[i] / count), to[1] = 0;
      to = std::fill_n(to, 2 * (part[2] - n), T(0));
    }
  }
}

// Copies rows of `width` numbers between places that are so many numbers apart.
template <class C>
void copy_columns(int64_t rows, int64_t width, const C* from, int64_t pitch, C* to,
                  int64_t pitch_to) {
  if (pitch == width && pitch_to == width) width *= rows, rows = 1;
  for (int64_t i = 0; i < rows; ++i) std::copy_n(from + i * pitch, width, to + i * pitch_to);
}

// The transforms of lines of `length` numbers, (outer, length, inner), from the first `n` numbers of
// each, behind which are zeros.
template <class T>
Tensor transform_lines(const Tensor& x, int64_t outer, int64_t n, int64_t length, int64_t inner) {
  const Tensor all = torch::stable::new_empty(x, {outer * length * inner});
  // At once are several such blocks, or some columns of one.
  const int64_t columns = std::clamp<int64_t>(kAtOnce / length, 1, inner);
  const int64_t rows = std::max<int64_t>(1, kAtOnce / (length * columns));
  const int64_t parts_of_row = ceil_div(inner, columns);
  const auto* from = static_cast<const Complex<T>*>(x.const_data_ptr());
  auto* to = static_cast<Complex<T>*>(all.mutable_data_ptr());
  share(ceil_div(outer, rows) * parts_of_row, [&](int64_t part) {
    const int64_t first = part / parts_of_row * rows, count = std::min(rows, outer - first);
    const int64_t column = part % parts_of_row * columns;
    const int64_t width = std::min(columns, inner - column);
    Tensor some = torch::stable::new_empty(
        x, width == 1 ? Sizes{count, length} : Sizes{count, length, width});
    auto* numbers = static_cast<Complex<T>*>(some.mutable_data_ptr());
    for (int64_t i = first; i < first + count; ++i) {
      copy_columns(n, width, from + i * n * inner + column, inner, numbers, width);
      numbers = std::fill_n(numbers + n * width, (length - n) * width, Complex<T>{});
    }
    // A transform over an axis that is not the last may leave it last in memory.
    some = packed(transform_axis(some, 1, false));
    const auto* result = static_cast<const Complex<T>*>(some.const_data_ptr());
    copy_columns(count * length, width, result, width, to + first * length * inner + column, inner);
  });
  return all;
}

template <class T>
Tensor spectra_of(const Tiling& t, const Tensor& templates, ScalarType type) {
  const int64_t first = 3 - t.ndim, parts = product(t.parts) * t.channels;
  Axes3 size = t.part();
  Tensor x = torch::stable::new_empty(templates, {templates.size(0) * parts, product(size)}, type);
  write_parts(t, templates, static_cast<T*>(x.mutable_data_ptr()));
  // Axis by axis, so that lines of zeros are not transformed.
  int64_t outer = templates.size(0) * parts;
  for (int64_t axis = first; axis < 3; ++axis) {
    int64_t inner = 1;
    for (int64_t i = axis + 1; i < 3; ++i) inner *= size[i];
    x = transform_lines<T>(x, outer, size[axis], t.length[axis], inner);
    outer *= t.length[axis];
  }
  Sizes shape{templates.size(0), parts};
  for (int64_t i = first; i < 3; ++i) shape.push_back(t.length[i]);
  return torch::stable::view(x, shape);
}

Tensor template_spectra_of_batch(const Tensor& given, const Sizes& batch, bool wide) {
  const Tensor templates = packed(given);
  Tiling tiling = TileBatch(batch).tiling;
  STD_TORCH_CHECK(templates.dim() == tiling.ndim + 2 &&
                      templates.scalar_type() == ScalarType::Double &&
                      last_sizes(templates, tiling.ndim) == tiling.window,
                  "templates must be float64 numbers (line, channel, *window)");
  STD_TORCH_CHECK(templates.numel() > 0, "templates must not be empty");
  tiling.channels = templates.size(1);
  return template_spectra(tiling, templates, wide);
}

// Whether PyTorch's library of transforms has code for this CPU: MKL takes generic code on those of
// other makers than its own.
bool has_own_transforms(const Tensor&) {
#if defined(__x86_64__) && defined(__GNUC__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

}  // namespace

Tensor template_spectra(const Tiling& tiling, const Tensor& templates, bool wide) {
  return wide ? spectra_of<double>(tiling, templates, ScalarType::ComplexDouble)
              : spectra_of<float>(tiling, templates, ScalarType::ComplexFloat);
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("has_own_transforms", TORCH_BOX(&torchcorr::has_own_transforms));
  m.impl("template_spectra", TORCH_BOX(&torchcorr::template_spectra_of_batch));
}
