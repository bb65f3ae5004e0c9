// Gradients of dense sums for their images, one tap after the other: positions of an upstream
// gradient add their products with a tap to the elements that it met. Unlike sums of planes with
// zeros around them (dense.h), this multiplies nothing by zeros.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "direct/dense.h"

namespace torchcorr::direct {

// Bytes of sums that stay near while taps pass.
constexpr int64_t kTapBytes = 16 << 10;
// What adding a sum to its total costs, in products.
constexpr int64_t kAddition = 8;

// Of one phase: sums over templates, each element of which meets one plane of a member's source.
template <class T>
struct DenseTaps {
  DenseSums<T> sums;              // without planes
  Axes3 count, extent;            // of taps, and of a plane
  std::vector<int64_t> planes;    // where they begin, relative to a member's source
  DenseCoefficients<T> packed;    // one plane for each tap, whose columns are the templates

  // Calls emit(rows) for the rows of all outputs.
  template <class Emit>
  void run(const Emit& emit) const {
    const int64_t members = static_cast<int64_t>(sums.members.size()), blocks = packed.blocks();
    if (members * blocks * product(sums.size) == 0) return;
    const int64_t lanes = packed.width_of(0), positions = kTapBytes / (8 * lanes);
    const int64_t columns = ceil_div(sums.size[2], ceil_div(sums.size[2], 2 * positions));
    const int64_t pieces = ceil_div(sums.size[2], columns);
    const int64_t rows = std::clamp<int64_t>(positions / columns, 1, sums.size[1]);
    const int64_t strips = ceil_div(sums.size[1], rows);
    const int64_t places = sums.size[0] * strips * pieces, units = members * blocks * places;
    const int64_t work = packed.terms() * rows * columns * lanes;
    parallel_for(0, units, std::max<int64_t>(1, kGrainTerms / (work + 1)),
                 [&](int64_t begin, int64_t end) {
      LineVector<double> totals(rows * columns * lanes);
      std::vector<int64_t> sources;
      for (int64_t unit = begin; unit < end; ++unit) {
        const Axes3 at{unit / pieces / strips % sums.size[0], unit / pieces % strips * rows,
                       unit % pieces * columns};
        const int64_t block = unit / places % blocks, member = unit / places / blocks;
        const DenseRows of{member,
                           block * lanes,
                           packed.of_block(block),
                           at,
                           std::min(rows, sums.size[1] - at[1]),
                           std::min(columns, sums.size[2] - at[2]),
                           packed.width_of(block),
                           totals.data()};
        std::fill(totals.begin(), totals.end(), 0.0);
        add_all(of, block, totals.data(), sources);
        emit(of);
      }
    });
  }

 private:
  // Few planes at a time, whose coefficients of a tap stay near while positions pass.
  void add_all(const DenseRows& of, int64_t block, double* totals,
               std::vector<int64_t>& sources) const {
    const int64_t number = static_cast<int64_t>(planes.size());
    const int64_t near = kNearBytes / (of.width * size_of<T>);
    const int64_t parts = ceil_div(number, near);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = number * part / parts, last = number * (part + 1) / parts;
      sources.clear();
      for (int64_t i = first; i < last; ++i) sources.push_back(planes[i] * size_of<T>);
      for (int64_t tap = 0; tap < product(count); ++tap) {
        const T* coefficients = packed.at(block, tap) + first * of.width;
        add_tap(of, tap, totals, {sources.data(), coefficients, last - first});
      }
    }
  }

  void add_tap(const DenseRows& of, int64_t tap, double* totals, const DenseTerms<T>& terms) const {
    const Axes3 from{tap / count[2] / count[1], tap / count[2] % count[1], tap % count[2]};
    const Axes3 numbers{1, of.rows, of.columns};
    Axes3 low, high;  // positions that meet one of these rows there
    for (int a = 0; a < 3; ++a) {
      low[a] = std::max<int64_t>(0, of.at[a] - from[a]);
      high[a] = std::min(extent[a], of.at[a] + numbers[a] - from[a]);
      if (low[a] >= high[a]) return;
    }
    const Axes3& stride = sums.source_stride;
    const T* source = sums.source + sums.members[of.member].source;
    for (int a = 0; a < 3; ++a) source += low[a] * stride[a];
    const int64_t row = low[1] + from[1] - of.at[1], column = low[2] + from[2] - of.at[2];
    const int64_t pitch = of.columns * of.width;
    DenseRow<T> next{source, stride[1], terms, totals + row * pitch + column * of.width, pitch};
    for (int64_t y = low[1]; y < high[1]; ++y) {
      kernels<T>().dense_row(next, high[2] - low[2], of.width);
      next.source += stride[1];
      next.totals += pitch;
    }
  }
};

// How far apart the templates lie, if they do so evenly.
inline std::optional<int64_t> even_step(const std::vector<Lead>& templates) {
  const int64_t step = templates[1].templ - templates[0].templ;
  for (size_t i = 1; i < templates.size(); ++i) {
    if (templates[i].templ - templates[i - 1].templ != step) return {};
  }
  return step;
}

// Whether zeros cost more than totals that are added to for each tap.
inline bool is_quick_by_taps(const Geometry& g, int64_t templates) {
  const int64_t elements = ceil_div(g.size[2], g.step[2]);
  return g.score_stride[2] == 1 && g.output[2] * (templates + kAddition) < elements * templates;
}

}  // namespace torchcorr::direct
