// What scores of dense layers and their gradients need beside sums of products: the norms of
// windows, and what goes through them into the gradient of the input. All in float64 and by sums of
// single rows, which subtract nothing: that costs little beside the products.

#include <algorithm>
#include <cmath>

#include "common/axes.h"
#include "common/large_pages.h"
#include "common/parallel.h"
#include "common/vectors.h"

namespace torchcorr {
namespace {

// Channels that share what goes through the norms, elements of an image that are centred at a time,
// and those that are worth another thread.
constexpr int64_t kChannels = 16, kStrip = 2048, kGrain = 1 << 15;

// Windows of images (items, C, *size), with missing axes in front.
struct Windows {
  int64_t items, channels;
  Axes3 size, window, step, count;

  Windows(const Tensor& x, const Sizes& of, const Sizes& stride)
      : items(x.size(0)), channels(x.size(1)),
        size(last_sizes(x, static_cast<int64_t>(of.size()))), window(last_axes(of)),
        step(last_axes(stride)) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_contiguous(),
                    "dense windows take contiguous float32");
    for (int a = 0; a < 3; ++a) count[a] = (size[a] - window[a]) / step[a] + 1;
  }
  int64_t elements() const { return product(size); }
  int64_t positions() const { return product(count); }
  int64_t rows() const { return count[0] * count[1]; }  // of windows
  double of_channel() const { return static_cast<double>(product(window)); }
  double of_window() const { return of_channel() * static_cast<double>(channels); }
  Sizes map() const {
    return {items, count[0], count[1], count[2]};
  }
};

// Rows are read a vector further than they are long.
std::vector<double> new_row(int64_t n) { return std::vector<double>(n + 2 * kDoubles); }

TORCHCORR_CLONES double sum_of_elements(int64_t n, const float* x) { return sum_of_row(n, x); }

// Writes x - level, and adds it, if there is a place for that, and its square; the sum of squares.
template <bool SUMS>
TORCHCORR_INLINE double centre(int64_t n, const float* x, double level, float* out, double* sum,
                               double* square) {
  Doubles total = {};
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) {
    const Doubles d = read(x + i) - level;
    write(out + i, d);
    if constexpr (SUMS) write(sum + i, read(sum + i) + d);
    write(square + i, read(square + i) + d * d);
    total += d * d;
  }
  double rest = 0;
  for (; i < n; ++i) {
    const double d = static_cast<double>(x[i]) - level;
    out[i] = static_cast<float>(d);
    if constexpr (SUMS) sum[i] += d;
    square[i] += d * d;
    rest += d * d;
  }
  return total_of(total) + rest;
}

TORCHCORR_CLONES double centre_elements(int64_t n, const float* x, double level, float* out,
                                        double* sum, double* square) {
  return sum ? centre<true>(n, x, level, out, sum, square)
             : centre<false>(n, x, level, out, sum, square);
}

// Adds x - level.
TORCHCORR_CLONES void add_deviations(int64_t n, const float* x, double level, double* sum) {
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) write(sum + i, read(sum + i) + (read(x + i) - level));
  for (; i < n; ++i) sum[i] += static_cast<double>(x[i]) - level;
}

TORCHCORR_CLONES void add_row(int64_t n, const double* x, double* to) {
  for (int64_t i = 0; i < n; ++i) to[i] += x[i];
}

// Sums of `window` neighbours.
TORCHCORR_CLONES void sum_neighbours(int64_t n, int64_t window, const double* x, double* out) {
  for (int64_t i = 0; i < n; i += kDoubles) {
    Doubles total = {};
    for (int64_t j = 0; j < window; ++j) total += read(x + i + j);
    write(out + i, total);
  }
}

// The sums of a row of windows, from those of their columns.
void sum_columns(const Windows& w, const double* columns, double* out) {
  const int64_t step = w.step[2], n = w.count[2];
  sum_neighbours((n - 1) * step + 1, w.window[2], columns, out);
  for (int64_t i = 1; step > 1 && i < n; ++i) out[i] = out[i * step];
}

// Calls add(offset) for the rows of elements that a row of windows consists of.
template <class Add>
void for_rows_of(const Windows& w, int64_t row, const Add& add) {
  const int64_t z = row / w.count[1] * w.step[0], y = row % w.count[1] * w.step[1];
  for (int64_t i = 0; i < w.window[0]; ++i) {
    for (int64_t j = 0; j < w.window[1]; ++j) add(((z + i) * w.size[1] + y + j) * w.size[2]);
  }
}

// The sums of a row of windows of one channel, relative to its level; `columns` is scratch.
void sum_channel(const Windows& w, const float* channel, double level, int64_t row, double* columns,
                 double* out) {
  std::fill_n(columns, w.size[2], 0.0);
  for_rows_of(w, row, [&](int64_t at) {
    add_deviations(w.size[2], channel + at, level, columns);
  });
  sum_columns(w, columns, out);
}

// The same of a map that the channels have in common.
void sum_map(const Windows& w, const double* map, int64_t row, double* columns, double* out) {
  std::fill_n(columns, w.size[2], 0.0);
  for_rows_of(w, row, [&](int64_t at) { add_row(w.size[2], map + at, columns); });
  sum_columns(w, columns, out);
}

TORCHCORR_CLONES void add_squares(int64_t n, const double* x, double by, double* to) {
  for (int64_t i = 0; i < n; i += kDoubles) {
    write(to + i, read(to + i) + read(x + i) * read(x + i) * by);
  }
}

struct NormRule {
  bool zero_mean, own_means;
  double eps;
};

// The least energy of a row's windows relative to their mean square, without eps and with it; below
// zero if it is not a number.
struct Clear {
  double of_energy = INFINITY, of_softened = INFINITY;
};

// An image, the levels of its channels, and over these the sums of what lies above the levels,
// unless each channel has its own mean, and of the squares of that.
struct Image {
  const float* elements;
  const double *levels, *sums, *squares;
};

class NormRows {
 public:
  NormRows(const Windows& w, const NormRule& rule)
      : w_(w), rule_(rule), columns_(new_row(w.size[2])), box_(new_row(w.size[2])),
        taken_(new_row(w.size[2])) {}

  Clear run(const Image& image, int64_t row, double* norms, double* means) {
    std::fill(taken_.begin(), taken_.end(), 0.0);
    const int64_t n = w_.count[2];
    const double all = w_.of_window();
    for (int64_t c = 0; rule_.own_means && c < w_.channels; ++c) {
      const float* channel = image.elements + c * w_.elements();
      sum_channel(w_, channel, image.levels[c], row, columns_.data(), box_.data());
      add_squares(n, box_.data(), 1 / w_.of_channel(), taken_.data());
    }
    if (!rule_.own_means) {
      sum_map(w_, image.sums, row, columns_.data(), box_.data());
      if (rule_.zero_mean) add_squares(n, box_.data(), 1 / all, taken_.data());
      for (int64_t i = 0; i < n; ++i) means[i] = rule_.zero_mean ? box_[i] / all : 0.0;
    }
    sum_map(w_, image.squares, row, columns_.data(), box_.data());
    Clear clear;
    for (int64_t i = 0; i < n; ++i) {
      const double energy = (box_[i] - taken_[i]) / all, soft = energy + rule_.eps;
      norms[i] = 1 / (all * std::sqrt(soft));
      const double ratio = energy / box_[i] * all;
      if (!(ratio > 0)) return {-1.0, -1.0};
      clear.of_energy = std::min(clear.of_energy, ratio);
      clear.of_softened = std::min(clear.of_softened, soft / box_[i] * all);
    }
    return clear;
  }

 private:
  const Windows& w_;
  const NormRule rule_;
  std::vector<double> columns_, box_, taken_;
};

// Of each window 1 / (N sigma); the images minus their levels, these (items, C) and the sums of squares
// of that (items, C); of windows the means, which are empty for own means; and the least energies.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> dense_norms(
    const Tensor& x, Sizes window, Sizes stride, bool zero_mean, bool own_means, double eps) {
  const Windows w(x, window, stride);
  const NormRule rule{zero_mean, own_means, eps};
  const int64_t n = w.elements(), rows = w.rows(), strips = ceil_div(n, kStrip);
  const Sizes of_channels{w.items, w.channels};
  const Tensor levels = new_float64(x, of_channels), squares = new_float64(x, of_channels);
  const Tensor norms = new_float64(x, w.map());
  const Tensor means = new_float64(x, own_means ? Sizes{0} : w.map());
  const Tensor clear = new_float64(x, {2}), centred = new_map(x, sizes_of(x));
  const int64_t grain = std::max<int64_t>(1, kGrain / n);
  const int64_t work = (own_means ? w.channels : 2) * w.window[0] * w.window[1] * w.size[2];
  std::vector<double> sum(own_means ? 0 : n), square(n), of_strips(strips * w.channels);
  std::vector<Clear> least(rows);
  Clear all;
  // Image by image, which stays near meanwhile.
  for (int64_t item = 0; item < w.items; ++item) {
    const float* from = x.const_data_ptr<float>() + item * w.channels * n;
    float* to = centred.mutable_data_ptr<float>() + item * w.channels * n;
    double* level = levels.mutable_data_ptr<double>() + item * w.channels;
    parallel_for(0, w.channels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        level[c] = zero_mean ? sum_of_elements(n, from + c * n) : 0.0;
      }
    });
    const int64_t shared = own_means ? 1 : w.channels;
    for (int64_t first = 0; first < w.channels; first += shared) {
      double total = 0;
      for (int64_t c = first; c < first + shared; ++c) total += level[c];
      const float mean = static_cast<float>(total / static_cast<double>(n * shared));
      std::fill_n(level + first, shared, static_cast<double>(mean));
    }
    std::fill(sum.begin(), sum.end(), 0.0);
    std::fill(square.begin(), square.end(), 0.0);
    parallel_for(0, strips, std::max<int64_t>(1, kGrain / (kStrip * w.channels)),
                 [&](int64_t begin, int64_t end) {
      for (int64_t strip = begin; strip < end; ++strip) {
        const int64_t first = strip * kStrip, some = std::min(kStrip, n - first);
        double* sums = own_means ? nullptr : sum.data() + first;
        for (int64_t c = 0; c < w.channels; ++c) {
          const int64_t at = c * n + first;
          of_strips[strip * w.channels + c] =
              centre_elements(some, from + at, level[c], to + at, sums, square.data() + first);
        }
      }
    });
    double* of_item = squares.mutable_data_ptr<double>() + item * w.channels;
    std::fill_n(of_item, w.channels, 0.0);
    for (int64_t i = 0; i < strips * w.channels; ++i) of_item[i % w.channels] += of_strips[i];
    double* norm = norms.mutable_data_ptr<double>() + item * w.positions();
    double* mean = own_means ? nullptr : means.mutable_data_ptr<double>() + item * w.positions();
    const Image image{from, level, sum.data(), square.data()};
    parallel_for(0, rows, std::max<int64_t>(1, kGrain / work), [&](int64_t begin, int64_t end) {
      NormRows of(w, rule);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = row * w.count[2];
        least[row] = of.run(image, row, norm + at, mean ? mean + at : nullptr);
      }
    });
    for (const Clear& one : least) {
      all.of_energy = std::min(all.of_energy, one.of_energy);
      all.of_softened = std::min(all.of_softened, one.of_softened);
    }
  }
  clear.mutable_data_ptr<double>()[0] = all.of_energy;
  clear.mutable_data_ptr<double>()[1] = all.of_softened;
  return {norms, centred, levels, squares, means, clear};
}

// to += added - (x - level) * by; the largest size of the result.
TORCHCORR_CLONES double add_through(int64_t n, const double* added, const float* x, double level,
                                    const double* by, float* to) {
  Doubles most = {};
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) {
    const Doubles d = read(x + i) - level;
    const Doubles total = read(to + i) + (read(added + i) - d * read(by + i));
    write(to + i, total);
    const Doubles size = total < 0 ? -total : total;
    most = size > most ? size : most;
  }
  double largest = 0;
  for (int64_t l = 0; l < kDoubles; ++l) largest = std::max(largest, most[l]);
  for (; i < n; ++i) {
    const double d = static_cast<double>(x[i]) - level;
    const double total = static_cast<double>(to[i]) + (added[i] - d * by[i]);
    to[i] = static_cast<float>(total);
    largest = std::max(largest, std::abs(total));
  }
  return largest;
}

// Maps of one item spread over the elements of their windows.
class Spread {
 public:
  explicit Spread(const Windows& w)
      : w_(w), line_(new_row(w.size[2] + w.window[2])) {}

  // The output has room for a vector behind its end.
  void run(const double* map, double* out) {
    const int64_t wide = w_.size[2];
    for (int64_t z = 0; z < w_.size[0]; ++z) {
      for (int64_t y = 0; y < w_.size[1]; ++y, out += wide) {
        std::fill(line_.begin(), line_.end(), 0.0);
        const auto [front, behind] = covering(z, 0);
        const auto [top, bottom] = covering(y, 1);
        for (int64_t a = front; a < behind; ++a) {
          for (int64_t b = top; b < bottom; ++b) add(map + (a * w_.count[1] + b) * w_.count[2]);
        }
        sum_neighbours(wide, w_.window[2], line_.data(), out);
      }
    }
  }

 private:
  // The windows that contain an element along an axis: from the first up to the second.
  std::pair<int64_t, int64_t> covering(int64_t at, int axis) const {
    const int64_t before = at - w_.window[axis] + 1, step = w_.step[axis];
    return {before <= 0 ? 0 : ceil_div(before, step), std::min(at / step + 1, w_.count[axis])};
  }
  void add(const double* row) {
    double* to = line_.data() + w_.window[2] - 1;
    if (w_.step[2] == 1) return add_row(w_.count[2], row, to);
    for (int64_t i = 0; i < w_.count[2]; ++i) to[i * w_.step[2]] += row[i];
  }

  const Windows& w_;
  std::vector<double> line_;
};

// Adds what goes through the norms to a gradient (items, C, *size): of `share` (items, *positions) the
// means times it, spread, minus deviations times it, spread. Means are those of channels where none
// are given. The largest size of each part of the result.
Tensor dense_spread(const Tensor& x, const Tensor& levels, const Tensor& means, const Tensor& share,
                    Sizes window, Sizes stride, const Tensor& out) {
  const Windows w(x, window, stride);
  const int64_t parts = ceil_div(w.channels, kChannels), n = w.elements(), m = w.positions();
  const Tensor largest = new_float64(x, {w.items, parts});
  const float* from = x.const_data_ptr<float>();
  const double *level = levels.const_data_ptr<double>(), *shares = share.const_data_ptr<double>();
  const bool own_means = means.numel() == 0;
  const double* mean = own_means ? nullptr : means.const_data_ptr<double>();
  float* to = out.mutable_data_ptr<float>();
  double* most = largest.mutable_data_ptr<double>();
  const int64_t work = kChannels * n * (w.window[1] + w.window[2]);
  parallel_for(0, w.items * parts, std::max<int64_t>(1, kGrain / work),
               [&](int64_t begin, int64_t end) {
    std::vector<double> by = new_row(n), added = new_row(n), map(m), columns = new_row(w.size[2]),
        box = new_row(w.size[2]);
    const double each = 1 / w.of_channel();
    Spread spread(w);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t item = unit / parts, first = unit % parts * kChannels;
      const double* of_item = shares + item * m;
      spread.run(of_item, by.data());
      if (!own_means) {
        for (int64_t i = 0; i < m; ++i) map[i] = of_item[i] * mean[item * m + i];
        spread.run(map.data(), added.data());
      }
      most[unit] = 0;
      for (int64_t c = first; c < std::min(first + kChannels, w.channels); ++c) {
        const int64_t i = item * w.channels + c;
        for (int64_t row = 0; own_means && row < w.rows(); ++row) {
          sum_channel(w, from + i * n, level[i], row, columns.data(), box.data());
          for (int64_t u = 0; u < w.count[2]; ++u) {
            const int64_t at = row * w.count[2] + u;
            map[at] = of_item[at] * box[u] * each;
          }
        }
        if (own_means) spread.run(map.data(), added.data());
        const double size =
            add_through(n, added.data(), from + i * n, level[i], by.data(), to + i * n);
        most[unit] = std::max(most[unit], size);
      }
    }
  });
  return largest;
}

// For each element of a template the sum of what all windows see there, (C, *window).
Tensor dense_position_sums(const Tensor& x, Sizes window, Sizes stride) {
  const Windows w(x, window, stride);
  Sizes shape{w.channels};
  shape.insert(shape.end(), window.begin(), window.end());
  const Tensor out = new_float64(x, shape);
  const float* from = x.const_data_ptr<float>();
  double* to = out.mutable_data_ptr<double>();
  const int64_t n = w.elements(), each = product(w.window);
  parallel_for(0, w.channels, std::max<int64_t>(1, kGrain / (w.items * n)),
               [&](int64_t begin, int64_t end) {
    std::vector<double> plane(n), rows(w.size[0] * w.size[1] * w.window[2]);
    for (int64_t c = begin; c < end; ++c) {
      std::fill(plane.begin(), plane.end(), 0.0);
      for (int64_t item = 0; item < w.items; ++item) {
        add_deviations(n, from + (item * w.channels + c) * n, 0.0, plane.data());
      }
      // Along the rows first.
      double* sums = rows.data();
      for (int64_t row = 0; row < w.size[0] * w.size[1]; ++row) {
        for (int64_t v = 0; v < w.window[2]; ++v, ++sums) {
          *sums = 0;
          const double* seen = plane.data() + row * w.size[2] + v;
          for (int64_t u = 0; u < w.count[2]; ++u) *sums += seen[u * w.step[2]];
        }
      }
      for (int64_t v = 0; v < each; ++v) {
        const Axes3 at = unravel(v, w.window);
        double total = 0;
        for (int64_t row = 0; row < w.rows(); ++row) {
          const int64_t z = row / w.count[1] * w.step[0] + at[0];
          const int64_t y = row % w.count[1] * w.step[1] + at[1];
          total += rows[(z * w.size[1] + y) * w.window[2] + at[2]];
        }
        to[c * each + v] = total;
      }
    }
  });
  return out;
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("dense_norms", TORCH_BOX(&torchcorr::dense_norms));
  m.impl("dense_position_sums", TORCH_BOX(&torchcorr::dense_position_sums));
  m.impl("dense_spread", TORCH_BOX(&torchcorr::dense_spread));
}
