// The tiles of a block in units, each of which one worker carries through all steps.
#pragma once

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "common/parallel.h"
#include "common/tiling.h"
#include "tiles/scratch.h"

namespace torchcorr {

// Leading indices and templates that are computed at once, how many tiles make a unit, and whether these
// are large (large_tiles.h), with spectra of templates that are kept for all: `Block` of _plan/tiling.py.
struct Block {
  int64_t first_pair, last_pair, first_template, last_template, tiles_of_unit;
  bool large, kept;

  explicit Block(const Sizes& n) {
    STD_TORCH_CHECK(n.size() == 7, "a block of tiles has seven numbers");
    first_pair = n[0], last_pair = n[1], first_template = n[2], last_template = n[3];
    tiles_of_unit = n[4], large = n[5] != 0, kept = n[6] != 0;
  }
  int64_t pairs() const { return last_pair - first_pair; }
  int64_t templates() const { return last_template - first_template; }
};

// How threads share units: each takes one after another, and those steps run on it that divide their
// work among threads elsewhere; a single unit's steps are shared; or those of each unit are. MKL would
// divide a transform and round differently for each number of threads, so units with transforms are
// taken whole, or their transforms are others.
enum class Sharing { kUnits, kUnitsOrSteps, kSteps };

// The units of a block, equally many of each pair of leading indices that has `tiles` tiles. With
// two lanes an empty tile makes their number even.
struct Units {
  Block block;
  int64_t tiles, lanes, of_pair;
  Sharing sharing;

  // Threads share the steps of large tiles; of lines, which are cut by one, only those of a single unit.
  Units(const Block& b, int64_t tiles_of_pair, int64_t lanes_of_tiles, bool are_lines = false)
      : block(b), tiles(tiles_of_pair), lanes(lanes_of_tiles),
        of_pair(ceil_div(tiles_of_pair, b.tiles_of_unit)),
        sharing(b.large && !are_lines    ? Sharing::kSteps
                : lanes == 2 && !b.large ? Sharing::kUnits
                                         : Sharing::kUnitsOrSteps) {}

  int64_t count() const { return of_pair * block.pairs(); }
  int64_t pair(int64_t unit) const { return unit / of_pair; }  // of the block
  Sizes tiles_of(int64_t unit) const {
    const int64_t begin = unit % of_pair * block.tiles_of_unit;
    const int64_t end = std::min(begin + block.tiles_of_unit, tiles);
    Sizes some;
    for (int64_t t = begin; t < end; ++t) some.push_back((block.first_pair + pair(unit)) * tiles + t);
    if (lanes == 2 && some.size() % 2 != 0) some.push_back(-1);
    return some;
  }
};

// Calls f(unit), or f(unit, scratch of the worker), for all units.
template <class F>
void run_units(int64_t units, Sharing sharing, const F& given) {
  const auto f = [&](int64_t u, Scratch& scratch) {
    if constexpr (std::is_invocable_v<const F&, int64_t, Scratch&>) {
      given(u, scratch);
    } else {
      given(u);
    }
  };
  if (sharing == Sharing::kSteps || (sharing == Sharing::kUnitsOrSteps && units == 1)) {
    Scratch scratch;
    for (int64_t u = 0; u < units; ++u) f(u, scratch);
    return;
  }
  std::atomic<int64_t> next{0};
  share(std::min(threads_to_share(), units), [&](int64_t) {
    Scratch scratch;
    for (int64_t u = next++; u < units; u = next++) f(u, scratch);
  });
}

// Calls f(tiles, pair of the block), or f(tiles, pair, scratch of the worker), for each unit of tiles
// that are transformed, two by two, or not.
template <class F>
void for_units(const Units& units, const F& f) {
  run_units(units.count(), units.sharing, [&](int64_t unit, Scratch& scratch) {
    if constexpr (std::is_invocable_v<const F&, const Sizes&, int64_t, Scratch&>) {
      f(units.tiles_of(unit), units.pair(unit), scratch);
    } else {
      f(units.tiles_of(unit), units.pair(unit));
    }
  });
}

}  // namespace torchcorr
