// Sums of sizes slide along planes and rows; see border_windows.h.

#include "tiles/border_windows.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "common/counters.h"
#include "common/targets.h"
#include "common/window_state.h"
#include "direct/correlate.h"
#include "tiles/moment_rows.h"

namespace torchcorr {
namespace {

// Positions across a border that the direct loop computes at once: more waste products with zeros.
constexpr int64_t kLayer = 6, kLayerOfLine = 64;

// Adds the sizes and squares of n elements to those of columns, or subtracts them.
template <int BYTES>
TORCHCORR_INLINE void add_sizes(int64_t n, const float* x, double sign, double* sizes,
                                double* squares) {
  int64_t i = 0;
  for (; i + lanes_of<double, BYTES> <= n; i += lanes_of<double, BYTES>) {
    const Wide<BYTES> v = widened<BYTES>(x + i), size = v < 0 ? -v : v;
    put(load<BYTES>(sizes + i) + sign * size, sizes + i);
    put(load<BYTES>(squares + i) + sign * v * v, squares + i);
  }
  for (; i < n; ++i) {
    const double v = static_cast<double>(x[i]);
    sizes[i] += sign * std::abs(v), squares[i] += sign * v * v;
  }
}
TORCHCORR_FOR_CPUS(void, add_sizes,
                   (int64_t n, const float* x, double sign, double* sizes, double* squares),
                   (n, x, sign, sizes, squares))

// Moves a range of lines or planes whose sums are held on to another one: calls add(i, sign).
template <class F>
void slide(Span& held, const Span& wanted, const F& add) {
  if (wanted.begin >= held.end) {
    for (int64_t i = held.begin; i < held.end; ++i) add(i, -1.0);
    held = {wanted.begin, wanted.begin};
  }
  for (int64_t i = held.end; i < wanted.end; ++i) add(i, 1.0);
  for (int64_t i = held.begin; i < wanted.begin; ++i) add(i, -1.0);
  held = wanted;
}

// Of a row of positions: how many elements are inside, and the sums of the template over them.
struct RowOfBoxes {
  std::vector<double> counts, sizes, squares;
};

TORCHCORR_CLONES double mark_row(int64_t n, const double* sizes, const double* squares,
                                 const RowOfBoxes& of, double needed, uint8_t* states) {
  const double *c = of.counts.data(), *b1 = of.sizes.data(), *b2 = of.squares.data();
  double products = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double a1 = sizes[i], a2 = squares[i];
    const double left = a1 * b1[i] - needed * c[i];
    const double right = (c[i] * a2 - a1 * a1) * (c[i] * b2[i] - b1[i] * b1[i]);
    const bool known = left >= 0 && left * left >= right;
    states[i] = known ? kGood : kUnknown;
    products += known ? 0.0 : c[i];
  }
  return products;
}

// The elements of one tile that windows at some positions contain, along an axis.
Span elements_of(const Tiling& t, const TileInside& in, int axis, const Span& positions) {
  const int64_t begin = std::clamp(positions.begin * t.stride[axis], in.begin[axis], in.end[axis]);
  const int64_t end = (positions.end - 1) * t.stride[axis] + t.window[axis];
  return {begin, std::clamp(end, begin, in.end[axis])};
}
Span elements_of(const Tiling& t, const TileInside& in, int axis, int64_t position) {
  return elements_of(t, in, axis, {position, position + 1});
}

// Sums over the elements of the windows of a box, by sliding along planes and rows.
class BoxOfSizes {
 public:
  BoxOfSizes(const Tiling& t, const TilePlace& place, const TileInside& in, const float* input,
             double largest, BorderBox& box)
      : t_(t), place_(place), in_(in), input_(input), box_(box) {
    for (int a = 0; a < 3; ++a) of_[a] = elements_of(t, in, a, box.at[a]);
    width_ = of_[2].size();
    for (auto* row : {&columns_[0], &columns_[1]}) row->assign(width_, 0.0);
    for (auto* row : {&before_[0], &before_[1]}) row->assign(width_ + 1, 0.0);
    if (t.window[0] > 1) {
      for (auto* plane : {&planes_[0], &planes_[1]}) plane->assign(of_[1].size() * width_, 0.0);
    }
    // Each addition rounds a number that is no larger than all of a row of columns.
    const double steps = static_cast<double>(of_[0].size() + of_[1].size() + width_);
    const double window = static_cast<double>(t.channels * t.window[0] * t.window[1] * width_);
    slack_ = 0x1p-50 * steps * window * largest;
    slack_of_squares_ = slack_ * largest;
    box.sizes.resize(size_of(box.at)), box.squares.resize(size_of(box.at));
  }

  void measure() {
    Span planes{of_[0].begin, of_[0].begin};
    int64_t at = 0;
    for (int64_t z = box_.at[0].begin; z < box_.at[0].end; ++z) {
      const Span seen = elements_of(t_, in_, 0, z);
      if (t_.window[0] > 1) {
        slide(planes, seen, [&](int64_t i, double sign) { add_plane(i, sign); });
      }
      for (auto& row : columns_) std::fill(row.begin(), row.end(), 0.0);
      Span rows{of_[1].begin, of_[1].begin};
      for (int64_t y = box_.at[1].begin; y < box_.at[1].end; ++y) {
        slide(rows, elements_of(t_, in_, 1, y), [&](int64_t i, double sign) {
          if (t_.window[0] > 1) {
            const int64_t first = (i - of_[1].begin) * width_;
            for (int j : {0, 1}) add_signed(width_, sign, &planes_[j][first], columns_[j].data());
          } else if (seen.size() > 0) {
            add_row(seen.begin, i, sign, columns_[0].data(), columns_[1].data());
          }
        });
        write_row(at);
        at += box_.at[2].size();
      }
    }
  }

 private:
  void add_row(int64_t z, int64_t y, double sign, double* sizes, double* squares) const {
    for (int64_t c = 0; c < t_.channels; ++c) {
      const TileRow<float> row(t_, place_, input_, c, z, y);
      add_sizes(width_, row.data + of_[2].begin, sign, sizes, squares);
    }
  }

  void add_plane(int64_t z, double sign) {
    for (int64_t y = of_[1].begin; y < of_[1].end; ++y) {
      const int64_t first = (y - of_[1].begin) * width_;
      add_row(z, y, sign, &planes_[0][first], &planes_[1][first]);
    }
  }

  void write_row(int64_t at) {
    add_up<2>(width_, {columns_[0].data(), columns_[1].data()},
              {before_[0].data(), before_[1].data()});
    for (int64_t x = box_.at[2].begin; x < box_.at[2].end; ++x, ++at) {
      const Span seen = elements_of(t_, in_, 2, x);
      const int64_t begin = seen.begin - of_[2].begin, end = seen.end - of_[2].begin;
      box_.sizes[at] = std::max(0.0, before_[0][end] - before_[0][begin] - slack_);
      box_.squares[at] = before_[1][end] - before_[1][begin] + slack_of_squares_;
    }
  }

  const Tiling& t_;
  const TilePlace& place_;
  const TileInside& in_;
  const float* input_;
  BorderBox& box_;
  Box of_;
  int64_t width_;
  std::array<std::vector<double>, 2> planes_, columns_, before_;
  double slack_, slack_of_squares_;
};

// Copies rows into a tensor (channels, *size) of zeros, its last two axes exchanged if `turned`.
// `row_of(c, z, y)` gives elements [begin, end) of `size[2]`.
template <class F>
Tensor boxed(const Tensor& like, int64_t channels, const Axes3& size, bool turned, const F& row_of) {
  const Sizes shape{channels, size[0], size[1 + turned], size[2 - turned]};
  const Tensor out = torch::stable::new_zeros(like, shape, ScalarType::Float);
  const int64_t down = turned ? 1 : size[2], along = turned ? size[1] : 1;
  float* to = out.mutable_data_ptr<float>();
  for (int64_t r = 0; r < channels * size[0] * size[1]; ++r) {
    const Axes3 at = unravel(r, {channels, size[0], size[1]});
    float* first = to + (at[0] * size[0] + at[1]) * size[1] * size[2] + at[2] * down;
    const auto [row, begin, end] = row_of(at[0], at[1], at[2]);
    for (int64_t x = begin; x < end; ++x) first[x * along] = static_cast<float>(row[x]);
  }
  return out;
}
template <class T>
struct Row {
  const T* data = nullptr;  // of element 0; only [begin, end) may be read
  int64_t begin = 0, end = 0;
};

// The smallest box that has all unknown positions of a box, whose states have these strides; none has
// the size 0.
Box unknown_of(const Box& box, const uint8_t* states, const Axes3& steps) {
  Box found{Span{box[0].end, box[0].begin}, Span{box[1].end, box[1].begin},
            Span{box[2].end, box[2].begin}};
  for (int64_t z = box[0].begin; z < box[0].end; ++z) {
    for (int64_t y = box[1].begin; y < box[1].end; ++y) {
      const uint8_t *row = states + z * steps[0] + y * steps[1], *end = row + box[2].end;
      const uint8_t* begin = std::find(row + box[2].begin, end, kUnknown);
      if (begin == end) continue;
      while (end[-1] != kUnknown) --end;
      const Axes3 first{z, y, begin - row}, last{z + 1, y + 1, end - row};
      for (int a = 0; a < 3; ++a) {
        found[a] = {std::min(found[a].begin, first[a]), std::max(found[a].end, last[a])};
      }
    }
  }
  for (const Span& span : found) {
    if (span.size() <= 0) return {};
  }
  return found;
}

}  // namespace

TemplateBoxes::TemplateBoxes(const Tiling& t, const double* weights)
    : window_(t.window), channels_(static_cast<double>(t.channels)),
      cells_((window_[0] + 1) * (window_[1] + 1) * (window_[2] + 1)) {
  const Axes3 steps{(window_[1] + 1) * (window_[2] + 1), window_[2] + 1, 1};
  for (int64_t c = 0; c < t.channels; ++c) {
    for (int64_t z = 0; z < window_[0]; ++z) {
      for (int64_t y = 0; y < window_[1]; ++y) {
        BoxSums* cell = &cells_[(z + 1) * steps[0] + (y + 1) * steps[1] + 1];
        for (int64_t x = 0; x < window_[2]; ++x, ++cell, ++weights) {
          const double w = *weights;
          cell->values += w, cell->sizes += std::abs(w), cell->squares += w * w;
        }
      }
    }
  }
  for (int a = 0; a < 3; ++a) {
    for (int64_t i = steps[a]; i < static_cast<int64_t>(cells_.size()); ++i) {
      if (i / steps[a] % (window_[a] + 1) == 0) continue;
      const BoxSums& before = cells_[i - steps[a]];
      cells_[i].values += before.values, cells_[i].sizes += before.sizes;
      cells_[i].squares += before.squares;
    }
  }
  const BoxSums& all = cells_.back();
  const double share = 0x1p-49 * static_cast<double>(window_[0] + window_[1] + window_[2]);
  rounding_ = {share * all.sizes, share * all.sizes, share * all.squares};
}

void TemplateBoxes::sums_of_columns(const Span& z, const Span& y, std::vector<BoxSums>& to) const {
  to.resize(window_[2] + 1);
  const BoxSums *a = &at(z.end, y.end, 0), *b = &at(z.begin, y.end, 0), *c = &at(z.end, y.begin, 0),
                *d = &at(z.begin, y.begin, 0);
  for (int64_t x = 0; x <= window_[2]; ++x) {
    to[x] = {(a[x].values - b[x].values) - (c[x].values - d[x].values),
             (a[x].sizes - b[x].sizes) - (c[x].sizes - d[x].sizes),
             (a[x].squares - b[x].squares) - (c[x].squares - d[x].squares)};
  }
}

BorderWindows::BorderWindows(const Tiling& t, const TilePlace& place, const Axes3& positions)
    : t_(t), place_(place), in_(t, place), positions_(positions) {
  Box rest;
  for (int a = 0; a < 3; ++a) rest[a] = {0, positions[a]};
  for (int a = 0; a < 3; ++a) {
    if (size_of(rest) == 0) return;
    // Positions of windows that lie inside.
    const int64_t room = in_.end[a] - t.window[a];
    const int64_t low = std::clamp(ceil_div(in_.begin[a], t.stride[a]), int64_t(0), rest[a].end);
    const int64_t high = std::clamp(room < 0 ? 0 : room / t.stride[a] + 1, low, rest[a].end);
    for (const Span& side : {Span{0, low}, Span{high, rest[a].end}}) {
      if (side.size() == 0) continue;
      Box box = rest;
      box[a] = side;
      boxes_.push_back({a, box, {}, {}});
    }
    rest[a] = {low, high};
  }
}

void BorderWindows::measure(const float* input, double largest) {
  for (BorderBox& box : boxes_) BoxOfSizes(t_, place_, in_, input, largest, box).measure();
}

double BorderWindows::mark(double needed, const TemplateBoxes& templ,
                           std::vector<uint8_t>& states) const {
  states.clear();
  double products = 0;
  std::vector<BoxSums> columns;
  RowOfBoxes row;
  const BoxSums& rounding = templ.rounding();
  for (const BorderBox& box : boxes_) {
    const int64_t n = box.at[2].size();
    int64_t at = 0;
    Span last_z{-1, -1}, last_y{-1, -1};
    for (auto* numbers : {&row.counts, &row.sizes, &row.squares}) numbers->resize(n);
    for (int64_t z = box.at[0].begin; z < box.at[0].end; ++z) {
      const Span planes = seen(0, z);
      for (int64_t y = box.at[1].begin; y < box.at[1].end; ++y, at += n) {
        const Span rows = seen(1, y);
        if (planes != last_z || rows != last_y) {
          templ.sums_of_columns(planes, rows, columns);
          const double count = templ.channels() * static_cast<double>(planes.size() * rows.size());
          for (int64_t i = 0; i < n; ++i) {
            const int64_t x = box.at[2].begin + i;
            const Span inside = seen(2, x);
            const BoxSums &end = columns[inside.end], &begin = columns[inside.begin];
            row.counts[i] = count * static_cast<double>(inside.size());
            row.sizes[i] = std::max(0.0, end.sizes - begin.sizes - rounding.sizes);
            row.squares[i] = end.squares - begin.squares + rounding.squares;
          }
          last_z = planes, last_y = rows;
        }
        states.resize(states.size() + n);
        products += mark_row(n, &box.sizes[at], &box.squares[at], row, needed,
                             states.data() + states.size() - n);
      }
    }
  }
  return products;
}

double BorderWindows::mark_large(double least, const float* map, const Axes3& strides,
                                 std::vector<uint8_t>& states) const {
  double products = 0;
  uint8_t* state = states.data();
  for (const BorderBox& box : boxes_) {
    for (int64_t z = box.at[0].begin; z < box.at[0].end; ++z) {
      const int64_t planes = seen(0, z).size();
      for (int64_t y = box.at[1].begin; y < box.at[1].end; ++y) {
        const int64_t rows = planes * seen(1, y).size() * t_.channels;
        const float* row = map + z * strides[0] + y * strides[1];
        for (int64_t x = box.at[2].begin; x < box.at[2].end; ++x, ++state) {
          if (*state != kUnknown) continue;
          if (std::abs(static_cast<double>(row[x])) >= least) {
            *state = kGood;
          } else {
            products += static_cast<double>(rows * seen(2, x).size());
          }
        }
      }
    }
  }
  return products;
}

void BorderWindows::recompute(const Tensor& input, const double* templ,
                              const std::vector<uint8_t>& states, float* map,
                              const Axes3& strides) const {
  const uint8_t* of_box = states.data();
  const int64_t layer = t_.ndim == 1 ? kLayerOfLine : kLayer;
  for (const BorderBox& box : boxes_) {
    const Axes3 steps{box.at[1].size() * box.at[2].size(), box.at[2].size(), 1};
    const uint8_t* origin = of_box;
    for (int a = 0; a < 3; ++a) origin -= box.at[a].begin * steps[a];
    const Span across = box.at[box.axis];
    const bool turned = box.axis == 2 && t_.ndim > 1;
    const auto compute_unknown = [&](const Box& unknown) {
      if (size_of(unknown) <= 0) return;
      compute(input, templ, unknown, turned, map, strides);
      count_way(Way::kExactWindows, size_of(unknown));
    };
    for (int64_t first = across.begin; first < across.end; first += layer) {
      Box some = box.at;
      some[box.axis] = {first, std::min(first + layer, across.end)};
      // Both halves together, unless what is unknown lies at both ends: in corners.
      const int along = turned ? 1 : 2;
      Box low = some, high = some;
      low[along].end = high[along].begin = (some[along].begin + some[along].end) / 2;
      low = unknown_of(low, origin, steps), high = unknown_of(high, origin, steps);
      if (low[along].end < high[along].begin || along == box.axis) {
        compute_unknown(low), compute_unknown(high);
      } else {
        compute_unknown(unknown_of(some, origin, steps));
      }
    }
    of_box += size_of(box.at);
  }
}

void BorderWindows::compute(const Tensor& input, const double* templ, const Box& at, bool turned,
                            float* map, const Axes3& strides) const {
  Axes3 first, of_window, size, stride = t_.stride;
  Box by;
  for (int a = 0; a < 3; ++a) {
    by[a] = seen_at(t_, in_, a, at[a]);
    of_window[a] = by[a].size();
    first[a] = at[a].begin * t_.stride[a] + by[a].begin;
    size[a] = (at[a].size() - 1) * t_.stride[a] + of_window[a];
  }
  std::optional<Tensor> sums;
  if (size_of(by) > 0) {
    const Tensor tile = boxed(input, t_.channels, size, turned, [&](int64_t c, int64_t z, int64_t y) {
      const TileRow<float> row(t_, place_, input.const_data_ptr<float>(), c, first[0] + z, first[1] + y);
      if (!row.data) return Row<float>{};
      const int64_t begin = std::clamp<int64_t>(row.begin - first[2], 0, size[2]);
      return Row<float>{row.data + first[2], begin,
                        std::clamp<int64_t>(row.end - first[2], begin, size[2])};
    });
    const Tensor weights =
        boxed(input, t_.channels, of_window, turned, [&](int64_t c, int64_t z, int64_t y) {
          const int64_t line = (c * t_.window[0] + by[0].begin + z) * t_.window[1] + by[1].begin + y;
          return Row<double>{templ + line * t_.window[2] + by[2].begin, 0, of_window[2]};
        });
    if (turned) std::swap(stride[1], stride[2]);
    sums = direct::correlate_direct(tile, weights, sizes_of(stride, 3));
  }
  const float* from = sums ? sums->const_data_ptr<float>() : nullptr;
  const int64_t down = turned ? 1 : at[2].size(), along = turned ? at[1].size() : 1;
  for (int64_t z = 0; z < at[0].size(); ++z) {
    for (int64_t y = 0; y < at[1].size(); ++y) {
      float* to = map + (at[0].begin + z) * strides[0] + (at[1].begin + y) * strides[1] + at[2].begin;
      const int64_t row = z * at[1].size() * at[2].size() + y * down;
      for (int64_t x = 0; x < at[2].size(); ++x) to[x] = from ? from[row + x * along] : 0.0f;
    }
  }
}

const double* BorderOffsets::of_row(int64_t z, int64_t y) {
  const Span planes = border_.seen(0, z), rows = border_.seen(1, y);
  if (!offsets_.empty() && planes == planes_ && rows == rows_) return offsets_.data();
  planes_ = planes, rows_ = rows;
  templ_.sums_of_columns(planes, rows, columns_);
  offsets_.resize(border_.positions()[2]);
  for (int64_t x = 0; x < static_cast<int64_t>(offsets_.size()); ++x) {
    const Span seen = border_.seen(2, x);
    offsets_[x] = level_ * (columns_[seen.end].values - columns_[seen.begin].values);
  }
  return offsets_.data();
}

}  // namespace torchcorr
