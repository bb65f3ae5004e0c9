// The adjoint of running window sums: for each element of a tile the sum over the windows that
// contain it, of two maps at once.
#pragma once

#include "common/tiling.h"
#include "windows/running_sums.h"

namespace torchcorr::spread {

// How the elements of a tile are divided into units of work.
inline running::Strips strips_of(const Tiling& t) {
  const int64_t tall = t.window[0] > 1 ? t.window[1] / 2 : 8 * t.window[1];
  return running::Strips(t.extent, {std::max<int64_t>(4, 8 * t.window[0]),
                                    std::max<int64_t>(32, tall), t.extent[2]});
}

// One tile: its input, what goes to the squares and to the means of its windows, and the pair of
// products that it belongs to, its elements in lane 0 or 1.
template <class In, class T>
struct TileGrads {
  int64_t tile, lane;
  TileStats stats;
  const In* image;
  const T *squares, *means;
  T* products;
};

// products = scale (sign products - d B(squares) + B(means)) for the elements d of one unit, B
// being the sum over windows and the sign that of the lane.
void spread_unit(const Tiling& tiling, int64_t unit, const TileGrads<float, float>& grads);
void spread_unit(const Tiling& tiling, int64_t unit, const TileGrads<float, double>& grads);
void spread_unit(const Tiling& tiling, int64_t unit, const TileGrads<double, double>& grads);

// to[i] += from[2 i]
void add_row(int64_t n, const float* from, float* to);
void add_row(int64_t n, const double* from, float* to);
void add_row(int64_t n, const double* from, double* to);

}  // namespace torchcorr::spread
