// Maps of windows spread over the windows' elements with the windows' weights.
#pragma once

#include "windows/weighted_pass.h"

namespace torchcorr::weighted {

// The windows along one axis that contain an element, and their weights there.
struct Containing {
  std::vector<int64_t> windows;
  std::vector<double> taps;

  void find(const Axis& axis, int64_t element, int64_t from, int64_t to) {
    windows.clear(), taps.clear();
    for (int64_t u = std::max(from, axis.from(element)); u < std::min(to, axis.to(element + 1));
         ++u) {
      windows.push_back(u - from);
      taps.push_back(axis.taps[element - axis.first(u)]);
    }
  }
};

// Where the maps of some planes of windows are in memory.
struct Maps {
  const double* first;
  int64_t pitch, lead;  // from one map, and from one lead, to the next
  int64_t from, to;     // planes
  int count;
};

// Maps spread over the elements of a strip, a row at a time.
class SpreadRows {
 public:
  SpreadRows(const Layout& layout, const Maps& maps, const Cut& cut)
      : layout_(layout), maps_(maps),
        pitch_(whole(cut.columns + layout.axis[2].window + 2 * kDoubles)),
        tall_((cut.rows + layout.axis[1].window) / layout.axis[1].step + 2),
        planes_(maps.count * tall_ * pitch_), line_(pitch_), joined_(pitch_),
        result_(kMaps * pitch_) {
    const Axis& x = layout.axis[2];
    for (int64_t i = x.window; i-- > 0;) reversed_.push_back(x.taps[i]);
    for (int64_t i = 0; i < x.window; ++i) shifted_.push_back(line_.data() + i);
  }

  template <class Emit>
  void run(int64_t lead, int64_t z, const Box& box, const Emit& emit) {
    const Axis &y = layout_.axis[1], &x = layout_.axis[2];
    const int64_t top = y.from(box.top), bottom = y.to(box.bottom);
    const int64_t left = x.from(box.left), right = x.to(box.right), n = right - left;
    in_z_.find(layout_.axis[0], z, maps_.from, maps_.to);
    for (int p = 0; p < maps_.count; ++p) {
      for (int64_t u = top; u < bottom; ++u) {
        const int64_t at = p * maps_.pitch + lead * maps_.lead + u * x.count + left;
        add(n, in_z_, maps_.first + at, layout_.map_row(), plane(p) + (u - top) * pitch_);
      }
    }
    // The first position that a window which contains an element of the box may begin at.
    const int64_t origin = box.left + x.before - x.window + 1;
    for (int64_t v = box.top; v < box.bottom; ++v) {
      in_y_.find(y, v, top, bottom);
      for (int p = 0; p < maps_.count; ++p) {
        add(n, in_y_, plane(p), pitch_, joined_.data());
        std::fill(line_.begin(), line_.end(), 0.0);
        for (int64_t u = 0; u < n; ++u) line_[(left + u) * x.step - origin] = joined_[u];
        add_rows(box.right - box.left, x.window, shifted_.data(), reversed_.data(),
                 result_.data() + p * pitch_);
      }
      emit(v, Row{result_.data(), pitch_});
    }
  }

 private:
  double* plane(int p) { return planes_.data() + p * tall_ * pitch_; }

  void add(int64_t n, const Containing& of, const double* from, int64_t pitch, double* to) {
    rows_.clear();
    for (int64_t u : of.windows) rows_.push_back(from + u * pitch);
    add_rows(n, static_cast<int64_t>(rows_.size()), rows_.data(), of.taps.data(), to);
  }

  const Layout& layout_;
  Maps maps_;
  int64_t pitch_, tall_;
  std::vector<double> planes_, line_, joined_, result_, reversed_;
  std::vector<const double*> shifted_, rows_;
  Containing in_z_, in_y_;
};

}  // namespace torchcorr::weighted
