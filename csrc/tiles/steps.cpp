// The steps of the CPU engine, as `_cpu/steps.py` calls them: schemas in a separate library, since
// they are no operators that users or compilers see. `batch` is a `TileBatch`, `rule` a
// `ScoreRule` (steps.h) or a `SumRule` (sum_pass.cpp), `moments` a `TileMoments`.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(torchcorr_cpu, m) {
  m.def("correlate_direct(Tensor input, Tensor template, int[] stride) -> Tensor");
  m.def(
      "correlate_direct_input_grad(Tensor grad, Tensor template, int[] input_shape, int[] stride)"
      " -> Tensor");
  m.def(
      "correlate_direct_template_grad(Tensor grad, Tensor input, int[] template_shape,"
      " int[] stride) -> Tensor");
  m.def(
      "correlate_direct_scores(Tensor input, Tensor template, int[] stride, Tensor norms) -> Tensor");
  m.def("correlate_halved(Tensor tiles, Tensor templates) -> Tensor");
  m.def(
      "dense_norms(Tensor input, int[] window, int[] stride, bool zero_mean, bool own_means,"
      " float eps, bool centred) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("dense_upstream(Tensor grad, Tensor score, Tensor norms, int count)"
        " -> (Tensor, Tensor, Tensor)");
  m.def(
      "dense_spread(Tensor input, Tensor levels, Tensor means, Tensor share, int[] window,"
      " int[] stride, Tensor(a!) out) -> Tensor");
  m.def("dense_position_sums(Tensor input, int[] window, int[] stride) -> Tensor");
  m.def("standardise_channels(Tensor template) -> Tensor");
  m.def("standardise_channels_grad(Tensor template, Tensor grad) -> Tensor");
  m.def("weigh_templates(Tensor template, Tensor? weight, bool zero_mean) -> (Tensor, Tensor)");
  m.def("dense_weights(Tensor template) -> (Tensor, Tensor)");
  m.def(
      "dense_project(Tensor grad, Tensor? common, Tensor sums, Tensor template, bool zero_mean,"
      " bool own_means) -> (Tensor, Tensor)");
  m.def("take_counts(Tensor(a!) counts) -> ()");
  m.def("take_large_pages(Tensor(a!) x) -> ()");
  m.def("hold_threads(Tensor x) -> bool");
  m.def("release_threads(Tensor x) -> ()");
  m.def(
      "cut_tiles(Tensor input, int[] batch, bool centred, bool wide, bool pairs)"
      " -> (Tensor, Tensor)");
  m.def(
      "tile_moments(Tensor input, Tensor stats, int[] batch, float[] rule, bool means)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "merged_moments(Tensor input, Tensor stats, int[] batch, float[] rule, bool pairs, bool means)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "normalise_tiles(Tensor numerators, Tensor[] moments, Tensor input, Tensor coefficients,"
      " int[] batch, float[] rule, Tensor(a!) out) -> Tensor");
  m.def(
      "score_tiles(Tensor input, Tensor coefficients, Tensor? spectra, int[] batch, int[] block,"
      " float[] rule, float[] wide_rule, Tensor? mask, float[] weights, Tensor(a!) out) -> ()");
  m.def(
      "score_at_once(Tensor input, Tensor templates, int[] shape, int[] batch, int[] block,"
      " float[] rule, float[] wide_rule, bool has_channels) -> Tensor");
  m.def(
      "score_masked_tiles(Tensor input, Tensor? weight, Tensor[] factors, int[] batch, int[] block,"
      " float[] rule, Tensor(a!) out, Tensor(b!) doubtful) -> ()");
  m.def(
      "weighted_moment_tiles(Tensor input, Tensor? weight, Tensor of_windows, int[] batch,"
      " int[] block, float[] rule, Tensor(a!)[] out) -> ()");
  m.def(
      "score_weighted_windows(Tensor input, Tensor? weight, Tensor template, Tensor? template_weight,"
      " Tensor[] items, int[] stride, Tensor places, Tensor[] of_lead, bool zero_mean, bool pooled)"
      " -> Tensor");
  m.def("as_bytes(Tensor x) -> (Tensor, int, int)");
  m.def("byte_kernels(Tensor x) -> int");
  m.def("byte_loop(Tensor x) -> int");
  m.def("has_own_transforms(Tensor x) -> bool");
  m.def(
      "score_bytes(Tensor input, Tensor templates, Tensor? coefficients, Tensor? spectra, int[] batch,"
      " int[] block, float[] rule, Tensor(a!) out) -> ()");
  m.def(
      "sum_tiles(Tensor input, Tensor template, Tensor? spectra, int[] batch, int[] block,"
      " float[] rule, Tensor(a!) out) -> Tensor");
  m.def("transform_in_place(Tensor(a!) x, bool forward, int[] some, int width) -> ()");
  m.def("restore_in_place(Tensor(a!) x, int[] some) -> ()");
  m.def("transform_lines_in_place(Tensor(a!) x, bool to_spectra, bool conjugate) -> int");
  m.def("template_spectra(Tensor templates, int[] batch, bool wide, bool in_lines) -> Tensor");
  m.def(
      "template_grad_spectra(Tensor upstream, Tensor input, int[] upstream_batch, int[] batch,"
      " int pairs, int groups, int parts, bool wide) -> Tensor");
  m.def(
      "score_grad_tiles(Tensor[] operands, Tensor spectra, int[] batch, int[] block, int[] wide,"
      " float[] rule, Tensor(a!)[] sums) -> Tensor");
}
