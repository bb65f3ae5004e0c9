// The coefficient of two images in windows with weights, and its gradients: maps of each window's
// contributions, spread over its elements with the same weights, in slabs of the first axis.

#include <cmath>
#include <cstring>
#include <memory>
#include <optional>

#include "common/large_pages.h"
#include "common/parallel.h"
#include "windows/spread.h"
#include "windows/weighted_march.h"
#include "windows/weighted_spread.h"

namespace torchcorr {
namespace weighted {
namespace {

constexpr int64_t kMapBytes = 8 << 20;  // of the maps of a slab

// Calls each(worker, lead, plane, unit) for all units of all planes, with one worker a thread.
template <class NewWorker, class Each>
void for_units(int64_t leads, int64_t planes, const Cut& cut, const NewWorker& worker,
               const Each& each) {
  const int64_t grain = std::max<int64_t>(1, kUnitElements / (cut.rows * cut.columns));
  parallel_for(0, leads * planes * cut.units(), grain, [&](int64_t i, int64_t end) {
    auto own = worker();
    for (; i < end; ++i) {
      const int64_t at = i / cut.units();
      each(own, at / planes, at % planes, i % cut.units());
    }
  });
}

// Of each lead the mean of its finite elements with weight: the gradient of weights has squares of
// elements, which cancel about a level of their own. Parts do not depend on the number of threads.
template <class T>
std::vector<double> levels_of(int64_t leads, int64_t n, const T* x, const T* weight) {
  constexpr int64_t kPart = 1 << 15;
  const int64_t parts = ceil_div(n, kPart);
  std::vector<double> sum(leads * parts), count(leads * parts), level(leads);
  parallel_for(0, leads * parts, 4, [&](int64_t i, int64_t last) {
    for (; i < last; ++i) {
      const int64_t begin = i / parts * n + i % parts * kPart;
      const int64_t end = std::min(begin + kPart, (i / parts + 1) * n);
      for (int64_t k = begin; k < end; ++k) {
        const bool counts = weight[k] > 0 && std::isfinite(x[k]);
        sum[i] += counts ? static_cast<double>(x[k]) : 0.0;
        count[i] += counts;
      }
    }
  });
  for (int64_t lead = 0; lead < leads; ++lead) {
    double total = 0, elements = 0;
    for (int64_t i = lead * parts; i < (lead + 1) * parts; ++i) {
      total += sum[i], elements += count[i];
    }
    level[lead] = elements > 0 ? total / elements : 0.0;
  }
  return level;
}

Cut windows_cut(const Layout& layout) {
  const Axis &y = layout.axis[1], &x = layout.axis[2];
  return Cut(y.count, x.count, y, x, kPlanes, y.step, x.step);
}

template <class T>
void all_scores(const Layout& layout, const Images<T>& images, double eps, T* out) {
  if (is_marched(layout)) {
    march(layout, images, layout.shape.leads, 0, first_axis(layout).count,
          [&](int64_t lead, int64_t at, int64_t n, Row in) {
            scores(n, in, eps, out + lead * layout.map() + at);
          });
    return;
  }
  const Cut cut = windows_cut(layout);
  const Axis &y = layout.axis[1], &x = layout.axis[2];
  for_units(
      layout.shape.leads, layout.axis[0].count, cut,
      [&] { return WindowRows<T>(layout, images, cut); },
      [&](WindowRows<T>& rows, int64_t lead, int64_t z, int64_t unit) {
        const Box box(cut, unit, y.count, x.count);
        T* to = out + lead * layout.map() + z * layout.map_row() + box.left;
        rows.run(lead, z, box.top, box.bottom, box.left, box.right,
                 [&](int64_t u, Row in, double) {
                   scores(box.right - box.left, in, eps, to + u * x.count);
                 });
      });
}

template <class T>
struct Outputs {
  T *a, *b, *weight;  // null where a gradient is not needed
};

// One call of the gradients: which slabs there are, and the maps of one.
template <class T>
class Gradients {
 public:
  Gradients(const Layout& layout, const Images<T>& images, const T* grad, double eps,
            const Outputs<T>& out)
      : layout_(layout), images_(images), grad_(grad), eps_(eps), out_(out),
        maps_(out.weight ? kMaps : out.a && out.b ? kMapsOfBoth : kMapsOfOne),
        marched_(is_marched(layout)) {}

  void run() {
    const Axis& z = marched_ ? first_axis(layout_) : layout_.axis[0];
    const int64_t leads = layout_.shape.leads;
    const int64_t fitting = kMapBytes / (maps_ * 8 * layout_.map());
    if (fitting >= 1) {
      reserve(std::min(fitting, leads), z.count);
      for (int64_t lead = 0; lead < leads; lead += fitting) {
        const int64_t some = std::min(fitting, leads - lead);
        windows_of(lead, some, 0, z.count, 0);
        elements_of(lead, some, 0, z.size, 0, z.count);
      }
      return;
    }
    const int64_t kept = ceil_div(z.window - 1, z.step);
    const int64_t most = kMapBytes / (maps_ * 8 * row());
    const int64_t slab = std::max({(most - kept) * z.step, z.window / 2, int64_t{4}});
    reserve(1, kept + ceil_div(slab, z.step) + 1);
    for (int64_t lead = 0; lead < leads; ++lead) slabs_of(lead, slab);
  }

 private:
  // Of a map: what one step along the first axis of slabs is worth.
  int64_t row() const { return marched_ && layout_.ndim == 1 ? 1 : layout_.map_row(); }

  void reserve(int64_t leads, int64_t planes) {
    lead_ = planes * row();
    pitch_ = leads * lead_;
    memory_.reset(new double[maps_ * pitch_ + kDoubles]);
  }

  void slabs_of(int64_t lead, int64_t slab) {
    const Axis& z = marched_ ? first_axis(layout_) : layout_.axis[0];
    int64_t begin = 0, end = 0;  // windows whose maps are in memory
    for (int64_t at = 0; at < z.size; at += slab) {
      const int64_t last = std::min(at + slab, z.size);
      const int64_t from = z.from(at), to = std::max(from, z.to(last));
      const int64_t kept = std::clamp<int64_t>(end - from, 0, to - from);
      for (int p = 0; p < maps_ && kept > 0; ++p) {
        double* map = memory_.get() + p * pitch_;
        std::memmove(map, map + (from - begin) * row(), kept * row() * 8);
      }
      begin = from, end = to;
      if (to > from + kept) windows_of(lead, 1, from + kept, to, kept);
      elements_of(lead, 1, at, last, from, to);
    }
  }

  // Maps of planes of windows [from, to), behind `kept` others.
  void windows_of(int64_t first, int64_t leads, int64_t from, int64_t to, int64_t kept) {
    // A single map of factors is that of the image whose gradient is wanted.
    Images<T> images = images_;
    if (!out_.a && !out_.weight) {
      std::swap(images.a, images.b);
      std::swap(images.level_a, images.level_b);
    }
    if (marched_) {
      march_windows(images, first, leads, from, to, kept);
      return;
    }
    const Cut cut = windows_cut(layout_);
    const Axis &y = layout_.axis[1], &x = layout_.axis[2];
    for_units(
        leads, to - from, cut, [&] { return WindowRows<T>(layout_, images, cut); },
        [&](WindowRows<T>& rows, int64_t lead, int64_t plane, int64_t unit) {
          const Box box(cut, unit, y.count, x.count);
          const int64_t place = plane * layout_.map_row() + box.left;
          const T* grad = grad_ + (first + lead) * layout_.map() + from * layout_.map_row() + place;
          double* maps = memory_.get() + lead * lead_ + kept * layout_.map_row() + place;
          rows.run(first + lead, from + plane, box.top, box.bottom, box.left, box.right,
                   [&](int64_t u, Row in, double weight) {
                     double* to_maps[kMaps];
                     for (int p = 0; p < kMaps; ++p) {
                       to_maps[p] = maps + std::min(p, maps_ - 1) * pitch_ + u * x.count;
                     }
                     maps_of_windows(box.right - box.left, in, grad + u * x.count,
                                     {weight, eps_, images_.fine(), maps_}, to_maps);
                   });
        });
  }

  // Gradients of planes of elements [begin, end), from the maps of windows [from, to).
  void elements_of(int64_t first, int64_t leads, int64_t begin, int64_t end, int64_t from,
                   int64_t to) {
    if (marched_) {
      if (maps_ == kMapsOfOne) march_elements<kMapsOfOne>(first, leads, begin, end, from, to);
      if (maps_ == kMapsOfBoth) march_elements<kMapsOfBoth>(first, leads, begin, end, from, to);
      if (maps_ == kMaps) march_elements<kMaps>(first, leads, begin, end, from, to);
      return;
    }
    const Axis &y = layout_.axis[1], &x = layout_.axis[2];
    const Cut cut(y.size, x.size, y, x, maps_, 1, 1);
    const Maps maps{memory_.get(), pitch_, lead_, from, to, maps_};
    for_units(
        leads, end - begin, cut, [&] { return SpreadRows(layout_, maps, cut); },
        [&](SpreadRows& rows, int64_t lead, int64_t plane, int64_t unit) {
          const Box box(cut, unit, y.size, x.size);
          const int64_t place = (first + lead) * layout_.lead + (begin + plane) * layout_.plane;
          rows.run(lead, begin + plane, box, [&](int64_t v, Row in) {
            const int64_t at = place + v * layout_.row + box.left;
            for (int64_t c = 0; c < layout_.shape.channels; ++c) {
              elements(box.right - box.left, in, at + c * layout_.channel, first + lead);
            }
          });
        });
  }

  void march_windows(Images<T> images, int64_t first, int64_t leads, int64_t from, int64_t to,
                     int64_t kept) {
    const int64_t skip = first * layout_.lead;
    images.a += skip, images.b += skip;
    if (images.weight) images.weight += skip;
    if (images.level_a) images.level_a += first, images.level_b += first;
    const T* grad = grad_ + first * layout_.map() + from * row();
    const MapRule by{1.0, eps_, images_.fine(), maps_};
    march(layout_, images, leads, from, to, [&](int64_t lead, int64_t at, int64_t n, Row in) {
      double* to_maps[kMaps];
      for (int p = 0; p < kMaps; ++p) {
        to_maps[p] = memory_.get() + std::min(p, maps_ - 1) * pitch_ + lead * lead_ +
                     kept * row() + at;
      }
      maps_of_windows(n, in, grad + lead * layout_.map() + at, by, to_maps);
    });
  }

  template <int N>
  void march_elements(int64_t first, int64_t leads, int64_t begin, int64_t end, int64_t from,
                      int64_t to) {
    const double* maps[N];
    for (int p = 0; p < N; ++p) maps[p] = memory_.get() + p * pitch_;
    Sizes size, window, reach, count, stride;
    for (int i = 0; i < layout_.ndim; ++i) {
      const Axis& x = layout_.axis[i + 1 == layout_.ndim ? 2 : i];
      size.push_back(i == 0 ? end - begin : x.size);
      count.push_back(i == 0 ? to - from : x.count);
      // Windows begin `before` elements in front of their own.
      window.push_back(x.window), reach.push_back(x.window - x.before), stride.push_back(x.step);
    }
    const WindowLayout layout = spread_layout(leads, size, window, Sums<N>{});
    const SpreadSource<double, N> source(maps, count, reach, stride,
                                         begin - from * first_axis(layout_).step, lead_);
    const ImageStrides strides(layout_.shape);
    const int64_t skip = first * layout_.lead + begin * (layout_.ndim == 1 ? 1 : layout_.plane);
    const auto store = [&](const Stretch& s, Rows r) {
      for (int64_t c = 0; c < strides.channels; ++c) {
        elements(s.valid, Row{r.first, r.pitch}, skip + strides.at(s) + c * strides.channel,
                 first + s.lead);
      }
    };
    run_windows<Sums<N>>(layout, source, EachRow<decltype(store)>{store});
  }

  void elements(int64_t n, Row in, int64_t at, int64_t lead) const {
    const T *a = images_.a + at, *b = images_.b + at;
    const T* weight = images_.weight ? images_.weight + at : nullptr;
    const Levels level = images_.level(lead), swapped{level.b, level.a};
    if (out_.a) combine(n, in, Elements<T>{a, b, weight, 1, out_.a + at, level});
    if (out_.b) {
      const int map = maps_ == kMapsOfOne ? 1 : 3;
      combine(n, in, Elements<T>{b, a, weight, map, out_.b + at, swapped});
    }
    if (out_.weight) combine_weights(n, in, Elements<T>{a, b, weight, 1, out_.weight + at, level});
  }

  const Layout& layout_;
  Images<T> images_;
  const T* grad_;
  double eps_;
  Outputs<T> out_;
  int maps_;
  bool marched_;
  int64_t lead_ = 0, pitch_ = 0;
  std::unique_ptr<double[]> memory_;
};

// Contiguous tensors of one shape and dtype.
struct Operands {
  Tensor a, b, weight;
  bool masked;

  Operands(const Tensor& first, const Tensor& second, const std::optional<Tensor>& weights)
      : a(packed(first)), b(packed(second)), weight(weights ? packed(*weights) : a),
        masked(weights.has_value()) {
    for (const Tensor* x : {&b, &weight}) {
      STD_TORCH_CHECK(sizes_of(*x) == sizes_of(a) && x->scalar_type() == a.scalar_type(),
                      "a, b and weight must have one shape and one dtype");
    }
  }

  template <class T>
  Images<T> images() const {
    return {a.const_data_ptr<T>(), b.const_data_ptr<T>(),
            masked ? weight.const_data_ptr<T>() : nullptr};
  }
};

Tensor scores_of(const Tensor& a, const Tensor& b, const std::optional<Tensor>& weight,
                 const Tensor& taps, Sizes window, Sizes stride, Sizes before, Sizes count,
                 bool renormalize, double eps) {
  const Operands of(a, b, weight);
  const Layout layout(a, taps, window, stride, before, count, renormalize);
  Sizes shape = layout.shape.lead;
  shape.insert(shape.end(), count.begin(), count.end());
  Tensor out = new_map(a, shape);
  if (out.numel() == 0) return out;
  with_real_type(a, "a", [&](auto zero) {
    using T = decltype(zero);
    all_scores<T>(layout, of.images<T>(), eps, out.mutable_data_ptr<T>());
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> grads_of(const Tensor& grad, const Tensor& a, const Tensor& b,
                                            const std::optional<Tensor>& weight, const Tensor& taps,
                                            Sizes window, Sizes stride, Sizes before, Sizes count,
                                            bool renormalize, double eps, Sizes needed) {
  const Operands of(a, b, weight);
  const Layout layout(a, taps, window, stride, before, count, renormalize);
  const Tensor upstream = packed(grad);
  STD_TORCH_CHECK(grad.scalar_type() == a.scalar_type(), "grad and a must have one dtype");
  Tensor out[3];
  for (int i = 0; i < 3; ++i) {
    out[i] = needed[i] ? new_map(a, sizes_of(a)) : new_tensor(a, Sizes{0});
  }
  if (a.numel() > 0 && (needed[0] || needed[1] || needed[2])) {
    with_real_type(a, "a", [&](auto zero) {
      using T = decltype(zero);
      T* to[3];
      for (int i = 0; i < 3; ++i) to[i] = needed[i] ? out[i].mutable_data_ptr<T>() : nullptr;
      Images<T> images = of.images<T>();
      std::vector<double> level_a, level_b;
      if (needed[2] && of.masked) {
        level_a = levels_of(layout.shape.leads, layout.lead, images.a, images.weight);
        level_b = levels_of(layout.shape.leads, layout.lead, images.b, images.weight);
        images.level_a = level_a.data(), images.level_b = level_b.data();
      }
      Gradients<T>(layout, images, upstream.const_data_ptr<T>(), eps,
                   {to[0], to[1], to[2]})
          .run();
    });
  }
  return {out[0], out[1], out[2]};
}

}  // namespace
}  // namespace weighted
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_FRAGMENT(torchcorr_cpu, m) {
  m.def(
      "weighted_lncc(Tensor a, Tensor b, Tensor? weight, Tensor taps, int[] window, int[] stride,"
      " int[] before, int[] count, bool renormalize, float eps) -> Tensor");
  m.def(
      "weighted_lncc_grads(Tensor grad, Tensor a, Tensor b, Tensor? weight, Tensor taps,"
      " int[] window, int[] stride, int[] before, int[] count, bool renormalize, float eps,"
      " int[] needed) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("weighted_lncc", TORCH_BOX(&torchcorr::weighted::scores_of));
  m.impl("weighted_lncc_grads", TORCH_BOX(&torchcorr::weighted::grads_of));
}
