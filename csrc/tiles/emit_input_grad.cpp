// The last step of the input's gradient: adds the contributions of transforms and of windows.

#include <type_traits>

#include "tiles/steps.h"
#include "tiles/window_grads.h"

namespace torchcorr {
namespace {

// `products` (pairs, C, *length, 2) become the tiles' gradients, which are added to `out` in the
// order of the tiles. `window_grads` go to the squares and to the means of windows.
template <class T, class In>
class EmitInputGrad {
 public:
  EmitInputGrad(const TileBatch& batch, const In* image, const TileStats* stats,
                const T* window_grads, T* products, In* out)
      : batch_(batch), t_(batch.tiling), image_(image), stats_(stats), window_grads_(window_grads),
        products_(products), out_(out) {}

  void run() const {
    const int64_t units = spread::strips_of(t_).units();
    torch::stable::parallel_for(0, batch_.count() * units, 1, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        if (batch_.tiles[u / units] >= 0) spread_tile(u / units, u % units);
      }
    });
    int64_t first = -1, last = -1;
    for (int64_t tile : batch_.tiles) {
      if (tile < 0) continue;
      const int64_t item = tile / t_.tiles_per_item();
      first = first < 0 ? item : std::min(first, item);
      last = std::max(last, item);
    }
    if (last < 0) return;
    const int64_t rows = t_.channels * t_.size[0] * t_.size[1];
    torch::stable::parallel_for(0, (last - first + 1) * rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) add_row(first + r / rows, r % rows);
    });
  }

 private:
  void spread_tile(int64_t t, int64_t unit) const {
    const T* squares = window_grads_ + t * t_.positions();
    const T* means = squares + batch_.count() * t_.positions();
    T* pair = products_ + t / 2 * 2 * t_.channels * t_.tile_size();
    spread::spread_unit(
        t_, unit,
        spread::TileGrads<In, T>{batch_.tiles[t], t % 2, stats_[t], image_, squares, means, pair});
  }

  // Adds all tiles to one row (channel, z, y) of an item.
  void add_row(int64_t item, int64_t row) const {
    const int64_t channel = row / (t_.size[0] * t_.size[1]);
    const int64_t z = row / t_.size[1] % t_.size[0], y = row % t_.size[1];
    In* to = out_ + (item * t_.channels * t_.size[0] * t_.size[1] + row) * t_.size[2];
    for (int64_t t = 0; t < batch_.count(); ++t) {
      const TilePlace p(t_, batch_.tiles[t]);
      if (!p.exists || p.item != item) continue;
      const int64_t i = z - p.start[0], j = y - p.start[1];
      if (i < 0 || i >= t_.extent[0] || j < 0 || j >= t_.extent[1]) continue;
      const T* from = products_ + (t / 2 * t_.channels + channel) * t_.tile_size() * 2 +
                      (i * t_.length[1] + j) * t_.length[2] * 2 + t % 2;
      spread::add_row(std::min(t_.extent[2], t_.size[2] - p.start[2]), from, to + p.start[2]);
    }
  }

  const TileBatch& batch_;
  const Tiling& t_;
  const In* image_;
  const TileStats* stats_;
  const T* window_grads_;
  T* products_;
  In* out_;
};

void emit_input_grad(const Tensor& products, const Tensor& window_grads, const Tensor& stats,
                     const Tensor& input, Sizes numbers, const Tensor& out) {
  const Tensor image = packed(input);
  const TileBatch batch(numbers, image);
  with_real_type(products, "products", [&](auto zero) {
    using T = decltype(zero);
    with_real_type(out, "out", [&](auto out_zero) {
      using In = decltype(out_zero);
      if constexpr (sizeof(T) >= sizeof(In)) {
        EmitInputGrad<T, In>(batch, image.const_data_ptr<In>(), rows_of_stats(stats),
                             window_grads.const_data_ptr<T>(), products.mutable_data_ptr<T>(),
                             out.mutable_data_ptr<In>())
            .run();
      } else {
        STD_TORCH_CHECK(false, "tiles must be as wide as the gradient they are added to");
      }
    });
  });
}

}  // namespace
}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("emit_input_grad", TORCH_BOX(&torchcorr::emit_input_grad));
}
