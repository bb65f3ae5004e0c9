// The spectra of templates that units of tiles are multiplied by. Most are made before the units are
// shared out, which for small images is a large part of the time that a second thread does not shorten.

#include <algorithm>

#include "tiles/spectra.h"

namespace torchcorr {
namespace {

// PyTorch's transforms divide one line among threads from this length on, outside of workers, and its
// rounding depends on how many there are.
constexpr int64_t kLongLine = 4096;

// Templates (lines, C, *window) over the elements of a tile as complex numbers: the parts of their
// windows, (lines * parts * C, *size), with zeros from the end of a part on.
template <class T>
void write_parts(const Tiling& t, const Tensor& templates, const Axes3& size, T* to) {
  const double* from = templates.const_data_ptr<double>();
  const double count = static_cast<double>(t.tile_size());
  const Axes3 part = t.part();
  for (int64_t line = 0; line < templates.size(0); ++line, from += t.window_size()) {
    for (int64_t u = 0; u < product(t.parts) * t.channels * size[0] * size[1]; ++u) {
      const Axes3 which = unravel(u / (t.channels * size[0] * size[1]), t.parts);
      const Axes3 at = unravel(u, {t.channels, size[0], size[1]});
      const int64_t c = at[0] % t.channels;
      const int64_t z = which[0] * part[0] + at[1], y = which[1] * part[1] + at[2];
      const int64_t x = which[2] * part[2];
      int64_t n = 0;
      if (at[1] < part[0] && at[2] < part[1] && z < t.window[0] && y < t.window[1]) {
        n = std::clamp<int64_t>(t.window[2] - x, 0, part[2]);
      }
      const double* row = from + ((c * t.window[0] + z) * t.window[1] + y) * t.window[2] + x;
      for (int64_t i = 0; i < n; ++i, to += 2) to[0] = static_cast<T>(row[i] / count), to[1] = 0;
      std::fill_n(to, 2 * (size[2] - n), T(0));
      to += 2 * (size[2] - n);
    }
  }
}

// Rows of `n` numbers with zeros behind them, so that there are `m`.
template <class T>
void lengthen(int64_t rows, int64_t n, int64_t m, const T* from, T* to) {
  for (int64_t row = 0; row < rows; ++row, from += n, to += m) {
    std::copy_n(from, n, to);
    std::fill_n(to + n, m - n, T(0));
  }
}

template <class T>
Tensor spectra_of(const Tiling& t, const Tensor& templates, ScalarType type, bool in_worker) {
  const int64_t first = 3 - t.ndim, lines = templates.size(0) * product(t.parts) * t.channels;
  const auto shape_of = [&](int64_t count, const Axes3& size) {
    Sizes shape{count};
    for (int64_t i = first; i < 3; ++i) shape.push_back(size[i]);
    return shape;
  };
  // Axis by axis, so that lines of zeros are not transformed.
  Axes3 size = t.part();
  size[first] = t.length[first];
  const bool twice = !in_worker && t.ndim == 1 && lines == 1 && size[first] >= kLongLine;
  Tensor x = torch::stable::new_empty(templates, shape_of(lines * (twice ? 2 : 1), size), type);
  T* to = static_cast<T*>(x.mutable_data_ptr());
  write_parts(t, templates, size, to);
  if (twice) std::copy_n(to, 2 * size[first], to + 2 * size[first]);
  // A transform over an axis that is not the last may leave it last in memory.
  x = packed(transform_axis(x, 1, false));
  for (int64_t axis = first + 1; axis < 3; ++axis) {
    int64_t rows = lines, inner = 2;
    for (int64_t i = first; i < axis; ++i) rows *= size[i];
    for (int64_t i = axis + 1; i < 3; ++i) inner *= size[i];
    const int64_t n = size[axis] * inner, m = t.length[axis] * inner;
    size[axis] = t.length[axis];
    Tensor longer = torch::stable::new_empty(templates, shape_of(lines, size), type);
    lengthen(rows, n, m, static_cast<const T*>(x.const_data_ptr()),
             static_cast<T*>(longer.mutable_data_ptr()));
    x = packed(transform_axis(longer, axis - first + 1, false));
  }
  Sizes shape{templates.size(0), lines / templates.size(0)};
  for (int64_t i = first; i < 3; ++i) shape.push_back(size[i]);
  return torch::stable::view(twice ? torch::stable::narrow(x, 0, 0, 1) : x, shape);
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
  return template_spectra(tiling, templates, wide, false);
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

Tensor template_spectra(const Tiling& tiling, const Tensor& templates, bool wide, bool in_worker) {
  return wide ? spectra_of<double>(tiling, templates, ScalarType::ComplexDouble, in_worker)
              : spectra_of<float>(tiling, templates, ScalarType::ComplexFloat, in_worker);
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("has_own_transforms", TORCH_BOX(&torchcorr::has_own_transforms));
  m.impl("template_spectra", TORCH_BOX(&torchcorr::template_spectra_of_batch));
}
