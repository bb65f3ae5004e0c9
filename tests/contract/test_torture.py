"""The torture list: the textbook formula fails it, names are unique, photographs are scored."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import skimage.data
import torch
import torture
from inputs import array, tensor
from tolerances import SCORE

import torchcorr


def naive(image: np.ndarray, template: np.ndarray) -> np.ndarray:
    """The textbook formula in the image's own precision: sums of I and of its square."""
    seen = np.lib.stride_tricks.sliding_window_view(image, template.shape)
    axes = (-2, -1)
    count = template.size
    centred = template - template.mean()
    energy = np.square(seen).sum(axes) - np.square(seen.sum(axes)) / count
    with np.errstate(all="ignore"):
        return (seen * centred).sum(axes) / np.sqrt(energy * np.square(centred).sum())


def test_the_list_catches_the_textbook_formula():
    errors = dict(torture.table(naive))
    assert errors["uniform"] < 1e-5
    for name in ("offset 1e+04", "offset 1e+06", "flat patch", "faint patch 1e-04"):
        assert errors[name] > SCORE[torch.float32]


def test_names_are_unique_and_seeds_fixed():
    first, second = list(torture.cases()), list(torture.cases())
    names = [case.name for case in first]
    assert len(set(names)) == len(names)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.template, b.template)
        assert a.image.dtype == a.template.dtype == np.float32


def test_the_oracle_is_exact_to_its_rounding():
    for case in torture.cases(np.float32):
        score = oracle.zncc(case.image, case.template)
        assert np.isfinite(score).all()
        assert np.abs(score).max() <= 1
        shifted = oracle.zncc(case.image.astype(np.float64) * 2, case.template)
        assert np.abs(score - shifted).max() < 1e-15


def test_the_table_takes_any_function():
    def score(image: np.ndarray, template: np.ndarray) -> np.ndarray:
        return array(torchcorr.zncc(tensor(image), tensor(template)))

    table = torture.table(score)
    assert max(error for _, error in table) <= SCORE[torch.float32], table
    assert torture.error(np.full((2, 2), np.nan), np.zeros((2, 2))) == np.inf


@pytest.mark.parametrize("window", (16, 24, 64))
@pytest.mark.parametrize("name", ("camera", "moon", "page", "retina", "hubble_deep_field"))
def test_photographs(name: str, window: int) -> None:
    """Next to detail, a transform's rounding is large relative to the windows of smooth regions."""
    picture = np.asarray(getattr(skimage.data, name)())
    grey = (picture.mean(-1) if picture.ndim == 3 else picture)[:512, :512].astype(np.float32)
    y, x = (n // 3 for n in grey.shape)
    image, template = tensor(grey), tensor(grey[y : y + window, x : x + window])
    exact = torchcorr.zncc(image.double(), template.double(), method="direct")
    for method in ("fft", "direct"):
        got = torchcorr.zncc(image, template, method=method)
        assert float((got - exact).abs().max()) <= SCORE[torch.float32]
