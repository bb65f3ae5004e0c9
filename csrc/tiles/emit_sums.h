// The last step of a plain correlation through transforms: sums in the input's level and units.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/exact_window.h"
#include "common/tiling.h"
#include "common/window_state.h"
#include "tiles/border_windows.h"

namespace torchcorr {

// sum = numerator * unscale + offset; at a border the offset differs among windows.
struct Restore {
  double unscale, offset;
  BorderOffsets* offsets = nullptr;
};

// Sums of squares and largest size of n numbers.
struct Contents {
  double squares = 0, largest = 0;

  void add(double value) {
    squares += value * value;
    largest = std::max(largest, std::abs(value));
  }
};
Contents contents_of(int64_t n, const float* x);
Contents contents_of(int64_t n, const double* x);

// The map (items, templates, *positions) that sums of one tile and one template are written to.
// Numerators are those of two tiles, (1, *length, 2), whose `lane` is 0 or 1.
template <class Out>
class SumMap {
 public:
  SumMap(const Tiling& tiling, const Tensor& out)
      : t_(tiling), map_(last_sizes(out, tiling.ndim)), templates_(out.size(1)),
        out_(out.mutable_data_ptr<Out>()) {}

  // Positions of a tile that belong to the map, and where the first of them lies.
  Axes3 positions(const TilePlace& p) const {
    Axes3 n;
    for (int a = 0; a < 3; ++a) n[a] = std::clamp<int64_t>(map_[a] - p.first(t_, a), 0, t_.outputs[a]);
    return n;
  }
  Out* first_of(const TilePlace& p, int64_t k) const {
    return row_of(p, k, {p.first(t_, 0), p.first(t_, 1), p.first(t_, 2)});
  }
  Axes3 strides() const { return {map_[1] * map_[2], map_[2], 1}; }

  template <class R>
  void write(const TilePlace& p, int64_t k, const R* numerators, const Restore& by) const;

  // Counts and marks sums of which `sizes` times `unscale`, or their own sizes if it is null, are
  // smaller than `least`. A state that is known stays.
  int64_t mark_unknown(const TilePlace& p, int64_t k, const double* sizes, double unscale,
                       double least, uint8_t* states) const;

  // Writes zero where the state is flat.
  void write_zeros(const TilePlace& p, int64_t k, const uint8_t* states) const;

  // Writes what sums over elements that are not finite amount to (math.md, eq. non-finite): `signs`
  // and `counts` are numerators of two tiles.
  void write_non_finite(const TilePlace& p, int64_t k, const double* signs,
                        const double* counts) const;

  // Computes the unknown sums from their definition.
  void recompute(const TilePlace& p, int64_t k, const uint8_t* states, const Out* item,
                 const double* templ) const;

  // Turns unknown states into flat ones where a numerator is zero; how many there were.
  int64_t mark_zeros(const TilePlace& p, const double* counts, uint8_t* states) const;

 private:
  template <class F>
  void for_rows(const TilePlace& p, const F& f) const;
  Out* row_of(const TilePlace& p, int64_t k, const Axes3& at) const;
  int64_t numerators_at(int64_t offset) const;

  const Tiling& t_;
  Axes3 map_;  // positions of the result
  int64_t templates_;
  Out* out_;
};

}  // namespace torchcorr
