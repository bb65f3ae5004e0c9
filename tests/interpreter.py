"""Triton's interpreter for kernels that loop, wherever no GPU is; imported before triton is."""

from __future__ import annotations

import os
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"


def _loops_run() -> None:
    """Bounds of loops are arrays of one element, which NumPy >= 2.4 takes for no index."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def _masks_are_boolean() -> None:
    """Triton 3.9 compares single numbers to integers, and then takes no such mask."""
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
    _masks_are_boolean()
