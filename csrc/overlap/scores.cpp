// Scores of two recordings over what overlaps at each lag, from sums of products. Along the first
// axis the moments of overlaps are merged row by row and used while they are in cache; along the
// others `overlap_parts` has merged them before.

#include <algorithm>
#include <atomic>

#include "common/parallel.h"
#include "overlap/growing.h"
#include "overlap/values.h"

namespace torchcorr::overlap {
namespace {

using Tensors = std::vector<Tensor>;

// Lines that grow together.
constexpr int64_t kLines = 16;

// Moments of a recording's rows, (rows, lanes) each; the second may be missing.
Rows rows_of(const Tensors& part, const double* elements) {
  STD_TORCH_CHECK(part.size() == 1 || part.size() == 2, "parts have means and perhaps energies");
  const int64_t lanes = part[0].size(part[0].dim() - 1);
  return {part[0].const_data_ptr<double>(),
          part.size() == 2 ? part[1].const_data_ptr<double>() : nullptr, elements, lanes, 1};
}

class Scores {
 public:
  Scores(const Tensors& x, const Tensors& y, const Tensor& elements, const Tensor& sums,
         const Sizes& lags, double faint, const Tensor& out)
      : lags_(lags), lanes_(elements.numel()), elements_(elements.const_data_ptr<double>()),
        sums_(sums.const_data_ptr<double>()), sums_row_(sums.stride(0)),
        out_(out.mutable_data_ptr<double>()), faint_(faint) {
    const double* each = x.size() == 1 ? nullptr : elements_;
    rows_[0] = rows_of(x, each), rows_[1] = rows_of(y, each);
  }

  int64_t run() {
    const int64_t blocks = ceil_div(lanes_, kLanes);
    std::atomic<int64_t> unknown{0};
    parallel_for(0, 3 * blocks, 1, [&](int64_t begin, int64_t end) {
      int64_t found = 0;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i / 3 * kLanes, lanes = std::min(kLanes, lanes_ - first);
        if (i % 3 == 0) grow(rise_of(lags_), first, lanes, found);
        if (i % 3 == 1) grow(fall_of(lags_), first, lanes, found);
        if (i % 3 == 2) slide(between(lags_), first, lanes, found);
      }
      unknown += found;
    });
    return unknown;
  }

 private:
  Rows from(int recording, int64_t first) const {
    Rows rows = rows_[recording];
    rows.mean += first;
    if (rows.energy) rows.energy += first;
    if (rows.elements) rows.elements += first;
    return rows;
  }

  // While the lag rises from the lowest, the first rows of x lie on the last ones of y; while it
  // falls from the highest, the last ones of x lie on the first of y.
  void grow(const Growth& g, int64_t first, int64_t lanes, int64_t& unknown) {
    if (g.none()) return;
    const bool rise = g.step > 0;
    Growing x(from(0, first), lanes, rise ? 0 : lags_.size - 1, g.step);
    Growing y(from(1, first), lanes, rise ? lags_.moved - 1 : 0, -g.step);
    Values v;
    const int64_t most = kValues / lanes;
    for (int64_t count = g.first; count <= g.last; count += most) {
      const int64_t rows = std::min(most, g.last - count + 1);
      x.write(count, rows, v.mean[0], v.energy[0]);
      y.write(count, rows, v.mean[1], v.energy[1]);
      emit({g.lag + g.step * count, g.step, count, 1}, rows, first, lanes, v, unknown);
    }
  }

  // The lags at which one recording lies within the other.
  void slide(const Growth& g, int64_t start, int64_t all_lanes, int64_t& unknown) {
    if (g.none()) return;
    const int64_t window = lags_.window(), most_lanes = sliding_lanes(window);
    for (int64_t first = start; first < start + all_lanes; first += most_lanes) {
      const int64_t lanes = std::min(most_lanes, start + all_lanes - first), most = kValues / lanes;
      Within x(from(0, first), lanes, 0, 1, lags_.size, window);
      Within y(from(1, first), lanes, lags_.moved - 1, -1, lags_.moved, window);
      Values v;
      for (int64_t before = g.first; before <= g.last; before += most) {
        const int64_t rows = std::min(most, g.last - before + 1);
        x.write(before, rows, v.mean[0], v.energy[0]);
        y.write(before, rows, v.mean[1], v.energy[1]);
        emit({g.lag + before, 1, window, 0}, rows, first, lanes, v, unknown);
      }
    }
  }

  struct Places {
    int64_t lag, lag_step, count, count_step;
  };

  void emit(const Places& of, int64_t rows, int64_t first, int64_t lanes, Values& v,
            int64_t& unknown) {
    for (int64_t i = 0; i < rows; ++i) {
      const double count = static_cast<double>(of.count + of.count_step * i);
      const double* sum = sums_ + (of.lag + of.lag_step * i - lags_.low) * sums_row_ + first;
      for (int64_t l = 0; l < lanes; ++l) {
        v.elements[i * lanes + l] = elements_[first + l] * count;
        v.sum[i * lanes + l] = sum[l];
      }
    }
    score(rows * lanes, faint_, v, unknown);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = of.lag + of.lag_step * i - lags_.low;
      std::copy_n(v.score + i * lanes, lanes, out_ + row * lanes_ + first);
    }
  }

  const AxisLags lags_;
  const int64_t lanes_;
  const double *elements_, *sums_;
  const int64_t sums_row_;
  double* out_;
  const double faint_;
  Rows rows_[2];
};

int64_t score_overlaps(Tensors x, Tensors y, const Tensor& elements, const Tensor& sums, Sizes lags,
                       double faint, const Tensor& out) {
  return Scores(x, y, elements, sums, lags, faint, out).run();
}

// Where an axis pass writes the moments of lanes: rows and lanes are so far apart.
struct Target {
  double *mean, *energy;
  int64_t row, lane;

  void take(int64_t rows, int64_t lanes, const double* means, const double* energies) const {
    for (int64_t l = 0; l < lanes; ++l) {
      for (int64_t r = 0; r < rows; ++r) {
        mean[r * row + l * lane] = means[r * lanes + l];
        energy[r * row + l * lane] = energies[r * lanes + l];
      }
    }
  }
};

// Mean and energy of the part of a recording that overlaps at each lag of one axis, of parts
// (outer, size, inner): written to (outer, lags, inner), in falling order of the lags if `reversed`.
void overlap_parts(Tensors part, const std::optional<Tensor>& elements, Sizes numbers,
                   bool reversed, Tensors out) {
  const AxisLags lags(numbers);
  const int64_t inner = part[0].size(2), outer = part[0].size(0);
  // Along the last axis the lanes are lines of the recording, few at a time: each is written apart.
  const bool last = part.size() == 1;
  const int64_t lanes = last ? outer : inner;
  const int64_t most_lanes = std::min(last ? kLines : kLanes, sliding_lanes(lags.window()));
  const int64_t blocks = ceil_div(lanes, most_lanes), items = last ? 1 : outer;
  const int64_t to_row = last ? 1 : inner, to_lane = last ? lags.count() : 1;
  const double* each = elements ? elements->const_data_ptr<double>() : nullptr;
  double *mean = out.at(0).mutable_data_ptr<double>(), *energy = out.at(1).mutable_data_ptr<double>();
  Rows rows = rows_of(part, each);
  rows.row = last ? 1 : inner, rows.lane = last ? lags.size : 1;
  parallel_for(0, items * blocks, 1, [&](int64_t begin, int64_t end) {
    double means[kValues], energies[kValues];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % blocks * most_lanes, width = std::min(most_lanes, lanes - first);
      const int64_t from = i / blocks * lags.size * inner + first * rows.lane;
      const int64_t to = i / blocks * lags.count() * inner + first * to_lane;
      const Rows of{rows.mean + from, rows.energy ? rows.energy + from : nullptr,
                    each ? each + first : nullptr, rows.row, rows.lane};
      const auto write_all = [&](const Growth& g, auto&& moments) {
        const int64_t most = kValues / width;
        for (int64_t count = g.first; count <= g.last; count += most) {
          const int64_t steps = std::min(most, g.last - count + 1), lag = g.lag + g.step * count;
          moments.write(count, steps, means, energies);
          const int64_t at = to + (reversed ? lags.high - lag : lag - lags.low) * to_row;
          const int64_t row = (reversed ? -g.step : g.step) * to_row;
          Target{mean + at, energy + at, row, to_lane}.take(steps, width, means, energies);
        }
      };
      const Growth rise = rise_of(lags), fall = fall_of(lags), within = between(lags);
      if (!rise.none()) write_all(rise, Growing(of, width, 0, 1));
      if (!fall.none()) write_all(fall, Growing(of, width, lags.size - 1, -1));
      if (!within.none()) write_all(within, Within(of, width, 0, 1, lags.size, lags.window()));
    }
  });
}

}  // namespace
}  // namespace torchcorr::overlap

STABLE_TORCH_LIBRARY_FRAGMENT(torchcorr_cpu, m) {
  m.def(
      "score_overlaps(Tensor[] x, Tensor[] y, Tensor elements, Tensor sums, int[] lags,"
      " float faint, Tensor(a!) out) -> int");
  m.def(
      "overlap_parts(Tensor[] part, Tensor? elements, int[] lags, bool reversed, Tensor(a!)[] out)"
      " -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("score_overlaps", TORCH_BOX(&torchcorr::overlap::score_overlaps));
  m.impl("overlap_parts", TORCH_BOX(&torchcorr::overlap::overlap_parts));
}
