// Correlations of many templates with the same images: a block of positions by a block of templates
// in registers, as in a matrix product. Templates are the lanes of a vector.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "common/parallel.h"
#include "direct/geometry.h"
#include "direct/kernels.h"
#include "tiles/score_rows.h"

namespace torchcorr::direct {

// Bytes of sums of a unit of work, and of coefficients that are packed at once.
constexpr int64_t kUnitBytes = 128 << 10;
constexpr int64_t kPackedBytes = 1 << 20;
// Units that work is divided into at least, whatever the number of threads.
constexpr int64_t kUnits = 16;
// Of a vector, on any CPU.
constexpr int64_t kMostLanes = 16;
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
    const int64_t count = static_cast<int64_t>(planes.size());
    const int64_t work = terms() / std::max<int64_t>(1, count) * 2 * lanes_;
    parallel_for(0, blocks() * count, std::max<int64_t>(1, (1 << 16) / (work + 1)),
                 [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) pack(planes, i / count, i % count, step, row);
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
  // One plane of a block: vectors of templates, then the others, few columns at a time, whose terms stay
  // near while templates pass.
  template <class Row>
  void pack(const std::vector<Plane>& planes, int64_t block, size_t i, int64_t step,
            const Row& row) {
    constexpr int64_t kColumns = 32;
    const Plane& p = planes[i];
    const int64_t lanes = 2 * lanes_, width = width_of(block), some = of_block(block);
    const int64_t whole = step == 1 ? some / lanes_ * lanes_ : 0;
    T* to = values_.data() + block * lanes * terms() + first_[i] * width;
    for (int64_t r = 0; r < p.rows; ++r, to += p.columns * width) {
      const T* rows[2 * kMostLanes];
      for (int64_t t = 0; t < some; ++t) rows[t] = row(block * lanes + t, p, r);
      for (int64_t t = 0; t < whole; t += lanes_) {
        kernels<T>().interleave(rows + t, p.columns, to + t, width);
      }
      for (int64_t first = 0; first < p.columns && whole < width; first += kColumns) {
        const int64_t last = std::min(first + kColumns, p.columns);
        for (int64_t k = first; k < last && some < width; ++k) {
          std::fill_n(to + k * width + some, width - some, T(0));
        }
        for (int64_t t = whole; t < some; ++t) {
          for (int64_t k = first; k < last; ++k) to[k * width + t] = rows[t][k * step];
        }
      }
    }
  }

  int64_t lanes_, templates_;
  std::vector<int64_t> first_;
  LineVector<T> values_;
};

// Sums of some rows of positions, (rows, columns, width), for a block of templates.
struct DenseRows {
  int64_t member, first, templates;  // a template's number
  Axes3 at;                          // the first position
  int64_t rows, columns, width;
  const double* totals;
};

// Where the first position lies in an output.
inline int64_t first_of(const DenseRows& of, const Axes3& stride) {
  return of.at[0] * stride[0] + of.at[1] * stride[1] + of.at[2] * stride[2];
}

// Calls emit(rows) for the rows of all outputs.
template <class T, class Emit>
void run_dense(const DenseSums<T>& sums, const DenseCoefficients<T>& packed, const Emit& emit) {
  const auto& planes = sums.planes;
  const int64_t members = static_cast<int64_t>(sums.members.size()), blocks = packed.blocks();
  if (members * blocks * product(sums.size) == 0) return;
  const int64_t lanes = packed.width_of(0), positions = kUnitBytes / (8 * lanes);
  // Long rows are divided evenly.
  const int64_t columns = ceil_div(sums.size[2], ceil_div(sums.size[2], positions));
  const int64_t pieces = ceil_div(sums.size[2], columns), row = columns * lanes;
  const int64_t fitting = std::max<int64_t>(1, positions / columns);
  const int64_t rows = std::min(sums.size[1], fitting), strips = ceil_div(sums.size[1], rows);
  const int64_t places = sums.size[0] * strips * pieces;
  const int64_t each = std::clamp<int64_t>(members * blocks * places / kUnits, 1,
                                           std::max<int64_t>(1, fitting / rows));
  const int64_t groups = ceil_div(members, each);
  // Blocks share the copies of planes that a unit makes, unless they must share the work.
  const int64_t together = groups * places >= kUnits ? blocks : 1;
  const int64_t parts = ceil_div(blocks, together), units = parts * groups * places;
  const int64_t work = packed.terms() * each * rows * row * together;
  const auto dense = kernels<T>().dense;
  parallel_for(0, units, std::max<int64_t>(1, kGrainTerms / (work + 1)),
               [&](int64_t begin, int64_t end) {
    LineVector<double> totals(together * each * rows * row);
    DenseScratch<T> scratch;
    for (int64_t unit = begin; unit < end; ++unit) {
      const Axes3 at{unit / pieces / strips % sums.size[0], unit / pieces % strips * rows,
                     unit % pieces * columns};
      const int64_t group = unit / places % groups, block = unit / places / groups * together;
      const int64_t first = group * each, last = std::min(first + each, members);
      const int64_t high = std::min(rows, sums.size[1] - at[1]);
      const int64_t wide = std::min(columns, sums.size[2] - at[2]);
      const auto totals_of = [&](int64_t m, int64_t b) {
        return totals.data() + ((m - first) * together + b - block) * rows * row;
      };
      std::fill(totals.begin(), totals.end(), 0.0);
      for (size_t plane = 0; plane < planes.size();) {
        const size_t behind = packed.near(block, plane);
        for (int64_t m = first; m < last; ++m) {
          for (int64_t b = block; b < block + together; ++b) {
            const SumOfPlanes<T> sum{&planes, sums.source + sums.members[m].source,
                                     packed.at(b, plane), nullptr, sums.source_stride, {}, {}};
            dense({sum, plane, behind, at, high, wide, packed.width_of(b), totals_of(m, b)},
                  scratch);
          }
        }
        plane = behind;
      }
      for (int64_t m = first; m < last; ++m) {
        for (int64_t b = block; b < block + together; ++b) {
          emit(DenseRows{m, b * lanes, packed.of_block(b), at, high, wide, packed.width_of(b),
                         totals_of(m, b)});
        }
      }
    }
  });
}

// The outputs in memory; with norms (members, *size) scores, sums times norms within [-1, 1].
template <class T>
auto dense_output(const DenseSums<T>& sums, T* output, const T* norms = nullptr) {
  return [&sums, output, norms](const DenseRows& of) {
    // Positions that are transposed at once.
    constexpr int64_t kPositions = 64;
    const int64_t columns = of.columns, step = sums.output_stride[2];
    const bool whole = step == 1 && sums.output_stride[1] == columns;
    const int64_t lines = whole ? 1 : of.rows, length = whole ? of.rows * columns : columns;
    const auto transpose = kernels<T>().transpose;
    T* to = output + sums.members[of.member].output + first_of(of, sums.output_stride);
    const Axes3 pitches{sums.size[1] * sums.size[2], sums.size[2], 1};
    const T* by = norms ? norms + of.member * product(sums.size) + first_of(of, pitches) : nullptr;
    T part[2 * kMostLanes * kPositions];
    for (int64_t r = 0; r < lines; ++r) {
      for (int64_t x = 0; x < length; x += kPositions) {
        const int64_t count = std::min(kPositions, length - x);
        transpose(of.totals + (r * columns + x) * of.width, count, of.width, part, kPositions);
        for (int64_t t = 0; t < of.templates; ++t) {
          T* row = to + sums.outputs[of.first + t] + r * sums.output_stride[1] + x * step;
          const T* values = part + t * kPositions;
          if (by) {
            scale_row(count, values, by + r * pitches[1] + x, row);
            continue;
          }
          if (step == 1) std::copy_n(values, count, row);
          for (int64_t i = 0; step != 1 && i < count; ++i) row[i * step] = values[i];
        }
      }
    }
  };
}

// Added to float64 outputs.
template <class T>
auto added_output(const DenseSums<T>& sums, double* output) {
  return [&sums, output](const DenseRows& of) {
    for (int64_t r = 0; r < of.rows; ++r) {
      const double* values = of.totals + r * of.columns * of.width;
      for (int64_t t = 0; t < of.templates; ++t) {
        double* to = output + sums.members[of.member].output + sums.outputs[of.first + t] +
                     first_of(of, sums.output_stride) + r * sums.output_stride[1];
        for (int64_t x = 0; x < of.columns; ++x) {
          to[x * sums.output_stride[2]] += values[x * of.width + t];
        }
      }
    }
  };
}

}  // namespace torchcorr::direct
