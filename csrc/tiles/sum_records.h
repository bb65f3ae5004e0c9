// What is known of plain sums: how exact they are, their templates, and tiles that are transformed.
#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include "tiles/steps.h"
#include "tiles/sum_bounds.h"

namespace torchcorr {

// What the numerators of noise amount to, relative to the norms of two tiles and a template: the root
// of a sum of squares and half of the largest.
constexpr double kUsualContents = 3.6;
// Products of sums at the borders of two tiles, for each element of a tile, that take less time by the
// direct loop than transforms in float64 do.
constexpr double kProducts = 400;

// How exact sums are: `SumRule` of _cpu/rules.py.
struct SumRule {
  double narrow_noise, wide_noise;      // of a transform, relative to what it contains
  // Error of a sum, relative to its sum of absolute products; infinite if that type always does.
  double narrow_allowed, wide_allowed;
  double budget;  // unknown windows of a tile and template that are recomputed

  explicit SumRule(const Numbers& n) {
    STD_TORCH_CHECK(n.size() == 5, "a rule of sums has five numbers");
    narrow_noise = n[0], wide_noise = n[1], narrow_allowed = n[2], wide_allowed = n[3];
    budget = n[4];
  }
  bool is_checked() const { return std::isfinite(wide_allowed); }
  // Whether tiles are computed in float32 without a look at their sums, or where those allow it.
  bool is_narrow() const { return std::isinf(narrow_allowed); }
  bool is_by_precision() const { return narrow_allowed > 0 && !is_narrow(); }
};

// Of a template: its sum, its norms, and bounds of sums if they decide the precision.
struct TemplateFacts {
  double sum = 0, sizes = 0, norm = 0;
  std::optional<TemplateBounds> bounds;
  std::optional<TemplateBoxes> boxes;  // for windows at a border

  TemplateFacts(const Tiling& tiling, const double* w, bool by_precision) {
    if (by_precision) bounds.emplace(tiling, w);
    if (by_precision && tiling.pad != Axes3{0, 0, 0}) boxes.emplace(tiling, w);
    for (int64_t i = 0; i < tiling.window_size(); ++i) {
      sum += w[i], sizes += std::abs(w[i]), norm += w[i] * w[i];
    }
    norm = std::sqrt(norm);
  }
};

// Two tiles that are transformed together.
struct Two {
  Sizes tiles;
  const TileStats* stats;
  const TileBounds* bounds = nullptr;

  // Whether all elements of a tile are known to be zero.
  bool is_zero(int64_t lane) const { return bounds && bounds[lane].largest() == 0; }
  // The windows of a tile that reach over the border of the input, if there are any.
  const BorderWindows* border(int64_t lane) const {
    return bounds && tiles[lane] >= 0 ? bounds[lane].border() : nullptr;
  }
  bool is_finite() const { return stats[0].non_finite + stats[1].non_finite == 0; }
  int64_t existing() const { return (tiles[0] >= 0) + (tiles[1] >= 0); }
  double mean_square() const { return stats[0].mean_square + stats[1].mean_square; }
};

// Tiles of a unit and what is known of their sums.
struct Measured {
  Sizes tiles;
  std::vector<TileBounds> bounds;

  Sizes two(size_t i) const { return {tiles[i], tiles[i + 1]}; }
};

}  // namespace torchcorr
