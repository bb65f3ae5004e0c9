// Marches along each axis of an image, in units whose scratch stays in cache. How the work is
// divided depends on shapes alone, so the result does not depend on the number of threads.
#pragma once

#include <cstring>
#include <memory>

#include "common/parallel.h"
#include "windows/long_lines.h"

namespace torchcorr {

constexpr int64_t kUnitElements = 1 << 15;  // elements that are worth another thread

class RowsScratch {
 public:
  Rows take(int64_t n, int planes) {
    memory_.emplace_back(new double[n * planes]);
    return {memory_.back().get(), n};
  }

 private:
  std::vector<std::unique_ptr<double[]>> memory_;
};

// Source: void load(const Stretch&, Rows) writes doubles. Sink: void store(const Stretch&, Rows)
// reads the window summaries of a stretch of the map, from its first_plane on.
template <class Policy, class Source, class Sink>
class WindowWorker {
 public:
  WindowWorker(const WindowLayout& layout, const Source& source, const Sink& sink)
      : layout_(layout), source_(source), sink_(sink) {
    const WindowAxis &z = layout.axis[0], &y = layout.axis[1], &x = layout.axis[2];
    const int64_t wide = (layout.strip - 1) * x.step + x.window;
    tall_ = layout.lines ? 1 : (layout.rows - 1) * y.step + y.window;
    element_ = take(wide);
    suffix_rows_ = take(y.block * wide);
    prefix_rows_ = take(wide);
    window_rows_ = take(kLanes * wide);
    if (z.window > 1) {
      suffix_planes_ = take(z.block * tall_ * wide);
      prefix_planes_ = take(tall_ * wide);
      slab_ = take(tall_ * wide);
    }
    lanes_ = take(kLanes * wide);
    suffix_ = take(kLanes * x.block);
    windows_ = take(kLanes * layout.strip);
    result_ = take(kLanes * layout.strip);
    for (int p = 0; p < Policy::planes; ++p) std::fill_n(window_rows_.plane(p), kLanes * wide, 0.0);
  }

  void run(int64_t begin, int64_t end) {
    const int64_t leads = layout_.lines ? 1 : layout_.leads;
    for (int64_t unit = begin; unit < end; ++unit) {
      int64_t rest = unit;
      const int64_t rows = rest % layout_.row_units;
      const int64_t depth = (rest /= layout_.row_units) % layout_.depth_units;
      const int64_t lead = (rest /= layout_.depth_units) % leads;
      use_strip(rest / leads);
      march_depth(lead, depth, rows * layout_.rows,
                  std::min((rows + 1) * layout_.rows, layout_.axis[1].count));
    }
    flush();
  }

 private:
  Rows take(int64_t n) { return scratch_.take(n, Policy::planes); }

  static void copy(int64_t n, Rows to, Rows from) {
    for (int p = 0; p < Policy::planes; ++p) std::memcpy(to.plane(p), from.plane(p), n * 8);
  }

  static void join(int64_t n, Rows out, Rows a, int64_t na, Rows b, int64_t nb, double weight) {
    if (na == 0 || nb == 0) {
      copy(n, out, na == 0 ? b : a);
    } else {
      Policy::merge(n, out, a, na, b, nb, weight);
    }
  }

  void use_strip(int64_t strip) {
    if (strip == strip_) return;
    flush();
    strip_ = strip;
    first_ = strip * layout_.strip;
    count_ = std::min(layout_.strip, layout_.axis[2].count - first_);
    wide_ = (count_ - 1) * layout_.axis[2].step + layout_.axis[2].window;
  }

  void load(int64_t lead, int64_t z, int64_t y, Rows to) {
    const int64_t x = first_ * layout_.axis[2].step;
    source_.load(locate(layout_, lead, z, y, x, wide_, false), wide_, to);
  }

  void march_depth(int64_t lead, int64_t unit, int64_t top, int64_t bottom) {
    const WindowAxis& a = layout_.axis[0];
    const int64_t per_block = (a.block - 1) / a.step + 1;
    const int64_t first = unit * per_block, last = std::min(first + per_block, a.count);
    if (a.window == 1) {
      for (int64_t z = first; z < last; ++z) {
        march_rows(lead, z, top, bottom, [&](int64_t y) {
          load(lead, z * a.step, y, element_);
          return element_;
        });
      }
      return;
    }
    const int64_t low = top * layout_.axis[1].step;
    const int64_t n = ((bottom - 1 - top) * layout_.axis[1].step + layout_.axis[1].window) * wide_;
    const double weight = static_cast<double>(layout_.channels);
    // Row by row, so that elements stay in the first cache.
    const auto extend = [&](int64_t z, Rows to, Rows from, int64_t k) {
      for (int64_t at = 0; at < n; at += wide_) {
        load(lead, z, low + at / wide_, element_);
        join(wide_, to.at(at), from.at(at), k - 1, element_, 1, weight);
      }
    };
    window_march(
        a, first, last,
        [&](int64_t z, int64_t slot, int64_t k) {
          extend(z, suffix_planes_.at(slot * n), suffix_planes_.at((slot + (k > 1)) * n), k);
        },
        [&](int64_t z, int64_t k) { extend(z, prefix_planes_, prefix_planes_, k); },
        [&](int64_t i, int64_t slot, int64_t na, int64_t nb) {
          join(n, slab_, suffix_planes_.at(slot * n), na, prefix_planes_, nb, weight);
          march_rows(lead, i, top, bottom, [&](int64_t y) { return slab_.at((y - low) * wide_); });
        });
  }

  template <class Fetch>
  void march_rows(int64_t lead, int64_t z, int64_t top, int64_t bottom, const Fetch& fetch) {
    const double weight = static_cast<double>(layout_.channels * layout_.axis[0].window);
    window_march(
        layout_.axis[1], top, bottom,
        [&](int64_t y, int64_t slot, int64_t k) {
          const Rows row = fetch(y);
          join(wide_, suffix_rows_.at(slot * wide_), suffix_rows_.at((slot + (k > 1)) * wide_),
               k - 1, row, 1, weight);
        },
        [&](int64_t y, int64_t k) {
          const Rows row = fetch(y);
          join(wide_, prefix_rows_, prefix_rows_, k - 1, row, 1, weight);
        },
        [&](int64_t i, int64_t slot, int64_t na, int64_t nb) {
          join(wide_, window_rows_.at(rows_ * wide_), suffix_rows_.at(slot * wide_), na,
               prefix_rows_, nb, weight);
          where_[rows_] = {lead, z, i};
          if (++rows_ == kLanes) flush();
        });
  }

  void flush() {
    if (rows_ == 0) return;
    const double* from[kLanes];
    double* to[kLanes];
    for (int p = 0; p < Policy::planes; ++p) {
      for (int64_t r = 0; r < kLanes; ++r) from[r] = window_rows_.plane(p) + r * wide_;
      interleave(wide_, from, lanes_.plane(p));
    }
    const double weight =
        static_cast<double>(layout_.channels * layout_.axis[0].window * layout_.axis[1].window);
    Policy::windows(layout_.axis[2], count_, weight, lanes_, suffix_, windows_);
    for (int p = Sink::first_plane; p < Policy::planes; ++p) {
      for (int64_t r = 0; r < kLanes; ++r) to[r] = result_.plane(p) + r * count_;
      separate(count_, windows_.plane(p), to);
    }
    for (int64_t r = 0; r < rows_; ++r) {
      const auto [lead, z, y] = where_[r];
      sink_.store(locate(layout_, lead, z, y, first_, count_, true), result_.at(r * count_));
    }
    rows_ = 0;
  }

  struct RowPlace {
    int64_t lead, z, y;
  };

  const WindowLayout& layout_;
  const Source& source_;
  const Sink& sink_;
  RowsScratch scratch_;
  Rows element_, suffix_planes_, prefix_planes_, slab_, suffix_rows_, prefix_rows_,
      window_rows_, lanes_, suffix_, windows_, result_;
  int64_t tall_ = 1, strip_ = -1, first_ = 0, count_ = 0, wide_ = 0, rows_ = 0;
  RowPlace where_[kLanes] = {};
};

template <class Policy, class Source, class Sink>
void run_windows(const WindowLayout& layout, const Source& source, const Sink& sink) {
  const int64_t grain = std::max<int64_t>(1, kUnitElements / layout.unit_outputs());
  parallel_for(0, layout.units(), grain, [&](int64_t begin, int64_t end) {
    if constexpr (merges_ones<Policy>) {
      if (layout.is_long) {
        LongLineWorker<Policy, Source, Sink>(layout, source, sink).run(begin, end);
        return;
      }
    }
    WindowWorker<Policy, Source, Sink>(layout, source, sink).run(begin, end);
  });
}

}  // namespace torchcorr
