#include "tiles/spectra.h"

#include <algorithm>

namespace torchcorr {
namespace {

template <class... Args>
Tensor call_operator(const char* name, const Args&... args) {
  StableIValue stack[] = {torch::stable::detail::from(args)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// out = a * b, or out += a * b, of n complex numbers, or with the conjugate of b.
template <bool ADD, bool CONJUGATE, class T>
TORCHCORR_INLINE void multiply_row(int64_t n, const T* a, const T* b, T* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < 2 * n; i += 2) {
    const T turned = CONJUGATE ? -b[i + 1] : b[i + 1];
    const T re = a[i] * b[i] - a[i + 1] * turned, im = a[i] * turned + a[i + 1] * b[i];
    out[i] = ADD ? out[i] + re : re;
    out[i + 1] = ADD ? out[i + 1] + im : im;
  }
}

// In parts whose sums over channels stay in the first cache.
template <class T>
void multiply_tiles(const SpectraSizes& n, bool add, const T* spectrum, const T* other, T* out) {
  constexpr int64_t kPart = 1024;
  const int64_t part = n.channels > 1 ? kPart : n.size;
  for (int64_t i = 0; i < n.tiles; ++i) {
    for (int64_t from = 0; from < n.size; from += part) {
      for (int64_t c = 0; c < n.channels; ++c) {
        multiply_complex(std::min(part, n.size - from), add || c > 0,
                         spectrum + 2 * ((i * n.channels + c) * n.size + from),
                         other + 2 * (c * n.size + from), out + 2 * (i * n.size + from));
      }
    }
  }
}

// to = the sum of n numbers each of `folds` parts of a row, or to += that. Writes at or before what
// it reads.
template <class T>
TORCHCORR_INLINE void fold_row(int64_t n, int64_t folds, bool add, const T* from, T* to) {
  for (int64_t part = 0; part < folds; ++part, from += n) {
    if (add || part > 0) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) to[i] += from[i];
    } else if (to != from) {
      std::copy(from, from + n, to);
    }
  }
}
TORCHCORR_CLONES void fold(int64_t n, int64_t folds, bool add, const float* from, float* to) {
  fold_row(n, folds, add, from, to);
}
TORCHCORR_CLONES void fold(int64_t n, int64_t folds, bool add, const double* from, double* to) {
  fold_row(n, folds, add, from, to);
}

Sizes lines_of(int64_t count, const Axes3& size, int64_t ndim) {
  Sizes shape{count};
  for (int64_t n : sizes_of(size, ndim)) shape.push_back(n);
  return shape;
}

// Calls f(row of all, row of the folded ones, whether it is the first of several) for the rows of
// lines: those that are added up one behind the other, no row before all of a smaller folded row.
template <class F>
void for_folded_rows(const Tiling& t, int64_t lines, const F& f) {
  const Axes3 &all = t.length, some = t.folded();
  for (int64_t u = 0; u < lines * some[0] * some[1]; ++u) {
    const Axes3 at = unravel(u, {lines, some[0], some[1]});
    for (int64_t z = at[1]; z < all[0]; z += some[0]) {
      for (int64_t y = at[2]; y < all[1]; y += some[1]) {
        f((at[0] * all[0] + z) * all[1] + y, u, z == at[1] && y == at[2]);
      }
    }
  }
}

}  // namespace

Tensor fold_spectra(const Tiling& t, const Tensor& spectra) {
  if (!t.is_folded()) return spectra;
  const int64_t lines = spectra.size(0), n = 2 * t.folded()[2], width = 2 * t.length[2];
  const auto run = [&](auto* numbers) {
    for_folded_rows(t, lines, [&](int64_t from, int64_t to, bool first) {
      fold(n, t.folds[2], !first, numbers + from * width, numbers + to * n);
    });
  };
  if (spectra.scalar_type() == ScalarType::ComplexFloat) {
    run(static_cast<float*>(spectra.mutable_data_ptr()));
  } else {
    run(static_cast<double*>(spectra.mutable_data_ptr()));
  }
  Tensor flat = torch::stable::flatten(spectra, 0, -1);
  flat = torch::stable::narrow(flat, 0, 0, lines * t.folded_size());
  return torch::stable::view(flat, lines_of(lines, t.folded(), t.ndim));
}

Tensor repeat_spectra(const Tiling& t, const Tensor& spectra) {
  if (!t.is_folded()) return spectra;
  const int64_t lines = spectra.size(0);
  const Tensor all = new_tensor(spectra, lines_of(lines, t.length, t.ndim));
  const auto run = [&](const auto* from, auto* to) {
    const int64_t n = 2 * t.folded()[2];
    for_folded_rows(t, lines, [&](int64_t row, int64_t folded, bool) {
      for (int64_t part = 0; part < t.folds[2]; ++part) {
        std::copy_n(from + folded * n, n, to + (row * t.folds[2] + part) * n);
      }
    });
  };
  if (spectra.scalar_type() == ScalarType::ComplexFloat) {
    run(static_cast<const float*>(spectra.const_data_ptr()),
        static_cast<float*>(all.mutable_data_ptr()));
  } else {
    run(static_cast<const double*>(spectra.const_data_ptr()),
        static_cast<double*>(all.mutable_data_ptr()));
  }
  return all;
}

#define TORCHCORR_MULTIPLY(T)                                                                      \
  TORCHCORR_CLONES void multiply_complex(int64_t n, bool add, const T* a, const T* b, T* out) {    \
    add ? multiply_row<true, false>(n, a, b, out) : multiply_row<false, false>(n, a, b, out);      \
  }                                                                                                \
  TORCHCORR_CLONES void multiply_conjugate(int64_t n, bool add, const T* a, const T* b, T* out) {  \
    add ? multiply_row<true, true>(n, a, b, out) : multiply_row<false, true>(n, a, b, out);        \
  }
TORCHCORR_MULTIPLY(float)
TORCHCORR_MULTIPLY(double)
#undef TORCHCORR_MULTIPLY

#define TORCHCORR_ADD_CONJUGATE(T)                                                         \
  TORCHCORR_CLONES void add_conjugate_products(int64_t size, const T* a, const T* b,       \
                                               double* out) {                              \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < 2 * size; i += 2) {                       \
      out[i] += static_cast<double>(a[i] * b[i] + a[i + 1] * b[i + 1]);                    \
      out[i + 1] += static_cast<double>(a[i + 1] * b[i] - a[i] * b[i + 1]);                \
    }                                                                                      \
  }
TORCHCORR_ADD_CONJUGATE(float)
TORCHCORR_ADD_CONJUGATE(double)
#undef TORCHCORR_ADD_CONJUGATE

Tensor transform(const Tensor& x, bool forward) {
  Sizes axes;
  for (int64_t axis = 1; axis < x.dim(); ++axis) axes.push_back(axis);
  return call_operator("aten::_fft_c2c", x, axes, int64_t{0}, forward);
}

Tensor transform_axis(const Tensor& x, int64_t axis, bool forward) {
  return call_operator("aten::_fft_c2c", x, Sizes{axis}, int64_t{0}, forward);
}

Tensor transform_real(const Tensor& rows) {
  return call_operator("aten::_fft_r2c", rows, Sizes{1}, int64_t{0}, true);
}

Tensor transform_to_real(const Tensor& rows, int64_t width) {
  return call_operator("aten::_fft_c2r", rows, Sizes{1}, int64_t{0}, width);
}

Tensor view_as_real(const Tensor& x) { return call_operator("aten::view_as_real", x); }

Tensor lines_of_tiles(const Tensor& tiles) {
  return torch::stable::flatten(call_operator("aten::view_as_complex", tiles), 0, 1);
}

Tensor tiles_of_lines(const Tensor& lines) {
  return torch::stable::unsqueeze(view_as_real(lines), 1);
}

void multiply_spectra(const SpectraSizes& sizes, bool add, const float* spectrum,
                      const float* other, float* out) {
  multiply_tiles(sizes, add, spectrum, other, out);
}
void multiply_spectra(const SpectraSizes& sizes, bool add, const double* spectrum,
                      const double* other, double* out) {
  multiply_tiles(sizes, add, spectrum, other, out);
}

TemplateSpectra::TemplateSpectra(const Tiling& tiling, const Tensor& coefficients,
                                 const std::optional<Tensor>& given, bool in_lines)
    : tiling_(tiling), coefficients_(coefficients), given_(given), in_lines_(in_lines) {
  const int64_t lines = coefficients.size(0) * coefficients.size(1);
  wide_.resize(lines), narrow_.resize(lines);
  wide_ready_.reset(new std::once_flag[lines]);
  narrow_ready_.reset(new std::once_flag[lines]);
  wide_begun_.reset(new std::atomic<bool>[lines]());
  narrow_begun_.reset(new std::atomic<bool>[lines]());
}

const void* TemplateSpectra::numbers(int64_t line, bool wide) {
  if (given_ && wide == (given_->scalar_type() == ScalarType::ComplexDouble)) {
    const int64_t numbers = 2 * line * tiling_.channels * tiling_.tile_size();
    const char* first = static_cast<const char*>(given_->const_data_ptr());
    return first + numbers * static_cast<int64_t>(wide ? sizeof(double) : sizeof(float));
  }
  STD_TORCH_CHECK(wide || !given_, "float64 spectra are not rounded to float32");
  Tensor& made = wide ? wide_[line] : narrow_[line];
  std::call_once(wide ? wide_ready_[line] : narrow_ready_[line], [&] {
    Tensor all = torch::stable::flatten(coefficients_, 0, 1);
    made = template_spectra(tiling_, torch::stable::narrow(all, 0, line, 1), wide, in_lines_);
  });
  return made.const_data_ptr();
}

}  // namespace torchcorr
