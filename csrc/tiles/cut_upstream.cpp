// The first step of a gradient: upstream gradients times norms as the tiles that are transformed.

#include <cmath>
#include <type_traits>

#include "common/parallel.h"
#include "common/vectors.h"
#include "tiles/steps.h"

namespace torchcorr {
namespace {

// A row of windows: alpha = g norm is written; b = g Z N norm^2, what goes to the window's square,
// and c = b mean, what goes to its mean, are added up.
template <class T>
struct UpstreamRow {
  const T *norm, *mean;
  T *alpha, *b, *c;
};

template <class G, class T>
TORCHCORR_INLINE void upstream_row(int64_t n, const G* grad, const T* score, double count,
                                   const UpstreamRow<T>& row, UpstreamSums& sums) {
  const auto [norm, mean, alpha, b, c] = row;
  double squares[kDoubles] = {}, offset[kDoubles] = {}, largest[kDoubles] = {};
  const auto one = [&, norm = norm, mean = mean, alpha = alpha, b = b, c = c](
                       int64_t l, int64_t i) TORCHCORR_FLAT {
    const double scale = static_cast<double>(norm[i]), m = static_cast<double>(mean[i]);
    const double a = scale == 0 ? 0.0 : static_cast<double>(grad[i]) * scale;
    const double share = a * static_cast<double>(score[i]) * count * scale;
    alpha[i] = static_cast<T>(a);
    b[i] += static_cast<T>(share);
    c[i] += static_cast<T>(share * m);
    squares[l] += a * a;
    offset[l] += a * m;
    const double size = a < 0 ? -a : a;
    largest[l] = size > largest[l] ? size : largest[l];
  };
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) {
    for (int64_t l = 0; l < kDoubles; ++l) one(l, i + l);
  }
  for (; i < n; ++i) one(i % kDoubles, i);
  sums.squares += total_of_lanes(squares);
  sums.offset += total_of_lanes(offset);
  for (double size : largest) sums.largest = std::max(sums.largest, size);
}

template <class T>
TORCHCORR_INLINE void scatter_row(int64_t n, int64_t step, T sign, const T* from, T* to) {
  if (step == 2) {
    for (int64_t i = 0; i < n; ++i) to[2 * i] = sign * from[i];
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * step] = sign * from[i];
  }
}

TORCHCORR_CLONES void scatter(int64_t n, int64_t step, float sign, const float* from, float* to) {
  scatter_row(n, step, sign, from, to);
}
TORCHCORR_CLONES void scatter(int64_t n, int64_t step, double sign, const double* from,
                              double* to) {
  scatter_row(n, step, sign, from, to);
}

#define TORCHCORR_UPSTREAM(G, T)                                                            \
  TORCHCORR_CLONES void upstream_of(int64_t n, const G* grad, const T* score, double count, \
                                    const UpstreamRow<T>& row, UpstreamSums& sums) {        \
    upstream_row(n, grad, score, count, row, sums);                                         \
  }
TORCHCORR_UPSTREAM(float, float)
TORCHCORR_UPSTREAM(float, double)
TORCHCORR_UPSTREAM(double, double)
TORCHCORR_UPSTREAM(double, float)
#undef TORCHCORR_UPSTREAM

// One call.
template <class G, class T>
class CutUpstream {
 public:
  CutUpstream(const TileBatch& batch, const Upstream& of)
      : batch_(batch), t_(batch.tiling), grad_(of.grad.const_data_ptr<G>()),
        score_(of.score.const_data_ptr<T>()), map_(last_sizes(of.grad, t_.ndim)),
        all_(of.grad.size(1)), of_tiles_(of.of_tiles) {}

  // The windows' moments, and what is written.
  struct Target {
    double count;
    const T *norms, *means;
    T *b, *c, *alpha;
    UpstreamSums* sums;
  };

  void run(const Target& to) const {
    parallel_for(0, batch_.count(), 1, [&](int64_t begin, int64_t end) {
      std::vector<T> line(t_.outputs[2]);
      for (int64_t t = begin; t < end; ++t) tile(t, to, line.data());
    });
  }

 private:
  void tile(int64_t t, const Target& to, T* line) const {
    const TilePlace place(t_, batch_.tiles[t]);
    if (!place.exists) return;
    const int64_t rows = t_.outputs[0] * t_.outputs[1], width = t_.outputs[2];
    const int64_t x = place.first(t_, 2), n = std::min(width, map_[2] - x);
    const T sign = t % 2 == 0 ? T(1) : T(-1);
    const int64_t which = place.item * all_ + batch_.first_template;
    const Axes3 size = t_.folded(), stride = t_.folded_stride();
    T* pair = to.alpha + t / 2 * t_.folded_size() * 2 + t % 2;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = r / t_.outputs[1], j = r % t_.outputs[1];
      const int64_t z = place.first(t_, 0) + i, y = place.first(t_, 1) + j;
      if (z >= map_[0] || y >= map_[1]) continue;
      const int64_t at = (t * rows + r) * width;
      const int64_t in_map = ((which * map_[0] + z) * map_[1] + y) * map_[2] + x;
      upstream_of(n, grad_ + in_map, score_ + (of_tiles_ ? at : in_map), to.count,
                  UpstreamRow<T>{to.norms + at, to.means + at, line, to.b + at, to.c + at},
                  to.sums[t]);
      const int64_t first = (i * stride[0] * size[1] + j * stride[1]) * size[2];
      scatter(n, 2 * stride[2], sign, line, pair + 2 * first);
    }
  }

  const TileBatch& batch_;
  const Tiling& t_;
  const G* grad_;
  const T* score_;
  const Axes3 map_;    // positions of the gradient
  const int64_t all_;  // templates of the gradient
  const bool of_tiles_;
};

}  // namespace

Tensor cut_upstream(const Upstream& of, const Tensors& tensors, const Sizes& numbers,
                    const Tensor& window_grads, std::vector<UpstreamSums>& sums) {
  const TileBatch batch(numbers);
  const Tiling& t = batch.tiling;
  const TileMoments moments(tensors);
  const Tensor& norms = moments.known_norms();
  Sizes shape{batch.count() / 2, 1};
  for (int64_t n : sizes_of(t.folded(), t.ndim)) shape.push_back(n);
  shape.push_back(2);
  const Tensor alpha = torch::stable::new_zeros(norms, shape);
  sums.assign(batch.count(), {});
  with_real_type(norms, "norms", [&](auto zero) {
    using T = decltype(zero);
    T* maps = window_grads.mutable_data_ptr<T>();
    with_real_type(of.grad, "grad", [&](auto grad_zero) {
      using G = decltype(grad_zero);
      STD_TORCH_CHECK(of.of_tiles || (std::is_same_v<T, G>), "scores of a map share grad's dtype");
      CutUpstream<G, T>(batch, of).run(
          {of.count, norms.const_data_ptr<T>(), moments.means->const_data_ptr<T>(), maps,
           maps + norms.numel(), alpha.mutable_data_ptr<T>(), sums.data()});
    });
  });
  return alpha;
}

}  // namespace torchcorr
