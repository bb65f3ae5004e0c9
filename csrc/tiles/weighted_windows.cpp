// Scores of windows with weights from their definition, for those that sums do not determine.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "common/axes.h"
#include "common/parallel.h"
#include "common/vectors.h"

namespace torchcorr {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Values of windows (items, channels, *size), and the item of each leading index.
struct Items {
  const double* data = nullptr;
  const int64_t* of_lead = nullptr;
  int64_t channels = 0;
  Axes3 size{1, 1, 1};

  Items(const Tensor& x, const Tensor& items, int64_t ndim)
      : data(x.const_data_ptr<double>()), of_lead(items.const_data_ptr<int64_t>()),
        channels(x.size(1)), size(last_sizes(x, ndim)) {}

  // The row of a window that begins at `at`; one channel stands for all.
  const double* row(int64_t lead, int64_t channel, const Axes3& at, int64_t z, int64_t y) const {
    const int64_t c = channels == 1 ? 0 : channel;
    const int64_t plane = (of_lead[lead] * channels + c) * size[0] + at[0] + z;
    return data + (plane * size[1] + at[1] + y) * size[2] + at[2];
  }
};

// Where a window lies, and what it is scored with.
struct Window {
  const Items &seen, &other;
  const Items *there, *mask;  // weights, or null where all are 1
  int64_t lead;
  Axes3 from;
};

// Sums over the elements of one window.
struct WindowSums {
  double count = 0, energy = 0, other = 0, product = 0;
};

// Calls f(elements, those of the template, weights) for all elements of some channels, as vectors that
// end with weights of 0.
template <class F>
TORCHCORR_INLINE void for_elements(const Window& of, int64_t begin, int64_t end, const F& f) {
  const Axes3 &size = of.other.size, origin{0, 0, 0};
  const int64_t n = size[2];
  for (int64_t c = begin; c < end; ++c) {
    for (int64_t z = 0; z < size[0]; ++z) {
      for (int64_t y = 0; y < size[1]; ++y) {
        const double* x = of.seen.row(of.lead, c, of.from, z, y);
        const double* t = of.other.row(of.lead, c, origin, z, y);
        const double* g = of.there ? of.there->row(of.lead, c, of.from, z, y) : nullptr;
        const double* m = of.mask ? of.mask->row(of.lead, c, origin, z, y) : nullptr;
        const Doubles one = Doubles{} + 1.0;
        int64_t i = 0;
        for (; i + kDoubles <= n; i += kDoubles) {
          const Doubles a = g ? read(g + i) : one, b = m ? read(m + i) : one;
          f(read(x + i), read(t + i), a * b);
        }
        if (i == n) continue;
        const Doubles last = read_part(n - i, m ? m + i : t + i), rest = read_part(n - i, t + i);
        Doubles there = {};
        for (int64_t l = 0; l < n - i; ++l) there[l] = g ? g[i + l] : 1.0;
        f(read_part(n - i, x + i), rest, m ? there * last : there);
      }
    }
  }
}

// What elements with weight have in common: their weighted mean, and their extremes.
struct Level {
  Doubles sum = {}, highest = Doubles{} - kInfinity, lowest = Doubles{} + kInfinity;

  TORCHCORR_INLINE void add(const Doubles& v, const Doubles& weight) {
    sum += weight * v;
    const Doubles high = weight > 0.0 ? v : highest, low = weight > 0.0 ? v : lowest;
    highest = high > highest ? high : highest;
    lowest = low < lowest ? low : lowest;
  }
  bool is_flat() const {
    double most = -kInfinity, least = kInfinity;
    for (int64_t l = 0; l < kDoubles; ++l) {
      most = std::max(most, highest[l]), least = std::min(least, lowest[l]);
    }
    return most <= least;
  }
};

// Adds the sums of channels that share a mean. Deviations are those from a mean that is rounded in
// units of the offset; what it lacks is known from their own sum, in units of the contrast.
TORCHCORR_CLONES void add_sums(const Window& of, int64_t begin, int64_t end, bool zero_mean,
                               WindowSums& to) {
  double mean = 0, other_mean = 0;
  bool flat = false, other_flat = false;
  if (zero_mean) {
    Level level, other;
    Doubles weights = {};
    for_elements(of, begin, end,
                 [&](const Doubles& x, const Doubles& t, const Doubles& w) TORCHCORR_FLAT {
                   weights += w;
                   level.add(x, w), other.add(t, w);
                 });
    const double count = total_of(weights);
    if (!(count > 0)) return;
    mean = total_of(level.sum) / count, other_mean = total_of(other.sum) / count;
    flat = level.is_flat(), other_flat = other.is_flat();
  }
  Doubles weights = {}, first = {}, second = {}, energy = {}, other = {}, products = {};
  for_elements(of, begin, end,
               [&](const Doubles& x, const Doubles& t, const Doubles& w) TORCHCORR_FLAT {
                 const Doubles a = x - mean, b = t - other_mean, wa = w * a, wb = w * b;
                 weights += w, first += wa, second += wb;
                 energy += wa * a, other += wb * b, products += wa * b;
               });
  const double count = total_of(weights);
  if (!(count > 0)) return;
  const double a = zero_mean ? total_of(first) / count : 0.0;
  const double b = zero_mean ? total_of(second) / count : 0.0;
  to.count += count;
  if (!flat) to.energy += total_of(energy) - a * a * count;
  if (!other_flat) to.other += total_of(other) - b * b * count;
  if (!flat && !other_flat) to.product += total_of(products) - a * b * count;
}

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
  std::optional<Items> there, mask;
  if (weight) there.emplace(*weight, items[1], ndim);
  if (templ_weight) mask.emplace(*templ_weight, items[3], ndim);
  const Axes3 window = other.size;
  Axes3 stride{1, 1, 1};
  for (int64_t i = 0; i < ndim; ++i) stride[3 - ndim + i] = strides[i];
  const int64_t channels = seen.channels, together = pooled ? channels : 1;
  const double *eps = of_lead[0].const_data_ptr<double>(),
               *least = of_lead[1].const_data_ptr<double>();
  STD_TORCH_CHECK(places.is_contiguous(), "places must be contiguous");
  const int64_t* place = places.const_data_ptr<int64_t>();
  Tensor out = new_float64(input, {n});
  double* to = out.mutable_data_ptr<double>();
  const int64_t elements = channels * product(window);
  parallel_for(0, n, std::max<int64_t>(1, (1 << 16) / elements), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t* at = place + k * (1 + ndim);
      const int64_t lead = at[0];
      Axes3 from{0, 0, 0};
      for (int64_t i = 0; i < ndim; ++i) from[3 - ndim + i] = at[1 + i] * stride[3 - ndim + i];
      const Window of{seen, other, there ? &*there : nullptr, mask ? &*mask : nullptr, lead, from};
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
