// Rows of sums; see emit_sums.h.

#include "tiles/emit_sums.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include "common/targets.h"

namespace torchcorr {
namespace {

// Every `step`th numerator.
template <class R, class Out>
TORCHCORR_INLINE void restore_row(int64_t n, const R* numerators, int64_t step, const Restore& by,
                                  Out* out) {
  const double unscale = by.unscale, offset = by.offset;
  const auto one = [=](int64_t i, int64_t at) TORCHCORR_FLAT {
    out[i] = static_cast<Out>(static_cast<double>(numerators[at]) * unscale + offset);
  };
  if (step == 2) {
    for (int64_t i = 0; i < n; ++i) one(i, 2 * i);
  } else {
    for (int64_t i = 0; i < n; ++i) one(i, i * step);
  }
}

// The same where each has an offset of its own.
template <class R>
TORCHCORR_INLINE void restore_each(int64_t n, const R* numerators, int64_t step, double unscale,
                                   const double* offsets, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<float>(static_cast<double>(numerators[i * step]) * unscale + offsets[i]);
  }
}
TORCHCORR_CLONES void restore_at_border(int64_t n, const float* numerators, int64_t step,
                                        double unscale, const double* offsets, float* out) {
  restore_each(n, numerators, step, unscale, offsets, out);
}
TORCHCORR_CLONES void restore_at_border(int64_t n, const double* numerators, int64_t step,
                                        double unscale, const double* offsets, float* out) {
  restore_each(n, numerators, step, unscale, offsets, out);
}

template <class Out>
TORCHCORR_INLINE int64_t unknown_row(int64_t n, const Out* values, double least, uint8_t* states) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool unknown = !(std::abs(static_cast<double>(values[i])) >= least);
    states[i] = unknown ? kUnknown : kGood;
    count += unknown;
  }
  return count;
}

template <int BYTES, class T>
TORCHCORR_INLINE Contents contents_of(int64_t n, const T* x) {
  constexpr int64_t kLanes = lanes_of<T, BYTES>;
  Vector<T, BYTES> most = {};
  Wide<BYTES> squares = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vector<T, BYTES> v = load<BYTES>(x + i), size = v < 0 ? -v : v;
    most = size > most ? size : most;
    for (int64_t l = 0; l < kLanes; l += lanes_of<double, BYTES>) {
      const Wide<BYTES> wide = widened<BYTES>(x + i + l);
      squares += wide * wide;
    }
  }
  Contents all{sum_of_lanes(squares), 0};
  for (; i < n; ++i) all.add(static_cast<double>(x[i]));
  for (int64_t l = 0; l < kLanes; ++l) {
    all.largest = std::max(all.largest, static_cast<double>(most[l]));
  }
  return all;
}

#define TORCHCORR_RESTORE(R, Out)                                                                 \
  TORCHCORR_CLONES void restore(int64_t n, const R* numerators, int64_t step, const Restore& by, \
                                Out* out) {                                                       \
    restore_row(n, numerators, step, by, out);                                                    \
  }
TORCHCORR_RESTORE(float, float)
TORCHCORR_RESTORE(double, float)
TORCHCORR_RESTORE(double, double)
#undef TORCHCORR_RESTORE

#define TORCHCORR_UNKNOWN(Out)                                                          \
  TORCHCORR_CLONES int64_t unknown(int64_t n, const Out* values, double least,          \
                                   uint8_t* states) {                                   \
    return unknown_row(n, values, least, states);                                       \
  }
TORCHCORR_UNKNOWN(float)
TORCHCORR_UNKNOWN(double)
#undef TORCHCORR_UNKNOWN

// The sum of a window of which only this part is inside its input, from the first element there.
template <class T>
double sum_of_part(const T* first, const double* templ, const ExactWindow& by, const Box& part) {
  const int64_t n = part[2].size();
  const ExactWindow line{1, {1, 1, n}, RowStrides({1, 1, n}), false, 0.0};
  double sum = 0;
  for (int64_t c = 0; c < by.channels; ++c) {
    for (int64_t z = 0; z < part[0].size(); ++z) {
      for (int64_t y = 0; y < part[1].size(); ++y) {
        const int64_t plane = c * by.window[0] + part[0].begin + z;
        const int64_t row = plane * by.window[1] + part[1].begin + y;
        const T* x = first + c * by.strides.channel + z * by.strides.plane + y * by.strides.row;
        sum += sum_of_window(x, templ + row * by.window[2] + part[2].begin, line);
      }
    }
  }
  return sum;
}

}  // namespace

TORCHCORR_FOR_CPUS(Contents, contents_of, (int64_t n, const float* x), (n, x))
TORCHCORR_FOR_CPUS(Contents, contents_of, (int64_t n, const double* x), (n, x))

// Calls f(offset in the tile's positions, place (z, y, x) in the map, positions) for each row of
// positions that belongs to the map.
template <class Out>
template <class F>
void SumMap<Out>::for_rows(const TilePlace& p, const F& f) const {
  const int64_t x = p.first(t_, 2), n = std::min(t_.outputs[2], map_[2] - x);
  for (int64_t row = 0; row < t_.outputs[0] * t_.outputs[1]; ++row) {
    const int64_t z = p.first(t_, 0) + row / t_.outputs[1];
    const int64_t y = p.first(t_, 1) + row % t_.outputs[1];
    if (z < map_[0] && y < map_[1]) f(row * t_.outputs[2], Axes3{z, y, x}, n);
  }
}

template <class Out>
Out* SumMap<Out>::row_of(const TilePlace& p, int64_t k, const Axes3& at) const {
  const int64_t which = p.item * templates_ + k;
  return out_ + ((which * map_[0] + at[0]) * map_[1] + at[1]) * map_[2] + at[2];
}

// Where a row of the first tile's numerators begins.
template <class Out>
int64_t SumMap<Out>::numerators_at(int64_t offset) const {
  const Axes3 at = unravel(offset, t_.outputs);
  return (at[0] * t_.stride[0] * t_.length[1] + at[1] * t_.stride[1]) * t_.length[2] * 2;
}

template <class Out>
template <class R>
void SumMap<Out>::write(const TilePlace& p, int64_t k, const R* numerators,
                        const Restore& by) const {
  for_rows(p, [&](int64_t offset, const Axes3& at, int64_t n) {
    const R* first = numerators + numerators_at(offset);
    if constexpr (std::is_same_v<Out, float>) {
      if (by.offsets) {
        const double* offsets = by.offsets->of_row(at[0] - p.first(t_, 0), at[1] - p.first(t_, 1));
        return restore_at_border(n, first, 2 * t_.stride[2], by.unscale, offsets, row_of(p, k, at));
      }
    }
    restore(n, first, 2 * t_.stride[2], by, row_of(p, k, at));
  });
}

template <class Out>
int64_t SumMap<Out>::mark_unknown(const TilePlace& p, int64_t k, const double* sizes,
                                  double unscale, double least, uint8_t* states) const {
  int64_t count = 0;
  for_rows(p, [&](int64_t offset, const Axes3& at, int64_t n) {
    if (!sizes) {
      count += unknown(n, row_of(p, k, at), least, states + offset);
      return;
    }
    const double* row = sizes + numerators_at(offset);
    for (int64_t i = 0; i < n; ++i) {
      uint8_t& state = states[offset + i];
      if (state == kUnknown && row[2 * i * t_.stride[2]] * unscale >= least) state = kGood;
      count += state == kUnknown;
    }
  });
  return count;
}

template <class Out>
int64_t SumMap<Out>::mark_zeros(const TilePlace& p, const double* counts, uint8_t* states) const {
  int64_t marked = 0;
  for_rows(p, [&](int64_t offset, const Axes3&, int64_t n) {
    const double* row = counts + numerators_at(offset);
    for (int64_t i = 0; i < n; ++i) {
      if (states[offset + i] != kUnknown || !(row[2 * i * t_.stride[2]] < 0.5)) continue;
      states[offset + i] = kFlat;
      ++marked;
    }
  });
  return marked;
}

template <class Out>
void SumMap<Out>::write_zeros(const TilePlace& p, int64_t k, const uint8_t* states) const {
  for_rows(p, [&](int64_t offset, const Axes3& at, int64_t n) {
    Out* row = row_of(p, k, at);
    for (int64_t i = 0; i < n; ++i) {
      if (states[offset + i] == kFlat) row[i] = 0;
    }
  });
}

template <class Out>
void SumMap<Out>::write_non_finite(const TilePlace& p, int64_t k, const double* signs,
                                   const double* counts) const {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  for_rows(p, [&](int64_t offset, const Axes3& at, int64_t n) {
    Out* row = row_of(p, k, at);
    const int64_t first = numerators_at(offset);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t from = first + 2 * i * t_.stride[2];
      const double count = std::round(counts[from]);
      if (count == 0) continue;
      const double sign = signs ? std::round(signs[from]) : 0.0;
      const double value = sign == count ? kInf : sign == -count ? -kInf : std::nan("");
      row[i] = static_cast<Out>(value);
    }
  });
}

template <class Out>
void SumMap<Out>::recompute(const TilePlace& p, int64_t k, const uint8_t* states, const Out* item,
                            const double* templ) const {
  const ExactWindow exact{t_.channels, t_.window, t_.layout.strides, false, 0.0};
  const TileInside inside(t_, p);
  for_rows(p, [&](int64_t offset, const Axes3& at, int64_t n) {
    Out* row = row_of(p, k, at);
    for (int64_t i = 0; i < n; ++i) {
      if (states[offset + i] != kUnknown) continue;
      const Axes3 place = unravel(offset + i, t_.outputs);
      Box seen;
      const Out* start = item;
      for (int a = 0; a < 3; ++a) {
        seen[a] = seen_at(t_, inside, a, {place[a], place[a] + 1});
        const int64_t first = p.start[a] + place[a] * t_.stride[a] + seen[a].begin;
        start += first * (a == 0 ? exact.strides.plane : a == 1 ? exact.strides.row : 1);
      }
      row[i] = static_cast<Out>(size_of(seen) == product(t_.window)
                                    ? sum_of_window(start, templ, exact)
                                    : sum_of_part(start, templ, exact, seen));
    }
  });
}

template class SumMap<float>;
template class SumMap<double>;
template void SumMap<float>::write(const TilePlace&, int64_t, const float*, const Restore&) const;
template void SumMap<float>::write(const TilePlace&, int64_t, const double*, const Restore&) const;
template void SumMap<double>::write(const TilePlace&, int64_t, const double*, const Restore&) const;

}  // namespace torchcorr
