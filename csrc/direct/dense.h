// Correlations of many templates with the same images: a block of positions by a block of templates
// in registers, as in a matrix product. Templates are the lanes of a vector.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "common/parallel.h"
#include "direct/geometry.h"
#include "direct/kernels.h"

namespace torchcorr::direct {

// Bytes of sums of a unit of work, of coefficients that stay near while positions pass, and of those
// that are packed at once.
constexpr int64_t kUnitBytes = 128 << 10;
constexpr int64_t kNearBytes = 64 << 10;
constexpr int64_t kPackedBytes = 16 << 20;
// Units that work is divided into at least, whatever the number of threads.
constexpr int64_t kUnits = 16;
// Fewer templates leave most lanes empty.
constexpr int64_t kFewestTemplates = 8;

// A source, as in SumOfPlanes, and where its first output begins.
struct DenseMember {
  int64_t source, output;
};

// Sums of the same planes of many members, one for each template. The coefficients of a plane are
// in the order of its rows and columns, behind those of the planes before it.
template <class T>
struct DenseSums {
  std::vector<Plane> planes;
  std::vector<DenseMember> members;
  std::vector<int64_t> outputs;  // of each template, relative to a member's
  const T* source;
  Axes3 source_stride, size, output_stride;
};

// All combinations of images and templates.
struct DenseLeads {
  std::vector<Lead> images;     // the first of each image
  std::vector<Lead> templates;  // of the first image
};

// Nothing if images are paired with templates, or templates are few.
inline std::optional<DenseLeads> dense_leads(const Geometry& g) {
  const auto groups = group_leads(g, &Lead::image);
  DenseLeads found;
  if (groups.empty() || static_cast<int64_t>(groups[0].size()) < kFewestTemplates) return {};
  found.templates = groups[0];
  for (const auto& group : groups) {
    if (group.size() != found.templates.size()) return {};
    for (size_t i = 0; i < group.size(); ++i) {
      const Lead &a = group[i], &b = found.templates[i];
      if (a.templ != b.templ) return {};
      if (a.score - group[0].score != b.score - found.templates[0].score) return {};
    }
    found.images.push_back(group[0]);
  }
  return found;
}

// The coefficients of blocks of templates, those of one term side by side. `value(t, plane, row)`
// is where a row of a template's plane begins, whose elements are `step` apart.
template <class T>
class DenseCoefficients {
 public:
  template <class Row>
  DenseCoefficients(const std::vector<Plane>& planes, int64_t templates, int64_t step,
                    const Row& row)
      : lanes_(kernels<T>().dense_lanes), templates_(templates) {
    first_.push_back(0);
    for (const Plane& p : planes) first_.push_back(first_.back() + p.rows * p.columns);
    values_.resize(terms() * blocks() * 2 * lanes_);
    parallel_for(0, templates, std::max<int64_t>(1, (1 << 16) / (terms() + 1)),
                 [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t lanes = 2 * lanes_, width = width_of(t / lanes);
        T* to = values_.data() + t / lanes * lanes * terms() + t % lanes;
        for (size_t i = 0; i < planes.size(); ++i) {
          for (int64_t r = 0; r < planes[i].rows; ++r) {
            const T* from = row(t, planes[i], r);
            for (int64_t k = 0; k < planes[i].columns; ++k, to += width) *to = from[k * step];
          }
        }
      }
    });
  }

  int64_t terms() const { return first_.back(); }
  int64_t blocks() const { return (templates_ + 2 * lanes_ - 1) / (2 * lanes_); }
  int64_t of_block(int64_t block) const {
    return std::min(2 * lanes_, templates_ - block * 2 * lanes_);
  }
  // Lanes of a block.
  int64_t width_of(int64_t block) const { return of_block(block) > lanes_ ? 2 * lanes_ : lanes_; }
  const T* at(int64_t block, size_t plane) const {
    return values_.data() + block * 2 * lanes_ * terms() + first_[plane] * width_of(block);
  }
  // The planes from this one on whose coefficients stay near end before this one.
  size_t near(int64_t block, size_t plane) const {
    const int64_t bytes = width_of(block) * static_cast<int64_t>(sizeof(T));
    size_t end = plane + 1;
    while (end + 1 < first_.size() && (first_[end + 1] - first_[plane]) * bytes <= kNearBytes) ++end;
    return end;
  }

 private:
  int64_t lanes_, templates_;
  std::vector<int64_t> first_;
  std::vector<T> values_;
};

// Calls emit(member, template, z, y, values, step) for each row of each output.
template <class T, class Emit>
void run_dense(const DenseSums<T>& sums, const DenseCoefficients<T>& packed, const Emit& emit) {
  const auto& planes = sums.planes;
  const int64_t members = static_cast<int64_t>(sums.members.size()), blocks = packed.blocks();
  const int64_t columns = sums.size[2], row = columns * packed.width_of(0);
  if (members * blocks * product(sums.size) == 0) return;
  const int64_t fitting = std::max<int64_t>(1, kUnitBytes / (8 * row));
  const int64_t rows = std::min(sums.size[1], fitting), strips = (sums.size[1] + rows - 1) / rows;
  const int64_t spread = members * blocks * sums.size[0] * strips / kUnits;
  const int64_t each = std::clamp<int64_t>(spread, 1, std::max<int64_t>(1, fitting / rows));
  const int64_t groups = (members + each - 1) / each;
  const int64_t units = blocks * groups * sums.size[0] * strips;
  const int64_t work = packed.terms() * each * rows * row;
  const auto dense = kernels<T>().dense;
  parallel_for(0, units, std::max<int64_t>(1, kGrainTerms / (work + 1)),
               [&](int64_t begin, int64_t end) {
    std::vector<double> totals(each * rows * row);
    DenseScratch<T> scratch;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t y = unit % strips * rows, z = unit / strips % sums.size[0];
      const int64_t group = unit / strips / sums.size[0] % groups;
      const int64_t block = unit / strips / sums.size[0] / groups, width = packed.width_of(block);
      const int64_t first = group * each, last = std::min(first + each, members);
      const int64_t some = std::min(rows, sums.size[1] - y);
      std::fill(totals.begin(), totals.end(), 0.0);
      for (size_t plane = 0; plane < planes.size();) {
        const size_t behind = packed.near(block, plane);
        for (int64_t m = first; m < last; ++m) {
          const SumOfPlanes<T> sum{&planes, sums.source + sums.members[m].source,
                                   packed.at(block, plane), nullptr,
                                   sums.source_stride, {z, y, columns}, {}};
          dense({sum, plane, behind, some, width, totals.data() + (m - first) * rows * row},
                scratch);
        }
        plane = behind;
      }
      for (int64_t m = first; m < last; ++m) {
        for (int64_t t = 0; t < packed.of_block(block); ++t) {
          for (int64_t r = 0; r < some; ++r) {
            const double* values = totals.data() + (m - first) * rows * row + r * columns * width;
            emit(m, block * packed.width_of(0) + t, z, y + r, values + t, width);
          }
        }
      }
    }
  });
}

// The outputs in memory.
template <class T, class Out>
auto dense_output(const DenseSums<T>& sums, Out* output, bool added) {
  return [&sums, output, added](int64_t member, int64_t t, int64_t z, int64_t y,
                                const double* values, int64_t step) {
    Out* to = output + sums.members[member].output + sums.outputs[t] +
              z * sums.output_stride[0] + y * sums.output_stride[1];
    for (int64_t x = 0; x < sums.size[2]; ++x) {
      Out& value = to[x * sums.output_stride[2]];
      value = static_cast<Out>(values[x * step]) + (added ? value : Out(0));
    }
  };
}

}  // namespace torchcorr::direct
