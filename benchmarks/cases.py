"""The rows against peers: input, function, peer and target of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from inputs import draw
from tolerances import SCORE
from torch import Tensor

import torchcorr

from . import accuracy, ipp, peers
from .measure import Accuracy, Bound, Row, Settings, alternate, at_least, at_most, ratio_row

SIZES = (
    (256, 16),
    (512, 32),
    (1024, 16),
    (1024, 64),
    (1024, 256),
    (2048, 32),
    (2048, 128),
    (4096, 64),
)


def cut(image: Tensor, window: int) -> Tensor:
    """A template from inside an image, at a third of every window axis if it fits there."""
    starts = (min(n // 3, n - window) for n in image.shape[-2:])
    return image[(..., *(slice(at, at + window) for at in starts))].clone()


def score_row(
    settings: Settings,
    row: str,
    case: str,
    image: Tensor,
    template: Tensor,
    peer: tuple[str, Callable[[], np.ndarray]],
    bound: Bound | None,
    **options: Any,
) -> Row:
    """zncc against a peer that returns scores of the same shape."""
    name, theirs = peer
    timings = alternate(
        {"ours": lambda: torchcorr.zncc(image, template, **options), "theirs": theirs},
        settings.rounds,
    )
    ours = timings["ours"].result
    kept, exact = accuracy.score_accuracy(ours, image, template, **options)
    their_error = accuracy.largest(torch.as_tensor(timings["theirs"].result) - exact)
    return ratio_row(row, case, name, timings, bound=bound, accuracy=kept, peer_error=their_error)


def mean_row(rows: Iterable[Row], bound: Bound) -> Row:
    """Geometric mean of the ratios of several rows; inexact if one of them is."""
    rows = list(rows)
    mean = math.exp(sum(math.log(row.value) for row in rows) / len(rows))
    worst = max((r.accuracy for r in rows if r.accuracy), key=lambda a: a.error / a.allowed)
    case = f"geometric mean of the {len(rows)}"
    return Row(rows[0].row, case, rows[0].peer, "peer / ours", mean, bound, worst)


def c1(settings: Settings) -> Iterator[Row]:
    rows = []
    for whole in SIZES:
        size, window = settings.small(*whole)
        image = draw((size, size), torch.float32)
        template = cut(image, window)
        peer = ("OpenCV", peers.opencv(image, template))
        case = f"zncc {size}²/{window}²"
        rows.append(score_row(settings, "C1", case, image, template, peer, at_least(2.5)))
        yield rows[-1]
    yield mean_row(rows, at_least(4))


def c2(settings: Settings) -> Iterator[Row]:
    for whole in ((1024, 64), (2048, 128)):
        size, window = settings.small(*whole)
        image = (draw((size, size), torch.float32) * 256).to(torch.uint8)
        template = cut(image, window)
        peer = ("OpenCV", peers.opencv(image, template))
        case = f"zncc uint8 {size}²/{window}²"
        yield score_row(settings, "C2", case, image, template, peer, at_least(4))


def c3(settings: Settings) -> Iterator[Row]:
    size, window = settings.small(1024, 48)
    many = 4 if settings.quick else 64
    image = draw((size, size), torch.float32)
    rng = np.random.default_rng(1)
    corners = rng.integers(0, size - window, (many, 2))
    templates = torch.stack([image[y : y + window, x : x + window] for y, x in corners])
    peer = ("OpenCV, a call each", peers.opencv_many(image, templates))
    case = f"zncc {size}², {many} templates of {window}²"
    yield score_row(settings, "C3", case, image, templates, peer, at_least(6))


def c4(settings: Settings) -> Iterator[Row]:
    size, window = settings.small(1024, 64)
    image = draw((3, size, size), torch.float32)
    template = cut(image, window)
    peer = ("OpenCV", peers.opencv(image, template))
    case = f"zncc joint RGB {size}²/{window}²"
    yield score_row(settings, "C4", case, image, template, peer, at_least(10), channels="joint")


def c5(settings: Settings) -> Iterator[Row]:
    size, window = settings.small(1024, 64)
    image = draw((size, size), torch.float32)
    template = cut(image, window)
    place = (2 * torch.arange(window) + 1 - window).square()
    mask = (place[:, None] + place <= window**2).float()
    peer = ("OpenCV with mask", peers.opencv(image, template, mask))
    case = f"zncc {size}²/{window}², a disk as mask"
    yield score_row(settings, "C5", case, image, template, peer, at_least(6), template_mask=mask)
    valid = draw(image.shape, torch.float32, seed=2) < 0.9
    for name, bound, masks in (
        ("a disk as mask", at_most(2), {"template_mask": mask}),
        ("a tenth missing", None, {"input_mask": valid}),
        ("both", at_most(3.5), {"template_mask": mask, "input_mask": valid}),
        ("same size, border ignored", None, {"mode": "same", "pad_mode": "ignore"}),
    ):
        timings = alternate(
            {
                "plain": partial(torchcorr.zncc, image, template, mode=masks.get("mode", "valid")),
                "ours": partial(torchcorr.zncc, image, template, **masks),
            },
            settings.rounds,
        )
        ours, plain = timings["ours"], timings["plain"]
        scores = torch.as_tensor(ours.result).double()
        error = accuracy.largest(
            scores - torchcorr.zncc(image.double(), template.double(), **masks)
        )
        yield Row(
            "C5", f"zncc {size}²/{window}², {name}", "without masks", "ours / peer",
            ours.ms / plain.ms, bound, Accuracy(error, SCORE[torch.float32]),
            ours=ours, theirs=plain,
        )  # fmt: skip
    size, window = settings.small(128, 32)
    volume = draw((size,) * 3, torch.float32)
    template = volume[(slice(size // 3, size // 3 + window),) * 3].clone()
    place = (2 * torch.arange(window) + 1 - window).square()
    distance = place[:, None, None] + place[:, None] + place
    sphere = (distance <= window**2).float()
    for name, weights in (
        ("a sphere", sphere),
        ("a soft sphere", torch.exp(-distance / window**2) * sphere),
    ):
        peer = ("scikit-image's masked", peers.scikit_image_masked(volume, template, sphere))
        case = f"zncc {size}³/{window}³, {name} as mask"
        how = {"ndim": 3, "template_mask": weights}
        yield score_row(settings, "C5", case, volume, template, peer, None, **how)


Function = Callable[[Tensor, Tensor], Tensor]


def _with_gradients(
    function: Function, image: Tensor, template: Tensor, upstream: Tensor
) -> tuple[Tensor, ...]:
    """Scores and the gradients of both inputs, for leaves that require them."""
    score = function(image, template)
    return score.detach(), *torch.autograd.grad(score, (image, template), upstream)


def c6(settings: Settings) -> Iterator[Row]:
    for whole in ((1024, 64), (2048, 128)):
        size, window = settings.small(*whole)
        image = draw((size, size), torch.float32)
        template = cut(image, window)
        upstream = draw((size - window + 1,) * 2, torch.float32, seed=1)
        leaves = [x.clone().requires_grad_() for x in (image, template)]
        timings = alternate(
            {
                "forward": lambda i=image, t=template: torchcorr.zncc(i, t),
                "ours": partial(_with_gradients, torchcorr.zncc, *leaves, upstream),
                "theirs": partial(_with_gradients, peers.plain_zncc, *leaves, upstream),
            },
            settings.rounds,
        )
        wide = [x.double().requires_grad_() for x in (image, template)]
        exact = _with_gradients(torchcorr.zncc, *wide, upstream.double())
        score, *gradients = timings["ours"].result
        kept, _ = accuracy.score_accuracy(score, image, template)
        if kept.within:
            kept = accuracy.gradient_accuracy(tuple(gradients), exact[1:])
        theirs = accuracy.gradient_accuracy(timings["theirs"].result[1:], exact[1:]).error
        case = f"zncc and both gradients {size}²/{window}²"
        yield ratio_row(
            "C6", case, "plain torch", timings,
            bound=at_least(6), accuracy=kept, peer_error=theirs,
        )  # fmt: skip
        ours, forward = timings["ours"], timings["forward"]
        times = ours.ms / forward.ms
        yield Row(
            "C6", case, "our own forward", "ours / peer", times,
            at_most(3.2), kept, ours=ours, theirs=forward,
        )  # fmt: skip


def c7(settings: Settings) -> Iterator[Row]:
    size = 128 if settings.quick else 1024
    image = draw((size, size), torch.float32)
    for window in (3, 5, 7, 11, 16):
        template = draw((window, window), torch.float32, seed=1)
        timings = alternate(
            {
                "ours": lambda t=template: torchcorr.correlate(image, t),
                "theirs": peers.conv2d(image, template),
            },
            settings.rounds,
        )
        kept, exact, scale = accuracy.correlate_accuracy(timings["ours"].result, image, template)
        theirs = accuracy.largest((timings["theirs"].result - exact) / scale)
        case = f"correlate {size}²/{window}²"
        yield ratio_row(
            "C7", case, "F.conv2d", timings,
            bound=at_least(8), accuracy=kept, peer_error=theirs,
        )  # fmt: skip


def c8(settings: Settings) -> Iterator[Row]:
    for whole, window in ((1024, 31), (4096, 31), (4096, 101)):
        size = max(128, whole // 16) if settings.quick else whole
        image = draw((size, size), torch.float32)
        timings = alternate(
            {
                "ours": lambda i=image, w=window: torchcorr.local_std(i, w, mode="same"),
                "theirs": peers.opencv_std(image, window),
            },
            settings.rounds,
        )
        kept, exact = accuracy.std_accuracy(timings["ours"].result, image, window)
        theirs = accuracy.largest((torch.as_tensor(timings["theirs"].result) - exact) / exact)
        yield ratio_row(
            "C8", f"local_std {size}²/{window}²", "OpenCV boxes and NumPy", timings,
            bound=at_least(4), accuracy=kept, peer_error=theirs,
        )  # fmt: skip
    yield _window_size(settings)


def _window_size(settings: Settings) -> Row:
    """A large window against a small one: the time should hardly depend on it."""
    size = 256 if settings.quick else 4096
    image = draw((size, size), torch.float32)
    timings = alternate(
        {w: lambda w=int(w): torchcorr.local_std(image, w, mode="same") for w in ("101", "7")},
        settings.rounds,
    )
    worst: list[Accuracy] = []
    for window, timing in timings.items():
        worst.append(accuracy.std_accuracy(timing.result, image, int(window))[0])
    large, small = timings["101"], timings["7"]
    case = f"local_std {size}², window 101 against 7"
    return Row(
        "C8", case, "our own window 7", "ours / peer", large.ms / small.ms,
        at_most(1.2), max(worst, key=lambda a: a.error), ours=large, theirs=small,
    )  # fmt: skip


def c9(settings: Settings) -> Iterator[Row]:
    size, window = (32, 5) if settings.quick else (128, 16)
    image = draw((size,) * 3, torch.float32)
    third = slice(size // 3, size // 3 + window)
    template = image[third, third, third].clone()
    peer = ("scikit-image", peers.scikit_image(image, template))
    case = f"zncc 3-D {size}³/{window}³"
    yield score_row(settings, "C9", case, image, template, peer, at_least(10), ndim=3)


def c10(settings: Settings) -> Iterator[Row]:
    for whole, target in ((500, 60), (20_000, 600)):
        size, window = settings.small(1_000_000, whole)
        series = draw((size,), torch.float64)
        query = series[size // 3 :][:window].clone()
        timings = alternate(
            {
                "ours": partial(torchcorr.zncc, series, query, ndim=1),
                "theirs": peers.stumpy_mass(series, query),
            },
            settings.rounds,
        )
        kept, exact = accuracy.score_accuracy(timings["ours"].result, series, query, ndim=1)
        r = torch.from_numpy(peers.coefficients(timings["theirs"].result, window))
        yield ratio_row(
            "C10", f"zncc 1-D float64 {size}/{window}", "stumpy.mass", timings,
            bound=at_least(target), accuracy=kept, peer_error=accuracy.largest(r - exact),
        )  # fmt: skip


def c11(settings: Settings) -> Iterator[Row]:
    for whole in (500, 20_000):
        size, window = settings.small(1_000_000, whole)
        series = draw((size,), torch.float64)
        kernel = draw((window,), torch.float64, seed=1)
        timings = alternate(
            {
                "ours": partial(torchcorr.correlate, series, kernel, ndim=1),
                "theirs": peers.oaconvolve(series, kernel),
            },
            settings.rounds,
        )
        kept, exact, scale = accuracy.correlate_accuracy(
            timings["ours"].result, series, kernel, ndim=1
        )
        theirs = torch.from_numpy(timings["theirs"].result)
        yield ratio_row(
            "C11", f"correlate 1-D float64 {size}/{window}", "scipy oaconvolve", timings,
            bound=at_least(2), accuracy=kept,
            peer_error=accuracy.largest((theirs - exact) / scale),
        )  # fmt: skip


def _loss_gradients(
    loss: Callable[[], Tensor], leaves: tuple[Tensor, Tensor]
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(), leaves)


def i1(settings: Settings) -> Iterator[Row]:
    """C1 against Intel IPP, one thread each."""
    rows = []
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for whole in SIZES:
            size, window = settings.small(*whole)
            image = draw((size, size), torch.float32)
            template = cut(image, window)
            peer = ("Intel IPP", ipp.scores(image, template))
            case = f"zncc {size}²/{window}², one thread"
            rows.append(score_row(settings, "I1", case, image, template, peer, at_least(1)))
            yield rows[-1]
    finally:
        torch.set_num_threads(usual)
    yield mean_row(rows, at_least(1.3))


def l2(settings: Settings) -> Iterator[Row]:
    """A plain sum has less to do than a score."""
    for whole in SIZES:
        size, window = settings.small(*whole)
        image = draw((size, size), torch.float32)
        template = cut(image, window)
        timings = alternate(
            {
                "ours": partial(torchcorr.correlate, image, template),
                "theirs": partial(torchcorr.zncc, image, template),
            },
            settings.rounds,
        )
        ours, theirs = timings["ours"], timings["theirs"]
        kept, *_ = accuracy.correlate_accuracy(ours.result, image, template)
        yield Row(
            "L2", f"correlate {size}²/{window}²", "our own zncc", "ours / peer",
            ours.ms / theirs.ms, at_most(0.9), kept, ours=ours, theirs=theirs,
        )  # fmt: skip


def l3(settings: Settings) -> Iterator[Row]:
    """Windows at the border see a part of the template, which must not cost more than others."""
    for whole in ((512, 32), (1024, 64), (2048, 128)):
        size, window = settings.small(*whole)
        image = draw((size, size), torch.float32)
        template = cut(image, window)
        for mode, most in (("same", 1.25), ("full", 1.5)):
            timings = alternate(
                {
                    "ours": partial(torchcorr.correlate, image, template, mode=mode),
                    "theirs": partial(torchcorr.correlate, image, template),
                },
                settings.rounds,
            )
            ours, theirs = timings["ours"], timings["theirs"]
            before = window - 1 if mode == "full" else window // 2
            after = window - 1 if mode == "full" else (window - 1) // 2
            around = torch.nn.functional.pad(image, (before, after, before, after))
            kept, *_ = accuracy.correlate_accuracy(ours.result, around, template)
            yield Row(
                "L3", f"correlate {mode} {size}²/{window}²", "our own valid", "ours / peer",
                ours.ms / theirs.ms, at_most(most), kept, ours=ours, theirs=theirs,
            )  # fmt: skip


def c14(settings: Settings) -> Iterator[Row]:
    size, window = ((14, 16, 14), 5) if settings.quick else ((96, 112, 96), 9)
    a, b = (draw(size, torch.float32, seed).requires_grad_() for seed in (0, 1))
    loss = torchcorr.nn.LNCCLoss(window, border="zeros", squared=True)
    contestants = {
        "MONAI": (peers.monai_lncc(a, b, window), 8),
        "plain torch, conv3d": (partial(peers.plain_lncc, a, b, window), 100),
    }
    wide = tuple(x.detach().double().requires_grad_() for x in (a, b))
    exact = _loss_gradients(partial(peers.plain_lncc, *wide, window), wide)
    for name, (theirs, target) in contestants.items():
        timings = alternate(
            {
                "ours": partial(_loss_gradients, partial(loss, a, b), (a, b)),
                "theirs": partial(_loss_gradients, theirs, (a, b)),
            },
            settings.rounds,
        )
        case = f"lncc loss and both gradients {'×'.join(map(str, size))}/{window}³"
        yield ratio_row(
            "C14", case, name, timings, bound=at_least(target),
            accuracy=accuracy.gradient_accuracy(timings["ours"].result, exact),
            peer_error=accuracy.gradient_accuracy(timings["theirs"].result, exact).error,
        )  # fmt: skip
    yield from _windows_of_losses(settings, size, window, (a, b))


def _windows_of_losses(
    settings: Settings, size: tuple[int, ...], window: int, leaves: tuple[Tensor, Tensor]
) -> Iterator[Row]:
    """Other windows than MONAI's box with zeros around: their time is a multiple of its."""
    options: dict[str, dict[str, str]] = {
        "box, renormalised": {},
        "Gaussian": {"weights": "gaussian"},
        "Gaussian, mask": {"weights": "gaussian"},
    }
    box = torchcorr.nn.LNCCLoss(window, border="zeros", squared=True)
    for name, how in options.items():
        loss = torchcorr.nn.LNCCLoss(window, squared=True, **how)
        mask = draw(size, torch.float32, 2) > 0.2 if "mask" in name else None
        ours = partial(loss, *leaves, input_mask=mask)
        wide = tuple(x.detach().double().requires_grad_() for x in leaves)
        exact = _loss_gradients(partial(loss, *wide, input_mask=mask), wide)
        timings = alternate(
            {
                "ours": partial(_loss_gradients, ours, leaves),
                "theirs": partial(_loss_gradients, partial(box, *leaves), leaves),
            },
            settings.rounds,
        )
        case = f"lncc loss and both gradients {'×'.join(map(str, size))}/{window}³, {name}"
        mine, theirs = timings["ours"], timings["theirs"]
        yield Row(
            "C14", case, "our own box", "ours / peer", mine.ms / theirs.ms, at_most(2.5),
            accuracy.gradient_accuracy(mine.result, exact), ours=mine, theirs=theirs,
        )  # fmt: skip


CASES: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "C1": c1,
    "C2": c2,
    "C3": c3,
    "C4": c4,
    "C5": c5,
    "C6": c6,
    "C7": c7,
    "C8": c8,
    "C9": c9,
    "C10": c10,
    "C11": c11,
    "C14": c14,
    "I1": i1,
    "L2": l2,
    "L3": l3,
}
