// The steps of a score on tiles, as the operators of their names take them.
#pragma once

#include <tuple>

#include "common/tensors.h"

namespace torchcorr {

std::tuple<Tensor, Tensor> gather_tiles(const Tensor& input, Sizes tiles, Sizes geometry,
                                        bool centred, bool wide, bool pairs);

std::tuple<Tensor, Tensor, Tensor> tile_norms(const Tensor& stats, const Tensor& input, Sizes ids,
                                              Sizes geometry, Sizes window, Sizes stride,
                                              bool zero_mean, bool local, double eps, double faint,
                                              double exact, bool with_means);

Tensor finish_tiles(const Tensor& numerators_in, const Tensor& norms, const Tensor& stats,
                    const Tensor& input, const Tensor& weights, Sizes ids, Sizes geometry,
                    Sizes stride, int64_t first_template, bool zero_mean, double eps, double noise,
                    int64_t budget, const Tensor& out);

namespace direct {
Tensor correlate_direct(const Tensor& input, const Tensor& taps, Sizes stride);
}

}  // namespace torchcorr
