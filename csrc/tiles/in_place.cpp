#include "tiles/in_place.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <vector>

#include "common/threads.h"
#include "tiles/spectra.h"

namespace torchcorr {
namespace {

// Bytes of a block, which stays in the cache of a core with its transform; but at least so many lines,
// whose elements lie side by side in memory where lines run across the rows.
constexpr int64_t kBytes = 1 << 17, kLines = 16;
// Elements along each axis of what is turned at once: whole cache lines of float32 numbers.
constexpr int64_t kTurned = 8;

template <class T>
using Complex = std::array<T, 2>;

// to[j * to_pitch + i] = from[i * from_pitch + j] for i < n and j < m.
template <class C>
void turn(int64_t n, int64_t m, const C* from, int64_t from_pitch, C* to, int64_t to_pitch) {
  for (int64_t i = 0; i < n; i += kTurned) {
    for (int64_t j = 0; j < m; j += kTurned) {
      const int64_t rows = std::min(kTurned, n - i), columns = std::min(kTurned, m - j);
      const C* first = from + i * from_pitch + j;
      C* place = to + j * to_pitch + i;
      const auto turn_some = [&](int64_t a, int64_t b) TORCHCORR_FLAT {
        for (int64_t column = 0; column < b; ++column) {
          for (int64_t row = 0; row < a; ++row) {
            place[column * to_pitch + row] = first[row * from_pitch + column];
          }
        }
      };
      rows == kTurned && columns == kTurned ? turn_some(kTurned, kTurned) : turn_some(rows, columns);
    }
  }
}

// Roots of unity exp(-2 pi i k / n), or their conjugates, each the product of one of few in the first
// part of the circle and one of few around it.
class Roots {
 public:
  Roots(int64_t n, bool conjugate) {
    while (step_ * step_ < n) step_ *= 2;
    for (int64_t k = 0; k < step_; ++k) near_.push_back(root(k, n, conjugate));
    for (int64_t k = 0; k < n; k += step_) far_.push_back(root(k, n, conjugate));
  }
  // The k-th, for 0 <= k < n.
  Complex<double> operator[](int64_t k) const { return product(far_[k / step_], near_[k % step_]); }

  static Complex<double> product(const Complex<double>& a, const Complex<double>& b) {
    return {a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]};
  }

 private:
  static Complex<double> root(int64_t k, int64_t n, bool conjugate) {
    const double angle = 2 * std::numbers::pi * static_cast<double>(k) / static_cast<double>(n);
    return {std::cos(angle), conjugate ? std::sin(angle) : -std::sin(angle)};
  }

  int64_t step_ = 1;
  std::vector<Complex<double>> near_, far_;
};

template <class T>
class InPlace {
  static constexpr int64_t kBlock = kBytes / static_cast<int64_t>(sizeof(Complex<T>));

 public:
  // Rows of `width` numbers, which are real or complex.
  InPlace(const Tensor& x, int64_t width, bool is_real)
      : all_(x), width_(width), is_real_(is_real), lines_(x.size(0)),
        length_(last_sizes(x, x.dim() - 1)),
        data_(static_cast<Complex<T>*>(x.mutable_data_ptr())) {
    STD_TORCH_CHECK(x.is_contiguous(), "an array that is transformed in its place must be packed");
    STD_TORCH_CHECK(length_[2] == (is_real ? width / 2 + 1 : width),
                    "rows must have room for their spectra");
    all_ = torch::stable::view(all_, {lines_ * length_[0] * length_[1], length_[2]});
  }

  // Rows of the first `some` planes and rows.
  void along_rows(const Axes3& some, bool forward) const {
    const int64_t n = length_[2];
    // Lines without other axes are rows that follow each other; two share the roots of unity.
    const bool is_line = length_[0] * length_[1] == 1;
    const int64_t planes = is_line ? 1 : lines_ * some[0], rows = is_line ? lines_ : some[1];
    const int64_t at_once = std::clamp<int64_t>(kBlock / n, is_line ? 2 : 1, std::max(rows, int64_t{2}));
    const int64_t blocks = ceil_div(rows, at_once);
    share(planes * blocks, [&](int64_t block) {
      const int64_t plane = block / blocks, first = block % blocks * at_once;
      const int64_t z = plane / some[0] * length_[0] + plane % some[0];
      transform_rows(z * length_[1] + first, std::min(at_once, rows - first), forward);
    });
  }

  // Along another axis, at the first `some` places of the axes before it.
  void across_rows(int axis, const Axes3& some, bool forward) const {
    across(axis, axis == 0 ? 1 : length_[0], axis == 0 ? 1 : some[0],
           [&](const Tensor& turned, int64_t) { return transform_axis(turned, 1, forward); });
  }

  // The columns of lines that are planes of n1 rows and n2 columns here, to spectra or back from them,
  // and what the order of these takes: with w(n) = exp(-2 pi i / n), X(k1 + n1 k2) is
  // sum_y w(n2)^(y k2) w(n1 n2)^(y k1) sum_x w(n1)^(x k1) line(x n2 + y).
  void across_lines(bool to_spectra, bool forward) const {
    const Roots roots(length_[1] * length_[2], !forward);
    across(1, 1, 1, [&](const Tensor& columns, int64_t first) {
      if (!to_spectra) rotate(roots, first, columns);
      const Tensor done = transform_axis(columns, 1, forward);
      if (to_spectra) rotate(roots, first, done);
      return done;
    });
  }

  // Along the first axis, there and back, and multiplied in between.
  void across_products(int axis, const Tensor& by) const {
    const int64_t pitch = pitch_of(axis);
    across(axis, 1, 1, [&](const Tensor& turned, int64_t first) {
      const int64_t lines = turned.size(0), n = turned.size(1);
      const Tensor spectra = transform_axis(turned, 1, true);
      auto* room = static_cast<Complex<T>*>(turned.mutable_data_ptr());
      T* numbers = static_cast<T*>(spectra.mutable_data_ptr());
      turn(n, lines, numbers_of(by) + first, pitch, room, n);
      multiply_conjugate(lines * n, false, numbers, room->data(), numbers);
      return transform_axis(spectra, 1, false);
    });
  }

 private:
  static const Complex<T>* numbers_of(const Tensor& x) {
    return static_cast<const Complex<T>*>(x.const_data_ptr());
  }

  // Multiplies element k of the i-th column by the root of number (first + i) k.
  static void rotate(const Roots& roots, int64_t first, const Tensor& columns) {
    constexpr int64_t kStep = 32;
    const int64_t n = columns.size(1);
    std::vector<Complex<T>> factors(n);
    std::array<Complex<double>, kStep> near;
    for (int64_t i = 0; i < columns.size(0); ++i) {
      for (int64_t k = 0; k < std::min(kStep, n); ++k) near[k] = roots[(first + i) * k];
      for (int64_t k = 0; k < n; k += kStep) {
        const Complex<double> far = roots[(first + i) * k];
        for (int64_t l = 0; l < std::min(kStep, n - k); ++l) {
          const Complex<double> root = Roots::product(far, near[l]);
          factors[k + l] = {static_cast<T>(root[0]), static_cast<T>(root[1])};
        }
      }
      T* column = static_cast<T*>(columns.mutable_data_ptr()) + 2 * i * n;
      multiply_complex(n, false, column, factors.data()->data(), column);
    }
  }

  void transform_rows(int64_t first, int64_t rows, bool forward) const {
    Tensor all = all_;
    Tensor some = torch::stable::narrow(all, 0, first, rows);
    Complex<T>* to = data_ + first * length_[2];
    if (is_real_ && !forward) {
      const Tensor done = transform_to_real(some, width_);
      const T* from = static_cast<const T*>(done.const_data_ptr());
      for (int64_t row = 0; row < rows; ++row) {
        std::copy_n(from + row * width_, width_, to[row * length_[2]].data());
      }
      return;
    }
    Tensor done = is_real_ ? transform_real(real_rows(some)) : transform_axis(some, 1, forward);
    std::copy_n(numbers_of(done), rows * length_[2], to);
  }

  // The real numbers of rows that have room for their spectra: (rows, width).
  Tensor real_rows(const Tensor& rows) const {
    Tensor real = torch::stable::flatten(view_as_real(rows), 1, 2);
    return torch::stable::narrow(real, 1, 0, width_);
  }

  // Elements from one to the next of a line along an axis.
  int64_t pitch_of(int axis) const { return axis == 0 ? length_[1] * length_[2] : length_[2]; }

  // Replaces lines along an axis, at the first `some` of `each` places before it, by what f makes of several
  // of them, (lines, n), and of the number of the first one.
  template <class F>
  void across(int axis, int64_t each, int64_t some, const F& f) const {
    // Planes lie so far apart that more lines side by side pay.
    const int64_t n = length_[axis], pitch = pitch_of(axis), elements = axis == 0 ? 2 * kBlock : kBlock;
    const int64_t wanted = std::max(kLines, elements / n / kTurned * kTurned);
    const int64_t blocks = ceil_div(pitch, wanted);
    share(lines_ * some * blocks, [&](int64_t block) {
      const int64_t place = block / blocks, first = block % blocks * wanted;
      const int64_t lines = std::min(wanted, pitch - first);
      Complex<T>* at = data_ + (place / some * each + place % some) * n * pitch + first;
      const Tensor turned = new_tensor(all_, {lines, n});
      turn(n, lines, at, pitch, static_cast<Complex<T>*>(turned.mutable_data_ptr()), n);
      turn(lines, n, numbers_of(f(turned, first)), n, at, pitch);
    });
  }

  Tensor all_;
  const int64_t width_;
  const bool is_real_;
  const int64_t lines_;
  const Axes3 length_;
  Complex<T>* data_;
};

template <class F>
void with_complex_type(const Tensor& x, const F& f) {
  x.scalar_type() == ScalarType::ComplexDouble ? f(double{}) : f(float{});
}

int first_axis(const Tensor& x) { return 4 - static_cast<int>(x.dim()); }

// Forward: rows first, so that those of zeros are left out.
template <class T>
void transform_axes(const InPlace<T>& lines, const Tensor& x, bool forward, const Axes3& some) {
  lines.along_rows(some, forward);
  for (int axis = 1; axis >= first_axis(x); --axis) lines.across_rows(axis, some, forward);
}

// Lines (lines, n) as planes.
Tensor folded(const Tensor& x) {
  const int64_t n = x.size(1), rows = rows_of_line(n);
  Tensor lines = x;
  return torch::stable::view(lines, {x.size(0), rows, n / rows});
}

}  // namespace

int64_t rows_of_line(int64_t n) {
  int64_t rows = 1;
  for (int64_t k = 2; k * k <= n; ++k) {
    if (n % k == 0) rows = k;
  }
  return rows;
}

void transform_lines_in_place(const Tensor& x, bool conjugate) {
  with_complex_type(x, [&](auto zero) {
    const Tensor planes = folded(x);
    const InPlace<decltype(zero)> lines(planes, planes.size(2), false);
    lines.across_lines(true, !conjugate);
    lines.along_rows(last_sizes(planes, 2), !conjugate);
  });
}

void restore_lines_in_place(const Tensor& x, bool conjugate) {
  with_complex_type(x, [&](auto zero) {
    const Tensor planes = folded(x);
    const InPlace<decltype(zero)> lines(planes, planes.size(2), false);
    lines.along_rows(last_sizes(planes, 2), conjugate);
    lines.across_lines(false, conjugate);
  });
}

void transform_in_place(const Tensor& x, bool forward, const Axes3& some) {
  with_complex_type(x, [&](auto zero) {
    transform_axes(InPlace<decltype(zero)>(x, x.size(x.dim() - 1), false), x, forward, some);
  });
}

// The last axis last, so that rows behind `some` are left out.
void restore_in_place(const Tensor& x, const Axes3& some) {
  with_complex_type(x, [&](auto zero) {
    const InPlace<decltype(zero)> lines(x, x.size(x.dim() - 1), false);
    for (int axis = first_axis(x); axis < 2; ++axis) lines.across_rows(axis, some, false);
    lines.along_rows(some, false);
  });
}

void transform_real_in_place(const Tensor& x, int64_t width, const Axes3& some) {
  with_complex_type(x, [&](auto zero) {
    transform_axes(InPlace<decltype(zero)>(x, width, true), x, true, some);
  });
}

void restore_real_in_place(const Tensor& x, int64_t width) {
  with_complex_type(x, [&](auto zero) {
    const InPlace<decltype(zero)> lines(x, width, true);
    const Axes3 all = last_sizes(x, x.dim() - 1);
    for (int axis = first_axis(x); axis < 2; ++axis) lines.across_rows(axis, all, false);
    lines.along_rows(all, false);
  });
}

void correlate_real_in_place(const Tensor& x, int64_t width, const Tensor& by) {
  STD_TORCH_CHECK(x.dim() > 2, "lines have no axis across their rows");
  with_complex_type(x, [&](auto zero) {
    const InPlace<decltype(zero)> lines(x, width, true);
    const Axes3 all = last_sizes(x, x.dim() - 1);
    const int first = first_axis(x);
    lines.along_rows(all, true);
    for (int axis = 1; axis > first; --axis) lines.across_rows(axis, all, true);
    lines.across_products(first, by);
    for (int axis = first + 1; axis < 2; ++axis) lines.across_rows(axis, all, false);
    lines.along_rows(all, false);
  });
}

namespace {

// With a width that is not 0, of real numbers: forward or back.
void transform_given(const Tensor& x, bool forward, Sizes some, int64_t width) {
  if (width == 0) return transform_in_place(x, forward, last_axes(some));
  forward ? transform_real_in_place(x, width, last_axes(some)) : restore_real_in_place(x, width);
}

void restore_given(const Tensor& x, Sizes some) { restore_in_place(x, last_axes(some)); }

// Returns the rows of a line.
int64_t transform_given_lines(const Tensor& x, bool to_spectra, bool conjugate) {
  to_spectra ? transform_lines_in_place(x, conjugate) : restore_lines_in_place(x, conjugate);
  return rows_of_line(x.size(1));
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("transform_in_place", TORCH_BOX(&torchcorr::transform_given));
  m.impl("restore_in_place", TORCH_BOX(&torchcorr::restore_given));
  m.impl("transform_lines_in_place", TORCH_BOX(&torchcorr::transform_given_lines));
}
