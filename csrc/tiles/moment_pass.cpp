// Moments of windows whose elements have weights, in one parallel region. A worker cuts a tile, sums
// its windows along runs of equal weights or through float64 transforms, whichever is quicker, and
// turns the sums into means and variances (math.md, eq. weighted-moments); where rounding of the sums
// may show, a window is computed again from its elements.

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>

#include "common/counters.h"
#include "tiles/box_sums.h"
#include "tiles/emit_sums.h"
#include "tiles/masked_factors.h"
#include "tiles/moment_rows.h"
#include "tiles/steps.h"
#include "tiles/tile_level.h"
#include "tiles/weighted_moments.h"
#include "tiles/window_elements.h"
#include "windows/flat.h"

namespace torchcorr {
namespace {

// Rounding errors of a transform, in units of the norm of its values: `TRANSFORM` of
// _plan/rounding.py.
constexpr double kTransform = 10;
constexpr double kUnit = std::numeric_limits<double>::epsilon() / 2;
constexpr double kRoundings = 4;  // of a sum along runs, each relative to the row
// Cycles of eight windows: a single tap, a run, and a transform for each element and power of two.
constexpr double kSingleCost = 1, kRunCost = 2, kTransformCost = 13;

// What moments may have of rounding: `MomentRule` of _cpu/rules.py.
struct MomentRule {
  double nothing;          // share of the window's weight that counts as none
  double allowed;          // error of a variance, relative to itself
  double allowed_of_mean;  // of a mean, relative to the root mean square

  explicit MomentRule(const Numbers& n) {
    STD_TORCH_CHECK(n.size() == 3, "a rule of weighted moments has three numbers");
    nothing = n[0], allowed = n[1], allowed_of_mean = n[2];
  }
};

struct WindowMoments {
  double count = 0, mean = 0, energy = 0;
};

// Of one window over all channels. Deviations are those from a mean that is rounded in units of the
// offset; what it lacks is known from their own sum, in units of the contrast.
template <int BYTES, class T>
TORCHCORR_INLINE WindowMoments exact_moments(const WeightedWindow<T>& of, int64_t channels) {
  using Vec = Wide<BYTES>;
  Level<BYTES> level;
  Vec weights = {};
  for_elements<BYTES>(of, 0, channels, [&](const Vec& x, const Vec&, const Vec& w) TORCHCORR_FLAT {
    weights += w, level.add(x, w);
  });
  WindowMoments found;
  found.count = sum_of_lanes(weights);
  if (!(found.count > 0)) return {};
  if (level.is_flat()) {
    found.mean = level.most();
    return found;
  }
  const double mean = sum_of_lanes(level.sum) / found.count;
  Vec first = {}, square = {};
  for_elements<BYTES>(of, 0, channels, [&](const Vec& x, const Vec&, const Vec& w) TORCHCORR_FLAT {
    const Vec d = x - mean, part = w * d;
    first += part, square += part * d;
  });
  const double rest = sum_of_lanes(first) / found.count;
  found.mean = mean + rest;
  found.energy = sum_of_lanes(square) - rest * rest * found.count;
  return found;
}
TORCHCORR_FOR_CPUS(WindowMoments, exact_moments,
                   (const WeightedWindow<float>& of, int64_t channels), (of, channels))
TORCHCORR_FOR_CPUS(WindowMoments, exact_moments,
                   (const WeightedWindow<double>& of, int64_t channels), (of, channels))

// The weights of a window's elements: one channel for all, or one for each.
struct WindowTaps {
  std::vector<std::vector<WeightedRun>> runs;  // of each channel, single elements first
  std::vector<int64_t> single;                 // how many of them are
  double cost = 0;                             // of eight windows and one sum

  WindowTaps(const Axes3& window, int64_t channels, const double* weights) {
    for (int64_t c = 0; c < channels; ++c) {
      runs.push_back(runs_of(window, weights + c * product(window)));
      const auto end = std::stable_partition(runs.back().begin(), runs.back().end(),
                                             [](const WeightedRun& r) { return r.length == 1; });
      single.push_back(end - runs.back().begin());
      const int64_t rest = static_cast<int64_t>(runs.back().size()) - single.back();
      cost += kSingleCost * static_cast<double>(single.back()) +
              kRunCost * static_cast<double>(rest);
    }
  }
  bool has_runs() const {
    for (size_t c = 0; c < runs.size(); ++c) {
      if (single[c] < static_cast<int64_t>(runs[c].size())) return true;
    }
    return false;
  }
};

// T is the type of the input.
template <class T>
class MomentPass {
 public:
  MomentPass(const Tensor& input, const std::optional<Tensor>& weight, const Tensor& of_windows,
             const Sizes& batch, const Block& block, const Numbers& rule, const Tensors& out)
      : like_(input), block_(block), rule_(rule), t_(TileBatch(batch, input).tiling),
        image_(input.const_data_ptr<T>()), weight_(weight ? weight->const_data_ptr<T>() : nullptr),
        planes_(of_windows.size(2)), of_planes_(with_channels(t_, planes_)),
        factors_(of_planes_, of_windows, block), map_(last_sizes(out.at(0), t_.ndim)), lines_(out.at(0).size(1)) {
    for (const Tensor& map : out) maps_.push_back(map.mutable_data_ptr<double>());
    for (int64_t pair = 0; pair < block.pairs(); ++pair) {
      for (int64_t k = 0; k < block.templates(); ++k) {
        if (taps_.empty() || !factors_.is_shared()) {
          taps_.emplace_back(t_.window, planes_, factors_.values(pair, k));
        }
      }
    }
  }

  const Tiling& tiling() const { return t_; }

  void compute(int64_t tile, int64_t pair) {
    const TilePlace place(t_, tile);
    if (!place.exists) return;
    const TileLevel level =
        level_of_rows<T>(t_.channels * rows(), true, false, [&](int64_t r) {
          return WeightedRow<T>{row_of(place, image_, r), row_of(place, weight_, r)};
        });
    Tile(*this, tile, place, level, pair).compute();
  }

 private:
  int64_t rows() const { return t_.extent[0] * t_.extent[1]; }
  TileRow<T> row_of(const TilePlace& place, const T* data, int64_t row) const {
    if (!data) return {};
    return TileRow<T>(t_, place, data, row / rows(), row % rows() / t_.extent[1],
                      row % t_.extent[1]);
  }
  const WindowTaps& taps(int64_t pair, int64_t k) const {
    return taps_[factors_.is_shared() ? 0 : pair * block_.templates() + k];
  }
  bool by_runs(const WindowTaps& taps) const {
    const double n = static_cast<double>(t_.tile_size());
    const double transforms = (weight_ ? 2.0 : 1.0) * (1 + static_cast<double>(planes_)) / 2;
    const double runs = (weight_ ? 3.0 : 2.0) * taps.cost / kDoubles;
    const double density = static_cast<double>(t_.stride[2]);
    return runs * density * static_cast<double>(t_.positions()) <=
           kTransformCost / kDoubles * transforms * n * std::log2(n);
  }

  // One tile, whose weighted deviations, squares and weights are summed.
  class Tile {
   public:
    Tile(MomentPass& pass, int64_t number, const TilePlace& place, const TileLevel& level,
         int64_t pair)
        : pass_(pass), t_(pass.t_), number_(number), place_(place), level_(level), pair_(pair),
          sums_(pass.weight_ ? kSums : kSums - 1), pitch_(t_.extent[2] + 1 + kAtOnce) {}

    void compute() {
      for (int s = 0; s < sums_; ++s) maps_[s].resize(t_.positions());
      const double box = pass_.factors_.box();
      if (sizeof(T) < sizeof(double) && box > 0) return compute_boxes(box);
      read();
      for (int64_t k = 0; k < pass_.block_.templates(); ++k) {
        const WindowTaps& taps = pass_.taps(pair_, k);
        const bool by_runs = pass_.by_runs(taps);
        by_runs ? sum_runs(taps) : sum_transforms(k);
        count_way(Way::kFloat64, 1);
        emit(k, by_runs ? &taps : nullptr);
      }
    }

   private:
    void compute_boxes(double weight) {
      const auto row_of = [&](int64_t c, int64_t z, int64_t y) {
        const int64_t row = c * pass_.rows() + z * t_.extent[1] + y;
        return WeightedRow<T>{pass_.row_of(place_, pass_.image_, row),
                              pass_.row_of(place_, pass_.weight_, row)};
      };
      double* maps[kSums] = {};
      for (int s = 0; s < sums_; ++s) maps[s] = maps_[s].data();
      box_errors_ = box_sums<T>(t_, level_, weight, row_of, maps).errors;
      for (int64_t k = 0; k < pass_.block_.templates(); ++k) {
        count_way(Way::kFloat64, 1);
        emit(k, nullptr);
      }
    }

    void read() {
      const int64_t rows = pass_.planes_ * pass_.rows();
      sizes_.resize(rows);
      for (int s = 0; s < sums_; ++s) values_[s].assign(rows * pitch_ + kAtOnce, 0.0);
      for (int64_t r = 0; r < t_.channels * pass_.rows(); ++r) {
        const TileRow<T> x = pass_.row_of(place_, pass_.image_, r);
        const TileRow<T> w = pass_.row_of(place_, pass_.weight_, r);
        if (x.end <= x.begin) continue;
        const int64_t row = pass_.planes_ == 1 ? r % pass_.rows() : r;
        double* to[kSums] = {};
        for (int s = 0; s < sums_; ++s) to[s] = &values_[s][row * pitch_ + x.begin];
        add_elements(x.end - x.begin, x.data + x.begin, w.data ? w.data + w.begin : nullptr,
                     {level_.level, level_.scale}, to);
      }
      const double elements =
          static_cast<double>(t_.extent[2] * t_.channels / pass_.planes_);
      for (int64_t r = 0; r < rows; ++r) {
        const double* weights = pass_.weight_ ? &values_[kWeights][r * pitch_] : nullptr;
        sizes_[r] = size_of_row(t_.extent[2], &values_[kFirst][r * pitch_],
                                &values_[kSecond][r * pitch_], weights, elements);
      }
    }

    void sum_runs(const WindowTaps& window) {
      const int64_t rows = pass_.rows(), outputs = t_.outputs[2], step = t_.stride[2];
      if (window.has_runs() && totals_[0].empty()) {
        for (int s = 0; s < sums_; ++s) {
          totals_[s].assign(values_[s].size(), 0.0);
          for (int64_t r = 0; r < pass_.planes_ * rows; ++r) {
            add_up<1>(t_.extent[2], {&values_[s][r * pitch_]}, {&totals_[s][r * pitch_]});
          }
        }
      }
      TileElements elements{};
      for (int s = 0; s < sums_; ++s) {
        elements.values[s] = values_[s].data(), elements.totals[s] = totals_[s].data();
      }
      std::vector<Taps> taps;
      int64_t single = 0;
      for (const bool singles : {true, false}) {
        for (int64_t c = 0; c < pass_.planes_; ++c) {
          for (const WeightedRun& run : window.runs[c]) {
            if ((run.length == 1) != singles) continue;
            const int64_t row = c * rows + run.z * t_.extent[1] + run.y;
            taps.push_back({row * pitch_ + run.x, run.length, run.weight});
          }
        }
        if (singles) single = static_cast<int64_t>(taps.size());
      }
      const int64_t extent = (outputs - 1) * step + 1;
      double found[kSums][kAtOnce];
      for (int64_t row = 0; row < t_.outputs[0] * t_.outputs[1]; ++row) {
        const int64_t z = row / t_.outputs[1] * t_.stride[0],
                      y = row % t_.outputs[1] * t_.stride[1];
        const int64_t at = (z * t_.extent[1] + y) * pitch_;
        for (int64_t x = 0; x < extent; x += kAtOnce) {
          add_taps(sums_, static_cast<int64_t>(taps.size()), single, taps.data(), elements, at + x,
                   found);
          const int64_t last = std::min(x + kAtOnce, extent);
          for (int64_t i = ceil_div(x, step); i * step < last; ++i) {
            for (int s = 0; s < sums_; ++s) maps_[s][row * outputs + i] = found[s][i * step - x];
          }
        }
      }
    }

    // Deviations and squares are the two parts of complex numbers, weights those of others.
    void sum_transforms(int64_t k) {
      const double* by = pass_.factors_.template spectrum<double>(pair_, k);
      const double by_squares = pass_.factors_.squares(pair_, k);
      for (int64_t i = 0; i < (pass_.weight_ ? 2 : 1); ++i) {
        if (!spectra_[i].lines) spectra_[i] = spectrum(i == 0 ? kFirst : kWeights);
        const Operand operand{*spectra_[i].lines, new_tensor(*spectra_[i].lines,
                                                                           sizes_of_lines())};
        const Tensor sums = products_of(operand, pass_.of_planes_, by);
        const double* from = sums.const_data_ptr<double>();
        double* one = maps_[i == 0 ? kFirst : kWeights].data();
        std::vector<double> unused(i == 0 ? 0 : t_.outputs[2]);
        for (int64_t row = 0; row < t_.outputs[0] * t_.outputs[1]; ++row) {
          const int64_t z = row / t_.outputs[1] * t_.stride[0];
          const int64_t y = row % t_.outputs[1] * t_.stride[1];
          double* other = i == 0 ? &maps_[kSecond][row * t_.outputs[2]] : unused.data();
          take_row(t_.outputs[2], 2 * t_.stride[2],
                   from + 2 * (z * t_.length[1] + y) * t_.length[2], one + row * t_.outputs[2],
                   other);
        }
        const int64_t n = t_.tile_size();
        const Contents in = contents_of(2 * n, from);
        const double power = (spectra_[i].squares * by_squares + in.squares) / static_cast<double>(n);
        spectra_[i].error = kTransform * kUnit * (std::sqrt(power) + in.largest / 2);
      }
    }

    struct Spectrum {
      std::optional<Tensor> lines;
      double squares = 0, error = 0;
    };

    Sizes sizes_of_lines() const {
      Sizes shape{1};
      for (int64_t n : sizes_of(t_.length, t_.ndim)) shape.push_back(n);
      return shape;
    }

    Spectrum spectrum(int which) const {
      Sizes shape{1, pass_.planes_};
      for (int64_t n : sizes_of(t_.length, t_.ndim)) shape.push_back(n);
      shape.push_back(2);
      const Tensor tiles = torch::stable::new_zeros(pass_.like_, shape, ScalarType::Double);
      double* to = tiles.mutable_data_ptr<double>();
      for (int64_t r = 0; r < pass_.planes_ * pass_.rows(); ++r) {
        const int64_t c = r / pass_.rows(), z = r % pass_.rows() / t_.extent[1];
        const int64_t y = r % t_.extent[1];
        double* row = to + 2 * ((c * t_.length[0] + z) * t_.length[1] + y) * t_.length[2];
        for (int64_t x = 0; x < t_.extent[2]; ++x) {
          row[2 * x] = values_[which][r * pitch_ + x];
          if (which == kFirst) row[2 * x + 1] = values_[kSecond][r * pitch_ + x];
        }
      }
      Spectrum of;
      of.squares = contents_of(tiles.numel(), to).squares;
      of.lines = transform(lines_of_tiles(tiles), true);
      return of;
    }

    // Bounds of the rounding of sums along runs at one row of windows.
    void errors_of_runs(const WindowTaps& taps, int64_t z, int64_t y, double (&to)[kSums]) const {
      std::fill_n(to, kSums, 0.0);
      for (int64_t c = 0; c < pass_.planes_; ++c) {
        for (const WeightedRun& run : taps.runs[c]) {
          const int64_t row = c * pass_.rows() + (z + run.z) * t_.extent[1] + y + run.y;
          for (int s = 0; s < sums_; ++s) to[s] += run.weight * sizes_[row].of[s];
        }
      }
      for (double& error : to) error *= kRoundings * kUnit;
    }

    void emit(int64_t k, const WindowTaps* runs) {
      const double total = pass_.factors_.sum(pair_, k) * static_cast<double>(t_.channels) /
                           static_cast<double>(pass_.planes_);
      MomentLimits by{level_.level, level_.scale, total, pass_.rule_.nothing * total, {},
                      pass_.rule_.allowed, pass_.rule_.allowed_of_mean};
      for (int s = 0; s < kSums; ++s) by.errors[s] = spectra_[s == kWeights].error;
      if (!pass_.weight_) by.errors[kWeights] = 0;
      std::vector<uint8_t> states(t_.positions(), kGood);
      int64_t unknown = 0;
      for_rows([&](const Axes3& u, int64_t n, int64_t at, int64_t to) {
        if (runs) errors_of_runs(*runs, u[0] * t_.stride[0], u[1] * t_.stride[1], by.errors);
        if (!box_errors_.empty()) std::copy_n(box_errors_[at / t_.outputs[2]].of, kSums, by.errors);
        const double* sums[kSums] = {};
        for (int s = 0; s < sums_; ++s) sums[s] = maps_[s].data() + at;
        double* const* out = pass_.maps_.data();
        unknown += moments_of_row(n, sums, by, out[0] + to, out[1] + to, out[2] + to, &states[at]);
      }, k);
      if (unknown > 0) recompute(k, total, states);
    }

    // Calls f(first position of the tile, how many, where they are among those of the tile, and of
    // the map) for its rows of windows.
    template <class F>
    void for_rows(const F& f, int64_t k) const {
      const int64_t line = place_.item * pass_.lines_ + pass_.block_.first_template + k;
      const Axes3& map = pass_.map_;
      const int64_t x = place_.first(t_, 2), n = std::min(t_.outputs[2], map[2] - x);
      for (int64_t row = 0; row < t_.outputs[0] * t_.outputs[1]; ++row) {
        const Axes3 u{row / t_.outputs[1], row % t_.outputs[1], 0};
        const int64_t z = place_.first(t_, 0) + u[0], y = place_.first(t_, 1) + u[1];
        if (z >= map[0] || y >= map[1]) continue;
        f(u, n, row * t_.outputs[2], ((line * map[0] + z) * map[1] + y) * map[2] + x);
      }
    }

    ItemRows<T> item(const T* data) const {
      if (!data) return {};
      return {data + place_.item * t_.channels * t_.item_size(), t_.channels, t_.size};
    }

    void recompute(int64_t k, double total, std::vector<uint8_t>& states) const {
      const ItemRows<T> seen = item(pass_.image_);
      for (uint8_t& state : states) state = state ? kUnknown : kGood;
      if (!pass_.weight_) FlatWindows<T>(t_, true).mark(number_, pass_.image_, states.data());
      WeightedWindow<T> window{
          seen, item(pass_.weight_),
          {pass_.factors_.values(pair_, k), pass_.planes_, t_.window}, {}, {}, t_.window};
      for_rows([&](const Axes3& u, int64_t n, int64_t at, int64_t to) {
        for (int64_t x = 0; x < n; ++x) {
          const uint8_t state = states[at + x];
          if (state == kGood) continue;
          for (int i = 0; i < 3; ++i) {
            window.from[i] = place_.start[i] + (u[i] + (i == 2 ? x : 0)) * t_.stride[i];
          }
          WindowMoments found{total, static_cast<double>(*seen.row(0, window.from, 0, 0)), 0};
          if (state != kFlat) found = exact_moments(window, t_.channels);
          pass_.maps_[0][to + x] = found.count, pass_.maps_[1][to + x] = found.mean;
          pass_.maps_[2][to + x] = found.count > 0 ? found.energy / found.count : 0.0;
          count_way(Way::kExactWindows, state != kFlat);
        }
      }, k);
    }

    MomentPass& pass_;
    const Tiling& t_;
    const int64_t number_;
    const TilePlace& place_;
    const TileLevel& level_;
    const int64_t pair_;
    const int sums_;
    const int64_t pitch_;
    std::vector<double> values_[kSums], totals_[kSums], maps_[kSums];
    std::vector<RowSize> sizes_;  // of rows
    Spectrum spectra_[2];
    std::vector<RowSize> box_errors_;  // of each row of windows
  };

  const Tensor& like_;
  const Block& block_;
  const MomentRule rule_;
  const Tiling t_;
  const T *image_, *weight_;
  const int64_t planes_;  // channels of the windows' weights: elements of one are added first
  const Tiling of_planes_;
  Factors factors_;
  const Axes3 map_;
  const int64_t lines_;
  std::vector<double*> maps_;
  std::vector<WindowTaps> taps_;
};

void weighted_moment_tiles(const Tensor& input, std::optional<Tensor> weight,
                           const Tensor& of_windows, Sizes batch, Sizes block_numbers, Numbers rule,
                           Tensors out) {
  const Block block(block_numbers);
  STD_TORCH_CHECK(out.size() == 3, "moments are weights, means and variances");
  with_real_type(input, "input", [&](auto zero) {
    MomentPass<decltype(zero)> pass(input, weight, of_windows, batch, block, rule, out);
    const int64_t tiles = input.size(0) / of_windows.size(0) * pass.tiling().tiles_per_item();
    const Units units(block, tiles, 1);
    run_units(units.count(), Sharing::kUnits, [&](int64_t unit) {
      for (int64_t tile : units.tiles_of(unit)) pass.compute(tile, units.pair(unit));
    });
  });
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("weighted_moment_tiles", TORCH_BOX(&torchcorr::weighted_moment_tiles));
}
