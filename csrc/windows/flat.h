// Windows of equal elements, found by counting equal neighbours: exact, whatever the sums say.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "common/tiling.h"
#include "windows/engine.h"

namespace torchcorr {

namespace flat {

// 0 where an element belongs to no run, 2 where the run goes on to the next element, 1 at its end.
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

// How many lines go on from here whose counts are at least `least`, each of the same value.
template <class T>
TORCHCORR_INLINE void stack(int64_t n, const int32_t* counts, int64_t least, const T* v,
                            const T* next, const int32_t* before, int32_t* to) {
  const int32_t enough = static_cast<int32_t>(least);
  for (int64_t x = 0; x < n; ++x) {
    const int32_t more = v[x] == next[x] ? before[x] : 0;
    to[x] = counts[x] >= enough ? more + 1 : 0;
  }
}

#define TORCHCORR_FLAT_ROWS(T)                                                              \
  TORCHCORR_CLONES inline void links_of(int64_t n, const T* v, bool any_value, int32_t* to) { \
    links(n, v, any_value, to);                                                             \
  }                                                                                         \
  TORCHCORR_CLONES inline void stack_of(int64_t n, const int32_t* counts, int64_t least,    \
                                        const T* v, const T* next, const int32_t* before,   \
                                        int32_t* to) {                                      \
    stack(n, counts, least, v, next, before, to);                                           \
  }
TORCHCORR_FLAT_ROWS(float)
TORCHCORR_FLAT_ROWS(double)
#undef TORCHCORR_FLAT_ROWS

}  // namespace flat

// Counts run backwards along each axis: last axis first, then rows, then planes.
template <class T>
class FlatWindows {
 public:
  FlatWindows(const TileGrid& grid, const Plan& plan, bool zero_mean)
      : g_(grid), plan_(plan), zero_mean_(zero_mean) {
    const int64_t plane = g_.extent[1] * g_.extent[2];
    value_.assign(plane, 0);
    rows_.assign(plane, 0);
    planes_.assign(plane, 0);
    line_.assign(g_.extent[2] + 1, 0);
    runs_.assign(g_.extent[2], 0);
    none_.assign(g_.extent[2], std::numeric_limits<T>::quiet_NaN());
  }

  // Sets the norm of flat windows to 0; returns how many there were.
  int64_t clear(int64_t tile, const T* input, T* norms) {
    const TilePlace place(g_, tile);
    int64_t found = 0;
    std::fill(planes_.begin(), planes_.end(), 0);
    std::fill(value_.begin(), value_.end(), std::numeric_limits<T>::quiet_NaN());
    for (int64_t z = g_.extent[0] - 1; z >= 0; --z) {
      std::fill(rows_.begin(), rows_.end(), 0);
      for (int64_t y = g_.extent[1] - 1; y >= 0; --y) {
        count_row(place, input, z, y);
        found += clear_row(place, z, y, norms);
      }
    }
    return found;
  }

 private:
  void read(const TilePlace& place, const T* input, int64_t z, int64_t y) {
    constexpr T kNone = std::numeric_limits<T>::quiet_NaN();
    std::fill(line_.begin(), line_.end(), T(0));
    for (int64_t c = 0; c < g_.channels; ++c) {
      const TileRow<T> row(g_, place, input, c, z, y);
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
    const int64_t n = g_.extent[2];
    const bool has_below = y + 1 < g_.extent[1];
    T* here = value_.data() + y * n;
    int32_t* column = rows_.data() + y * n;
    int32_t* deep = planes_.data() + y * n;
    flat::links_of(n, line_.data(), zero_mean_, runs_.data());
    flat::runs(n, runs_.data());
    flat::stack_of(n, runs_.data(), plan_.axis[2].window, line_.data(),
                   has_below ? here + n : none_.data(), has_below ? column + n : column, column);
    // `here` still holds the plane behind, whose count goes on where the value does.
    flat::stack_of(n, column, plan_.axis[1].window, line_.data(), here, deep, deep);
    std::copy_n(line_.data(), n, here);
  }

  int64_t clear_row(const TilePlace& place, int64_t z, int64_t y, T* norms) {
    const Axis &az = plan_.axis[0], &ay = plan_.axis[1], &ax = plan_.axis[2];
    if (z % az.step != 0 || y % ay.step != 0) return 0;
    const int64_t i = z / az.step, j = y / ay.step;
    if (i >= valid_positions(g_, place, 0, az.window, az.step) ||
        j >= valid_positions(g_, place, 1, ay.window, ay.step)) {
      return 0;
    }
    const int64_t n = valid_positions(g_, place, 2, ax.window, ax.step);
    T* row = norms + (i * ay.count + j) * ax.count;
    const int32_t* deep = planes_.data() + y * g_.extent[2];
    int64_t found = 0;
    for (int64_t u = 0; u < n; ++u) {
      if (deep[u * ax.step] >= az.window && row[u] < 0) {
        row[u] = 0;
        ++found;
      }
    }
    return found;
  }

  const TileGrid& g_;
  const Plan& plan_;
  bool zero_mean_;
  std::vector<T> value_, line_, none_;
  std::vector<int32_t> rows_, planes_, runs_;
};

}  // namespace torchcorr
