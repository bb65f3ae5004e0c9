"""Where Triton kernels are tested: on a GPU, or else on the CPU in Triton's interpreter.

Imported before triton. It also mends the interpreter for kernels that loop.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton")


def on_device(*args: Any) -> tuple[Any, ...]:
    """Arguments with their tensors on the device that kernels run on."""
    return tuple(x.to(DEVICE) if isinstance(x, Tensor) else x for x in args)


def run(name: str, *args: Any) -> Any:
    """An operator's results on the CPU, computed by its Triton kernels."""
    from torchcorr._triton import kernel

    result = kernel(name)(*on_device(*args))
    return tuple(x.cpu() for x in result) if isinstance(result, tuple) else result.cpu()


def _loops_run() -> None:
    """Bounds of loops are arrays of one element, which NumPy >= 2.4 does not accept as an index."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def _launches_patch_once() -> None:
    """Every call of a device function patches the language again, which takes half a test's time.

    A launch does it for all modules that import it as `tl`; others are patched once and stay so.
    """
    from triton import language
    from triton.runtime import interpreter

    original = interpreter.InterpretedFunction.__call__
    patched: set[str] = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        names = self.fn.__globals__
        if names.get("tl") is language or names["__name__"] in patched:
            return self.rewrite()(*args, **kwargs)
        patched.add(names["__name__"])
        return original(self, *args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


def _masks_are_boolean() -> None:
    """Triton 3.9 compares single numbers to integers, and does not accept these as masks."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder

    def boolean(name: str, position: int) -> None:
        original = getattr(builder, name)

        def call(self: Any, *args: Any) -> Any:
            mask = args[position]
            mask.data = mask.data.astype(bool)
            return original(self, *args)

        setattr(builder, name, call)

    boolean("create_masked_load", 1)
    boolean("create_masked_store", 2)


if DEVICE == "cpu":
    _loops_run()
    _launches_patch_once()
    _masks_are_boolean()
