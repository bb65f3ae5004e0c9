// The ends of a normalised score: numerator and moments to the score, and back to their gradients.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>


namespace torchcorr::ncc {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

Sizes shape_of(const Tensor& x) {
  Sizes shape(x.dim());
  for (int64_t i = 0; i < x.dim(); ++i) shape[i] = x.size(i);
  return shape;
}

// Where each row (all axes but the last) of a tensor of shape `shape` lies in x, which broadcasts
// against it after `x` has been given `tail` axes of length 1.
class Rows {
 public:
  Rows(const Tensor& x, const Sizes& shape, int64_t tail) : steps_(shape.size() - 1, 0) {
    const int64_t rank = x.dim() + tail, missing = static_cast<int64_t>(shape.size()) - rank;
    for (int64_t i = 0; i < x.dim(); ++i) {
      const int64_t axis = missing + i;
      if (axis + 1 < static_cast<int64_t>(shape.size()) && x.size(i) > 1) steps_[axis] = x.stride(i);
    }
  }

  int64_t at(int64_t row, const Sizes& shape) const {
    int64_t offset = 0;
    for (int64_t axis = static_cast<int64_t>(steps_.size()) - 1; axis >= 0; --axis) {
      offset += row % shape[axis] * steps_[axis];
      row /= shape[axis];
    }
    return offset;
  }

 private:
  Sizes steps_;
};

Tensor unit_rows(const Tensor& x) {
  return x.dim() > 0 && x.stride(x.dim() - 1) != 1 ? torch::stable::contiguous(x) : x;
}

// What stands under the root of a score, without eps.
inline double energy(double mean, double var, bool zero_mean) {
  return zero_mean ? var : var + mean * mean;
}

template <class N, class S>
void finish_row(const N* numerator, const double* mean, const double* var,
                                        double sum, double centre, double count, bool zero_mean,
                                        double eps, S* out, int64_t out_step, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double shift = zero_mean ? (mean[i] - centre) * sum : 0.0;
    const double e = energy(mean[i], var[i], zero_mean);
    const double score = (static_cast<double>(numerator[i]) - shift) / (count * std::sqrt(e + eps));
    // Comparisons with NaN are false, so a NaN passes both bounds.
    const double low = score < -1 ? -1 : score, clamped = low > 1 ? 1 : low;
    out[i * out_step] = static_cast<S>(e == 0 ? 0 : clamped);
  }
}

struct Finish {
  const Tensor &numerator, &mean, &var, &sum, &centre, &out;
  double count, eps;
  bool zero_mean;
};

template <class N, class S>
void finish(const Finish& f) {
  const Sizes shape = shape_of(f.out);
  const int64_t rank = f.out.dim(), width = shape[rank - 1], ndim = f.mean.dim() - f.centre.dim();
  const Rows from(f.numerator, shape, 0), windows(f.mean, shape, 0), deviations(f.var, shape, 0),
      sums(f.sum, shape, ndim), centres(f.centre, shape, ndim), to(f.out, shape, 0);
  const N* numerator = static_cast<const N*>(f.numerator.const_data_ptr());
  const double* mean = static_cast<const double*>(f.mean.const_data_ptr());
  const double* var = static_cast<const double*>(f.var.const_data_ptr());
  const double* sum = static_cast<const double*>(f.sum.const_data_ptr());
  const double* centre = static_cast<const double*>(f.centre.const_data_ptr());
  S* out = static_cast<S*>(f.out.mutable_data_ptr());
  const int64_t step = f.out.stride(rank - 1), grain = std::max<int64_t>(1, 65536 / width);
  torch::stable::parallel_for(0, f.out.numel() / width, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      finish_row(numerator + from.at(row, shape), mean + windows.at(row, shape),
                 var + deviations.at(row, shape), sum[sums.at(row, shape)],
                 centre[centres.at(row, shape)], f.count, f.zero_mean, f.eps,
                 out + to.at(row, shape), step, width);
    }
  });
}

void ncc_finish(const Tensor& numerator, const Tensor& mean, const Tensor& var, const Tensor& sum,
                const Tensor& centre, double count, bool zero_mean, double eps, Tensor out) {
  if (out.numel() == 0) return;
  const Tensor n = unit_rows(numerator), m = unit_rows(mean), v = unit_rows(var);
  const Finish f{n, m, v, sum, centre, out, count, eps, zero_mean};
  const bool wide = n.scalar_type() == ScalarType::Double;
  if (out.scalar_type() == ScalarType::Double) {
    wide ? finish<double, double>(f) : finish<float, double>(f);
  } else {
    wide ? finish<double, float>(f) : finish<float, float>(f);
  }
}

struct Prepare {
  const Tensor &grad, &score, &mean, &var, &numerator_grad, &s1, &s2;
  double count, eps;
  bool zero_mean;
};

// Each thread owns rows of the input's windows and adds up all scores that share them, in order.
template <class T>
void prepare(const Prepare& p) {
  const Sizes shape = shape_of(p.grad), own = shape_of(p.mean);
  const int64_t width = shape.back(), rank = p.grad.dim(), missing = rank - p.mean.dim();
  const Rows scores(p.score, shape, 0), grads(p.grad, shape, 0), to(p.numerator_grad, shape, 0);
  // The axes of rows along which the windows are shared, and those along which they are not.
  Sizes shared(rank - 1, 1), kept(shape.begin(), shape.end() - 1);
  for (int64_t i = 0; i + 1 < rank; ++i) {
    if (i < missing || own[i - missing] == 1) std::swap(shared[i], kept[i]);
  }
  int64_t rows = 1, repeats = 1;
  for (int64_t i = 0; i + 1 < rank; ++i) rows *= kept[i], repeats *= shared[i];
  const T* g = static_cast<const T*>(p.grad.const_data_ptr());
  const T* z = static_cast<const T*>(p.score.const_data_ptr());
  const double* mean = static_cast<const double*>(p.mean.const_data_ptr());
  const double* var = static_cast<const double*>(p.var.const_data_ptr());
  T* numerator = static_cast<T*>(p.numerator_grad.mutable_data_ptr());
  double* s1 = static_cast<double*>(p.s1.mutable_data_ptr());
  double* s2 = static_cast<double*>(p.s2.mutable_data_ptr());
  auto row_of = [&](int64_t row, int64_t repeat) {
    int64_t index = 0, scale = 1;
    for (int64_t i = rank - 2; i >= 0; --i) {
      index += scale * (row % kept[i] + repeat % shared[i]);
      row /= kept[i];
      repeat /= shared[i];
      scale *= shape[i];
    }
    return index;
  };
  const int64_t grain = std::max<int64_t>(1, 65536 / (width * repeats));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const double *m = mean + row * width, *v = var + row * width;
      double *a = s1 + row * width, *b = s2 + row * width;
      for (int64_t i = 0; i < width; ++i) b[i] = 0;
      for (int64_t r = 0; r < repeats; ++r) {
        const int64_t index = row_of(row, r);
        const T* from = g + grads.at(index, shape);
        const T* score = z + scores.at(index, shape);
        T* out = numerator + to.at(index, shape);
        for (int64_t i = 0; i < width; ++i) {
          const double e = energy(m[i], v[i], p.zero_mean), soft = e + p.eps;
          const double d = static_cast<double>(from[i]);
          out[i] = static_cast<T>(e == 0 ? 0 : d / (p.count * std::sqrt(soft)));
          b[i] += e == 0 ? 0 : d * static_cast<double>(score[i]) / (p.count * soft);
        }
      }
      for (int64_t i = 0; i < width; ++i) a[i] = p.zero_mean ? b[i] * m[i] : 0;
      for (int64_t i = 0; i < width; ++i) b[i] *= -0.5;
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> ncc_prepare_grads(const Tensor& grad, const Tensor& score,
                                                     const Tensor& mean, const Tensor& var,
                                                     double count, bool zero_mean, double eps) {
  const Tensor out = torch::stable::new_empty(grad, shape_of(grad));
  if (grad.numel() == 0) {
    return {out, torch::stable::new_zeros(mean, shape_of(mean)),
            torch::stable::new_zeros(mean, shape_of(mean))};
  }
  const Tensor s1 = torch::stable::new_empty(mean, shape_of(mean));
  const Tensor s2 = torch::stable::new_empty(mean, shape_of(mean));
  const Tensor g = unit_rows(grad), z = unit_rows(score), m = torch::stable::contiguous(mean),
               v = torch::stable::contiguous(var);
  const Prepare p{g, z, m, v, out, s1, s2, count, eps, zero_mean};
  grad.scalar_type() == ScalarType::Double ? prepare<double>(p) : prepare<float>(p);
  return {out, s1, s2};
}

}  // namespace
}  // namespace torchcorr::ncc

STABLE_TORCH_LIBRARY_IMPL(torchcorr, CPU, m) {
  m.impl("ncc_finish", TORCH_BOX(&torchcorr::ncc::ncc_finish));
  m.impl("ncc_prepare_grads", TORCH_BOX(&torchcorr::ncc::ncc_prepare_grads));
}
