// The step `moments` for windows whose elements have weights, those of a mask over the template, and
// for channels with a mean each. A row of a mask is cut into runs of equal weight, whose sums are
// differences of totals along a row of the tile.

#include "tiles/weighted_moments.h"

#include <algorithm>
#include <cmath>

#include "tiles/moment_rows.h"
#include "tiles/pass.h"
#include "windows/flat.h"

namespace torchcorr {
namespace {

constexpr double kRounding = 1.0 / (1LL << 53);
// What rounding of sums may add to an energy, relative to it.
template <class T>
constexpr double kAllowed = sizeof(T) < sizeof(double) ? 1e-6 : 1e-11;

// Sums of weighted elements and of their squares at the windows of a tile.
struct WindowSums {
  std::vector<double> first, second;
  double error = 0;  // of sums of squares

  explicit WindowSums(int64_t n) : first(n), second(n) {}
};

// Totals along the rows of a tile: one more number than a row has elements.
struct RowTotals {
  int64_t pitch = 0;
  std::vector<double> first, second;
  double largest = 0;
};

// Adds to sums of windows what one row of theirs gives, or subtracts it.
TORCHCORR_CLONES void add_row(int64_t n, int64_t length, double weight, const double* first,
                              const double* second, double* to_first, double* to_second) {
  for (int64_t i = 0; i < n; ++i) {
    to_first[i] += weight * (first[i + length] - first[i]);
    to_second[i] += weight * (second[i + length] - second[i]);
  }
}

// Adds elements about a level and their squares.
template <class T>
TORCHCORR_INLINE void centred_row(int64_t n, const T* x, double level, double scale, double* first,
                                  double* second) {
  for (int64_t i = 0; i < n; ++i) {
    const double d = (static_cast<double>(x[i]) - level) * scale;
    first[i] += d, second[i] += d * d;
  }
}
TORCHCORR_CLONES void add_centred(int64_t n, const float* x, double level, double scale,
                                  double* first, double* second) {
  centred_row(n, x, level, scale, first, second);
}
TORCHCORR_CLONES void add_centred(int64_t n, const double* x, double level, double scale,
                                  double* first, double* second) {
  centred_row(n, x, level, scale, first, second);
}

// One call of the step.
template <class T>
class WeightedMomentsStep {
 public:
  WeightedMomentsStep(const TileBatch& batch, const Tensor& input, const Tensor& stats,
                      const ScoreRule& rule, const WindowWeights& weights)
      : batch_(batch), t_(batch.tiling), image_(input.const_data_ptr<T>()), stats_(stats),
        rule_(rule), weights_(weights), groups_(weights.own_means ? t_.channels : 1) {}

  // Writes the maps of all tiles, and how many windows of each are doubtful.
  void run(T* norms, uint8_t* states, int64_t* doubtful) const {
    const int64_t each = t_.positions();
    for (int64_t i = 0; i < batch_.count(); ++i) {
      doubtful[i] = 0;
      if (batch_.tiles[i] < 0) {
        std::fill_n(norms + i * each, each, T(0));
        continue;
      }
      std::vector<double> energy(each), total(each);
      double error = 0;
      for (int64_t c = 0; c < groups_; ++c) {
        const WindowSums of_group = sums_by_runs(batch_.tiles[i], stats_row(i), c);
        add_energy(of_group, energy, total);
        error += of_group.error;
      }
      doubtful[i] = decide(i, energy, total, error, norms + i * each, states + i * each);
    }
  }

 private:
  TileStats stats_row(int64_t i) const { return rows_of_stats(stats_)[i]; }

  void add_energy(const WindowSums& sums, std::vector<double>& energy,
                  std::vector<double>& total) const {
    const double share = rule_.zero_mean ? 1 / weights_.of_group : 0.0;
    for (size_t i = 0; i < energy.size(); ++i) {
      energy[i] += sums.second[i] - sums.first[i] * sums.first[i] * share;
      total[i] += sums.second[i];
    }
  }

  // Channels of a group: one, or all of them if they share a mean.
  RowTotals totals_of(int64_t tile, const TileStats& stats, int64_t group) const {
    const TilePlace place(t_, tile);
    const int64_t width = t_.extent[2], rows = t_.extent[0] * t_.extent[1];
    RowTotals totals;
    totals.pitch = width + 1 + kAtOnce;
    totals.first.resize(rows * totals.pitch);
    totals.second.resize(rows * totals.pitch);
    std::vector<double> first(width), second(width);
    for (int64_t row = 0; row < rows; ++row) {
      std::fill(first.begin(), first.end(), 0.0);
      std::fill(second.begin(), second.end(), 0.0);
      for (int64_t c = group; c < (groups_ > 1 ? group + 1 : t_.channels); ++c) {
        const TileRow<T> of(t_, place, image_, c, row / t_.extent[1], row % t_.extent[1]);
        if (of.end <= of.begin) continue;
        add_centred(of.end - of.begin, of.data + of.begin, stats.level, stats.scale,
                    &first[of.begin], &second[of.begin]);
      }
      const int64_t at = row * totals.pitch;
      add_up<2>(width, {first.data(), second.data()}, {&totals.first[at], &totals.second[at]});
      totals.largest = std::max(totals.largest, totals.second[at + width]);
    }
    return totals;
  }

  WindowSums sums_by_runs(int64_t tile, const TileStats& stats, int64_t group) const {
    const RowTotals totals = totals_of(tile, stats, group);
    const std::vector<WeightedRun>& runs = weights_.runs;
    const int64_t count = static_cast<int64_t>(runs.size()), n = t_.outputs[2];
    WindowSums sums(t_.positions());
    sums.error = 4 * kRounding * static_cast<double>(count) * totals.largest * weights_.largest;
    if (weights_.is_box) {
      slide(totals, sums);
      return sums;
    }
    std::vector<Taps> taps;
    for (const WeightedRun& run : runs) {
      taps.push_back({(run.z * t_.extent[1] + run.y) * totals.pitch + run.x, run.length, run.weight});
    }
    const TileElements elements{{}, {totals.first.data(), totals.second.data(), nullptr}};
    double found[kSums][kAtOnce];
    for (int64_t row = 0; row < t_.outputs[0] * t_.outputs[1]; ++row) {
      const int64_t z = row / t_.outputs[1] * t_.stride[0], y = row % t_.outputs[1] * t_.stride[1];
      const int64_t extent = (n - 1) * t_.stride[2] + 1;
      for (int64_t x = 0; x < extent; x += kAtOnce) {
        const int64_t at = (z * t_.extent[1] + y) * totals.pitch + x;
        add_taps(kSums - 1, count, 0, taps.data(), elements, at, found);
        const int64_t step = t_.stride[2], last = std::min(x + kAtOnce, extent);
        for (int64_t i = ceil_div(x, step); i * step < last; ++i) {
          sums.first[row * n + i] = found[kFirst][i * step - x];
          sums.second[row * n + i] = found[kSecond][i * step - x];
        }
      }
    }
    return sums;
  }

  // Sums of windows of equal weights: one row enters and one leaves.
  void slide(const RowTotals& totals, WindowSums& sums) const {
    const Axes3 &window = t_.window, &stride = t_.stride, &outputs = t_.outputs;
    const int64_t extent = (outputs[2] - 1) * stride[2] + 1;
    std::vector<double> first(extent), second(extent);
    const auto add = [&](int64_t z, int64_t y, double sign) {
      for (int64_t k = 0; k < window[0]; ++k) {
        const int64_t at = ((z + k) * t_.extent[1] + y) * totals.pitch;
        add_row(extent, window[2], sign * weights_.largest, &totals.first[at], &totals.second[at],
                first.data(), second.data());
      }
    };
    for (int64_t i = 0; i < outputs[0]; ++i) {
      const int64_t z = i * stride[0];
      std::fill(first.begin(), first.end(), 0.0);
      std::fill(second.begin(), second.end(), 0.0);
      int64_t begin = 0, end = 0;  // rows in the sums
      for (int64_t j = 0; j < outputs[1]; ++j) {
        for (; end < j * stride[1] + window[1]; ++end) add(z, end, 1.0);
        for (; begin < j * stride[1]; ++begin) add(z, begin, -1.0);
        const int64_t row = (i * outputs[1] + j) * outputs[2];
        for (int64_t x = 0; x < outputs[2]; ++x) {
          sums.first[row + x] = first[x * stride[2]], sums.second[row + x] = second[x * stride[2]];
        }
      }
    }
    // What rows leave behind them.
    sums.error += 4 * kRounding * totals.largest * weights_.largest *
                  static_cast<double>(t_.extent[1] * window[0]);
  }

  double norm_of(double energy, double softening) const {
    return weights_.factor / std::sqrt(energy + softening);
  }

  // Norms and states of a tile; how many windows are doubtful.
  int64_t decide(int64_t i, const std::vector<double>& energy, const std::vector<double>& total,
                 double error, T* norms, uint8_t* states) const {
    const TileStats stats = stats_row(i);
    const TilePlace place(t_, batch_.tiles[i]);
    const double softening = scaled_eps(rule_.eps, stats.scale) * weights_.total;
    // What energies are relative to the mean square of a window whose weights are equal.
    const double count = static_cast<double>(t_.window_size());
    const double unit = 1 / (count * count * weights_.factor * weights_.factor);
    // A pair is one transform: its noise is that of both.
    const double both = rule_.of_window ? 0.0 : stats.mean_square + stats_row(i ^ 1).mean_square;
    const auto is_low = [&](double e, double of_window) {
      const double least = rule_.least_energy * (rule_.of_window ? of_window * unit : both);
      return (e + softening) * unit < least;
    };
    const Axes3 valid{valid_positions(t_, place, 0), valid_positions(t_, place, 1),
                      valid_positions(t_, place, 2)};
    int64_t doubtful = 0, unknown = 0;
    for (int64_t at = 0; at < t_.positions(); ++at) {
      const Axes3 u = unravel(at, t_.outputs);
      norms[at] = 0, states[at] = kGood;
      if (u[0] >= valid[0] || u[1] >= valid[1] || u[2] >= valid[2]) continue;
      const double e = energy[at];
      if (!(e > rule_.least_variance * total[at]) || !(e * kAllowed<T> > error)) {
        states[at] = kUnknown, ++unknown;
        continue;
      }
      norms[at] = static_cast<T>(norm_of(e, softening));
      if (is_low(e, total[at])) states[at] = kDoubtful, ++doubtful;
    }
    if (unknown == 0) return doubtful;
    mark_flat(batch_.tiles[i], states);
    for (int64_t at = 0; at < t_.positions(); ++at) {
      if (states[at] != kUnknown) continue;
      const double e = exact_energy(place, unravel(at, t_.outputs), stats);
      states[at] = e == 0 ? kFlat : kGood;
      if (e == 0) continue;
      norms[at] = static_cast<T>(norm_of(e, softening));
      if (is_low(e, total[at])) states[at] = kDoubtful, ++doubtful;
    }
    return doubtful;
  }

  // Marks windows that are flat in each group of channels, whatever their weights.
  void mark_flat(int64_t tile, uint8_t* states) const {
    if (groups_ == 1) {
      FlatWindows<T>(t_, rule_.zero_mean).mark(tile, image_, states);
    } else {
      FlatChannels<T>(t_, rule_.zero_mean).mark(tile, image_, states);
    }
  }

  // Of one window from its elements: 0 if all that have weight are equal.
  double exact_energy(const TilePlace& place, const Axes3& u, const TileStats& stats) const {
    double energy = 0;
    for (int64_t group = 0; group < groups_; ++group) {
      const int64_t begin = group, end = groups_ > 1 ? group + 1 : t_.channels;
      const auto over = [&](const auto& f) {
        double sum = 0;
        for (int64_t c = begin; c < end; ++c) {
          for (const WeightedRun& run : weights_.runs) {
            const int64_t z = u[0] * t_.stride[0] + run.z, y = u[1] * t_.stride[1] + run.y;
            const TileRow<T> row(t_, place, image_, c, z, y);
            const T* x = row.data + u[2] * t_.stride[2] + run.x;
            double part = 0;
            for (int64_t k = 0; k < run.length; ++k) part += f(static_cast<double>(x[k]));
            sum += part * run.weight;
          }
        }
        return sum;
      };
      double level = 0;
      if (rule_.zero_mean) {
        const WeightedRun& run = weights_.runs.front();
        const TileRow<T> row(t_, place, image_, begin, u[0] * t_.stride[0] + run.z,
                             u[1] * t_.stride[1] + run.y);
        level = static_cast<double>(row.data[u[2] * t_.stride[2] + run.x]);
        // Twice: the second mean removes what rounding left of the first.
        for (int i = 0; i < 2; ++i) {
          const double mean = over([&](double x) { return x - level; }) / weights_.of_group;
          if (mean == 0) break;
          level += mean;
        }
      }
      energy += over([&](double x) {
        const double d = (x - level) * stats.scale;
        return d * d;
      });
    }
    return energy;
  }

  const TileBatch& batch_;
  const Tiling& t_;
  const T* image_;
  const Tensor& stats_;
  const ScoreRule& rule_;
  const WindowWeights& weights_;
  const int64_t groups_;
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> weighted_moments(const Tensor& input,
                                                            const Tensor& stats,
                                                            const Sizes& numbers,
                                                            const Numbers& rule_numbers,
                                                            const WindowWeights& weights) {
  const TileBatch batch(numbers, input);
  const ScoreRule rule(rule_numbers);
  Sizes shape{batch.count()};
  for (int64_t m : sizes_of(batch.tiling.outputs, batch.tiling.ndim)) shape.push_back(m);
  const Tensor norms = new_tensor(input, shape);
  const Tensor states = torch::stable::new_zeros(input, shape, ScalarType::Byte);
  const Tensor doubtful = new_tensor({batch.count()}, ScalarType::Long);
  shape[0] = 0;
  const Tensor means = new_tensor(input, shape);
  with_real_type(input, "input", [&](auto zero) {
    using T = decltype(zero);
    WeightedMomentsStep<T>(batch, input, stats, rule, weights)
        .run(norms.mutable_data_ptr<T>(), states.mutable_data_ptr<uint8_t>(),
             doubtful.mutable_data_ptr<int64_t>());
  });
  return {norms, states, means, doubtful};
}

}  // namespace torchcorr
