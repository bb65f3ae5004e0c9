// The last step of a plain correlation through transforms: sums in the input's level and units,
// and the few that cancel below the rounding of their tile recomputed exactly.

#include <cmath>

#include "common/exact_window.h"
#include "tiles/steps.h"
#include "windows/flat.h"

namespace torchcorr {
namespace {

// value = numerator * unscale + offset; a smaller value than `least` is doubtful.
struct Restore {
  double unscale, offset, least;
};

// Every `step`th numerator, and its sum of absolute products, if known.
struct BoundedRow {
  const double* numerators;
  const float* absolute;
  int64_t step;
};

// Writes values; counts and marks those whose error is not known to be within the bound.
template <class Out>
TORCHCORR_INLINE int64_t restore_row(int64_t n, const BoundedRow& row, const Restore& by, Out* out,
                                     uint8_t* states) {
  const auto [numerators, absolute, step] = row;
  const auto [unscale, offset, least] = by;
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double value = numerators[i * step] * unscale + offset;
    const double size =
        absolute ? static_cast<double>(absolute[i * step]) * unscale : std::abs(value);
    const bool unknown = !(size >= least);
    out[i] = static_cast<Out>(value);
    states[i] = unknown ? kUnknown : kGood;
    count += unknown;
  }
  return count;
}

#define TORCHCORR_RESTORE(Out)                                                                    \
  TORCHCORR_CLONES int64_t restore(int64_t n, const BoundedRow& row, const Restore& by, Out* out, \
                                   uint8_t* states) {                                             \
    return restore_row(n, row, by, out, states);                                                  \
  }
TORCHCORR_RESTORE(float)
TORCHCORR_RESTORE(double)
#undef TORCHCORR_RESTORE

TORCHCORR_CLONES double squares_of(int64_t n, const double* x, int64_t step) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int64_t l = 0; l < 8; ++l) lanes[l] += x[(i + l) * step] * x[(i + l) * step];
  }
  for (; i < n; ++i) lanes[0] += x[i * step] * x[i * step];
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
         ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

// Sum and norm of a template.
struct TemplateSums {
  double sum = 0, norm = 0;

  TemplateSums(int64_t n, const double* w) {
    for (int64_t i = 0; i < n; ++i) sum += w[i], norm += w[i] * w[i];
    norm = std::sqrt(norm);
  }
};

template <class Out>
class EmitSums {
 public:
  EmitSums(const TileBatch& batch, const SumRule& rule, const Tensor& numerators,
           const std::optional<Tensor>& absolute, const TileMoments& moments, const Tensor& image,
           const Tensor& templ, const Tensor& out)
      : batch_(batch), t_(batch.tiling), rule_(rule),
        exact_{t_.channels, t_.window, RowStrides(t_.size), false, 0.0},
        numerators_(numerators.const_data_ptr<double>()),
        absolute_(absolute ? absolute->const_data_ptr<float>() : nullptr), stats_(moments.rows()),
        states_(moments.states_or_null()), image_(image.const_data_ptr<Out>()),
        templ_(templ.const_data_ptr<double>()), out_(out.mutable_data_ptr<Out>()),
        map_(last_sizes(out, t_.ndim)), here_(numerators.size(1)), templates_(templ.size(1)),
        items_each_(image.size(0) / templ.size(0)) {}

  // Doubtful windows of tile t that are too many to be recomputed and keep their sums.
  int64_t run(int64_t t, std::vector<uint8_t>& states) const {
    const TilePlace place(t_, batch_.tiles[t]);
    if (!place.exists) return 0;
    int64_t left = 0;
    for (int64_t k = 0; k < here_; ++k) {
      states.assign(t_.positions(), kGood);
      int64_t count = write(place, t, k, states);
      const auto too_many = [&] { return static_cast<double>(count) > rule_.budget; };
      if (too_many() && !states_) count -= write_zeros(place, t, k, states);
      if (too_many()) {
        left += count;
      } else if (count > 0) {
        recompute_exactly(place, k, states);
      }
    }
    return left;
  }

 private:
  // Calls f(offset in the tile's positions, place (z, y, x) in the map, positions) for each row of
  // positions that belongs to the map.
  template <class F>
  void for_rows(const TilePlace& p, const F& f) const {
    const int64_t x = p.first(t_, 2), n = std::min(t_.outputs[2], map_[2] - x);
    for (int64_t row = 0; row < t_.outputs[0] * t_.outputs[1]; ++row) {
      const int64_t z = p.first(t_, 0) + row / t_.outputs[1];
      const int64_t y = p.first(t_, 1) + row % t_.outputs[1];
      if (z < map_[0] && y < map_[1]) f(row * t_.outputs[2], Axes3{z, y, x}, n);
    }
  }

  Out* row_of(const TilePlace& p, int64_t k, const Axes3& at) const {
    const int64_t which = p.item * templates_ + batch_.first_template + k;
    return out_ + ((which * map_[0] + at[0]) * map_[1] + at[1]) * map_[2] + at[2];
  }

  const double* template_of(const TilePlace& p, int64_t k) const {
    const int64_t which = p.item / items_each_ * templates_ + batch_.first_template + k;
    return templ_ + which * t_.window_size();
  }

  // Where a row of the tile's numerators begins.
  int64_t numerators_at(int64_t t, int64_t k, int64_t offset) const {
    const Axes3 at = unravel(offset, t_.outputs);
    return (((t / 2 * here_ + k) * t_.length[0] + at[0] * t_.stride[0]) * t_.length[1] +
            at[1] * t_.stride[1]) *
               t_.length[2] * 2 +
           t % 2;
  }

  int64_t write(const TilePlace& p, int64_t t, int64_t k, std::vector<uint8_t>& states) const {
    const TemplateSums templ(t_.window_size(), template_of(p, k));
    const TileStats &stats = stats_[t], &partner = stats_[t ^ 1];
    // A transform mixes the elements and the numerators of both tiles of a pair.
    const int64_t volume = t_.tile_size();
    double power = 0;
    for (int64_t lane = 0; lane < 2; ++lane) {
      power += squares_of(volume, numerators_ + (t / 2 * here_ + k) * volume * 2 + lane, 2);
    }
    const double rms = std::sqrt(power / static_cast<double>(volume));
    const double tile = std::sqrt(stats.mean_square + partner.mean_square) * templ.norm;
    const double error = rule_.noise * std::sqrt(tile * tile + rms * rms) / stats.scale;
    const Restore by{1 / stats.scale, stats.level * templ.sum, error / rule_.allowed};
    int64_t count = 0;
    for_rows(p, [&](int64_t offset, const Axes3& at, int64_t n) {
      const int64_t source = numerators_at(t, k, offset);
      uint8_t* row = states.data() + offset;
      count += restore(
          n, {numerators_ + source, absolute_ ? absolute_ + source : nullptr, 2 * t_.stride[2]}, by,
          row_of(p, k, at), row);
      if (states_) {
        const uint8_t* known = states_ + t * t_.positions() + offset;
        for (int64_t v = 0; v < n; ++v) {
          if (known[v] != kNonFinite) continue;
          count += row[v] != kUnknown;
          row[v] = kUnknown;
        }
      }
    });
    return count;
  }

  // A window of zeros sums to zero: returns how many unknown ones there were.
  int64_t write_zeros(const TilePlace& p, int64_t t, int64_t k,
                      std::vector<uint8_t>& states) const {
    const int64_t zeros = FlatWindows<Out>(t_, false).mark(batch_.tiles[t], image_, states.data());
    for_rows(p, [&](int64_t offset, const Axes3& at, int64_t n) {
      Out* row = row_of(p, k, at);
      for (int64_t v = 0; v < n; ++v) {
        if (states[offset + v] == kFlat) row[v] = 0;
      }
    });
    return zeros;
  }

  void recompute_exactly(const TilePlace& p, int64_t k, const std::vector<uint8_t>& states) const {
    const Out* item = image_ + p.item * t_.channels * t_.item_size();
    for_rows(p, [&](int64_t offset, const Axes3& at, int64_t n) {
      Out* row = row_of(p, k, at);
      const Out* start = item + at[0] * t_.stride[0] * exact_.strides.plane +
                         at[1] * t_.stride[1] * exact_.strides.row + at[2] * t_.stride[2];
      for (int64_t v = 0; v < n; ++v) {
        if (states[offset + v] != kUnknown) continue;
        row[v] =
            static_cast<Out>(sum_of_window(start + v * t_.stride[2], template_of(p, k), exact_));
      }
    });
  }

  const TileBatch& batch_;
  const Tiling& t_;
  const SumRule& rule_;
  ExactWindow exact_;
  const double* numerators_;
  const float* absolute_;
  const TileStats* stats_;
  const uint8_t* states_;
  const Out* image_;
  const double* templ_;
  Out* out_;
  Axes3 map_;  // positions of the result
  int64_t here_, templates_, items_each_;
};

Tensor emit_sums(const Tensor& numerators, std::optional<Tensor> absolute, Tensors tensors,
                 const Tensor& input, const Tensor& given, Sizes numbers, Numbers rule,
                 const Tensor& out) {
  const Tensor image = packed(input), templ = packed(given);
  const TileBatch batch(numbers, image);
  const TileMoments moments(tensors);
  const SumRule by(rule);
  Tensor left = torch::stable::new_empty(moments.stats, {batch.count()}, ScalarType::Long);
  int64_t* counts = left.mutable_data_ptr<int64_t>();
  with_real_type(out, "out", [&](auto zero) {
    const EmitSums<decltype(zero)> step(batch, by, numerators, absolute, moments, image, templ,
                                        out);
    torch::stable::parallel_for(0, batch.count(), 1, [&](int64_t begin, int64_t end) {
      std::vector<uint8_t> states;
      for (int64_t t = begin; t < end; ++t) counts[t] = step.run(t, states);
    });
  });
  return left;
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("emit_sums", TORCH_BOX(&torchcorr::emit_sums));
}
