// Scores of a block of templates in one parallel region. A worker takes a unit of tiles and carries
// it through all steps (cut, moments, correlate, normalise) while it is in the cache of its core,
// then takes the next. A tile that has too many doubtful windows is computed in float64 by the same
// worker. Steps that divide their work among threads run on one thread here.

#include <algorithm>
#include <limits>
#include <utility>

#include "common/counters.h"
#include "common/large_pages.h"
#include "direct/correlate.h"
#include "direct/halved_rows.h"
#include "integer/bytes.h"
#include "tiles/faint_windows.h"
#include "tiles/large_tiles.h"
#include "tiles/pass.h"
#include "tiles/score_rows.h"
#include "tiles/standardise.h"
#include "tiles/steps.h"
#include "tiles/units.h"
#include "tiles/weighted_moments.h"

namespace torchcorr {
namespace {

// T is the type of the input. Tiles are transformed two by two, and taken one by one for direct sums.
template <class T>
class ScorePass {
 public:
  ScorePass(const Tensor& input, const Tensor& coefficients, const std::optional<Tensor>& spectra,
            const Sizes& batch, const Block& block, const Numbers& rule,
            const Numbers& wide_rule, const std::optional<Tensor>& mask, const Numbers& weights,
            const Tensor& out)
      : input_(input), all_(coefficients), numbers_(batch), block_(block), rule_numbers_(rule),
        wide_rule_numbers_(wide_rule), rule_(rule),
        tiling_(TileBatch(batch, input).tiling), lanes_(spectra || block.large ? 2 : 1),
        wide_(packed(part_of(part_of(coefficients, 0, block.first_pair, block.pairs()), 1,
                             block.first_template, block.templates()))),
        narrow_(lanes_ == 1 ? in_type_of_input(wide_) : wide_),
        large_(large_templates(tiling_, wide_, block, std::is_same_v<T, double>)), out_(out) {
    STD_TORCH_CHECK(block.large ? !tiling_.is_folded() : !tiling_.is_divided(),
                    "of large tiles all positions are transformed, and only their templates have parts");
    if (spectra) spectra_.emplace(tiling_, wide_, *spectra);
    STD_TORCH_CHECK(!mask || !rule_.halved, "halves of rows would mix elements that have no weight");
    if (mask) weights_.emplace(tiling_, *mask, weights);
  }

  const Tiling& tiling() const { return tiling_; }
  int64_t lanes() const { return lanes_; }

  // Writes the scores of tiles of one leading index.
  void score(const Sizes& tiles, int64_t pair, Scratch& scratch) {
    if (block_.large) return score_large(tiles, pair, scratch);
    const Sizes batch = with_tiles(numbers_, tiles);
    auto [cut, stats] = cut_operands(scratch, input_, batch, levels_of(rule_), false, lanes_ == 2);
    const auto [moments, doubtful] = moments_of_tiles(stats, batch, scratch);
    Sizes easy;
    for (size_t i = 0; i < tiles.size(); i += lanes_) {
      if (most(doubtful, i) > rule_.budget && !is_worth_a_look(tiles, moments, i)) {
        score_wide(tiles, moments, i, pair, 0, block_.templates());
      } else {
        easy.insert(easy.end(), tiles.begin() + i, tiles.begin() + i + lanes_);
      }
    }
    if (easy.empty()) return;
    if (easy.size() < tiles.size()) return score(easy, pair, scratch);
    const Operand operand = operand_of(std::move(cut));
    const int64_t at_once = lanes_ == 2 ? 1 : block_.templates();
    for (int64_t k = 0; k < block_.templates(); k += at_once) {
      const Numerators sums = numerators<T>(operand, pair, k, at_once);
      const Normalised done = normalise(scratch, sums, moments, batch, k, rule_numbers_);
      for (size_t i = 0; i < tiles.size(); i += lanes_) {
        if (most(done.left, i) > 0 && !score_faint(tiles, moments, i, pair, k, done.limits[i / 2])) {
          score_wide(tiles, moments, i, pair, k, k + at_once);
        } else {
          count_way(sizeof(T) < sizeof(double) ? Way::kFloat32 : Way::kFloat64,
                    at_once * existing(tiles, i));
        }
      }
    }
  }

 private:
  // Converted here: PyTorch takes longer to begin than a small template takes.
  static Tensor in_type_of_input(const Tensor& wide) {
    if (std::is_same_v<T, double>) return wide;
    const Tensor narrow = new_tensor(sizes_of(wide), ScalarType::Float);
    const double* from = wide.const_data_ptr<double>();
    float* to = narrow.mutable_data_ptr<float>();
    for (int64_t i = 0; i < wide.numel(); ++i) to[i] = static_cast<float>(from[i]);
    return narrow;
  }

  // Stats, norms, states and means of tiles, and how many of their windows are doubtful.
  std::pair<Tensors, Tensor> moments_of_tiles(const Tensor& stats, const Sizes& batch,
                                              Scratch& scratch) const {
    const auto [norms, states, means, doubtful] =
        weights_ ? weighted_moments(input_, stats, batch, rule_numbers_, *weights_)
                 : tile_moments_into(scratch, input_, stats, batch, rule_numbers_, false);
    return {{stats, norms, states, means}, doubtful};
  }

  // The scores of large tiles.
  void score_large(const Sizes& tiles, int64_t pair, Scratch& scratch) {
    const Sizes batch = with_tiles(numbers_, tiles);
    const Tensor stats = stats_of_tiles(input_, batch, levels_of(rule_));
    const auto [known, doubtful] = moments_of_tiles(stats, batch, scratch);
    const Tensors& moments = known;
    std::vector<size_t> easy, hard;
    for (size_t i = 0; i < tiles.size(); i += 2) {
      (most(doubtful, i) > rule_.budget ? hard : easy).push_back(i);
    }
    for (int64_t k = 0; k < block_.templates(); ++k) {
      std::vector<size_t> left = hard;
      const auto emit = [&](size_t i, const Sizes& two, const Numerators& sums) {
        Scratch own;  // that of the worker holds moments of all tiles
        const Normalised done =
            normalise(own, sums, moments_of(moments, i), two, k, rule_numbers_);
        if (most(done.left, 0) > 0) {
          left.push_back(i);
        } else {
          count_way(sizeof(T) < sizeof(double) ? Way::kFloat32 : Way::kFloat64, existing(tiles, i));
        }
      };
      emit_large<T>(tiles, easy, stats, pair, k, scratch, emit);
      const auto emit_wide = [&](size_t i, const Sizes& two, const Numerators& sums) {
        Scratch own;
        const Tensors some = moments_of(moments, i);
        const Tensors wide = wide_moments(two, some[0], some[1], some[2]);
        normalise(own, sums, wide, two, k, wide_rule_numbers_);
        count_way(Way::kFloat64, existing(tiles, i));
      };
      // In float64 half as many take the same memory.
      const size_t at_once = std::max<size_t>(1, tiles.size() / 4);
      for (size_t first = 0; first < left.size(); first += at_once) {
        const auto begin = left.begin() + first;
        const std::vector<size_t> some(begin, begin + std::min(at_once, left.size() - first));
        emit_large<double>(tiles, some, stats, pair, k, scratch, emit_wide);
      }
    }
  }

  // Calls f(i, batch, numerators) for the twos of tiles from the i-th on, for all i of `some`.
  template <class R, class F>
  void emit_large(const Sizes& tiles, const std::vector<size_t>& some, const Tensor& stats,
                  int64_t pair, int64_t k, Scratch& scratch, const F& f) const {
    if (some.empty()) return;
    const int64_t twos = static_cast<int64_t>(some.size());
    LargeTiles& all =
        LargeTiles::of(scratch, tiling_, sizeof(R) == sizeof(double), 2 * twos);
    const double* levels = levels_of_stats(stats, static_cast<int64_t>(tiles.size()), rule_);
    const auto cut = [&](int64_t n, const PartOfTile& part) {
      const size_t i = some[n / 2] + n % 2;
      const TileStats& known = rows_of_stats(stats)[i];
      const double level = levels ? levels[i * tiling_.channels + part.channel] : known.level;
      cut_part(input_, tiling_, tiles[i], {level, known.scale}, part);
    };
    all.correlate(2 * twos, large_[pair * block_.templates() + k], cut);
    for (int64_t n = 0; n < twos; ++n) {
      const size_t i = some[n];
      f(i, with_tiles(numbers_, {tiles[i], tiles[i + 1]}), Numerators{all.sums(2 * n), {}});
    }
  }

  // How many of the tiles that are transformed together are no filler.
  int64_t existing(const Sizes& tiles, size_t i) const {
    return std::count_if(tiles.begin() + i, tiles.begin() + i + lanes_,
                         [](int64_t tile) { return tile >= 0; });
  }

  // The largest count of the tiles that are transformed together, from the i-th on.
  double most(const Tensor& counts, size_t i) const {
    const int64_t* from = counts.const_data_ptr<int64_t>() + i;
    return static_cast<double>(*std::max_element(from, from + lanes_));
  }

  // Stats, norms, states and means, which may be missing, of the tiles that are transformed together
  // from the i-th on.
  Tensors moments_of(const Tensors& all, size_t i) const {
    const int64_t first = static_cast<int64_t>(i), count = all[1].size(0);
    Tensors some{stats_of(all[0], first, count)};
    for (size_t j = 1; j < all.size(); ++j) {
      some.push_back(all[j].numel() > 0 ? part_of(all[j], 0, first, 2) : all[j]);
    }
    return some;
  }

  // Stats of two tiles from the first on, of so many.
  Tensor stats_of(const Tensor& all, int64_t first, int64_t count) const {
    if (levels_of(rule_) != Levels::kOwn) return part_of(all, 0, first, 2);
    const int64_t n = tiling_.channels;
    const Tensor some = new_float64({2 * (kStats + n)});
    const double* from = all.const_data_ptr<double>();
    double* to = some.mutable_data_ptr<double>();
    to = std::copy_n(from + first * kStats, 2 * kStats, to);
    std::copy_n(from + count * kStats + first * n, 2 * n, to);
    return some;
  }

  bool may_look_again() const {
    return std::is_same_v<T, float> && lanes_ == 2 && rule_.zero_mean &&
           !rule_.own_means && !weights_ && product(tiling_.stride) == 1;
  }

  // Windows that are recomputed come on top of what a second look takes.
  bool leaves_few(const FaintTiles& faint) const {
    return 1.5 * static_cast<double>(faint.hopeless) <= rule_.budget;
  }

  // Whether a second look at the windows that are doubtful by their norms alone leaves few of them.
  bool is_worth_a_look(const Sizes& tiles, const Tensors& moments, size_t i) const {
    if constexpr (std::is_same_v<T, float>) {
      if (!may_look_again()) return false;
      const Sizes batch = with_tiles(numbers_, Sizes{tiles[i], tiles[i + 1]});
      const FaintTiles faint = cut_faint(input_, moments_of(moments, i), batch, rule_, HUGE_VAL);
      return leaves_few(faint);
    }
    return false;
  }

  // Whether the k-th template's scores are right after a second look at faint windows.
  bool score_faint(const Sizes& tiles, const Tensors& all, size_t i, int64_t pair, int64_t k,
                   double limit) {
    if constexpr (std::is_same_v<T, float>) {
      if (!may_look_again()) return false;
      Sizes batch = with_tiles(numbers_, Sizes{tiles[i], tiles[i + 1]});
      const Tensors moments = moments_of(all, i);
      FaintTiles faint = cut_faint(input_, moments, batch, rule_, limit);
      if (!leaves_few(faint)) return false;
      const Operand operand = spectrum_of(std::move(faint.lines), tiling_, true);
      const Numerators sums = numerators<float>(operand, pair, k, 1);
      set_first_template(batch, block_.first_template + k);
      const auto left = normalise_faint(sums.sums, faint, moments, input_, all_, batch, rule_, out_);
      if (std::max(left[0], left[1]) > 0) return false;
      count_way(Way::kLookedAgain, existing(tiles, i));
      return true;
    }
    return false;
  }

  // Templates `begin` to `end` in float64, of the tiles that are transformed together from the i-th
  // on.
  void score_wide(const Sizes& tiles, const Tensors& known, size_t i, int64_t pair, int64_t begin,
                  int64_t end) {
    const Sizes batch =
        with_tiles(numbers_, Sizes(tiles.begin() + i, tiles.begin() + i + lanes_));
    count_way(Way::kFloat64, (end - begin) * existing(tiles, i));
    Scratch scratch;  // that of the worker holds what the caller still needs
    auto [cut, stats] = cut_operands(scratch, input_, batch, levels_of(rule_), true, lanes_ == 2);
    const Tensors moments = wide_moments(batch, stats, part_of(known[1], 0, i, lanes_),
                                         part_of(known[2], 0, i, lanes_));
    const Operand operand = operand_of(std::move(cut));
    const int64_t at_once = lanes_ == 2 ? 1 : end - begin;
    for (int64_t k = begin; k < end; k += at_once) {
      const Numerators sums = numerators<double>(operand, pair, k, at_once);
      normalise(scratch, sums, moments, batch, k, wide_rule_numbers_);
    }
  }

  // The moments that are known if few norms are unknown, or better ones.
  Tensors wide_moments(const Sizes& batch, const Tensor& stats, const Tensor& known_norms,
                       const Tensor& known_states) const {
    const int64_t count = known_norms.numel(), each = count / lanes_;
    const uint8_t* known_state = known_states.const_data_ptr<uint8_t>();
    int64_t unknown = 0;
    for (int64_t first = 0; first < count; first += each) {
      unknown = std::max(unknown, count_state(each, known_state + first, kUnknown));
    }
    if (weights_ || (sizeof(T) < sizeof(double) && static_cast<double>(unknown) <= rule_.budget)) {
      const Sizes shape = sizes_of(known_norms);
      const Tensor norms = new_float64(shape);
      const Tensor states = new_tensor(known_states, shape);
      const T* known = known_norms.const_data_ptr<T>();
      double* norm = norms.mutable_data_ptr<double>();
      uint8_t* state = states.mutable_data_ptr<uint8_t>();
      // Doubtful relative to the rounding of float32 sums, but not of float64 ones.
      const WindowState doubtful = sizeof(T) < sizeof(double) ? kGood : kDoubtful;
      for (int64_t at = 0; at < count; ++at) norm[at] = static_cast<double>(known[at]);
      for (int64_t at = 0; at < count; ++at) {
        state[at] = known_state[at] == kDoubtful ? static_cast<uint8_t>(doubtful) : known_state[at];
      }
      return {stats, norms, states, new_float64({0})};
    }
    const auto [norms, states, no_means] =
        merged_moments(input_, stats, batch, wide_rule_numbers_, lanes_ == 2, false);
    for (int64_t at = 0; at < count; ++at) {
      // Cut tiles have zeros where an element is not finite.
      if (known_state[at] != kNonFinite) continue;
      norms.template mutable_data_ptr<double>()[at] = std::numeric_limits<double>::quiet_NaN();
      states.template mutable_data_ptr<uint8_t>()[at] = kNonFinite;
    }
    return {stats, norms, states, no_means};
  }

  Operand operand_of(Tensor cut) const {
    if (lanes_ == 1) return {cut, cut};
    return spectrum_of(std::move(cut), tiling_, block_.templates() == 1);
  }

  // Sums of products with `some` templates from the k-th of the block on: (tiles, some, *positions),
  // or two tiles as one complex one each, (twos of tiles, *folded).
  template <class R>
  Numerators numerators(const Operand& of, int64_t pair, int64_t k, int64_t some) {
    if (lanes_ == 2) {
      const R* spectrum = spectra_->template of<R>(pair * block_.templates() + k);
      const Tensor products = product_spectra_of(of, tiling_, spectrum);
      const Numbers powers = powers_of<R>(products);
      return {transform(fold_spectra(tiling_, products), false), powers};
    }
    const Tensor& all = sizeof(R) < sizeof(double) ? narrow_ : wide_;
    const Tensor some_of = part_of(part_of(all, 0, pair, 1), 1, k, some);
    if (rule_.halved) return {direct::correlate_halved(of.tiles, some_of), {}};
    return {direct::correlate_direct(of.tiles, some_of, sizes_of(tiling_.stride, tiling_.ndim)), {}};
  }

  // Mean squares of the sums that spectra transform to, where not all of those are computed.
  template <class R>
  Numbers powers_of(const Tensor& spectra) const {
    if (!tiling_.is_folded()) return {};
    Numbers powers(spectra.size(0));
    const R* numbers = static_cast<const R*>(spectra.const_data_ptr());
    for (double& power : powers) {
      power = content_of(2 * tiling_.tile_size(), numbers).square;
      numbers += 2 * tiling_.tile_size();
    }
    return powers;
  }

  Normalised normalise(Scratch& scratch, const Numerators& sums, const Tensors& moments, Sizes batch,
                   int64_t k, const Numbers& rule) const {
    set_first_template(batch, block_.first_template + k);
    return normalise_tiles_into(scratch, sums, moments, input_, all_, batch, rule, out_);
  }

  const Tensor &input_, &all_;
  const Sizes& numbers_;
  const Block& block_;
  const Numbers &rule_numbers_, &wide_rule_numbers_;
  const ScoreRule rule_;
  const Tiling tiling_;
  const int64_t lanes_;
  // The coefficients of the block in float64, and for direct sums in the input's type.
  const Tensor wide_, narrow_;
  std::vector<LargeTemplate> large_;
  std::optional<TemplateSpectra> spectra_;
  std::optional<WindowWeights> weights_;
  const Tensor& out_;
};

void score_tiles(const Tensor& input, const Tensor& coefficients, std::optional<Tensor> spectra,
                 Sizes batch, Sizes block_numbers, Numbers rule, Numbers wide_rule,
                 std::optional<Tensor> mask, Numbers weights, const Tensor& out) {
  const Block block(block_numbers);
  with_real_type(input, "input", [&](auto zero) {
    ScorePass<decltype(zero)> pass(input, coefficients, spectra, batch, block, rule, wide_rule, mask,
                                   weights, out);
    const Tiling& tiling = pass.tiling();
    const int64_t tiles = tiling.layout.count / coefficients.size(0) * tiling.tiles_per_item();
    for_units({block, tiles, pass.lanes(), tiling.ndim == 1},
              [&](const Sizes& some, int64_t pair, Scratch& scratch) {
                pass.score(some, pair, scratch);
              });
  });
}

// A view (*lead, 1, *size) of (*lead, *size). `unsqueeze` goes through the dispatcher, which takes several
// times as long.
Tensor with_channel_axis(const Tensor& x, int64_t ndim) {
  Sizes sizes = sizes_of(x), strides(x.strides().begin(), x.strides().end());
  const int64_t axis = x.dim() - ndim;
  STD_TORCH_CHECK(axis >= 0, "input has too few axes");
  sizes.insert(sizes.begin() + axis, 1);
  strides.insert(strides.begin() + axis, 1);
  AtenTensorHandle view;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
      x.get(), static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0, &view));
  return Tensor(view);
}

// A map in this shape of scores of all templates, one block by the direct loop, with templates as they
// are given, and tensors with or without an axis of channels; nothing if both may hold bytes.
Tensor score_at_once(const Tensor& given, const Tensor& given_templates, Sizes shape, Sizes batch,
                     Sizes block_numbers, Numbers rule, Numbers wide_rule, bool has_channels) {
  const Tensor templates = packed(given_templates);
  if (templates.scalar_type() == ScalarType::Float && begins_with_bytes(templates) &&
      begins_with_bytes(given)) {
    return new_tensor(given, Sizes{0});
  }
  const Tensor input = has_channels ? given : with_channel_axis(given, batch.at(0));
  const Tiling tiling = TileBatch(batch, input).tiling;
  const Block block(block_numbers);
  Sizes whole{block.pairs(), block.templates(), tiling.channels};
  for (int64_t k : sizes_of(tiling.window, tiling.ndim)) whole.push_back(k);
  const Tensor coefficients =
      standardised(templates, tiling.window_size(), ScoreRule(rule).zero_mean, whole);
  const Tensor out = new_map(input, shape);
  score_tiles(input, coefficients, std::nullopt, std::move(batch), std::move(block_numbers),
              std::move(rule), std::move(wide_rule), std::nullopt, {}, out);
  return out;
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("score_tiles", TORCH_BOX(&torchcorr::score_tiles));
  m.impl("score_at_once", TORCH_BOX(&torchcorr::score_at_once));
}
