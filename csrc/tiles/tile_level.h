// The level and the scale of a tile whose elements have weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/tiling.h"
#include "tiles/masked_rows.h"

namespace torchcorr {

// A row of a tile and its weights; none where all are 1.
template <class T>
struct WeightedRow {
  TileRow<T> x, weight;
};

constexpr int64_t kSampled = 8;        // one row in so many is read to choose level and scale
constexpr int64_t kRowsToSample = 64;  // a tile of fewer rows is read whole

// Level and scale of the elements with weight of some rows. `row_of` gives a `WeightedRow`.
template <class T, class F>
TileLevel level_of_rows(int64_t rows, bool centred, bool is_weighted, const F& row_of) {
  TileLevel of;
  const auto over = [&](double level, int64_t step) {
    Survey all;
    for (int64_t r = 0; r < rows; r += step) {
      const WeightedRow<T> row = row_of(r);
      const TileRow<T>&x = row.x, &w = row.weight;
      if (x.end <= x.begin) continue;
      survey(x.end - x.begin, x.data + x.begin, w.data ? w.data + w.begin : nullptr, level, all);
    }
    return all;
  };
  int64_t step = rows >= kRowsToSample ? kSampled : 1;
  Survey found = over(0.0, step);
  if (found.count == 0 && step > 1) found = over(0.0, step = 1);
  of.is_empty = found.count == 0;
  if (of.is_empty) return of;
  if (centred) {
    // Rounded to float32, so that subtracting it is exact for elements of a similar size.
    const float level = static_cast<float>(found.sum / found.count);
    if (std::isfinite(level)) of.level = static_cast<double>(level);
    found = over(of.level, step);
  }
  int exponent = 0;
  const double root = std::sqrt(found.squares / found.count);
  of.mean_square = root * root;
  if (root > 0 && root <= std::numeric_limits<double>::max()) std::frexp(root, &exponent);
  of.scale = std::ldexp(1.0, -std::clamp(exponent, -1000, 1000));
  for (int64_t r = 0; is_weighted && of.is_whole && r < rows; ++r) {
    const TileRow<T> w = row_of(r).weight;
    for (int64_t x = w.begin; x < w.end; ++x) of.is_whole = of.is_whole && w.data[x] == T(1);
  }
  return of;
}

}  // namespace torchcorr
