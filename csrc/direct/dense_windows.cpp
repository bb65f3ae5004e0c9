// Norms of the windows of dense layers. All in float64 and by sums of single rows, which subtract
// nothing: that costs little beside the products.

#include "direct/dense_windows.h"

#include <cmath>

#include "common/large_pages.h"
#include "common/parallel.h"

namespace torchcorr::direct {
namespace {

// Elements of a plane whose sums stay near while channels pass.
constexpr int64_t kBand = 3072;
// Channels that are added up in registers.
constexpr int64_t kTogether = 4;
// Of so many rows of a channel every few are enough for its level.
constexpr int64_t kRows = 16, kSampled = 4;
// Squares of means, relative to variances, that need not be taken out of images: sums of products
// lose less than two bits with them.
constexpr double kLevel = 8;

struct NormRule {
  bool zero_mean, own_means;
  double eps;
};

// The least energy of windows relative to their mean square, without eps and with it; below zero if
// it is not a number.
struct Clear {
  double of_energy = INFINITY, of_softened = INFINITY;

  void add(const Clear& other) {
    of_energy = std::min(of_energy, other.of_energy);
    of_softened = std::min(of_softened, other.of_softened);
  }
};

// Of a channel, from every few of its rows: a level need not be its mean, only close to it.
struct Sample {
  double sum = 0, square = 0, count = 0;

  void add(const Sample& other) {
    sum += other.sum;
    square += other.square;
    count += other.count;
  }
};

template <int BYTES>
TORCHCORR_INLINE Sample sample_channel(const Windows& w, const float* x) {
  constexpr int64_t lanes = lanes_of<double, BYTES>;
  const int64_t rows = w.size[0] * w.size[1], n = w.size[2], step = rows < kRows ? 1 : kSampled;
  Wide<BYTES> sum = {}, square = {};
  Sample all;
  for (int64_t r = 0; r < rows; r += step) {
    const float* row = x + r * n;
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
      const Wide<BYTES> v = widened<BYTES>(row + i);
      sum += v;
      square += v * v;
    }
    for (; i < n; ++i) {
      const double v = static_cast<double>(row[i]);
      all.add({v, v * v, 0});
    }
    all.count += static_cast<double>(n);
  }
  all.add({sum_of_lanes(sum), sum_of_lanes(square), 0});
  return all;
}
TORCHCORR_FOR_CPUS(Sample, sample_channel, (const Windows& w, const float* x), (w, x))

// Some rows of windows of one plane, and the elements below their first one: those that they meet,
// and those that no other band centres.
struct Band {
  int64_t rows, planes, below, own_planes, own_below;
  int64_t pitch, line;  // of windows and of elements

  Band(const Windows& w, int64_t plane, int64_t first, int64_t last)
      : rows(last - first), planes(w.window[0]), below((rows - 1) * w.step[1] + w.window[1]),
        own_planes(until_next(w, 0, plane, plane + 1)), own_below(until_next(w, 1, first, last)),
        pitch(w.pitch()), line(w.line()) {}

 private:
  static int64_t until_next(const Windows& w, int axis, int64_t from, int64_t to) {
    return (to == w.count[axis] ? w.size[axis] : to * w.step[axis]) - from * w.step[axis];
  }
};

// Of a band, over the channels: sums of squares of what lies above the levels and, unless each
// channel has its own mean, of that itself; and of each window what the means take from its energy.
struct BandSums {
  LineVector<double> square, sum, taken;
  LineVector<double> lines, unused, along, box;  // scratch

  BandSums(const Windows& w, const Band& b, bool own_means)
      : square(b.planes * b.below * b.line, 0.0), sum(own_means ? 0 : square.size(), 0.0),
        taken(b.rows * b.pitch, 0.0), lines(kTogether * b.line, 0.0), unused(b.line, 0.0),
        along(b.planes * std::max(b.below, own_means ? kTogether * w.window[1] : 0) * b.pitch),
        box(taken.size()) {}
};

// What a band meets of a channel, from its first element on; where that is centred, or nothing.
struct Seen {
  const float* x;
  double level;
  float* centred;
};

// Where what comes of a row goes: d = x - level of each channel, `pitch` apart, or what they add up
// to, and the sum of their squares.
struct Sums {
  double *line, *square;
  int64_t pitch;
};

// Of some elements of a row, VECTORS vectors of them, in up to kTogether channels. Writes d to
// `centred`, if OUT, and adds its squares to the totals of each channel.
template <int BYTES, bool OUT, bool OWN, int VECTORS>
TORCHCORR_INLINE void centre_block(int64_t channels, const Seen* of, int64_t at, int64_t i,
                                   const Sums& to, Wide<BYTES>* totals) {
  constexpr int64_t lanes = lanes_of<double, BYTES>;
  Wide<BYTES> sums[VECTORS], squares[VECTORS];
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    if constexpr (!OWN) sums[v] = load<BYTES>(to.line + i + v * lanes);
    squares[v] = load<BYTES>(to.square + i + v * lanes);
  }
  for (int64_t c = 0; c < channels; ++c) {
    const double level = of[c].level;
    Wide<BYTES> total = {};
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t k = i + v * lanes;
      const Wide<BYTES> d = widened<BYTES>(of[c].x + at + k) - level, by = d * d;
      if constexpr (OUT) put(d, of[c].centred + at + k);
      if constexpr (OWN) put(d, to.line + c * to.pitch + k);
      if constexpr (!OWN) sums[v] += d;
      squares[v] += by;
      total += by;
    }
    totals[c] += total;
  }
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    if constexpr (!OWN) put(sums[v], to.line + i + v * lanes);
    put(squares[v], to.square + i + v * lanes);
  }
}

// The same for a row of n elements; the totals of those that fill no vector are apart.
template <int BYTES, bool OUT, bool OWN>
TORCHCORR_INLINE void centre_row(int64_t n, int64_t channels, const Seen* of, int64_t at,
                                 const Sums& to, Wide<BYTES>* totals, double* rest) {
  constexpr int64_t lanes = lanes_of<double, BYTES>;
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    centre_block<BYTES, OUT, OWN, 4>(channels, of, at, i, to, totals);
  }
  for (; i + lanes <= n; i += lanes) {
    centre_block<BYTES, OUT, OWN, 1>(channels, of, at, i, to, totals);
  }
  for (; i < n; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      const double d = static_cast<double>(of[c].x[at + i]) - of[c].level;
      if constexpr (OUT) of[c].centred[at + i] = static_cast<float>(d);
      double& sum = to.line[c * to.pitch + i];
      sum = OWN ? d : sum + d;
      to.square[i] += d * d;
      rest[c] += d * d;
    }
  }
}

// What the means of windows take from their energy in some channels, for COUNT blocks from the i-th
// window on. `rows` are sums along those of the first channel; those of the next lie `pitch` behind.
template <int BYTES, int COUNT>
TORCHCORR_INLINE void add_taken(int64_t i, int64_t channels, Rows rows, int64_t pitch, double each,
                                double* taken) {
  Block<BYTES, COUNT> total = {};
  total.add(taken + i);
  for (int64_t c = 0; c < channels; ++c, rows.first += pitch) {
    const auto sums = sum_of_rows<BYTES, COUNT>(rows, i);
#pragma GCC unroll 8
    for (int v = 0; v < sums.vectors; ++v) {
      total.values[v] += sums.values[v] * sums.values[v] * each;
    }
  }
  total.write(taken + i);
}

// Adds what a band meets of up to kTogether channels; writes the sums of squares of their elements
// that are centred here. If each has its OWN mean, sums along as many rows as a window has are kept.
template <int BYTES, bool OWN>
TORCHCORR_INLINE void add_channels(const Windows& w, const Band& b, int64_t channels,
                                   const Seen* of, BandSums& s, double* squares) {
  const int64_t n = w.size[2], kept = w.window[1], of_channel = b.planes * kept * b.pitch;
  const bool out = of[0].centred != nullptr;
  const double each = 1 / w.of_channel();
  Wide<BYTES> totals[kTogether] = {}, unused[kTogether] = {};
  double unused_rest[kTogether] = {};
  std::fill_n(squares, channels, 0.0);
  for (int64_t r = 0; r < std::max(b.below, b.own_below); ++r) {
    for (int64_t a = 0; a < std::max(b.planes, b.own_planes); ++a) {
      const bool met = a < b.planes && r < b.below, own = a < b.own_planes && r < b.own_below;
      if (!met && !own) continue;
      const int64_t row = a * b.below + r, at = (a * w.size[1] + r) * n;
      const Sums to{OWN || !met ? s.lines.data() : s.sum.data() + row * b.line,
                    met ? s.square.data() + row * b.line : s.unused.data(), OWN ? b.line : 0};
      if (own && out) {
        centre_row<BYTES, true, OWN>(n, channels, of, at, to, totals, squares);
      } else {
        centre_row<BYTES, false, OWN>(n, channels, of, at, to, own ? totals : unused,
                                      own ? squares : unused_rest);
      }
      for (int64_t c = 0; OWN && met && c < channels; ++c) {
        double* along = s.along.data() + c * of_channel + (a * kept + r % kept) * b.pitch;
        sum_row<BYTES>(w, s.lines.data() + c * b.line, along);
      }
    }
    const int64_t first = r - kept + 1;
    if (OWN && r < b.below && first >= 0 && first % w.step[1] == 0) {
      const Rows rows{s.along.data(), 1, 0, b.planes * kept, b.pitch};
      double* taken = s.taken.data() + first / w.step[1] * b.pitch;
      for_blocks(b.pitch, [&](auto blocks, int64_t i) TORCHCORR_FLAT {
        add_taken<BYTES, blocks>(i, channels, rows, of_channel, each, taken);
      });
    }
  }
  for (int64_t c = 0; c < channels; ++c) squares[c] += sum_of_lanes(totals[c]);
}

template <int BYTES>
TORCHCORR_INLINE void add_channels(const Windows& w, const Band& b, int64_t channels,
                                   const Seen* of, bool own_means, BandSums& s, double* squares) {
  own_means ? add_channels<BYTES, true>(w, b, channels, of, s, squares)
            : add_channels<BYTES, false>(w, b, channels, of, s, squares);
}
TORCHCORR_FOR_CPUS(void, add_channels,
                   (const Windows& w, const Band& b, int64_t channels, const Seen* of,
                    bool own_means, BandSums& s, double* squares),
                   (w, b, channels, of, own_means, s, squares))

// The sums of a band's windows in a map that the channels have in common.
template <int BYTES>
TORCHCORR_INLINE void sum_windows(const Windows& w, const Band& b, const LineVector<double>& map,
                                  BandSums& s) {
  for (int64_t row = 0; row < b.planes * b.below; ++row) {
    sum_row<BYTES>(w, map.data() + row * b.line, s.along.data() + row * b.pitch);
  }
  for (int64_t r = 0; r < b.rows; ++r) {
    const Rows rows{s.along.data() + r * w.step[1] * b.pitch, b.planes, b.below * b.pitch,
                    w.window[1], b.pitch};
    for_blocks(b.pitch, [&](auto blocks, int64_t i) TORCHCORR_FLAT {
      sum_of_rows<BYTES, blocks>(rows, i).write(s.box.data() + r * b.pitch + i);
    });
  }
}
TORCHCORR_FOR_CPUS(void, sum_windows,
                   (const Windows& w, const Band& b, const LineVector<double>& map, BandSums& s),
                   (w, b, map, s))

// Norms of a row of windows, from sums of squares and what the means take from these.
template <int BYTES>
TORCHCORR_INLINE Clear norms_of_row(int64_t n, double all, double eps, const double* squares,
                                    const double* taken, double* norms) {
  constexpr int64_t lanes = lanes_of<double, BYTES>;
  const double each = 1 / all;
  Clear clear;
  for (int64_t i = 0; i < n; i += lanes) {
    const Wide<BYTES> box = load<BYTES>(squares + i);
    const Wide<BYTES> energy = (box - load<BYTES>(taken + i)) * each, soft = energy + eps;
    const Wide<BYTES> scale = all / box;
    Wide<BYTES> root = soft;
#pragma GCC unroll 8
    for (int l = 0; l < lanes; ++l) root[l] = std::sqrt(root[l]);
    const Wide<BYTES> norm = each / root, ratio = energy * scale, softened = soft * scale;
    for (int l = 0; l < std::min(lanes, n - i); ++l) {
      norms[i + l] = norm[l];
      if (!(ratio[l] > 0)) return {-1.0, -1.0};
      clear.add({ratio[l], softened[l]});
    }
  }
  return clear;
}
TORCHCORR_FOR_CPUS(Clear, norms_of_row,
                   (int64_t n, double all, double eps, const double* squares, const double* taken,
                    double* norms),
                   (n, all, eps, squares, taken, norms))

Clear write_norms(const Windows& w, const Band& b, const NormRule& rule, BandSums& s, double* norms,
                  double* means) {
  const int64_t n = w.count[2];
  const double all = w.of_window(), each = rule.zero_mean ? 1 / all : 0.0;
  if (!rule.own_means) {
    sum_windows(w, b, s.sum, s);
    for (int64_t i = 0; i < b.rows * n; ++i) {
      const int64_t at = i / n * b.pitch + i % n;
      means[i] = s.box[at] * each;
      s.taken[at] = means[i] * s.box[at];
    }
  }
  sum_windows(w, b, s.square, s);
  Clear clear;
  for (int64_t r = 0; r < b.rows; ++r) {
    const int64_t at = r * b.pitch;
    clear.add(norms_of_row(n, all, rule.eps, s.box.data() + at, s.taken.data() + at, norms + r * n));
  }
  return clear;
}

// A level for each channel, or one for all, that float32 holds. Returns whether any is not 0, which
// they are where that is exact enough, unless they `must` not.
bool find_levels(const Windows& w, const NormRule& rule, bool must, const float* x,
                 double* levels) {
  const int64_t n = w.elements(), all = w.items * w.channels;
  std::fill_n(levels, all, 0.0);
  if (!rule.zero_mean) return false;
  std::vector<Sample> samples(all);
  parallel_for(0, all, std::max<int64_t>(1, kGrain / n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) samples[i] = sample_channel(w, x + i * n);
  });
  const int64_t shared = rule.own_means ? 1 : w.channels;
  for (int64_t item = 0; item < w.items; ++item) {
    double squares = 0, of_levels = 0;
    for (int64_t c = item * w.channels; c < (item + 1) * w.channels; c += shared) {
      Sample of;
      for (int64_t i = c; i < c + shared; ++i) of.add(samples[i]);
      const double mean = of.sum / of.count;
      std::fill_n(levels + c, shared, static_cast<double>(static_cast<float>(mean)));
      squares += of.square;
      of_levels += mean * of.sum;
    }
    must = must || !(of_levels <= kLevel * (squares - of_levels));
  }
  if (!must) std::fill_n(levels, all, 0.0);
  return must;
}

// Of each window 1 / (N sigma); the images minus their levels, or nothing if all of these are 0; the
// levels (items, C) and the sums of squares of what lies above them (items, C); of windows the means,
// which are empty for own means; and the least energies. With `centred` levels are close to means.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> dense_norms(
    const Tensor& x, Sizes window, Sizes stride, bool zero_mean, bool own_means, double eps,
    bool centred) {
  const Windows w(x, window, stride);
  const NormRule rule{zero_mean, own_means, eps};
  const Sizes of_channels{w.items, w.channels};
  const Tensor levels = new_float64(of_channels), squares = new_float64(of_channels);
  const Tensor norms = new_float64(w.map());
  const Tensor means = new_float64(own_means ? Sizes{0} : w.map());
  const Tensor clear = new_float64({2});
  const float* from = x.const_data_ptr<float>();
  double* level = levels.mutable_data_ptr<double>();
  const bool moved = find_levels(w, rule, centred, from, level);
  const Tensor above = new_map(x, moved ? sizes_of(x) : Sizes{0});
  float* to = moved ? above.mutable_data_ptr<float>() : nullptr;
  double* norm = norms.mutable_data_ptr<double>();
  double* mean = own_means ? nullptr : means.mutable_data_ptr<double>();
  // Bands have at least as many rows as a window, since they share all but one of these.
  const int64_t fitting = (kBand / w.line() - w.window[1]) / w.step[1] + 1;
  const int64_t bands = ceil_div(w.count[1], std::max(fitting, w.window[1]));
  const int64_t rows = ceil_div(w.count[1], bands), of_item = w.count[0] * bands;
  const int64_t units = w.items * of_item, n = w.elements();
  std::vector<double> of_units(units * w.channels);
  std::vector<Clear> least(units);
  const int64_t work = n * w.channels * (w.window[1] + w.window[2]) / of_item;
  parallel_for(0, units, std::max<int64_t>(1, kGrain / work), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t item = unit / of_item, z = unit / bands % w.count[0];
      const int64_t first = unit % bands * rows, last = std::min(first + rows, w.count[1]);
      if (first >= last) continue;
      const Band band(w, z, first, last);
      BandSums sums(w, band, own_means);
      const int64_t at = (z * w.step[0] * w.size[1] + first * w.step[1]) * w.size[2];
      for (int64_t c = 0; c < w.channels; c += kTogether) {
        Seen seen[kTogether];
        const int64_t some = std::min(kTogether, w.channels - c);
        for (int64_t k = 0; k < some; ++k) {
          const int64_t i = item * w.channels + c + k;
          seen[k] = {from + i * n + at, level[i], moved ? to + i * n + at : nullptr};
        }
        double* squares_of_unit = of_units.data() + unit * w.channels + c;
        add_channels(w, band, some, seen, own_means, sums, squares_of_unit);
      }
      const int64_t out = item * w.positions() + (z * w.count[1] + first) * w.count[2];
      least[unit] = write_norms(w, band, rule, sums, norm + out, mean ? mean + out : nullptr);
    }
  });
  double* of_items = squares.mutable_data_ptr<double>();
  std::fill_n(of_items, squares.numel(), 0.0);
  Clear all;
  for (int64_t unit = 0; unit < units; ++unit) {
    all.add(least[unit]);
    double* sums = of_items + unit / of_item * w.channels;
    for (int64_t c = 0; c < w.channels; ++c) sums[c] += of_units[unit * w.channels + c];
  }
  clear.mutable_data_ptr<double>()[0] = all.of_energy;
  clear.mutable_data_ptr<double>()[1] = all.of_softened;
  return {norms, above, levels, squares, means, clear};
}

}  // namespace
}  // namespace torchcorr::direct

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("dense_norms", TORCH_BOX(&torchcorr::direct::dense_norms));
}
