// Sums of the windows of one line, none of them a difference: the end of one block of elements and
// the beginning of what follows (march.h), both running totals in vectors.
#pragma once

#include "windows/march.h"

namespace torchcorr {

// Numbers of scratch for windows along an axis, whose block must be set.
int64_t line_scratch(const WindowAxis& axis);

// The sum of each window. A few numbers behind the end of x are read and not used.
void line_sums(const WindowAxis& axis, const double* x, double* scratch, double* sums);

}  // namespace torchcorr
