// What one row of windows or elements takes in scores of windows whose elements have weights.
#pragma once

#include "common/vectors.h"
#include "tiles/emit_sums.h"

namespace torchcorr {

// A sum of each window, or the same for all windows; a bound of its rounding, and of its size.
template <class R>
struct WindowSum {
  const R* map = nullptr;
  double constant = 0, error = 0, largest = 0;
};

// The sums of a template and tile: of weights, elements and squares, and those that depend on the
// template's elements. The first three are in float64 if they are running sums: their maps are none.
template <class R>
struct ScoreSums {
  WindowSum<R> count, first, square, product, other, energy;
  const double *wide_count = nullptr, *wide_first = nullptr, *wide_square = nullptr;
};

// What is the same for all windows of a template and tile.
struct ScoreLimits {
  double softening, least_count, allowed;
  double count_error = 0;  // of weights, if moments of channels were added
};

// Moments of neighbouring windows about the mean of each of their channels, added over channels:
// weights, energies of input and template, products, and errors of these three.
constexpr int kMomentMaps = 7;
struct ChannelMoments {
  double* map[kMomentMaps];

  ChannelMoments at(int64_t offset) const {
    ChannelMoments moved = *this;
    for (double*& m : moved.map) m += offset;
    return moved;
  }
};

// Adds those of one channel to n windows.
void add_channel(bool whole, int64_t n, const ScoreSums<float>& sums, const ChannelMoments& to);
void add_channel(bool whole, int64_t n, const ScoreSums<double>& sums, const ChannelMoments& to);
// The same as `score_row`, from moments of all channels.
int64_t score_moments(bool whole, int64_t n, const ChannelMoments& of, const ScoreLimits& by,
                      float* out, uint8_t* states);
int64_t score_moments(bool whole, int64_t n, const ChannelMoments& of, const ScoreLimits& by,
                      double* out, uint8_t* states);

// Scores of n neighbouring windows; how many are doubtful. States are 1 where a window is. `whole`: all
// elements have weight 1, so that three of the sums are constants.
int64_t score_row(bool whole, int64_t n, const ScoreSums<float>& sums, const ScoreLimits& by,
                  float* out, uint8_t* states);
int64_t score_row(bool whole, int64_t n, const ScoreSums<double>& sums, const ScoreLimits& by,
                  float* out, uint8_t* states);
int64_t score_row(bool whole, int64_t n, const ScoreSums<double>& sums, const ScoreLimits& by,
                  double* out, uint8_t* states);

// Which windows are faint: their weight is more than `enough`, and their energy less than `least`, but
// not so small a share of their squares that they may be flat. All have one weight if none are given.
struct FaintLimits {
  double least, enough, weight_of_all, flat_share;
};
int64_t count_faint(int64_t n, const double* first, const double* square, const double* weight,
                    const FaintLimits& by);

// How many of n elements have weight, and a value that is not `value`.
int64_t count_others(int64_t n, const float* x, const float* weight, const double* by, float value);
int64_t count_others(int64_t n, const double* x, const double* weight, const double* by,
                     double value);

// Of elements of a tile that have weight: their number, sum, and squares about a level.
struct Survey {
  double count = 0, sum = 0, squares = 0;
};

// Adds n elements; without weights all have weight.
void survey(int64_t n, const float* x, const float* weight, double level, Survey& to);
void survey(int64_t n, const double* x, const double* weight, double level, Survey& to);

// Level and scale of a tile, and what its weights are.
struct TileLevel {
  double level = 0, scale = 1;
  double mean_square = 0;  // of elements about the level
  bool is_whole = true, is_empty = true;  // all weights are 1, or 0
};

// A row of elements of a tile; without weights all are 1.
template <class T>
struct CutRow {
  const T *x, *weight;
  TileLevel of;
};

// Writes n weighted elements of two tiles (`which` 0), weighted squares (1), or weights (2), as the
// two parts of complex numbers.
void cut_two(int64_t n, const CutRow<float>& a, const CutRow<float>& b, int which, float* out);
void cut_two(int64_t n, const CutRow<float>& a, const CutRow<float>& b, int which, double* out);
void cut_two(int64_t n, const CutRow<double>& a, const CutRow<double>& b, int which, double* out);
// The same of one tile: every other number of `out`.
void cut_one(int64_t n, const CutRow<float>& row, int which, float* out);
void cut_one(int64_t n, const CutRow<float>& row, int which, double* out);
void cut_one(int64_t n, const CutRow<double>& row, int which, double* out);

// Sums of weights, weighted deviations from a level and weighted squares of them.
struct WeightedParts {
  double count = 0, first = 0, square = 0;
};

// Adds n elements, each with its weight, if it has one, times `by`.
void add_weighted(int64_t n, const float* x, const float* weight, const double* by, double level,
                  WeightedParts& to);
void add_weighted(int64_t n, const double* x, const double* weight, const double* by, double level,
                  WeightedParts& to);

// Adds what n numbers contain.
void add_contents(int64_t n, const float* x, Contents& to);
void add_contents(int64_t n, const double* x, Contents& to);

// Every step-th of the numbers of two lanes that alternate.
void take_row(int64_t n, int64_t step, const float* from, float* one, float* other);
void take_row(int64_t n, int64_t step, const float* from, double* one, double* other);
void take_row(int64_t n, int64_t step, const double* from, double* one, double* other);

}  // namespace torchcorr
