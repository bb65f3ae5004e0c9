// Moments of overlaps of two recordings, merged from a corner outwards: along an axis an overlap
// grows by one row at a time, and every term that is added is positive (math.md, eq. corner).
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "common/tensors.h"
#include "overlap/values.h"

namespace torchcorr::overlap {

// Lanes that grow together.
constexpr int64_t kLanes = 256;
static_assert(kValues >= kLanes);

// The lags low..high of an axis along which a recording has `size` rows and the other one `moved`.
struct AxisLags {
  int64_t size, moved, low, high;

  explicit AxisLags(const Sizes& n) {
    STD_TORCH_CHECK(n.size() == 4, "lags are a size, the size of what moves, and two ends");
    size = n[0], moved = n[1], low = n[2], high = n[3];
  }
  int64_t count() const { return high - low + 1; }
  int64_t window() const { return std::min(size, moved); }
  // Up to the first and from the second of these lags on overlaps grow; between them lie windows.
  int64_t end_of_rise() const { return std::min<int64_t>(0, size - moved); }
  int64_t start_of_fall() const {
    return std::max({int64_t{0}, size - moved, end_of_rise() + 1});
  }
};

// Lags at which overlaps grow row by row from `first` to `last` rows. With `count` rows the lag is
// lag + step * count.
struct Growth {
  int64_t first, last, lag, step;
  bool none() const { return first > last; }
};

inline Growth rise_of(const AxisLags& a) {
  return {a.low + a.moved, std::min(a.high, a.end_of_rise()) + a.moved, -a.moved, 1};
}

inline Growth fall_of(const AxisLags& a) {
  return {a.size - a.high, a.size - std::max(a.low, a.start_of_fall()), a.size, -1};
}

// The lags between rise and fall, in this form: the window with `first` rows before it is at `lag`.
inline Growth between(const AxisLags& a) {
  const int64_t low = std::max(a.low, a.end_of_rise() + 1);
  const int64_t high = std::min(a.high, a.start_of_fall() - 1);
  return {low - a.end_of_rise(), high - a.end_of_rise(), a.end_of_rise(), 1};
}

// Rows of lanes, each the mean and the energy of so many elements; null where these are 0 and 1.
struct Rows {
  const double *mean, *energy, *elements;
  int64_t row, lane;  // strides
};

// The first rows from an end on of at most kLanes lanes.
class Growing {
 public:
  Growing(const Rows& rows, int64_t lanes, int64_t start, int64_t step)
      : rows_(rows), lanes_(lanes), start_(start), step_(step) {}

  // Writes mean and energy (rows, lanes) of first, first + 1, ... rows together.
  void write(int64_t first, int64_t rows, double* mean, double* energy);

 private:
  void begin(int64_t count);

  const Rows rows_;
  const int64_t lanes_, start_, step_;
  int64_t count_ = 0;
  double sum_[kLanes], energy_[kLanes];
};

// Windows of so many rows of at most kLanes lanes, one row further each: the last rows of a block of
// rows, merged with the first of the next one.
class Sliding {
 public:
  Sliding(const Rows& rows, int64_t lanes, int64_t start, int64_t step, int64_t window)
      : rows_(rows), lanes_(lanes), start_(start), step_(step), window_(window) {}

  // Writes mean and energy (rows, lanes) of the windows that begin at rows first, first + 1, ... from
  // the start; calls go on where the last one ended.
  void write(int64_t first, int64_t rows, double* mean, double* energy);

 private:
  void begin(int64_t block);

  const Rows rows_;
  const int64_t lanes_, start_, step_, window_;
  int64_t block_ = -1;
  std::vector<double> last_mean_, last_energy_;  // of 1, 2, ... last rows of the block
  std::optional<Growing> next_;
};

// Moments at the lags low..high of an axis at which one recording lies within the other: `rows` are
// windows of the longer, or the whole of the shorter.
class Within {
 public:
  Within(const Rows& rows, int64_t lanes, int64_t start, int64_t step, int64_t size, int64_t window)
      : is_whole_(size == window), lanes_(lanes) {
    if (is_whole_) {
      mean_.resize(lanes), energy_.resize(lanes);
      Growing(rows, lanes, start, step).write(window, 1, mean_.data(), energy_.data());
    } else {
      sliding_.emplace(rows, lanes, start, step, window);
    }
  }

  void write(int64_t first, int64_t rows, double* mean, double* energy) {
    if (!is_whole_) return sliding_->write(first, rows, mean, energy);
    for (int64_t i = 0; i < rows; ++i) {
      std::copy_n(mean_.data(), lanes_, mean + i * lanes_);
      std::copy_n(energy_.data(), lanes_, energy + i * lanes_);
    }
  }

 private:
  const bool is_whole_;
  const int64_t lanes_;
  std::vector<double> mean_, energy_;
  std::optional<Sliding> sliding_;
};

// Lanes whose windows fit in a cache.
inline int64_t sliding_lanes(int64_t window) {
  return std::clamp<int64_t>((int64_t{1} << 17) / window, 1, kLanes);
}

}  // namespace torchcorr::overlap
