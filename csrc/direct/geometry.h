// Shapes, strides and leads of one direct correlation, and its phases of stride one.
#pragma once

#include <map>
#include <utility>

#include "common/axes.h"

namespace torchcorr::direct {

constexpr int64_t kGrainTerms = 1 << 20;  // products that are worth another thread

// Offsets of one combination of leading indices.
struct Lead {
  int64_t score, image, templ;
};

// One correlation, its spatial axes padded to three in front; offsets and strides in elements.
struct Geometry {
  int64_t channels = 1;
  Axes3 size{1, 1, 1}, window{1, 1, 1}, output{1, 1, 1}, step{1, 1, 1};
  Axes3 image_stride{}, templ_stride{}, score_stride{};
  int64_t image_channel = 0, templ_channel = 0;
  std::vector<Lead> leads;

  Geometry(const Tensor& score, const Tensor& image, const Tensor& templ, const Sizes& stride) {
    const int64_t ndim = static_cast<int64_t>(stride.size());
    const int64_t batch = score.dim() - ndim;
    step = last_axes(stride);
    output = last_sizes(score, ndim);
    size = last_sizes(image, ndim);
    window = last_sizes(templ, ndim);
    for (int64_t i = 0; i < ndim; ++i) {
      const int64_t axis = 3 - ndim + i;
      score_stride[axis] = score.stride(batch + i);
      image_stride[axis] = image.stride(image.dim() - ndim + i);
      templ_stride[axis] = templ.stride(templ.dim() - ndim + i);
    }
    channels = image.size(image.dim() - ndim - 1);
    image_channel = image.stride(image.dim() - ndim - 1);
    templ_channel = templ.stride(templ.dim() - ndim - 1);
    leads.push_back({0, 0, 0});
    for (int64_t axis = 0; axis < batch; ++axis) {
      const int64_t from_image = broadcast_stride(image, axis - batch - ndim - 1);
      const int64_t from_templ = broadcast_stride(templ, axis - batch - ndim - 1);
      std::vector<Lead> next;
      next.reserve(leads.size() * score.size(axis));
      for (const Lead& lead : leads) {
        for (int64_t i = 0; i < score.size(axis); ++i) {
          next.push_back({lead.score + i * score.stride(axis), lead.image + i * from_image,
                          lead.templ + i * from_templ});
        }
      }
      leads = std::move(next);
    }
  }

  int64_t terms() const { return channels * window[0] * window[1] * window[2]; }

 private:
  static int64_t broadcast_stride(const Tensor& x, int64_t axis) {
    axis += x.dim();
    return axis < 0 || x.size(axis) == 1 ? 0 : x.stride(axis);
  }
};

struct Phase {
  Axes3 start{}, count{};
  int64_t first = 0;  // of its packed coefficients (channel, depth, row, column)

  int64_t plane() const { return count[1] * count[2]; }
};

inline int64_t strided_count(int64_t size, int64_t start, int64_t step) {
  return size > start ? (size - start + step - 1) / step : 0;
}

inline std::vector<Phase> split_phases(const Geometry& g) {
  std::vector<Phase> phases;
  int64_t first = 0;
  for (int64_t z = 0; z < g.step[0]; ++z) {
    for (int64_t y = 0; y < g.step[1]; ++y) {
      for (int64_t x = 0; x < g.step[2]; ++x) {
        Phase phase{{z, y, x}, {}, first};
        for (int a = 0; a < 3; ++a) {
          phase.count[a] = strided_count(g.window[a], phase.start[a], g.step[a]);
        }
        first += g.channels * phase.count[0] * phase.plane();
        phases.push_back(phase);
      }
    }
  }
  return phases;
}

// Leads with equal image (or template) offset: their gradients add up.
inline std::vector<std::vector<Lead>> group_leads(const Geometry& g, int64_t Lead::* key) {
  std::map<int64_t, std::vector<Lead>> groups;
  for (const Lead& lead : g.leads) groups[lead.*key].push_back(lead);
  std::vector<std::vector<Lead>> out;
  for (auto& [offset, leads] : groups) out.push_back(std::move(leads));
  return out;
}

}  // namespace torchcorr::direct
