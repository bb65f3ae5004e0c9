// The spectra of templates that units of tiles are multiplied by. Most are made before the units are
// shared out, which for small images is a large part of the time that a second thread does not shorten.

#include <algorithm>

#include "common/parallel.h"
#include "tiles/in_place.h"
#include "tiles/spectra.h"

namespace torchcorr {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements from which on threads share the writing

// A part of one channel of a template, divided by as many elements as are transformed, with zeros behind
// it: as numbers that are `step` apart, in rows of so many numbers.
template <class T>
void write_part(const Tiling& t, const double* channel, const Axes3& which, T* to, int64_t step,
                int64_t width) {
  const double count = static_cast<double>(t.tile_size());
  const Axes3 part = t.part(), &n = t.length;
  parallel_for(0, n[0] * n[1], ceil_div(kGrain, width), [&](int64_t begin, int64_t end) {
    std::fill(to + begin * width, to + end * width, T(0));
    for (int64_t r = begin; r < end; ++r) {
      const Axes3 at{r / n[1], r % n[1], 0};
      Axes3 from;
      bool there = true;
      for (int i = 0; i < 3; ++i) {
        from[i] = which[i] * part[i] + at[i];
        there = there && at[i] < part[i] && from[i] < t.window[i];
      }
      const int64_t some = there ? std::min(t.window[2] - from[2], part[2]) : 0;
      const double* row = channel + (from[0] * t.window[1] + from[1]) * t.window[2] + from[2];
      T* first = to + r * width;
      for (int64_t i = 0; i < some; ++i) first[step * i] = static_cast<T>(row[i] / count);
    }
  });
}

// Writes one array behind another, for each channel of each template.
template <class T>
void write_templates(const Tiling& t, const Tensor& templates, T* to) {
  const double* from = templates.const_data_ptr<double>();
  for (int64_t i = 0; i < templates.size(0) * t.channels; ++i) {
    write_part(t, from, {0, 0, 0}, to, 2, 2 * t.length[2]);
    from += product(t.window), to += 2 * t.tile_size();
  }
}

Tensor template_spectra_of_batch(const Tensor& given, const Sizes& batch, bool wide,
                                 bool in_lines) {
  const Tensor templates = packed(given);
  Tiling tiling = TileBatch(batch).tiling;
  STD_TORCH_CHECK(templates.dim() == tiling.ndim + 2 &&
                      templates.scalar_type() == ScalarType::Double &&
                      last_sizes(templates, tiling.ndim) == tiling.window,
                  "templates must be float64 numbers (line, channel, *window)");
  STD_TORCH_CHECK(templates.numel() > 0, "templates must not be empty");
  tiling.channels = templates.size(1);
  return template_spectra(tiling, templates, wide, in_lines);
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

Tensor template_spectra(const Tiling& t, const Tensor& templates, bool wide, bool in_lines) {
  STD_TORCH_CHECK(!t.is_divided(), "spectra of parts are made one by one");
  const int64_t lines = templates.size(0);
  Sizes shape{lines * t.channels};
  for (int64_t n : sizes_of(t.length, t.ndim)) shape.push_back(n);
  const ScalarType type = wide ? ScalarType::ComplexDouble : ScalarType::ComplexFloat;
  Tensor all = new_tensor(shape, type);
  if (wide) {
    write_templates(t, templates, static_cast<double*>(all.mutable_data_ptr()));
  } else {
    write_templates(t, templates, static_cast<float*>(all.mutable_data_ptr()));
  }
  in_lines ? transform_lines_in_place(all, true) : transform_in_place(all, false, t.window);
  shape[0] = t.channels;
  shape.insert(shape.begin(), lines);
  return torch::stable::view(all, shape);
}

void template_part_spectrum(const Tiling& t, const double* channel, int64_t part, const Tensor& x) {
  const Axes3 which = unravel(part, t.parts);
  const bool half = x.size(x.dim() - 1) < t.length[2];
  const auto write = [&](auto* to) {
    write_part(t, channel, which, to, half ? 1 : 2, 2 * x.size(x.dim() - 1));
  };
  if (x.scalar_type() == ScalarType::ComplexDouble) {
    write(static_cast<double*>(x.mutable_data_ptr()));
  } else {
    write(static_cast<float*>(x.mutable_data_ptr()));
  }
  half ? transform_real_in_place(x, t.length[2], t.part()) : transform_lines_in_place(x);
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("has_own_transforms", TORCH_BOX(&torchcorr::has_own_transforms));
  m.impl("template_spectra", TORCH_BOX(&torchcorr::template_spectra_of_batch));
}
