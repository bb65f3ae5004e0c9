// What the gradients of a dense layer's scores take from the images besides products.

#include <algorithm>
#include <cmath>

#include "common/parallel.h"
#include "direct/dense_windows.h"

namespace torchcorr::direct {
namespace {

// Channels that share what goes through the norms.
constexpr int64_t kChannels = 16;

// A map of one item's windows, spread over the elements of these.
class Spread {
 public:
  explicit Spread(const Windows& w) : w_(w), pitch_(w.pitch()), line_(w.line() + pitch_, 0.0),
                                      row_(pitch_) {}

  // What each element of a row gets is the sum of `window[2]` neighbours of this line.
  template <int BYTES>
  TORCHCORR_INLINE const double* line(const double* map, int64_t z, int64_t y) {
    const auto [front, behind] = covering(z, 0);
    const auto [top, bottom] = covering(y, 1);
    const Rows rows{map + (front * w_.count[1] + top) * pitch_, behind - front,
                    w_.count[1] * pitch_, bottom - top, pitch_};
    double* to = line_.data() + w_.window[2] - 1;
    double* sums = w_.step[2] == 1 ? to : row_.data();
    for (int64_t i = 0; i < pitch_; i += kDoubles) sum_of_rows<BYTES>(rows, i).write(sums + i);
    for (int64_t i = 0; sums != to && i < w_.count[2]; ++i) to[i * w_.step[2]] = sums[i];
    return line_.data();
  }

 private:
  // The windows that contain an element along an axis: from the first up to the second.
  std::pair<int64_t, int64_t> covering(int64_t at, int axis) const {
    const int64_t before = at - w_.window[axis] + 1, step = w_.step[axis];
    const int64_t first = before <= 0 ? 0 : ceil_div(before, step);
    return {first, std::max(first, std::min(at / step + 1, w_.count[axis]))};
  }

  const Windows& w_;
  int64_t pitch_;
  LineVector<double> line_, row_;
};

// Of an item, by whole vectors: what is spread over the windows, what that amounts to at each
// element, and the same with means that the channels have in common.
struct Item {
  LineVector<double> share, by, added;
};

// Scratch of a worker.
struct Room {
  Spread spread;
  LineVector<double> line, along, map;

  explicit Room(const Windows& w)
      : spread(w), line(w.line(), 0.0), along(w.size[0] * w.size[1] * w.pitch()),
        map(w.count[0] * w.count[1] * w.pitch(), 0.0) {}
};

template <int BYTES>
TORCHCORR_INLINE void spread_map(const Windows& w, const double* map, Room& room, double* out) {
  for (int64_t z = 0; z < w.size[0]; ++z) {
    for (int64_t y = 0; y < w.size[1]; ++y, out += padded(w.size[2])) {
      const double* line = room.spread.template line<BYTES>(map, z, y);
      sum_neighbours<BYTES>(w.size[2], w.window[2], line, out);
    }
  }
}
TORCHCORR_FOR_CPUS(void, spread_map,
                   (const Windows& w, const double* map, Room& room, double* out),
                   (w, map, room, out))

// The means of a channel's windows, relative to its level, times what is spread.
template <int BYTES>
TORCHCORR_INLINE void multiply_means(const Windows& w, const float* x, double level,
                                     const Item& item, Room& room) {
  const int64_t pitch = w.pitch();
  for (int64_t row = 0; row < w.size[0] * w.size[1]; ++row) {
    widen_row<BYTES>(w.size[2], x + row * w.size[2], level, room.line.data());
    sum_row<BYTES>(w, room.line.data(), room.along.data() + row * pitch);
  }
  const double each = 1 / w.of_channel();
  for (int64_t row = 0; row < w.count[0] * w.count[1]; ++row) {
    const int64_t z = row / w.count[1] * w.step[0], y = row % w.count[1] * w.step[1];
    const Rows rows{room.along.data() + (z * w.size[1] + y) * pitch, w.window[0],
                    w.size[1] * pitch, w.window[1], pitch};
    for (int64_t i = 0; i < pitch; i += kDoubles) {
      Block<BYTES> sums = sum_of_rows<BYTES>(rows, i);
      sums.multiply(item.share.data() + row * pitch + i, each);
      sums.write(room.map.data() + row * pitch + i);
    }
  }
}

// to += (sums of `window` neighbours of `added`) - (x - level) * by; the largest size of the result.
template <int BYTES>
TORCHCORR_INLINE double add_row(int64_t n, int64_t window, const double* added, const float* x,
                                double level, const double* by, float* to) {
  constexpr int64_t lanes = lanes_of<double, BYTES>;
  Wide<BYTES> most = {};
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) {
    Block<BYTES> sums = {};
    for (int64_t j = 0; j < window; ++j) sums.add(added + i + j);
#pragma GCC unroll 4
    for (int v = 0; v < sums.vectors; ++v) {
      const int64_t at = i + v * lanes;
      Wide<BYTES> total = sums.values[v] - (widened<BYTES>(x + at) - level) * load<BYTES>(by + at);
      total += widened<BYTES>(to + at);
      put(total, to + at);
      const Wide<BYTES> size = total < 0 ? -total : total;
      most = size > most ? size : most;
    }
  }
  double largest = 0;
  for (int64_t l = 0; l < lanes; ++l) largest = std::max(largest, most[l]);
  for (; i < n; ++i) {
    double total = 0;
    for (int64_t j = 0; j < window; ++j) total += added[i + j];
    total += static_cast<double>(to[i]) - (static_cast<double>(x[i]) - level) * by[i];
    to[i] = static_cast<float>(total);
    largest = std::max(largest, std::abs(total));
  }
  return largest;
}

// The largest size of a channel's gradient.
template <int BYTES>
TORCHCORR_INLINE double add_through(const Windows& w, const float* x, double level,
                                    const Item& item, Room& room, float* to) {
  const bool own_means = item.added.empty();
  const int64_t n = w.size[2], wide = padded(n);
  if (own_means) multiply_means<BYTES>(w, x, level, item, room);
  double largest = 0;
  for (int64_t row = 0; row < w.size[0] * w.size[1]; ++row, x += n, to += n) {
    const double* by = item.by.data() + row * wide;
    const double* added = own_means ? room.spread.template line<BYTES>(
                                          room.map.data(), row / w.size[1], row % w.size[1])
                                    : item.added.data() + row * wide;
    largest = std::max(
        largest, add_row<BYTES>(n, own_means ? w.window[2] : 1, added, x, level, by, to));
  }
  return largest;
}
TORCHCORR_FOR_CPUS(double, add_through,
                   (const Windows& w, const float* x, double level, const Item& item, Room& room,
                    float* to),
                   (w, x, level, item, room, to))

// Adds what goes through the norms to a gradient (items, C, *size): of `share` (items, *positions) the
// means times it, spread, minus deviations times it, spread. Means are those of channels where none
// are given. The largest size of each part of the result.
Tensor dense_spread(const Tensor& x, const Tensor& levels, const Tensor& means, const Tensor& share,
                    Sizes window, Sizes stride, const Tensor& out) {
  const Windows w(x, window, stride);
  const int64_t parts = ceil_div(w.channels, kChannels), n = w.elements(), m = w.positions();
  const Tensor largest = new_float64({w.items, parts});
  const float* from = x.const_data_ptr<float>();
  const double *level = levels.const_data_ptr<double>(), *shares = share.const_data_ptr<double>();
  const double* mean = means.numel() == 0 ? nullptr : means.const_data_ptr<double>();
  float* to = out.mutable_data_ptr<float>();
  double* most = largest.mutable_data_ptr<double>();
  const int64_t work = kChannels * n * (w.window[1] + w.window[2]);
  parallel_for(0, w.items * parts, std::max<int64_t>(1, kGrain / work),
               [&](int64_t begin, int64_t end) {
    Room room(w);
    const int64_t elements = w.size[0] * w.size[1] * padded(w.size[2]), pitch = w.pitch();
    Item of{LineVector<double>(room.map.size(), 0.0), LineVector<double>(elements),
            LineVector<double>(mean ? elements : 0)};
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t item = unit / parts, first = unit % parts * kChannels;
      for (int64_t i = 0; i < m; ++i) {
        const int64_t at = i / w.count[2] * pitch + i % w.count[2];
        of.share[at] = shares[item * m + i];
        if (mean) room.map[at] = of.share[at] * mean[item * m + i];
      }
      spread_map(w, of.share.data(), room, of.by.data());
      if (mean) spread_map(w, room.map.data(), room, of.added.data());
      most[unit] = 0;
      for (int64_t c = first; c < std::min(first + kChannels, w.channels); ++c) {
        const int64_t i = item * w.channels + c;
        const double size = add_through(w, from + i * n, level[i], of, room, to + i * n);
        most[unit] = std::max(most[unit], size);
      }
    }
  });
  return largest;
}

// Adds x.
template <int BYTES, class T>
TORCHCORR_INLINE void add_any(int64_t n, const T* x, double* to) {
  constexpr int64_t lanes = lanes_of<double, BYTES>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) put(load<BYTES>(to + i) + widened<BYTES>(x + i), to + i);
  for (; i < n; ++i) to[i] += static_cast<double>(x[i]);
}
TORCHCORR_FOR_CPUS(void, add_any, (int64_t n, const float* x, double* to), (n, x, to))
TORCHCORR_FOR_CPUS(void, add_any, (int64_t n, const double* x, double* to), (n, x, to))

// For each element of a template the sum of what all windows see there, (C, *window).
Tensor dense_position_sums(const Tensor& x, Sizes window, Sizes stride) {
  const Windows w(x, window, stride);
  Sizes shape{w.channels};
  shape.insert(shape.end(), window.begin(), window.end());
  const Tensor out = new_float64(shape);
  const float* from = x.const_data_ptr<float>();
  double* to = out.mutable_data_ptr<double>();
  const int64_t n = w.elements(), line = w.size[2], below = w.count[0] * w.count[1];
  const int64_t lines = w.window[0] * w.window[1];
  parallel_for(0, w.channels, std::max<int64_t>(1, kGrain / (w.items * n)),
               [&](int64_t begin, int64_t end) {
    std::vector<double> plane(n), sums(line);
    for (int64_t c = begin; c < end; ++c) {
      std::fill(plane.begin(), plane.end(), 0.0);
      for (int64_t item = 0; item < w.items; ++item) {
        add_any(n, from + (item * w.channels + c) * n, plane.data());
      }
      for (int64_t v = 0; v < lines; ++v) {
        // Lines first, which are whole vectors.
        std::fill(sums.begin(), sums.end(), 0.0);
        for (int64_t row = 0; row < below; ++row) {
          const int64_t z = row / w.count[1] * w.step[0] + v / w.window[1];
          const int64_t y = row % w.count[1] * w.step[1] + v % w.window[1];
          add_any(line, plane.data() + (z * w.size[1] + y) * line, sums.data());
        }
        double* of = to + (c * lines + v) * w.window[2];
        for (int64_t k = 0; k < w.window[2]; ++k) {
          double total = 0;
          for (int64_t u = 0; u < w.count[2]; ++u) total += sums[k + u * w.step[2]];
          of[k] = total;
        }
      }
    }
  });
  return out;
}

}  // namespace
}  // namespace torchcorr::direct

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("dense_position_sums", TORCH_BOX(&torchcorr::direct::dense_position_sums));
  m.impl("dense_spread", TORCH_BOX(&torchcorr::direct::dense_spread));
}
