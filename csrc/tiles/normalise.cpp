// The step `normalise` of a score: numerator times norm, recomputed exactly where that is doubtful.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <type_traits>
#include <utility>

#include "common/counters.h"
#include "common/exact_window.h"
#include "common/narrow_window.h"
#include "common/parallel.h"
#include "tiles/faint_windows.h"
#include "tiles/score_rows.h"
#include "tiles/steps.h"

namespace torchcorr {
namespace {

// Windows of a tile that are worth a template in float32; the error that these scores may have, of 1e-5;
// and the least sum of squares that float32 holds well enough.
constexpr int64_t kFewWindows = 8;
constexpr double kNarrowError = 5e-6, kLeastSquares = 1e-30;

bool is_complex(const Tensor& x) {
  return x.scalar_type() == ScalarType::ComplexFloat ||
         x.scalar_type() == ScalarType::ComplexDouble;
}

// Where the numerators of a tile and a template lie: (tile, template, *positions), or pairs of
// tiles with their elements side by side, which for one template may be complex (pair, *folded).
struct NumeratorLayout {
  int64_t lanes, templates;
  Axes3 full, skip;  // numerators along each axis, and how many from position to position

  NumeratorLayout(const Tensor& x, const Tiling& t)
      : lanes(is_complex(x) ? 2 : x.dim() - t.ndim - 1), templates(is_complex(x) ? 1 : x.size(1)),
        full{1, 1, 1}, skip{1, 1, 1} {
    STD_TORCH_CHECK(lanes == 1 || lanes == 2, "numerators have too many axes");
    for (int64_t i = 0; i < t.ndim; ++i) {
      const int64_t axis = 3 - t.ndim + i;
      full[axis] = x.size((is_complex(x) ? 1 : 2) + i);
      // Those of every position, or only of the positions of the stride.
      skip[axis] = full[axis] == t.outputs[axis] ? 1 : t.folded_stride()[axis];
    }
    STD_TORCH_CHECK(lanes == 2 || full == t.outputs, "direct sums are those of the positions");
  }

  int64_t row(int64_t tile, int64_t k, int64_t z, int64_t y) const {
    const int64_t at =
        (((tile / lanes * templates + k) * full[0] + z * skip[0]) * full[1] + y * skip[1]) *
        full[2];
    return at * lanes + tile % lanes;
  }
  int64_t step() const { return skip[2] * lanes; }
  // Whether scores need every position.
  bool dense() const { return product(skip) == 1; }
};

// A row of positions of one tile that belongs to the map.
struct PositionRow {
  TilePlace place;
  int64_t n;       // positions
  Axes3 first;     // in the map
  int64_t offset;  // of the tile's norms and states
};

// One call of the step.
template <class In, class Out>
class Normalise {
 public:
  Normalise(const TileBatch& batch, const ScoreRule& rule, const Tensor& numerators,
            const Numbers& powers, const TileMoments& moments, const Tensor& image,
            const Tensor& coefficients, const Tensor& out)
      : batch_(batch), t_(batch.tiling), layout_(numerators, batch.tiling), rule_(rule),
        exact_{t_.channels, t_.window, t_.layout.strides, rule.zero_mean, rule.eps,
               rule.own_means},
        numerators_(static_cast<const In*>(numerators.const_data_ptr())), powers_(powers),
        norms_(moments.known_norms().const_data_ptr<In>()), states_(moments.states_or_null()),
        stats_(moments.rows()), coefficients_(coefficients.const_data_ptr<double>()),
        image_(image.const_data_ptr<Out>()), out_(out.mutable_data_ptr<Out>()),
        map_(last_sizes(out, t_.ndim)), templates_(coefficients.size(1)),
        items_each_(t_.layout.count / coefficients.size(0)),
        first_seen_(first_seen(coefficients_, exact_)) {}

  // All tiles; `left` gets the number of doubtful windows that are too many to be recomputed, and
  // `limits` the largest norms that numerators of pairs and templates determine.
  void run(int64_t* left, Numbers& limits) const {
    if (layout_.lanes == 1) return run_direct(left);
    const int64_t tiles = batch_.count(), templates = layout_.templates;
    std::vector<RowContent> contents(tiles * rows() * templates);
    const int64_t grain = std::max<int64_t>(1, (1 << 14) / (t_.outputs[2] * templates));
    parallel_for(0, tiles * rows(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) write(u / rows(), u % rows(), &contents[u * templates]);
    });
    std::vector<double> most;
    if (rule_.noise > 0) most = largest_norms(contents);
    for (int64_t t = 0; t < tiles; ++t) {
      left[t] = 0;
      for (int64_t k = 0; k < templates; ++k) {
        const double limit = most.empty() ? HUGE_VAL : most[t / 2 * templates + k];
        RowContent all;
        for (int64_t row = t * rows(); row < (t + 1) * rows(); ++row) {
          all.add(contents[row * templates + k]);
        }
        if (all.doubtful > 0 || all.norm > limit) left[t] += recompute_or_count(t, k, limit);
      }
    }
    limits = std::move(most);
  }

  // The windows of two tiles that are looked at again, with one template.
  std::array<int64_t, 2> run_faint(const FaintTiles& faint) const {
    const RowContent all = content_of(2 * product(layout_.full), numerators_);
    const double mean = all.square / static_cast<double>(product(layout_.full));
    const double root = std::sqrt(faint.mean_square * exact_.count + mean);
    const double most = 1 / (rule_.noise * (root + all.peak / 2));
    std::array<int64_t, 2> left{};
    for (int64_t t = 0; t < 2; ++t) {
      const double limit = most * faint.scales[t];
      SecondLook by{nullptr, static_cast<float>(limit), static_cast<float>(1 / faint.scales[t])};
      for (int64_t row = 0; row < rows(); ++row) {
        in_row(t, row, [&](const PositionRow& r) {
          by.marked = faint.marked.const_data_ptr<uint8_t>() + r.offset;
          const auto* from = numerators_ + layout_.row(t, 0, row / t_.outputs[1], row % t_.outputs[1]);
          if constexpr (std::is_same_v<In, float> && std::is_same_v<Out, float>) {
            rescore_row(r.n, from, norms_ + r.offset, by, target(r, 0));
          }
        });
      }
      left[t] = recompute_or_count(t, 0, limit);
    }
    return left;
  }

 private:
  // The same for direct sums, whose rounding norms tell by themselves.
  void run_direct(int64_t* left) const {
    const int64_t tiles = batch_.count(), templates = layout_.templates;
    std::vector<int64_t> doubtful(tiles * rows());
    const int64_t grain = std::max<int64_t>(1, (1 << 14) / (t_.outputs[2] * templates));
    parallel_for(0, tiles * rows(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        const int64_t t = u / rows(), row = u % rows();
        in_row(t, row, [&](const PositionRow& r) {
          doubtful[u] = count_doubtful(r.n, states_ + r.offset);
          const int64_t z = row / t_.outputs[1], y = row % t_.outputs[1];
          for (int64_t k = 0; k < templates; ++k) {
            scale_row(r.n, numerators_ + layout_.row(t, k, z, y), norms_ + r.offset, target(r, k));
          }
        });
      }
    });
    for (int64_t t = 0; t < tiles; ++t) {
      const auto first = doubtful.begin() + t * rows();
      left[t] = 0;
      if (std::all_of(first, first + rows(), [](int64_t n) { return n == 0; })) continue;
      for (int64_t k = 0; k < templates; ++k) left[t] += recompute_or_count(t, k, HUGE_VAL);
    }
  }

  int64_t rows() const { return t_.outputs[0] * t_.outputs[1]; }

  // Calls f(row) for row `row` of tile t, if it belongs to the map.
  template <class F>
  void in_row(int64_t t, int64_t row, const F& f) const {
    const TilePlace place(t_, batch_.tiles[t]);
    const int64_t z = place.first(t_, 0) + row / t_.outputs[1];
    const int64_t y = place.first(t_, 1) + row % t_.outputs[1];
    const int64_t x = place.first(t_, 2), n = std::min(t_.outputs[2], map_[2] - x);
    if (!place.exists || z >= map_[0] || y >= map_[1] || n <= 0) return;
    f(PositionRow{place, n, {z, y, x}, (t * rows() + row) * t_.outputs[2]});
  }

  Out* target(const PositionRow& r, int64_t k) const {
    const int64_t which = r.place.item * templates_ + batch_.first_template + k;
    return out_ + ((which * map_[0] + r.first[0]) * map_[1] + r.first[1]) * map_[2] + r.first[2];
  }

  // Writes the scores of a row, and what it contains for each template.
  void write(int64_t t, int64_t row, RowContent* contents) const {
    in_row(t, row, [&](const PositionRow& r) {
      const int64_t tail = layout_.dense() ? layout_.full[2] - r.n : 0;
      const int64_t doubtful = count_doubtful(r.n, states_ + r.offset);
      for (int64_t k = 0; k < layout_.templates; ++k) {
        const In* from = numerators_ + layout_.row(t, k, row / t_.outputs[1], row % t_.outputs[1]);
        contents[k] = normalise_row(NumeratorRow<In>{r.n, tail, from, layout_.step()},
                                    norms_ + r.offset, target(r, k));
        contents[k].doubtful = doubtful;
      }
    });
  }

  // Planes and rows of a tile's numerators that `write` reads.
  std::pair<int64_t, int64_t> read_by_write(int64_t t) const {
    const TilePlace place(t_, batch_.tiles[t]);
    if (!place.exists || !layout_.dense()) return {0, 0};
    return {std::min(t_.outputs[0], map_[0] - place.first(t_, 0)),
            std::min(t_.outputs[1], map_[1] - place.first(t_, 1))};
  }

  // Content of rows [begin, end) of a pair's numerators that `write` does not read. A row that it
  // reads for only one of the two tiles counts twice.
  RowContent unread_content(int64_t pair, int64_t k, int64_t begin, int64_t end) const {
    const auto one = read_by_write(2 * pair), other = read_by_write(2 * pair + 1);
    const int64_t planes = std::min(one.first, other.first);
    const int64_t rows = std::min(one.second, other.second);
    const int64_t height = layout_.full[1], width = 2 * layout_.full[2];
    const In* first = numerators_ + layout_.row(2 * pair, k, 0, 0);
    RowContent content;
    for (int64_t row = begin; row < end; ++row) {
      if (row / height < planes && row % height < rows) continue;
      content.add(content_of(width, first + row * width));
    }
    return content;
  }

  // The largest norm of each pair and template whose scores the numerators determine: both tiles'
  // elements and all their numerators contribute rounding (math.md, noise).
  std::vector<double> largest_norms(const std::vector<RowContent>& contents) const {
    constexpr int64_t kRows = 16;
    const int64_t templates = layout_.templates, full_rows = layout_.full[0] * layout_.full[1];
    const int64_t pairs = batch_.count() / 2, lines = pairs * templates;
    const int64_t parts = ceil_div(full_rows, kRows);
    std::vector<RowContent> unread(lines * parts);
    parallel_for(0, lines * parts, 4, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        const int64_t line = u / parts, first = u % parts * kRows;
        const int64_t last = std::min(first + kRows, full_rows);
        unread[u] = unread_content(line / templates, line % templates, first, last);
      }
    });
    std::vector<double> most(lines);
    for (int64_t line = 0; line < lines; ++line) {
      RowContent all;
      for (int64_t i = 0; i < parts; ++i) all.add(unread[line * parts + i]);
      const int64_t pair = line / templates;
      if (layout_.dense()) {
        for (int64_t row = 2 * pair * rows(); row < 2 * (pair + 1) * rows(); ++row) {
          all.add(contents[row * templates + line % templates]);
        }
      }
      const double squares = stats_[2 * pair].mean_square + stats_[2 * pair + 1].mean_square;
      const double mean = powers_.empty()
                              ? all.square / static_cast<double>(product(layout_.full))
                              : powers_.at(line);
      most[line] = 1 / (rule_.noise * (std::sqrt(squares * exact_.count + mean) + all.peak / 2));
    }
    return most;
  }

  bool doubtful(int64_t at, In limit) const {
    return is_doubtful(states_[at]) != 0 || norms_[at] > limit;
  }

  // Recomputes the doubtful windows of a tile and template, or returns how many there are.
  int64_t recompute_or_count(int64_t t, int64_t k, double limit) const {
    const In most = static_cast<In>(limit);
    std::vector<int64_t> counts(rows());
    parallel_for(0, rows(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        in_row(t, row, [&](const PositionRow& r) {
          counts[row] = count_beyond(r.n, states_ + r.offset, norms_ + r.offset, most);
        });
      }
    });
    const int64_t sum = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    if (static_cast<double>(sum) > rule_.budget) return sum;
    count_way(Way::kExactWindows, sum);
    std::optional<NarrowTemplate> narrow;
    if (std::is_same_v<Out, float> && sum >= kFewWindows) {
      const TilePlace place(t_, batch_.tiles[t]);
      if (place.exists) narrow.emplace(coefficients_of(place, k), exact_);
    }
    const NarrowTemplate* by = narrow && !narrow->empty() ? &*narrow : nullptr;
    parallel_for(0, rows(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        if (counts[row] > 0) recompute_exactly(t, row, k, most, by);
      }
    });
    return 0;
  }

  const double* coefficients_of(const TilePlace& place, int64_t k) const {
    const int64_t which = place.item / items_each_ * templates_ + batch_.first_template + k;
    return coefficients_ + which * t_.window_size();
  }

  // What a narrow template takes, which there is for float32 alone.
  static const float* in_float32(const Out* window) {
    if constexpr (std::is_same_v<Out, float>) return window;
    return nullptr;
  }

  // The score from a sum in float32, if that is exact enough for it.
  std::optional<double> narrow_score(const NarrowTemplate::Sum& sum, double norm) const {
    const double error = kNarrowRoundings * std::sqrt(sum.squares * exact_.count) * norm;
    if (!(sum.squares > kLeastSquares && error <= kNarrowError)) return {};
    return sum.products * norm;
  }

  // The doubtful windows of a row from their definition.
  void recompute_exactly(int64_t t, int64_t row, int64_t k, In limit,
                         const NarrowTemplate* narrow) const {
    in_row(t, row, [&](const PositionRow& r) {
      const Out* start = image_ + r.place.origin +
                         r.first[0] * t_.stride[0] * exact_.strides.plane +
                         r.first[1] * t_.stride[1] * exact_.strides.row + r.first[2] * t_.stride[2];
      const double* coefficients = coefficients_of(r.place, k);
      Out* to = target(r, k);
      const double scale = stats_[t].scale;
      const auto put = [&](int64_t v, double score) {
        to[v] = static_cast<Out>(score > 1 ? 1.0 : score < -1 ? -1.0 : score);
      };
      // The sums are those of the windows from first to ready.
      int64_t ready = 0, first = 0;
      double sums[kNeighbours];
      NarrowTemplate::Sum narrow_sums[kNeighbours];
      std::vector<double> levels(exact_.groups());
      const int64_t few = kNeighbours / (narrow ? 3 : 8);
      for (int64_t v = 0; v < r.n; ++v) {
        if (!doubtful(r.offset + v, limit)) continue;
        const Out* window = start + v * t_.stride[2];
        if (states_[r.offset + v] == kUnknown) {
          put(v, score_of_window(window, coefficients, exact_, scale));
          continue;
        }
        if (std::is_same_v<Out, float> && v >= ready && t_.stride[2] == 1 && r.n >= kNeighbours) {
          const int64_t begin = std::min(v, r.n - kNeighbours);
          const int64_t many = count_beyond(begin + kNeighbours - v, states_ + r.offset + v,
                                            norms_ + r.offset + v, limit);
          if (many > few) {
            first = begin, ready = begin + kNeighbours;
            write_levels(start + first + kNeighbours / 2, first_seen_, exact_, levels.data());
            if (narrow) {
              narrow->sums_of_windows(in_float32(start + first), levels.data(), narrow_sums);
            } else {
              numerators_of_windows(start + first, coefficients, exact_, levels.data(), sums);
            }
          }
        }
        const double norm = scale * static_cast<double>(norms_[r.offset + v]);
        std::optional<double> score;
        if (v < ready) {
          score = narrow ? narrow_score(narrow_sums[v - first], norm) : sums[v - first] * norm;
        }
        // Relative to elements of the window, so that a large offset costs no digits.
        if (!score) write_levels(window, first_seen_, exact_, levels.data());
        if (!score && narrow) {
          score = narrow_score(narrow->sum_of_window(in_float32(window), levels.data()), norm);
        }
        if (!score) score = numerator_of_window(window, coefficients, exact_, levels.data()) * norm;
        put(v, *score);
      }
    });
  }

  const TileBatch& batch_;
  const Tiling& t_;
  NumeratorLayout layout_;
  const ScoreRule& rule_;
  ExactWindow exact_;
  const In* numerators_;
  const Numbers& powers_;
  const In* norms_;
  const uint8_t* states_;
  const TileStats* stats_;
  const double* coefficients_;
  const Out* image_;
  Out* out_;
  Axes3 map_;  // positions of the score map
  int64_t templates_, items_each_, first_seen_;
};

}  // namespace

Tensor normalise_tiles(const Tensor& numerators, Tensors moments, const Tensor& input,
                       const Tensor& coefficients, Sizes batch, Numbers rule, const Tensor& out) {
  Scratch scratch;
  const Numerators all{numerators, {}};
  return normalise_tiles_into(scratch, all, moments, input, coefficients, batch, rule, out).left;
}

Normalised normalise_tiles_into(Scratch& scratch, const Numerators& given, const Tensors& tensors,
                                const Tensor& input, const Tensor& templates, const Sizes& numbers,
                                const Numbers& rule, const Tensor& out) {
  const Tensor numerators = packed(given.sums), coefficients = packed(templates);
  const TileBatch batch(numbers, input);
  const TileMoments moments(tensors);
  Tensor left = scratch.take_zeros<int64_t>(Scratch::kLeft, {batch.count()},
                                            ScalarType::Long);
  Normalised done{left, {}};
  if (out.numel() == 0 || numerators.numel() == 0) return done;
  const ScoreRule by(rule);
  with_real_type(moments.known_norms(), "norms", [&](auto in_zero) {
    using In = decltype(in_zero);
    STD_TORCH_CHECK(sizeof(In) == numerators.element_size() / (is_complex(numerators) ? 2 : 1),
                    "numerators and norms must have one precision");
    with_real_type(out, "out", [&](auto out_zero) {
      using Out = decltype(out_zero);
      Normalise<In, Out>(batch, by, numerators, given.powers, moments, input, coefficients, out)
          .run(left.mutable_data_ptr<int64_t>(), done.limits);
    });
  });
  return done;
}

std::array<int64_t, 2> normalise_faint(const Tensor& numerators, const FaintTiles& faint,
                                       const Tensors& tensors, const Tensor& input,
                                       const Tensor& templates, const Sizes& numbers,
                                       const ScoreRule& rule, const Tensor& out) {
  const TileBatch batch(numbers, input);
  const TileMoments moments({tensors[0], tensors[1], faint.states, tensors[3]});
  return Normalise<float, float>(batch, rule, numerators, {}, moments, input, templates, out)
      .run_faint(faint);
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("normalise_tiles", TORCH_BOX(&torchcorr::normalise_tiles));
}
