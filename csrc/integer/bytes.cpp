// Whole numbers of a byte: tensors of 8-bit integers, and float32 tensors that hold nothing else or
// nothing but such numbers divided by 255.

#include <algorithm>
#include <atomic>
#include <tuple>

#include "common/parallel.h"
#include "common/tensors.h"

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

// Most tensors that hold other numbers show it at once.
bool begins_with(const Kind& kind, const Tensor& x) {
  uint8_t bytes[64];
  return convert(std::min<int64_t>(x.numel(), 64), x.const_data_ptr<float>(), kind, bytes);
}

bool convert_all(const Tensor& x, const Kind& kind, const Tensor& to) {
  const float* from = x.const_data_ptr<float>();
  uint8_t* bytes = to.mutable_data_ptr<uint8_t>();
  const int64_t n = x.numel();
  std::atomic<bool> fits{true};
  parallel_for(0, ceil_div(n, kChunk), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && fits; ++i) {
      const int64_t first = i * kChunk, count = std::min(kChunk, n - first);
      if (!convert(count, from + first, kind, bytes + first)) fits = false;
    }
  });
  return fits;
}

// The elements times a scale plus a constant as bytes, that constant and that scale. The constant is
// 128 if some elements are negative. Nothing if an element is neither a whole number in [0, 255] or
// in [-128, 127] nor, as all others, a byte divided by 255 and rounded.
std::tuple<Tensor, int64_t, int64_t> as_bytes(const Tensor& given) {
  const Tensor x = packed(given);
  if (x.scalar_type() == ScalarType::Byte) return {x, 0, 1};
  const auto new_bytes = [&] {
    return torch::stable::new_empty(x, Sizes(x.sizes().begin(), x.sizes().end()), ScalarType::Byte);
  };
  if (x.scalar_type() == ScalarType::Char) {
    const Tensor bytes = new_bytes();
    const int8_t* from = x.const_data_ptr<int8_t>();
    uint8_t* to = bytes.mutable_data_ptr<uint8_t>();
    for (int64_t i = 0; i < x.numel(); ++i) to[i] = static_cast<uint8_t>(from[i] + 128);
    return {bytes, 128, 1};
  }
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "numbers must be float32 or of 8 bits");
  for (const Kind& kind : kKinds) {
    if (!begins_with(kind, x)) continue;
    const Tensor bytes = new_bytes();
    if (convert_all(x, kind, bytes)) return {bytes, kind.zero, kind.scale};
  }
  return {torch::stable::new_empty(x, Sizes{0}, ScalarType::Byte), 0, 1};
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("as_bytes", TORCH_BOX(&torchcorr::as_bytes));
}
