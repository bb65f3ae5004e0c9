// The first step of a score's gradient, over broadcast leads.

#include <algorithm>
#include <cmath>

#include "common.h"

namespace torchcorr {
namespace {

constexpr int64_t kStretch = 2048;  // elements of a row that are done at once
constexpr int64_t kGrain = 8;       // stretches that are worth another thread

// A tensor read along the axes of a larger one, right aligned from `behind` axes before its end.
struct View {
  std::vector<int64_t> stride;

  View(const Tensor& x, int64_t dims, int64_t behind = 0) : stride(dims, 0) {
    for (int64_t i = 0; i < x.dim(); ++i) {
      const int64_t axis = dims - behind - x.dim() + i;
      STD_TORCH_CHECK(axis >= 0, "an argument has more axes than the map");
      if (x.size(i) != 1) stride[axis] = x.stride(i);
    }
  }

  int64_t step() const { return stride.back(); }
};

int64_t offset(int64_t row, const Sizes& size, const View& view) {
  int64_t at = 0;
  for (int64_t i = static_cast<int64_t>(size.size()) - 2; i >= 0; --i) {
    at += row % size[i] * view.stride[i];
    row /= size[i];
  }
  return at;
}

Sizes shape_of(const Tensor& x) { return Sizes(x.sizes().begin(), x.sizes().end()); }

int64_t row_count(const Sizes& size) {
  int64_t n = 1;
  for (size_t i = 0; i + 1 < size.size(); ++i) n *= size[i];
  return n;
}

// Calls f(row, first column, columns) for stretches of all rows, in parallel.
template <class F>
void for_stretches(const Sizes& size, const F& f) {
  const int64_t width = size.back(), pieces = ceil_div(width, kStretch);
  const int64_t rows = row_count(size);
  const int64_t grain = std::max<int64_t>(1, kGrain * kStretch / std::min(width, kStretch));
  torch::stable::parallel_for(0, rows * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t x = i % pieces * kStretch;
      f(i / pieces, x, std::min(kStretch, width - x));
    }
  });
}

struct Normaliser {
  double count, eps;
  bool zero_mean;
};

template <class T>
TORCHCORR_INLINE void grads(int64_t n, const T* grad, const T* score, const double* mean,
                            const double* var, const Normaliser& by, T* numerator_grad,
                            double* energy_grad) {
  for (int64_t i = 0; i < n; ++i) {
    const double energy = by.zero_mean ? var[i] : var[i] + mean[i] * mean[i];
    const double scale = 1 / (by.count * std::sqrt(energy + by.eps));
    const double g = static_cast<double>(grad[i]);
    const double e = g * static_cast<double>(score[i]) / (by.count * (energy + by.eps));
    numerator_grad[i] = static_cast<T>(energy == 0 ? 0.0 : g * scale);
    energy_grad[i] += energy == 0 ? 0.0 : e;
  }
}

#define TORCHCORR_GRADS(T)                                                                     \
  TORCHCORR_CLONES void grad_row(int64_t n, const T* grad, const T* score, const double* mean, \
                                 const double* var, const Normaliser& by, T* numerator_grad,   \
                                 double* energy_grad) {                                        \
    grads(n, grad, score, mean, var, by, numerator_grad, energy_grad);                         \
  }
TORCHCORR_GRADS(float)
TORCHCORR_GRADS(double)
#undef TORCHCORR_GRADS

// Offsets in a contiguous tensor of shape `size` of all places that share one place of the mean.
std::vector<int64_t> shared_rows(const Sizes& size, const Sizes& mean_size) {
  std::vector<int64_t> offsets{0};
  int64_t stride = 1;
  for (int64_t i = static_cast<int64_t>(size.size()) - 1; i >= 0; --i) {
    if (mean_size[i] == 1) {
      const std::vector<int64_t> inner = offsets;
      offsets.clear();
      for (int64_t k = 0; k < size[i]; ++k) {
        for (int64_t at : inner) offsets.push_back(at + k * stride);
      }
    }
    stride *= size[i];
  }
  return offsets;
}

std::tuple<Tensor, Tensor, Tensor> ncc_prepare_grads(const Tensor& grad, const Tensor& score,
                                                     const Tensor& mean, const Tensor& var,
                                                     double count, bool zero_mean, double eps) {
  const Tensor g = packed(grad), s = packed(score), m = packed(mean), v = packed(var);
  const Sizes size = shape_of(g), own = shape_of(m);
  Tensor out = torch::stable::new_empty(g, size);
  Tensor s1 = new_float64(m, own), s2 = new_float64(m, own);
  if (m.numel() == 0) return {out, s1, s2};
  const int64_t dims = g.dim();
  STD_TORCH_CHECK(shape_of(s) == size && shape_of(v) == own, "score and var must fit grad and mean");
  Sizes mean_size(dims - m.dim(), 1);
  mean_size.insert(mean_size.end(), own.begin(), own.end());
  mean_size.back() = size.back();
  Sizes shared_size = mean_size;
  shared_size.back() = 0;
  std::vector<int64_t> shared;
  if (g.numel() > 0) shared = shared_rows(size, shared_size);
  const View places(g, dims);
  const double *m_in = m.const_data_ptr<double>(), *v_in = v.const_data_ptr<double>();
  double *s1_out = s1.mutable_data_ptr<double>(), *s2_out = s2.mutable_data_ptr<double>();
  const Normaliser by{count, eps, zero_mean};
  with_real_type(g, "grad", [&](auto zero) {
    using T = decltype(zero);
    const T *g_in = g.const_data_ptr<T>(), *s_in = s.const_data_ptr<T>();
    T* g_out = out.mutable_data_ptr<T>();
    for_stretches(mean_size, [&](int64_t row, int64_t x, int64_t n) {
      double energy_grad[kStretch] = {};
      const int64_t own_at = row * mean_size.back() + x, at = offset(row, mean_size, places) + x;
      for (int64_t lead : shared) {
        const int64_t from = at + lead;
        grad_row(n, g_in + from, s_in + from, m_in + own_at, v_in + own_at, by, g_out + from,
                 energy_grad);
      }
      for (int64_t i = 0; i < n; ++i) {
        s2_out[own_at + i] = -energy_grad[i] / 2;
        s1_out[own_at + i] = zero_mean ? energy_grad[i] * m_in[own_at + i] : 0.0;
      }
    });
  });
  return {out, s1, s2};
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr, CPU, m) {
  m.impl("ncc_prepare_grads", TORCH_BOX(&torchcorr::ncc_prepare_grads));
}
