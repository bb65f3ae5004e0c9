// The coefficient of two images in each window, and its gradients: co-moments of windows merged
// from parts, and maps of each window's contributions spread over its elements, in slabs of the
// first axis whose maps stay small.

#include <cstring>
#include <memory>

#include "common/large_pages.h"
#include "windows/images.h"
#include "windows/pair_scores.h"
#include "windows/spread.h"

namespace torchcorr {
namespace {

constexpr int64_t kMapBytes = 8 << 20;  // of the maps of a slab
// How windows are summarised: float64 also needs the digits that rounding takes from its means.
template <class T>
using Policy = CoMoments<sizeof(T) == sizeof(double)>;

// Where windows lie along each axis: `before` elements in front of their own, among zeros.
struct Place {
  Sizes window, stride, before, count;

  // Elements that windows [first, last) along axis i span.
  int64_t span(size_t i, int64_t first, int64_t last) const {
    return (last - first - 1) * stride[i] + window[i];
  }
};

Place inner_place(const Tensor& a, const Sizes& window, const Sizes& stride) {
  const ImageShape shape(sizes_of(a), window.size());
  const WindowLayout checked(1, 1, shape.size, window, stride, Sums<1>{});
  Place place{window, stride, Sizes(window.size(), 0), {}};
  for (size_t i = 0; i < window.size(); ++i) {
    place.count.push_back((shape.size[i] - window[i]) / stride[i] + 1);
  }
  return place;
}

Sizes map_shape(const ImageShape& shape, const Place& place) {
  Sizes out = shape.lead;
  out.insert(out.end(), place.count.begin(), place.count.end());
  return out;
}

// Rows of two images with zeros around them, for windows from number `first` of the first axis on.
template <class T>
class PairSource {
 public:
  PairSource(const T* a, const T* b, const ImageShape& shape, const Place& place, int64_t first = 0)
      : images_{a, b}, strides_(shape) {
    const size_t front = 3 - shape.size.size();
    for (size_t i = 0; i < shape.size.size(); ++i) {
      size_[front + i] = shape.size[i];
      before_[front + i] = place.before[i] - (i == 0 ? first * place.stride[0] : 0);
    }
  }

  void load(const Stretch& s, int64_t n, Rows to) const {
    const int64_t z = s.z - before_[0], y = s.y - before_[1], x = s.x - before_[2];
    const bool exists = z >= 0 && z < size_[0] && y >= 0 && y < size_[1];
    const int64_t low = exists ? std::clamp<int64_t>(-x, 0, s.valid) : 0;
    const int64_t high = exists ? std::clamp<int64_t>(size_[2] - x, low, s.valid) : 0;
    const int64_t from = strides_.at({s.lead, z, y, x + low, 0});
    thread_local std::vector<double> memory;
    if (static_cast<int64_t>(memory.size()) < Policy<T>::planes * n) {
      memory.assign(Policy<T>::planes * n, 0.0);
    }
    for (int64_t c = 0; c < strides_.channels; ++c) {
      const Rows channel = c == 0 ? to : Rows{memory.data(), n};
      for (int i = 0; i < 2; ++i) {
        double* row = channel.plane(i);
        std::fill_n(row, low, 0.0);
        if (high > low) widen(high - low, images_[i] + from + c * strides_.channel, row + low);
        std::fill_n(row + high, n - high, 0.0);
      }
      for (int p = 2; p < Policy<T>::planes; ++p) std::fill_n(channel.plane(p), n, 0.0);
      if (c > 0) Policy<T>::merge(n, to, to, c, channel, 1, 1.0);
    }
  }

 private:
  const T* images_[2];
  ImageStrides strides_;
  int64_t size_[3] = {1, 1, 1}, before_[3] = {0, 0, 0};
};

constexpr int kMaps = 5;  // see window_grads_of

struct LnccRule {
  double share, eps;  // one over a window's elements; what is added to a variance
};

template <int BYTES>
TORCHCORR_INLINE PairScores<BYTES> pair_scores(int64_t count, const Rows& r, const LnccRule& by) {
  const auto of = [&](int p) TORCHCORR_FLAT { return read_some<BYTES>(count, r.plane(p)); };
  return {of(2), of(3), of(4), by.share, by.eps};
}

template <int BYTES, class T>
TORCHCORR_INLINE void scores(int64_t n, const Rows& r, const LnccRule& by, T* out) {
  for_vectors<BYTES>(n, [&](int64_t i, auto count) TORCHCORR_FLAT {
    write_some(count, pair_scores<BYTES>(count, r.at(i), by).clamped(), out + i);
  });
}

// The gradient of an element x of a is the sum over its windows of through * y - factor_a * x +
// offset_a, y being the element of b. Maps: through, factor_a, offset_a; and of both gradients
// factor_b, offset_b.
template <int BYTES, int N, class T>
TORCHCORR_INLINE void window_grads(int64_t n, const Rows& r, const T* grad, const LnccRule& by,
                                   double* const (&maps)[kMaps]) {
  for_vectors<BYTES>(n, [&](int64_t i, auto count) TORCHCORR_FLAT {
    const Wide<BYTES> mean_a = read_some<BYTES>(count, r.plane(0) + i);
    const Wide<BYTES> mean_b = read_some<BYTES>(count, r.plane(1) + i);
    const PairFactors<BYTES> of(pair_scores<BYTES>(count, r.at(i), by),
                                read_some<BYTES>(count, grad + i) * by.share);
    write_some(count, of.through, maps[0] + i);
    write_some(count, of.factor_a, maps[1] + i);
    write_some(count, of.factor_a * mean_a - of.through * mean_b, maps[2] + i);
    if constexpr (N == kMaps) {
      write_some(count, of.factor_b, maps[3] + i);
      write_some(count, of.factor_b * mean_b - of.through * mean_a, maps[4] + i);
    }
  });
}

template <class T>
TORCHCORR_INLINE void combined(int64_t n, const Rows& r, int map, const T* self, const T* other,
                               T* out) {
  const double *through = r.plane(0), *factor = r.plane(map), *offset = r.plane(map + 1);
  for (int64_t i = 0; i < n; ++i) {
    const double x = static_cast<double>(self[i]), y = static_cast<double>(other[i]);
    out[i] = static_cast<T>(y * through[i] - x * factor[i] + offset[i]);
  }
}

#define TORCHCORR_GRADS(name, N, T)                                                           \
  template <int BYTES>                                                                        \
  TORCHCORR_INLINE void name(int64_t n, const Rows& r, const T* grad, const LnccRule& by,     \
                             double* const(&maps)[kMaps]) {                                   \
    window_grads<BYTES, N>(n, r, grad, by, maps);                                             \
  }                                                                                           \
  TORCHCORR_FOR_CPUS(void, name,                                                              \
                     (int64_t n, const Rows& r, const T* grad, const LnccRule& by,            \
                      double* const(&maps)[kMaps]),                                           \
                     (n, r, grad, by, maps))
#define TORCHCORR_LNCC(T)                                                                         \
  TORCHCORR_FOR_CPUS(void, scores, (int64_t n, const Rows& r, const LnccRule& by, T* out),        \
                     (n, r, by, out))                                                             \
  TORCHCORR_GRADS(window_grads_of_one, 3, T)                                                      \
  TORCHCORR_GRADS(window_grads_of_both, kMaps, T)                                                 \
  TORCHCORR_CLONES void combine(int64_t n, const Rows& r, int map, const T* self, const T* other, \
                                T* out) {                                                         \
    combined(n, r, map, self, other, out);                                                        \
  }
TORCHCORR_LNCC(float)
TORCHCORR_LNCC(double)
#undef TORCHCORR_LNCC
#undef TORCHCORR_GRADS

template <class T>
struct ScoreSink {
  static constexpr int first_plane = 2;

  const WindowLayout& layout;
  LnccRule by;
  T* out;

  void store(const Stretch& s, Rows r) const {
    scores(s.valid, r, by, out + map_offset(layout, s));
  }
};

// Where a stretch begins in its item of a map.
int64_t offset_in_item(const WindowLayout& layout, Stretch s) {
  s.lead = 0;
  return map_offset(layout, s);
}

template <class T, int N>
struct WindowGradSink {
  static constexpr int first_plane = 0;

  const WindowLayout& layout;
  LnccRule by;
  const T* grad;
  int64_t grad_pitch;
  double* maps[kMaps];
  int64_t map_pitch;

  void store(const Stretch& s, Rows r) const {
    const int64_t at = offset_in_item(layout, s);
    double* to[kMaps];
    for (int p = 0; p < kMaps; ++p) to[p] = maps[p] + s.lead * map_pitch + at;
    const T* from = grad + s.lead * grad_pitch + at;
    if constexpr (N == kMaps) {
      window_grads_of_both(s.valid, r, from, by, to);
    } else {
      window_grads_of_one(s.valid, r, from, by, to);
    }
  }
};

template <class T, int N>
struct CombineSink {
  static constexpr int first_plane = 0;

  const WindowLayout& layout;
  ImageStrides strides;
  const T *a, *b;
  T *for_a, *for_b;

  void store(const Stretch& s, Rows r) const {
    for (int64_t c = 0; c < strides.channels; ++c) {
      const int64_t at = strides.at(s) + c * strides.channel;
      combine(s.valid, r, 1, a + at, b + at, for_a + at);
      if constexpr (N == kMaps) combine(s.valid, r, 3, b + at, a + at, for_b + at);
    }
  }
};

void check_pair(const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(sizes_of(a) == sizes_of(b), "a and b must have one shape");
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), "a and b must have one dtype");
}

Tensor scores_at(const Tensor& a, const Tensor& b, const Place& place, double eps) {
  if (is_half(a)) return in_type_of(a, scores_at(in_float32(a), in_float32(b), place, eps));
  check_pair(a, b);
  const ImageShape shape(sizes_of(a), place.window.size());
  Tensor out = new_map(a, map_shape(shape, place));
  if (out.numel() == 0) return out;
  Sizes size;
  for (size_t i = 0; i < place.count.size(); ++i) size.push_back(place.span(i, 0, place.count[i]));
  const WindowLayout layout(shape.leads, shape.channels, size, place.window, place.stride,
                            CoMoments<true>{});
  const Tensor first = packed(a), second = packed(b);
  const LnccRule by{1 / window_elements(shape, place.window), eps};
  with_real_type(first, "a", [&](auto zero) {
    using T = decltype(zero);
    const PairSource<T> source(first.const_data_ptr<T>(), second.const_data_ptr<T>(), shape, place);
    run_windows<Policy<T>>(layout, source, ScoreSink<T>{layout, by, out.mutable_data_ptr<T>()});
  });
  return out;
}

// The upstream gradient, both images and their gradients; `for_b` may be null.
template <class T>
struct Images {
  const T *grad, *a, *b;
  T *for_a, *for_b;
};

// One call of the gradients: which slabs there are, and the maps of one.
template <class T, int N>
class Gradients {
 public:
  Gradients(const ImageShape& shape, const Place& place, double eps, const Images<T>& of)
      : shape_(shape), place_(place), window_(place.window), stride_(place.stride),
        count_(place.count), strides_(shape), grad_(of.grad), a_(of.a), b_(of.b),
        for_a_(of.for_a), for_b_(of.for_b), by_{1 / window_elements(shape, window_), eps} {
    for (int64_t n : count_) map_ *= n;
    row_ = strides_.channel / shape.size[0];
    map_row_ = map_ / count_[0];
  }

  void run() {
    const int64_t fitting = kMapBytes / (N * 8 * map_);
    if (fitting >= 1) {
      memory_.reset(new double[N * map_ * std::min(fitting, shape_.leads)]);
      for (int64_t lead = 0; lead < shape_.leads; lead += fitting) {
        const int64_t leads = std::min(fitting, shape_.leads - lead);
        capacity_ = count_[0];
        windows_of(lead, leads, 0, count_[0], 0);
        elements_of(lead, leads, 0, shape_.size[0], 0, count_[0]);
      }
      return;
    }
    const int64_t k = window_[0], s = stride_[0];
    const int64_t kept = ceil_div(k - 1, s), most = kMapBytes / (N * 8 * map_row_);
    int64_t slab = std::max({(most - kept) * s, k / 2, int64_t{4}});
    // The march reads fewest elements for each window in blocks as long as windows.
    if (slab > k) slab -= slab % k;
    capacity_ = kept + ceil_div(slab, s) + 1;
    memory_.reset(new double[N * map_row_ * capacity_]);
    for (int64_t lead = 0; lead < shape_.leads; ++lead) slabs_of(lead, slab);
  }

 private:
  void slabs_of(int64_t lead, int64_t slab) {
    const int64_t k = window_[0], s = stride_[0], before = place_.before[0];
    int64_t begin = 0, end = 0;  // windows whose maps are in memory
    for (int64_t z = 0; z < shape_.size[0]; z += slab) {
      const int64_t last = std::min(z + slab, shape_.size[0]);
      const int64_t from = ceil_div(std::max<int64_t>(0, z + before - k + 1), s);
      const int64_t to = std::min(count_[0], (last - 1 + before) / s + 1);
      const int64_t kept = std::max<int64_t>(0, end - from);
      for (int p = 0; p < N && kept > 0; ++p) {
        std::memmove(map(p), map(p) + (from - begin) * map_row_, kept * map_row_ * 8);
      }
      begin = from;
      if (to > from + kept) windows_of(lead, 1, from + kept, to, kept);
      end = std::max(to, end);
      elements_of(lead, 1, z, last, from, to);
    }
  }

  double* map(int p) const { return memory_.get() + p * pitch_; }

  // Maps of windows [from, to) along the first axis, behind `kept` others.
  void windows_of(int64_t lead, int64_t leads, int64_t from, int64_t to, int64_t kept) {
    pitch_ = leads * capacity_ * map_row_;
    Sizes size;
    for (size_t i = 0; i < count_.size(); ++i) {
      size.push_back(i == 0 ? place_.span(0, from, to) : place_.span(i, 0, count_[i]));
    }
    const WindowLayout layout(leads, shape_.channels, size, window_, stride_, Policy<T>{});
    const int64_t skip = lead * strides_.lead;
    const PairSource<T> source(a_ + skip, b_ + skip, shape_, place_, from);
    WindowGradSink<T, N> sink{layout, by_, grad_ + lead * map_ + from * map_row_,
                              map_,   {},  capacity_ * map_row_};
    for (int p = 0; p < kMaps; ++p) sink.maps[p] = map(std::min(p, N - 1)) + kept * map_row_;
    run_windows<Policy<T>>(layout, source, sink);
  }

  // Gradients of elements [z, last) along the first axis, from the maps of windows [from, to).
  void elements_of(int64_t lead, int64_t leads, int64_t z, int64_t last, int64_t from, int64_t to) {
    Sizes size = shape_.size, count = count_, reach = window_;
    for (size_t i = 0; i < reach.size(); ++i) reach[i] -= place_.before[i];
    size[0] = last - z;
    count[0] = std::max<int64_t>(0, to - from);
    const WindowLayout layout = spread_layout(leads, size, window_, Sums<N>{});
    const double* maps[N];
    for (int p = 0; p < N; ++p) maps[p] = map(p);
    const SpreadSource<double, N> source(maps, count, reach, stride_, z - from * stride_[0],
                                         capacity_ * map_row_);
    const int64_t skip = lead * strides_.lead + z * row_;
    run_windows<Sums<N>>(
        layout, source,
        CombineSink<T, N>{layout, strides_, a_ + skip, b_ + skip, for_a_ + skip, for_b_ + skip});
  }

  const ImageShape& shape_;
  const Place& place_;
  const Sizes &window_, &stride_, &count_;
  ImageStrides strides_;
  const T *grad_, *a_, *b_;
  T *for_a_, *for_b_;
  LnccRule by_;
  int64_t map_ = 1, row_ = 1, map_row_ = 1, capacity_ = 0, pitch_ = 0;
  std::unique_ptr<double[]> memory_;
};

std::tuple<Tensor, Tensor> grads_at(const Tensor& grad, const Tensor& a, const Tensor& b,
                                    const Place& place, double eps, bool need_a, bool need_b) {
  if (is_half(a)) {
    const auto [for_a, for_b] =
        grads_at(in_float32(grad), in_float32(a), in_float32(b), place, eps, need_a, need_b);
    return {in_type_of(a, for_a), in_type_of(b, for_b)};
  }
  check_pair(a, b);
  STD_TORCH_CHECK(grad.scalar_type() == a.scalar_type(), "grad and a must have one dtype");
  const ImageShape shape(sizes_of(a), place.window.size());
  STD_TORCH_CHECK(sizes_of(grad) == map_shape(shape, place),
                  "grad must have the shape of the windows' map");
  const Sizes none{0};
  Tensor for_a = need_a ? new_map(a, sizes_of(a)) : new_tensor(a, none);
  Tensor for_b = need_b ? new_map(b, sizes_of(b)) : new_tensor(b, none);
  if (a.numel() == 0 || !(need_a || need_b)) return {for_a, for_b};
  const Tensor upstream = packed(grad), first = packed(a), second = packed(b);
  with_real_type(first, "a", [&](auto zero) {
    using T = decltype(zero);
    const T *g = upstream.const_data_ptr<T>(), *x = first.const_data_ptr<T>(),
            *y = second.const_data_ptr<T>();
    T *to_a = for_a.mutable_data_ptr<T>(), *to_b = for_b.mutable_data_ptr<T>();
    if (need_a && need_b) {
      Gradients<T, kMaps>(shape, place, eps, {g, x, y, to_a, to_b}).run();
    } else if (need_a) {
      Gradients<T, 3>(shape, place, eps, {g, x, y, to_a, nullptr}).run();
    } else {
      Gradients<T, 3>(shape, place, eps, {g, y, x, to_b, nullptr}).run();
    }
  });
  return {for_a, for_b};
}

Tensor lncc(const Tensor& a, const Tensor& b, Sizes window, Sizes stride, double eps) {
  return scores_at(a, b, inner_place(a, window, stride), eps);
}

std::tuple<Tensor, Tensor> lncc_grads(const Tensor& grad, const Tensor& a, const Tensor& b,
                                      Sizes window, Sizes stride, double eps, bool need_a,
                                      bool need_b) {
  return grads_at(grad, a, b, inner_place(a, window, stride), eps, need_a, need_b);
}

Tensor lncc_in_zeros(const Tensor& a, const Tensor& b, Sizes window, Sizes stride, Sizes before,
                     Sizes count, double eps) {
  return scores_at(a, b, {window, stride, before, count}, eps);
}

std::tuple<Tensor, Tensor> lncc_in_zeros_grads(const Tensor& grad, const Tensor& a, const Tensor& b,
                                               Sizes window, Sizes stride, Sizes before,
                                               Sizes count, double eps, bool need_a, bool need_b) {
  return grads_at(grad, a, b, {window, stride, before, count}, eps, need_a, need_b);
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr, CPU, m) {
  m.impl("lncc", TORCH_BOX(&torchcorr::lncc));
  m.impl("lncc_grads", TORCH_BOX(&torchcorr::lncc_grads));
}

STABLE_TORCH_LIBRARY_FRAGMENT(torchcorr_cpu, m) {
  m.def(
      "lncc_in_zeros(Tensor a, Tensor b, int[] window, int[] stride, int[] before, int[] count,"
      " float eps) -> Tensor");
  m.def(
      "lncc_in_zeros_grads(Tensor grad, Tensor a, Tensor b, int[] window, int[] stride,"
      " int[] before, int[] count, float eps, bool need_a, bool need_b) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("lncc_in_zeros", TORCH_BOX(&torchcorr::lncc_in_zeros));
  m.impl("lncc_in_zeros_grads", TORCH_BOX(&torchcorr::lncc_in_zeros_grads));
}
