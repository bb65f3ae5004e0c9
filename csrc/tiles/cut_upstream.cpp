// The first step of a gradient: upstream gradients times norms as the tiles that are transformed.

#include <cmath>
#include <type_traits>

#include "common/parallel.h"
#include "common/vectors.h"
#include "tiles/steps.h"

namespace torchcorr {
namespace {

constexpr int64_t kPiece = 1 << 12;  // windows of a row that are taken at once

// A row of windows: alpha = g norm, and b = g Z N norm^2, what goes to the window's square; b is
// added up. Both are kept in float64 for what goes to means.
template <class T>
struct UpstreamRow {
  const T* norm;
  T* b;
  double *alpha, *share;
};

template <class G, class T>
TORCHCORR_INLINE void upstream_row(int64_t n, const G* grad, const T* score, double count,
                                   const UpstreamRow<T>& row, UpstreamSums& sums) {
  const auto [norm, b, alpha, shares] = row;
  double squares[kDoubles] = {}, largest[kDoubles] = {};
  const auto one = [&, norm = norm, b = b, alpha = alpha, shares = shares](
                       int64_t l, int64_t i) TORCHCORR_FLAT {
    const double scale = static_cast<double>(norm[i]);
    const double a = scale == 0 ? 0.0 : static_cast<double>(grad[i]) * scale;
    const double share = a * static_cast<double>(score[i]) * count * scale;
    alpha[i] = a;
    shares[i] = share;
    b[i] += static_cast<T>(share);
    squares[l] += a * a;
    const double size = a < 0 ? -a : a;
    largest[l] = size > largest[l] ? size : largest[l];
  };
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) {
    for (int64_t l = 0; l < kDoubles; ++l) one(l, i + l);
  }
  for (; i < n; ++i) one(i % kDoubles, i);
  sums.squares += total_of_lanes(squares);
  for (double size : largest) sums.largest = std::max(sums.largest, size);
}

// c += b mean, what goes to the means of the windows; returns the sum of alpha times the mean.
template <class T>
TORCHCORR_INLINE double means_row(int64_t n, const UpstreamRow<T>& row, const T* mean, T* c) {
  const double *alpha = row.alpha, *share = row.share;
  double offset[kDoubles] = {};
  const auto one = [&](int64_t l, int64_t i) TORCHCORR_FLAT {
    const double m = static_cast<double>(mean[i]);
    c[i] += static_cast<T>(share[i] * m);
    offset[l] += alpha[i] * m;
  };
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) {
    for (int64_t l = 0; l < kDoubles; ++l) one(l, i + l);
  }
  for (; i < n; ++i) one(i % kDoubles, i);
  return total_of_lanes(offset);
}

template <class T>
TORCHCORR_INLINE void scatter_row(int64_t n, int64_t step, double sign, const double* from, T* to) {
  if (step == 2) {
    for (int64_t i = 0; i < n; ++i) to[2 * i] = static_cast<T>(sign * from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * step] = static_cast<T>(sign * from[i]);
  }
}

#define TORCHCORR_ROWS(T)                                                                         \
  TORCHCORR_CLONES void scatter(int64_t n, int64_t step, double sign, const double* from, T* to) { \
    scatter_row(n, step, sign, from, to);                                                         \
  }                                                                                               \
  TORCHCORR_CLONES double means_of(int64_t n, const UpstreamRow<T>& row, const T* mean, T* c) {   \
    return means_row(n, row, mean, c);                                                            \
  }
TORCHCORR_ROWS(float)
TORCHCORR_ROWS(double)
#undef TORCHCORR_ROWS

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

  // The windows' moments, and what is written: of `groups` of channels that have a mean each, means
  // and c are maps one after the other.
  struct Target {
    double count;
    int64_t groups;
    const T *norms, *means;
    T *b, *c, *alpha;
    UpstreamSums* sums;
  };

  void run(const Target& to) const {
    parallel_for(0, batch_.count(), 1, [&](int64_t begin, int64_t end) {
      std::vector<double> line(2 * std::min(t_.outputs[2], kPiece));
      for (int64_t t = begin; t < end; ++t) tile(t, to, line.data());
    });
  }

 private:
  void tile(int64_t t, const Target& to, double* line) const {
    const TilePlace place(t_, batch_.tiles[t]);
    if (!place.exists) return;
    const int64_t rows = t_.outputs[0] * t_.outputs[1], width = t_.outputs[2];
    const int64_t x = place.first(t_, 2), end = std::min(width, map_[2] - x);
    const double sign = t % 2 == 0 ? 1.0 : -1.0;
    const int64_t all = batch_.count() * rows * width;
    to.sums[t].offsets.resize(to.groups);
    const int64_t which = place.item * all_ + batch_.first_template;
    const Axes3 size = t_.folded(), stride = t_.folded_stride();
    T* pair = to.alpha + t / 2 * t_.folded_size() * 2 + t % 2;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = r / t_.outputs[1], j = r % t_.outputs[1];
      const int64_t z = place.first(t_, 0) + i, y = place.first(t_, 1) + j;
      if (z >= map_[0] || y >= map_[1]) continue;
      const int64_t of_row = (i * stride[0] * size[1] + j * stride[1]) * size[2];
      for (int64_t first = 0; first < end; first += kPiece) {
        const int64_t n = std::min(kPiece, end - first), at = (t * rows + r) * width + first;
        const int64_t in_map = ((which * map_[0] + z) * map_[1] + y) * map_[2] + x + first;
        const UpstreamRow<T> upstream{to.norms + at, to.b + at, line, line + n};
        upstream_of(n, grad_ + in_map, score_ + (of_tiles_ ? at : in_map), to.count, upstream,
                    to.sums[t]);
        for (int64_t g = 0; g < to.groups; ++g) {
          const int64_t of_group = g * all + at;
          to.sums[t].offsets[g] += means_of(n, upstream, to.means + of_group, to.c + of_group);
        }
        scatter(n, 2 * stride[2], sign, line, pair + 2 * (of_row + first * stride[2]));
      }
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
  const int64_t groups = window_grads.size(0) - 1;
  with_real_type(norms, "norms", [&](auto zero) {
    using T = decltype(zero);
    T* maps = window_grads.mutable_data_ptr<T>();
    with_real_type(of.grad, "grad", [&](auto grad_zero) {
      using G = decltype(grad_zero);
      STD_TORCH_CHECK(of.of_tiles || (std::is_same_v<T, G>), "scores of a map share grad's dtype");
      CutUpstream<G, T>(batch, of).run(
          {of.count, groups, norms.const_data_ptr<T>(), moments.means->const_data_ptr<T>(), maps,
           maps + norms.numel(), alpha.mutable_data_ptr<T>(), sums.data()});
    });
  });
  return alpha;
}

}  // namespace torchcorr
