#include "direct/halved_rows.h"

#include <algorithm>
#include <array>
#include <vector>

#include "common/large_pages.h"
#include "common/parallel.h"
#include "common/targets.h"
#include "common/vectors.h"
#include "direct/geometry.h"
#include "direct/row_kernels.h"

namespace torchcorr::direct {
namespace {

// Rows and columns of a part, which stay in the cache of a core with what is made of them.
constexpr int64_t kPartRows = 48, kPartColumns = 240;
// Rows from which on a template and its halves are halved, and how often at most: `halvings` of
// _plan/predict.py.
constexpr int64_t kFewestRows = 8;
constexpr int kMostTimes = 3;
// Rows of sums in registers, and products that these add one after the other.
constexpr int kRows = 6;
constexpr int64_t kTemplateRows = 4, kColumns = 8;
// Vectors of a row of sums in registers, and rows of a template that meet them.
template <int BYTES>
constexpr int kVectors = BYTES == 64 ? 3 : 2;
template <int BYTES>
constexpr int kAtOnce = BYTES == 64 ? 4 : 2;

// How often templates of so many rows are halved.
int times_of(int64_t rows) {
  int times = 0;
  while (times < kMostTimes && rows >> times >= kFewestRows) ++times;
  return times;
}

// Rows of several planes.
template <class T>
struct Rows {
  T* first;
  int64_t plane, pitch;

  Rows from(int64_t row) const { return {first + row * pitch, plane, pitch}; }
  Rows every_other(int64_t row) const { return {first + row * pitch, plane, 2 * pitch}; }
};

// Maps that are added to one of sums: at most one for each time, and one of rows that are not halved.
template <class T>
struct Added {
  std::array<Rows<const T>, kMostTimes + 1> maps{};
  int64_t count = 0;

  void add(const Rows<T>& map) { maps[count++] = {map.first, map.plane, map.pitch}; }
  Added every_other(int64_t row) const {
    Added some;
    for (; some.count < count; ++some.count) {
      some.maps[some.count] = maps[some.count].every_other(row);
    }
    return some;
  }
};

// Sums of products of the first `used` rows of coefficients (planes, rows, columns).
template <class T>
struct Products {
  Rows<const T> source;
  const T* coefficients;
  int64_t planes, rows, used, columns;
};

// --- The loops. ---

template <class T, int BYTES, int R, int V>
using Sums = Vector<T, BYTES>[R][V];

// Adds the products of H rows of coefficients and R + H - 1 rows of V vectors.
template <int BYTES, int H, int R, int V, class T>
TORCHCORR_INLINE void add_products(const Rows<const T>& source, const T* coefficients, int64_t pitch,
                                   int64_t columns, Sums<T, BYTES, R, V>& sums) {
  constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>);
  for (int64_t k = 0; k < columns; ++k) {
    T factors[H];
#pragma GCC unroll 16
    for (int i = 0; i < H; ++i) factors[i] = coefficients[i * pitch + k];
#pragma GCC unroll 16
    for (int row = 0; row < R + H - 1; ++row) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        const Vector<T, BYTES> seen =
            in_register(load<BYTES>(source.first + row * source.pitch + k + v * lanes));
#pragma GCC unroll 16
        for (int i = std::max(0, row - R + 1); i < H && i <= row; ++i) {
          sums[row - i][v] += seen * factors[i];
        }
      }
    }
  }
}

// The same of as many rows as there are, from the first on.
template <int BYTES, int H, int R, int V, class T>
TORCHCORR_INLINE void add_rows(int64_t rows, Rows<const T>& source, const T*& coefficients,
                               int64_t pitch, int64_t columns, Sums<T, BYTES, R, V>& sums) {
  for (int64_t r = 0; r + H <= rows; r += H) {
    add_products<BYTES, H, R, V>(source, coefficients, pitch, columns, sums);
    source = source.from(H), coefficients += H * pitch;
  }
}

// R rows by V vectors of the sums at row y and column x.
template <int BYTES, int R, int V, class T>
TORCHCORR_INLINE void sum_block(const Products<T>& of, const Added<T>& added, const Rows<T>& out,
                                int64_t y, int64_t x) {
  constexpr int lanes = static_cast<int>(lanes_of<T, BYTES>);
  Sums<T, BYTES, R, V> totals = {};
  for (int64_t p = 0; p < of.planes; ++p) {
    for (int64_t r = 0; r < of.used; r += kTemplateRows) {
      const int64_t rows = std::min(kTemplateRows, of.used - r);
      for (int64_t k = 0; k < of.columns; k += kColumns) {
        const int64_t n = std::min(kColumns, of.columns - k);
        Rows<const T> from = of.source.from(y + r);
        from.first += p * of.source.plane + x + k;
        const T* by = of.coefficients + (p * of.rows + r) * of.columns + k;
        Sums<T, BYTES, R, V> sums = {};
        add_rows<BYTES, kAtOnce<BYTES>, R, V>(rows, from, by, of.columns, n, sums);
        if constexpr (kAtOnce<BYTES> > 2) {
          add_rows<BYTES, 2, R, V>(rows % kAtOnce<BYTES>, from, by, of.columns, n, sums);
        }
        add_rows<BYTES, 1, R, V>(rows % 2, from, by, of.columns, n, sums);
#pragma GCC unroll 16
        for (int j = 0; j < R; ++j) {
#pragma GCC unroll 16
          for (int v = 0; v < V; ++v) totals[j][v] += sums[j][v];
        }
      }
    }
  }
  for (int64_t a = 0; a < added.count; ++a) {
    const Rows<const T> from = added.maps[a].from(y);
#pragma GCC unroll 16
    for (int j = 0; j < R; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        totals[j][v] += load<BYTES>(from.first + j * from.pitch + x + v * lanes);
      }
    }
  }
  const Rows<T> to = out.from(y);
#pragma GCC unroll 16
  for (int j = 0; j < R; ++j) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) put(totals[j][v], to.first + j * to.pitch + x + v * lanes);
  }
}

// A vector that would pass the end of the rows begins earlier.
template <int BYTES, int R, class T>
TORCHCORR_INLINE void sum_some_rows(int64_t width, const Products<T>& of, const Added<T>& added,
                                    const Rows<T>& out, int64_t y) {
  constexpr int64_t lanes = lanes_of<T, BYTES>, many = kVectors<BYTES> * lanes;
  int64_t x = 0;
  for (; x + many <= width; x += many) sum_block<BYTES, R, kVectors<BYTES>>(of, added, out, y, x);
  for (; x < width; x += lanes) {
    sum_block<BYTES, R, 1>(of, added, out, y, std::min(x, width - lanes));
  }
}

template <int BYTES, class T>
TORCHCORR_INLINE void sum_rows(int64_t height, int64_t width, const Products<T>& of,
                               const Added<T>& added, const Rows<T>& out) {
  if (height < kRows) {
    for (int64_t y = 0; y < height; ++y) sum_some_rows<BYTES, 1>(width, of, added, out, y);
    return;
  }
  for (int64_t y = 0; y < height; y += kRows) {
    sum_some_rows<BYTES, kRows>(width, of, added, out, std::min(y, height - kRows));
  }
}
TORCHCORR_FOR_CPUS(void, sum_rows,
                   (int64_t height, int64_t width, const Products<float>& of,
                    const Added<float>& added, const Rows<float>& out),
                   (height, width, of, added, out))
TORCHCORR_FOR_CPUS(void, sum_rows,
                   (int64_t height, int64_t width, const Products<double>& of,
                    const Added<double>& added, const Rows<double>& out),
                   (height, width, of, added, out))

// to = from - less, whole vectors, whose last may begin earlier.
template <int BYTES, class T>
TORCHCORR_INLINE void subtract(int64_t n, const T* from, const T* less, T* to) {
  constexpr int64_t lanes = lanes_of<T, BYTES>;
  for (int64_t x = 0; x < n; x += lanes) {
    const int64_t i = std::min(x, n - lanes);
    put(load<BYTES>(from + i) - load<BYTES>(less + i), to + i);
  }
}
TORCHCORR_FOR_CPUS(void, subtract, (int64_t n, const float* from, const float* less, float* to),
                   (n, from, less, to))
TORCHCORR_FOR_CPUS(void, subtract, (int64_t n, const double* from, const double* less, double* to),
                   (n, from, less, to))

// --- Halves. ---

// A template (planes, rows, columns), its first rows without the others, and what these are halved to.
template <class T>
class HalvedTemplate {
 public:
  HalvedTemplate(const T* elements, int64_t planes, int64_t rows, int64_t columns)
      : whole_(elements), planes_(planes), rows_(rows), columns_(columns), times_(times_of(rows)),
        rest_(rows % (int64_t{1} << times_)) {
    std::vector<T> others;
    for (int64_t p = 0; p < planes; ++p) {
      const T* first = elements + p * rows * columns;
      others.insert(others.end(), first + rest_ * columns, first + rows * columns);
    }
    halve(others, times_);
  }

  int64_t columns() const { return columns_; }
  int64_t planes() const { return planes_; }
  int64_t rest() const { return rest_; }
  int64_t halved() const { return rows_ - rest_; }
  int times() const { return times_; }

  Products<T> whole(const Rows<const T>& source) const {
    return {source, whole_, planes_, rows_, rows_, columns_};
  }
  Products<T> first_rows(const Rows<const T>& source) const {
    return {source, whole_, planes_, rows_, rest_, columns_};
  }
  // The digits of i are 0 for sums of two rows, 1 for even rows and 2 for odd ones.
  Products<T> part(int64_t i, const Rows<const T>& source) const {
    const int64_t rows = halved() >> times_;
    return {source, parts_.data() + i * planes_ * rows * columns_, planes_, rows, rows, columns_};
  }

 private:
  void halve(const std::vector<T>& rows, int times) {
    if (times == 0) {
      parts_.insert(parts_.end(), rows.begin(), rows.end());
      return;
    }
    std::vector<T> halves[3];
    for (auto even = rows.begin(); even < rows.end(); even += 2 * columns_) {
      const auto odd = even + columns_;
      std::transform(even, odd, odd, std::back_inserter(halves[0]), std::plus<T>());
      halves[1].insert(halves[1].end(), even, odd);
      halves[2].insert(halves[2].end(), odd, odd + columns_);
    }
    for (const std::vector<T>& half : halves) halve(half, times - 1);
  }

  const T* whole_;
  const int64_t planes_, rows_, columns_;
  const int times_;
  const int64_t rest_;
  std::vector<T> parts_;
};

// Memory of a worker, which grows.
template <class T>
struct Room {
  std::vector<T> differences[kMostTimes], sums[kMostTimes], rest, block;

  static T* of(std::vector<T>& x, int64_t n) {
    if (static_cast<int64_t>(x.size()) < n) x.resize(n);
    return x.data();
  }
};

// The sums of one template at some rows of so many columns.
template <class T>
class PartOfMap {
 public:
  PartOfMap(const HalvedTemplate<T>& templ, int64_t columns, Room<T>& room)
      : templ_(templ), columns_(columns), room_(room) {}

  // `above` is the number of positions before the first row. Rows that fill less than a block of
  // registers are computed with those above them, or by the whole template if they are few.
  void sum(int64_t rows, int64_t above, const Rows<const T>& source, const Rows<T>& out) const {
    const int64_t block = kRows << templ_.times(), left = rows % block;
    if (2 * left < block || above + rows < block) return sum_some(rows, source, out);
    sum_some(rows - left, source, out);
    const Rows<T> last = map(room_.block, block);
    sum_some(block, source.from(rows - block), last);
    for (int64_t r = 1; r <= left; ++r) {
      std::copy_n(last.from(block - r).first, columns_, out.from(rows - r).first);
    }
  }

 private:
  void sum_some(int64_t rows, const Rows<const T>& source, const Rows<T>& out) const {
    const int64_t halved = rows >> templ_.times() << templ_.times();
    if (halved > 0) {
      Added<T> added;
      if (templ_.rest() > 0) {
        const Rows<T> rest = map(room_.rest, halved);
        sum_rows(halved, columns_, templ_.first_rows(source), {}, rest);
        added.add(rest);
      }
      sum_halves(0, 0, templ_.halved(), halved, source.from(templ_.rest()), added, out);
    }
    if (halved < rows) {
      sum_rows(rows - halved, columns_, templ_.whole(source.from(halved)), {}, out.from(halved));
    }
  }

  // By the part `which` of the template, that many rows of which are left after some times.
  void sum_halves(int times, int64_t which, int64_t of_template, int64_t rows,
                  const Rows<const T>& source, const Added<T>& added, const Rows<T>& out) const {
    if (times == templ_.times()) {
      return sum_rows(rows, columns_, templ_.part(which, source), added, out);
    }
    const int64_t half = rows / 2, of_half = of_template / 2;
    const Rows<const T> odd_rows = source.every_other(1);
    const Rows<T> common = map(room_.sums[times], half);
    sum_halves(times + 1, 3 * which, of_half, half, odd_rows, {}, common);
    for (const int64_t odd : {0, 1}) {
      Added<T> with = added.every_other(odd);
      with.add(common);
      const Rows<const T> rest =
          differences(times, half + of_half - 1, source.every_other(2 * odd), odd_rows);
      sum_halves(times + 1, 3 * which + 1 + odd, of_half, half, rest, with, out.every_other(odd));
    }
  }

  Rows<T> map(std::vector<T>& room, int64_t rows) const {
    return {Room<T>::of(room, rows * columns_), 0, columns_};
  }

  Rows<const T> differences(int times, int64_t rows, const Rows<const T>& from,
                            const Rows<const T>& less) const {
    const int64_t width = columns_ + templ_.columns() - 1;
    T* all = Room<T>::of(room_.differences[times], templ_.planes() * rows * width);
    for (int64_t p = 0; p < templ_.planes(); ++p) {
      for (int64_t r = 0; r < rows; ++r) {
        subtract(width, from.first + p * from.plane + r * from.pitch,
                 less.first + p * less.plane + r * less.pitch, all + (p * rows + r) * width);
      }
    }
    return {all, rows * width, width};
  }

  const HalvedTemplate<T>& templ_;
  const int64_t columns_;
  Room<T>& room_;
};

template <class T>
Tensor correlate(const Tensor& tiles, const Tensor& templates) {
  const int64_t ndim = tiles.dim() - 3, count = tiles.size(0), number = templates.size(1);
  const Axes3 size = last_sizes(tiles, ndim), window = last_sizes(templates, ndim);
  const int64_t planes = window[0] * tiles.size(2), plane = size[1] * size[2];
  Axes3 positions;
  for (int a = 0; a < 3; ++a) positions[a] = size[a] - window[a] + 1;
  STD_TORCH_CHECK(positions[0] == 1 || planes == window[0], "volumes are halved with one channel");
  STD_TORCH_CHECK(window[1] >= kFewestRows && positions[2] >= lanes_of<float>,
                  "windows or rows are too small to be halved");
  Sizes shape{count, number};
  for (int64_t n : sizes_of(positions, ndim)) shape.push_back(n);
  const Tensor out = new_map(tiles, shape);
  const T* elements = templates.const_data_ptr<T>();
  std::vector<HalvedTemplate<T>> halved;
  for (int64_t k = 0; k < number; ++k, elements += planes * window[1] * window[2]) {
    halved.emplace_back(elements, planes, window[1], window[2]);
  }
  const T* source = tiles.const_data_ptr<T>();
  T* sums = out.mutable_data_ptr<T>();
  // Parts of each plane of sums, of about equal width.
  const int64_t down = ceil_div(positions[1], kPartRows), across = ceil_div(positions[2], kPartColumns);
  const int64_t parts = count * number * positions[0] * down * across;
  const int64_t products = out.numel() * planes * window[1] * window[2];
  const int64_t grain = std::max<int64_t>(1, kGrainTerms * parts / (products + 1));
  parallel_for(0, parts, grain, [&](int64_t begin, int64_t end) {
    Room<T> room;
    for (int64_t i = begin; i < end; ++i) {
      const Axes3 part = unravel(i, {count * number * positions[0], down, across});
      const Axes3 of = unravel(part[0], {count, number, positions[0]});
      const int64_t y = part[1] * kPartRows, rows = std::min(kPartRows, positions[1] - y);
      const int64_t x = part[2] * positions[2] / across;
      const int64_t columns = (part[2] + 1) * positions[2] / across - x;
      const Rows<const T> from{
          source + (of[0] * tiles.size(2) * size[0] + of[2]) * plane + y * size[2] + x, plane, size[2]};
      const Rows<T> to{sums + (part[0] * positions[1] + y) * positions[2] + x, 0, positions[2]};
      PartOfMap<T>(halved[of[1]], columns, room).sum(rows, y, from, to);
    }
  });
  return out;
}

}  // namespace

Tensor correlate_halved(const Tensor& tiles, const Tensor& templates) {
  return tiles.scalar_type() == ScalarType::Double ? correlate<double>(tiles, templates)
                                                   : correlate<float>(tiles, templates);
}

}  // namespace torchcorr::direct

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("correlate_halved", TORCH_BOX(&torchcorr::direct::correlate_halved));
}
