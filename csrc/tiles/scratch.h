// Memory that one worker uses for one unit of tiles after another. Tiles and spectra are not among
// it: memory that was freed just before is still in cache when they take it.
#pragma once

#include <algorithm>
#include <array>
#include <optional>

#include "common/tensors.h"

namespace torchcorr {

class Scratch {
 public:
  enum Use { kStats, kNorms, kStates, kMeans, kDoubtful, kLeft, kUses };

  // A tensor for this use, whose elements are those of the last unit or anything. It is made anew
  // only where its shape or type differs from the last one.
  Tensor take(Use use, const Tensor& like, const Sizes& shape, ScalarType type) {
    Kept& kept = kept_[use];
    if (!kept.tensor || kept.shape != shape || kept.type != type) {
      kept = {torch::stable::new_empty(like, shape, type), shape, type};
    }
    return *kept.tensor;
  }

  template <class T>
  Tensor take_zeros(Use use, const Tensor& like, const Sizes& shape, ScalarType type) {
    const Tensor x = take(use, like, shape, type);
    std::fill_n(x.mutable_data_ptr<T>(), x.numel(), T(0));
    return x;
  }

 private:
  struct Kept {
    std::optional<Tensor> tensor;
    Sizes shape;
    ScalarType type = ScalarType::Float;
  };

  std::array<Kept, kUses> kept_;
};

}  // namespace torchcorr
