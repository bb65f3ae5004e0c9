// Scores of windows whose elements have weights, in one parallel region. A worker cuts two tiles,
// transforms weights, weighted elements and weighted squares, and turns six sums of each window into
// its score (math.md, eq. weighted); channels with a mean each have six sums each. Without a mask over
// the template three of them are running sums. Where rounding of float32 sums may show in more than a
// few windows, the tiles are computed in float64, at once if some of their windows are faint. Where it
// may show in a few windows, or in float64, those that are not flat are marked and left to the caller.

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>

#include "common/counters.h"
#include "tiles/masked_input.h"

namespace torchcorr {
namespace {

// Rounding errors of a transform, in units of the norm of its values: `TRANSFORM` of
// _plan/rounding.py.
constexpr double kTransform = 10;
// What sums of products usually contain, relative to the largest that they can be: `_USUAL_CONTENT` of
// _cpu/scores.py.
constexpr double kUsualContent = 0.4;

// T is the type of the input, R that of transforms.
template <class T>
class MaskedPass : MaskedInput<T> {
  using Base = MaskedInput<T>;
  using Base::t_, Base::block_;
  using typename Base::KnownOfPair;
  using typename Base::Levels;

 public:
  MaskedPass(const Tensor& input, const std::optional<Tensor>& weight, const Tensors& factors,
             const Sizes& batch, const Block& block, const Numbers& rule, const Tensor& out,
             const Tensor& doubtful)
      : MaskedInput<T>(input, weight, factors, batch, block, rule),
        map_(last_sizes(out, t_.ndim)), templates_(out.size(1)), out_(out.mutable_data_ptr<T>()),
        doubtful_(doubtful.mutable_data_ptr<uint8_t>()) {}

  const Tiling& tiling() const { return t_; }

  void score(const Sizes& tiles, int64_t pair) {
    for (size_t i = 0; i < tiles.size(); i += 2) {
      const TilePlace places[2] = {TilePlace(t_, tiles[i]), TilePlace(t_, tiles[i + 1])};
      const Levels levels[2] = {Base::levels_of(places[0]), Base::levels_of(places[1])};
      std::vector<int64_t> all(block_.templates());
      for (size_t k = 0; k < all.size(); ++k) all[k] = static_cast<int64_t>(k);
      KnownOfPair known;
      Pair<T>(*this, places, levels, pair, known).score(all);
    }
  }

 private:
  // Two tiles that are transformed together, in one precision.
  template <class R>
  class Pair {
   public:
    Pair(MaskedPass& pass, const TilePlace (&places)[2], const Levels (&levels)[2], int64_t pair,
         KnownOfPair& known)
        : pass_(pass), t_(pass.t_), places_(places), levels_(levels), pair_(pair), known_(known),
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
        for (int which : {kFirst, kSecond, kWeights}) release(g, which);
      }
      for (auto& map : maps_) map.reset();
      typename MaskedPass::template Pair<double>(pass_, places_, levels_, pair_, known_).score(left);
    }

   private:
    struct Spectrum {
      std::optional<Tensor> lines;
      double squares = 0;  // of what was transformed
    };

    // Whether the rounding of float32 sums of squares, which have about the mean square of both tiles
    // times the weight of a window, shows in the energies of some windows; or that of sums of products,
    // if those of squares are known.
    bool is_faint(int64_t k) {
      if (pass_.groups_ == 1 && pass_.boxed(pass_.factors_[0]->weights)) return has_faint_boxes(k);
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

    bool has_faint_boxes(int64_t k) {
      auto& [products, weights, energies] = *pass_.factors_[0];
      boxes(0, k);
      double mean_square = 0;
      for (const Levels& of : levels_) mean_square += of[0].mean_square * of[0].scale * of[0].scale;
      const double unit = static_cast<double>(std::numeric_limits<float>::epsilon()) / 2;
      const double share = kTransform * unit / pass_.rule_.allowed;
      const double total = weights.sum(pair_, k), sum = products.sum(pair_, k);
      const double of_template = energies.sum(pair_, k) - sum * sum / total;
      const double content = std::max(1.0, kUsualContent * kUsualContent * total) * mean_square;
      const FaintLimits by{share * share * content * products.squares(pair_, k) / of_template,
                           std::max(pass_.rule_.least * total, 0.0), total, kNoEnergy};
      for (int lane = 0; lane < 2; ++lane) {
        if (!places_[lane].exists) continue;
        int64_t faint = 0;
        for_rows(lane, k, [&](int64_t n, int64_t at, int64_t) {
          const double* sums[kSums];
          const int64_t from = lane * t_.positions() + at;
          for (int s = 0; s < kSums; ++s) sums[s] = known_.boxes[s].get() + from;
          if (is_whole_) sums[kWeights] = nullptr;
          if (!pass_.rule_.zero_mean) sums[kFirst] = nullptr;
          faint += count_faint(n, sums[kFirst], sums[kSecond], sums[kWeights], by);
        });
        if (faint > pass_.few()) return true;
      }
      return false;
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
      const Tensor tiles = new_tensor(shape, type);
      R* first = tiles.template mutable_data_ptr<R>();
      Contents in;
      for (int64_t r = 0; r < rows; ++r) {
        R* row = first + 2 * r * width;
        pass_.cut_two_rows(places_, levels_, group, r, which, !is_whole_, row);
        add_contents(2 * width, row, in);
      }
      of.squares = in.squares;
      of.lines = transform(lines_of_tiles(tiles), true);
      return of;
    }

    void release(int64_t group, int which) { spectra_[group][which].lines.reset(); }

    // Windows' sums of products with one of the factors: those of one tile after those of the other.
    // The `last` ones of a spectrum may overwrite it.
    template <class M>
    WindowSum<M> sum(int64_t group, int which, Factors& by, int64_t k, bool last,
                     std::unique_ptr<M[]>& map) {
      const Spectrum& of = spectrum(group, which);
      Sizes shape{1};
      for (int64_t n : sizes_of(t_.length, t_.ndim)) shape.push_back(n);
      const bool in_place = last && pass_.of_group_.channels == 1;
      const Operand operand{*of.lines,
                            in_place ? *of.lines : new_tensor(*of.lines, shape)};
      const Tensor sums = products_of(operand, pass_.of_group_, by.template spectrum<R>(pair_, k));
      const R* from = sums.template const_data_ptr<R>();
      if (!map) map.reset(new M[2 * t_.positions()]);
      const Axes3 &length = t_.length, &stride = t_.stride;
      M* to = map.get();
      Contents in;
      for (int64_t row = 0; row < length[0] * length[1]; ++row, from += 2 * length[2]) {
        add_contents(2 * length[2], from, in);
        const int64_t z = row / length[1], y = row % length[1];
        if (z % stride[0] != 0 || y % stride[1] != 0) continue;
        if (z / stride[0] >= t_.outputs[0] || y / stride[1] >= t_.outputs[1]) continue;
        take_row(t_.outputs[2], 2 * stride[2], from, to, to + t_.positions());
        to += t_.outputs[2];
      }
      const double n = static_cast<double>(t_.tile_size());
      const double unit = static_cast<double>(std::numeric_limits<R>::epsilon()) / 2;
      const double power = (of.squares * by.squares(pair_, k) + in.squares) / n;
      if (last) release(group, which);
      const double error = kTransform * unit * (std::sqrt(power) + in.largest / 2);
      return {map.get(), 0.0, error, in.largest};
    }

    // Sums of one of the factors over what windows have of the region, whose sizes add up to at most
    // `size` in all.
    template <class M>
    WindowSum<M> sum_in_region(const Factors& of, int64_t k, double size, std::unique_ptr<M[]>& map) {
      if (!map) map.reset(new M[2 * t_.positions()]);
      if (!clipped_) clipped_.emplace(pass_.of_group_, *pass_.region_);
      const double error = clipped_->template take<M>(of.values(pair_, k), size);
      for (int lane = 0; lane < 2; ++lane) {
        if (places_[lane].exists) clipped_->write(places_[lane], map.get() + lane * t_.positions());
      }
      return {map.get(), 0.0, error, size};
    }

    // Sums of windows of channels whose own weights are all equal.
    const KnownOfPair& boxes(int64_t g, int64_t k) {
      if (known_.group == g) return known_;
      Factors& weights = pass_.factors_[g]->weights;
      pass_.add_boxes(places_, levels_, g, weights.box(), is_whole_, known_);
      if (pass_.region_ && !is_whole_) {
        auto& map = known_.boxes[kWeights];
        const double error = sum_in_region(weights, k, weights.sum(pair_, k), map).error;
        for (SumBounds& of : known_.bounds) of.set_error(kWeights, error);
      }
      return known_;
    }

    // All sums of a template, or those that depend on its elements. One spectrum after the other, so
    // that a single template needs one at a time.
    void sum_windows(int64_t k, int64_t g, bool all) {
      auto& [products, weights, energies] = *pass_.factors_[g];
      const bool centred = pass_.rule_.zero_mean, once = !keeps_spectra_;
      const bool boxed = pass_.boxed(weights);
      if (!boxed) weights.template prepare<R>(pair_, k);
      products.template prepare<R>(pair_, k);
      if (!is_whole_ && !pass_.region_) energies.template prepare<R>(pair_, k);
      if (all && boxed) {
        const KnownOfPair& of = boxes(g, k);
        const auto bound_of = [&](int s) -> WindowSum<R> {
          const SumBounds &a = of.bounds[0], &b = of.bounds[1];
          return {nullptr, 0.0, std::max(a.error[s], b.error[s]),
                  std::max(a.largest[s], b.largest[s])};
        };
        sums_.square = bound_of(kSecond), sums_.count = bound_of(kWeights);
        sums_.wide_square = of.boxes[kSecond].get(), sums_.wide_count = of.boxes[kWeights].get();
        if (centred) sums_.first = bound_of(kFirst), sums_.wide_first = of.boxes[kFirst].get();
      } else if (all) {
        sums_.wide_square = sums_.wide_count = sums_.wide_first = nullptr;
        const bool shared = pass_.groups_ == 1 && weights.is_shared();
        sums_.square = sum(g, kSecond, weights, k, once || shared, maps_[3]);
        if (centred) sums_.first = sum(g, kFirst, weights, k, false, maps_[4]);
      }
      sums_.product = sum(g, kFirst, products, k, once, maps_[0]);
      if (is_whole_) return make_whole(k, g, sums_);
      if (pass_.region_) {
        const double of_weights = weights.sum(pair_, k), squares = energies.sum(pair_, k);
        if (all && !boxed) sums_.count = sum_in_region(weights, k, of_weights, maps_[5]);
        const double most = std::sqrt(of_weights * squares);  // as Cauchy and Schwarz showed
        if (centred) sums_.other = sum_in_region(products, k, most, maps_[1]);
        sums_.energy = sum_in_region(energies, k, squares, maps_[2]);
        return;
      }
      if (all && !boxed) sums_.count = sum(g, kWeights, weights, k, false, maps_[5]);
      if (centred) sums_.other = sum(g, kWeights, products, k, false, maps_[1]);
      sums_.energy = sum(g, kWeights, energies, k, once, maps_[2]);
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

    // Writes scores of a template, and which of them are doubtful; how many are too many to be left to
    // the caller, which in float64 none are.
    int64_t emit(int64_t k) {
      int64_t doubtful[2] = {0, 0}, existing = 0;
      const int64_t each = t_.positions();
      states_.resize(2 * each);
      for (int lane = 0; lane < 2; ++lane) {
        if (!places_[lane].exists) continue;
        ++existing;
        const double scale = levels_[lane][0].scale;
        const double least_count = pass_.rule_.least * pass_.total_weight(pair_, k);
        const ScoreLimits by{scaled_eps(pass_.rule_.eps, scale), least_count, pass_.rule_.allowed,
                             count_error_};
        for_rows(lane, k, [&](int64_t n, int64_t at, int64_t to) {
          const int64_t from = lane * each + at;
          if (pass_.groups_ == 1) return void(doubtful[lane] += score(lane, k, n, at, to, by));
          doubtful[lane] += score_moments(is_whole_, n, moments().at(from), by, pass_.out_ + to,
                                          &states_[from]);
        });
        if (doubtful[lane] > 0) doubtful[lane] -= clear_flat(lane, k, doubtful[lane]);
      }
      const int64_t most = std::max(doubtful[0], doubtful[1]);
      const bool is_wide = std::is_same_v<R, double>, is_done = is_wide || most <= pass_.few();
      count_way(is_wide ? Way::kFloat64 : is_done ? Way::kFloat32 : Way::kRepeated, existing);
      if (!is_done) return most;
      for (int lane = 0; lane < 2; ++lane) {
        if (doubtful[lane] == 0) continue;
        for_rows(lane, k, [&](int64_t n, int64_t at, int64_t to) {
          std::copy_n(&states_[lane * each + at], n, pass_.doubtful_ + to);
        });
      }
      return 0;
    }

    // Scores of a row of windows; how many are doubtful. Those that lie in a region are whole.
    int64_t score(int lane, int64_t k, int64_t n, int64_t at, int64_t to, const ScoreLimits& by) {
      std::array<int64_t, 2> whole{0, is_whole_ ? n : 0};
      if (!is_whole_ && pass_.region_) {
        whole = pass_.region_->whole_windows(t_, places_[lane], at / t_.outputs[2]);
      }
      const int64_t ends[] = {0, std::min(whole[0], n), std::min(whole[1], n), n};
      int64_t doubtful = 0;
      for (int part = 0; part < 3; ++part) {
        const int64_t from = ends[part], some = ends[part + 1] - from;
        if (some <= 0) continue;
        ScoreSums<R> sums = sums_at(lane, at + from);
        if (part == 1) make_whole(k, 0, sums);
        doubtful += score_row(part == 1, some, sums, by, pass_.out_ + to + from,
                              &states_[lane * t_.positions() + at + from]);
      }
      return doubtful;
    }

    void make_whole(int64_t k, int64_t g, ScoreSums<R>& sums) const {
      auto& [products, weights, energies] = *pass_.factors_[g];
      sums.count = {nullptr, weights.sum(pair_, k)};
      sums.other = {nullptr, pass_.rule_.zero_mean ? products.sum(pair_, k) : 0.0};
      sums.energy = {nullptr, energies.sum(pair_, k)};
    }

    // Scores of doubtful windows that are flat are 0; how many there are.
    int64_t clear_flat(int lane, int64_t k, int64_t doubtful) {
      // In float32, looking at more windows may take longer than float64.
      const bool looks = std::is_same_v<R, double> || doubtful <= kLooks * pass_.few();
      if (known_.flat[lane].empty()) known_.flat[lane] = pass_.flat_of(places_[lane]);
      const uint8_t* flat = known_.flat[lane].data();
      uint8_t* states = &states_[lane * t_.positions()];
      int64_t cleared = 0;
      for_rows(lane, k, [&](int64_t n, int64_t at, int64_t to) {
        for (int64_t i = 0; i < n; ++i) {
          if (!states[at + i]) continue;
          if (!flat[at + i] &&
              !(looks && pass_.is_flat_under_mask(places_[lane], at + i, pair_, k))) {
            continue;
          }
          states[at + i] = 0, pass_.out_[to + i] = 0, ++cleared;
        }
      });
      return cleared;
    }

    // Calls f(how many, where they are among the positions of a tile, and in the result) for its rows
    // of windows.
    template <class F>
    void for_rows(int lane, int64_t k, const F& f) const {
      const TilePlace& p = places_[lane];
      const Axes3& map = pass_.map_;
      const int64_t x = p.first(t_, 2), n = std::min(t_.outputs[2], map[2] - x);
      const int64_t which = p.item * pass_.templates_ + pass_.block_.first_template + k;
      for (int64_t row = 0; row < t_.outputs[0] * t_.outputs[1]; ++row) {
        const int64_t z = p.first(t_, 0) + row / t_.outputs[1];
        const int64_t y = p.first(t_, 1) + row % t_.outputs[1];
        if (z >= map[0] || y >= map[1]) continue;
        f(n, row * t_.outputs[2], ((which * map[0] + z) * map[1] + y) * map[2] + x);
      }
    }

    // The sums of a row of windows of a tile.
    ScoreSums<R> sums_at(int lane, int64_t at) const {
      ScoreSums<R> sums = sums_;
      const int64_t by = lane * t_.positions() + at;
      const auto move = [by](auto&... sum) { ((sum.map += sum.map ? by : 0), ...); };
      move(sums.count, sums.first, sums.square, sums.product, sums.other, sums.energy);
      for (const double** map : {&sums.wide_count, &sums.wide_first, &sums.wide_square}) {
        if (*map) *map += by;
      }
      if (known_.group >= 0) {
        const RowSize& errors = known_.bounds[lane].errors[at / t_.outputs[2]];
        if (!is_whole_) sums.count.error = errors.of[kWeights];
        sums.first.error = errors.of[kFirst], sums.square.error = errors.of[kSecond];
      }
      return sums;
    }

    MaskedPass& pass_;
    const Tiling& t_;
    const TilePlace (&places_)[2];
    const Levels (&levels_)[2];
    const int64_t pair_;
    KnownOfPair& known_;
    const bool is_whole_;
    bool keeps_spectra_ = false;
    std::vector<std::array<Spectrum, 3>> spectra_;  // of each group
    ScoreSums<R> sums_;
    std::optional<ClippedSums> clipped_;
    std::unique_ptr<R[]> maps_[6];
    std::vector<double> added_;  // moments of channels
    double count_error_ = 0;
    std::vector<uint8_t> states_;  // of the windows of both tiles
  };

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
