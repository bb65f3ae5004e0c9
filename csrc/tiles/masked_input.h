// The tiles that scores with weights are computed of: their rows, levels, faint and flat windows.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "tiles/box_sums.h"
#include "tiles/mask_region.h"
#include "tiles/masked_factors.h"
#include "tiles/masked_flat.h"
#include "tiles/masked_rows.h"
#include "tiles/steps.h"
#include "tiles/tile_level.h"

namespace torchcorr {

constexpr int64_t kWindowsToSample = 8;  // along an axis, to find faint ones
constexpr int64_t kRowsToSampleOfWindow = 16;  // along each of two axes
// Elements of windows that are computed one by one, for each element of a tile.
constexpr int64_t kExactProducts = 8;
constexpr int64_t kLooks = 8;  // at windows that may be flat, for each that is computed
constexpr double kNoEnergy = 1e-12;  // energy of such a window, relative to its squares, if it is flat

// How weighted scores are computed: `MaskedRule` of _cpu/rules.py.
struct MaskedRule {
  bool zero_mean, own_means;  // own: each channel has a mean of its own
  double eps;      // added to a window's energy for each unit of weight, in squared input units
  double least;    // share of the template's weight that a window must have
  double allowed;  // error of a score

  explicit MaskedRule(const Numbers& n) {
    STD_TORCH_CHECK(n.size() == 5, "a rule of weighted scores has five numbers");
    zero_mean = n[0] != 0, eps = n[1], least = n[2], allowed = n[3], own_means = n[4] != 0;
  }
};

// T is the type of the input.
template <class T>
class MaskedInput {
 protected:
  MaskedInput(const Tensor& input, const std::optional<Tensor>& weight, const Tensors& factors,
              const Sizes& batch, const Block& block, const Numbers& rule)
      : like_(input), block_(block), rule_(rule), t_(TileBatch(batch, input).tiling),
        image_(input.const_data_ptr<T>()), weight_(weight ? weight->const_data_ptr<T>() : nullptr),
        region_(weight ? region_of(weight_, weight->numel() / product(t_.size), t_.size)
                       : std::nullopt),
        groups_(rule_.own_means ? t_.channels : 1),
        of_group_(with_channels(t_, t_.channels / groups_)) {
    for (int64_t g = 0; g < groups_; ++g) {
      const auto of_group = [&](int which) {
        const Tensor& all = factors.at(which);
        return groups_ == 1 ? all : packed(part_of(all, 2, g, 1));
      };
      factors_.emplace_back(new GroupFactors{{of_group_, of_group(0), block},
                                             {of_group_, of_group(1), block},
                                             {of_group_, of_group(2), block}});
    }
  }

  // What windows are correlated with, of channels that share a mean.
  struct GroupFactors {
    Factors products, weights, energies;
  };
  using Levels = std::vector<TileLevel>;  // of each group of channels

  TileRow<T> row_of(const TilePlace& place, const T* data, int64_t row) const {
    const int64_t y = row % t_.length[1], z = row / t_.length[1] % t_.length[0];
    if (!data || y >= t_.extent[1] || z >= t_.extent[0]) return {};
    return TileRow<T>(t_, place, data, row / t_.length[1] / t_.length[0], z, y);
  }

  // Groups have levels of their own and one scale, since their moments are added.
  Levels levels_of(const TilePlace& place) const {
    Levels levels;
    double scale = std::numeric_limits<double>::infinity();
    for (int64_t g = 0; g < groups_; ++g) {
      levels.push_back(level_of(place, g));
      if (!levels.back().is_empty) scale = std::min(scale, levels.back().scale);
    }
    for (TileLevel& of : levels) of.scale = std::isfinite(scale) ? scale : 1.0;
    return levels;
  }

  // A row of a tile and its weights; all are 1 in what it has of a region.
  WeightedRow<T> weighted_row(const TilePlace& place, int64_t row) const {
    const TileRow<T> x = row_of(place, image_, row);
    if (!region_) return {x, row_of(place, weight_, row)};
    const int64_t y = row % t_.length[1], z = row / t_.length[1] % t_.length[0];
    return {region_->clip(x, place, z, y), {}};
  }

  int64_t rows_of_group() const { return of_group_.channels * t_.length[0] * t_.length[1]; }

  TileLevel level_of(const TilePlace& place, int64_t group) const {
    const int64_t rows = rows_of_group(), from = group * rows;
    const bool read = weight_ && !region_;  // to know whether all weights are 1
    TileLevel of = level_of_rows<T>(rows, rule_.zero_mean, read, [&](int64_t r) {
      return weighted_row(place, from + r);
    });
    if (region_) of.is_whole = region_->contains_tile(t_, place);
    return of;
  }

  // What either precision takes of two tiles: which windows are flat, found when one of a tile is
  // doubtful, and the sums of boxes, in float64, of the channels that were asked for last.
  struct KnownOfPair {
    std::vector<uint8_t> flat[2];
    std::unique_ptr<double[]> boxes[kSums];
    SumBounds bounds[2];
    int64_t group = -1;
  };

  // Sums of windows whose own weights are all equal.
  void add_boxes(const TilePlace (&places)[2], const Levels (&levels)[2], int64_t group,
                 double weight, bool whole, KnownOfPair& known) const {
    const int64_t n = t_.positions();
    for (auto& map : known.boxes) {
      if (!map) map.reset(new double[2 * n]);
    }
    for (int lane = 0; lane < 2; ++lane) {
      if (!places[lane].exists) {
        for (auto& map : known.boxes) std::fill_n(&map[lane * n], n, 0.0);
        continue;
      }
      const auto row = [&](int64_t c, int64_t z, int64_t y) {
        const int64_t channel = group * of_group_.channels + c;
        return weighted_row(places[lane], (channel * t_.length[0] + z) * t_.length[1] + y);
      };
      double* to[kSums];
      for (int s = 0; s < kSums; ++s) to[s] = known.boxes[s].get() + lane * n;
      if (whole || region_) to[kWeights] = nullptr;
      known.bounds[lane] = box_sums<T>(of_group_, levels[lane][group], weight, row, to);
    }
    known.group = group;
  }

  // Row r of a group in both tiles, which begin inside the input: what both have, what one has, and
  // zeros.
  template <class R>
  void cut_two_rows(const TilePlace (&places)[2], const Levels (&levels)[2], int64_t group,
                    int64_t r, int which, bool weighted, R* to) const {
    const T* weight = weighted ? weight_ : nullptr;
    const int64_t row = group * rows_of_group() + r;
    CutRow<T> rows[2];
    int64_t ends[2];
    for (int lane = 0; lane < 2; ++lane) {
      const TileRow<T> x = row_of(places[lane], image_, row);
      const TileRow<T> w = row_of(places[lane], weight, row);
      rows[lane] = {x.data, w.data, levels[lane][group]}, ends[lane] = x.end;
    }
    const int64_t both = std::min(ends[0], ends[1]);
    cut_two(both, rows[0], rows[1], which, to);
    std::fill(to + 2 * both, to + 2 * t_.length[2], R(0));
    const int lane = ends[1] > ends[0];
    CutRow<T> rest = rows[lane];
    if (ends[lane] == both) return;
    rest.x += both;
    if (rest.weight) rest.weight += both;
    cut_one(ends[lane] - both, rest, which, to + 2 * both + lane);
  }

  // Of some windows of a tile that have enough weight and are not flat, the least energy.
  double least_energy(const TilePlace& place, const Levels& levels, int64_t pair, int64_t k) const {
    double least = std::numeric_limits<double>::infinity();
    const double enough = std::max(rule_.least * total_weight(pair, k), 0.0);
    Axes3 at{}, end{}, step{};
    double share = 1;  // of a window's rows, those that are sampled stand for so many
    for (int i = 0; i < 2; ++i) {
      const int64_t rows = t_.window[i], sampled = ceil_div(rows, rows_to_sample()[i]);
      share *= static_cast<double>(rows) / static_cast<double>(sampled);
    }
    for (int i = 0; i < 3; ++i) {
      end[i] = std::min(t_.extent[i], t_.size[i] - place.start[i]) - t_.window[i] + 1;
      step[i] = std::max(t_.window[i], ceil_div(end[i], kWindowsToSample));
    }
    for (at[0] = 0; at[0] < end[0]; at[0] += step[0]) {
      for (at[1] = 0; at[1] < end[1]; at[1] += step[1]) {
        for (at[2] = 0; at[2] < end[2]; at[2] += step[2]) {
          double energy = 0, weight = 0, squares = 0;
          for (int64_t g = 0; g < groups_; ++g) {
            const WeightedParts parts = parts_of(place, levels[g].level, at, g, pair, k);
            const auto& [count, sum, square] = parts;
            const bool centred = rule_.zero_mean && count > 0;
            energy += square - (centred ? sum * sum / count : 0.0);
            weight += count, squares += square;
          }
          if (weight * share > enough && energy > kNoEnergy * squares) {
            least = std::min(least, energy * share);
          }
        }
      }
    }
    return least;
  }

  // Which windows of a tile are flat in all channels that have a mean of their own.
  std::vector<uint8_t> flat_of(const TilePlace& place) const {
    std::vector<uint8_t> flat;
    for (int64_t g = 0; g < groups_; ++g) {
      const auto row = [&](int64_t c, int64_t z, int64_t y) {
        const int64_t r = ((g * of_group_.channels + c) * t_.length[0] + z) * t_.length[1] + y;
        return weighted_row(place, r);
      };
      const std::vector<uint8_t> of_group = flat_windows<T>(of_group_, rule_.zero_mean, row);
      if (flat.empty()) flat.assign(of_group.size(), 1);
      for (size_t at = 0; at < flat.size(); ++at) flat[at] = flat[at] && of_group[at];
    }
    return flat;
  }

  // Whether sums of windows with these weights are those of boxes. Their bounds would not do for scores
  // in float64.
  static bool boxed(const Factors& weights) {
    return sizeof(T) < sizeof(double) && weights.box() > 0;
  }

  // Whether a window of a tile is flat in its elements with weight, whatever the others are.
  bool is_flat_under_mask(const TilePlace& place, int64_t position, int64_t pair, int64_t k) const {
    Axes3 at = unravel(position, t_.outputs);
    for (int i = 0; i < 3; ++i) at[i] *= t_.stride[i];
    for (int64_t g = 0; g < groups_; ++g) {
      const Factors& weights = factors_[g]->weights;
      if (weights.box() > 0) return false;  // known without a look at the window
      const double* by = weights.values(pair, k);
      bool found = !rule_.zero_mean;
      T value = 0;
      for (int64_t r = 0; r < of_group_.channels * t_.window[0] * t_.window[1]; ++r) {
        const int64_t plane = r / t_.window[1];
        const int64_t z = plane % t_.window[0], channel = plane / t_.window[0];
        const int64_t row = ((g * of_group_.channels + channel) * t_.length[0] + at[0] + z) *
                                t_.length[1] + at[1] + r % t_.window[1];
        const TileRow<T> x = row_of(place, image_, row), w = row_of(place, weight_, row);
        const T *elements = x.data + at[2], *there = w.data ? w.data + at[2] : nullptr;
        const double* of_row = by + r * t_.window[2];
        for (int64_t i = 0; !found && i < t_.window[2]; ++i) {
          found = of_row[i] > 0 && (!there || there[i] > 0);
          if (found) value = elements[i];
        }
        if (found && count_others(t_.window[2], elements, there, of_row, value) > 0) return false;
      }
    }
    return true;
  }

  // How many windows of a tile take about as long from their elements as the tile in float64.
  int64_t few() const {
    return kExactProducts * t_.tile_size() / (t_.channels * product(t_.window));
  }

  // Every so many planes and rows of a window are sampled.
  Axes3 rows_to_sample() const {
    return {ceil_div(t_.window[0], kRowsToSampleOfWindow),
            ceil_div(t_.window[1], kRowsToSampleOfWindow), 1};
  }

  WeightedParts parts_of(const TilePlace& place, double level, const Axes3& at, int64_t group,
                         int64_t pair, int64_t k) const {
    WeightedParts parts;
    const double* by = factors_[group]->weights.values(pair, k);
    const Axes3 step = rows_to_sample();
    for (int64_t c = 0; c < of_group_.channels; ++c, by += product(t_.window)) {
      const int64_t channel = group * of_group_.channels + c;
      for (int64_t z = 0; z < t_.window[0]; z += step[0]) {
        for (int64_t y = 0; y < t_.window[1]; y += step[1]) {
          const int64_t row = (channel * t_.length[0] + at[0] + z) * t_.length[1] + at[1] + y;
          const TileRow<T> x = row_of(place, image_, row), w = row_of(place, weight_, row);
          add_weighted(t_.window[2], x.data + at[2], w.data ? w.data + at[2] : nullptr,
                       by + (z * t_.window[1] + y) * t_.window[2], level, parts);
        }
      }
    }
    return parts;
  }

  double total_weight(int64_t pair, int64_t k) const {
    double total = 0;
    for (const auto& of : factors_) total += of->weights.sum(pair, k);
    return total;
  }

  const Tensor& like_;
  const Block& block_;
  const MaskedRule rule_;
  const Tiling t_;
  const T *image_, *weight_;
  const std::optional<MaskRegion> region_;  // of the weights, if that is what they are
  const int64_t groups_;  // of channels that share a mean
  const Tiling of_group_;
  std::vector<std::unique_ptr<GroupFactors>> factors_;
};

}  // namespace torchcorr
