// Whole numbers of a byte: tensors of 8-bit integers, and float32 tensors that hold nothing else or
// nothing but such numbers divided by 255.

#include <algorithm>
#include <atomic>
#include <iterator>
#include <tuple>

#include "common/item_layout.h"
#include "common/parallel.h"
#include "integer/bytes.h"

namespace torchcorr {
namespace {

// Elements that are looked at before it is asked whether they were whole numbers.
constexpr int64_t kChunk = 1 << 14;

// to = x + zero; whether each x was a whole number and the sum is a byte.
TORCHCORR_CLONES bool convert_whole(int64_t n, const float* x, int32_t zero, uint8_t* to) {
  int wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t whole = static_cast<int32_t>(x[i] > -256.0F && x[i] < 256.0F ? x[i] : 512.0F);
    const int32_t moved = whole + zero;
    wrong |= (static_cast<float>(whole) != x[i]) | (moved < 0) | (moved > 255);
    to[i] = static_cast<uint8_t>(moved);
  }
  return wrong == 0;
}

// to = 255 x; whether each x was a byte divided by 255 and rounded.
TORCHCORR_CLONES bool convert_share(int64_t n, const float* x, uint8_t* to) {
  int wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float share = x[i] >= 0.0F && x[i] <= 1.0F ? x[i] : 2.0F;
    const int32_t whole = static_cast<int32_t>(share * 255.0F + 0.5F);
    wrong |= (static_cast<float>(whole) / 255.0F != x[i]);
    to[i] = static_cast<uint8_t>(whole);
  }
  return wrong == 0;
}

// What float32 numbers may be of bytes.
struct Kind {
  int64_t zero, scale;  // bytes are numbers times `scale` plus `zero`
};
constexpr Kind kKinds[] = {{0, 1}, {128, 1}, {0, 255}};

bool convert(int64_t n, const float* x, const Kind& kind, uint8_t* to) {
  return kind.scale == 1 ? convert_whole(n, x, static_cast<int32_t>(kind.zero), to)
                         : convert_share(n, x, to);
}

// The rows of a tensor whose last axis has no step, or all elements as one if there are no gaps.
struct DenseRows {
  int64_t width, in_item = 1;
  ItemLayout layout{};

  explicit DenseRows(const Tensor& x) : width(x.numel()) {
    if (x.is_contiguous()) return;
    width = x.size(x.dim() - 1), in_item = x.size(x.dim() - 2);
    layout = ItemLayout(x, 1);
  }
  int64_t first(int64_t row) const {
    return layout.first(row / in_item) + row % in_item * layout.strides.channel;
  }
};

// Calls f(place in memory, number of the element, count) for parts of the rows of a tensor, until it
// returns false; whether it never did.
template <class F>
bool for_parts(const Tensor& x, const F& f) {
  const DenseRows rows(x);
  const int64_t parts = ceil_div(rows.width, kChunk), most = std::min(rows.width, kChunk);
  std::atomic<bool> fits{true};
  const int64_t grain = ceil_div(4 * kChunk, most);
  parallel_for(0, x.numel() / rows.width * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && fits; ++i) {
      const int64_t row = i / parts, at = i % parts * kChunk;
      if (!f(rows.first(row) + at, row * rows.width + at, std::min(kChunk, rows.width - at))) {
        fits = false;
      }
    }
  });
  return fits;
}

// Most tensors that hold other numbers show it at once.
bool begins_with(const Kind& kind, const Tensor& x) {
  uint8_t bytes[64];
  const int64_t n = std::min<int64_t>(DenseRows(x).width, 64);
  return convert(n, x.const_data_ptr<float>(), kind, bytes);
}

// The elements times a scale plus a constant as bytes, that constant and that scale. The constant is
// 128 if some elements are negative. Nothing if an element is neither a whole number in [0, 255] or
// in [-128, 127] nor, as all others, a byte divided by 255 and rounded.
std::tuple<Tensor, int64_t, int64_t> as_bytes(const Tensor& given) {
  if (given.scalar_type() == ScalarType::Byte || given.numel() == 0) return {given, 0, 1};
  const Tensor x = has_dense_rows(given) ? given : torch::stable::contiguous(given);
  const auto new_bytes = [&] {
    return new_tensor(sizes_of(x), ScalarType::Byte);
  };
  if (x.scalar_type() == ScalarType::Char) {
    const Tensor bytes = new_bytes();
    const int8_t* from = x.const_data_ptr<int8_t>();
    uint8_t* to = bytes.mutable_data_ptr<uint8_t>();
    for_parts(x, [&](int64_t place, int64_t number, int64_t n) {
      for (int64_t i = 0; i < n; ++i) to[number + i] = static_cast<uint8_t>(from[place + i] + 128);
      return true;
    });
    return {bytes, 128, 1};
  }
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "numbers must be float32 or of 8 bits");
  for (const Kind& kind : kKinds) {
    if (!begins_with(kind, x)) continue;
    const Tensor bytes = new_bytes();
    const float* from = x.const_data_ptr<float>();
    uint8_t* to = bytes.mutable_data_ptr<uint8_t>();
    const auto fits = [&](int64_t place, int64_t number, int64_t n) {
      return convert(n, from + place, kind, to + number);
    };
    if (for_parts(x, fits)) return {bytes, kind.zero, kind.scale};
  }
  return {new_tensor(Sizes{0}, ScalarType::Byte), 0, 1};
}

}  // namespace

bool begins_with_bytes(const Tensor& x) {
  return std::any_of(std::begin(kKinds), std::end(kKinds),
                     [&](const Kind& kind) { return begins_with(kind, x); });
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("as_bytes", TORCH_BOX(&torchcorr::as_bytes));
}
