// Windows of equal elements, found by counting equal neighbours: exact, whatever the sums say.
#pragma once

#include <cmath>

#include "tiles.h"
#include "window_engine.h"

namespace torchcorr {

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
  }

  // Sets the norm of flat windows to 0; returns how many there were.
  int64_t clear(int64_t tile, const T* input, T* norms) {
    const TilePlace place(g_, tile);
    int64_t found = 0;
    std::fill(planes_.begin(), planes_.end(), 0);
    std::fill(value_.begin(), value_.end(), std::nan(""));
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
    const int64_t n = g_.extent[2];
    line_.assign(n, 0.0);
    for (int64_t c = 0; c < g_.channels; ++c) {
      const TileRow<T> row(g_, place, input, c, z, y);
      for (int64_t x = row.begin; x < row.end; ++x) {
        const double v = static_cast<double>(row.data[x]);
        // Unequal channels make an element unequal to all others.
        line_[x] = c == 0 || v == line_[x] ? v : std::nan("");
      }
    }
  }

  void count_row(const TilePlace& place, const T* input, int64_t z, int64_t y) {
    read(place, input, z, y);
    const int64_t n = g_.extent[2], wide = plan_.axis[2].window, tall = plan_.axis[1].window;
    const bool has_below = y + 1 < g_.extent[1];
    double* here = value_.data() + y * n;
    const double* below = here + n;
    int64_t* column = rows_.data() + y * n;
    int64_t* deep = planes_.data() + y * n;
    int64_t run = 0;
    for (int64_t x = n - 1; x >= 0; --x) {
      const double v = line_[x];
      run = v == v && (zero_mean_ || v == 0) ? (x + 1 < n && v == line_[x + 1] ? run + 1 : 1) : 0;
      const bool joined = has_below && v == below[x];
      column[x] = run >= wide ? (joined ? column[x + n] : 0) + 1 : 0;
      // `here` still holds the plane behind, whose count goes on where the value does.
      deep[x] = column[x] >= tall ? (v == here[x] ? deep[x] : 0) + 1 : 0;
    }
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
    const int64_t* deep = planes_.data() + y * g_.extent[2];
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
  std::vector<double> value_, line_;
  std::vector<int64_t> rows_, planes_;
};

}  // namespace torchcorr
