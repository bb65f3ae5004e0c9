// Rows of summaries of two images in windows with weights, and the loops over a row.
#pragma once

#include "common/vectors.h"

namespace torchcorr::weighted {

// Of a part of a window: both means, both variances and the covariance, the weight, and of float64
// also what rounding took from either mean.
enum Plane { kMeanA, kMeanB, kVarA, kVarB, kCovariance, kWeight, kLowA, kLowB };
constexpr int kPlanes = 8;

struct Row {
  double* first = nullptr;
  int64_t pitch = 0;  // from one plane to the next

  double* plane(int p) const { return first + p * pitch; }
  Row at(int64_t offset) const { return {first + offset, pitch}; }
};

// What the elements of both images are measured from.
struct Levels {
  double a = 0, b = 0;
};

// Elements of both images that are merged first, one row of each; `weight` may be null.
template <class T>
struct Leaf {
  const T *a, *b, *weight;
  double tap;
  Levels level;
};

// Summaries to be merged: those of tap t begin t * step behind the first, and so do their weights,
// or all their weights are one if it is null. A row's elements past n are read and written up to
// the next whole vector.
struct Taps {
  int64_t count;
  const double* values;
  double share;  // one over their sum
  int64_t step;
  const double* weight;
  int64_t weight_step;
};

void merge_leaves(int64_t n, int64_t count, const Leaf<float>* leaves, bool masked, Row out);
void merge_leaves(int64_t n, int64_t count, const Leaf<double>* leaves, bool masked, Row out);
// With `fine` the planes of what rounding took are used.
void merge_rows(int64_t n, const Taps& taps, Row in, bool fine, Row out);

void scores(int64_t n, Row in, double eps, float* out);
void scores(int64_t n, Row in, double eps, double* out);

// Maps that gradients are made of: the factor of the other image; the factor of a and the offset of
// its gradient; those of b; and what the gradient of weights has besides.
constexpr int kMaps = 6;
constexpr int kMapsOfOne = 3, kMapsOfBoth = 5;

struct MapRule {
  double weight, eps;  // what the plane of weights is to be multiplied with
  bool fine;
  int maps;
};

void maps_of_windows(int64_t n, Row in, const float* grad, const MapRule& by,
                     double* const (&to)[kMaps]);
void maps_of_windows(int64_t n, Row in, const double* grad, const MapRule& by,
                     double* const (&to)[kMaps]);

// out = the sum of taps of `rows`.
void add_rows(int64_t n, int64_t count, const double* const* rows, const double* taps, double* out);

// What a row of elements takes from the maps spread over it; `map` is that of its own factor.
template <class T>
struct Elements {
  const T *self, *other, *weight;
  int map;
  T* out;
  Levels level;  // of self and of other
};

void combine(int64_t n, Row maps, const Elements<float>& of);
void combine(int64_t n, Row maps, const Elements<double>& of);
// The same for the gradient of weights, of which `self` and `other` are a and b.
void combine_weights(int64_t n, Row maps, const Elements<float>& of);
void combine_weights(int64_t n, Row maps, const Elements<double>& of);

}  // namespace torchcorr::weighted
