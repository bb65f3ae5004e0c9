"""Fresh memory is NaN, seeds are fixed, and thread counts are put back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

# Kernels in Triton are interpreted where no GPU is. What follows imports triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device that tests make their tensors on")


def pytest_configure(config: pytest.Config) -> None:
    """On another device, what comes from NumPy goes there, and what goes to NumPy comes back."""
    # Said once by a debugging mode that tests switch on, and by PyTorch's own operators on a GPU.
    for said in ("Synchronization debug mode is", ".*does not have a deterministic implementation"):
        config.addinivalue_line("filterwarnings", f"ignore:{said}")
    device = config.getoption("--device")
    if device == "cpu":
        return
    torch.set_default_device(device)
    # PyTorch looks up which functions take a device when the first of them is called.
    torch.empty(0)
    from_numpy, numpy, array = torch.from_numpy, torch.Tensor.numpy, torch.Tensor.__array__

    def there(values: np.ndarray) -> torch.Tensor:
        return from_numpy(values).to(device)

    def back(x: torch.Tensor, *, force: bool = False) -> np.ndarray:
        return numpy(x.cpu(), force=force)

    def back_as(x: torch.Tensor, *args: Any, **kwargs: Any) -> np.ndarray:
        return array(x.cpu(), *args, **kwargs)

    def drawn(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def from_generator(*args: Any, generator: Any = None, **kwargs: Any) -> torch.Tensor:
            if generator is None:
                return draw(*args, **kwargs)
            return draw(*args, generator=generator, device=generator.device, **kwargs).to(device)

        return from_generator

    # A generator is one of the CPU's, which draws the same numbers everywhere.
    torch.rand, torch.randn = drawn(torch.rand), drawn(torch.randn)
    torch.from_numpy = there
    torch.Tensor.numpy = back  # type: ignore[method-assign]
    torch.Tensor.__array__ = back_as  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
