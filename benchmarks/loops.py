"""A plain C loop for row A6: what programs that search seismograms do, compiled for this CPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import c_long, c_void_p
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

# The mean over channels of sums of products, divided by the roots of both energies. Energies of
# windows are differences of running sums; means are not subtracted.
SOURCE = """
#include <math.h>
#include <stdlib.h>

void search(const float *record, const float *templates, const long *moveouts, long count,
            long channels, long samples, long length, long positions, float *scores) {
  double *running = calloc(channels * (samples + 1), sizeof(double));
  for (long c = 0; c < channels; ++c) {
    double *to = running + c * (samples + 1);
    for (long i = 0; i < samples; ++i) {
      to[i + 1] = to[i] + (double)record[c * samples + i] * record[c * samples + i];
    }
  }
  for (long t = 0; t < count; ++t) {
    const float *first = templates + t * channels * length;
#pragma omp parallel for schedule(static)
    for (long u = 0; u < positions; ++u) {
      double total = 0;
      for (long c = 0; c < channels; ++c) {
        const long at = u + moveouts[t * channels + c];
        const float *x = record + c * samples + at, *w = first + c * length;
        float products = 0, energy = 0;
        for (long i = 0; i < length; ++i) products += x[i] * w[i], energy += w[i] * w[i];
        const double *sums = running + c * (samples + 1) + at;
        const double size = (sums[length] - sums[0]) * energy;
        if (size > 0) total += products / sqrt(size);
      }
      scores[t * positions + u] = total / channels;
    }
  }
  free(running);
}
"""


@lru_cache
def _library() -> ctypes.CDLL:
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        raise ImportError("a C compiler is needed")
    folder = Path(tempfile.mkdtemp(prefix="torchcorr-loops-"))
    source, library = folder / "search.c", folder / "search.so"
    source.write_text(SOURCE)
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-lm", "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def matched_filter(record: Tensor, templates: Tensor, moveouts: Tensor) -> Callable[[], Tensor]:
    """A search of float32 records (C, N) for templates (T, C, n): scores (T, positions)."""
    search = _library().search
    count, channels, length = templates.shape
    samples = record.shape[-1]
    positions = samples - length - int(moveouts.max()) + 1
    tensors = record.contiguous(), templates.contiguous(), moveouts.to(torch.int64).contiguous()

    def call() -> Tensor:
        scores = torch.empty(count, positions)
        addresses = [c_void_p(x.data_ptr()) for x in tensors]
        sizes = [c_long(n) for n in (count, channels, samples, length, positions)]
        search(*addresses, *sizes, c_void_p(scores.data_ptr()))
        return scores

    return call
