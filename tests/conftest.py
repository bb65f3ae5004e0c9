"""Fresh memory is NaN, seeds are fixed, and thread counts are put back."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Kernels in Triton are interpreted where no GPU is. What follows imports triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
