// Transforms of arrays that are too large to be held twice. Threads share them in blocks that do not
// depend on their number, nor does the result.
#pragma once

#include "common/tiling.h"

namespace torchcorr {

// Replaces a complex array (lines, *length) by its unscaled transforms over all axes but the first. The
// lines are zero behind `some` elements along each axis.
void transform_in_place(const Tensor& x, bool forward, const Axes3& some);
// Replaces spectra (lines, *length) by what they are the spectra of, times its size: the first `some`
// elements along each axis, and anything behind them.
void restore_in_place(const Tensor& x, const Axes3& some);

// A long line is transformed as an array of so many rows, the largest divisor that is at most its root:
// element k1 + rows k2 of its spectrum lies in row k1 and column k2.
int64_t rows_of_line(int64_t n);
// Replaces complex lines (lines, n) by their unscaled transforms in that order, forward or, if
// `conjugate`, back.
void transform_lines_in_place(const Tensor& x, bool conjugate = false);
// Such spectra by the lines that they are the spectra of, times n.
void restore_lines_in_place(const Tensor& x, bool conjugate = false);

// Half of a spectrum of real numbers, (*length), along the last axis: that of the others is conjugate.
inline Axes3 half_of(const Axes3& length) { return {length[0], length[1], length[2] / 2 + 1}; }

// The same of real numbers, whose rows of `width` lie where their half spectra will, as the first numbers
// of rows of the complex array (lines, *half).
void transform_real_in_place(const Tensor& x, int64_t width, const Axes3& some);
// Such half spectra by the real numbers that they are the spectra of, times their number.
void restore_real_in_place(const Tensor& x, int64_t width);
// Such real numbers, of planes or volumes, by those whose half spectra are products of theirs with the
// conjugate of `by`, (1, *half), times their number. Lines along the first axis are transformed, multiplied
// and transformed back while they are in cache.
void correlate_real_in_place(const Tensor& x, int64_t width, const Tensor& by);

}  // namespace torchcorr
