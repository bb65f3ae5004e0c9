// The loops over one axis; see windows.h.

#include "windows.h"

#include <algorithm>

namespace torchcorr::windows {
namespace {

// 16 neighbouring lines of an axis, element by element: what the vector units work on.
struct Lanes {
  double* mean;
  double* m2;
};

// Factors of the merges, so that no lane divides.
struct Weights {
  std::vector<double> inverse, grow, share, merge;

  Weights(int64_t window, double count) : inverse(window + 1), grow(inverse), share(inverse),
                                          merge(inverse) {
    for (int64_t k = 1; k <= window; ++k) {
      const double n = static_cast<double>(window), i = static_cast<double>(k);
      inverse[k] = 1 / i;
      grow[k] = count * (i - 1) / i;
      share[k] = i / n;
      merge[k] = count * i * (n - i) / n;
    }
  }
};

// Adds the k-th element of a part to its summary.
inline __attribute__((always_inline)) void grow(Lanes part, Lanes x, const Weights& w, int64_t k) {
  const double inverse = w.inverse[k], factor = w.grow[k];
  for (int64_t i = 0; i < kLanes; ++i) {
    const double d = x.mean[i] - part.mean[i];
    part.mean[i] += d * inverse;
    part.m2[i] += x.m2[i] + d * d * factor;
  }
}

inline __attribute__((always_inline)) void copy(Lanes to, Lanes from) {
  for (int64_t i = 0; i < kLanes; ++i) to.mean[i] = from.mean[i];
  for (int64_t i = 0; i < kLanes; ++i) to.m2[i] = from.m2[i];
}

// x holds slide.reach() elements of 16 lanes; out gets slide.outputs of them.
TORCHCORR_CLONES
void moments_of_lanes(double* mean, double* m2, const Slide& slide, const Weights& w,
                      double* suffix, double* out_mean, double* out_m2) {
  const int64_t window = slide.window, reach = slide.reach();
  auto at = [&](int64_t p) { return Lanes{mean + p * kLanes, m2 + p * kLanes}; };
  auto tail = [&](int64_t r) {
    return Lanes{suffix + r * kLanes, suffix + (window + r) * kLanes};
  };
  alignas(64) double head_mean[kLanes], head_m2[kLanes];
  const Lanes head{head_mean, head_m2};
  int64_t next = 0, output = 0;
  for (int64_t start = 0; start + window <= reach; start += window) {
    if (next >= start + window) continue;
    copy(tail(window - 1), at(start + window - 1));
    for (int64_t r = window - 2; r >= 0; --r) {
      copy(tail(r), tail(r + 1));
      grow(tail(r), at(start + r), w, window - r);
    }
    for (int64_t r = 0; r < window && start + r + window <= reach; ++r) {
      if (r == 1) copy(head, at(start + window));
      if (r > 1) grow(head, at(start + window + r - 1), w, r);
      if (start + r != next) continue;
      next += slide.step;
      double* to_mean = out_mean + output * kLanes;
      double* to_m2 = out_m2 + output * kLanes;
      ++output;
      const Lanes back = tail(r);
      if (r == 0) {
        copy({to_mean, to_m2}, back);
        continue;
      }
      const double share = w.share[r], merge = w.merge[r];
      for (int64_t i = 0; i < kLanes; ++i) {
        const double d = head.mean[i] - back.mean[i];
        to_mean[i] = back.mean[i] + d * share;
        to_m2[i] = back.m2[i] + head.m2[i] + d * d * merge;
      }
    }
  }
}

TORCHCORR_CLONES
void sums_of_lanes(const double* x, const Slide& slide, double* suffix, double* out) {
  const int64_t window = slide.window, reach = slide.reach();
  alignas(64) double head[kLanes];
  int64_t next = 0, output = 0;
  for (int64_t start = 0; start + window <= reach; start += window) {
    if (next >= start + window) continue;
    std::copy_n(x + (start + window - 1) * kLanes, kLanes, suffix + (window - 1) * kLanes);
    for (int64_t r = window - 2; r >= 0; --r) {
      for (int64_t i = 0; i < kLanes; ++i) {
        suffix[r * kLanes + i] = suffix[(r + 1) * kLanes + i] + x[(start + r) * kLanes + i];
      }
    }
    std::fill_n(head, kLanes, 0.0);
    for (int64_t r = 0; r < window && start + r + window <= reach; ++r) {
      if (r > 0) {
        const double* added = x + (start + window + r - 1) * kLanes;
        for (int64_t i = 0; i < kLanes; ++i) head[i] += added[i];
      }
      if (start + r != next) continue;
      next += slide.step;
      for (int64_t i = 0; i < kLanes; ++i) {
        out[output * kLanes + i] = suffix[r * kLanes + i] + head[i];
      }
      ++output;
    }
  }
}

// Up to 16 lines of an axis: neighbours where the axis has an inner extent, whole rows otherwise.
struct Group {
  int64_t first, lanes, line_pitch, element_pitch;
};

std::vector<Group> groups(const Axis& axis, int64_t length) {
  std::vector<Group> all;
  const int64_t lines = axis.inner > 1 ? axis.inner : axis.outer;
  for (int64_t o = 0; o < (axis.inner > 1 ? axis.outer : 1); ++o) {
    for (int64_t line = 0; line < lines; line += kLanes) {
      const int64_t lanes = std::min(kLanes, lines - line);
      if (axis.inner > 1) {
        all.push_back({o * length * axis.inner + line, lanes, 1, axis.inner});
      } else {
        all.push_back({line * length, lanes, length, 1});
      }
    }
  }
  return all;
}

void load(double* to, const std::vector<double>& from, const Group& g, const Slide& slide,
          int64_t length) {
  for (int64_t p = 0; p < slide.reach(); ++p, to += kLanes) {
    const int64_t q = p - slide.pad;
    std::fill_n(to, kLanes, 0.0);
    if (q < 0 || q % slide.dilation != 0 || q / slide.dilation >= length) continue;
    const double* element = from.data() + g.first + q / slide.dilation * g.element_pitch;
    for (int64_t i = 0; i < g.lanes; ++i) to[i] = element[i * g.line_pitch];
  }
}

void store(std::vector<double>& to, const double* from, const Group& g, int64_t outputs) {
  for (int64_t p = 0; p < outputs; ++p, from += kLanes) {
    double* element = to.data() + g.first + p * g.element_pitch;
    for (int64_t i = 0; i < g.lanes; ++i) element[i * g.line_pitch] = from[i];
  }
}

}  // namespace

Summary slide_moments(const Summary& x, const Axis& axis, const Slide& slide) {
  const int64_t size = axis.outer * slide.outputs * axis.inner;
  Summary out{std::vector<double>(size), std::vector<double>(size),
              x.count * static_cast<double>(slide.window)};
  const Weights weights(slide.window, x.count);
  std::vector<double> mean(slide.reach() * kLanes), m2(mean), suffix(2 * slide.window * kLanes);
  std::vector<double> to_mean(slide.outputs * kLanes), to_m2(to_mean);
  const auto sources = groups(axis, axis.length), targets = groups(axis, slide.outputs);
  for (size_t g = 0; g < sources.size(); ++g) {
    load(mean.data(), x.mean, sources[g], slide, axis.length);
    if (!x.m2.empty()) load(m2.data(), x.m2, sources[g], slide, axis.length);
    moments_of_lanes(mean.data(), m2.data(), slide, weights, suffix.data(), to_mean.data(),
                     to_m2.data());
    store(out.mean, to_mean.data(), targets[g], slide.outputs);
    store(out.m2, to_m2.data(), targets[g], slide.outputs);
  }
  return out;
}

std::vector<double> slide_sums(const std::vector<double>& x, const Axis& axis,
                               const Slide& slide) {
  std::vector<double> out(axis.outer * slide.outputs * axis.inner);
  std::vector<double> lanes(slide.reach() * kLanes), suffix(slide.window * kLanes);
  std::vector<double> to(slide.outputs * kLanes);
  const auto sources = groups(axis, axis.length), targets = groups(axis, slide.outputs);
  for (size_t g = 0; g < sources.size(); ++g) {
    load(lanes.data(), x, sources[g], slide, axis.length);
    sums_of_lanes(lanes.data(), slide, suffix.data(), to.data());
    store(out, to.data(), targets[g], slide.outputs);
  }
  return out;
}

}  // namespace torchcorr::windows
