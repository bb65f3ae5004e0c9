// Windows of equal elements, from counts of equal neighbours: exact, whatever the sums are.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "common/tiling.h"
#include "common/window_state.h"

namespace torchcorr {

namespace flat {

// 0 where an element belongs to no run, 2 where the run continues with the next element, 1 at its
// end.
template <class T>
TORCHCORR_INLINE void links(int64_t n, const T* v, bool any_value, int32_t* to) {
  for (int64_t x = 0; x < n; ++x) {
    const int32_t usable = (v[x] == v[x]) & (any_value | (v[x] == 0));
    to[x] = usable + (usable & (v[x] == v[x + 1]));
  }
}

// Length of each run from its element on.
inline void runs(int64_t n, int32_t* links) {
  int32_t run = 0;
  for (int64_t x = n - 1; x >= 0; --x) {
    run = links[x] == 2 ? run + 1 : links[x];
    links[x] = run;
  }
}

// Counts of lines, and how many are enough for a window.
struct Enough {
  const int32_t* counts;
  int64_t least;
};

// Values and counts of the next line or plane.
template <class T>
struct Next {
  const T* values;
  const int32_t* counts;
};

// How many lines from here on have enough counts, all of the same value. `to` may be the counts of
// the next line.
template <class T>
TORCHCORR_INLINE void stack(int64_t n, const Enough& enough, const T* v, const Next<T>& next,
                            int32_t* to) {
  const int32_t least = static_cast<int32_t>(enough.least);
  const int32_t *counts = enough.counts, *before = next.counts;
  const T* following = next.values;
  for (int64_t x = 0; x < n; ++x) {
    const int32_t more = v[x] == following[x] ? before[x] : 0;
    to[x] = counts[x] >= least ? more + 1 : 0;
  }
}

#define TORCHCORR_FLAT_ROWS(T)                                                                \
  TORCHCORR_CLONES inline void links_of(int64_t n, const T* v, bool any_value, int32_t* to) { \
    links(n, v, any_value, to);                                                               \
  }                                                                                           \
  TORCHCORR_CLONES inline void stack_of(int64_t n, const Enough& enough, const T* v,          \
                                        const Next<T>& next, int32_t* to) {                   \
    stack(n, enough, v, next, to);                                                            \
  }
TORCHCORR_FLAT_ROWS(float)
TORCHCORR_FLAT_ROWS(double)
#undef TORCHCORR_FLAT_ROWS

}  // namespace flat

// Finds the flat windows of tiles. Counts run backwards along each axis: last axis first, then
// rows, then planes.
template <class T>
class FlatWindows {
 public:
  // With `any_value` a flat window has any value, otherwise zeros.
  FlatWindows(const Tiling& tiling, bool any_value) : t_(tiling), any_value_(any_value) {
    const int64_t plane = t_.extent[1] * t_.extent[2];
    value_.assign(plane, 0);
    rows_.assign(plane, 0);
    planes_.assign(plane, 0);
    line_.assign(t_.extent[2] + 1, 0);
    runs_.assign(t_.extent[2], 0);
    none_.assign(t_.extent[2], std::numeric_limits<T>::quiet_NaN());
  }

  // Changes the state of unknown windows that are flat; returns how many there were.
  int64_t mark(int64_t tile, const T* input, uint8_t* states) {
    const TilePlace place(t_, tile);
    int64_t marked = 0;
    std::fill(planes_.begin(), planes_.end(), 0);
    std::fill(value_.begin(), value_.end(), std::numeric_limits<T>::quiet_NaN());
    for (int64_t z = t_.extent[0] - 1; z >= 0; --z) {
      std::fill(rows_.begin(), rows_.end(), 0);
      for (int64_t y = t_.extent[1] - 1; y >= 0; --y) {
        count_row(place, input, z, y);
        marked += mark_row(place, z, y, states);
      }
    }
    return marked;
  }

 private:
  void read(const TilePlace& place, const T* input, int64_t z, int64_t y) {
    constexpr T kNone = std::numeric_limits<T>::quiet_NaN();
    std::fill(line_.begin(), line_.end(), T(0));
    for (int64_t c = 0; c < t_.channels; ++c) {
      const TileRow<T> row(t_, place, input, c, z, y);
      if (c == 0) {
        std::copy(row.data + row.begin, row.data + row.end, line_.begin() + row.begin);
        continue;
      }
      // Unequal channels make an element unequal to all others.
      for (int64_t x = row.begin; x < row.end; ++x) {
        if (!(row.data[x] == line_[x])) line_[x] = kNone;
      }
    }
    line_.back() = kNone;
  }

  void count_row(const TilePlace& place, const T* input, int64_t z, int64_t y) {
    read(place, input, z, y);
    const int64_t n = t_.extent[2];
    const bool has_below = y + 1 < t_.extent[1];
    T* here = value_.data() + y * n;
    int32_t* column = rows_.data() + y * n;
    int32_t* deep = planes_.data() + y * n;
    flat::links_of(n, line_.data(), any_value_, runs_.data());
    flat::runs(n, runs_.data());
    flat::stack_of(n, {runs_.data(), t_.window[2]}, line_.data(),
                   {has_below ? here + n : none_.data(), has_below ? column + n : column}, column);
    // `here` still contains the values of the plane behind; its counts go on where they are equal.
    flat::stack_of(n, {column, t_.window[1]}, line_.data(), {here, deep}, deep);
    std::copy_n(line_.data(), n, here);
  }

  int64_t mark_row(const TilePlace& place, int64_t z, int64_t y, uint8_t* states) {
    if (z % t_.stride[0] != 0 || y % t_.stride[1] != 0) return 0;
    const int64_t i = z / t_.stride[0], j = y / t_.stride[1];
    if (i >= valid_positions(t_, place, 0) || j >= valid_positions(t_, place, 1)) return 0;
    const int64_t n = valid_positions(t_, place, 2);
    uint8_t* row = states + (i * t_.outputs[1] + j) * t_.outputs[2];
    const int32_t* deep = planes_.data() + y * t_.extent[2];
    int64_t marked = 0;
    for (int64_t u = 0; u < n; ++u) {
      if (row[u] == kUnknown && deep[u * t_.stride[2]] >= t_.window[0]) {
        row[u] = kFlat;
        ++marked;
      }
    }
    return marked;
  }

  const Tiling& t_;
  bool any_value_;
  std::vector<T> value_, line_, none_;
  std::vector<int32_t> rows_, planes_, runs_;
};

// The same where each channel of a window has a value of its own.
template <class T>
class FlatChannels {
 public:
  FlatChannels(const Tiling& tiling, bool any_value)
      : channels_(tiling.channels), one_(one_channel(tiling)), flat_(one_, any_value) {}

  // Changes the state of unknown windows whose channels are all flat; returns how many there were.
  int64_t mark(int64_t tile, const T* input, uint8_t* states) {
    const int64_t n = one_.positions();
    std::vector<uint8_t> left(states, states + n), of_channel;
    for (int64_t c = 0; c < channels_; ++c) {
      of_channel = left;
      flat_.mark(tile, input + c * one_.layout.strides.channel, of_channel.data());
      for (int64_t at = 0; at < n; ++at) {
        if (left[at] == kUnknown && of_channel[at] != kFlat) left[at] = kDoubtful;
      }
    }
    int64_t marked = 0;
    for (int64_t at = 0; at < n; ++at) {
      if (left[at] == kUnknown) states[at] = kFlat, ++marked;
    }
    return marked;
  }

 private:
  int64_t channels_;
  const Tiling one_;
  FlatWindows<T> flat_;
};

}  // namespace torchcorr
