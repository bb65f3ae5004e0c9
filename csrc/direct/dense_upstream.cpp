// Upstream gradients of the scores of dense layers, times the norms of windows.

#include <algorithm>
#include <cmath>

#include "common/axes.h"
#include "common/large_pages.h"
#include "common/parallel.h"
#include "common/targets.h"

namespace torchcorr::direct {
namespace {

// Positions of a unit, and elements that are worth another thread.
constexpr int64_t kStrip = 1024, kGrain = 1 << 15;

// Sum, sum of squares and largest size of an upstream gradient times norms.
struct UpstreamRow {
  double sum, square, largest;
};

// Some positions of a template, and how far away those of the next one are.
struct Upstream {
  const float *grad, *score;
  float* out;
  int64_t pitch;
};

// K templates together, which add to the same shares.
template <int BYTES, int K>
TORCHCORR_INLINE void scale_some(int64_t n, const Upstream& of, const double* norm, double* share,
                                 UpstreamRow* rows) {
  constexpr int64_t lanes = lanes_of<double, BYTES>;
  Wide<BYTES> sum[K] = {}, square[K] = {}, largest[K] = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const Wide<BYTES> by = load<BYTES>(norm + i);
    Wide<BYTES> total = load<BYTES>(share + i);
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      const int64_t at = k * of.pitch + i;
      const Wide<BYTES> g = widened<BYTES>(of.grad + at), v = g * by;
      put(v, of.out + at);
      total += g * widened<BYTES>(of.score + at);
      sum[k] += v;
      square[k] += v * v;
      const Wide<BYTES> size = v < 0 ? -v : v;
      largest[k] = size > largest[k] ? size : largest[k];
    }
    put(total, share + i);
  }
  for (int k = 0; k < K; ++k) {
    UpstreamRow& row = rows[k];
    row = {sum_of_lanes(sum[k]), sum_of_lanes(square[k]), 0};
    for (int l = 0; l < lanes; ++l) row.largest = std::max(row.largest, largest[k][l]);
    for (int64_t x = i; x < n; ++x) {
      const int64_t at = k * of.pitch + x;
      const double g = static_cast<double>(of.grad[at]), v = g * norm[x];
      of.out[at] = static_cast<float>(v);
      share[x] += g * static_cast<double>(of.score[at]);
      row.sum += v;
      row.square += v * v;
      row.largest = std::max(row.largest, std::abs(v));
    }
  }
}

// `count` is N.
template <int BYTES>
TORCHCORR_INLINE void scale_upstream(int64_t n, int64_t templates, double count, Upstream of,
                                     const double* norm, double* share, UpstreamRow* rows) {
  std::fill_n(share, n, 0.0);
  int64_t k = 0;
  for (; k + 2 <= templates; k += 2) {
    scale_some<BYTES, 2>(n, of, norm, share, rows + k);
    of.grad += 2 * of.pitch, of.score += 2 * of.pitch, of.out += 2 * of.pitch;
  }
  if (k < templates) scale_some<BYTES, 1>(n, of, norm, share, rows + k);
  for (int64_t i = 0; i < n; ++i) share[i] *= norm[i] * norm[i] * count;
}
TORCHCORR_FOR_CPUS(void, scale_upstream,
                   (int64_t n, int64_t templates, double count, const Upstream& of,
                    const double* norm, double* share, UpstreamRow* rows),
                   (n, templates, count, of, norm, share, rows))

// An upstream gradient (items, K, *positions) times norms 1 / (N sigma), (items, *positions); of the
// shape of norms the sums over templates of its products with scores, over N sigma^2; and of templates
// the sums, sums of squares and largest sizes (K, 3). `count` is N.
std::tuple<Tensor, Tensor, Tensor> dense_upstream(const Tensor& grad, const Tensor& score,
                                                  const Tensor& norms, int64_t count) {
  const Tensor from = packed(grad), scores = packed(score), by = packed(norms);
  const int64_t items = from.size(0), templates = from.size(1), n = by.numel() / items;
  const Tensor out = new_map(from, sizes_of(from)), share = new_float64(sizes_of(by));
  const Tensor stats = new_float64({templates, 3});
  const int64_t strips = ceil_div(n, kStrip);
  std::vector<UpstreamRow> rows(items * strips * templates);
  const float *g = from.const_data_ptr<float>(), *s = scores.const_data_ptr<float>();
  const double* norm = by.const_data_ptr<double>();
  float* to = out.mutable_data_ptr<float>();
  double* shares = share.mutable_data_ptr<double>();
  const int64_t grain = std::max<int64_t>(1, kGrain / (templates * std::min(n, kStrip)));
  parallel_for(0, items * strips, grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t item = unit / strips, first = unit % strips * kStrip;
      const int64_t some = std::min(kStrip, n - first), at = item * n + first;
      const int64_t i = item * templates * n + first;
      scale_upstream(some, templates, static_cast<double>(count), {g + i, s + i, to + i, n},
                     norm + at, shares + at, rows.data() + unit * templates);
    }
  });
  double* of = stats.mutable_data_ptr<double>();
  std::fill_n(of, 3 * templates, 0.0);
  for (size_t i = 0; i < rows.size(); ++i) {
    double* row = of + 3 * (static_cast<int64_t>(i) % templates);
    row[0] += rows[i].sum;
    row[1] += rows[i].square;
    row[2] = std::max(row[2], rows[i].largest);
  }
  return {out, share, stats};
}

}  // namespace
}  // namespace torchcorr::direct

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("dense_upstream", TORCH_BOX(&torchcorr::direct::dense_upstream));
}
