// Scores of windows whose elements have weights, in one parallel region. A worker cuts two tiles,
// transforms weights, weighted elements and weighted squares, and turns six sums of each window into
// its score (math.md, eq. weighted); channels with a mean each have six sums each. Where rounding of
// float32 sums may show, the tiles are computed in float64, at once if some of their windows are
// faint; where that may show too, a window is marked and its score left to the caller.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>

#include "common/counters.h"
#include "tiles/emit_sums.h"
#include "tiles/masked_factors.h"
#include "tiles/masked_rows.h"
#include "tiles/steps.h"
#include "tiles/tile_level.h"

namespace torchcorr {
namespace {

// Rounding errors of a transform, in units of the norm of its values: `TRANSFORM` of
// _plan/rounding.py.
constexpr double kTransform = 10;
constexpr int64_t kWindowsToSample = 8;  // along an axis, to find faint ones

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

// T is the type of the input, R that of transforms.
template <class T>
class MaskedPass {
 public:
  MaskedPass(const Tensor& input, const std::optional<Tensor>& weight, const Tensors& factors,
             const Sizes& batch, const Block& block, const Numbers& rule, const Tensor& out,
             const Tensor& doubtful)
      : like_(input), block_(block), rule_(rule), t_(TileBatch(batch, input).tiling),
        image_(input.const_data_ptr<T>()), weight_(weight ? weight->const_data_ptr<T>() : nullptr),
        groups_(rule_.own_means ? t_.channels : 1),
        of_group_(with_channels(t_, t_.channels / groups_)), map_(last_sizes(out, t_.ndim)),
        templates_(out.size(1)), out_(out.mutable_data_ptr<T>()),
        doubtful_(doubtful.mutable_data_ptr<uint8_t>()) {
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

  const Tiling& tiling() const { return t_; }

  void score(const Sizes& tiles, int64_t pair) {
    for (size_t i = 0; i < tiles.size(); i += 2) {
      const TilePlace places[2] = {TilePlace(t_, tiles[i]), TilePlace(t_, tiles[i + 1])};
      const Levels levels[2] = {levels_of(places[0]), levels_of(places[1])};
      std::vector<int64_t> all(block_.templates());
      for (size_t k = 0; k < all.size(); ++k) all[k] = static_cast<int64_t>(k);
      Pair<T>(*this, places, levels, pair).score(all);
    }
  }

 private:
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

  int64_t rows_of_group() const { return of_group_.channels * t_.length[0] * t_.length[1]; }

  TileLevel level_of(const TilePlace& place, int64_t group) const {
    const int64_t rows = rows_of_group(), from = group * rows;
    return level_of_rows<T>(rows, rule_.zero_mean, weight_ != nullptr, [&](int64_t r) {
      return WeightedRow<T>{row_of(place, image_, from + r), row_of(place, weight_, from + r)};
    });
  }

  // Of some windows of a tile that have enough weight, the least energy.
  double least_energy(const TilePlace& place, const Levels& levels, int64_t pair, int64_t k) const {
    double least = std::numeric_limits<double>::infinity();
    const double enough = std::max(rule_.least * total_weight(pair, k), 0.0);
    Axes3 at{}, end{}, step{};
    for (int i = 0; i < 3; ++i) {
      end[i] = std::min(t_.extent[i], t_.size[i] - place.start[i]) - t_.window[i] + 1;
      step[i] = std::max(t_.window[i], ceil_div(end[i], kWindowsToSample));
    }
    for (at[0] = 0; at[0] < end[0]; at[0] += step[0]) {
      for (at[1] = 0; at[1] < end[1]; at[1] += step[1]) {
        for (at[2] = 0; at[2] < end[2]; at[2] += step[2]) {
          double energy = 0, weight = 0;
          for (int64_t g = 0; g < groups_; ++g) {
            const WeightedParts parts = parts_of(place, levels[g].level, at, g, pair, k);
            const double count = total_of_lanes(parts.count), sum = total_of_lanes(parts.first);
            const bool centred = rule_.zero_mean && count > 0;
            energy += total_of_lanes(parts.square) - (centred ? sum * sum / count : 0.0);
            weight += count;
          }
          if (weight > enough) least = std::min(least, energy);
        }
      }
    }
    return least;
  }

  WeightedParts parts_of(const TilePlace& place, double level, const Axes3& at, int64_t group,
                         int64_t pair, int64_t k) const {
    WeightedParts parts;
    const double* by = factors_[group]->weights.values(pair, k);
    for (int64_t c = 0; c < of_group_.channels; ++c) {
      const int64_t channel = group * of_group_.channels + c;
      for (int64_t z = at[0]; z < at[0] + t_.window[0]; ++z) {
        for (int64_t y = at[1]; y < at[1] + t_.window[1]; ++y, by += t_.window[2]) {
          const int64_t row = (channel * t_.length[0] + z) * t_.length[1] + y;
          const TileRow<T> x = row_of(place, image_, row), w = row_of(place, weight_, row);
          add_weighted(t_.window[2], x.data + at[2], w.data ? w.data + at[2] : nullptr, by, level,
                       parts);
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

  // Two tiles that are transformed together, in one precision.
  template <class R>
  class Pair {
   public:
    Pair(MaskedPass& pass, const TilePlace (&places)[2], const Levels (&levels)[2], int64_t pair)
        : pass_(pass), t_(pass.t_), places_(places), levels_(levels), pair_(pair),
          is_whole_(!pass.weight_ || (is_whole(levels[0]) && is_whole(levels[1]))),
          spectra_(pass.groups_) {}

    void score(const std::vector<int64_t>& templates) {
      const bool shared = pass_.groups_ == 1 && pass_.factors_[0]->weights.is_shared();
      keeps_spectra_ = templates.size() > 1;
      std::vector<int64_t> left;
      bool faint = false, known = false;  // of all templates that share a mask
      for (size_t i = 0; i < templates.size(); ++i) {
        if (std::is_same_v<R, float> && (i == 0 || !shared)) faint = is_faint(templates[i]);
        if (faint) {
          left.push_back(templates[i]);
          continue;
        }
        if (pass_.groups_ == 1) {
          sum_windows(templates[i], 0, !known);
          known = shared;
        } else {
          add_channels(templates[i]);
        }
        if (emit(templates[i]) > 0) left.push_back(templates[i]);
      }
      if (std::is_same_v<R, double> || left.empty()) return;
      for (int64_t g = 0; g < pass_.groups_; ++g) {
        for (int which : {kFirst, kSquare, kWeight}) release(g, which);
      }
      for (std::vector<R>& map : maps_) map = {};
      typename MaskedPass::template Pair<double>(pass_, places_, levels_, pair_).score(left);
    }

   private:
    // What is transformed: weighted elements, weighted squares and weights.
    enum { kFirst, kSquare, kWeight };

    struct Spectrum {
      std::optional<Tensor> lines;
      double squares = 0;  // of what was transformed
    };

    // Whether the rounding of float32 sums of squares, which have about the mean square of both tiles
    // times the weight of a window, shows in the energies of some windows.
    bool is_faint(int64_t k) const {
      double mean_square = 0, least = std::numeric_limits<double>::infinity();
      for (int lane = 0; lane < 2; ++lane) {
        if (!places_[lane].exists) continue;
        for (const TileLevel& of : levels_[lane]) mean_square += of.mean_square / pass_.groups_;
        least = std::min(least, pass_.least_energy(places_[lane], levels_[lane], pair_, k));
      }
      const double unit = static_cast<double>(std::numeric_limits<float>::epsilon()) / 2;
      const double noise = kTransform * unit * mean_square * pass_.total_weight(pair_, k);
      return noise / 2 > pass_.rule_.allowed * least;
    }

    static bool is_whole(const Levels& levels) {
      return std::all_of(levels.begin(), levels.end(),
                         [](const TileLevel& of) { return of.is_whole && !of.is_empty; });
    }

    Spectrum& spectrum(int64_t group, int which) {
      Spectrum& of = spectra_[group][which];
      if (of.lines) return of;
      const int64_t rows = pass_.rows_of_group(), width = t_.length[2];
      Sizes shape{1, pass_.of_group_.channels};
      for (int64_t n : sizes_of(t_.length, t_.ndim)) shape.push_back(n);
      shape.push_back(2);
      const ScalarType type = sizeof(R) < sizeof(double) ? ScalarType::Float : ScalarType::Double;
      const Tensor tiles = torch::stable::new_empty(pass_.like_, shape, type);
      R* first = tiles.template mutable_data_ptr<R>();
      for (int64_t r = 0; r < rows; ++r) {
        cut_both(group, r, which, first + 2 * r * width);
      }
      of.squares = contents_of(tiles.numel(), first).squares;
      of.lines = transform(lines_of_tiles(tiles), true);
      return of;
    }

    // One row of both tiles, which begin inside the input: what both have, what one has, and zeros.
    void cut_both(int64_t group, int64_t r, int which, R* to) const {
      const T* weight = is_whole_ ? nullptr : pass_.weight_;
      const int64_t row = group * pass_.rows_of_group() + r;
      CutRow<T> rows[2];
      int64_t ends[2];
      for (int lane = 0; lane < 2; ++lane) {
        const TileRow<T> x = pass_.row_of(places_[lane], pass_.image_, row);
        const TileRow<T> w = pass_.row_of(places_[lane], weight, row);
        rows[lane] = {x.data, w.data, levels_[lane][group]}, ends[lane] = x.end;
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

    void release(int64_t group, int which) { spectra_[group][which].lines.reset(); }

    // Windows' sums of products with one of the factors: those of one tile after those of the other.
    WindowSum<R> sum(int64_t group, int which, Factors& by, int64_t k, std::vector<R>& map) {
      const Spectrum& of = spectrum(group, which);
      Sizes shape{1};
      for (int64_t n : sizes_of(t_.length, t_.ndim)) shape.push_back(n);
      const Operand operand{*of.lines, torch::stable::new_empty(*of.lines, shape)};
      const Tensor sums = products_of(operand, pass_.of_group_, by.template spectrum<R>(pair_, k));
      const R* from = sums.template const_data_ptr<R>();
      map.resize(2 * t_.positions());
      for (int64_t row = 0; row < t_.outputs[0] * t_.outputs[1]; ++row) {
        const int64_t z = row / t_.outputs[1] * t_.stride[0];
        const int64_t y = row % t_.outputs[1] * t_.stride[1];
        R* to = map.data() + row * t_.outputs[2];
        take_row(t_.outputs[2], 2 * t_.stride[2], from + 2 * (z * t_.length[1] + y) * t_.length[2],
                 to, to + t_.positions());
      }
      const int64_t n = t_.tile_size();
      const Contents in = contents_of(2 * n, from);
      const double unit = static_cast<double>(std::numeric_limits<R>::epsilon()) / 2;
      const double power = (of.squares * by.squares(pair_, k) + in.squares) / static_cast<double>(n);
      return {map.data(), 0.0, kTransform * unit * (std::sqrt(power) + in.largest / 2)};
    }

    // All sums of a template, or those that depend on its elements. One spectrum after the other, so
    // that a single template needs one at a time.
    void sum_windows(int64_t k, int64_t g, bool all) {
      auto& [products, weights, energies] = *pass_.factors_[g];
      const bool centred = pass_.rule_.zero_mean;
      if (all) {
        sums_.square = sum(g, kSquare, weights, k, maps_[0]);
        if (!keeps_spectra_ || weights.is_shared()) release(g, kSquare);
        if (centred) sums_.first = sum(g, kFirst, weights, k, maps_[1]);
      }
      sums_.product = sum(g, kFirst, products, k, maps_[2]);
      if (!keeps_spectra_) release(g, kFirst);
      if (is_whole_) {
        sums_.count.constant = weights.sum(pair_, k);
        sums_.other.constant = centred ? products.sum(pair_, k) : 0.0;
        sums_.energy.constant = energies.sum(pair_, k);
        return;
      }
      if (all) sums_.count = sum(g, kWeight, weights, k, maps_[3]);
      if (centred) sums_.other = sum(g, kWeight, products, k, maps_[4]);
      sums_.energy = sum(g, kWeight, energies, k, maps_[5]);
    }

    // The moments of a template about the means of each channel, added.
    void add_channels(int64_t k) {
      const int64_t n = 2 * t_.positions();
      added_.assign(kMomentMaps * n, 0.0);
      count_error_ = 0;
      for (int64_t g = 0; g < pass_.groups_; ++g) {
        sum_windows(k, g, true);
        add_channel(is_whole_, n, sums_, moments());
        count_error_ += sums_.count.error;
      }
    }

    ChannelMoments moments() const {
      ChannelMoments of;
      for (int p = 0; p < kMomentMaps; ++p) {
        of.map[p] = const_cast<double*>(added_.data()) + 2 * p * t_.positions();
      }
      return of;
    }

    // Writes scores of a template, and in float64 which of them are doubtful; how many are.
    int64_t emit(int64_t k) const {
      int64_t doubtful = 0, existing = 0;
      std::vector<uint8_t> states(t_.outputs[2]);
      for (int lane = 0; lane < 2; ++lane) {
        const TilePlace& p = places_[lane];
        if (!p.exists) continue;
        ++existing;
        const double scale = levels_[lane][0].scale;
        const double least_count = pass_.rule_.least * pass_.total_weight(pair_, k);
        const ScoreLimits by{scaled_eps(pass_.rule_.eps, scale), least_count, pass_.rule_.allowed,
                             count_error_};
        const int64_t x = p.first(t_, 2), n = std::min(t_.outputs[2], pass_.map_[2] - x);
        for (int64_t row = 0; row < t_.outputs[0] * t_.outputs[1]; ++row) {
          const int64_t z = p.first(t_, 0) + row / t_.outputs[1];
          const int64_t y = p.first(t_, 1) + row % t_.outputs[1];
          if (z >= pass_.map_[0] || y >= pass_.map_[1]) continue;
          const int64_t which = p.item * pass_.templates_ + pass_.block_.first_template + k;
          const int64_t to = ((which * pass_.map_[0] + z) * pass_.map_[1] + y) * pass_.map_[2] + x;
          const int64_t at = lane * t_.positions() + row * t_.outputs[2];
          const int64_t bad =
              pass_.groups_ == 1
                  ? score_row(is_whole_, n, moved(sums_, at), by, pass_.out_ + to, states.data())
                  : score_moments(is_whole_, n, moments().at(at), by, pass_.out_ + to,
                                  states.data());
          doubtful += bad;
          if (bad > 0 && std::is_same_v<R, double>) {
            std::copy_n(states.data(), n, pass_.doubtful_ + to);
          }
        }
      }
      const Way narrow = doubtful == 0 ? Way::kFloat32 : Way::kRepeated;
      count_way(std::is_same_v<R, double> ? Way::kFloat64 : narrow, existing);
      return doubtful;
    }

    ScoreSums<R> moved(ScoreSums<R> sums, int64_t by) const {
      for (WindowSum<R>* sum : {&sums.count, &sums.first, &sums.square, &sums.product, &sums.other,
                                &sums.energy}) {
        if (sum->map) sum->map += by;
      }
      return sums;
    }

    MaskedPass& pass_;
    const Tiling& t_;
    const TilePlace (&places_)[2];
    const Levels (&levels_)[2];
    const int64_t pair_;
    const bool is_whole_;
    bool keeps_spectra_ = false;
    std::vector<std::array<Spectrum, 3>> spectra_;  // of each group
    ScoreSums<R> sums_;
    std::vector<R> maps_[6];
    std::vector<double> added_;  // moments of channels
    double count_error_ = 0;
  };

  const Tensor& like_;
  const Block& block_;
  const MaskedRule rule_;
  const Tiling t_;
  const T *image_, *weight_;
  const int64_t groups_;  // of channels that share a mean
  const Tiling of_group_;
  std::vector<std::unique_ptr<GroupFactors>> factors_;
  const Axes3 map_;
  const int64_t templates_;
  T* out_;
  uint8_t* doubtful_;
};

void score_masked_tiles(const Tensor& input, std::optional<Tensor> weight, Tensors factors,
                        Sizes batch, Sizes block_numbers, Numbers rule, const Tensor& out,
                        const Tensor& doubtful) {
  const Block block(block_numbers);
  STD_TORCH_CHECK(factors.size() == 3, "templates come as products, weights and energies");
  with_real_type(input, "input", [&](auto zero) {
    MaskedPass<decltype(zero)> pass(input, weight, factors, batch, block, rule, out, doubtful);
    const Tiling& tiling = pass.tiling();
    const int64_t tiles = input.size(0) / factors[0].size(0) * tiling.tiles_per_item();
    for_units({block, tiles, 2},
              [&](const Sizes& some, int64_t pair) { pass.score(some, pair); });
  });
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("score_masked_tiles", TORCH_BOX(&torchcorr::score_masked_tiles));
}
