#include <algorithm>

#include "tiles/weighted_moments.h"

namespace torchcorr {

std::vector<WeightedRun> runs_of(const Axes3& window, const double* weights) {
  std::vector<WeightedRun> runs;
  for (int64_t row = 0; row < window[0] * window[1]; ++row) {
    const double* line = weights + row * window[2];
    for (int64_t x = 0; x < window[2];) {
      int64_t end = x + 1;
      while (end < window[2] && line[end] == line[x]) ++end;
      if (line[x] > 0) runs.push_back({row / window[1], row % window[1], x, end - x, line[x]});
      x = end;
    }
  }
  return runs;
}

WindowWeights::WindowWeights(const Tiling& t, const Tensor& mask, const Numbers& numbers) {
  STD_TORCH_CHECK(numbers.size() == 2, "weights have two numbers");
  factor = numbers[0], own_means = numbers[1] != 0;
  const double* w = mask.const_data_ptr<double>();
  runs = runs_of(t.window, w);
  double sum = 0;
  for (int64_t i = 0; i < product(t.window); ++i) sum += w[i], largest = std::max(largest, w[i]);
  const double channels = static_cast<double>(t.channels);
  total = sum * channels;
  of_group = own_means ? sum : total;
  is_box = sum == largest * static_cast<double>(product(t.window));
}

}  // namespace torchcorr
