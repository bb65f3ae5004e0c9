// Correlation by its definition, for small templates: score(u) = sum_v image(u s + v) template(v).
//
// A stride s splits template and image into phases v = s q + r, and each phase is a correlation of
// stride one of the view image[r::s]. Forward and input gradient are therefore one loop, a sum of
// planes of stride one; only origins, views and the order of the coefficients differ.

#include "direct/correlate.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <map>
#include <optional>
#include <type_traits>

#include "common/large_pages.h"
#include "common/parallel.h"
#include "direct/dense.h"
#include "direct/dense_taps.h"
#include "direct/geometry.h"
#include "direct/kernels.h"
#include "direct/template_grad.h"

namespace torchcorr::direct {
namespace {

// The coefficients of every template, phase by phase; rows and columns reversed for the gradient.
template <class T>
class PackedCoefficients {
 public:
  PackedCoefficients(const Geometry& g, const std::vector<Phase>& phases, const T* templ,
                     bool reverse) {
    for (const Lead& lead : g.leads) first_.emplace(lead.templ, 0);
    values_.resize(first_.size() * g.terms());
    T* to = values_.data();
    for (auto& [offset, first] : first_) {
      first = to - values_.data();
      for (const Phase& p : phases) {
        for (int64_t i = 0; i < g.channels * p.count[0] * p.count[1]; ++i) {
          const int64_t c = i / p.count[1] / p.count[0], y = i % p.count[1];
          const Axes3 q{i / p.count[1] % p.count[0], reverse ? p.count[1] - 1 - y : y, 0};
          const T* from = templ + offset + c * g.templ_channel;
          for (int a = 0; a < 3; ++a) from += (q[a] * g.step[a] + p.start[a]) * g.templ_stride[a];
          const int64_t step = g.step[2] * g.templ_stride[2], n = p.count[2];
          for (int64_t x = 0; x < n; ++x) *to++ = from[(reverse ? n - 1 - x : x) * step];
        }
      }
    }
  }

  const T* data() const { return values_.data(); }
  int64_t first(const Lead& lead) const { return first_.at(lead.templ); }
  bool finite() const {
    return std::all_of(values_.begin(), values_.end(), [](T t) { return std::isfinite(t); });
  }

 private:
  std::map<int64_t, int64_t> first_;
  std::vector<T> values_;
};

template <class T>
void run_sums(const std::vector<SumOfPlanes<T>>& sums, int64_t terms) {
  std::vector<int64_t> first{0};
  int64_t outputs = 0;
  for (const SumOfPlanes<T>& sum : sums) {
    first.push_back(first.back() + sum.size[0] * RowBlocks(sum.size[1]).count());
    outputs += sum.size[0] * sum.size[1] * sum.size[2];
  }
  if (outputs == 0) return;
  const int64_t grain = std::max<int64_t>(1, kGrainTerms * first.back() / (outputs * terms + 1));
  const auto correlate = kernels<T>().correlate;
  parallel_for(0, first.back(), grain, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch;
    size_t j = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
    for (int64_t item = begin; item < end; ++item) {
      while (item >= first[j + 1]) ++j;
      const int64_t blocks = RowBlocks(sums[j].size[1]).count(), i = item - first[j];
      correlate(sums[j], i / blocks, i % blocks, scratch);
    }
  });
}

// `first` is where the coefficients of each template begin.
template <class T>
void run_dense_sums(const DenseSums<T>& sums, const std::vector<const T*>& first, T* output,
                    const T* norms = nullptr) {
  const auto row = [&](int64_t t, const Plane& p, int64_t r) {
    return first[t] + p.coefficients + r * p.columns;
  };
  const DenseCoefficients<T> packed(sums.planes, static_cast<int64_t>(first.size()), 1, row);
  run_dense(sums, packed, dense_output(sums, output, norms));
}

// Whether the coefficients of a template lie in the order in which they would be packed.
bool in_order(const Geometry& g) {
  const Axes3& n = g.window;
  const Axes3 packed{n[1] * n[2], n[2], 1};
  for (int a = 0; a < 3; ++a) {
    if (n[a] > 1 && g.templ_stride[a] != packed[a]) return false;
  }
  return g.step == Axes3{1, 1, 1} && g.templ_channel == product(n);
}

template <class T>
void correlate(const Geometry& g, const T* image, const T* templ, T* score,
               const T* norms = nullptr) {
  const std::vector<Phase> phases = split_phases(g);
  const auto leads = dense_leads(g);
  std::optional<PackedCoefficients<T>> packed;
  if (!leads || !in_order(g)) packed.emplace(g, phases, templ, false);
  const auto coefficients = [&](const Lead& lead) {
    return packed ? packed->data() + packed->first(lead) : templ + lead.templ;
  };
  std::vector<Plane> planes;
  Axes3 stride;
  for (int a = 0; a < 3; ++a) stride[a] = g.image_stride[a] * g.step[a];
  for (const Phase& p : phases) {
    for (int64_t i = 0; i < g.channels * p.count[0] && p.plane() > 0; ++i) {
      Plane plane{i / p.count[0] * g.image_channel,
                  p.first + i * p.plane(),
                  {},
                  {i % p.count[0], 0, 0},
                  p.count[1],
                  p.count[2]};
      for (int a = 0; a < 3; ++a) {
        plane.source += p.start[a] * g.image_stride[a];
        plane.size[a] = strided_count(g.size[a], p.start[a], g.step[a]);
      }
      planes.push_back(plane);
    }
  }
  if (leads) {
    DenseSums<T> sums{std::move(planes), {}, {}, image, stride, g.output, g.score_stride};
    for (const Lead& lead : leads->images) sums.members.push_back({lead.image, lead.score});
    std::vector<const T*> first;
    for (const Lead& lead : leads->templates) {
      sums.outputs.push_back(lead.score - leads->templates[0].score);
      first.push_back(coefficients(lead));
    }
    return run_dense_sums(sums, first, score, norms);
  }
  STD_TORCH_CHECK(norms == nullptr, "scores in one step need many templates for each image");
  std::vector<SumOfPlanes<T>> sums;
  for (const Lead& lead : g.leads) {
    sums.push_back({&planes, image + lead.image, coefficients(lead), score + lead.score, stride,
                    g.output, g.score_stride});
  }
  run_sums(sums, g.terms());
}

// Where the gradient's elements of a phase are written: sums over templates without planes.
template <class T>
DenseSums<T> dense_gradient(const Geometry& g, const DenseLeads& leads, const Phase& p,
                            const T* score) {
  DenseSums<T> sums{{}, {}, {}, score, g.score_stride, {}, {}};
  int64_t start = 0;
  for (int a = 0; a < 3; ++a) {
    sums.size[a] = strided_count(g.size[a], p.start[a], g.step[a]);
    sums.output_stride[a] = g.image_stride[a] * g.step[a];
    start += p.start[a] * g.image_stride[a];
  }
  for (const Lead& lead : leads.images) sums.members.push_back({lead.score, lead.image + start});
  for (int64_t c = 0; c < g.channels; ++c) sums.outputs.push_back(c * g.image_channel);
  return sums;
}

template <class T>
void dense_input_grad(const Geometry& g, const DenseLeads& leads, const std::vector<Phase>& phases,
                      const PackedCoefficients<T>& packed, const T* score, T* image) {
  for (const Phase& p : phases) {
    DenseSums<T> sums = dense_gradient(g, leads, p, score);
    for (const Lead& lead : leads.templates) {
      for (int64_t z = 0; z < p.count[0] && p.plane() > 0; ++z) {
        sums.planes.push_back({lead.score - leads.templates[0].score,
                               packed.first(lead) + p.first + z * p.plane(),
                               g.output,
                               {-z, 1 - p.count[1], 1 - p.count[2]},
                               p.count[1],
                               p.count[2]});
      }
    }
    std::vector<const T*> first;
    for (int64_t c = 0; c < g.channels; ++c) {
      first.push_back(packed.data() + c * p.count[0] * p.plane());
    }
    run_dense_sums(sums, first, image);
  }
}

// `step` lies between the templates.
template <class T>
void dense_input_grad_by_taps(const Geometry& g, const DenseLeads& leads,
                              const std::vector<Phase>& phases, int64_t step, const T* score,
                              const T* templ, T* image) {
  std::vector<int64_t> sources;
  for (const Lead& lead : leads.templates) {
    sources.push_back(lead.score - leads.templates[0].score);
  }
  const int64_t number = static_cast<int64_t>(sources.size());
  for (const Phase& p : phases) {
    std::vector<Plane> taps;
    for (int64_t i = 0; i < p.count[0] * p.plane(); ++i) {
      const Axes3 tap{i / p.plane(), i / p.count[2] % p.count[1], i % p.count[2]};
      int64_t from = leads.templates[0].templ;
      for (int a = 0; a < 3; ++a) from += (tap[a] * g.step[a] + p.start[a]) * g.templ_stride[a];
      taps.push_back({0, from, {}, {}, 1, number});
    }
    const auto row = [&](int64_t c, const Plane& tap, int64_t) {
      return templ + tap.coefficients + c * g.templ_channel;
    };
    DenseCoefficients<T> packed(taps, g.channels, step, row);
    const DenseTaps<T> of{dense_gradient(g, leads, p, score), p.count, g.output, sources,
                          std::move(packed)};
    of.run(dense_output(of.sums, image));
  }
}

// Returns false and writes nothing if a template is not finite: zero padding would spread NaN.
template <class T>
bool input_grad(const Geometry& g, const T* score, const T* templ, T* image) {
  const std::vector<Phase> phases = split_phases(g);
  const auto leads = g.channels >= kFewestTemplates ? dense_leads(g) : std::nullopt;
  if (leads && is_quick_by_taps(g, static_cast<int64_t>(leads->templates.size()))) {
    if (const auto step = even_step(leads->templates)) {
      dense_input_grad_by_taps(g, *leads, phases, *step, score, templ, image);
      return true;
    }
  }
  const PackedCoefficients<T> packed(g, phases, templ, true);
  if (!packed.finite()) return false;
  if (leads) {
    dense_input_grad(g, *leads, phases, packed, score, image);
    return true;
  }
  const auto groups = group_leads(g, &Lead::image);
  std::vector<std::vector<Plane>> planes;
  planes.reserve(groups.size() * phases.size());
  std::vector<SumOfPlanes<T>> sums;
  for (const auto& group : groups) {
    for (const Phase& p : phases) {
      std::vector<Plane>& of_group = planes.emplace_back();
      for (const Lead& lead : group) {
        for (int64_t z = 0; z < p.count[0] && p.plane() > 0; ++z) {
          of_group.push_back({lead.score,
                              packed.first(lead) + p.first + z * p.plane(),
                              g.output,
                              {-z, 1 - p.count[1], 1 - p.count[2]},
                              p.count[1],
                              p.count[2]});
        }
      }
      SumOfPlanes<T> sum{&of_group, score, nullptr, nullptr, g.score_stride, {}, {}};
      int64_t start = group.front().image;
      for (int a = 0; a < 3; ++a) {
        sum.size[a] = strided_count(g.size[a], p.start[a], g.step[a]);
        sum.output_stride[a] = g.image_stride[a] * g.step[a];
        start += p.start[a] * g.image_stride[a];
      }
      for (int64_t c = 0; c < g.channels; ++c) {
        sum.coefficients = packed.data() + c * p.count[0] * p.plane();
        sum.output = image + start + c * g.image_channel;
        sums.push_back(sum);
      }
    }
  }
  run_sums(sums, g.terms());
  return true;
}

enum class Target { score, image, templ };

// The definition, one product at a time: complex numbers, and templates that are not finite.
template <Target target, class Wide, class T>
void by_definition(const Geometry& g, T* score, T* image, T* templ, int64_t numel) {
  std::vector<Wide> sums(numel);
  const auto conjugate = [](Wide w) {
    if constexpr (std::is_floating_point_v<Wide>)
      return w;
    else
      return std::conj(w);
  };
  const int64_t outputs = g.output[0] * g.output[1] * g.output[2];
  const int64_t window = g.window[0] * g.window[1] * g.window[2];
  for (const Lead& lead : g.leads) {
    for (int64_t i = 0; i < outputs; ++i) {
      const Axes3 u{i / g.output[2] / g.output[1], i / g.output[2] % g.output[1], i % g.output[2]};
      for (int64_t j = 0; j < g.channels * window; ++j) {
        const int64_t w = j % window;
        const Axes3 v{w / g.window[2] / g.window[1], w / g.window[2] % g.window[1],
                      w % g.window[2]};
        int64_t s = lead.score, m = lead.image + j / window * g.image_channel;
        int64_t t = lead.templ + j / window * g.templ_channel;
        for (int a = 0; a < 3; ++a) {
          s += u[a] * g.score_stride[a];
          m += (u[a] * g.step[a] + v[a]) * g.image_stride[a];
          t += v[a] * g.templ_stride[a];
        }
        if constexpr (target == Target::score) sums[s] += Wide(image[m]) * Wide(templ[t]);
        if constexpr (target == Target::image) sums[m] += Wide(score[s]) * conjugate(templ[t]);
        if constexpr (target == Target::templ) sums[t] += Wide(score[s]) * conjugate(image[m]);
      }
    }
  }
  T* out = target == Target::score ? score : target == Target::image ? image : templ;
  for (int64_t i = 0; i < numel; ++i) out[i] = static_cast<T>(sums[i]);
}

// Conjugate views do not arrive here: the dispatcher resolves them first.
template <Target target, class T>
void run(const Tensor& score, const Tensor& image, const Tensor& templ, const Sizes& stride,
         int64_t numel) {
  const Geometry g(score, image, templ, stride);
  T* s = static_cast<T*>(score.data_ptr());
  T* m = static_cast<T*>(image.data_ptr());
  T* t = static_cast<T*>(templ.data_ptr());
  if constexpr (std::is_floating_point_v<T>) {
    if constexpr (target == Target::score) return correlate<T>(g, m, t, s);
    if constexpr (target == Target::templ) return template_grad<T>(g, s, m, t);
    if (target == Target::image && input_grad<T>(g, s, t, m)) return;
    by_definition<target, double>(g, s, m, t, numel);
  } else {
    by_definition<target, std::complex<double>>(g, s, m, t, numel);
  }
}

template <Target target>
void dispatch(const Tensor& score, const Tensor& image, const Tensor& templ, const Sizes& stride) {
  STD_TORCH_CHECK(
      score.scalar_type() == image.scalar_type() && image.scalar_type() == templ.scalar_type(),
      "the tensors of a correlation must share one dtype");
  STD_TORCH_CHECK(!stride.empty() && stride.size() <= 3 &&
                      image.dim() > static_cast<int64_t>(stride.size()) &&
                      templ.dim() > static_cast<int64_t>(stride.size()) &&
                      score.dim() >= static_cast<int64_t>(stride.size()),
                  "a correlation has one to three axes after its channel axis");
  const Tensor& out = target == Target::score ? score : target == Target::image ? image : templ;
  const int64_t numel = out.numel();
  if (numel == 0) return;
  switch (score.scalar_type()) {
    case ScalarType::Float:
      return run<target, float>(score, image, templ, stride, numel);
    case ScalarType::Double:
      return run<target, double>(score, image, templ, stride, numel);
    case ScalarType::ComplexFloat:
      return run<target, std::complex<float>>(score, image, templ, stride, numel);
    case ScalarType::ComplexDouble:
      return run<target, std::complex<double>>(score, image, templ, stride, numel);
    default:
      STD_TORCH_CHECK(false, "correlate_direct takes float32, float64, complex64 or complex128");
  }
}

Tensor unit_rows(const Tensor& x) {
  return x.dim() > 0 && x.stride(x.dim() - 1) != 1 ? torch::stable::contiguous(x) : x;
}

// Expanded axes stay as they are: copying single blocks costs less than copying every lead.
Tensor unit_rows_unless_expanded(const Tensor& x) {
  for (int64_t axis = 0; axis < x.dim(); ++axis) {
    if (x.stride(axis) == 0) return x;
  }
  return unit_rows(x);
}

}  // namespace

Tensor correlate_direct(const Tensor& input, const Tensor& templ, Sizes stride) {
  const int64_t ndim = static_cast<int64_t>(stride.size());
  const int64_t batch = std::max(input.dim(), templ.dim()) - ndim - 1;
  Sizes shape(batch + ndim, 1);
  for (const Tensor* x : {&input, &templ}) {
    const int64_t lead = x->dim() - ndim - 1;
    for (int64_t i = 0; i < lead; ++i) {
      if (x->size(i) != 1) shape[batch - lead + i] = x->size(i);
    }
  }
  for (int64_t i = 0; i < ndim; ++i) {
    const int64_t left = input.size(input.dim() - ndim + i) - templ.size(templ.dim() - ndim + i);
    STD_TORCH_CHECK(left >= 0, "template is larger than input along axis ", i - ndim);
    shape[batch + i] = left / stride[i] + 1;
  }
  const Tensor score = new_map(input, shape);
  dispatch<Target::score>(score, unit_rows_unless_expanded(input), templ, stride);
  return score;
}

namespace {

// Scores of images (items, 1, C, *size) with templates (K, C, *window): sums times norms
// (items, *positions) within [-1, 1].
Tensor correlate_direct_scores(const Tensor& input, const Tensor& templ, Sizes stride,
                               const Tensor& norms) {
  const int64_t ndim = static_cast<int64_t>(stride.size());
  Sizes shape{input.size(0), templ.size(0)};
  for (int64_t i = 0; i < ndim; ++i) {
    shape.push_back((input.size(3 + i) - templ.size(2 + i)) / stride[i] + 1);
  }
  const Tensor score = new_map(input, shape), by = packed(norms);
  correlate<float>(Geometry(score, input, templ, stride), input.const_data_ptr<float>(),
                   templ.const_data_ptr<float>(), score.mutable_data_ptr<float>(),
                   by.const_data_ptr<float>());
  return score;
}

// Zeros for an empty batch, since nothing would write the gradient.
Tensor new_gradient(const Tensor& like, const Sizes& shape) {
  return like.numel() == 0 ? torch::stable::new_zeros(like, shape) : new_map(like, shape);
}

Tensor correlate_direct_input_grad(const Tensor& grad, const Tensor& templ, Sizes input_shape,
                                   Sizes stride) {
  const Tensor input = new_gradient(grad, input_shape);
  if (grad.numel() > 0) dispatch<Target::image>(unit_rows(grad), input, templ, stride);
  return input;
}

Tensor correlate_direct_template_grad(const Tensor& grad, const Tensor& input, Sizes template_shape,
                                      Sizes stride) {
  const Tensor templ = new_gradient(grad, template_shape);
  if (grad.numel() == 0) return templ;
  dispatch<Target::templ>(unit_rows(grad), unit_rows_unless_expanded(input), templ, stride);
  return templ;
}

}  // namespace
}  // namespace torchcorr::direct

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("correlate_direct", TORCH_BOX(&torchcorr::direct::correlate_direct));
  m.impl("correlate_direct_scores", TORCH_BOX(&torchcorr::direct::correlate_direct_scores));
  m.impl("correlate_direct_input_grad", TORCH_BOX(&torchcorr::direct::correlate_direct_input_grad));
  m.impl("correlate_direct_template_grad",
         TORCH_BOX(&torchcorr::direct::correlate_direct_template_grad));
}
