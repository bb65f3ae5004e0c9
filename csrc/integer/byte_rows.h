// Rows of bytes that are cut for transforms.
#pragma once

#include <cstdint>

namespace torchcorr::integer {

// to[2 * i] = x[i] - level.
void centre_row(int64_t n, const uint8_t* x, int64_t level, float* to);
void centre_row(int64_t n, const uint8_t* x, int64_t level, double* to);

// Adds the elements and their squares.
void add_row(int64_t n, const uint8_t* x, int64_t& sum, int64_t& squares);

}  // namespace torchcorr::integer
