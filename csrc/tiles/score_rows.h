// Rows of scores from rows of numerators and norms, and what such rows contain.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/window_state.h"

namespace torchcorr {

// Of a row of numerators: the sum of their squares, the largest size; and of its windows the
// largest norm, and how many are doubtful.
struct RowContent {
  double square = 0, peak = 0, norm = 0;
  int64_t doubtful = 0;

  void add(const RowContent& other) {
    square += other.square;
    peak = std::max(peak, other.peak);
    norm = std::max(norm, other.norm);
    doubtful += other.doubtful;
  }
  void add_numerator(double value) {
    square += value * value;
    peak = std::max(peak, std::abs(value));
  }
};

// A row of numerators of one of two tiles, whose numbers alternate: every `step`th number, n of them
// with norms and `tail` more that count only for what the row contains.
template <class T>
struct NumeratorRow {
  int64_t n, tail;
  const T* first;
  int64_t step;
};

// out = numerator * norm within [-1, 1], 0 where the norm is; all but `doubtful` of what the row
// contains.
RowContent normalise_row(const NumeratorRow<float>& row, const float* norm, float* out);
RowContent normalise_row(const NumeratorRow<double>& row, const double* norm, float* out);
RowContent normalise_row(const NumeratorRow<double>& row, const double* norm, double* out);
RowContent normalise_row(const NumeratorRow<float>& row, const float* norm, double* out);

// The same scores, nothing else.
void scale_row(int64_t n, const float* numerator, const float* norm, float* out);
void scale_row(int64_t n, const double* numerator, const double* norm, float* out);
void scale_row(int64_t n, const double* numerator, const double* norm, double* out);
void scale_row(int64_t n, const float* numerator, const float* norm, double* out);

// Of every other numerator: the scores of windows that are marked, and whose norm is not above the
// limit. Norms are times `scale`.
struct SecondLook {
  const uint8_t* marked;
  float limit, scale;
};
void rescore_row(int64_t n, const float* numerator, const float* norm, const SecondLook& by,
                 float* out);

// The content of numerators without norms.
RowContent content_of(int64_t n, const float* x);
RowContent content_of(int64_t n, const double* x);

int64_t count_doubtful(int64_t n, const uint8_t* states);
int64_t count_state(int64_t n, const uint8_t* states, uint8_t state);
// The same, and windows whose norm is above the limit.
int64_t count_beyond(int64_t n, const uint8_t* states, const float* norms, float limit);
int64_t count_beyond(int64_t n, const uint8_t* states, const double* norms, double limit);

}  // namespace torchcorr
