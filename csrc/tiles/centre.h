// Rows of tiles: what their elements amount to, and those elements minus a level, times a scale.
#pragma once

#include <cstdint>

namespace torchcorr {

// Of some elements: their sum, their squares about a level, and how many are finite.
struct RowSurvey {
  double sum = 0, squares = 0, count = 0;
};

// Of elements that were written: the sum of squares, and whether all were finite.
struct Written {
  double power = 0;
  bool finite = true;
};

// What elements are made of: (x - level) * scale.
struct LevelAndScale {
  double level, scale;
};

// Adds what n elements that are finite amount to, as (x - level) * scale.
void survey(int64_t n, const float* x, double level, double scale, RowSurvey& sums);
void survey(int64_t n, const double* x, double level, double scale, RowSurvey& sums);

// out = (x - level) * scale where x is finite, 0 elsewhere.
void centre(int64_t n, const float* x, const LevelAndScale& by, float* out, Written& w);
void centre(int64_t n, const float* x, const LevelAndScale& by, double* out, Written& w);
void centre(int64_t n, const double* x, const LevelAndScale& by, double* out, Written& w);
void centre(int64_t n, const double* x, const LevelAndScale& by, float* out, Written& w);

// Numbers of two rows in turn.
void zip(int64_t n, const float* a, const float* b, float* out);
void zip(int64_t n, const double* a, const double* b, double* out);

}  // namespace torchcorr
