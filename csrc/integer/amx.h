// Sums of products of bytes by matrix tiles (Intel AMX), where the CPU and the system have them.
#pragma once

#include "integer/dots.h"

namespace torchcorr::integer {

// Whether this process may use matrix tiles; asks the system for them at the first call.
bool has_matrix_tiles();

PackedTemplate pack_bands(const Tiling& tiling, const uint8_t* elements);
void correlate_bands(const Tiling& tiling, const ByteTile& tile, const PackedTemplate& weights,
                     SumMap& out);

}  // namespace torchcorr::integer
