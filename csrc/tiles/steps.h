// Steps that other steps call, and the records that they take, which _cpu/rules.py and
// _plan/tiling.py define a second time with the form in which they cross the dispatcher.
#pragma once

#include <optional>
#include <tuple>

#include "common/tiling.h"
#include "common/window_state.h"
#include "tiles/centre.h"
#include "tiles/scratch.h"

namespace torchcorr {

using Numbers = std::vector<double>;
using Tensors = std::vector<Tensor>;

// How scores are computed and which of them are recomputed exactly.
struct ScoreRule {
  bool zero_mean;
  double eps;             // added to a window's energy, in squared units of the input
  double least_energy;    // of a window that is not doubtful, relative to a mean square:
  bool of_window;         // that of the window itself, or of the tiles that are transformed with it
  double least_variance;  // that a difference of sums determines, relative to the mean square
  double noise;           // of a transform, relative to the error that is allowed
  double budget;          // doubtful windows of a tile and template that are recomputed
  bool own_means;         // each channel has its own; templates sum to 0 in each channel
  bool halved;            // direct sums are made of halves of rows

  explicit ScoreRule(const Numbers& n) {
    STD_TORCH_CHECK(n.size() == 9, "a rule of scores has nine numbers");
    zero_mean = n[0] != 0, eps = n[1], least_energy = n[2], of_window = n[3] != 0;
    least_variance = n[4], noise = n[5], budget = n[6], own_means = n[7] != 0;
    halved = n[8] != 0;
  }
};

// What is subtracted from a tile: nothing, one level, or one of each channel.
enum class Levels { kNone, kShared, kOwn };
inline Levels levels_of(const ScoreRule& rule) {
  return !rule.zero_mean ? Levels::kNone : rule.own_means ? Levels::kOwn : Levels::kShared;
}

// The levels of each tile's channels behind the stats of n tiles; none if channels share a level.
inline const double* levels_of_stats(const Tensor& stats, int64_t n, const ScoreRule& rule) {
  return levels_of(rule) == Levels::kOwn ? stats.const_data_ptr<double>() + kStats * n : nullptr;
}

// What is known of tiles, and after the step `moments` of their windows, (tiles, *positions) each:
// norms 1 / (N deviation), 0 if flat or unknown; states; means, which may be empty, and are those of
// each channel, (channels * tiles, *positions), if these have their own.
struct TileMoments {
  Tensor stats;
  std::optional<Tensor> norms, states, means;

  explicit TileMoments(const Tensors& t) : stats(t.at(0)) {
    STD_TORCH_CHECK(t.size() == 1 || t.size() == 4, "moments are stats, norms, states and means");
    if (t.size() == 4) norms = t[1], states = t[2], means = t[3];
  }

  const TileStats* rows() const { return rows_of_stats(stats); }
  const uint8_t* states_or_null() const {
    return states ? states->const_data_ptr<uint8_t>() : nullptr;
  }
  const Tensor& known_norms() const {
    STD_TORCH_CHECK(norms.has_value(), "this step needs the moments of windows");
    return *norms;
  }
};

// Tiles minus their levels, times a power of two each, 0 where not finite; and their stats, behind
// which are the levels of each tile's channels if these have their own.
std::tuple<Tensor, Tensor> cut_tiles(const Tensor& input, const Sizes& batch, Levels levels,
                                     bool wide, bool pairs);
// What a worker correlates: tiles with an axis for templates, or twos of them as complex lines
// (twos * channels, *length); and their stats.
std::tuple<Tensor, Tensor> cut_operands(Scratch& scratch, const Tensor& input, const Sizes& batch,
                                        Levels levels, bool wide, bool pairs);
// The stats alone, of tiles that are cut part by part.
Tensor stats_of_tiles(const Tensor& input, const Sizes& batch, Levels levels);

// Elements of a channel of a tile, from `from` on, which are written to rows of `pitch` float64 numbers if
// `wide`, otherwise float32 ones: zeros behind the end of the tile, and in the rest of each row.
struct PartOfTile {
  Axes3 from, size;
  int64_t channel;
  void* to;
  int64_t pitch;
  bool wide;
};
void cut_part(const Tensor& input, const Tiling& tiling, int64_t tile, const LevelAndScale& by,
              const PartOfTile& part);

// Norms, states and means of the windows of tiles, and how many of each tile are doubtful.
std::tuple<Tensor, Tensor, Tensor, Tensor> tile_moments(const Tensor& input, const Tensor& stats,
                                                        Sizes batch, Numbers rule, bool with_means);
std::tuple<Tensor, Tensor, Tensor, Tensor> tile_moments_into(Scratch& scratch, const Tensor& input,
                                                             const Tensor& stats,
                                                             const Sizes& batch,
                                                             const Numbers& rule, bool with_means);

// Norms, states and means in float64, from moments that are merged from parts; as `pairs`, tiles are
// transformed two by two.
std::tuple<Tensor, Tensor, Tensor> merged_moments(const Tensor& input, const Tensor& stats,
                                                  Sizes batch, Numbers rule, bool pairs,
                                                  bool with_means);

// Norms and means of unknown windows from the definition; no window stays doubtful.
void recompute_norms(const Tensors& moments, const Tensor& input, const Sizes& batch,
                     const Numbers& rule);

// The gradient of a map and its scores: a map too, or those of the tiles (tiles, *positions); and
// how many elements a window has.
struct Upstream {
  const Tensor &grad, &score;
  bool of_tiles;
  double count;
};

// What a tile contributes with one template: the sum of the squares of alpha and its largest size, and
// the sums of alpha times the mean, one for each group of channels that share it.
struct UpstreamSums {
  double squares = 0, largest = 0;
  std::vector<double> offsets;
};

// Upstream gradients of one template times norms, alpha, as pairs of tiles (first, minus second) in
// zeros: every `folds`th element of the tiles. Adds what goes to squares and to means of windows to
// `window_grads` (1 + means of a window, tiles, *positions).
Tensor cut_upstream(const Upstream& of, const Tensors& moments, const Sizes& batch,
                    const Tensor& window_grads, std::vector<UpstreamSums>& sums);

// Turns products of transforms, pairs of tiles (first, minus second), into the tiles' gradients:
// adds what goes through squares and means of windows.
void spread_window_grads(const Tensor& products, const Tensor& window_grads, const Tensor& stats,
                         const Tensor& input, const Sizes& batch, const ScoreRule& rule);

// Adds the gradients of tiles to those of their items, in the order of the tiles.
void add_input_grads(const Tensor& products, const Sizes& batch, const Tensor& out);

// Writes scores; how many doubtful windows of each tile are too many to be recomputed.
Tensor normalise_tiles(const Tensor& numerators, Tensors moments, const Tensor& input,
                       const Tensor& coefficients, Sizes batch, Numbers rule, const Tensor& out);
// Numerators that may be complex, those of two tiles each. If they are not all that two tiles have
// with a template, `powers` are the mean squares of all, (twos, templates).
struct Numerators {
  Tensor sums;
  Numbers powers;
};
// How many doubtful windows of each tile are too many to be recomputed, and for each pair of tiles and
// template the largest norm that its numerators determine; none for direct sums.
struct Normalised {
  Tensor left;
  Numbers limits;
};
// The same of such numerators.
Normalised normalise_tiles_into(Scratch& scratch, const Numerators& numerators,
                                const Tensors& moments, const Tensor& input,
                                const Tensor& coefficients, const Sizes& batch,
                                const Numbers& rule, const Tensor& out);

// Mean and uncorrected variance of windows of (*lead, C, *size), in float64.
std::tuple<Tensor, Tensor> window_moments(const Tensor& input, Sizes window, Sizes stride);

}  // namespace torchcorr
