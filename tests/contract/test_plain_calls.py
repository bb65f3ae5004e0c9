"""Calls that are like one before, whose checks and arrangement are kept: the same as the first."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from inputs import CASES, draw, normal, pair
from torch.utils._python_dispatch import TorchDispatchMode

import torchcorr
from torchcorr import _pairs

FUNCTIONS = (torchcorr.zncc, torchcorr.ncc, torchcorr.correlate)
every_function = pytest.mark.parametrize("function", FUNCTIONS)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    _pairs._at_once.clear()
    yield
    _pairs._at_once.clear()


def kept() -> int:
    return sum(step is not None for step in _pairs._at_once.values())


def one_kept() -> tuple[torch.Tensor, torch.Tensor]:
    """A pair like one that was scored."""
    x, w = normal(20, 30, seed=1, dtype=torch.float32), normal(5, 6, seed=2, dtype=torch.float32)
    for function in FUNCTIONS:
        function(x, w)
    if x.device.type == "cpu":
        assert kept() == len(FUNCTIONS)
    return x + 1, w * 2


@every_function
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("name", CASES)
def test_same_bits(name, dtype, function):
    case = CASES[name]
    how = {"ndim": case.ndim}
    if case.channels != "pooled" or function is not torchcorr.correlate:
        how["channels"] = case.channels
    for seed, stride in ((0, 1), (1, 2), (2, 1)):
        x, w = pair(case, dtype, seed)
        turned = x.transpose(0, -1).contiguous().transpose(0, -1)
        for view in (x, x.repeat_interleave(2, -1)[..., ::2], turned):
            again = [function(view, w, stride=stride, **how) for _ in range(2)]
            _pairs._at_once.clear()
            first = function(view, w, stride=stride, **how)
            for score in again:
                torch.testing.assert_close(score, first, rtol=0, atol=0)
                assert score.is_contiguous() and score.dtype == dtype


def test_values_are_looked_at_each_time():
    x, w = one_kept()
    for a, b in ((x.round(), w.round()), (x, torch.ones_like(w)), (x * torch.nan, w)):
        for function in FUNCTIONS:
            got = [function(a, b), function(a, b)]
            _pairs._at_once.clear()
            want = function(a, b)
            for score in got:
                torch.testing.assert_close(score, want, rtol=0, atol=0, equal_nan=True)
        one_kept()


def test_errors_stay():
    x, w = one_kept()
    for wrong in (True, -1.0, float("nan"), float("inf"), "0"):
        with pytest.raises((ValueError, TypeError), match="eps"):
            torchcorr.zncc(x, w, eps=wrong)
    for wrong in (True, -1.0, 2.0, "0"):
        with pytest.raises((ValueError, TypeError), match="min_overlap"):
            torchcorr.zncc(x, w, min_overlap=wrong)
    for name in ("nan", "mode", "channels", "method", "pad_mode"):
        for wrong in ("other", ["valid"]):
            with pytest.raises(ValueError, match=name):
                torchcorr.zncc(x, w, **{name: wrong})
    for function in FUNCTIONS:
        with pytest.raises(TypeError, match="must share one dtype"):
            function(x, w.double())
        with pytest.raises(TypeError, match=r"must be a torch\.Tensor"):
            function(x, w.tolist())
        with pytest.raises(TypeError, match="must be a dense tensor"):
            function(x, w.to_sparse())


class Seen(TorchDispatchMode):
    """Notes the operators of the package that it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Marked(torch.Tensor):
    pass


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@every_function
def test_other_calls_are_not_taken_for_plain_ones(function):
    x, w = one_kept()
    want = function(x, w)
    with Seen() as seen:
        function(x, w)
    operator = "correlate" if function is torchcorr.correlate else "ncc"
    assert f"torchcorr.{operator}.default" in seen.names
    leaf = x.clone().requires_grad_()
    assert function(leaf, w).grad_fn is not None
    assert function(x, torch.nn.Parameter(w)).requires_grad
    with torch.no_grad():
        torch.testing.assert_close(function(leaf, w), want, rtol=0, atol=0)
    assert isinstance(function(x.as_subclass(Marked), w), Marked)
    torch.testing.assert_close(
        torch.vmap(lambda v: function(v, w))(x[None]), want[None], rtol=0, atol=1e-5
    )
    tangent = torch.func.jvp(lambda v: function(v, w), (x,), (x,))[1]
    assert tangent.shape == want.shape
    with torch.inference_mode():
        torch.testing.assert_close(function(x.clone(), w), want, rtol=0, atol=0)
    with torch.autocast(x.device.type, torch.bfloat16):
        assert function(x.bfloat16(), w).dtype == torch.bfloat16
        assert function(x, w).dtype == torch.float32


@every_function
def test_nothing_is_kept_alive_and_little_is_kept(function, monkeypatch):
    monkeypatch.setattr(_pairs, "_KEPT", 3)
    x = draw((30,), torch.float32)
    of_x = weakref.ref(x)
    for n in range(2, 12):
        function(x, x[:n] - 1, ndim=1)
        assert len(_pairs._at_once) <= 3
    del x
    gc.collect()
    assert of_x() is None
