#include "tiles/large_tiles.h"

#include <algorithm>
#include <array>

#include "common/large_pages.h"
#include "common/threads.h"
#include "tiles/centre.h"
#include "tiles/in_place.h"
#include "tiles/spectra.h"

namespace torchcorr {
namespace {

constexpr int64_t kBlock = 1 << 15;  // elements that a thread takes at once
constexpr int64_t kPiece = 1 << 10;  // elements of a line that stay in the first cache

Tensor some_of(const Tensor& x, int64_t first, int64_t count) {
  Tensor all = x;
  return torch::stable::narrow(all, 0, first, count);
}

Axes3 size_of_array(const Tiling& t) { return t.ndim == 1 ? t.length : half_of(t.length); }

// Of a spectrum of real numbers that is kept: of a line the rows whose conjugates the others are.
Axes3 size_of_kept(const Tiling& t) {
  if (t.ndim > 1) return half_of(t.length);
  const int64_t n = t.length[2], rows = rows_of_line(n);
  return {1, 1, (rows / 2 + 1) * (n / rows)};
}

Tensor new_arrays(const Tiling& t, const Axes3& size, bool wide, int64_t count) {
  Sizes shape{count};
  for (int64_t n : sizes_of(size, t.ndim)) shape.push_back(n);
  const ScalarType type = wide ? ScalarType::ComplexDouble : ScalarType::ComplexFloat;
  const Tensor x = new_tensor(shape, type);
  take_large_pages(x);
  return x;
}

// Calls f(zero of the real type).
template <class F>
void with_width(bool wide, const F& f) {
  wide ? f(double{}) : f(float{});
}

}  // namespace

void LargeTemplate::make(int64_t i, const Tensor& to) const {
  template_part_spectrum(t_, elements_ + i % t_.channels * product(t_.window), i / t_.channels, to);
}

void LargeTemplate::keep(bool wide) {
  const int64_t count = product(t_.parts) * t_.channels;
  kept_ = new_arrays(t_, size_of_kept(t_), wide, count);
  if (t_.ndim > 1) {
    for (int64_t i = 0; i < count; ++i) make(i, some_of(*kept_, i, 1));
    return;
  }
  const int64_t n = size_of_kept(t_)[2];
  const Tensor line = new_arrays(t_, t_.length, wide, 1);
  for (int64_t i = 0; i < count; ++i) {
    make(i, line);
    with_width(wide, [&](auto zero) {
      using T = decltype(zero);
      std::copy_n(static_cast<const T*>(line.const_data_ptr()), 2 * n,
                  static_cast<T*>(kept_->mutable_data_ptr()) + 2 * i * n);
    });
  }
}

bool LargeTemplate::keeps(bool wide) const {
  return kept_ && (kept_->scalar_type() == ScalarType::ComplexDouble) == wide;
}

Tensor LargeTemplate::kept(int64_t i) const { return some_of(*kept_, i, 1); }

std::vector<LargeTemplate> large_templates(const Tiling& tiling, const Tensor& templates,
                                           const Block& block, bool wide) {
  std::vector<LargeTemplate> all;
  const double* elements = templates.const_data_ptr<double>();
  for (int64_t line = 0; block.large && line < block.pairs() * block.templates(); ++line) {
    all.emplace_back(tiling, elements + line * tiling.window_size());
    if (block.kept) all.back().keep(wide);
  }
  return all;
}

// A single array of products takes the place of what is multiplied. Elsewhere what is multiplied, and the
// spectrum of a template before it, leave their room to the sums of two tiles.
LargeTiles::LargeTiles(const Tiling& tiling, bool wide, int64_t tiles)
    : t_(tiling), wide_(wide), are_lines_(tiling.ndim == 1), most_(tiles),
      arrays_(are_lines_ ? ceil_div(tiles, 2) : tiles),
      of_template_(product(tiling.parts) * tiling.channels),
      at_once_(of_template_ == 1 || are_lines_ ? arrays_ : 1),
      sums_(new_arrays(tiling, size_of_array(tiling), wide, arrays_)),
      room_(new_arrays(tiling, size_of_array(tiling), wide,
                       are_lines_ ? (of_template_ > 1 ? at_once_ : 0) : 2)) {}

LargeTiles& LargeTiles::of(Scratch& scratch, const Tiling& tiling, bool wide, int64_t tiles) {
  std::shared_ptr<LargeTiles>& kept = scratch.large_tiles;
  if (!kept || kept->wide_ != wide || kept->most_ < tiles) {
    kept.reset();
    kept = std::make_shared<LargeTiles>(tiling, wide, tiles);
  }
  return *kept;
}

void LargeTiles::correlate(int64_t tiles, const LargeTemplate& templ, const CutPart& cut) {
  const int64_t all = are_lines_ ? ceil_div(tiles, 2) : tiles;
  const Axes3 part = t_.part();
  const bool is_kept = templ.keeps(wide_), is_one = of_template_ == 1 && !are_lines_;
  if (are_lines_ && !line_ && !is_kept) line_ = new_arrays(t_, t_.length, wide_, 1);
  for (int64_t i = 0; i < of_template_; ++i) {
    const int64_t channel = i % t_.channels;
    const Axes3 which = unravel(i / t_.channels, t_.parts);
    const Axes3 from{which[0] * part[0], which[1] * part[1], which[2] * part[2]};
    const Tensor spectrum = is_kept ? templ.kept(i) : are_lines_ ? *line_ : some_of(room_, 0, 1);
    if (!is_kept) templ.make(i, spectrum);
    for (int64_t first = 0; first < all; first += at_once_) {
      const int64_t count = std::min(at_once_, all - first);
      const Tensor arrays =
          of_template_ == 1 ? some_of(sums_, 0, count) : some_of(room_, are_lines_ ? 0 : 1, count);
      cut_arrays(cut, first, count, from, channel, arrays);
      if (is_one) {
        correlate_real_in_place(arrays, t_.length[2], spectrum);
        continue;
      }
      transform(arrays);
      multiply(first, count, arrays, spectrum, i > 0);
    }
  }
  if (is_one) return;
  const Tensor sums = some_of(sums_, 0, all);
  if (are_lines_) {
    restore_lines_in_place(sums);
  } else {
    restore_real_in_place(sums, t_.length[2]);
  }
}

void LargeTiles::cut_arrays(const CutPart& cut, int64_t first, int64_t count, const Axes3& from,
                            int64_t channel, const Tensor& to) const {
  for (int64_t i = 0; i < count; ++i) {
    if (are_lines_) {
      cut_two_lines(cut, 2 * (first + i), from, channel, some_of(to, i, 1));
      continue;
    }
    void* place = some_of(to, i, 1).mutable_data_ptr();
    cut(first + i, {from, t_.length, channel, place, 2 * half_of(t_.length)[2], wide_});
  }
}

void LargeTiles::cut_two_lines(const CutPart& cut, int64_t i, const Axes3& from, int64_t channel,
                               const Tensor& to) const {
  with_width(wide_, [&](auto zero) {
    using T = decltype(zero);
    std::array<T, 2 * kPiece> piece;
    T* numbers = static_cast<T*>(to.mutable_data_ptr());
    for (int64_t x = 0; x < t_.length[2]; x += kPiece) {
      const int64_t n = std::min(kPiece, t_.length[2] - x);
      for (int64_t lane = 0; lane < 2; ++lane) {
        T* place = piece.data() + lane * n;
        cut(i + lane, {{0, 0, from[2] + x}, {1, 1, n}, channel, place, n, wide_});
      }
      zip(n, piece.data(), piece.data() + n, numbers + 2 * x);
    }
  });
}

void LargeTiles::transform(const Tensor& arrays) const {
  if (are_lines_) {
    transform_lines_in_place(arrays);
  } else {
    transform_real_in_place(arrays, t_.length[2], t_.length);
  }
}

void LargeTiles::multiply(int64_t first, int64_t count, const Tensor& arrays,
                          const Tensor& spectrum, bool add) const {
  const int64_t n = product(size_of_array(t_));
  with_width(wide_, [&](auto zero) {
    using T = decltype(zero);
    const T* by = static_cast<const T*>(spectrum.const_data_ptr());
    const T* from = static_cast<const T*>(arrays.const_data_ptr());
    T* to = static_cast<T*>(sums_.mutable_data_ptr()) + 2 * first * n;
    if (!are_lines_) {
      const int64_t blocks = ceil_div(n, kBlock);
      share(count * blocks, [&](int64_t u) {
        const int64_t begin = u % blocks * kBlock, some = std::min(kBlock, n - begin);
        const int64_t at = 2 * (u / blocks * n + begin);
        multiply_conjugate(some, add, from + at, by + 2 * begin, to + at);
      });
      return;
    }
    const int64_t rows = rows_of_line(n), columns = n / rows;
    share(count * rows, [&](int64_t u) {
      const int64_t row = u % rows, at = 2 * u * columns;
      if (row <= rows / 2) {
        multiply_conjugate(columns, add, from + at, by + 2 * row * columns, to + at);
        return;
      }
      // Conjugate to another row, from its end on.
      std::array<T, 2 * kPiece> turned;
      const T* last = by + 2 * ((rows - row + 1) * columns - 1);
      for (int64_t x = 0; x < columns; x += kPiece) {
        const int64_t some = std::min(kPiece, columns - x);
        for (int64_t i = 0; i < some; ++i) {
          const T* conjugate = last - 2 * (x + i);
          turned[2 * i] = conjugate[0], turned[2 * i + 1] = conjugate[1];
        }
        multiply_complex(some, add, from + at + 2 * x, turned.data(), to + at + 2 * x);
      }
    });
  });
}

Tensor LargeTiles::sums(int64_t i) const {
  if (are_lines_) return some_of(sums_, i / 2, 1);
  Tensor two = torch::stable::flatten(room_, 0, -1);
  two = torch::stable::narrow(two, 0, 0, t_.tile_size());
  const int64_t n = t_.length[2], width = 2 * half_of(t_.length)[2];
  const int64_t rows = t_.length[0] * t_.length[1], at_once = ceil_div(kBlock, n);
  with_width(wide_, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(sums_.const_data_ptr()) + i * rows * width;
    T* to = static_cast<T*>(two.mutable_data_ptr());
    share(ceil_div(rows, at_once), [&](int64_t block) {
      const int64_t end = std::min((block + 1) * at_once, rows);
      for (int64_t r = block * at_once; r < end; ++r) {
        zip(n, from + r * width, from + (rows + r) * width, to + 2 * r * n);
      }
    });
  });
  Sizes shape{1};
  for (int64_t length : sizes_of(t_.length, t_.ndim)) shape.push_back(length);
  return torch::stable::view(two, shape);
}

}  // namespace torchcorr
