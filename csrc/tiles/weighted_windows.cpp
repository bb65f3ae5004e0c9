// Scores of windows with weights from their definition, for those that sums do not determine.

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "common/counters.h"
#include "common/parallel.h"
#include "tiles/window_elements.h"

namespace torchcorr {
namespace {

// Values of windows (items, channels, *size), and the item of each leading index; or none.
class Items {
 public:
  Items() = default;
  Items(const Tensor& x, const Tensor& items, int64_t ndim)
      : first_{x.const_data_ptr<double>(), x.size(1), last_sizes(x, ndim)},
        of_lead_(items.const_data_ptr<int64_t>()) {}

  ItemRows<double> of(int64_t lead) const {
    ItemRows<double> rows = first_;
    if (rows.data) rows.data += of_lead_[lead] * rows.channels * product(rows.size);
    return rows;
  }
  const ItemRows<double>& first() const { return first_; }

 private:
  ItemRows<double> first_;
  const int64_t* of_lead_ = nullptr;
};

// Sums over the elements of one window.
struct WindowSums {
  double count = 0, energy = 0, other = 0, product = 0;
};

// Adds the sums of channels that share a mean. Deviations are those from a mean that is rounded in
// units of the offset; what it lacks is known from their own sum, in units of the contrast.
template <int BYTES>
TORCHCORR_INLINE void add_sums(const WeightedWindow<double>& of, int64_t begin, int64_t end,
                               bool zero_mean, WindowSums& to) {
  using Vec = Wide<BYTES>;
  double mean = 0, other_mean = 0;
  bool flat = false, other_flat = false;
  if (zero_mean) {
    Level<BYTES> level, other;
    Vec weights = {};
    for_elements<BYTES>(of, begin, end, [&](const Vec& x, const Vec& t, const Vec& w) TORCHCORR_FLAT {
      weights += w;
      level.add(x, w), other.add(t, w);
    });
    const double count = sum_of_lanes(weights);
    if (!(count > 0)) return;
    mean = sum_of_lanes(level.sum) / count, other_mean = sum_of_lanes(other.sum) / count;
    flat = level.is_flat(), other_flat = other.is_flat();
    if (flat && end - begin == of.seen.channels) return;  // the score is 0, whatever the rest is
  }
  Vec weights = {}, first = {}, second = {}, energy = {}, other = {}, products = {};
  for_elements<BYTES>(of, begin, end, [&](const Vec& x, const Vec& t, const Vec& w) TORCHCORR_FLAT {
    const Vec a = x - mean, b = t - other_mean, wa = w * a, wb = w * b;
    weights += w, first += wa, second += wb;
    energy += wa * a, other += wb * b, products += wa * b;
  });
  const double count = sum_of_lanes(weights);
  if (!(count > 0)) return;
  const double a = zero_mean ? sum_of_lanes(first) / count : 0.0;
  const double b = zero_mean ? sum_of_lanes(second) / count : 0.0;
  to.count += count;
  if (!flat) to.energy += sum_of_lanes(energy) - a * a * count;
  if (!other_flat) to.other += sum_of_lanes(other) - b * b * count;
  if (!flat && !other_flat) to.product += sum_of_lanes(products) - a * b * count;
}
TORCHCORR_FOR_CPUS(void, add_sums,
                   (const WeightedWindow<double>& of, int64_t begin, int64_t end, bool zero_mean,
                    WindowSums& to),
                   (of, begin, end, zero_mean, to))

// 0 where either is flat.
double score_of(const WindowSums& sums, double eps) {
  if (!(sums.energy > 0 && sums.other > 0)) return 0;
  const double size = std::sqrt(sums.energy + eps * sums.count) * std::sqrt(sums.other);
  return std::clamp(sums.product / size, -1.0, 1.0);
}

// Scores (n) at `places` (n, 1 + ndim), each a leading index and a position. Tensors are
// (items, channels, *size) with the item of each leading index; `of_lead` has a softening and the
// least weight of a window for each of these.
Tensor score_weighted_windows(const Tensor& input, std::optional<Tensor> weight,
                              const Tensor& templ, std::optional<Tensor> templ_weight,
                              std::vector<Tensor> items, Sizes strides, const Tensor& places,
                              std::vector<Tensor> of_lead, bool zero_mean, bool pooled) {
  const int64_t ndim = static_cast<int64_t>(strides.size()), n = places.size(0);
  STD_TORCH_CHECK(items.size() == 4 && of_lead.size() == 2, "items of four tensors, two of leads");
  const Items seen(input, items[0], ndim), other(templ, items[2], ndim);
  const Items there = weight ? Items(*weight, items[1], ndim) : Items();
  const Items mask = templ_weight ? Items(*templ_weight, items[3], ndim) : Items();
  const Axes3 window = other.first().size;
  Axes3 stride{1, 1, 1};
  for (int64_t i = 0; i < ndim; ++i) stride[3 - ndim + i] = strides[i];
  const int64_t channels = seen.first().channels, together = pooled ? channels : 1;
  const double *eps = of_lead[0].const_data_ptr<double>(),
               *least = of_lead[1].const_data_ptr<double>();
  STD_TORCH_CHECK(places.is_contiguous(), "places must be contiguous");
  const int64_t* place = places.const_data_ptr<int64_t>();
  Tensor out = new_float64({n});
  double* to = out.mutable_data_ptr<double>();
  const int64_t elements = channels * product(window);
  count_way(Way::kExactWindows, n);
  parallel_for(0, n, std::max<int64_t>(1, (1 << 16) / elements), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t* at = place + k * (1 + ndim);
      const int64_t lead = at[0];
      Axes3 from{0, 0, 0};
      for (int64_t i = 0; i < ndim; ++i) from[3 - ndim + i] = at[1 + i] * stride[3 - ndim + i];
      const WeightedWindow<double> of{seen.of(lead),  there.of(lead), mask.of(lead),
                                      other.of(lead), from,           window};
      WindowSums sums;
      for (int64_t first = 0; first < channels; first += together) {
        add_sums(of, first, first + together, zero_mean, sums);
      }
      to[k] = sums.count >= least[lead] ? score_of(sums, eps[lead]) : 0.0;
    }
  });
  return out;
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("score_weighted_windows", TORCH_BOX(&torchcorr::score_weighted_windows));
}
