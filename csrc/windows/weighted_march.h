// Windows whose elements have weights, by the march: one cost for any window whose own weights are
// all one. Planes are those of weighted_rows.h, with sums of squares in the place of variances.
#pragma once

#include "windows/weighted_pass.h"

namespace torchcorr::weighted {

// Merges summaries by their own weights, not by how many elements they have.
template <bool Fine>
struct WeightedMoments {
  static constexpr int planes = Fine ? kPlanes : kWeight + 1;
  static void merge(int64_t n, Rows out, Rows a, double na, Rows b, double nb, double weight);
  static void windows(const WindowAxis& axis, int64_t count, double weight, Rows in, Rows suffix,
                      Rows out);
};

// Elements of both images as summaries; `weight` may be null.
void load_elements(int64_t n, const float* a, const float* b, const float* weight,
                   const Levels& level, Rows to);
void load_elements(int64_t n, const double* a, const double* b, const double* weight,
                   const Levels& level, Rows to);
// Sums of squares become variances.
void divide_by_weight(int64_t n, Rows r);

// Rows of both images and of what surrounds them: zeros of weight 0 or 1.
template <class T, bool Fine>
struct SurroundedPair {
  using Policy = WeightedMoments<Fine>;

  Images<T> images;
  ImageStrides strides;
  int64_t size[3], before[3];  // axes (z, y, x); elements that are read before the first
  double outside;

  void load(const Stretch& s, int64_t n, Rows to) const {
    const int64_t z = s.z - before[0], y = s.y - before[1], x = s.x - before[2];
    const bool exists = z >= 0 && z < size[0] && y >= 0 && y < size[1];
    const int64_t low = std::clamp<int64_t>(-x, 0, s.valid);
    const int64_t high = exists ? std::clamp<int64_t>(size[2] - x, low, s.valid) : low;
    const int64_t from = s.lead * strides.lead + z * strides.plane + y * strides.row + x + low;
    const Levels level = images.level(s.lead);
    double around[kPlanes] = {};
    if (outside > 0) around[kMeanA] = -level.a, around[kMeanB] = -level.b;
    around[kWeight] = outside;
    thread_local std::vector<double> memory;
    if (static_cast<int64_t>(memory.size()) < Policy::planes * n) {
      memory.assign(Policy::planes * n, 0.0);
    }
    for (int64_t c = 0; c < strides.channels; ++c) {
      const Rows channel = c == 0 ? to : Rows{memory.data(), n};
      for (int p = 0; p < Policy::planes; ++p) {
        std::fill_n(channel.plane(p), n, around[p]);
      }
      if (high > low) {
        const int64_t at = from + c * strides.channel;
        load_elements(high - low, images.a + at, images.b + at,
                      images.weight == nullptr ? nullptr : images.weight + at, level,
                      channel.at(low));
      }
      if (c > 0) Policy::merge(n, to, to, 1, channel, 1, 1.0);
    }
  }
};

// Boxes of more elements than this along an axis are marched over, at one cost for all of them; in
// the others the elements of an axis are merged at once.
constexpr int64_t kMostAtOnce = 15;

inline bool is_marched(const Layout& layout) {
  bool box = true;
  int64_t most = 1;
  for (const Axis& x : layout.axis) {
    for (int64_t i = 0; i < x.window; ++i) box &= x.taps[i] == 1;
    most = std::max(most, x.window);
  }
  return box && most > kMostAtOnce;
}

// The first axis of lines is their only one, and it is axis 2 of a layout.
inline const Axis& first_axis(const Layout& layout) { return layout.axis[layout.ndim == 1 ? 2 : 0]; }

// Hands each row of summaries to a function.
template <class Each>
struct EachRow {
  static constexpr int first_plane = 0;

  const Each& each;

  void store(const Stretch& s, Rows r) const { each(s, r); }
};

// Marches over windows [from, to) of the first axis. Calls store(stretch, row) with windows counted
// from `from`.
template <bool Fine, class T, class Store>
void march_as(const Layout& layout, const Images<T>& images, int64_t leads, int64_t from,
              int64_t to, const Store& store) {
  using Source = SurroundedPair<T, Fine>;
  const ImageShape& shape = layout.shape;
  Source source{images, ImageStrides(shape), {1, 1, 1}, {0, 0, 0}, layout.renormalize ? 0.0 : 1.0};
  Sizes size, window, stride;
  for (int i = 0; i < layout.ndim; ++i) {
    const Axis& x = layout.axis[i + 1 == layout.ndim ? 2 : i];
    const int64_t first = i == 0 ? from : 0, last = i == 0 ? to : x.count;
    size.push_back((last - first - 1) * x.step + x.window);
    window.push_back(x.window), stride.push_back(x.step);
    source.size[3 - layout.ndim + i] = x.size;
    source.before[3 - layout.ndim + i] = -x.first(first);
  }
  const WindowLayout windows(leads, shape.channels, size, window, stride,
                             typename Source::Policy{});
  const auto store_row = [&](const Stretch& s, Rows r) {
    divide_by_weight(s.valid, r);
    Stretch in_item = s;
    in_item.lead = 0;
    store(s.lead, map_offset(windows, in_item), s.valid, Row{r.first, r.pitch});
  };
  run_windows<typename Source::Policy>(windows, source, EachRow<decltype(store_row)>{store_row});
}

template <class T, class Store>
void march(const Layout& layout, const Images<T>& images, int64_t leads, int64_t from, int64_t to,
           const Store& store) {
  (images.fine() ? march_as<true, T, Store> : march_as<false, T, Store>)(layout, images, leads,
                                                                         from, to, store);
}

}  // namespace torchcorr::weighted
