// Products of tiles that are so large that threads share their transforms, which replace what they
// transform: few arrays of a tile's size are held, for any number of threads. An array is the half
// spectrum of a tile, or two lines as one complex one, which each thread transforms by itself, unless it
// is the only one: long lines of real numbers take more time.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "common/tiling.h"
#include "tiles/steps.h"
#include "tiles/units.h"

namespace torchcorr {

// A template (C, *window) in float64, and the spectra of its parts in one precision, if they are kept.
class LargeTemplate {
 public:
  LargeTemplate(const Tiling& tiling, const double* elements) : t_(tiling), elements_(elements) {}

  // Makes spectra that are kept.
  void keep(bool wide);
  // Whether there are spectra that are kept, in this precision.
  bool keeps(bool wide) const;
  // Half of the i-th spectrum, (1, *half), of those that are kept; of a line the first half of its rows
  // (in_place.h).
  Tensor kept(int64_t i) const;
  // Makes one, with which an array of complex numbers (1, *half), or (1, *length) of a line, then begins.
  void make(int64_t i, const Tensor& to) const;

 private:
  const Tiling& t_;
  const double* elements_;
  std::optional<Tensor> kept_;  // (parts * C, *half), or as many elements of lines
};

// The templates of a block, (pairs, templates, C, *window), if its tiles are large; otherwise none. In
// float64 if `wide` are the spectra that are kept, if the block keeps any.
std::vector<LargeTemplate> large_templates(const Tiling& tiling, const Tensor& templates,
                                           const Block& block, bool wide);

// Writes elements of the i-th tile; zeros for one that is missing.
using CutPart = std::function<void(int64_t i, const PartOfTile& part)>;

// Sums of products of tiles, in float64 if `wide`, otherwise in float32.
class LargeTiles {
 public:
  // For so many tiles at most.
  LargeTiles(const Tiling& tiling, bool wide, int64_t tiles);

  // Those of a worker, which are made anew only where they are in another precision or too few.
  static LargeTiles& of(Scratch& scratch, const Tiling& tiling, bool wide, int64_t tiles);

  void correlate(int64_t tiles, const LargeTemplate& templ, const CutPart& cut);
  // Those of the i-th tile, which is even, and the next one, in turn: (1, *length) complex numbers, which
  // those of others may take the place of.
  Tensor sums(int64_t i) const;

 private:
  void cut_arrays(const CutPart& cut, int64_t first, int64_t count, const Axes3& from,
                  int64_t channel, const Tensor& to) const;
  void cut_two_lines(const CutPart& cut, int64_t i, const Axes3& from, int64_t channel,
                     const Tensor& to) const;
  void transform(const Tensor& arrays) const;
  void multiply(int64_t first, int64_t count, const Tensor& arrays, const Tensor& spectrum,
                bool add) const;

  const Tiling& t_;
  const bool wide_, are_lines_;
  // Tiles at most; arrays of these, of a template, and those that are transformed at once.
  const int64_t most_, arrays_, of_template_, at_once_;
  Tensor sums_, room_;
  std::optional<Tensor> line_;  // for the spectrum of a part of a template, where none are kept
};

}  // namespace torchcorr
