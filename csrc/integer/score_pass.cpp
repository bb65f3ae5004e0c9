// Scores of bytes, exact but for one rounding, in one parallel region: a worker carries a unit of
// tiles through cut, moments, correlate and normalise, as tiles/score_pass.cpp does for real
// numbers. Numerators are whole numbers, and transforms are rounded to them.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <optional>

#include "common/counters.h"
#include "integer/byte_rows.h"
#include "integer/byte_template.h"
#include "integer/digits.h"
#include "integer/dots.h"
#include "integer/moments.h"
#include "integer/normalise.h"
#include "tiles/emit_sums.h"
#include "tiles/large_tiles.h"
#include "tiles/pass.h"
#include "tiles/steps.h"

namespace torchcorr::integer {
namespace {

// Largest error of a numerator that is rounded to the right whole number, with some margin.
constexpr double kRoundsRight = 0.4;
// A score that a tile is expected to contain in its window of the highest contrast.
constexpr double kLikely = 0.5;

// A tile that is cut, and its moments. For transforms, the cut is not kept, and there is a level.
struct Tile {
  ByteTile cut;
  ByteMoments moments;
  int64_t number = -1, level = 0;
  double energy = 0;  // of the elements about the level
};

// Tiles in float32, and two by two in float64 where that was needed.
struct Correlated {
  const std::vector<Tile>& tiles;
  Operand all;
  std::vector<std::optional<Operand>> wide;
};

std::vector<std::optional<Operand>> no_operands(const std::vector<Tile>& tiles) {
  return std::vector<std::optional<Operand>>(tiles.size() / 2);
}

// One call.
class BytePass {
 public:
  BytePass(const Tensor& input, const Tensor& templates, const std::optional<Tensor>& coefficients,
           const std::optional<Tensor>& spectra, const Sizes& batch, const Block& block,
           const ByteRule& rule, const Kernel& kernel, const Tensor& out)
      : input_(input), tiling_(TileBatch(batch, input).tiling), block_(block), rule_(rule),
        kernel_(kernel), out_(out) {
    const int64_t size = tiling_.window_size(), all = templates.size(1);
    for (int64_t pair = block.first_pair; pair < block.last_pair; ++pair) {
      for (int64_t k = block.first_template; k < block.last_template; ++k) {
        const int64_t line = pair * all + k;
        const uint8_t* elements = templates.const_data_ptr<uint8_t>() + line * size;
        const double* centred =
            coefficients ? coefficients->const_data_ptr<double>() + line * size : nullptr;
        templates_.push_back(template_of(rule, tiling_, elements, centred));
        if (!coefficients) packed_.push_back(kernel.pack(tiling_, elements));
      }
    }
    STD_TORCH_CHECK(block.large ? coefficients.has_value() : !tiling_.is_divided(),
                    "only templates of large tiles have parts");
    if (!coefficients) return;
    own_ = packed(part_of(part_of(*coefficients, 0, block.first_pair, block.pairs()), 1,
                          block.first_template, block.templates()));
    large_ = large_templates(tiling_, *own_, block, true);
    if (block.large) return;
    spectra_.emplace(tiling_, *own_, *spectra);
    digits_.emplace(tiling_, *own_);
  }

  const Tiling& tiling() const { return tiling_; }
  bool by_transforms() const { return own_.has_value(); }

  // Writes the scores of tiles of one leading index.
  void score(const Sizes& numbers, int64_t pair, Scratch& scratch) {
    std::vector<Tile> tiles(numbers.size());
    parallel_for(0, static_cast<int64_t>(numbers.size()), block_.large ? 1 : numbers.size(),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) tiles[i] = tile_of(numbers[i]);
                 });
    if (block_.large) return score_large(tiles, pair, scratch);
    if (!by_transforms()) return score_directly(tiles, pair);
    std::vector<Tile> narrow, wide;
    for (size_t i = 0; i < tiles.size(); i += 2) {
      std::vector<Tile>& to = needs_float64(&tiles[i], pair) ? wide : narrow;
      for (size_t lane = 0; lane < 2; ++lane) to.push_back(std::move(tiles[i + lane]));
    }
    if (!narrow.empty()) score_narrow(narrow, pair);
    Correlated at{wide, {}, no_operands(wide)};
    for (size_t i = 0; i < wide.size(); i += 2) {
      for (int64_t k = 0; k < block_.templates(); ++k) score_in_float64(at, i, line_of(pair, k), k);
      at.wide[i / 2].reset();
    }
  }

 private:
  Tile tile_of(int64_t number) const {
    Tile tile;
    tile.number = number;
    if (number < 0) return tile;
    tile.cut = new_tile(tiling_);
    const TilePlace place(tiling_, number);
    int64_t sum = 0, squares = 0, count = 0;
    for_rows(place, [&](int64_t c, int64_t z, int64_t y, const TileRow<uint8_t>& row) {
      std::copy(row.data + row.begin, row.data + row.end, tile.cut.row(c, z, y) + row.begin);
      if (!by_transforms()) return;
      add_row(row.end - row.begin, row.data + row.begin, sum, squares);
      count += row.end - row.begin;
    });
    tile.moments = moments_of(tiling_, tile.cut, rule_);
    if (!by_transforms()) return tile;
    find_smallest_norm(tiling_, tile.moments);
    tile.level = count > 0 ? (2 * sum + count) / (2 * count) : 0;
    tile.energy = energy_about(tile.level, count, sum, squares);
    tile.cut = {};
    return tile;
  }

  template <class F>
  void for_rows(const TilePlace& place, const F& f) const {
    const uint8_t* data = input_.const_data_ptr<uint8_t>();
    for (int64_t c = 0; c < tiling_.channels; ++c) {
      for (int64_t z = 0; z < tiling_.extent[0]; ++z) {
        for (int64_t y = 0; y < tiling_.extent[1]; ++y) {
          const TileRow<uint8_t> row(tiling_, place, data, c, z, y);
          if (row.end > row.begin) f(c, z, y, row);
        }
      }
    }
  }

  // Scores of large tiles, all in float64.
  void score_large(const std::vector<Tile>& tiles, int64_t pair, Scratch& scratch) const {
    const int64_t count = static_cast<int64_t>(tiles.size());
    for (int64_t k = 0; k < block_.templates(); ++k) {
      const int64_t line = line_of(pair, k);
      LargeTiles& all = LargeTiles::of(scratch, tiling_, true, count);
      const auto cut = [&](int64_t i, const PartOfTile& part) { cut_part(tiles[i], part); };
      all.correlate(count, large_[line], cut);
      for (int64_t i = 0; i < count; i += 2) {
        const Tensor sums = all.sums(i);
        emit(&tiles[i], line, k, static_cast<const double*>(sums.const_data_ptr()));
        count_way(Way::kFloat64, tiles_of(&tiles[i]));
      }
    }
  }

  // Elements of a tile minus its level.
  void cut_part(const Tile& tile, const PartOfTile& part) const {
    const Axes3 &from = part.from, &n = part.size;
    const TilePlace place(tiling_, tile.number);
    const uint8_t* data = input_.const_data_ptr<uint8_t>();
    double* to = static_cast<double*>(part.to);
    parallel_for(0, n[0] * n[1], ceil_div(1 << 14, part.pitch), [&](int64_t begin, int64_t end) {
      std::fill(to + begin * part.pitch, to + end * part.pitch, 0.0);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t z = from[0] + r / n[1], y = from[1] + r % n[1];
        if (z >= tiling_.extent[0] || y >= tiling_.extent[1]) continue;
        const TileRow<uint8_t> row(tiling_, place, data, part.channel, z, y);
        const int64_t end_of_row = std::min(row.end, from[2] + n[2]);
        double* first = to + r * part.pitch - from[2];
        for (int64_t x = std::max(row.begin, from[2]); x < end_of_row; ++x) {
          first[x] = static_cast<double>(row.data[x] - tile.level);
        }
      }
    });
  }

  // Of tiles two by two, minus their levels, zeros where the input ends.
  template <class R>
  Operand operand_of(const std::vector<Tile>& tiles, size_t begin, size_t end) const {
    const int64_t pairs = static_cast<int64_t>(end - begin) / 2;
    const Axes3 length = tiling_.length;
    Sizes shape{pairs, tiling_.channels};
    for (int64_t n : sizes_of(length, tiling_.ndim)) shape.push_back(n);
    shape.push_back(2);
    const Tensor lines = torch::stable::new_zeros(
        out_, shape, sizeof(R) == sizeof(double) ? ScalarType::Double : ScalarType::Float);
    R* to = lines.mutable_data_ptr<R>();
    for (size_t i = begin; i < end; ++i) {
      if (tiles[i].number < 0) continue;
      const TilePlace place(tiling_, tiles[i].number);
      const int64_t line = static_cast<int64_t>(i - begin) / 2, lane = (i - begin) % 2;
      for_rows(place, [&](int64_t c, int64_t z, int64_t y, const TileRow<uint8_t>& row) {
        const int64_t plane = (line * tiling_.channels + c) * length[0] + z;
        const int64_t at = (plane * length[1] + y) * length[2] + row.begin;
        centre_row(row.end - row.begin, row.data + row.begin, tiles[i].level, to + 2 * at + lane);
      });
    }
    return transformed(lines, tiling_, false);
  }

  static int64_t tiles_of(const Tile* pair) { return 1 + (pair[1].number >= 0); }
  int64_t line_of(int64_t pair, int64_t k) const { return pair * block_.templates() + k; }

  // Scores of tiles for which float32, or digits in it, are likely to do.
  void score_narrow(const std::vector<Tile>& tiles, int64_t pair) {
    Correlated at{tiles, operand_of<float>(tiles, 0, tiles.size()), no_operands(tiles)};
    for (int64_t k = 0; k < block_.templates(); ++k) {
      const int64_t line = line_of(pair, k), n = tiling_.tile_size();
      bool tried = false;
      for (size_t i = 0; i < tiles.size(); i += 2) tried = tried || is_worth_a_try(&tiles[i], line);
      std::optional<Tensor> sums;
      if (tried) sums = products_of(at.all, tiling_, spectra_->of<float>(line));
      for (size_t i = 0; i < tiles.size(); i += 2) {
        Contents in = likely_contents(&tiles[i], line);
        if (tried) {
          const float* values = static_cast<const float*>(sums->const_data_ptr()) + i * n;
          in = contents_of(2 * n, values);
          if (is_whole(&tiles[i], templates_[line].energy, in)) {
            count_way(Way::kFloat32, tiles_of(&tiles[i]));
            emit(&tiles[i], line, k, values);
            continue;
          }
        }
        const bool by_digits = digits_work() && digits_are_whole(&tiles[i], line, in);
        if (!by_digits || !score_by_digits(at, i, line, k)) score_in_float64(at, i, line, k);
      }
    }
  }

  // Scores of two tiles from the i-th on; whether the sums of both digits were near whole numbers.
  bool score_by_digits(const Correlated& at, size_t i, int64_t line, int64_t k) {
    const int64_t n = tiling_.tile_size(), pair = static_cast<int64_t>(i / 2);
    const Operand two{part_of(at.all.tiles, 0, pair * tiling_.channels, tiling_.channels),
                      part_of(at.all.product, 0, pair, 1)};
    const Tensor high = products_of(two, tiling_, digits_->of(line, true));
    const double share = 1.0 / (DigitSpectra::kBase * DigitSpectra::kBase);
    float* sums = static_cast<float*>(high.mutable_data_ptr());
    if (!is_whole(&at.tiles[i], share * templates_[line].energy, contents_of(2 * n, sums))) {
      --digits_balance_;
      return false;
    }
    ++digits_balance_;
    const Tensor low = products_of(two, tiling_, digits_->of(line, false));
    const float* rest = static_cast<const float*>(low.const_data_ptr());
    if (!is_whole(&at.tiles[i], most_of_low(), contents_of(2 * n, rest))) return false;
    const Tensor total = new_float64({2 * n});
    join_digits(2 * n, sums, rest, total.mutable_data_ptr<double>());
    count_way(Way::kDigits, tiles_of(&at.tiles[i]));
    emit(&at.tiles[i], line, k, total.const_data_ptr<double>());
    return true;
  }

  void score_in_float64(Correlated& at, size_t i, int64_t line, int64_t k) {
    std::optional<Operand>& two = at.wide[i / 2];
    if (!two) two = operand_of<double>(at.tiles, i, i + 2);
    const Tensor sums = products_of(*two, tiling_, spectra_->of<double>(line));
    count_way(Way::kFloat64, tiles_of(&at.tiles[i]));
    emit(&at.tiles[i], line, k, static_cast<const double*>(sums.const_data_ptr()));
  }

  static double energy_of_both(const Tile* tiles) { return tiles[0].energy + tiles[1].energy; }

  // Largest rounding error of float32 sums of two tiles with a template of this energy.
  double error_of(const Tile* tiles, double energy, const Contents& contents) const {
    const double n = static_cast<double>(tiling_.tile_size());
    const double power = energy_of_both(tiles) * energy / n;
    return rule_.noise * (std::sqrt(power + contents.squares / n) + 0.5 * contents.largest);
  }

  bool is_whole(const Tile* tiles, double energy, const Contents& contents) const {
    return error_of(tiles, energy, contents) < kRoundsRight;
  }

  // What the sums of two tiles and a template are likely to contain: as much as noise makes of
  // them, and a good match in the window of the highest contrast.
  Contents likely_contents(const Tile* tiles, int64_t line) const {
    Contents in;
    in.squares = energy_of_both(tiles) * templates_[line].energy;
    const double norm = std::min(tiles[0].moments.smallest_norm, tiles[1].moments.smallest_norm);
    in.largest = kLikely / (norm * templates_[line].norm * scale());
    return in;
  }

  // Whether float32 is tried.
  bool is_worth_a_try(const Tile* tiles, int64_t line) const {
    return is_whole(tiles, templates_[line].energy, likely_contents(tiles, line));
  }

  // Whether sums of both digits are near whole numbers if those of the template contain so much.
  // The high digit has as much in proportion, of the low one noise is expected.
  bool digits_are_whole(const Tile* tiles, int64_t line, const Contents& in) const {
    const double most = most_of_low();
    Contents low;
    low.squares = energy_of_both(tiles) * most;
    return error_of(tiles, templates_[line].energy, in) < DigitSpectra::kBase * kRoundsRight &&
           is_whole(tiles, most, low);
  }

  // Scores are the same bits without them. They are left out once they failed more often than not,
  // as in smooth pictures, whose sums are larger than those of noise.
  bool digits_work() const { return digits_balance_.load(std::memory_order_relaxed) > 0; }

  // The largest energy of low digits.
  double most_of_low() const {
    constexpr double kMost = DigitSpectra::kBase / 2;
    return kMost * kMost * static_cast<double>(tiling_.window_size());
  }

  bool needs_float64(const Tile* tiles, int64_t pair) const {
    for (int64_t k = 0; k < block_.templates(); ++k) {
      const int64_t line = line_of(pair, k);
      const Contents likely = likely_contents(tiles, line);
      if (is_worth_a_try(tiles, line)) return false;
      if (digits_work() && digits_are_whole(tiles, line, likely)) return false;
    }
    return true;
  }

  // What a numerator counts for in a score (`Constants`).
  double scale() const {
    return rule_.zero_mean ? static_cast<double>(rule_.count(tiling_)) : 1.0;
  }

  Constants constants_of(const ByteTemplate& one, int64_t level) const {
    const int64_t count = rule_.count(tiling_);
    if (rule_.zero_mean) {
      Constants by{count, 0, one.norm, {}};
      for (const int64_t sum : one.sums) {
        by.slopes.push_back(sum - count * one.centre);
        by.offset -= by.slopes.back() * count * level;
      }
      return by;
    }
    const int64_t to_centre = one.centre - rule_.zero_of_template;
    const int64_t to_level = level - rule_.zero_of_input;
    const int64_t fixed = to_level * (one.sums[0] - count * rule_.zero_of_template);
    return {1, to_centre * count * level - fixed, one.norm, {-to_centre}};
  }

  // Scores of two tiles from their numerators, in turn.
  template <class R>
  void emit(const Tile* tiles, int64_t line, int64_t k, const R* values) const {
    const Axes3 &length = tiling_.length, &stride = tiling_.stride;
    for (int lane = 0; lane < 2; ++lane) {
      const Constants by = constants_of(templates_[line], tiles[lane].level);
      emit_tile(tiles[lane], by, k, 2 * stride[2], [&](int64_t z, int64_t y) {
        return values + 2 * (z * stride[0] * length[1] + y * stride[1]) * length[2] + lane;
      });
    }
  }

  template <class Row>
  void emit_tile(const Tile& tile, const Constants& by, int64_t k, int64_t step,
                 const Row& row_of) const {
    if (tile.number < 0) return;
    const TilePlace place(tiling_, tile.number);
    const int64_t ndim = tiling_.ndim, n = valid_positions(tiling_, place, 2);
    const Axes3 total = last_sizes(out_, ndim);
    float* out = out_.mutable_data_ptr<float>() +
                 (place.item * out_.size(1) + block_.first_template + k) * product(total);
    for (int64_t z = 0; z < valid_positions(tiling_, place, 0); ++z) {
      for (int64_t y = 0; y < valid_positions(tiling_, place, 1); ++y) {
        const int64_t at = (z * tiling_.outputs[1] + y) * tiling_.outputs[2];
        const auto* first = row_of(z, y);
        using In = std::remove_const_t<std::remove_pointer_t<decltype(first)>>;
        const NumeratorRow<In> row{n, step, first, &tile.moments.sums[at], tile.moments.pitch,
                                   &tile.moments.norms[at]};
        float* to = out + ((place.first(tiling_, 0) + z) * total[1] + place.first(tiling_, 1) + y) *
                              total[2] + place.first(tiling_, 2);
        score_row(tiling_.window_size(), row, by, to);
      }
    }
  }

  void score_directly(const std::vector<Tile>& tiles, int64_t pair) const {
    SumMap sums(tiling_);
    for (const Tile& tile : tiles) {
      for (int64_t k = 0; k < block_.templates(); ++k) {
        const int64_t line = line_of(pair, k);
        count_way(Way::kIntegers, 1);
        kernel_.correlate(tiling_, tile.cut, packed_[line], sums);
        emit_tile(tile, constants_of(templates_[line], 0), k, tiling_.stride[2],
                  [&](int64_t z, int64_t y) { return sums.row(z, y); });
      }
    }
  }

  const Tensor& input_;
  const Tiling tiling_;
  const Block& block_;
  const ByteRule& rule_;
  const Kernel& kernel_;
  const Tensor& out_;
  std::vector<ByteTemplate> templates_;
  std::vector<PackedTemplate> packed_;
  std::optional<Tensor> own_;  // coefficients of the block's templates, for transforms
  std::vector<LargeTemplate> large_;
  std::optional<TemplateSpectra> spectra_;
  std::optional<DigitSpectra> digits_;
  std::atomic<int64_t> digits_balance_{2};  // high digits that were near whole numbers, less others
};

const Kernel& kernel_named(int64_t index) {
  const std::vector<Kernel>& all = kernels();
  STD_TORCH_CHECK(index >= 0 && index < static_cast<int64_t>(all.size()), "no such kernel");
  return all[index];
}

void score_bytes(const Tensor& input, const Tensor& templates, std::optional<Tensor> coefficients,
                 std::optional<Tensor> spectra, Sizes batch, Sizes block_numbers, Numbers numbers,
                 const Tensor& out) {
  const Block block(block_numbers);
  const ByteRule rule(numbers);
  BytePass pass(input, templates, coefficients, spectra, batch, block, rule,
                kernel_named(rule.kernel), out);
  const Tiling& tiling = pass.tiling();
  const int64_t tiles = tiling.layout.count / templates.size(0) * tiling.tiles_per_item();
  // One unit's threads share its transforms: whole numbers do not depend on how they divide them.
  const Units units(block, tiles, pass.by_transforms() ? 2 : 1, tiling.ndim == 1);
  const Sharing sharing = block.large ? units.sharing : Sharing::kUnitsOrSteps;
  run_units(units.count(), sharing,
            [&](int64_t unit, Scratch& scratch) {
              pass.score(units.tiles_of(unit), units.pair(unit), scratch);
            });
}

// How many kinds of loops for small templates this CPU can run, the best first.
int64_t byte_kernels(const Tensor&) { return static_cast<int64_t>(kernels().size()); }

// What the best of them is written for: its place in `BYTE_LOOPS` of _cpu/steps.py.
int64_t byte_loop(const Tensor&) { return static_cast<int64_t>(kernels().front().loop); }

}  // namespace
}  // namespace torchcorr::integer

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("score_bytes", TORCH_BOX(&torchcorr::integer::score_bytes));
  m.impl("byte_kernels", TORCH_BOX(&torchcorr::integer::byte_kernels));
  m.impl("byte_loop", TORCH_BOX(&torchcorr::integer::byte_loop));
}
