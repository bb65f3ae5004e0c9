// Norms that sums do not determine, from the elements of their windows.

#include <cmath>
#include <vector>

#include "common/exact_window.h"
#include "common/parallel.h"
#include "tiles/steps.h"
#include "windows/running_moments.h"

namespace torchcorr {
namespace {

using running::MomentMaps;

// Computes the norms of unknown windows; no window stays doubtful.
template <class In, class T>
class RecomputeNorms {
 public:
  RecomputeNorms(const TileBatch& batch, const In* image, const Tensor& stats,
                 const ScoreRule& rule, const MomentMaps<T>& maps)
      : batch_(batch), image_(image), stats_(rows_of_stats(stats)),
        levels_(levels_of_stats(stats, batch.count(), rule)), maps_(maps),
        exact_{batch.tiling.channels, batch.tiling.window, batch.tiling.layout.strides,
               rule.zero_mean, rule.eps, rule.own_means} {}

  void run() const {
    const Axes3& outputs = batch_.tiling.outputs;
    const int64_t rows = outputs[0] * outputs[1];
    parallel_for(0, batch_.count() * rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) row(u / rows, u % rows / outputs[1], u % outputs[1]);
    });
  }

 private:
  void row(int64_t tile, int64_t i, int64_t j) const {
    const Tiling& t = batch_.tiling;
    const TilePlace place(t, batch_.tiles[tile]);
    if (i >= valid_positions(t, place, 0) || j >= valid_positions(t, place, 1)) return;
    const int64_t n = valid_positions(t, place, 2);
    const MomentMaps<T> to =
        maps_.at(((tile * t.outputs[0] + i) * t.outputs[1] + j) * t.outputs[2]);
    int any = 0;
    for (int64_t v = 0; v < n; ++v) any |= is_doubtful(to.states[v]);
    if (any == 0) return;
    const TileStats& stats = stats_[tile];
    std::vector<double> means(exact_.groups());
    const In* first = image_ + place.origin +
                      (place.start[0] + i * t.stride[0]) * exact_.strides.plane +
                      (place.start[1] + j * t.stride[1]) * exact_.strides.row + place.start[2];
    for (int64_t v = 0; v < n; ++v) {
      if (!is_doubtful(to.states[v])) continue;
      if (to.states[v] == kUnknown) {
        const double squares =
            squares_about_means(first + v * t.stride[2], exact_, stats.scale, means.data());
        const double energy = squares / exact_.count + scaled_eps(exact_.eps, stats.scale);
        to.norms[v] = static_cast<T>(squares == 0 ? 0.0 : 1 / (exact_.count * std::sqrt(energy)));
        for (int64_t g = 0; exact_.zero_mean && g < exact_.groups(); ++g) {
          const double level = levels_ ? levels_[tile * t.channels + g] : stats.level;
          to.means[g * to.pitch + v] = static_cast<T>(means[g] - level * stats.scale);
        }
        to.states[v] = squares == 0 ? kFlat : kGood;
      } else {
        to.states[v] = kGood;
      }
    }
  }

  const TileBatch& batch_;
  const In* image_;
  const TileStats* stats_;
  const double* levels_;
  MomentMaps<T> maps_;
  ExactWindow exact_;
};

}  // namespace

void recompute_norms(const Tensors& tensors, const Tensor& input, const Sizes& numbers,
                     const Numbers& rule) {
  const TileBatch batch(numbers, input);
  const TileMoments moments(tensors);
  const Tensor& norms = moments.known_norms();
  with_real_type(input, "input", [&](auto zero) {
    using In = decltype(zero);
    with_real_type(norms, "norms", [&](auto norm_zero) {
      using T = decltype(norm_zero);
      const MomentMaps<T> maps{norms.mutable_data_ptr<T>(),
                               moments.states->mutable_data_ptr<uint8_t>(),
                               moments.means->mutable_data_ptr<T>(), norms.numel()};
      RecomputeNorms<In, T>(batch, input.const_data_ptr<In>(), moments.stats, ScoreRule(rule),
                            maps)
          .run();
    });
  });
}

}  // namespace torchcorr
