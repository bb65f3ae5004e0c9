// Plain sums of products of a block of templates in one parallel region. A worker takes a unit of
// tiles and carries it through all steps (cut, bounds, correlate, emit), then takes the next. Two
// tiles are transformed in float32 where a bound of their sums of absolute products allows it, and
// otherwise in float64, where few sums are so small that they must be computed again.

#include <atomic>
#include <cmath>
#include <optional>
#include <utility>

#include "common/counters.h"
#include "tiles/doubtful_sums.h"
#include "tiles/emit_sums.h"
#include "tiles/large_tiles.h"
#include "tiles/pass.h"
#include "tiles/steps.h"
#include "tiles/sum_records.h"

namespace torchcorr {
namespace {

template <class T>
class SumPass {
 public:
  SumPass(const Tensor& input, const Tensor& templ, const std::optional<Tensor>& spectra,
          const Sizes& batch, const Block& block, const SumRule& rule, const Tensor& out)
      : input_(input), numbers_(batch), block_(block), rule_(rule),
        tiling_(TileBatch(batch, input).tiling),
        // Padding is zero, not level, which sums at a border must know.
        levels_(tiling_.pad == Axes3{0, 0, 0} || is_by_precision() ? Levels::kShared
                                                                    : Levels::kNone),
        templates_(tiling_, templ, block, is_by_precision()),
        large_(large_templates(tiling_, templates_.elements, block, !rule.is_narrow())),
        spectra_(tiling_, templates_.elements, spectra), map_(tiling_, out),
        doubtful_(input, tiling_, block, rule, templates_, map_) {
    STD_TORCH_CHECK(!block.large || !(is_by_precision() || tiling_.is_folded()),
                    "large tiles are transformed in one precision, all their positions at once");
    for (int64_t k = 0; k < block.templates(); ++k) all_.push_back(k);
  }

  const Tiling& tiling() const { return tiling_; }

  // Writes the sums of tiles of one leading index.
  void sum(const Sizes& tiles, int64_t pair, Scratch& scratch) {
    if (block_.large) {
      if constexpr (sizeof(T) < sizeof(double)) {
        if (rule_.is_narrow()) return sum_large<float>(tiles, pair, scratch);
      }
      return sum_large<double>(tiles, pair, scratch);
    }
    if constexpr (sizeof(T) < sizeof(double)) {
      if (is_by_precision()) return sum_by_precision(tiles, pair);
      if (rule_.is_narrow()) return sum_in<float>({tiles, {}}, cut(tiles, false), pair, all_);
    }
    sum_in<double>({tiles, {}}, cut(tiles, true), pair, all_);
  }

  std::vector<std::array<int64_t, 2>> left() { return doubtful_.left(); }

 private:
  bool is_by_precision() const { return sizeof(T) < sizeof(double) && rule_.is_by_precision(); }
  const TemplateFacts& facts_of(int64_t pair, int64_t k) const {
    return templates_.facts_of(pair, k);
  }
  double elements() const { return static_cast<double>(tiling_.tile_size()); }

  // Twos of tiles as complex lines.
  struct Cut {
    Tensor lines, stats;
    const TileStats* rows() const { return rows_of_stats(stats); }
  };
  Cut cut(const Sizes& tiles, bool wide) const {
    Scratch scratch;
    const auto [lines, stats] =
        cut_operands(scratch, input_, with_tiles(numbers_, tiles), levels_, wide, true);
    return {lines, stats};
  }

  // --- float32 ---

  // Divides the work of each two tiles into templates that float32 is enough for, and others.
  void sum_by_precision(const Sizes& tiles, int64_t pair) {
    Measured all{tiles, {}};
    // In the precision that the last tiles needed, which saves cutting most tiles again.
    const bool wide = loud_before_.load(std::memory_order_relaxed);
    Cut first = cut(tiles, wide);
    const TileStats* rows = first.rows();
    std::vector<Sizes> quiet, loud;  // templates of each two tiles
    bool all_quiet = true, all_loud = true;
    for (size_t i = 0; i < tiles.size(); i += 2) {
      for (size_t lane = 0; lane < 2; ++lane) {
        const int64_t tile = tiles[i + lane];
        all.bounds.emplace_back(tiling_, tile, map_.positions(TilePlace(tiling_, tile)),
                                input_.template const_data_ptr<T>());
      }
      const Two two{all.two(i), rows + i, all.bounds.data() + i};
      quiet.emplace_back(), loud.emplace_back();
      for (int64_t k : all_) {
        const TemplateFacts& templ = facts_of(pair, k);
        (is_expected_quiet(two, templ) ? quiet : loud).back().push_back(k);
      }
      all_quiet = all_quiet && loud.back().empty();
      all_loud = all_loud && quiet.back().empty();
    }
    loud_before_.store(all_loud, std::memory_order_relaxed);
    if (all_quiet && wide) first.lines = torch::stable::to(first.lines, ScalarType::ComplexFloat);
    if (all_quiet) return sum_narrow(all, std::move(first), pair, all_);
    if (!wide || !all_loud) first = {};
    if (all_loud && !wide) first = cut(tiles, true);
    if (all_loud) return sum_in<double>(all, std::move(first), pair, all_);
    for (size_t i = 0; i < tiles.size(); i += 2) {
      const Measured both{all.two(i), {all.bounds[i], all.bounds[i + 1]}};
      if (!loud[i / 2].empty()) sum_in<double>(both, cut(both.tiles, true), pair, loud[i / 2]);
      if (!quiet[i / 2].empty()) sum_narrow(both, cut(both.tiles, false), pair, quiet[i / 2]);
    }
  }

  // What numerators usually contain, until they are known: what noise would make of the tile, and
  // the changes of brightness that the template lets through.
  double expected_contents(const Two& two, const TemplateFacts& templ) const {
    double swing = 0;
    for (int64_t lane = 0; lane < 2; ++lane) {
      if (two.tiles[lane] >= 0) swing += two.bounds[lane].swing() * two.stats[lane].scale;
    }
    const double mean = templ.sum / static_cast<double>(tiling_.window_size());
    return kUsualContents * templ.norm * std::sqrt(two.mean_square()) + std::abs(mean) * swing;
  }

  // Rounding of the sums of one of two tiles, whose numerators have this noise.
  double rounding(const Two& two, int64_t lane, double noise, const TemplateFacts& templ) const {
    const TileStats& tile = two.stats[lane];
    const double of_level = two.border(lane) ? templ.boxes->rounding().values : 0.0;
    return noise / tile.scale + std::abs(tile.level) * of_level;
  }

  using States = std::vector<uint8_t>;

  // Whether the rounding of numerators that contain so much is within what every window allows, but
  // for a few at a border. How many products have those of each tile, and which they are.
  bool is_quiet(const Two& two, double contents, const TemplateFacts& templ,
                std::array<double, 2>& products, std::array<States, 2>& states) const {
    for (int64_t lane = 0; lane < 2; ++lane) {
      products[lane] = 0;
      const TileBounds& bounds = two.bounds[lane];
      if (two.tiles[lane] < 0 || two.is_zero(lane)) continue;
      // So that no sum of float32 sizes overflows.
      if (two.stats[lane].non_finite > 0 || !(bounds.largest() < 1e30)) return false;
      const double needed =
          rounding(two, lane, rule_.narrow_noise * contents, templ) / rule_.narrow_allowed;
      if (!bounds.reach(needed, *templ.bounds)) return false;
      if (two.border(lane)) {
        products[lane] = two.border(lane)->mark(needed, *templ.boxes, states[lane]);
      }
    }
    return true;
  }

  bool is_expected_quiet(const Two& two, const TemplateFacts& templ) const {
    std::array<double, 2> products;
    std::array<States, 2> states;
    return is_quiet(two, expected_contents(two, templ), templ, products, states) &&
           are_few(products);
  }
  bool are_few(const std::array<double, 2>& products) const {
    return products[0] + products[1] <= kProducts * elements();
  }

  // Sums of templates through float32, and those that turn out to need it through float64.
  void sum_narrow(const Measured& of, Cut narrow, int64_t pair, const Sizes& templates) {
    const Tensor stats = narrow.stats;
    std::optional<Operand> operand =
        spectrum_of(std::move(narrow.lines), tiling_, templates.size() == 1);
    for (int64_t k : templates) {
      std::vector<Two> loud;
      {
        const Tensor sums =
            complex_products_of(*operand, tiling_, spectra_.template of<float>(templates_.line_of(pair, k)));
        for (size_t i = 0; i < of.tiles.size(); i += 2) {
          const Two two{of.two(i), rows_of_stats(stats) + i, of.bounds.data() + i};
          const float* numerators =
              static_cast<const float*>(sums.const_data_ptr()) + i * tiling_.tile_size();
          if (!write_if_quiet(two, pair, k, numerators)) loud.push_back(two);
        }
      }
      // So that what is in float32 takes no memory beside what is in float64.
      if (templates.size() == 1) operand.reset();
      for (const Two& two : loud) {
        const Measured both{two.tiles, {two.bounds[0], two.bounds[1]}};
        sum_in<double>(both, cut(two.tiles, true), pair, {k});
      }
    }
  }

  bool write_if_quiet(const Two& two, int64_t pair, int64_t k, const float* numerators) const {
    const TemplateFacts& templ = facts_of(pair, k);
    const Contents in = contents_of(2 * tiling_.tile_size(), numerators);
    const double power = templ.norm * templ.norm * two.mean_square();
    const double contents = std::sqrt(power + in.squares / elements()) + in.largest / 2;
    std::array<double, 2> products;
    std::array<States, 2> states;
    if (!is_quiet(two, contents, templ, products, states)) return false;
    std::array<T*, 2> first{};
    for (int64_t lane = 0; lane < 2; ++lane) {
      write(two, lane, pair, k, numerators);
      if (products[lane] == 0) continue;
      first[lane] = map_.first_of(TilePlace(tiling_, two.tiles[lane]), block_.first_template + k);
      const double noise = rounding(two, lane, rule_.narrow_noise * contents, templ);
      products[lane] = two.border(lane)->mark_large(noise / rule_.narrow_allowed + noise, first[lane],
                                                    map_.strides(), states[lane]);
    }
    if (!are_few(products)) return false;
    for (int64_t lane = 0; lane < 2; ++lane) {
      if (products[lane] == 0) continue;
      two.border(lane)->recompute(input_, templates_.elements_of(pair, k), states[lane], first[lane],
                                  map_.strides());
    }
    count_way(Way::kFloat32, two.existing());
    return true;
  }

  // --- float64, or float32 without a look ---

  template <class R>
  void sum_in(const Measured& of, Cut tiles, int64_t pair, const Sizes& templates) {
    const Tensor stats = tiles.stats;
    const Operand operand = spectrum_of(std::move(tiles.lines), tiling_, templates.size() == 1);
    for (int64_t k : templates) {
      const Tensor sums =
          complex_products_of(operand, tiling_, spectra_.template of<R>(templates_.line_of(pair, k)));
      for (size_t i = 0; i < of.tiles.size(); i += 2) {
        const TileBounds* bounds = of.bounds.empty() ? nullptr : of.bounds.data() + i;
        const Two two{of.two(i), rows_of_stats(stats) + i, bounds};
        const R* numerators = static_cast<const R*>(sums.const_data_ptr()) + i * tiling_.tile_size();
        count_way(sizeof(R) < sizeof(double) ? Way::kFloat32 : Way::kFloat64, two.existing());
        for (int64_t lane = 0; lane < 2; ++lane) write(two, lane, pair, k, numerators);
        if constexpr (sizeof(R) == sizeof(double)) {
          for (const SumCase& one : doubts_of(two, pair, k, numerators)) doubtful_.decide(one);
        }
        if (!two.is_finite()) doubtful_.emit_non_finite(two, pair, k);
      }
    }
  }

  // The same of large tiles.
  template <class R>
  void sum_large(const Sizes& tiles, int64_t pair, Scratch& scratch) {
    const Tensor stats = stats_of_tiles(input_, with_tiles(numbers_, tiles), levels_);
    const TileStats* rows = rows_of_stats(stats);
    const int64_t count = static_cast<int64_t>(tiles.size());
    const auto cut = [&](int64_t i, const PartOfTile& part) {
      cut_part(input_, tiling_, tiles[i], {rows[i].level, rows[i].scale}, part);
    };
    for (int64_t k : all_) {
      LargeTiles& all = LargeTiles::of(scratch, tiling_, sizeof(R) == sizeof(double), count);
      all.correlate(count, large_[templates_.line_of(pair, k)], cut);
      std::vector<SumCase> doubts;
      bool finite = true;
      for (int64_t i = 0; i < count; i += 2) {
        const Two two{{tiles[i], tiles[i + 1]}, rows + i};
        const Tensor sums = all.sums(i);
        const R* numerators = static_cast<const R*>(sums.const_data_ptr());
        count_way(sizeof(R) < sizeof(double) ? Way::kFloat32 : Way::kFloat64, two.existing());
        for (int64_t lane = 0; lane < 2; ++lane) write(two, lane, pair, k, numerators);
        if constexpr (sizeof(R) == sizeof(double)) {
          for (const SumCase& one : doubts_of(two, pair, k, numerators)) {
            if (doubtful_.has_small(one)) doubts.push_back(one);
          }
        }
        finite = finite && two.is_finite();
      }
      if (doubts.empty() && finite) continue;
      scratch.large_tiles.reset();  // what is done about them takes as much
      for (const SumCase& one : doubts) doubtful_.decide(one);
      for (int64_t i = 0; i < count; i += 2) {
        const Two two{{tiles[i], tiles[i + 1]}, rows + i};
        if (!two.is_finite()) doubtful_.emit_non_finite(two, pair, k);
      }
    }
  }

  template <class R>
  void write(const Two& two, int64_t lane, int64_t pair, int64_t k, const R* numerators) const {
    const TilePlace place(tiling_, two.tiles[lane]);
    if (!place.exists) return;
    const TileStats& tile = two.stats[lane];
    const TemplateFacts& templ = facts_of(pair, k);
    std::optional<BorderOffsets> offsets;
    if (two.border(lane)) offsets.emplace(*two.border(lane), *templ.boxes, tile.level);
    map_.write(place, block_.first_template + k, numerators + lane,
               {two.is_zero(lane) ? 0.0 : 1 / tile.scale, tile.level * templ.sum,
                offsets ? &*offsets : nullptr});
  }

  // Which of two tiles have sums whose rounding may exceed what is allowed.
  std::vector<SumCase> doubts_of(const Two& two, int64_t pair, int64_t k,
                                 const double* numerators) const {
    if (!rule_.is_checked()) return {};
    const TemplateFacts& templ = facts_of(pair, k);
    const auto is_safe = [&](int64_t lane, double noise) {
      if (two.tiles[lane] < 0 || two.is_zero(lane)) return true;
      const double least = rounding(two, lane, noise, templ) / rule_.wide_allowed;
      return two.bounds && !two.border(lane) && two.bounds[lane].reach(least, *templ.bounds);
    };
    // By Young's inequality numerators contain no more than this.
    const double bound = rule_.wide_noise * std::sqrt(2 * two.mean_square()) * templ.sizes;
    if (is_safe(0, bound) && is_safe(1, bound)) return {};
    const double noise = doubtful_.noise_of(two.mean_square(), pair, k, numerators);
    std::vector<SumCase> found;
    for (int64_t lane = 0; lane < 2; ++lane) {
      if (is_safe(lane, noise)) continue;
      const double least = rounding(two, lane, noise, templ) / rule_.wide_allowed;
      found.push_back({TilePlace(tiling_, two.tiles[lane]), two.tiles, lane, pair, k, least});
    }
    return found;
  }

  const Tensor& input_;
  const Sizes& numbers_;
  const Block& block_;
  const SumRule& rule_;
  const Tiling tiling_;
  const Levels levels_;
  const SumTemplates templates_;
  std::vector<LargeTemplate> large_;
  TemplateSpectra spectra_;
  Sizes all_;  // numbers of the block's templates
  SumMap<T> map_;
  DoubtfulSums<T> doubtful_;
  std::atomic<bool> loud_before_{false};
};

// Writes sums; the (tile, template) that still have too many unknown ones.
Tensor sum_tiles(const Tensor& input, const Tensor& templ, std::optional<Tensor> spectra,
                 Sizes batch, Sizes block_numbers, Numbers numbers, const Tensor& out) {
  const Block block(block_numbers);
  const SumRule rule(numbers);
  Tensor left = new_tensor({0, 2}, ScalarType::Long);
  with_real_type(input, "input", [&](auto zero) {
    SumPass<decltype(zero)> pass(input, templ, spectra, batch, block, rule, out);
    const int64_t items = pass.tiling().layout.count;
    const int64_t tiles = items / templ.size(0) * pass.tiling().tiles_per_item();
    for_units({block, tiles, 2, pass.tiling().ndim == 1},
              [&](const Sizes& some, int64_t pair, Scratch& scratch) {
                pass.sum(some, pair, scratch);
              });
    const auto pairs = pass.left();
    left = new_tensor(left, {static_cast<int64_t>(pairs.size()), 2});
    std::copy(pairs.begin(), pairs.end(),
              reinterpret_cast<std::array<int64_t, 2>*>(left.mutable_data_ptr<int64_t>()));
  });
  return left;
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("sum_tiles", TORCH_BOX(&torchcorr::sum_tiles));
}
