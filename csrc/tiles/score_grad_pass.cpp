// Both gradients of scores for a block of templates in one parallel region. A worker takes a unit of
// tiles and carries it through all steps: cut, moments, the transform of the input, and for each
// template the upstream gradient, its transform and the products with both spectra; then it takes
// the next unit. What units contribute is added up in their order. Threads share the steps of a unit
// whose tiles are large; its transforms take the place of what they transform.

#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>

#include "common/in_order.h"
#include "common/parallel.h"
#include "tiles/emit_sums.h"
#include "tiles/in_place.h"
#include "tiles/pass.h"
#include "tiles/steps.h"

namespace torchcorr {
namespace {

struct Operands {
  Tensor grad, input, coefficients, score;

  explicit Operands(const Tensors& t) : grad(t.at(0)), input(t.at(1)), coefficients(t.at(2)),
                                        score(t.at(3)) {}
};

// What is added to; a gradient that is not needed is empty. Spectra of the template's gradient are
// those of the block, (pairs, templates, C, *length), apart for units in float64; so are offsets,
// (pairs, templates, means of a window).
struct GradSums {
  Tensor input, spectra, wide_spectra, offsets;

  explicit GradSums(const Tensors& t) : input(t.at(0)), spectra(t.at(1)), wide_spectra(t.at(2)),
                                        offsets(t.at(3)) {}
  bool need_input() const { return input.numel() > 0; }
  bool need_template() const { return offsets.numel() > 0; }
};

// How much rounding a unit contributes (math.md, eq. noise): to the input's gradient through its
// transforms and through its scores, to the template's as a square; NaN if it is not finite. A row
// of `UnitNoise` of _cpu/score_grads.py.
struct UnitNoise {
  double transforms = 0, scores = 0, squares = 0;

  static UnitNoise of_non_finite() {
    constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
    return {kNaN, kNaN, kNaN};
  }
  bool is_finite() const { return std::isfinite(transforms + scores + squares); }
};
constexpr int64_t kNoise = sizeof(UnitNoise) / sizeof(double);
// Roundings of the maps that go to windows, in units of those of a transform.
constexpr double kMapRounding = 0.4;
constexpr int64_t kGrain = 1 << 15;  // elements of a large tile that are worth another thread

Tensor lines_like(const Tensor& lines, int64_t count, const Tiling& t) {
  Sizes shape{count};
  for (int64_t n : sizes_of(t.length, t.ndim)) shape.push_back(n);
  return new_tensor(lines, shape);
}

// In is the type of the input, R that of a unit.
template <class In>
class ScoreGradPass {
 public:
  ScoreGradPass(const Operands& of, const Tensor& spectra, const Sizes& batch, const Block& block,
                const Numbers& rule, const GradSums& to)
      : of_(of), to_(to), numbers_(batch), rule_numbers_(rule), rule_(rule),
        tiling_(TileBatch(batch, of.input).tiling),
        units_(block, tiling_.layout.count / of.coefficients.size(0) * tiling_.tiles_per_item(), 2),
        spectra_(tiling_,
                 packed(part_of(part_of(of.coefficients, 0, block.first_pair, block.pairs()), 1,
                                block.first_template, block.templates())),
                 spectra, block.large && tiling_.ndim == 1),
        order_(block.pairs() * (block.templates() + 1), most_kept()) {
    STD_TORCH_CHECK(!block.large || tiling_.ndim > 1 || !tiling_.is_folded(),
                    "spectra of long lines are not folded");
  }

  const Units& units() const { return units_; }
  // What waits for its turn takes room that all workers share.
  static int64_t most_kept() {
    return std::max<int64_t>(1, threads_to_share() - 1);
  }
  // Of channels that share a mean.
  int64_t groups() const { return rule_.own_means ? tiling_.channels : 1; }

  void run(const std::vector<uint8_t>& is_wide, UnitNoise* noise) {
    run_units(units_.count(), units_.sharing, [&](int64_t u, Scratch& scratch) {
      if (stopped_) {
        noise[u] = UnitNoise::of_non_finite();
        return;
      }
      try {
        noise[u] = is_wide[u] ? add_unit<double>(u, scratch) : add_unit<In>(u, scratch);
      } catch (...) {
        stop();
        throw;
      }
      if (!noise[u].is_finite()) stop();
    });
  }

 private:
  void stop() {
    stopped_ = true;
    order_.stop();
  }

  // A unit and what is known of it.
  template <class R>
  struct Work {
    int64_t unit, pair;
    Sizes batch;
    Tensors moments;
    Tensor window_grads;              // (1 + means of a window, tiles, *positions)
    std::optional<Tensor> spectrum;   // of the input, if it is needed
    std::optional<Tensor> products;   // with the templates' spectra, summed over the templates
    std::vector<UpstreamSums> total;  // over the templates

    int64_t tiles() const { return window_grads.size(1); }
  };

  template <class R>
  UnitNoise add_unit(int64_t unit, Scratch& scratch) {
    const int64_t templates = units_.block.templates();
    std::optional<Work<R>> work = measured<R>(unit, scratch);
    if (!work) return UnitNoise::of_non_finite();
    for (int64_t k = 0; k < templates; ++k) add_template(*work, k);
    UnitNoise noise = noise_of(*work);
    if (to_.need_input() && noise.is_finite()) {
      // What only the templates needed is free before the last transform.
      work->spectrum.reset();
      const Tensor tiles = tiles_of_lines(restored(*work->products, true));
      work->products.reset();
      noise.transforms = noise_of_transforms(*work, tiles);
      work->moments.resize(1);
      if (noise.is_finite()) add_input(*work, tiles);
    }
    return noise;
  }

  // Everything before the templates; nothing if an element is not finite.
  template <class R>
  std::optional<Work<R>> measured(int64_t unit, Scratch& scratch) const {
    const Sizes tiles = units_.tiles_of(unit);
    const Sizes batch = with_tiles(numbers_, tiles);
    const auto [spectrum, stats] = seen<R>(batch);
    for (size_t i = 0; i < tiles.size(); ++i) {
      if (rows_of_stats(stats)[i].non_finite > 0) return std::nullopt;
    }
    const Tensors moments = moments_of<R>(batch, stats);
    const Tensor& norms = moments[1];
    Sizes shape = sizes_of(norms);
    shape.insert(shape.begin(), 1 + groups());
    // The largest array of a unit is kept for the next one, or memory is left in pieces.
    const Tensor window_grads =
        scratch.take_zeros<R>(Scratch::kWindowGrads, shape, norms.scalar_type());
    return Work<R>{unit % units_.of_pair, units_.pair(unit), batch, moments, window_grads, spectrum,
                   std::nullopt, std::vector<UpstreamSums>(tiles.size())};
  }

  // The spectrum of tiles, if it is needed, and their stats. The tiles themselves are free again
  // before the moments take memory.
  template <class R>
  std::pair<std::optional<Tensor>, Tensor> seen(const Sizes& batch) const {
    constexpr bool kIsWide = sizeof(R) > sizeof(In);
    const auto [cut, stats] = cut_tiles(of_.input, batch, levels_of(rule_), kIsWide, true);
    if (!to_.need_template() && !kIsWide) return {std::nullopt, stats};
    return {transformed(lines_of_tiles(cut), true, tiling_.extent), stats};
  }

  // The spectra of lines that are zero behind `some` elements along each axis, forward or conjugate.
  // Those of large tiles take their place, and those of lines have an order of their own.
  Tensor transformed(const Tensor& lines, bool forward, const Axes3& some) const {
    if (!units_.block.large) return transform(lines, forward);
    tiling_.ndim == 1 ? transform_lines_in_place(lines, !forward)
                      : transform_in_place(lines, forward, some);
    return lines;
  }

  // What such spectra are the spectra of, times its size.
  Tensor restored(const Tensor& spectra, bool conjugate) const {
    if (!units_.block.large) return transform(spectra, conjugate);
    tiling_.ndim == 1 ? restore_lines_in_place(spectra, conjugate)
                      : transform_in_place(spectra, conjugate, last_sizes(spectra, tiling_.ndim));
    return spectra;
  }

  // out = a * b of n complex numbers, or out += a * b: in blocks, whose last numbers are rounded in
  // another way than those that fill vectors.
  template <class R>
  static void multiply(int64_t n, bool add, const R* a, const R* b, R* out) {
    share(ceil_div(n, kGrain), [&](int64_t block) {
      const int64_t begin = block * kGrain, some = std::min(kGrain, n - begin);
      multiply_complex(some, add, a + 2 * begin, b + 2 * begin, out + 2 * begin);
    });
  }

  template <class R>
  Tensors moments_of(const Sizes& batch, const Tensor& stats) const {
    if constexpr (sizeof(R) < sizeof(double)) {
      const auto [norms, states, means, unknown] =
          tile_moments(of_.input, stats, batch, rule_numbers_, true);
      const int64_t* counts = unknown.const_data_ptr<int64_t>();
      const int64_t most = *std::max_element(counts, counts + unknown.numel());
      if (static_cast<double>(most) <= rule_.budget) {
        const Tensors moments{stats, norms, states, means};
        if (most > 0) recompute_norms(moments, of_.input, batch, rule_numbers_);
        return moments;
      }
    }
    const auto [norms, states, means] =
        merged_moments(of_.input, stats, batch, rule_numbers_, true, true);
    if constexpr (sizeof(R) == sizeof(double)) return {stats, norms, states, means};
    return {stats, in_type_of(of_.input, norms), states, in_type_of(of_.input, means)};
  }

  // Adds a unit's products with template k of the block, or keeps those that other templates add to.
  template <class R>
  void add_template(Work<R>& work, int64_t k) {
    constexpr bool kIsWide = sizeof(R) > sizeof(In);
    const int64_t channels = tiling_.channels, size = tiling_.tile_size();
    const R* weights = spectra_.template of<R>(work.pair * units_.block.templates() + k);
    set_first_template(work.batch, units_.block.first_template + k);
    std::vector<UpstreamSums> sums;
    const Tensor score = kIsWide ? rescored(work, weights) : of_.score;
    const Upstream upstream{of_.grad, score, kIsWide, static_cast<double>(tiling_.window_size())};
    const Tensor cut = cut_upstream(upstream, work.moments, work.batch, work.window_grads, sums);
    const Tensor alpha = repeat_spectra(tiling_, transformed(lines_of_tiles(cut), false, tiling_.folded()));
    std::vector<double> offsets(groups());
    for (size_t i = 0; i < sums.size(); ++i) {
      for (size_t g = 0; g < sums[i].offsets.size(); ++g) offsets[g] += sums[i].offsets[g];
      work.total[i].squares += sums[i].squares;
      work.total[i].largest = std::max(work.total[i].largest, sums[i].largest);
    }
    R* given = static_cast<R*>(alpha.mutable_data_ptr());
    if (to_.need_template()) add_template_grad(work, k, given, offsets);
    if (!to_.need_input()) return;
    const bool is_first = !work.products;
    if (is_first && channels == 1) {
      // Element by element, so that the factor may be overwritten.
      for (int64_t p = 0; p < alpha.size(0); ++p) {
        multiply<R>(size, false, given + 2 * p * size, weights, given + 2 * p * size);
      }
      work.products = alpha;
      return;
    }
    if (is_first) work.products = lines_like(alpha, alpha.size(0) * channels, tiling_);
    R* to = static_cast<R*>(work.products->mutable_data_ptr());
    for (int64_t i = 0; i < alpha.size(0) * channels; ++i) {
      multiply(size, !is_first, given + 2 * (i / channels) * size,
               weights + 2 * (i % channels) * size, to + 2 * i * size);
    }
  }

  // Adds the products of a unit's upstream spectra `given` with those of its input.
  template <class R>
  void add_template_grad(const Work<R>& work, int64_t k, const R* given,
                         const std::vector<double>& offsets) {
    const int64_t channels = tiling_.channels, size = tiling_.tile_size();
    const int64_t lines = work.spectrum->size(0), line = work.pair * units_.block.templates() + k;
    // The last template may overwrite the only two tiles.
    const bool in_place = k + 1 == units_.block.templates() && lines == channels;
    const Tensor sum = in_place ? *work.spectrum : lines_like(*work.spectrum, channels, tiling_);
    R* to = static_cast<R*>(sum.mutable_data_ptr());
    const R* seen = static_cast<const R*>(work.spectrum->const_data_ptr());
    for (int64_t i = 0; i < lines; ++i) {
      multiply(size, i >= channels, seen + 2 * i * size, given + 2 * (i / channels) * size,
               to + 2 * (i % channels) * size);
    }
    const int64_t numbers = 2 * channels * size;
    order_.put(line, work.unit, [this, sum, offsets, line, numbers] {
      const Tensor& spectra = sizeof(R) > sizeof(In) ? to_.wide_spectra : to_.spectra;
      R* out = static_cast<R*>(spectra.mutable_data_ptr()) + line * numbers;
      const R* from = static_cast<const R*>(sum.const_data_ptr());
      parallel_for(0, numbers, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) out[i] += from[i];
      });
      double* to_line = to_.offsets.template mutable_data_ptr<double>() + line * groups();
      for (int64_t g = 0; g < groups(); ++g) to_line[g] += offsets[g];
    });
  }

  template <class R>
  void add_input(const Work<R>& work, const Tensor& tiles) {
    spread_window_grads(tiles, work.window_grads, work.moments[0], of_.input, work.batch,
                        rule_);
    const int64_t line = units_.block.pairs() * units_.block.templates() + work.pair;
    order_.put(line, work.unit, [this, tiles, batch = work.batch] {
      add_input_grads(tiles, batch, to_.input);
    });
  }

  // Scores of tiles in float64, (tiles, *positions): those of the map are rounded too much for terms
  // that nearly cancel.
  template <class R>
  Tensor rescored(const Work<R>& work, const R* weights) const {
    const int64_t twos = work.tiles() / 2, size = tiling_.tile_size();
    const Tensor product = lines_like(*work.spectrum, twos, tiling_);
    multiply_spectra({twos, tiling_.channels, size}, false,
                     static_cast<const R*>(work.spectrum->const_data_ptr()), weights,
                     static_cast<R*>(product.mutable_data_ptr()));
    const Tensor sums = restored(fold_spectra(tiling_, product), false);
    const Tensor& norms = work.moments[1];
    const Tensor scores = new_tensor(norms, sizes_of(norms));
    const R *from = static_cast<const R*>(sums.const_data_ptr()),
            *norm = norms.template const_data_ptr<R>();
    R* to = scores.template mutable_data_ptr<R>();
    const Axes3 step = tiling_.folded_stride(), length = tiling_.folded();
    for (int64_t i = 0; i < norms.numel(); ++i) {
      const int64_t tile = i / tiling_.positions();
      const Axes3 at = unravel(i % tiling_.positions(), tiling_.outputs);
      const int64_t element = ((at[0] * step[0]) * length[1] + at[1] * step[1]) * length[2] +
                              at[2] * step[2];
      const R score = from[2 * (tile / 2 * tiling_.folded_size() + element) + tile % 2] * norm[i];
      to[i] = score > 1 ? R(1) : score < -1 ? R(-1) : score;
    }
    return scores;
  }

  // What goes to the means of the windows of a tile nearly cancels what goes to their squares where
  // means are far from the level: the largest of either, as often as roundings of it add up.
  template <class R>
  double largest_of_means(const Work<R>& work, int64_t lane) const {
    const int64_t each = tiling_.positions();
    double largest = 0;
    for (int64_t g = 1; g <= groups(); ++g) {
      const R* means = work.window_grads.template const_data_ptr<R>();
      const Contents of = contents_of(each, means + (g * work.tiles() + lane) * each);
      largest = std::max(largest, of.largest);
    }
    const int64_t terms = tiling_.window_size() * units_.block.templates();
    return largest * std::sqrt(static_cast<double>(terms));
  }

  template <class R>
  UnitNoise noise_of(const Work<R>& work) const {
    const TileStats* stats = rows_of_stats(work.moments[0]);
    UnitNoise noise;
    for (int64_t i = 0; i < work.tiles(); i += 2) {
      const double power = power_of(work, i), root = std::sqrt(power * window());
      if (!std::isfinite(power)) return UnitNoise::of_non_finite();
      noise.squares += (stats[i].mean_square + stats[i + 1].mean_square) * power * elements();
      for (int64_t lane = i; lane < i + 2; ++lane) {
        const double score = std::max(4 * work.total[lane].largest, 5 * root);
        noise.scores = std::max(noise.scores, stats[lane].scale * score);
      }
    }
    return noise;
  }

  // What the transforms contribute to the input's gradient, which `tiles` contain so far.
  template <class R>
  double noise_of_transforms(const Work<R>& work, const Tensor& tiles) const {
    const TileStats* stats = rows_of_stats(work.moments[0]);
    const int64_t numbers = 2 * tiling_.channels * tiling_.tile_size();
    const R* values = tiles.template const_data_ptr<R>();
    double most = 0;
    for (int64_t i = 0; i < work.tiles(); i += 2, values += numbers) {
      const Contents in = contents_of(numbers, values);
      const double even = std::sqrt(power_of(work, i) * window() + in.squares / elements());
      for (int64_t lane = i; lane < i + 2; ++lane) {
        const double means = kMapRounding * largest_of_means(work, lane);
        most = std::max(most, stats[lane].scale * (even + in.largest / 2 + means));
      }
    }
    return most;
  }

  // The mean square of the upstream gradients of two tiles, over the norms of their windows.
  template <class R>
  double power_of(const Work<R>& work, int64_t i) const {
    return (work.total[i].squares + work.total[i + 1].squares) / elements();
  }
  double elements() const { return static_cast<double>(tiling_.tile_size()); }
  double window() const { return static_cast<double>(tiling_.window_size()); }

  const Operands& of_;
  const GradSums& to_;
  const Sizes& numbers_;
  const Numbers& rule_numbers_;
  const ScoreRule rule_;
  const Tiling tiling_;
  const Units units_;
  TemplateSpectra spectra_;
  InOrder order_;
  std::atomic<bool> stopped_{false};
};

// The rounding of each unit, (units, 3). `wide` are the units that are computed in float64.
Tensor score_grad_tiles(Tensors operands, const Tensor& spectra, Sizes batch, Sizes block_numbers,
                        Sizes wide, Numbers rule, Tensors sums) {
  const Operands of(operands);
  const GradSums to(sums);
  std::optional<Tensor> noise;
  with_real_type(of.input, "input", [&](auto zero) {
    ScoreGradPass<decltype(zero)> pass(of, spectra, batch, Block(block_numbers), rule, to);
    const int64_t units = pass.units().count();
    std::vector<uint8_t> is_wide(units);
    for (int64_t unit : wide) is_wide.at(unit) = 1;
    noise = new_float64({units, kNoise});
    pass.run(is_wide, reinterpret_cast<UnitNoise*>(noise->mutable_data_ptr<double>()));
  });
  return *noise;
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("score_grad_tiles", TORCH_BOX(&torchcorr::score_grad_tiles));
}
