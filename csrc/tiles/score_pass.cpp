// Scores of a block of templates in one parallel region. A worker takes a unit of tiles and carries
// it through all steps (cut, moments, transform, product, inverse transform, scores) while it is in
// the cache of its core, then takes the next. A tile that has too many doubtful windows is computed
// in float64 by the same worker. Steps that divide their work among threads run on one here.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "tiles/spectra.h"
#include "tiles/steps.h"

namespace torchcorr {
namespace {

// Leading indices and templates that share spectra, and how many tiles make a unit: `ScoreBlock`
// of _cpu/rules.py.
struct ScoreBlock {
  int64_t first_pair, last_pair, first_template, last_template, tiles_of_unit;

  explicit ScoreBlock(const Sizes& n) {
    STD_TORCH_CHECK(n.size() == 5, "a block of scores has five numbers");
    first_pair = n[0], last_pair = n[1], first_template = n[2], last_template = n[3];
    tiles_of_unit = n[4];
  }
  int64_t pairs() const { return last_pair - first_pair; }
  int64_t templates() const { return last_template - first_template; }
};

Tensor rows_of(const Tensor& x, int64_t first, int64_t count) {
  Tensor all = x;
  return torch::stable::narrow(all, 0, first, count);
}

template <class T>
class ScorePass {
 public:
  ScorePass(const Tensor& input, const Tensor& coefficients, const Tensor& block_coefficients,
            const Tensor& spectra, const Sizes& numbers, const ScoreBlock& block,
            const Numbers& rule, const Numbers& wide_rule, const Tensor& out)
      : input_(input), coefficients_(coefficients), numbers_(numbers), block_(block),
        rule_numbers_(rule), wide_rule_numbers_(wide_rule), rule_(rule), wide_rule_(wide_rule),
        tiling_(TileBatch(numbers, input).tiling),
        spectra_(tiling_, block_coefficients, spectra), out_(out) {}

  // Tiles of a leading index, two by two.
  void score(const Sizes& tiles, int64_t pair) {
    const Sizes batch = batch_of(tiles);
    const auto [cut, stats] = cut_tiles(input_, batch, rule_.zero_mean, false, true);
    const auto [norms, states, means, doubtful] =
        tile_moments(input_, stats, batch, rule_numbers_, false);
    const int64_t twos = static_cast<int64_t>(tiles.size()) / 2;
    std::vector<int64_t> hard;
    Sizes easy;
    for (int64_t i = 0; i < twos; ++i) {
      if (exceeds_budget(doubtful, i)) {
        hard.push_back(i);
      } else {
        easy.insert(easy.end(), {tiles[2 * i], tiles[2 * i + 1]});
      }
    }
    for (int64_t i : hard) score_wide(tiles, norms, states, i, pair, 0, block_.templates());
    if (easy.empty()) return;
    if (!hard.empty()) return score(easy, pair);
    const Tensor spectrum = transform(lines_of_tiles(cut), true);
    const bool in_place = block_.templates() == 1 && tiling_.channels == 1;
    const Tensor product = in_place ? spectrum : new_product(spectrum);
    for (int64_t k = 0; k < block_.templates(); ++k) {
      const Tensor sums = numerators<T>(spectrum, product, pair, k);
      const Tensor left = emit(sums, {stats, norms, states, means}, batch, k, rule_numbers_);
      for (int64_t i = 0; i < twos; ++i) {
        const int64_t* counts = left.const_data_ptr<int64_t>() + 2 * i;
        if (counts[0] + counts[1] > 0) score_wide(tiles, norms, states, i, pair, k, k + 1);
      }
    }
  }

 private:
  Sizes batch_of(const Sizes& tiles) const {
    Sizes batch = numbers_;
    batch.insert(batch.end(), tiles.begin(), tiles.end());
    return batch;
  }

  bool exceeds_budget(const Tensor& doubtful, int64_t i) const {
    const int64_t* counts = doubtful.const_data_ptr<int64_t>() + 2 * i;
    return static_cast<double>(std::max(counts[0], counts[1])) > rule_.budget;
  }

  // Templates `begin` to `end` of the i-th two tiles, in float64.
  void score_wide(const Sizes& tiles, const Tensor& norms, const Tensor& states, int64_t i,
                  int64_t pair, int64_t begin, int64_t end) {
    const Sizes batch = batch_of({tiles[2 * i], tiles[2 * i + 1]});
    const auto [cut, stats] = cut_tiles(input_, batch, rule_.zero_mean, true, true);
    const Tensors moments =
        wide_moments(batch, stats, rows_of(norms, 2 * i, 2), rows_of(states, 2 * i, 2));
    const Tensor spectrum = transform(lines_of_tiles(cut), true);
    const Tensor product = new_product(spectrum);
    for (int64_t k = begin; k < end; ++k) {
      emit(numerators<double>(spectrum, product, pair, k), moments, batch, k, wide_rule_numbers_);
    }
  }

  // The known norms if few are unknown, or better ones.
  Tensors wide_moments(const Sizes& batch, const Tensor& stats, const Tensor& known_norms,
                       const Tensor& known_states) const {
    const int64_t count = known_norms.numel(), each = count / 2;
    Sizes shape;
    for (int64_t axis = 0; axis < known_norms.dim(); ++axis) shape.push_back(known_norms.size(axis));
    const Tensor norms = new_float64(stats, shape);
    const Tensor states = torch::stable::new_empty(known_states, shape);
    const Tensor no_means = new_float64(stats, {0});
    const T* known = known_norms.const_data_ptr<T>();
    const uint8_t* known_state = known_states.const_data_ptr<uint8_t>();
    double* norm = norms.mutable_data_ptr<double>();
    uint8_t* state = states.mutable_data_ptr<uint8_t>();
    int64_t unknown[2] = {0, 0};
    for (int64_t at = 0; at < count; ++at) unknown[at / each] += known_state[at] == kUnknown;
    if (sizeof(T) < sizeof(double) &&
        static_cast<double>(std::max(unknown[0], unknown[1])) <= rule_.budget) {
      // Doubtful relative to the rounding of float32 transforms, but not of float64 ones.
      for (int64_t at = 0; at < count; ++at) {
        norm[at] = static_cast<double>(known[at]);
        state[at] = known_state[at] == kDoubtful ? kGood : known_state[at];
      }
      return {stats, norms, states, no_means};
    }
    merged_moments(batch, stats, norm, state);
    for (int64_t at = 0; at < count; ++at) {
      // Cut tiles have zeros where an element is not finite.
      if (known_state[at] != kNonFinite) continue;
      norm[at] = std::numeric_limits<double>::quiet_NaN();
      state[at] = kNonFinite;
    }
    return {stats, norms, states, no_means};
  }

  // Norms and states from moments that are merged from parts, so that nothing cancels.
  void merged_moments(const Sizes& batch, const Tensor& stats, double* norm,
                      uint8_t* state) const {
    auto [raw, raw_stats] = cut_tiles(input_, batch, false, true, false);
    for (int64_t i = 0; i < tiling_.ndim; ++i) {
      raw = torch::stable::narrow(raw, 2 + i, 0, tiling_.extent[3 - tiling_.ndim + i]);
    }
    const auto [mean, var] = window_moments(raw, sizes_of(tiling_.window, tiling_.ndim),
                                            sizes_of(tiling_.stride, tiling_.ndim));
    const TileStats *of_tile = rows_of_stats(stats), *of_raw = rows_of_stats(raw_stats);
    const double least = wide_rule_.least_energy * (of_tile[0].mean_square + of_tile[1].mean_square);
    const int64_t each = tiling_.positions();
    for (int64_t at = 0; at < 2 * each; ++at) {
      const double scale = of_tile[at / each].scale, ratio = scale / of_raw[at / each].scale;
      const double level = rule_.zero_mean ? 0.0 : mean.template const_data_ptr<double>()[at];
      const double square = var.template const_data_ptr<double>()[at] + level * level;
      const double energy = square * ratio * ratio, softened = energy + rule_.eps * scale * scale;
      const bool flat = energy == 0;
      norm[at] = flat ? 0.0 : 1 / (static_cast<double>(tiling_.window_size()) * std::sqrt(softened));
      state[at] = flat ? kFlat : softened < least ? kDoubtful : kGood;
    }
  }

  Tensor new_product(const Tensor& spectrum) const {
    Sizes shape{spectrum.size(0) / tiling_.channels};
    for (int64_t axis = 1; axis < spectrum.dim(); ++axis) shape.push_back(spectrum.size(axis));
    return torch::stable::new_empty(spectrum, shape);
  }

  // Sums of products of two tiles each with a template, (twos, 1, *length, 2).
  template <class R>
  Tensor numerators(const Tensor& spectrum, const Tensor& product, int64_t pair, int64_t k) {
    const int64_t twos = product.size(0), line = pair * block_.templates() + k;
    multiply_spectra(twos, tiling_.channels, tiling_.tile_size(),
                     static_cast<const R*>(spectrum.const_data_ptr()), spectra_.template of<R>(line),
                     static_cast<R*>(product.mutable_data_ptr()));
    return tiles_of_lines(transform(product, false));
  }

  Tensor emit(const Tensor& sums, const Tensors& moments, Sizes batch, int64_t k,
              const Numbers& rule) const {
    batch.at(1) = block_.first_template + k;
    return normalise_tiles(sums, moments, input_, coefficients_, batch, rule, out_);
  }

  const Tensor &input_, &coefficients_;
  const Sizes& numbers_;
  const ScoreBlock& block_;
  const Numbers &rule_numbers_, &wide_rule_numbers_;
  const ScoreRule rule_, wide_rule_;
  const Tiling tiling_;
  TemplateSpectra spectra_;
  const Tensor& out_;
};

void score_tiles(const Tensor& input, const Tensor& coefficients, const Tensor& spectra,
                 Sizes batch, Sizes block_numbers, Numbers rule, Numbers wide_rule,
                 const Tensor& out) {
  const ScoreBlock block(block_numbers);
  const Tiling tiling = TileBatch(batch, input).tiling;
  const int64_t items = input.size(0) / coefficients.size(0);
  const int64_t tiles = items * tiling.tiles_per_item();
  const int64_t units_each = ceil_div(tiles, block.tiles_of_unit), units = units_each * block.pairs();
  Tensor part = rows_of(coefficients, block.first_pair, block.pairs());
  part = packed(torch::stable::narrow(part, 1, block.first_template, block.templates()));
  with_real_type(input, "input", [&](auto zero) {
    ScorePass<decltype(zero)> pass(input, coefficients, part, spectra, batch, block, rule,
                                   wide_rule, out);
    const auto score_unit = [&](int64_t unit) {
      const int64_t pair = unit / units_each, begin = unit % units_each * block.tiles_of_unit;
      const int64_t end = std::min(begin + block.tiles_of_unit, tiles);
      Sizes some;
      for (int64_t t = begin; t < end; ++t) some.push_back((block.first_pair + pair) * tiles + t);
      if (some.size() % 2 != 0) some.push_back(-1);
      pass.score(some, pair);
    };
    // The threads share the steps of a single unit, except that MKL would divide a line among them
    // and round differently for each number of threads.
    if (units == 1 && tiling.ndim > 1) return score_unit(0);
    std::atomic<int64_t> next{0};
    const int64_t threads = torch::stable::get_num_threads();
    torch::stable::parallel_for(0, std::max<int64_t>(2, std::min(threads, units)), 1,
                                [&](int64_t, int64_t) {
                                  for (int64_t u = next++; u < units; u = next++) score_unit(u);
                                });
  });
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("score_tiles", TORCH_BOX(&torchcorr::score_tiles));
}
