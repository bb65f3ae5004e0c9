// Memory that one worker uses for one unit of tiles after another. Small tiles are not among it, nor are
// spectra: memory that was freed just before is still in cache when they take it. Of tiles that are in no
// cache, it would be left in pieces, between which the next ones do not fit.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <optional>

#include "common/tensors.h"

namespace torchcorr {

class LargeTiles;

class Scratch {
 public:
  std::shared_ptr<LargeTiles> large_tiles;  // those of the last unit, if there are any

  enum Use { kTiles, kStats, kNorms, kStates, kMeans, kDoubtful, kLeft, kWindowGrads, kUses };

  // A tensor for this use, whose elements are those of the last unit or anything. It is made anew
  // only where its shape or type differs from the last one.
  Tensor take(Use use, const Sizes& shape, ScalarType type) {
    Kept& kept = kept_[use];
    if (!kept.tensor || kept.shape != shape || kept.type != type) {
      kept = {part_of_block(shape, type), shape, type};
    }
    return *kept.tensor;
  }

  template <class T>
  Tensor take_zeros(Use use, const Sizes& shape, ScalarType type) {
    const Tensor x = take(use, shape, type);
    std::fill_n(x.mutable_data_ptr<T>(), x.numel(), T(0));
    return x;
  }

 private:
  // Small tensors share an allocation, which takes longer than a tiny image's tile.
  static constexpr int64_t kBlock = 1 << 15, kAligned = 64;

  Tensor part_of_block(const Sizes& shape, ScalarType type) {
    const Sizes strides = packed_strides(shape);
    int64_t bytes = width_of(type);
    for (int64_t n : shape) bytes *= n;
    bytes = ceil_div(bytes, kAligned) * kAligned;
    if (!block_ || bytes > size_ - used_) {
      size_ = std::max(bytes, kBlock), used_ = 0;
      block_ = new_tensor({size_}, ScalarType::Byte);
    }
    AtenTensorHandle part;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__alloc_from_pool(
        block_->get(), used_, stable_number_of(type), static_cast<int64_t>(shape.size()), shape.data(),
        strides.data(), &part));
    used_ += bytes;
    return Tensor(part);
  }

  static int64_t width_of(ScalarType type) {
    if (type == ScalarType::Byte) return 1;
    return type == ScalarType::Float ? 4 : type == ScalarType::ComplexDouble ? 16 : 8;
  }

  struct Kept {
    std::optional<Tensor> tensor;
    Sizes shape;
    ScalarType type = ScalarType::Float;
  };

  std::array<Kept, kUses> kept_;
  std::optional<Tensor> block_;
  int64_t size_ = 0, used_ = 0;  // bytes of the block
};

}  // namespace torchcorr
