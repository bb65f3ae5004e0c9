"""Tests of the contract and of applications run on any device: they leave NumPy to the helpers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
FILES = sorted([*TESTS.glob("contract/test_*.py"), *TESTS.glob("apps/test_*.py")])
# Tied to the CPU; `inputs.tensor`, `inputs.array` and `inputs.normal` take their place.
HOST_ONLY = ("from_numpy", "numpy", "Generator", "__array__")
CREATE = ("torch.", "draw(", "normal(", "pair(", "tensor(", "array(")


def name(path: Path) -> str:
    return str(path.relative_to(TESTS))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_tensors_and_arrays_are_converted_by_helpers(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr not in HOST_ONLY, f"line {node.lineno}: {ast.unparse(node)}"


def calls_at_import(tree: ast.Module) -> Iterator[ast.Call]:
    """Calls outside the bodies of functions and classes, such as those in decorators."""
    for statement in tree.body:
        inner = isinstance(statement, (ast.FunctionDef, ast.ClassDef))
        for part in statement.decorator_list if inner else [statement]:
            yield from (node for node in ast.walk(part) if isinstance(node, ast.Call))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_tensor_is_created_at_import(path: Path) -> None:
    """The default device is set when a test begins, after its file was imported."""
    for call in calls_at_import(ast.parse(path.read_text())):
        assert not ast.unparse(call).startswith(CREATE), f"line {call.lineno}: {ast.unparse(call)}"
