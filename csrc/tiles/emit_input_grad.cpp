// The last steps of the input's gradient: what goes through transforms and through windows is added
// up in each tile, and the tiles in their items.

#include "common/parallel.h"
#include "tiles/steps.h"
#include "tiles/window_grads.h"

namespace torchcorr {
namespace {

// Channels that have a mean each are spread one by one.
template <class In, class T>
void spread_tiles(const TileBatch& batch, const In* image, const TileStats* stats,
                  const double* levels, const T* window_grads, T* products) {
  const Tiling& all = batch.tiling;
  const int64_t groups = levels ? all.channels : 1;
  const Tiling t = levels ? one_channel(all) : all;
  const int64_t strips = spread::strips_of(t).units(), each = t.positions();
  parallel_for(0, batch.count() * strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t i = u / strips;
      if (batch.tiles[i] < 0) continue;
      T* pair = products + i / 2 * 2 * all.channels * all.tile_size();
      for (int64_t g = 0; g < groups; ++g) {
        TileStats of_tile = stats[i];
        if (levels) of_tile.level = levels[i * groups + g];
        const In* channel = image + g * t.layout.strides.channel;
        const T* means = window_grads + ((1 + g) * batch.count() + i) * each;
        spread::spread_unit(t, u % strips,
                            spread::TileGrads<In, T>{batch.tiles[i], i % 2, of_tile, channel,
                                                     window_grads + i * each, means,
                                                     pair + 2 * g * t.tile_size()});
      }
    }
  });
}

// Tile i of a batch, its elements every second number.
template <class T, class In>
void add_tile(const Tiling& t, const TilePlace& place, const T* tile, In* out) {
  const auto end = [&](int axis) {
    return std::min(t.extent[axis], t.size[axis] - place.start[axis]);
  };
  for (int64_t c = 0; c < t.channels; ++c) {
    for (int64_t z = 0; z < end(0); ++z) {
      for (int64_t y = 0; y < end(1); ++y) {
        const int64_t row = ((place.item * t.channels + c) * t.size[0] + place.start[0] + z);
        In* to = out + (row * t.size[1] + place.start[1] + y) * t.size[2] + place.start[2];
        const T* from = tile + 2 * (((c * t.length[0] + z) * t.length[1] + y) * t.length[2]);
        spread::add_row(end(2), from, to);
      }
    }
  }
}

// Calls f with pointers of the types of a tile and of an input, of which tiles are at least as wide.
template <class F>
void with_types(const Tensor& products, const Tensor& input, const F& f) {
  with_real_type(products, "products", [&](auto zero) {
    using T = decltype(zero);
    with_real_type(input, "input", [&](auto input_zero) {
      using In = decltype(input_zero);
      if constexpr (sizeof(T) >= sizeof(In)) {
        f(products.mutable_data_ptr<T>(), input.mutable_data_ptr<In>());
      } else {
        STD_TORCH_CHECK(false, "tiles must be as wide as the gradient they are added to");
      }
    });
  });
}

}  // namespace

void spread_window_grads(const Tensor& products, const Tensor& window_grads, const Tensor& stats,
                         const Tensor& input, const Sizes& numbers, const ScoreRule& rule) {
  const TileBatch batch(numbers, input);
  const double* levels = levels_of_stats(stats, batch.count(), rule);
  with_types(products, input, [&](auto* values, const auto* image) {
    using T = std::remove_pointer_t<decltype(values)>;
    const T* grads = window_grads.const_data_ptr<T>();
    spread_tiles(batch, image, rows_of_stats(stats), levels, grads, values);
  });
}

void add_input_grads(const Tensor& products, const Sizes& numbers, const Tensor& out) {
  const TileBatch batch(numbers, out);
  const Tiling& t = batch.tiling;
  with_types(products, out, [&](const auto* values, auto* to) {
    for (int64_t i = 0; i < batch.count(); ++i) {
      const TilePlace place(t, batch.tiles[i]);
      if (!place.exists) continue;
      add_tile(t, place, values + i / 2 * 2 * t.channels * t.tile_size() + i % 2, to);
    }
  });
}

}  // namespace torchcorr
