// Planes, rows and columns of a gradient enter and leave; see window_grads.h.

#include "tiles/window_grads.h"

#include <type_traits>

namespace torchcorr::spread {
namespace {

using running::Columns;

template <int SIGN, class T>
TORCHCORR_INLINE void add_maps(int64_t n, const T* b, const T* c, const Columns& to) {
  for (int64_t i = 0; i < n; ++i) {
    const double first = static_cast<double>(b[i]), second = static_cast<double>(c[i]);
    to.first[i] += SIGN > 0 ? first : -first;
    to.second[i] += SIGN > 0 ? second : -second;
  }
}

// Calls move(position, +1 or -1) for each window that enters or leaves from element `from` to `to`.
template <class F>
TORCHCORR_INLINE void move_to(int64_t from, int64_t to, int64_t window, int64_t stride,
                              int64_t count, const F& move) {
  for (int64_t x = from + 1; x <= to; ++x) {
    if (x >= 0 && x % stride == 0 && x / stride < count) {
      move(x / stride, std::integral_constant<int, 1>{});
    }
    const int64_t gone = x - window;
    if (gone >= 0 && gone % stride == 0 && gone / stride < count) {
      move(gone / stride, std::integral_constant<int, -1>{});
    }
  }
}

// Calls move(position, +1) for the windows that contain element `first`.
template <class F>
TORCHCORR_INLINE void begin_at(int64_t first, int64_t window, int64_t stride, int64_t count,
                               const F& move) {
  for (int64_t x = std::max<int64_t>(0, first - window + 1); x <= first; ++x) {
    if (x % stride == 0 && x / stride < count) {
      move(x / stride, std::integral_constant<int, 1>{});
    }
  }
}

// See spread_unit: a row of one channel, from totals up to each element and to a window before it.
template <class In, class T>
TORCHCORR_INLINE void combine_row(int64_t n, const In* x, const TileGrads<In, T>& grads,
                                  const Columns& behind, const Columns& ahead, T* products) {
  const double level = grads.stats.level, scale = grads.stats.scale;
  const double sign = grads.lane == 0 ? 1.0 : -1.0;
  const double *squares = behind.first, *means = behind.second;
  const double *next_squares = ahead.first, *next_means = ahead.second;
  for (int64_t i = 0; i < n; ++i) {
    const double d = (static_cast<double>(x[i]) - level) * scale;
    const double to_square = next_squares[i] - squares[i], to_mean = next_means[i] - means[i];
    const double through = sign * static_cast<double>(products[2 * i]);
    products[2 * i] = static_cast<T>(scale * (through - d * to_square + to_mean));
  }
}

// The counts and strides of a row of windows.
struct WindowRow {
  int64_t count, stride, window;
};

// Totals of a row dilated by the stride, as far before and behind it as a window reaches.
template <int BYTES>
TORCHCORR_INLINE void totals_of(const WindowRow& row, const double* column, double* dilated,
                                double* to) {
  const auto [count, stride, window] = row;
  const int64_t wide = (count - 1) * stride + 1;
  const double* values = column;
  if (stride > 1) {
    for (int64_t u = 0; u < count; ++u) dilated[u * stride] = column[u];
    values = dilated;
  }
  std::fill_n(to, window - 1, 0.0);
  running::accumulate<BYTES>(wide, values, to + window - 1);
  const double last = to[window - 1 + wide];
  std::fill_n(to + window + wide, window, last);
}

using running::kLongLine, running::kPiece;

// Totals of the windows of a line, piece by piece: those of a piece, of the one before, and zeros in front
// of the first one.
template <int BYTES>
class LineTotals {
 public:
  explicit LineTotals(running::ColumnsScratch& scratch)
      : maps_(scratch.take(kPiece)), totals_(scratch.take(2 * kPiece)) {}

  // Goes on to the next piece. Windows begin at every `stride`th element.
  template <class T>
  TORCHCORR_INLINE void next(const T* squares, const T* means, int64_t count, int64_t stride) {
    std::copy_n(totals_.first + kPiece, kPiece, totals_.first);
    std::copy_n(totals_.second + kPiece, kPiece, totals_.second);
    std::fill_n(maps_.first, kPiece, 0.0);
    std::fill_n(maps_.second, kPiece, 0.0);
    const int64_t first = ceil_div(begin_, stride);
    const int64_t end = std::min(count, ceil_div(begin_ + kPiece, stride));
    for (int64_t u = first; u < end; ++u) {
      maps_.first[u * stride - begin_] = static_cast<double>(squares[u]);
      maps_.second[u * stride - begin_] = static_cast<double>(means[u]);
    }
    sums_.next(kPiece, maps_, totals_.at(kPiece));
    begin_ += kPiece;
  }
  // Totals up to `back` elements before those of the last piece, for 0 <= back <= kPiece.
  Columns before(int64_t back) const { return totals_.at(kPiece - back); }

 private:
  const Columns maps_, totals_;
  running::RunningTotals<BYTES> sums_;
  int64_t begin_ = 0;
};

// See spread_unit: all elements of a long line.
template <int BYTES, class In, class T>
TORCHCORR_INLINE void spread_line(const Tiling& t, const TilePlace& place, int64_t n,
                                  const TileGrads<In, T>& grads) {
  running::ColumnsScratch scratch;
  LineTotals<BYTES> ahead(scratch), behind(scratch);
  const int64_t window = t.window[2], pieces = window / kPiece, back = window % kPiece;
  for (int64_t x = 0; x < n; x += kPiece) {
    const int64_t some = std::min(kPiece, n - x);
    ahead.next(grads.squares, grads.means, t.outputs[2], t.stride[2]);
    if (x / kPiece >= pieces) behind.next(grads.squares, grads.means, t.outputs[2], t.stride[2]);
    for (int64_t channel = 0; channel < t.channels; ++channel) {
      const TileRow<In> elements(t, place, grads.image, channel, 0, 0);
      T* products = grads.products + (channel * t.tile_size() + x) * 2 + grads.lane;
      combine_row(some, elements.data + x, grads, behind.before(back), ahead.before(0), products);
    }
  }
}

template <int BYTES, class In, class T>
TORCHCORR_INLINE void spread_unit(const Tiling& t, int64_t unit, const TileGrads<In, T>& grads) {
  const TilePlace place(t, grads.tile);
  const running::Strips strips = strips_of(t);
  const int64_t plane = t.outputs[1] * t.outputs[2], n = t.outputs[2];
  const int64_t wide = running::whole((n - 1) * t.stride[2] + 1);
  const T *squares = grads.squares, *means = grads.means;
  const auto end = [&](int axis, int64_t most) {
    return std::min({most, t.extent[axis], t.size[axis] - place.start[axis]});
  };
  const int64_t z0 = strips.first(unit)[0], z1 = end(0, z0 + strips.size[0]);
  const int64_t y0 = strips.first(unit)[1], y1 = end(1, y0 + strips.size[1]);
  const int64_t x1 = end(2, t.extent[2]);
  if (t.extent[0] * t.extent[1] == 1 && x1 >= kLongLine) return spread_line<BYTES>(t, place, x1, grads);
  const bool deep = t.window[0] > 1 || t.stride[0] > 1;
  running::ColumnsScratch scratch;
  const Columns slab = deep ? scratch.take(plane) : Columns{};
  const Columns columns = scratch.take(running::whole(n)), dilated = scratch.take(wide);
  const Columns totals = scratch.take(wide + 2 * t.window[2], t.window[2]);
  const WindowRow row{n, t.stride[2], t.window[2]};
  const auto move_plane = [&](int64_t u, auto step) TORCHCORR_FLAT {
    add_maps<decltype(step)::value>(plane, squares + u * plane, means + u * plane, slab);
  };
  for (int64_t z = z0; z < z1; ++z) {
    int64_t current = z;  // plane that the rows below are taken from
    if (deep) {
      if (z == z0) {
        begin_at(z, t.window[0], t.stride[0], t.outputs[0], move_plane);
      } else {
        move_to(z - 1, z, t.window[0], t.stride[0], t.outputs[0], move_plane);
      }
    } else if (current >= t.outputs[0]) {
      current = t.outputs[0] - 1;
    }
    const auto move_row = [&](int64_t u, auto step) TORCHCORR_FLAT {
      constexpr int kSign = decltype(step)::value;
      if (deep) {
        add_maps<kSign>(n, slab.first + u * n, slab.second + u * n, columns);
      } else {
        const int64_t at = current * plane + u * n;
        add_maps<kSign>(n, squares + at, means + at, columns);
      }
    };
    std::fill_n(columns.first, n, 0.0);
    std::fill_n(columns.second, n, 0.0);
    for (int64_t y = y0; y < y1; ++y) {
      if (y == y0) {
        begin_at(y, t.window[1], t.stride[1], t.outputs[1], move_row);
      } else {
        move_to(y - 1, y, t.window[1], t.stride[1], t.outputs[1], move_row);
      }
      totals_of<BYTES>(row, columns.first, dilated.first, totals.first);
      totals_of<BYTES>(row, columns.second, dilated.second, totals.second);
      for (int64_t channel = 0; channel < t.channels; ++channel) {
        const TileRow<In> elements(t, place, grads.image, channel, z, y);
        T* to = grads.products + channel * t.tile_size() * 2 +
                (z * t.length[1] + y) * t.length[2] * 2 + grads.lane;
        combine_row(x1, elements.data, grads, totals, totals.at(t.window[2]), to);
      }
    }
  }
}

template <class T, class In>
TORCHCORR_INLINE void add(int64_t n, const T* from, In* to) {
  for (int64_t i = 0; i < n; ++i) to[i] += static_cast<In>(from[2 * i]);
}

}  // namespace

#define TORCHCORR_SPREAD(In, T)                                                               \
  TORCHCORR_FOR_CPUS(void, spread_unit,                                                         \
                     (const Tiling& tiling, int64_t unit, const TileGrads<In, T>& grads),       \
                     (tiling, unit, grads))                                                     \
  TORCHCORR_CLONES void add_row(int64_t n, const T* from, In* to) { add(n, from, to); }
TORCHCORR_SPREAD(float, float)
TORCHCORR_SPREAD(float, double)
TORCHCORR_SPREAD(double, double)
#undef TORCHCORR_SPREAD

}  // namespace torchcorr::spread
