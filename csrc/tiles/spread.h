// The adjoint of sliding window sums: for each element of a tile the sum over the windows that
// hold it, of two maps at once.
#pragma once

#include "windows/running_sums.h"
#include "common/tiling.h"

namespace torchcorr::spread {

struct Job {
  int64_t window[3] = {1, 1, 1}, stride[3] = {1, 1, 1}, count[3] = {1, 1, 1};
  int64_t strip[2] = {1, 1}, strips[2] = {1, 1};  // elements of a unit along planes and rows

  Job(const TileGrid& g, const Sizes& windows, const Sizes& strides) {
    for (int64_t i = 0; i < g.ndim; ++i) {
      const int64_t axis = 3 - g.ndim + i;
      window[axis] = windows[i];
      stride[axis] = strides[i];
      count[axis] = (g.extent[axis] - windows[i]) / strides[i] + 1;
    }
    for (int i = 0; i < 2; ++i) {
      const int64_t least = std::max<int64_t>(i == 0 ? 4 : 32, window[i] / 2);
      strips[i] = ceil_div(g.extent[i], least);
      strip[i] = ceil_div(g.extent[i], strips[i]);
      strips[i] = ceil_div(g.extent[i], strip[i]);
    }
  }

  int64_t units() const { return strips[0] * strips[1]; }
  int64_t positions() const { return count[0] * count[1] * count[2]; }
};

// `found` is the pair of tiles that the tile belongs to, its elements in lane 0 or 1.
void run_unit(const Job& job, const TileGrid& grid, int64_t tile, int64_t lane, int64_t unit,
              const float* image, const double* stats, const float* b, const float* c,
              float* found);
void run_unit(const Job& job, const TileGrid& grid, int64_t tile, int64_t lane, int64_t unit,
              const float* image, const double* stats, const double* b, const double* c,
              double* found);
void run_unit(const Job& job, const TileGrid& grid, int64_t tile, int64_t lane, int64_t unit,
              const double* image, const double* stats, const double* b, const double* c,
              double* found);

// to[i] += from[2 i]
void add_row(int64_t n, const float* from, float* to);
void add_row(int64_t n, const double* from, float* to);
void add_row(int64_t n, const double* from, double* to);

}  // namespace torchcorr::spread
