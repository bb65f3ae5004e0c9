// The gradient in the template: dot products of score rows with image rows.
#pragma once

#include <algorithm>
#include <map>
#include <vector>

#include "common/parallel.h"
#include "direct/dense.h"
#include "direct/geometry.h"
#include "direct/kernels.h"

namespace torchcorr::direct {

// The sums are divided here whatever the number of threads.
constexpr int64_t kChunks = 16;
constexpr int64_t kChunkRows = 64;
// Rows of the score are taken together up to so many terms. With fewer channels, the other loop
// is as quick.
constexpr int64_t kTermsTogether = 400;
constexpr int64_t kFewestChannels = 4;

// The image cut into columns x % step so that every phase has unit stride; g then describes those.
template <class T>
std::vector<T> split_columns(Geometry& g, const T* image) {
  const int64_t step = g.step[2], width = strided_count(g.size[2], 0, step);
  const int64_t volume = g.size[0] * g.size[1] * step * width;
  std::map<int64_t, int64_t> slots;
  for (const Lead& lead : g.leads) slots.emplace(lead.image, slots.size());
  std::vector<T> columns(slots.size() * g.channels * volume);
  for (const auto& [offset, slot] : slots) {
    for (int64_t i = 0; i < g.channels * g.size[0] * g.size[1]; ++i) {
      const int64_t y = i % g.size[1], z = i / g.size[1] % g.size[0], c = i / g.size[1] / g.size[0];
      const T* row =
          image + offset + c * g.image_channel + z * g.image_stride[0] + y * g.image_stride[1];
      T* to = columns.data() + slot * g.channels * volume + i * step * width;
      for (int64_t x = 0; x < g.size[2]; ++x) {
        to[x % step * width + x / step] = row[x * g.image_stride[2]];
      }
    }
  }
  for (Lead& lead : g.leads) lead.image = slots.at(lead.image) * g.channels * volume;
  g.image_channel = volume;
  g.image_stride = {g.size[1] * step * width, step * width, width};
  return columns;
}

// Neighbouring elements of the template, and where their image and gradient begin.
struct TemplateBlock {
  int64_t image, out;
  int64_t rows, columns;
};

inline std::vector<TemplateBlock> template_blocks(const Geometry& g) {
  std::vector<TemplateBlock> blocks;
  const int64_t phase_width = strided_count(g.size[2], 0, g.step[2]);
  for (const Phase& p : split_phases(g)) {
    for (int64_t i = 0; i < g.channels * p.count[0]; ++i) {
      const int64_t c = i / p.count[0], z = i % p.count[0] * g.step[0] + p.start[0];
      for (int64_t qy = 0; qy < p.count[1]; qy += kRows) {
        for (int64_t qx = 0; qx < p.count[2]; qx += kColumns) {
          const int64_t y = qy * g.step[1] + p.start[1], x = qx * g.step[2] + p.start[2];
          blocks.push_back({c * g.image_channel + z * g.image_stride[0] + y * g.image_stride[1] +
                                p.start[2] * phase_width + qx,
                            ((c * g.window[0] + z) * g.window[1] + y) * g.window[2] + x,
                            std::min(kRows, p.count[1] - qy),
                            std::min(kColumns, p.count[2] - qx)});
        }
      }
    }
  }
  return blocks;
}

// Windows are as large as the score and positions are the elements of a template: channels take
// the place of images. Nothing is written if this does not apply.
template <class T>
bool dense_template_grad(const Geometry& g, const T* score, const T* image, T* grad) {
  const auto leads = g.step == Axes3{1, 1, 1} ? dense_leads(g) : std::nullopt;
  if (!leads || g.channels < kFewestChannels) return false;
  std::vector<Plane> planes;
  const int64_t rows = std::max<int64_t>(1, kTermsTogether / g.output[2]);
  for (const Lead& lead : leads->images) {
    for (int64_t z = 0; z < g.output[0]; ++z) {
      for (int64_t y = 0; y < g.output[1]; y += rows) {
        planes.push_back({lead.image, lead.score + z * g.score_stride[0] + y * g.score_stride[1],
                          g.size, {z, y, 0}, std::min(rows, g.output[1] - y), g.output[2]});
      }
    }
  }
  DenseSums<T> sums{{}, {}, {}, image, g.image_stride, g.window, g.templ_stride};
  for (int64_t c = 0; c < g.channels; ++c) {
    sums.members.push_back({c * g.image_channel, c * g.templ_channel});
  }
  int64_t count = 0;
  for (const Lead& lead : leads->templates) {
    if (std::find(sums.outputs.begin(), sums.outputs.end(), lead.templ) != sums.outputs.end()) {
      return false;
    }
    sums.outputs.push_back(lead.templ);
    count = std::max(count, lead.templ + g.channels * g.templ_channel);
  }
  const auto row = [&](int64_t t, const Plane& p, int64_t r) {
    const int64_t from = leads->templates[t].score - leads->templates[0].score;
    return score + from + p.coefficients + r * g.score_stride[1];
  };
  // As many planes at a time as there is room for.
  const int64_t templates = static_cast<int64_t>(sums.outputs.size());
  const int64_t bytes = templates * rows * g.output[2] * static_cast<int64_t>(sizeof(T));
  const int64_t some = std::max<int64_t>(1, kPackedBytes / bytes);
  const int64_t all = static_cast<int64_t>(planes.size());
  std::vector<double> totals(count);
  for (int64_t first = 0; first < all; first += some) {
    sums.planes.assign(planes.begin() + first, planes.begin() + std::min(first + some, all));
    const DenseCoefficients<T> packed(sums.planes, templates, g.score_stride[2], row);
    run_dense(sums, packed, added_output(sums, totals.data()));
  }
  std::copy(totals.begin(), totals.end(), grad);
  return true;
}

template <class T>
void template_grad(Geometry g, const T* score, const T* image, T* grad) {
  if (dense_template_grad(g, score, image, grad)) return;
  std::vector<T> columns;
  if (g.step[2] != 1 || g.image_stride[2] != 1) {
    columns = split_columns(g, image);
    image = columns.data();
  }
  const auto groups = group_leads(g, &Lead::templ);
  const auto blocks = template_blocks(g);
  if (groups.empty()) return;
  const int64_t strips = (g.output[1] + kChunkRows - 1) / kChunkRows;
  const int64_t units = static_cast<int64_t>(groups[0].size()) * g.output[0] * strips;
  const int64_t spread = 4 * kChunks / static_cast<int64_t>(groups.size());
  const int64_t chunks = std::min(units, std::clamp<int64_t>(spread, 1, kChunks));
  const int64_t terms = g.terms(), block_count = static_cast<int64_t>(blocks.size());
  std::vector<double> partial(groups.size() * chunks * terms);
  const auto dots = kernels<T>().dots;
  const int64_t work = units / chunks * kChunkRows * g.output[2] * kRows * kColumns;
  const int64_t items = static_cast<int64_t>(groups.size()) * chunks * block_count;
  parallel_for(
      0, items, std::max<int64_t>(1, kGrainTerms / (work + 1)), [&](int64_t begin, int64_t end) {
        std::vector<Dots<T>> runs;
        for (int64_t item = begin; item < end; ++item) {
          const TemplateBlock& block = blocks[item % block_count];
          const int64_t part = item / block_count, chunk = part % chunks;
          runs.clear();
          for (int64_t u = units * chunk / chunks; u < units * (chunk + 1) / chunks; ++u) {
            const int64_t z = u / strips % g.output[0], y = u % strips * kChunkRows;
            const Lead& lead = groups[part / chunks][u / strips / g.output[0]];
            const int64_t pitch = g.image_stride[1] * g.step[1];
            runs.push_back(
                {score + lead.score + z * g.score_stride[0] + y * g.score_stride[1],
                 image + lead.image + block.image + z * g.step[0] * g.image_stride[0] + y * pitch,
                 g.score_stride[1], pitch, std::min(kChunkRows, g.output[1] - y), g.output[2],
                 block.rows});
          }
          double sums[kRows * kColumns];
          dots(runs, block.columns, sums, kColumns);
          double* out = partial.data() + part * terms + block.out;
          for (int64_t j = 0; j < block.rows; ++j) {
            for (int64_t v = 0; v < block.columns; ++v) {
              out[j * g.step[1] * g.window[2] + v * g.step[2]] = sums[j * kColumns + v];
            }
          }
        }
      });
  for (size_t i = 0; i < groups.size(); ++i) {
    for (int64_t v = 0; v < terms; ++v) {
      double total = 0.0;
      for (int64_t c = 0; c < chunks; ++c) total += partial[(i * chunks + c) * terms + v];
      grad[groups[i].front().templ + v] = static_cast<T>(total);
    }
  }
}

}  // namespace torchcorr::direct
