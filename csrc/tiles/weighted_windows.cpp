// Scores of windows with weights from their definition, for those that sums do not determine.

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "common/axes.h"
#include "common/parallel.h"
#include "common/vectors.h"

namespace torchcorr {
namespace {

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

// The elements of a window that share a mean: what is seen, the template, and weights, which zeros
// follow up to a whole vector.
struct Elements {
  std::vector<double> seen, templ, weight;

  explicit Elements(int64_t n) : seen(padded(n)), templ(padded(n)), weight(padded(n)) {}
  static int64_t padded(int64_t n) { return ceil_div(n, kDoubles) * kDoubles; }
};

// Sums over the elements of one window.
struct WindowSums {
  double count = 0, energy = 0, other = 0, product = 0;
};

// Sum of w * f(element).
template <class F>
TORCHCORR_INLINE double weighted_sum(const Elements& of, const F& f) {
  Doubles sum = {};
  const int64_t n = static_cast<int64_t>(of.weight.size());
  for (int64_t i = 0; i < n; i += kDoubles) sum += read(&of.weight[i]) * f(i);
  return total_of(sum);
}

// Subtracts the weighted mean. Equal elements deviate by exactly 0: one of them is subtracted first.
TORCHCORR_INLINE void subtract_mean(const Elements& of, int64_t heaviest, double total,
                                    std::vector<double>& values) {
  const auto subtract = [&](double level) TORCHCORR_FLAT {
    const int64_t n = static_cast<int64_t>(values.size());
    for (int64_t i = 0; i < n; i += kDoubles) {
      const Doubles deviation = read(&values[i]) - level;
      write(&values[i], read(&of.weight[i]) > 0 ? deviation : Doubles{});
    }
  };
  subtract(values[heaviest]);
  for (int pass = 0; pass < 2; ++pass) {
    subtract(weighted_sum(of, [&](int64_t i) TORCHCORR_FLAT { return read(&values[i]); }) / total);
  }
}

TORCHCORR_CLONES void add_sums(Elements& of, bool zero_mean, WindowSums& to) {
  const double count = weighted_sum(of, [](int64_t) TORCHCORR_FLAT { return Doubles{} + 1.0; });
  to.count += count;
  if (!(count > 0)) return;
  if (zero_mean) {
    const int64_t heaviest =
        std::max_element(of.weight.begin(), of.weight.end()) - of.weight.begin();
    subtract_mean(of, heaviest, count, of.seen);
    subtract_mean(of, heaviest, count, of.templ);
  }
  const double *x = of.seen.data(), *t = of.templ.data();
  const auto products_of = [&](const double* a, const double* b) TORCHCORR_FLAT {
    return weighted_sum(of,
                        [&](int64_t i) TORCHCORR_FLAT { return read(a + i) * read(b + i); });
  };
  to.energy += products_of(x, x), to.other += products_of(t, t), to.product += products_of(x, t);
}

TORCHCORR_CLONES void multiply(int64_t n, const double* a, const double* b, double* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = (a ? a[i] : 1.0) * (b ? b[i] : 1.0);
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
    Elements of(together * product(window));
    for (int64_t k = begin; k < end; ++k) {
      const int64_t* at = place + k * (1 + ndim);
      const int64_t lead = at[0];
      Axes3 from{0, 0, 0};
      for (int64_t i = 0; i < ndim; ++i) from[3 - ndim + i] = at[1 + i] * stride[3 - ndim + i];
      WindowSums sums;
      for (int64_t first = 0; first < channels; first += together) {
        int64_t next = 0;
        for (int64_t c = first; c < first + together; ++c) {
          for (int64_t z = 0; z < window[0]; ++z) {
            for (int64_t y = 0; y < window[1]; ++y, next += window[2]) {
              const Axes3 origin{0, 0, 0};
              std::copy_n(seen.row(lead, c, from, z, y), window[2], &of.seen[next]);
              std::copy_n(other.row(lead, c, origin, z, y), window[2], &of.templ[next]);
              multiply(window[2], there ? there->row(lead, c, from, z, y) : nullptr,
                       mask ? mask->row(lead, c, origin, z, y) : nullptr, &of.weight[next]);
            }
          }
        }
        add_sums(of, zero_mean, sums);
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
