// Moments of float32 windows by running sums: one element enters, one leaves. The sums are float64,
// so the rounding that they accumulate stays far below that of float32 transforms. Tiles that are
// float64 or not finite use engine.h instead, which merges sums.
#pragma once

#include "common/tiling.h"
#include "common/window_state.h"
#include "windows/running_sums.h"

namespace torchcorr::running {

// How moments follow from sums, and for which windows that is too inexact.
struct MomentRule {
  bool zero_mean;
  double eps;
  // Least energy of a window that is not doubtful, relative to the mean square of the window and
  // to that of its tile; least energy that its sums determine, relative to the window's mean
  // square.
  double least_of_window, least_of_tile, least_variance;
  double error = 1e-6;   // what running sums may add to an energy, relative to it
  double deviation = 0;  // if not 0: sqrt(deviation * energy + eps) instead of norms
  bool own_means = false;  // energies are those of the channels, about a mean each
};

// Maps of the windows of one tile, or pointers to a row of them. A norm is 1 / (N deviation), 0 if
// unknown. Means may be null; of deviations only the first map is written, and states may be null.
// Channels with a mean each have a map of means each, `pitch` numbers apart.
template <class T>
struct MomentMaps {
  T* norms;
  uint8_t* states;
  T* means;
  int64_t pitch = 0;

  MomentMaps at(int64_t offset) const {
    return {norms + offset, states ? states + offset : nullptr, means ? means + offset : nullptr,
            pitch};
  }
};

struct WindowCounts {
  int64_t doubtful = 0, unknown = 0;  // the unknown are doubtful too
  bool finite = true;                 // the sums of their elements
};

// Elements of one value around items, which are not in memory: so many before the first along each
// axis, and as many behind the last as windows reach.
struct Border {
  Axes3 before, size;  // `size` is that of an item in memory
  float value;

  // Row (z, y) of a channel of an item from element x on, as far as n elements: where it lies, or
  // in `copy`. Indices are those of the item with its border.
  const float* row(const float* channel, int64_t z, int64_t y, int64_t x, int64_t n,
                   float* copy) const;
};

// All tiles of a call. With a border, tiles are whole items with it.
struct MomentsCall {
  const Tiling& tiling;
  const float *input, *input_end;
  MomentRule rule;
  Strips strips;
  const Border* border;

  // `windows`: how many of them a unit covers along an axis at least.
  MomentsCall(const Tiling& t, const float* x, int64_t elements, const MomentRule& by,
              int64_t windows, const Border* around = nullptr)
      : tiling(t), input(x), input_end(x + elements), rule(by),
        strips(t.outputs, least_unit(t, windows)), border(around) {}

 private:
  // A unit begins with the sums of a whole window. Its columns stay in the first cache, and in a
  // volume so do the sums of all its rows in the second.
  static Axes3 least_unit(const Tiling& t, int64_t windows) {
    const auto positions = [&](int axis, int64_t elements) {
      return elements / t.stride[axis] + 1;
    };
    const int64_t tall = t.window[0] > 1 ? t.window[1] / 2 : windows * t.window[1];
    return {positions(0, std::max<int64_t>(4, windows * t.window[0])),
            positions(1, std::max<int64_t>(32, tall)),
            positions(2, std::max<int64_t>(512, 4 * t.window[2]))};
  }
};

// Whether the columns of a unit have room near a core: those of volumes with many channels have not.
bool has_columns(const MomentsCall& call);

// The windows of one unit of one tile, whose channels have the level of the tile or their own. Where
// deviations are written, places of unknown windows are appended to `unknown`, if given.
void moments_of_unit(const MomentsCall& call, int64_t tile, int64_t unit, const TileStats& stats,
                     const double* levels, const MomentMaps<float>& to, WindowCounts& counts,
                     std::vector<int64_t>* unknown = nullptr);

}  // namespace torchcorr::running
