"""Results do not depend on the number of threads, on whose threads they are, or on the process.

`make test` runs this file a second time with `TORCHCORR_OWN_THREADS=1`, for the threads that take
over while PyTorch's come late.
"""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from inputs import draw
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import torchcorr

PAIRS = ("correlate", "convolve", "zncc", "ncc")
MOMENTS = ("local_sum", "local_mean", "local_var", "local_std")
# Input and window of calls that are cut into many units of work, and into many tiles.
LARGE = {
    "1d": ((200_000,), (300,)),
    "2d": ((600, 500), (20, 20)),
    "2d-short-rows": ((150, 160), (17, 15)),
    "3d": ((40, 40, 40), (6, 6, 6)),
}
SMALL = {
    "1d": ((5000,), (40,)),
    "2d": ((90, 110), (9, 12)),
    "2d-wide-window": ((64, 70), (33, 31)),
    "3d": ((14, 15, 16), (4, 3, 5)),
}
CALLS = [(name, method) for name in PAIRS for method in ("direct", "fft")]
CALLS += [(name, None) for name in (*MOMENTS, "lncc", "weighted_lncc")]
SECONDS = 60


def local_pair(x: Tensor, window: tuple[int, ...], *, ndim: int) -> Tensor:
    return torchcorr.lncc(x, x.flip(-1).roll(1), window, ndim=ndim, border="valid")


def weighted_pair(x: Tensor, window: tuple[int, ...], *, ndim: int) -> Tensor:
    mask = x.detach() > 0.3
    return torchcorr.lncc(x, x.flip(-1), window, ndim=ndim, weights="gaussian", mask_a=mask)


PAIRS_OF_WINDOWS = {"lncc": local_pair, "weighted_lncc": weighted_pair}


def results(
    name: str, method: str | None, shapes: tuple[tuple[int, ...], tuple[int, ...]], seed: int = 0
) -> list[Tensor]:
    """Value and gradients of one call."""
    size, window = shapes
    tensors = [draw(size, torch.float32, seed).requires_grad_()]
    ndim = len(size)
    function = PAIRS_OF_WINDOWS.get(name) or getattr(torchcorr, name)
    if method is None:
        out = function(*tensors, window, ndim=ndim)
    else:
        tensors.append(draw(window, torch.float32, seed + 1).requires_grad_())
        out = function(*tensors, ndim=ndim, method=method)
    delta = draw(tuple(out.shape), torch.float32, 2) - 0.5
    return [out.detach(), *torch.autograd.grad(out, tensors, delta)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def seconds_of_other_threads(name: str, method: str | None, size: str) -> tuple[float, float]:
    """CPU time of one call: of all other threads, and of this one."""
    process, thread = time.process_time(), time.thread_time()
    results(name, method, LARGE[size])
    this = time.thread_time() - thread
    return time.process_time() - process - this, this


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize(("name", "method"), CALLS)
def test_runs_and_numbers_of_threads_agree_bit_for_bit(
    name: str, method: str | None, size: str
) -> None:
    torch.set_num_threads(1)
    alone = results(name, method, LARGE[size])
    torch.set_num_threads(2)
    assert same(results(name, method, LARGE[size]), alone)
    assert same(results(name, method, LARGE[size]), alone)


# Inputs and templates of calls with a single transform, which MKL may divide among threads.
SINGLE = {
    "plane": ((66, 83), (13, 42)),
    "flat-plane": ((16, 256), (3, 20)),
    "short-lines": ((300, 9), (40, 4)),
    "large-plane": ((190, 180), (9, 15)),
}


@pytest.mark.parametrize("size", SINGLE)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("name", ("correlate", "zncc", "joint", "masked", "local_var"))
def test_single_transforms_have_the_same_bits_for_all_numbers_of_threads(
    name: str, dtype: torch.dtype, size: str
) -> None:
    shape, window = SINGLE[size]
    # Levels of inputs are sums of many elements.
    x = (draw(shape, dtype) + 1000).requires_grad_()
    w, mask, weights = (draw(window, dtype, 1), draw(shape, dtype, 2), draw(window, dtype, 3))
    calls = {
        "correlate": lambda: torchcorr.correlate(x, w, method="fft"),
        "zncc": lambda: torchcorr.zncc(x, w, method="fft"),
        "joint": lambda: torchcorr.zncc(
            torch.stack([x, 2 * x.flip(-1)]), torch.stack([w, w.flip(0)]), channels="joint"
        ),
        "masked": lambda: torchcorr.zncc(
            x, w, method="fft", input_mask=mask, template_mask=weights
        ),
        "local_var": lambda: torchcorr.local_var(x, weights),
    }
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = calls[name]()
        (grad,) = torch.autograd.grad(out, x, draw(tuple(out.shape), dtype, 4) - 0.5)
        found.append([out.detach(), grad])
    assert all(same(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("name", ("correlate", "zncc"))
def test_no_transform_of_a_long_line_is_divided(name: str, dtype: torch.dtype) -> None:
    """MKL divides one among as many threads as it was told to, also inside a worker."""
    lines, windows = draw((2, 1, 100_000), dtype), draw((3, 4000), dtype, 1)
    found = []
    for threads in (1, 2, 2, 2, 2, 3, 3, 3, 3):
        torch.set_num_threads(threads)
        one = getattr(torchcorr, name)(lines[0, 0], windows[0], ndim=1, method="fft")
        all_of_them = getattr(torchcorr, name)(lines, windows, ndim=1, method="fft")
        found.append([one, all_of_them])
    assert all(same(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("hard", (False, True), ids=("easy", "hard"))
@pytest.mark.parametrize("size", LARGE)
def test_gradients_of_scores_do_not_depend_on_which_worker_is_first(size: str, hard: bool) -> None:
    """Units of tiles are ready in any order; with hard ones among them, in float64."""
    shape, window = LARGE[size]
    image = draw((2, 1, *shape), torch.float32)
    if hard:
        image.view(-1)[image.numel() // 3] = 1e6
    tensors = [image.requires_grad_(), draw((2, *window), torch.float32, 1).requires_grad_()]
    score = torchcorr.zncc(*tensors, ndim=len(shape), method="fft")
    delta = draw(tuple(score.shape), torch.float32, 2) - 0.5
    grads = []
    for threads in (1, 2, 3, 4, 4, 4):
        torch.set_num_threads(threads)
        again = torch.autograd.grad(score, tensors, delta, retain_graph=True)
        grads.append([*again])
    assert all(same(other, grads[0]) for other in grads[1:])


@pytest.mark.parametrize("method", ("direct", "fft"))
def test_joint_channels_have_the_same_bits_for_all_numbers_of_threads(method: str) -> None:
    offset = torch.tensor([0.0, 1e3, -5.0]).view(3, 1, 1)
    image = (draw((2, 1, 3, 400, 380), torch.float32) + offset).requires_grad_()
    image.data[0, 0, 1, 200:, :100] *= 1e-4
    template = draw((2, 3, 20, 20), torch.float32, 1).requires_grad_()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        score = torchcorr.zncc(image, template, channels="joint", method=method)
        delta = draw(tuple(score.shape), torch.float32, 2) - 0.5
        found.append([score.detach(), *torch.autograd.grad(score, (image, template), delta)])
    assert all(same(other, found[0]) for other in found[1:])


@pytest.mark.parametrize(("name", "method"), CALLS)
def test_one_thread_does_all_the_work_of_one(name: str, method: str | None) -> None:
    torch.set_num_threads(1)
    # Threads of an earlier call may still poll for work.
    time.sleep(0.02)
    others, this = seconds_of_other_threads(name, method, "2d")
    assert others <= 0.05 * this + 1e-3


def test_two_threads_share_the_work() -> None:
    """Otherwise the test above could pass because it reads the wrong clock."""
    torch.set_num_threads(2)
    others, this = seconds_of_other_threads("zncc", "direct", "2d")
    assert others >= 0.2 * this


def test_concurrent_callers_get_the_results_of_one() -> None:
    jobs = [
        (name, method, shapes, seed)
        for seed in range(3)
        for name, method in CALLS
        for shapes in SMALL.values()
    ]
    alone = [results(*job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            together = [pool.submit(results, *job) for job in jobs]
            for future, want in zip(together, alone, strict=True):
                assert same(future.result(SECONDS), want)


def test_calls_leave_the_number_of_threads_as_it_was() -> None:
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for name, method in CALLS:
            results(name, method, LARGE["2d"])
            assert torch.get_num_threads() == threads


def test_a_call_inside_another_leaves_its_number_of_threads() -> None:
    from torchcorr._cpu.threads import without_late_threads

    @without_late_threads
    def inner(x: Tensor) -> int:
        return torch.get_num_threads()

    @without_late_threads
    def outer(x: Tensor) -> list[int]:
        return [torch.get_num_threads(), inner(x), torch.get_num_threads()]

    torch.set_num_threads(2)
    before, during, after = outer(draw((600, 500), torch.float32))
    assert before == during == after
    assert torch.get_num_threads() == 2


def test_a_call_that_fails_leaves_the_number_of_threads_as_it_was() -> None:
    from torchcorr._cpu.threads import without_late_threads

    @without_late_threads
    def fail(x: Tensor) -> None:
        raise ValueError("as it must")

    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="as it must"):
        fail(draw((600, 500), torch.float32))
    assert torch.get_num_threads() == 2


class Scored(Dataset):
    """A data set whose workers make one call of each kind for an item."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: int) -> list[Tensor]:
        tensors = []
        for name, method in CALLS:
            tensors += results(name, method, ((150, 160), (17, 15)), item)
        return tensors


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_forked_workers_get_the_results_of_their_parent() -> None:
    """The parent's threads do not exist in a forked child; a kernel that waits for them hangs."""
    torch.set_num_threads(2)
    results("zncc", "fft", LARGE["2d"])
    want = [Scored()[i] for i in range(len(Scored()))]
    loader = DataLoader(
        Scored(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=SECONDS
    )
    for got, wanted in zip(loader, want, strict=True):
        assert same(got, wanted)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("name", PAIRS)
def test_a_fork_shares_its_work_among_threads_of_its_own(name: str) -> None:
    """OpenMP waits for ever for the threads that its parent had."""

    def found() -> list[np.ndarray]:
        shapes = (LARGE["2d-short-rows"], ((170, 190), (9, 9)))
        return [x.numpy() for shape in shapes for x in results(name, "fft", shape)]

    torch.set_num_threads(2)
    results(name, "fft", LARGE["2d"])
    want = found()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS // 6)
        equal = all((x == y).all() for x, y in zip(found(), want, strict=True))
        os._exit(0 if equal else 1)
    assert os.waitpid(child, 0)[1] == 0
