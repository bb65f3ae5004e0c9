"""The drift of stacks whose frames were shifted by Fourier transform."""

import numpy as np
import pytest
import torch
from inputs import array, normal, tensor
from scipy import ndimage
from skimage import data

from torchcorr import register_stack


def drifting(count: int, noise: float, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Frames of a photograph that drifts by a random walk, and the shifts that undo it."""
    rng = np.random.default_rng(seed)
    picture = ndimage.gaussian_filter(data.camera().astype(np.float64), 1.0)
    walk = np.cumsum(rng.normal(scale=1.5, size=(count, 2)) + (0.8, -1.1), axis=0)
    walk -= walk[0]
    spectrum = np.fft.fftn(picture)
    frames = [
        np.fft.ifftn(ndimage.fourier_shift(spectrum, -step)).real[150:260, 160:280] for step in walk
    ]
    return tensor(np.stack(frames) + noise * rng.normal(size=(count, 110, 120))), walk


@pytest.mark.parametrize(("noise", "bound"), [(0.0, 0.02), (20.0, 0.1)])
def test_drift_of_a_photograph(noise, bound):
    frames, walk = drifting(15, noise, 1)
    drift = register_stack(frames)
    np.testing.assert_allclose(array(drift.shifts), walk, atol=bound)
    assert bool(drift.found.all()) and bool((drift.scores > 0.85).all())


def test_the_mean_has_less_noise():
    frames, _ = drifting(15, 20.0, 2)
    clean, _ = drifting(15, 0.0, 2)
    drift = register_stack(frames, max_step=8)
    covered = drift.count == 15
    assert covered.sum() > 2000
    error = (drift.mean - clean[0])[covered].std().item()
    assert error < 20 / np.sqrt(15) * 1.3


def test_later_rounds_undo_the_errors_of_steps():
    frames, walk = drifting(25, 40.0, 3)
    errors = [np.abs(array(register_stack(frames, rounds=r).shifts) - walk).max() for r in (1, 3)]
    assert errors[1] <= errors[0] < 1


def test_frames_without_a_pattern_and_other_dimensions():
    scene = normal(90, seed=4)
    frames = torch.stack([scene[k : k + 60] for k in (0, 3, 5, 11)])
    frames[2] = 7.0
    drift = register_stack(frames, ndim=1)
    assert drift.found.tolist() == [True, True, False, True]
    torch.testing.assert_close(
        drift.shifts.flatten(), torch.tensor([0.0, 3, 3, 11]).double(), rtol=0, atol=1e-6
    )
    assert drift.count[:3].tolist() == [1, 1, 1] and drift.count[20] == 3
    volume = normal(16, 17, 18, seed=5)
    frames = torch.stack([volume[k : k + 12, 1:14, k : k + 14] for k in (0, 2)])
    assert register_stack(frames, ndim=3).shifts[1].tolist() == pytest.approx([2, 0, 2], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ndim": 1}, "frames must have 2 axes"),
        ({"rounds": 0}, "rounds must be at least 1: got 0"),
        ({"max_step": -1}, "max_step must be at least 0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        register_stack(torch.rand(3, 9, 9), **options)


def test_scores_are_those_with_the_other_frames():
    scene = normal(70, 70, seed=6)
    frames = torch.stack([scene[:60, :60], scene[5:65, 3:63] + normal(60, 60, seed=7)])
    drift = register_stack(frames)
    of_first, of_second = frames[0][5:, 3:].flatten(), frames[1][:-5, :-3].flatten()
    wanted = np.corrcoef(array(of_first), array(of_second))[0, 1]
    np.testing.assert_allclose(array(drift.scores), wanted, atol=0.02)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_single_frame_is_its_own_mean(rounds):
    frame = normal(9, 8, seed=1)
    drift = register_stack(frame[None], rounds=rounds)
    torch.testing.assert_close(drift.mean, frame, rtol=0, atol=1e-12)
    assert drift.found.tolist() == [True] and drift.scores.tolist() == [1.0]
    assert drift.shifts.tolist() == [[0.0, 0.0]] and bool((drift.count == 1).all())


def test_the_first_frame_of_one_round():
    drift = register_stack(normal(9, 8, seed=1).expand(3, 9, 8), rounds=1)
    torch.testing.assert_close(drift.scores, torch.ones_like(drift.scores), rtol=0, atol=1e-9)
