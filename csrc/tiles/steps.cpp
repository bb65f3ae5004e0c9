// The steps of the CPU engine, as `_cpu/steps.py` calls them: schemas in a library of their own, since
// they are no operators that users or compilers see.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(torchcorr_cpu, m) {
  m.def("correlate_direct(Tensor input, Tensor template, int[] stride) -> Tensor");
  m.def(
      "correlate_direct_input_grad(Tensor grad, Tensor template, int[] input_shape, int[] stride)"
      " -> Tensor");
  m.def(
      "correlate_direct_template_grad(Tensor grad, Tensor input, int[] template_shape,"
      " int[] stride) -> Tensor");
  m.def("take_large_pages(Tensor(a!) x) -> ()");
  m.def(
      "gather_tiles(Tensor input, int[] ids, int[] geometry, bool centred, bool wide, bool pairs)"
      " -> (Tensor, Tensor)");
  m.def(
      "tile_norms(Tensor stats, Tensor input, int[] ids, int[] geometry, int[] window,"
      " int[] stride, bool zero_mean, bool local, float eps, float faint, float exact, bool means)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "repair_norms(Tensor(a!) norms, Tensor(b!) means, Tensor stats, Tensor input, int[] ids,"
      " int[] geometry, int[] window, int[] stride, bool zero_mean, float eps) -> ()");
  m.def(
      "tile_upstream(Tensor grad, Tensor score, Tensor norms, Tensor means, int[] ids,"
      " int[] geometry, int[] stride, float count, int first_template, int templates,"
      " bool of_tiles, Tensor(a!) grad_square, Tensor(b!) grad_mean) -> (Tensor, Tensor)");
  m.def(
      "tile_input_grad(Tensor(a!) found, Tensor grad_square, Tensor grad_mean, Tensor stats,"
      " Tensor input, int[] ids, int[] geometry, int[] window, int[] stride, Tensor(b!) out)"
      " -> ()");
  m.def(
      "finish_sums(Tensor numerators, Tensor stats, Tensor? bound, Tensor? marked, Tensor input,"
      " Tensor template, int[] ids, int[] geometry, int[] stride, int first_template,"
      " float noise, float allowed, int budget, Tensor(a!) out) -> Tensor");
  m.def(
      "direct_scores(Tensor input, Tensor template, Tensor taps, int[] ids, int[] geometry,"
      " int[] window, int[] stride, int at_once, bool zero_mean, float eps, float faint,"
      " float exact, int budget, Tensor(a!) out) -> (Tensor, Tensor)");
  m.def(
      "finish_tiles(Tensor numerators, Tensor norms, Tensor stats, Tensor input, Tensor template,"
      " int[] ids, int[] geometry, int[] stride, int first_template, bool zero_mean, float eps,"
      " float noise, int budget, Tensor(a!) out) -> Tensor");
}
