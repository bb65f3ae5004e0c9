// Upstream gradients of the scores of dense layers, times the norms of windows.

#include <algorithm>
#include <cmath>

#include "common/axes.h"
#include "common/large_pages.h"
#include "common/parallel.h"
#include "common/vectors.h"

namespace torchcorr {
namespace {

// Positions of a unit, and elements that are worth another thread.
constexpr int64_t kStrip = 2048, kGrain = 1 << 15;

// Sum, sum of squares and largest size of an upstream gradient times norms.
struct UpstreamRow {
  double sum, square, largest;
};

TORCHCORR_CLONES UpstreamRow scale_upstream(int64_t n, const float* grad, const float* score,
                                            const double* norm, float* out, double* share) {
  Doubles sum = {}, square = {}, largest = {};
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) {
    const Doubles g = read(grad + i), v = g * read(norm + i);
    write(out + i, v);
    write(share + i, read(share + i) + g * read(score + i));
    sum += v;
    square += v * v;
    const Doubles size = v < 0 ? -v : v;
    largest = size > largest ? size : largest;
  }
  UpstreamRow row{total_of(sum), total_of(square), 0};
  for (int64_t l = 0; l < kDoubles; ++l) row.largest = std::max(row.largest, largest[l]);
  for (; i < n; ++i) {
    const double g = static_cast<double>(grad[i]), v = g * norm[i];
    out[i] = static_cast<float>(v);
    share[i] += g * static_cast<double>(score[i]);
    row.sum += v;
    row.square += v * v;
    row.largest = std::max(row.largest, std::abs(v));
  }
  return row;
}

// An upstream gradient (items, K, *positions) times norms (items, *positions); the sums over
// templates of its products with scores, of the shape of norms; and of templates the sums, sums of
// squares and largest sizes (K, 3).
std::tuple<Tensor, Tensor, Tensor> dense_upstream(const Tensor& grad, const Tensor& score,
                                                  const Tensor& norms) {
  const Tensor from = packed(grad), scores = packed(score), by = packed(norms);
  const int64_t items = from.size(0), templates = from.size(1), n = by.numel() / items;
  const Tensor out = new_map(from, sizes_of(from)), share = new_float64(by, sizes_of(by));
  const Tensor stats = new_float64(by, {templates, 3});
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
      std::fill_n(shares + at, some, 0.0);
      for (int64_t k = 0; k < templates; ++k) {
        const int64_t i = (item * templates + k) * n + first;
        rows[unit * templates + k] =
            scale_upstream(some, g + i, s + i, norm + at, to + i, shares + at);
      }
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
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("dense_upstream", TORCH_BOX(&torchcorr::dense_upstream));
}
