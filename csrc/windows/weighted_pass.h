// How windows with weights lie on two images, and the units of work: strips of rows whose summaries
// stay in cache. How the work is divided depends on shapes alone.
#pragma once

#include <algorithm>
#include <vector>

#include "windows/images.h"
#include "windows/weighted_rows.h"

namespace torchcorr::weighted {

struct Axis {
  int64_t size = 1, window = 1, step = 1, before = 0, count = 1;
  const double* taps = nullptr;

  int64_t first(int64_t window_index) const { return window_index * step - before; }
  // Windows [from, to) contain elements [low, high).
  int64_t from(int64_t low) const {
    return std::clamp<int64_t>(ceil_div(std::max<int64_t>(0, low + before - window + 1), step), 0,
                               count);
  }
  int64_t to(int64_t high) const { return std::min(count, (high - 1 + before) / step + 1); }
};

// Axes (z, y, x): lines have only x, images z and x.
struct Layout {
  ImageShape shape;
  Axis axis[3];
  int ndim;
  bool renormalize;
  int64_t row, plane, channel, lead;

  Layout(const Tensor& a, const Tensor& taps, const Sizes& window, const Sizes& stride,
         const Sizes& before, const Sizes& count, bool renormalised)
      : shape(sizes_of(a), window.size()), ndim(static_cast<int>(window.size())),
        renormalize(renormalised) {
    static const double one = 1;
    const double* values = taps.const_data_ptr<double>();
    for (Axis& x : axis) x.taps = &one;
    for (int i = 0; i < ndim; ++i) {
      Axis& x = axis[i + 1 == ndim ? 2 : i];
      x.size = shape.size[i], x.window = window[i], x.step = stride[i];
      x.before = before[i], x.count = count[i], x.taps = values;
      values += window[i];
    }
    row = axis[2].size;
    plane = axis[1].size * row, channel = axis[0].size * plane, lead = shape.channels * channel;
  }

  int64_t map_row() const { return axis[1].count * axis[2].count; }
  int64_t map() const { return axis[0].count * map_row(); }
};

// Strips of rows and segments of columns of one plane.
struct Cut {
  static constexpr int64_t kBytes = 768 << 10, kColumns = 2048;

  int64_t rows, columns, strips, segments;

  Cut(int64_t row_count, int64_t column_count, const Axis& y, const Axis& x, int64_t planes,
      int64_t row_step, int64_t column_step) {
    columns = even_part(column_count, std::max(kColumns, 4 * x.window) / column_step + 1);
    segments = ceil_div(column_count, columns);
    const int64_t bytes = planes * 8 * (columns * column_step + x.window + kDoubles);
    const int64_t tall = std::max(kBytes / bytes, 4 * y.window);
    rows = even_part(row_count, std::max<int64_t>(1, (tall - y.window) / row_step));
    strips = ceil_div(row_count, rows);
  }

  int64_t units() const { return strips * segments; }

 private:
  static int64_t even_part(int64_t n, int64_t most) {
    return std::max<int64_t>(1, ceil_div(n, ceil_div(std::max<int64_t>(1, n), most)));
  }
};

// A strip's rows and columns.
struct Box {
  int64_t top, bottom, left, right;

  Box(const Cut& cut, int64_t unit, int64_t rows, int64_t columns) {
    const int64_t strip = unit / cut.segments, segment = unit % cut.segments;
    top = strip * cut.rows, bottom = std::min(rows, top + cut.rows);
    left = segment * cut.columns, right = std::min(columns, left + cut.columns);
  }
};

inline int64_t whole(int64_t n) { return ceil_div(n, kDoubles) * kDoubles; }

template <class T>
struct Images {
  const T *a, *b, *weight;  // weight may be null
  const double *level_a = nullptr, *level_b = nullptr;  // of each lead; null where all are 0

  // Whether digits that rounding takes from means are kept: squares about a level need them too.
  bool fine() const { return sizeof(T) == sizeof(double) || level_a != nullptr; }
  Levels level(int64_t lead) const {
    return level_a == nullptr ? Levels{} : Levels{level_a[lead], level_b[lead]};
  }
};

// Summaries of the windows of a strip, a row at a time. One worker is one thread's.
template <class T>
class WindowRows {
 public:
  WindowRows(const Layout& layout, const Images<T>& images, const Cut& cut)
      : layout_(layout), images_(images),
        pitch_(whole((cut.columns - 1) * layout.axis[2].step + layout.axis[2].window + kDoubles)),
        tall_((cut.rows - 1) * layout.axis[1].step + layout.axis[1].window),
        rows_(tall_ * kPlanes * pitch_), joined_(kPlanes * pitch_), result_(kPlanes * pitch_),
        inside_(pitch_), zeros_(pitch_), ones_(pitch_, T(1)) {}

  // Calls emit(y, windows, weight) for windows [top, bottom) x [left, right) of plane z. Weights in
  // the summaries are to be multiplied with `weight`.
  template <class Emit>
  void run(int64_t lead, int64_t z, int64_t top, int64_t bottom, int64_t left, int64_t right,
           const Emit& emit) {
    const Axis &y = layout_.axis[1], &x = layout_.axis[2];
    place_columns(left, right);
    const int64_t low = y.first(top), high = y.first(bottom - 1) + y.window;
    const int64_t first = layout_.renormalize ? std::max<int64_t>(0, low) : low;
    const int64_t last = layout_.renormalize ? std::min(y.size, high) : high;
    for (int64_t at = first; at < last; ++at) load(lead, z, at, slot(at - first));
    const int64_t positions = (right - 1 - left) * x.step + 1;
    for (int64_t u = top; u < bottom; ++u) {
      const int64_t begin = std::max(first, y.first(u));
      const int64_t end = std::min(last, y.first(u) + y.window);
      const double* taps = y.taps + (begin - y.first(u));
      Row in = slot(begin - first);
      double weight = masked() ? 1 : depth_;
      if (y.window > 1) {
        const double total = sum(taps, end - begin);
        const double* weights = masked() ? in.plane(kWeight) : nullptr;
        const Taps by{end - begin, taps, 1 / total, kPlanes * pitch_, weights, kPlanes * pitch_};
        merge_rows(extent_, by, in, images_.fine(), row(joined_));
        in = row(joined_);
        if (!masked()) weight *= total;
      }
      merge_columns(positions, in);
      if (x.step > 1) thin_out(right - left);
      emit(u, row(result_), weight);
    }
  }

 private:
  bool masked() const { return images_.weight != nullptr; }
  Row row(std::vector<double>& memory) const { return {memory.data(), pitch_}; }
  Row slot(int64_t i) { return {rows_.data() + i * kPlanes * pitch_, pitch_}; }

  static double sum(const double* x, int64_t n) {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += x[i];
    return total;
  }

  // Elements [begin_, end_) are read; they lie from skip_ on in a row of extent_.
  void place_columns(int64_t left, int64_t right) {
    const Axis& x = layout_.axis[2];
    const int64_t low = x.first(left), high = x.first(right - 1) + x.window;
    begin_ = std::max<int64_t>(0, low), end_ = std::max(begin_, std::min(x.size, high));
    skip_ = begin_ - low, extent_ = high - low;
    std::fill(inside_.begin(), inside_.end(), 0.0);
    std::fill_n(inside_.begin() + skip_, end_ - begin_, 1.0);
  }

  void load(int64_t lead, int64_t z, int64_t y, Row to) {
    const Axis& depth = layout_.axis[0];
    const bool exists = y >= 0 && y < layout_.axis[1].size;
    const Levels level = images_.level(lead);
    leaves_.clear();
    depth_ = 0;
    for (int64_t j = 0; j < depth.window; ++j) {
      const int64_t at = depth.first(z) + j;
      const bool outside = at < 0 || at >= depth.size;
      if (outside && layout_.renormalize) continue;
      for (int64_t c = 0; c < layout_.shape.channels; ++c) {
        depth_ += depth.taps[j];
        if (outside) {
          leaves_.push_back({zeros_.data(), zeros_.data(), ones_.data(), depth.taps[j], level});
        } else if (exists) {
          const int64_t from = lead * layout_.lead + c * layout_.channel + at * layout_.plane +
                               y * layout_.row + begin_;
          leaves_.push_back({images_.a + from, images_.b + from,
                             masked() ? images_.weight + from : nullptr, depth.taps[j], level});
        }
      }
    }
    int64_t n = 0;
    if (exists) {
      n = end_ - begin_;
      merge_leaves(n, static_cast<int64_t>(leaves_.size()), leaves_.data(), masked(),
                   to.at(skip_));
    }
    double around[kPlanes] = {};
    if (!layout_.renormalize) {
      around[kMeanA] = -level.a, around[kMeanB] = -level.b, around[kWeight] = depth_;
    }
    for (int p = 0; p < kPlanes; ++p) {
      const double value = around[p];
      const int64_t behind = n > 0 ? skip_ + n : 0;
      std::fill_n(to.plane(p), n > 0 ? skip_ : 0, value);
      std::fill_n(to.plane(p) + behind, pitch_ - behind, value);
    }
  }

  void merge_columns(int64_t n, Row in) {
    const Axis& x = layout_.axis[2];
    Taps by{x.window, x.taps, 1 / sum(x.taps, x.window), 1, nullptr, 1};
    if (masked()) {
      by.weight = in.plane(kWeight);
      merge_rows(n, by, in, images_.fine(), row(result_));
      return;
    }
    const int64_t whole_from = std::min(n, layout_.renormalize ? whole(skip_) : 0);
    int64_t whole_to = n;
    if (layout_.renormalize) {
      const int64_t fits = skip_ + (end_ - begin_) - x.window + 1 - whole_from;
      whole_to = std::min(n, whole_from + std::max<int64_t>(0, fits) / kDoubles * kDoubles);
    }
    const auto part = [&](int64_t from, int64_t to, bool some) {
      if (to <= from) return;
      by.weight = some ? inside_.data() + from : nullptr;
      merge_rows(to - from, by, in.at(from), images_.fine(), row(result_).at(from));
    };
    part(0, whole_from, true);
    part(whole_from, whole_to, false);
    part(whole_to, n, true);
  }

  void thin_out(int64_t n) {
    const int64_t step = layout_.axis[2].step;
    for (int p = 0; p < kPlanes; ++p) {
      double* plane = row(result_).plane(p);
      for (int64_t i = 1; i < n; ++i) plane[i] = plane[i * step];
    }
  }

  const Layout& layout_;
  Images<T> images_;
  int64_t pitch_, tall_;
  std::vector<double> rows_, joined_, result_, inside_;
  std::vector<T> zeros_, ones_;
  std::vector<Leaf<T>> leaves_;
  int64_t begin_ = 0, end_ = 0, skip_ = 0, extent_ = 0;
  double depth_ = 1;
};

}  // namespace torchcorr::weighted
