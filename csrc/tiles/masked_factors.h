// What windows whose elements have weights are correlated with.
#pragma once

#include <algorithm>
#include <vector>

#include "tiles/pass.h"

namespace torchcorr {

inline Tiling with_channels(Tiling tiling, int64_t channels) {
  tiling.channels = channels;
  return tiling;
}

// Templates of a block in one of their three forms, their spectra, and what they contain.
class Factors {
 public:
  Factors(const Tiling& tiling, const Tensor& all, const Block& block)
      : is_shared_(all.size(0) * all.size(1) == 1), templates_(block.templates()),
        of_block_(is_shared_ ? all
                             : packed(part_of(part_of(all, 0, block.first_pair, block.pairs()), 1,
                                              block.first_template, block.templates()))),
        spectra_(tiling, of_block_, std::nullopt) {
    const int64_t each = of_block_.numel() / lines();
    const double* from = of_block_.const_data_ptr<double>();
    for (int64_t line = 0; line < lines(); ++line, from += each) {
      double sum = 0, squares = 0;
      for (int64_t i = 0; i < each; ++i) sum += from[i], squares += from[i] * from[i];
      sums_.push_back(sum), squares_.push_back(squares);
    }
    from = of_block_.const_data_ptr<double>();
    const double* end = from + of_block_.numel();
    if (std::all_of(from, end, [&](double x) { return x == *from; })) box_ = *from;
  }

  bool is_shared() const { return is_shared_; }
  double box() const { return box_; }  // what all elements are, or 0
  const double* values(int64_t pair, int64_t k) const {
    return of_block_.const_data_ptr<double>() + line(pair, k) * (of_block_.numel() / lines());
  }
  double sum(int64_t pair, int64_t k) const { return sums_[line(pair, k)]; }
  double squares(int64_t pair, int64_t k) const { return squares_[line(pair, k)]; }
  template <class R>
  const R* spectrum(int64_t pair, int64_t k) {
    return spectra_.of<R>(line(pair, k));
  }
  template <class R>
  void prepare(int64_t pair, int64_t k) {
    spectra_.prepare<R>(line(pair, k));
  }

 private:
  int64_t lines() const { return of_block_.size(0) * of_block_.size(1); }
  int64_t line(int64_t pair, int64_t k) const { return is_shared_ ? 0 : pair * templates_ + k; }

  const bool is_shared_;
  const int64_t templates_;
  const Tensor of_block_;
  TemplateSpectra spectra_;
  std::vector<double> sums_, squares_;
  double box_ = 0;
};

}  // namespace torchcorr
