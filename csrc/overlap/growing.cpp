#include "overlap/growing.h"

#include <algorithm>

#include "common/targets.h"

namespace torchcorr::overlap {
namespace {

// The sum of f(x) of single elements that lie side by side.
template <int BYTES, class F>
TORCHCORR_INLINE double sum_by(int64_t n, const double* x, const F& f) {
  constexpr int64_t kLane = lanes_of<double, BYTES>, kSums = 4;
  Wide<BYTES> sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kLane <= n; i += kSums * kLane) {
    for (int64_t j = 0; j < kSums; ++j) sums[j] += f(load<BYTES>(x + i + j * kLane));
  }
  double rest = 0;
  for (; i < n; ++i) rest += f(x[i]);
  return sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

template <int BYTES>
TORCHCORR_INLINE double sum_of(int64_t n, const double* x) {
  return sum_by<BYTES>(n, x, [](const auto& v) TORCHCORR_FLAT { return v; });
}
TORCHCORR_FOR_CPUS(double, sum_of, (int64_t n, const double* x), (n, x))

// And of their squares about a centre.
template <int BYTES>
TORCHCORR_INLINE double energy_of(int64_t n, const double* x, double centre) {
  const auto square = [&](const auto& v) TORCHCORR_FLAT { return (v - centre) * (v - centre); };
  return sum_by<BYTES>(n, x, square);
}
TORCHCORR_FOR_CPUS(double, energy_of, (int64_t n, const double* x, double centre), (n, x, centre))

// What a lane merges: a row of the recording, of which `count` rows were merged before.
struct Step {
  const double *mean, *energy, *elements;
  int64_t lane;
  double count;
};

template <bool BESIDE>
TORCHCORR_INLINE void add_row(int64_t lanes, const Step& by, double* sum, double* energy) {
  const double share = 1 / by.count, weight = by.count / (by.count + 1);
  const int64_t lane = BESIDE ? 1 : by.lane;
  for (int64_t l = 0; l < lanes; ++l) {
    const double value = by.mean[l * lane], d = value - sum[l] * share;
    const double elements = by.elements ? by.elements[l] : 1.0;
    energy[l] += (by.energy ? by.energy[l * lane] : 0.0) + d * d * (weight * elements);
    sum[l] += value;
  }
}

TORCHCORR_CLONES void add_beside(int64_t lanes, const Step& by, double* sum, double* energy) {
  if (by.energy && by.elements) {
    add_row<true>(lanes, by, sum, energy);
  } else {
    add_row<true>(lanes, {by.mean, nullptr, nullptr, 1, by.count}, sum, energy);
  }
}

TORCHCORR_CLONES void add_apart(int64_t lanes, const Step& by, double* sum, double* energy) {
  add_row<false>(lanes, {by.mean, nullptr, nullptr, by.lane, by.count}, sum, energy);
}

TORCHCORR_CLONES void write_row(int64_t lanes, double share, const double* sum,
                                const double* energy, double* to_mean, double* to_energy) {
  for (int64_t l = 0; l < lanes; ++l) {
    to_mean[l] = sum[l] * share;
    to_energy[l] = energy[l];
  }
}

// Merges what `by.count` rows are with others, which make them `all` rows.
TORCHCORR_CLONES void merge(int64_t lanes, const Step& by, double all, double* mean,
                            double* energy) {
  const double share = (all - by.count) / all, weight = by.count * share;
  for (int64_t l = 0; l < lanes; ++l) {
    const double d = by.mean[l] - mean[l];
    const double elements = by.elements ? by.elements[l] : 1.0;
    energy[l] += by.energy[l] + d * d * (weight * elements);
    mean[l] += d * share;
  }
}

}  // namespace

// In two passes, as no part of it is asked for.
void Growing::begin(int64_t count) {
  count_ = count;
  const double elements = static_cast<double>(count);
  const double* first = rows_.mean + (step_ > 0 ? start_ : start_ - count + 1) * rows_.row;
  if (lanes_ == 1 && rows_.row == 1 && !rows_.energy) {
    sum_[0] = sum_of(count, first);
    energy_[0] = energy_of(count, first, sum_[0] / elements);
    return;
  }
  std::fill_n(sum_, lanes_, 0.0);
  std::fill_n(energy_, lanes_, 0.0);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t l = 0; l < lanes_; ++l) sum_[l] += first[i * rows_.row + l * rows_.lane];
  }
  const int64_t offset = first - rows_.mean;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t l = 0; l < lanes_; ++l) {
      const int64_t at = i * rows_.row + l * rows_.lane;
      const double d = first[at] - sum_[l] / elements;
      energy_[l] += d * d * (rows_.elements ? rows_.elements[l] : 1.0);
      if (rows_.energy) energy_[l] += rows_.energy[offset + at];
    }
  }
}

void Growing::write(int64_t first, int64_t rows, double* mean, double* energy) {
  if (count_ == 0) begin(first);
  if (lanes_ == 1 && !rows_.energy && !rows_.elements) {
    double sum = sum_[0], squares = energy_[0];
    const double* row = rows_.mean + start_ * rows_.row;
    const int64_t step = step_ * rows_.row;
    for (int64_t i = 0; i < rows; ++i) {
      const double after = static_cast<double>(first + i);
      if (count_ < first + i) {
        const double value = row[step * count_], d = value - sum / (after - 1);
        squares += d * d * ((after - 1) / after);
        sum += value;
        ++count_;
      }
      mean[i] = sum / after;
      energy[i] = squares;
    }
    sum_[0] = sum, energy_[0] = squares;
    return;
  }
  for (int64_t i = 0; i < rows; ++i) {
    if (count_ < first + i) {
      const int64_t at = (start_ + step_ * count_) * rows_.row;
      const Step by{rows_.mean + at, rows_.energy ? rows_.energy + at : nullptr, rows_.elements,
                    rows_.lane, static_cast<double>(count_)};
      (rows_.lane == 1 ? add_beside : add_apart)(lanes_, by, sum_, energy_);
      ++count_;
    }
    write_row(lanes_, 1 / static_cast<double>(first + i), sum_, energy_, mean + i * lanes_,
              energy + i * lanes_);
  }
}

void Sliding::begin(int64_t block) {
  block_ = block;
  last_mean_.resize(window_ * lanes_), last_energy_.resize(window_ * lanes_);
  const int64_t end = start_ + step_ * ((block + 1) * window_);
  Growing(rows_, lanes_, end - step_, -step_).write(1, window_, last_mean_.data(), last_energy_.data());
  next_.emplace(rows_, lanes_, end, step_);
}

void Sliding::write(int64_t first, int64_t rows, double* mean, double* energy) {
  for (int64_t i = 0; i < rows;) {
    const int64_t block = (first + i) / window_, before = (first + i) % window_;
    if (block != block_) begin(block);
    if (before == 0) {
      std::copy_n(last_mean_.end() - lanes_, lanes_, mean + i * lanes_);
      std::copy_n(last_energy_.end() - lanes_, lanes_, energy + i * lanes_);
      ++i;
      continue;
    }
    const int64_t count = std::min(rows - i, window_ - before), at = i * lanes_;
    next_->write(before, count, mean + at, energy + at);
    for (int64_t r = 0; r < count; ++r) {
      const double behind = static_cast<double>(before + r), all = static_cast<double>(window_);
      const Step by{last_mean_.data() + (window_ - before - r - 1) * lanes_,
                    last_energy_.data() + (window_ - before - r - 1) * lanes_, rows_.elements, 1, behind};
      merge(lanes_, by, all, mean + at + r * lanes_, energy + at + r * lanes_);
    }
    i += count;
  }
}

}  // namespace torchcorr::overlap
