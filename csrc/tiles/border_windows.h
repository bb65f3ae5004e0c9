// Windows that reach over the border of an input, around which there are zeros. They contain few
// elements, of which their sums of absolute products are bounded one by one; sums that a transform
// in float32 does not determine well enough are computed from their definition.
#pragma once

#include <vector>

#include "common/tiling.h"

namespace torchcorr {

// The part of a tile that lies in its input: [begin, end) of its extent.
struct TileInside {
  Axes3 begin, end;

  TileInside(const Tiling& t, const TilePlace& p) {
    for (int a = 0; a < 3; ++a) {
      begin[a] = std::clamp<int64_t>(-p.start[a], 0, t.extent[a]);
      end[a] = std::clamp<int64_t>(t.size[a] - p.start[a], begin[a], t.extent[a]);
    }
  }
};

// What lies in [begin, end) along an axis, or in a box along three.
struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
  bool operator==(const Span&) const = default;
};
using Box = std::array<Span, 3>;
inline int64_t size_of(const Box& b) { return b[0].size() * b[1].size() * b[2].size(); }

// The elements of a template that windows at some positions along an axis have inside.
inline Span seen_at(const Tiling& t, const TileInside& in, int axis, const Span& positions) {
  const int64_t s = t.stride[axis], k = t.window[axis];
  const int64_t begin = std::clamp<int64_t>(in.begin[axis] - (positions.end - 1) * s, 0, k);
  return {begin, std::clamp<int64_t>(in.end[axis] - positions.begin * s, begin, k)};
}

// Sums over boxes of a template: of its elements, of their sizes and of their squares.
struct BoxSums {
  double values = 0, sizes = 0, squares = 0;
};
class TemplateBoxes {
 public:
  TemplateBoxes(const Tiling& tiling, const double* weights);

  // Sums over planes [z), rows [y) and the first 0, 1, ... columns of all channels.
  void sums_of_columns(const Span& z, const Span& y, std::vector<BoxSums>& to) const;
  // What rounding may have added to sums of values, sizes and squares.
  const BoxSums& rounding() const { return rounding_; }
  double channels() const { return channels_; }

 private:
  const BoxSums& at(int64_t z, int64_t y, int64_t x) const {
    return cells_[(z * (window_[1] + 1) + y) * (window_[2] + 1) + x];
  }

  Axes3 window_;
  double channels_;
  std::vector<BoxSums> cells_;  // of all elements before each, along each axis
  BoxSums rounding_;
};

// Windows of a tile that reach over one end of an axis: a box of positions, and of each the sums of
// sizes, from below, and of squares, from above, of its elements.
struct BorderBox {
  int axis;
  Box at;
  std::vector<double> sizes, squares;
};

// Those of a tile, of `positions` that belong to the map.
class BorderWindows {
 public:
  BorderWindows(const Tiling& tiling, const TilePlace& place, const Axes3& positions);

  bool none() const { return boxes_.empty(); }

  // Measures the elements, none of which is larger than `largest`.
  void measure(const float* input, double largest);

  // Sets states, those of one box after the other, to unknown or good: whether sums of absolute
  // products are known to be at least `needed` (math.md, eq. least-products-of-moments). Returns how
  // many products the unknown sums have.
  double mark(double needed, const TemplateBoxes& templ, std::vector<uint8_t>& states) const;

  // Counts the products of unknown sums again, and states that are good as the sums are large.
  double mark_large(double least, const float* map, const Axes3& strides,
                    std::vector<uint8_t>& states) const;

  // Computes the unknown sums from their definition. `map` is where the first position of the tile
  // lies.
  void recompute(const Tensor& input, const double* templ, const std::vector<uint8_t>& states,
                 float* map, const Axes3& strides) const;

  const Axes3& positions() const { return positions_; }
  // The elements of a template that the windows at a position along an axis have inside.
  Span seen(int axis, int64_t position) const {
    return seen_at(t_, in_, axis, {position, position + 1});
  }

 private:
  void compute(const Tensor& input, const double* templ, const Box& at, bool turned, float* map,
               const Axes3& strides) const;

  const Tiling& t_;
  const TilePlace place_;
  const TileInside in_;
  const Axes3 positions_;
  std::vector<BorderBox> boxes_;
};

// What a level that was subtracted inside adds to sums.
class BorderOffsets {
 public:
  BorderOffsets(const BorderWindows& border, const TemplateBoxes& templ, double level)
      : border_(border), templ_(templ), level_(level) {}

  // Of the positions of a row of the tile.
  const double* of_row(int64_t z, int64_t y);

 private:
  const BorderWindows& border_;
  const TemplateBoxes& templ_;
  double level_;
  Span planes_{}, rows_{};
  std::vector<BoxSums> columns_;
  std::vector<double> offsets_;
};

}  // namespace torchcorr
