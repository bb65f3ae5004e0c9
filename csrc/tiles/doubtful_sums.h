// Sums in float64 that rounding, or an element that is not finite, may have made wrong.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "tiles/emit_sums.h"
#include "tiles/large_tiles.h"
#include "tiles/pass.h"
#include "tiles/sum_records.h"
#include "windows/flat.h"

namespace torchcorr {

// The templates of a block, (pairs, templates, C, *window) in float64, and what is known of them.
struct SumTemplates {
  Tensor elements;
  int64_t of_pair, size;
  std::vector<TemplateFacts> facts;

  SumTemplates(const Tiling& tiling, const Tensor& templ, const Block& block, bool by_precision)
      : elements(packed(part_of(part_of(templ, 0, block.first_pair, block.pairs()), 1,
                                block.first_template, block.templates()))),
        of_pair(block.templates()), size(tiling.window_size()) {
    for (int64_t line = 0; line < block.pairs() * of_pair; ++line) {
      facts.emplace_back(tiling, elements.const_data_ptr<double>() + line * size, by_precision);
    }
  }

  int64_t line_of(int64_t pair, int64_t k) const { return pair * of_pair + k; }
  const TemplateFacts& facts_of(int64_t pair, int64_t k) const { return facts[line_of(pair, k)]; }
  const double* elements_of(int64_t pair, int64_t k) const {
    return elements.const_data_ptr<double>() + line_of(pair, k) * size;
  }
};

// One of two tiles and a template, some of whose sums are smaller than `least`.
struct SumCase {
  TilePlace place;
  Sizes two;
  int64_t lane, pair, k;
  double least = 0;
};

template <class T>
class DoubtfulSums {
 public:
  DoubtfulSums(const Tensor& input, const Tiling& tiling, const Block& block, const SumRule& rule,
               const SumTemplates& templates, const SumMap<T>& map)
      : input_(input), tiling_(tiling), block_(block), rule_(rule), templates_(templates),
        map_(map) {}

  // Rounding of two tiles' sums in float64.
  double noise_of(double mean_square, int64_t pair, int64_t k, const double* numerators) const {
    const TemplateFacts& templ = templates_.facts_of(pair, k);
    const double squares = contents_of(2 * tiling_.tile_size(), numerators).squares;
    return rule_.wide_noise * std::sqrt(templ.norm * templ.norm * mean_square +
                                        squares / static_cast<double>(tiling_.tile_size()));
  }

  // Whether there are sums that are smaller than `least`.
  bool has_small(const SumCase& of) const {
    std::vector<uint8_t> states(tiling_.positions(), kGood);
    const int64_t k = block_.first_template + of.k;
    return map_.mark_unknown(of.place, k, nullptr, 1, of.least, states.data()) > 0;
  }

  // Finds out which of the sums that are smaller than `least` are exactly zero or large relative to
  // their sum of absolute products; computes the others again, if they are few.
  void decide(const SumCase& of) {
    const int64_t k = block_.first_template + of.k;
    std::vector<uint8_t> states(tiling_.positions(), kGood);
    int64_t count = map_.mark_unknown(of.place, k, nullptr, 1, of.least, states.data());
    const auto many = [&] { return static_cast<double>(count) > rule_.budget; };
    const T* image = input_.template const_data_ptr<T>();
    if (many()) {
      count -= FlatWindows<T>(tiling_, false).mark(of.two[of.lane], image, states.data());
    }
    if (many()) count = mark_large(of, states.data());
    if (many()) {
      const auto there = [](double x) { return x != 0 ? 1.0 : 0.0; };
      const Tensor counts = products_of_made(of, there, there);
      count -= map_.mark_zeros(of.place, counts.const_data_ptr<double>() + of.lane, states.data());
    }
    map_.write_zeros(of.place, k, states.data());
    if (many()) {
      const std::lock_guard<std::mutex> lock(mutex_);
      left_.push_back({of.two[of.lane], k});
    } else if (count > 0) {
      map_.recompute(of.place, k, states.data(), image + of.place.origin,
                     templates_.elements_of(of.pair, of.k));
    }
  }

  // Sums over what is not finite are NaN unless all products are infinite with the same sign.
  void emit_non_finite(const Two& two, int64_t pair, int64_t k) const {
    bool infinite = false;
    for (int64_t lane = 0; lane < 2; ++lane) {
      each_of(two.tiles[lane], whole(), [&](int64_t, double x) { infinite |= std::isinf(x); });
    }
    const SumCase of{TilePlace(tiling_, two.tiles[0]), two.tiles, 0, pair, k};
    const Tensor counts = products_of_made(
        of, [](double x) { return std::isfinite(x) ? 0.0 : 1.0; }, [](double) { return 1.0; },
        false);
    std::optional<Tensor> signs;
    if (infinite) {
      const auto sign = [](double x) { return x > 0 ? 1.0 : x < 0 ? -1.0 : 0.0; };
      signs = products_of_made(
          of, [&](double x) { return std::isinf(x) ? sign(x) : 0.0; }, sign, false);
    }
    for (int64_t lane = 0; lane < 2; ++lane) {
      const TilePlace place(tiling_, two.tiles[lane]);
      if (!place.exists || two.stats[lane].non_finite == 0) continue;
      map_.write_non_finite(place, block_.first_template + k,
                            signs ? signs->const_data_ptr<double>() + lane : nullptr,
                            counts.const_data_ptr<double>() + lane);
    }
  }

  // Tiles and templates that still have too many unknown sums, in their order.
  std::vector<std::array<int64_t, 2>> left() {
    std::sort(left_.begin(), left_.end());
    return left_;
  }

 private:
  // Elements of a tile from `from` on, as an array (channels, *size) whose rows are `pitch` apart.
  struct Region {
    int64_t channel, channels;
    Axes3 from, size;
    int64_t pitch;
  };
  Region whole() const {
    return {0, tiling_.channels, {0, 0, 0}, tiling_.extent, tiling_.extent[2]};
  }

  // Sums are known if their sums of absolute products are not too small.
  int64_t mark_large(const SumCase& of, uint8_t* states) const {
    double largest = 0;
    each_finite(of.two, [&](double x) { largest = std::max(largest, std::abs(x)); });
    int exponent = 0;
    std::frexp(largest, &exponent);
    const double unit = std::ldexp(1.0, exponent);
    const Tensor sizes = products_of_made(
        of, [&](double x) { return std::abs(x) / unit; }, [](double w) { return std::abs(w); });
    double squares = 0;
    each_finite(of.two, [&](double x) { squares += (x / unit) * (x / unit); });
    const double* first = sizes.const_data_ptr<double>();
    const double mean_square = squares / static_cast<double>(tiling_.tile_size());
    const double noise = noise_of(mean_square, of.pair, of.k, first) * unit;
    return map_.mark_unknown(of.place, block_.first_template + of.k, first + of.lane, unit,
                             of.least + noise, states);
  }

  // Calls f(place in the array, element) for each element of a region that is in the input.
  template <class F>
  void each_of(int64_t tile, const Region& of, const F& f) const {
    const TilePlace place(tiling_, tile);
    const T* image = input_.template const_data_ptr<T>();
    for (int64_t r = 0; r < of.channels * of.size[0] * of.size[1]; ++r) {
      const Axes3 at = unravel(r, {of.channels, of.size[0], of.size[1]});
      const int64_t z = of.from[0] + at[1], y = of.from[1] + at[2];
      if (z >= tiling_.extent[0] || y >= tiling_.extent[1]) continue;
      const TileRow<T> row(tiling_, place, image, of.channel + at[0], z, y);
      const int64_t end = std::min(row.end, of.from[2] + of.size[2]);
      for (int64_t x = std::max(row.begin, of.from[2]); x < end; ++x) {
        f(r * of.pitch + x - of.from[2], static_cast<double>(row.data[x]));
      }
    }
  }

  // Calls f(element) for what is finite in two tiles.
  template <class F>
  void each_finite(const Sizes& two, const F& f) const {
    for (int64_t tile : two) {
      each_of(tile, whole(), [&](int64_t, double x) {
        if (std::isfinite(x)) f(x);
      });
    }
  }

  // Sums of products of what is made of the elements and of the weights, in float64.
  template <class F, class G>
  Tensor products_of_made(const SumCase& of, const F& element, const G& weight,
                          bool finite = true) const {
    Sizes shape{1, tiling_.channels};
    for (int64_t n : sizes_of(tiling_.window, tiling_.ndim)) shape.push_back(n);
    const Tensor weights = new_float64(shape);
    const double* from = templates_.elements_of(of.pair, of.k);
    double* made = weights.mutable_data_ptr<double>();
    for (int64_t i = 0; i < weights.numel(); ++i) made[i] = weight(from[i]);
    if (block_.large) {
      LargeTiles sums(tiling_, true, 2);
      const auto cut = [&](int64_t lane, const PartOfTile& part) {
        const Region region{part.channel, 1, part.from, part.size, part.pitch};
        write(of.two[lane], region, 1, finite, element, static_cast<double*>(part.to));
      };
      sums.correlate(2, LargeTemplate(tiling_, made), cut);
      return tiles_of_lines(sums.sums(0));
    }
    shape = {1, tiling_.channels};
    for (int64_t n : sizes_of(tiling_.length, tiling_.ndim)) shape.push_back(n);
    shape.push_back(2);
    Tensor tiles = torch::stable::new_zeros(weights, shape);
    double* to = tiles.mutable_data_ptr<double>();
    const Region all{0, tiling_.channels, {0, 0, 0}, tiling_.length, tiling_.length[2]};
    for (int64_t lane = 0; lane < 2; ++lane) write(of.two[lane], all, 2, finite, element, to + lane);
    const Operand operand = transformed(std::move(tiles), tiling_, true);
    const Tensor spectrum = template_spectra(tiling_, weights, true);
    return products_of(operand, tiling_, static_cast<const double*>(spectrum.const_data_ptr()));
  }

  // Writes what is made of a region's elements to numbers that are `step` apart, and zeros elsewhere.
  template <class F>
  void write(int64_t tile, const Region& of, int64_t step, bool finite, const F& element,
             double* to) const {
    const int64_t numbers = of.channels * of.size[0] * of.size[1] * of.pitch;
    for (int64_t i = 0; i < numbers; ++i) to[step * i] = 0;
    each_of(tile, of, [&](int64_t at, double x) {
      if (std::isfinite(x) || !finite) to[step * at] = element(x);
    });
  }

  const Tensor& input_;
  const Tiling& tiling_;
  const Block& block_;
  const SumRule& rule_;
  const SumTemplates& templates_;
  const SumMap<T>& map_;
  std::mutex mutex_;
  std::vector<std::array<int64_t, 2>> left_;
};

}  // namespace torchcorr
