// What scores of bytes need to know of a template beside its elements.
#pragma once

#include <cmath>
#include <vector>

#include "integer/moments.h"

namespace torchcorr::integer {

// Sums of one template and what they make of it: the constants of its scores.
struct ByteTemplate {
  std::vector<int64_t> sums;    // of the elements that share a mean
  int64_t centre = 0;           // numerators are of elements minus `centre`
  double norm = 0.0;            // 1 / sqrt(energy)
  double energy = 0.0;          // of elements minus `centre`
};

inline double energy_about(int64_t level, int64_t count, int64_t sum, int64_t squares) {
  return static_cast<double>(energy_of(count, static_cast<uint64_t>(sum),
                                       static_cast<uint64_t>(squares), false, level));
}

// Of a template (C, *window), and what transforms multiply of it, if these are wanted.
inline ByteTemplate template_of(const ByteRule& rule, const Tiling& tiling, const uint8_t* elements,
                                const double* centred) {
  ByteTemplate one;
  const int64_t count = rule.count(tiling);
  int64_t energy = 0, sum = 0, squares = 0;
  for (int64_t mean = 0; mean < rule.means(tiling); ++mean) {
    int64_t of_mean = 0, squares_of_mean = 0;
    for (int64_t i = mean * count; i < (mean + 1) * count; ++i) {
      of_mean += elements[i];
      squares_of_mean += static_cast<int64_t>(elements[i]) * elements[i];
    }
    energy += energy_of(count, static_cast<uint64_t>(of_mean),
                        static_cast<uint64_t>(squares_of_mean), rule.zero_mean,
                        rule.zero_of_template);
    one.sums.push_back(of_mean);
    sum += of_mean, squares += squares_of_mean;
  }
  one.centre = centred ? elements[0] - static_cast<int64_t>(centred[0]) : 128;
  one.norm = energy > 0 ? 1 / std::sqrt(static_cast<double>(energy)) : 0.0;
  one.energy = energy_about(one.centre, tiling.window_size(), sum, squares);
  return one;
}

}  // namespace torchcorr::integer
