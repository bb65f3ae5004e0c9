// Planes, rows and columns of a gradient enter and leave; see spread_sums.h.

#include "tiles/spread.h"

#include <type_traits>

namespace torchcorr::spread {
namespace {

using running::Columns;

template <int SIGN, class T>
TORCHCORR_INLINE void add_maps(int64_t n, const T* b, const T* c, const Columns& to) {
  for (int64_t i = 0; i < n; ++i) {
    const double first = static_cast<double>(b[i]), second = static_cast<double>(c[i]);
    to.sum[i] += SIGN > 0 ? first : -first;
    to.square[i] += SIGN > 0 ? second : -second;
  }
}

// Calls slide(position, +1 or -1) for what enters and leaves between element `from` and `to`.
template <class F>
TORCHCORR_INLINE void slide_to(int64_t from, int64_t to, int64_t window, int64_t stride,
                               int64_t count, const F& slide) {
  for (int64_t x = from + 1; x <= to; ++x) {
    if (x >= 0 && x % stride == 0 && x / stride < count) {
      slide(x / stride, std::integral_constant<int, 1>{});
    }
    const int64_t gone = x - window;
    if (gone >= 0 && gone % stride == 0 && gone / stride < count) {
      slide(gone / stride, std::integral_constant<int, -1>{});
    }
  }
}

// Sums that begin at `first` without sliding through all that came before.
template <class F>
TORCHCORR_INLINE void begin_at(int64_t first, int64_t window, int64_t stride, int64_t count,
                               const F& slide) {
  for (int64_t x = std::max<int64_t>(0, first - window + 1); x <= first; ++x) {
    if (x % stride == 0 && x / stride < count) {
      slide(x / stride, std::integral_constant<int, 1>{});
    }
  }
}

// found = scale (sign found - d B(b) + B(c)) for one row of one channel.
template <class In, class T>
TORCHCORR_INLINE void combine_row(int64_t n, int64_t window, const In* x, double level,
                                  double scale, double sign, const Columns& totals, T* found) {
  for (int64_t i = 0; i < n; ++i) {
    const double d = (static_cast<double>(x[i]) - level) * scale;
    const double first = totals.sum[i + window] - totals.sum[i];
    const double second = totals.square[i + window] - totals.square[i];
    const double through = sign * static_cast<double>(found[2 * i]);
    found[2 * i] = static_cast<T>(scale * (through - d * first + second));
  }
}

// Totals of a row dilated by the stride, as far before and behind it as a window reaches.
TORCHCORR_INLINE void totals_of(int64_t count, int64_t stride, int64_t window, const double* column,
                                double* dilated, double* to) {
  const int64_t wide = (count - 1) * stride + 1;
  const double* row = column;
  if (stride > 1) {
    for (int64_t u = 0; u < count; ++u) dilated[u * stride] = column[u];
    row = dilated;
  }
  std::fill_n(to, window - 1, 0.0);
  running::accumulate(wide, row, to + window - 1);
  const double last = to[window - 1 + wide];
  std::fill_n(to + window + wide, window, last);
}

template <class In, class T>
TORCHCORR_INLINE void unit_of(const Job& job, const TileGrid& g, int64_t tile, int64_t lane,
                              int64_t unit, const In* image, const double* stats, const T* b,
                              const T* c, T* found) {
  const TilePlace place(g, tile);
  const double level = stats[0], scale = stats[1], sign = lane == 0 ? 1.0 : -1.0;
  const int64_t plane = job.count[1] * job.count[2], n = job.count[2];
  const int64_t wide = running::whole((n - 1) * job.stride[2] + 1);
  const auto end = [&](int axis, int64_t most) {
    return std::min({most, g.extent[axis], g.size[axis] - place.start[axis]});
  };
  const int64_t z0 = unit / job.strips[1] * job.strip[0], z1 = end(0, z0 + job.strip[0]);
  const int64_t y0 = unit % job.strips[1] * job.strip[1], y1 = end(1, y0 + job.strip[1]);
  const int64_t x1 = end(2, g.extent[2]);
  const bool deep = job.window[0] > 1 || job.stride[0] > 1;
  running::Scratch scratch;
  const Columns slab = deep ? scratch.take(plane) : Columns{};
  const Columns columns = scratch.take(running::whole(n)), dilated = scratch.take(wide);
  const Columns totals = scratch.take(wide + 2 * job.window[2], job.window[2]);
  const auto slide_plane = [&](int64_t u, auto step) TORCHCORR_FLAT {
    add_maps<decltype(step)::value>(plane, b + u * plane, c + u * plane, slab);
  };
  for (int64_t z = z0; z < z1; ++z) {
    int64_t held = z;  // of the plane that the rows below are taken from
    if (deep) {
      if (z == z0) {
        begin_at(z, job.window[0], job.stride[0], job.count[0], slide_plane);
      } else {
        slide_to(z - 1, z, job.window[0], job.stride[0], job.count[0], slide_plane);
      }
    } else if (held >= job.count[0]) {
      held = job.count[0] - 1;
    }
    const auto slide_row = [&](int64_t u, auto step) TORCHCORR_FLAT {
      if (deep) {
        add_maps<decltype(step)::value>(n, slab.sum + u * n, slab.square + u * n, columns);
      } else {
        add_maps<decltype(step)::value>(n, b + held * plane + u * n, c + held * plane + u * n,
                                        columns);
      }
    };
    std::fill_n(columns.sum, n, 0.0);
    std::fill_n(columns.square, n, 0.0);
    for (int64_t y = y0; y < y1; ++y) {
      if (y == y0) {
        begin_at(y, job.window[1], job.stride[1], job.count[1], slide_row);
      } else {
        slide_to(y - 1, y, job.window[1], job.stride[1], job.count[1], slide_row);
      }
      totals_of(n, job.stride[2], job.window[2], columns.sum, dilated.sum, totals.sum);
      totals_of(n, job.stride[2], job.window[2], columns.square, dilated.square, totals.square);
      for (int64_t channel = 0; channel < g.channels; ++channel) {
        const TileRow<In> row(g, place, image, channel, z, y);
        T* to = found + channel * g.tile_size() * 2 +
                (z * g.length[1] + y) * g.length[2] * 2 + lane;
        combine_row(x1, job.window[2], row.data, level, scale, sign, totals, to);
      }
    }
  }
}

template <class T, class In>
TORCHCORR_INLINE void add(int64_t n, const T* from, In* to) {
  for (int64_t i = 0; i < n; ++i) to[i] += static_cast<In>(from[2 * i]);
}

}  // namespace

#define TORCHCORR_SPREAD(In, T)                                                                 \
  TORCHCORR_CLONES void run_unit(const Job& job, const TileGrid& grid, int64_t tile,            \
                                 int64_t lane, int64_t unit, const In* image,                   \
                                 const double* stats, const T* b, const T* c, T* found) {       \
    unit_of(job, grid, tile, lane, unit, image, stats, b, c, found);                            \
  }                                                                                             \
  TORCHCORR_CLONES void add_row(int64_t n, const T* from, In* to) { add(n, from, to); }
TORCHCORR_SPREAD(float, float)
TORCHCORR_SPREAD(float, double)
TORCHCORR_SPREAD(double, double)
#undef TORCHCORR_SPREAD

}  // namespace torchcorr::spread
