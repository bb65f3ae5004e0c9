// Where the elements of items lie, which are read in place if their rows are dense.
#pragma once

#include "common/axes.h"

namespace torchcorr {

// Elements from channel to channel, plane to plane and row to row.
struct RowStrides {
  int64_t channel, plane, row;

  explicit RowStrides(const Axes3& size)
      : channel(product(size)), plane(size[1] * size[2]), row(size[2]) {}

  bool operator==(const RowStrides& other) const {
    return channel == other.channel && plane == other.plane && row == other.row;
  }
};

inline bool has_dense_rows(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return last < 0 || x.size(last) == 1 || x.stride(last) == 1;
}

// Items (*lead, C, z, y, x) whose last axis has no step: whole tensors, and parts, expanded and
// permuted ones.
struct ItemLayout {
  RowStrides strides{Axes3{1, 1, 1}};
  int64_t count = 0;  // of items
  int64_t reach = 0;  // elements from the first to the last in memory

  ItemLayout() = default;
  ItemLayout(const Tensor& x, int64_t ndim) : count(1) {
    STD_TORCH_CHECK(has_dense_rows(x), "the last axis of an input must have no step");
    const auto sizes = x.sizes(), steps = x.strides();
    const int64_t axes = x.dim(), leads = axes - ndim - 1;
    int64_t next = 1;
    reach = 1;
    // Elements from one to the next along an axis. The steps of single ones are arbitrary.
    const auto step_of = [&](int64_t axis) {
      const int64_t n = sizes[axis], step = n == 1 ? next : steps[axis];
      reach += (n - 1) * step;
      next = n * step;
      return step;
    };
    step_of(axes - 1);
    strides.row = ndim > 1 ? step_of(axes - 2) : next;
    strides.plane = ndim > 2 ? step_of(axes - 3) : next;
    strides.channel = step_of(leads);
    for (int64_t axis = leads - 1; axis >= 0; --axis) {
      const int64_t n = sizes[axis], step = steps[axis];
      count *= n;
      if (n == 1) continue;
      reach += (n - 1) * step;
      if (!lead_.empty() && step == lead_.back() * steps_.back()) {
        lead_.back() *= n;
      } else {
        lead_.push_back(n), steps_.push_back(step);
      }
    }
  }

  // Where an item begins.
  int64_t first(int64_t item) const {
    int64_t at = 0;
    for (size_t i = 0; i < lead_.size(); ++i) {
      at += item % lead_[i] * steps_[i];
      item /= lead_[i];
    }
    return at;
  }

 private:
  Sizes lead_, steps_;  // leading axes that are not joined, the last one first
};

}  // namespace torchcorr
