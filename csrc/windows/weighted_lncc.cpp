// The coefficient of two images in windows with weights, and its gradients: maps of each window's
// contributions, spread over its elements with the same weights, in slabs of the first axis.

#include <cstring>
#include <memory>
#include <optional>

#include "common/large_pages.h"
#include "windows/weighted_pass.h"

namespace torchcorr {
namespace weighted {
namespace {

constexpr int64_t kMapBytes = 8 << 20;  // of the maps of a slab

// Calls each(worker, lead, plane, unit) for all units of all planes, with one worker a thread.
template <class NewWorker, class Each>
void for_units(int64_t leads, int64_t planes, const Cut& cut, const NewWorker& worker,
               const Each& each) {
  const int64_t grain = std::max<int64_t>(1, kUnitElements / (cut.rows * cut.columns));
  torch::stable::parallel_for(0, leads * planes * cut.units(), grain, [&](int64_t i, int64_t end) {
    auto own = worker();
    for (; i < end; ++i) {
      const int64_t at = i / cut.units();
      each(own, at / planes, at % planes, i % cut.units());
    }
  });
}

struct Box {
  int64_t top, bottom, left, right;

  Box(const Cut& cut, int64_t unit, int64_t rows, int64_t columns) {
    const int64_t strip = unit / cut.segments, segment = unit % cut.segments;
    top = strip * cut.rows, bottom = std::min(rows, top + cut.rows);
    left = segment * cut.columns, right = std::min(columns, left + cut.columns);
  }
};

Cut windows_cut(const Layout& layout) {
  const Axis &y = layout.axis[1], &x = layout.axis[2];
  return Cut(y.count, x.count, y, x, kPlanes, y.step, x.step);
}

template <class T>
void all_scores(const Layout& layout, const Images<T>& images, double eps, T* out) {
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

// The windows along one axis that contain an element, and their weights there.
struct Containing {
  std::vector<int64_t> windows;
  std::vector<double> taps;

  void find(const Axis& axis, int64_t element, int64_t from, int64_t to) {
    windows.clear(), taps.clear();
    for (int64_t u = std::max(from, axis.from(element)); u < std::min(to, axis.to(element + 1));
         ++u) {
      windows.push_back(u - from);
      taps.push_back(axis.taps[element - axis.first(u)]);
    }
  }
};

// Where the maps of some planes of windows are in memory.
struct Maps {
  const double* first;
  int64_t pitch, lead;  // from one map, and from one lead, to the next
  int64_t from, to;     // planes
  int count;
};

// Maps spread over the elements of a strip, a row at a time.
class SpreadRows {
 public:
  SpreadRows(const Layout& layout, const Maps& maps, const Cut& cut)
      : layout_(layout), maps_(maps),
        pitch_(whole(cut.columns + layout.axis[2].window + 2 * kDoubles)),
        tall_((cut.rows + layout.axis[1].window) / layout.axis[1].step + 2),
        planes_(maps.count * tall_ * pitch_), line_(pitch_), joined_(pitch_),
        result_(kMaps * pitch_) {
    const Axis& x = layout.axis[2];
    for (int64_t i = x.window; i-- > 0;) reversed_.push_back(x.taps[i]);
    for (int64_t i = 0; i < x.window; ++i) shifted_.push_back(line_.data() + i);
  }

  template <class Emit>
  void run(int64_t lead, int64_t z, const Box& box, const Emit& emit) {
    const Axis &y = layout_.axis[1], &x = layout_.axis[2];
    const int64_t top = y.from(box.top), bottom = y.to(box.bottom);
    const int64_t left = x.from(box.left), right = x.to(box.right), n = right - left;
    in_z_.find(layout_.axis[0], z, maps_.from, maps_.to);
    for (int p = 0; p < maps_.count; ++p) {
      for (int64_t u = top; u < bottom; ++u) {
        const int64_t at = p * maps_.pitch + lead * maps_.lead + u * x.count + left;
        add(n, in_z_, maps_.first + at, layout_.map_row(), plane(p) + (u - top) * pitch_);
      }
    }
    // The first position that a window which contains an element of the box may begin at.
    const int64_t origin = box.left + x.before - x.window + 1;
    for (int64_t v = box.top; v < box.bottom; ++v) {
      in_y_.find(y, v, top, bottom);
      for (int p = 0; p < maps_.count; ++p) {
        add(n, in_y_, plane(p), pitch_, joined_.data());
        std::fill(line_.begin(), line_.end(), 0.0);
        for (int64_t u = 0; u < n; ++u) line_[(left + u) * x.step - origin] = joined_[u];
        add_rows(box.right - box.left, x.window, shifted_.data(), reversed_.data(),
                 result_.data() + p * pitch_);
      }
      emit(v, Row{result_.data(), pitch_});
    }
  }

 private:
  double* plane(int p) { return planes_.data() + p * tall_ * pitch_; }

  void add(int64_t n, const Containing& of, const double* from, int64_t pitch, double* to) {
    rows_.clear();
    for (int64_t u : of.windows) rows_.push_back(from + u * pitch);
    add_rows(n, static_cast<int64_t>(rows_.size()), rows_.data(), of.taps.data(), to);
  }

  const Layout& layout_;
  Maps maps_;
  int64_t pitch_, tall_;
  std::vector<double> planes_, line_, joined_, result_, reversed_;
  std::vector<const double*> shifted_, rows_;
  Containing in_z_, in_y_;
};

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
        maps_(out.weight ? kMaps : out.a && out.b ? kMapsOfBoth : kMapsOfOne) {}

  void run() {
    const Axis& z = layout_.axis[0];
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
    const int64_t most = kMapBytes / (maps_ * 8 * layout_.map_row());
    const int64_t slab = std::max({(most - kept) * z.step, z.window / 2, int64_t{4}});
    reserve(1, kept + ceil_div(slab, z.step) + 1);
    for (int64_t lead = 0; lead < leads; ++lead) slabs_of(lead, slab);
  }

 private:
  void reserve(int64_t leads, int64_t planes) {
    lead_ = planes * layout_.map_row();
    pitch_ = leads * lead_;
    memory_.reset(new double[maps_ * pitch_ + kDoubles]);
  }

  void slabs_of(int64_t lead, int64_t slab) {
    const Axis& z = layout_.axis[0];
    const int64_t row = layout_.map_row();
    int64_t begin = 0, end = 0;  // windows whose maps are in memory
    for (int64_t at = 0; at < z.size; at += slab) {
      const int64_t last = std::min(at + slab, z.size);
      const int64_t from = z.from(at), to = std::max(from, z.to(last));
      const int64_t kept = std::clamp<int64_t>(end - from, 0, to - from);
      for (int p = 0; p < maps_ && kept > 0; ++p) {
        double* map = memory_.get() + p * pitch_;
        std::memmove(map, map + (from - begin) * row, kept * row * 8);
      }
      begin = from, end = to;
      if (to > from + kept) windows_of(lead, 1, from + kept, to, kept);
      elements_of(lead, 1, at, last, from, to);
    }
  }

  // Maps of planes of windows [from, to), behind `kept` others.
  void windows_of(int64_t first, int64_t leads, int64_t from, int64_t to, int64_t kept) {
    const Cut cut = windows_cut(layout_);
    const Axis &y = layout_.axis[1], &x = layout_.axis[2];
    // A single map of factors is that of the image whose gradient is wanted.
    Images<T> images = images_;
    if (!out_.a && !out_.weight) std::swap(images.a, images.b);
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
                                     {weight, eps_, WindowRows<T>::fine, maps_}, to_maps);
                   });
        });
  }

  // Gradients of planes of elements [begin, end), from the maps of windows [from, to).
  void elements_of(int64_t first, int64_t leads, int64_t begin, int64_t end, int64_t from,
                   int64_t to) {
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
              elements(box.right - box.left, in, at + c * layout_.channel);
            }
          });
        });
  }

  void elements(int64_t n, Row in, int64_t at) const {
    const T *a = images_.a + at, *b = images_.b + at;
    const T* weight = images_.weight ? images_.weight + at : nullptr;
    if (out_.a) combine(n, in, Elements<T>{a, b, weight, 1, out_.a + at});
    if (out_.b) {
      combine(n, in, Elements<T>{b, a, weight, maps_ == kMapsOfOne ? 1 : 3, out_.b + at});
    }
    if (out_.weight) combine_weights(n, in, Elements<T>{a, b, weight, 1, out_.weight + at});
  }

  const Layout& layout_;
  Images<T> images_;
  const T* grad_;
  double eps_;
  Outputs<T> out_;
  int maps_;
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
    out[i] = needed[i] ? new_map(a, sizes_of(a)) : torch::stable::new_empty(a, Sizes{0});
  }
  if (a.numel() > 0 && (needed[0] || needed[1] || needed[2])) {
    with_real_type(a, "a", [&](auto zero) {
      using T = decltype(zero);
      T* to[3];
      for (int i = 0; i < 3; ++i) to[i] = needed[i] ? out[i].mutable_data_ptr<T>() : nullptr;
      Gradients<T>(layout, of.images<T>(), upstream.const_data_ptr<T>(), eps,
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
