// Work on windows cut into blocks of output rows: small enough for the cache, and cut from shapes
// alone, so that results do not depend on the number of threads.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "windows.h"

namespace torchcorr::windows {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

// Doubles in the scratch of one block: what a core's second-level cache holds.
constexpr int64_t kBlock = 1 << 16;

// Window axes of a tensor (*lead, C, *size), its windows and the map (*lead, *outputs) of them.
struct Frame {
  int64_t items = 1, channels;
  Sizes size, window, stride, outputs;

  Frame(const Sizes& shape, const Sizes& window, const Sizes& stride)
      : window(window), stride(stride) {
    const int64_t ndim = static_cast<int64_t>(window.size());
    const int64_t lead = static_cast<int64_t>(shape.size()) - ndim - 1;
    STD_TORCH_CHECK(1 <= ndim && ndim <= 3 && lead >= 0 && stride.size() == window.size(),
                    "windows have one to three axes behind a channel axis");
    for (int64_t i = 0; i < lead; ++i) items *= shape[i];
    channels = shape[lead];
    size.assign(shape.begin() + lead + 1, shape.end());
    for (int64_t i = 0; i < ndim; ++i) {
      STD_TORCH_CHECK(size[i] >= window[i], "window is larger than input along axis ", i - ndim);
      outputs.push_back((size[i] - window[i]) / stride[i] + 1);
    }
  }

  int64_t ndim() const { return static_cast<int64_t>(window.size()); }
  double count() const { return static_cast<double>(channels * numel(window)); }
  // Elements of one slice along the first window axis.
  int64_t plane() const { return numel(size) / size[0]; }
  int64_t output_plane() const { return numel(outputs) / outputs[0]; }
  static int64_t numel(const Sizes& sizes) {
    return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
  }
  int64_t block_rows(int64_t rows) const {
    return std::clamp<int64_t>(std::max(2 * window[0], kBlock / plane()), 1, rows);
  }
};

inline Sizes shape_of(const Tensor& x) {
  Sizes shape(x.dim());
  for (int64_t i = 0; i < x.dim(); ++i) shape[i] = x.size(i);
  return shape;
}

inline Sizes map_shape(const Tensor& input, const Frame& frame) {
  Sizes shape = shape_of(input);
  shape.resize(shape.size() - frame.ndim() - 1);
  shape.insert(shape.end(), frame.outputs.begin(), frame.outputs.end());
  return shape;
}

// A level near the block's elements, or 0 where they have none in common. Deviations from it keep
// the digits that a large offset would cost; one that is far from some elements would cost theirs.
template <class T>
double common_level(const T* x, int64_t n) {
  std::array<double, 9> sample;
  for (int64_t i = 0; i < 9; ++i) sample[i] = static_cast<double>(x[(n - 1) * i / 8]);
  for (double s : sample) {
    if (!std::isfinite(s)) return 0;
  }
  std::nth_element(sample.begin(), sample.begin() + 4, sample.end());
  const double level = sample[4];
  const bool shared = std::all_of(sample.begin(), sample.end(), [&](double s) {
    return std::abs(s - level) <= std::abs(level) / 4;
  });
  return shared ? level : 0;
}

// Sum of squared deviations of window i: NaN where the window holds an Inf, too.
inline double squares(const Summary& s, int64_t i) {
  return s.m2[i] + (s.mean[i] - s.mean[i]) + (s.m2[i] - s.m2[i]);
}

// n elements a channel of (C, pitch), merged over the channels, as deviations from `level`.
template <bool moments, class T>
Summary gather(const T* x, int64_t channels, int64_t pitch, int64_t n, double level) {
  Summary out{std::vector<double>(n), {}, moments ? static_cast<double>(channels) : 1};
  for (int64_t i = 0; i < n; ++i) out.mean[i] = static_cast<double>(x[i]) - level;
  if (channels == 1) return out;
  if (moments) out.m2.assign(n, 0.0);
  for (int64_t c = 1; c < channels; ++c) {
    const T* next = x + c * pitch;
    const double k = static_cast<double>(c + 1);
    for (int64_t i = 0; i < n; ++i) {
      const double value = static_cast<double>(next[i]) - level;
      if constexpr (moments) {
        const double d = value - out.mean[i];
        out.mean[i] += d / k;
        out.m2[i] += d * d * ((k - 1) / k);
      } else {
        out.mean[i] += value;
      }
    }
  }
  return out;
}

template <bool moments>
Summary slide_along(Summary x, const Axis& axis, const Slide& slide) {
  if constexpr (moments) return slide_moments(x, axis, slide);
  return {slide_sums(x.mean, axis, slide), {}, x.count};
}

// A line of outputs is cut into 16 rows that overlap in the input, one for each lane.
template <bool moments, class T>
Summary line_block(const T* x, const Frame& f, int64_t first, int64_t n, double level) {
  const int64_t rows = std::min(kLanes, n), each = (n + rows - 1) / rows;
  const Slide slide = Slide::forward(f.window[0], f.stride[0], each);
  const int64_t reach = slide.reach(), pitch = f.size[0];
  Summary all{std::vector<double>(rows * reach), {}, 1};
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t start = (first + r * each) * f.stride[0];
    if (start >= pitch) continue;
    Summary row = gather<moments>(x + start, f.channels, pitch, std::min(reach, pitch - start),
                                  level);
    std::copy(row.mean.begin(), row.mean.end(), all.mean.begin() + r * reach);
    if (!row.m2.empty()) {
      all.m2.resize(rows * reach);
      std::copy(row.m2.begin(), row.m2.end(), all.m2.begin() + r * reach);
    }
    all.count = row.count;
  }
  return slide_along<moments>(std::move(all), {rows, reach, 1}, slide);
}

// Windows of output rows [first, first + n) of one item.
template <bool moments, class T>
Summary window_block(const T* x, const Frame& f, int64_t first, int64_t n, double level) {
  if (f.ndim() == 1) return line_block<moments>(x, f, first, n, level);
  const Slide rows = Slide::forward(f.window[0], f.stride[0], n);
  const int64_t plane = f.plane(), pitch = f.size[0] * plane;
  Summary s = gather<moments>(x + first * f.stride[0] * plane, f.channels, pitch,
                              rows.reach() * plane, level);
  s = slide_along<moments>(std::move(s), {1, rows.reach(), plane}, rows);
  int64_t outer = n, inner = plane;
  for (int64_t a = 1; a < f.ndim(); ++a) {
    inner /= f.size[a];
    const Slide slide = Slide::forward(f.window[a], f.stride[a], f.outputs[a]);
    s = slide_along<moments>(std::move(s), {outer, f.size[a], inner}, slide);
    outer *= f.outputs[a];
  }
  return s;
}

// Calls work(item, first row, rows) for every block of `rows` rows of every item.
template <class Work>
void for_blocks(int64_t items, int64_t rows, int64_t block, const Work& work) {
  const int64_t blocks = (rows + block - 1) / block;
  torch::stable::parallel_for(0, items * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % blocks * block;
      work(i / blocks, first, std::min(block, rows - first));
    }
  });
}

// Calls emit(offset, n, summary, level) with the summaries of n consecutive windows of the map.
template <bool moments, class T, class Emit>
void for_windows(const Tensor& input, const Frame& f, const Emit& emit) {
  const T* x = static_cast<const T*>(input.const_data_ptr());
  const int64_t item = f.channels * f.plane() * f.size[0], map = Frame::numel(f.outputs);
  const int64_t block = f.ndim() == 1 ? std::max<int64_t>(16 * 4096, 32 * f.window[0])
                                      : f.block_rows(f.outputs[0]);
  for_blocks(f.items, f.outputs[0], block, [&](int64_t i, int64_t first, int64_t n) {
    const int64_t start = first * f.stride[0] * f.plane();
    const int64_t seen = ((n - 1) * f.stride[0] + f.window[0]) * f.plane();
    const double level = moments ? common_level(x + i * item + start, seen) : 0;
    const Summary s = window_block<moments>(x + i * item, f, first, n, level);
    emit(i * map + first * f.output_plane(), n * f.output_plane(), s, level);
  });
}

// Sums of a map over the windows that hold each element, for rows [first, first + n) of one item.
template <class T>
std::vector<double> spread_block(const T* map, const Frame& f, int64_t first, int64_t n) {
  const int64_t plane = f.output_plane(), w = f.window[0], s = f.stride[0];
  const int64_t from = std::min(std::max<int64_t>(0, (first - w + s) / s), f.outputs[0]);
  const int64_t to = std::clamp<int64_t>((first + n - 1) / s + 1, from, f.outputs[0]);
  std::vector<double> x(map + from * plane, map + to * plane);
  Slide rows = Slide::spread(w, s, n);
  rows.pad -= first - from * s;
  x = slide_sums(x, {1, to - from, plane}, rows);
  int64_t outer = n, inner = plane;
  for (int64_t a = 1; a < f.ndim(); ++a) {
    inner /= f.outputs[a];
    x = slide_sums(x, {outer, f.outputs[a], inner},
                   Slide::spread(f.window[a], f.stride[a], f.size[a]));
    outer *= f.size[a];
  }
  return x;
}

inline bool is_double(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "window operators take float32 or float64");
  return type == ScalarType::Double;
}

}  // namespace torchcorr::windows
