"""The soft shift against its definition, its gradients, and a delay that is learned."""

import numpy as np
import pytest
import torch
from inputs import array, normal, tensor

from torchcorr import soft_shift


@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_soft_shift_is_its_definition(temperature):
    x, y = array(normal(12, 13, seed=1)), array(normal(12, 13, seed=2))
    scores = np.zeros((5, 7))
    for i, j in np.ndindex(5, 7):
        window = x[i : i + 8, j : j + 7]
        scores[i, j] = np.corrcoef(window.ravel(), y[2:-2, 3:-3].ravel())[0, 1]
    weights = np.exp(scores / temperature)
    weights /= weights.sum()
    wanted = [(weights.sum(1) * np.arange(-2, 3)).sum(), (weights.sum(0) * np.arange(-3, 4)).sum()]
    got = soft_shift(*map(tensor, (x, y)), max_shift=(2, 3), temperature=temperature)
    np.testing.assert_allclose(array(got), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gradients_of_the_soft_shift(ndim):
    size = {1: (11,), 2: (5, 6), 3: (4, 4, 3)}[ndim]
    pair = [normal(2, *size, seed=seed).requires_grad_() for seed in (1, 2)]

    def shift(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return soft_shift(x, y, ndim=ndim, max_shift=1, temperature=0.3)

    assert shift(*pair).shape == (2, ndim)
    assert torch.autograd.gradcheck(shift, pair)
    assert torch.autograd.gradgradcheck(shift, pair)


def test_a_cold_one_is_the_best_lag():
    source = normal(30, 32, seed=3)
    got = soft_shift(source[3:27, 1:29], source[1:25, 4:32], max_shift=5, temperature=1e-3)
    torch.testing.assert_close(got, torch.tensor([-2.0, 3.0]).double(), rtol=0, atol=1e-6)


def test_a_delay_is_learned():
    """A delay of a filter is found by following the gradient of the soft shift."""
    time = torch.arange(120, dtype=torch.float64)

    def pulse(at: torch.Tensor) -> torch.Tensor:
        return (-0.5 * ((time - at) / 3) ** 2).exp()

    target = pulse(torch.tensor(67.3))
    delay = torch.tensor(60.0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([delay], lr=0.3)
    for _ in range(60):
        optimiser.zero_grad()
        loss = soft_shift(target, pulse(delay), ndim=1, max_shift=12, temperature=0.02).square()
        loss.sum().backward()
        optimiser.step()
    assert delay.item() == pytest.approx(67.3, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_shift": 10}, "max_shift must leave a middle along every axis"),
        ({"max_shift": 2, "temperature": 0.0}, "temperature must be positive and finite: got 0.0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        soft_shift(torch.rand(20), torch.rand(20), ndim=1, **options)
    with pytest.raises(ValueError, match="reference and moving must have the same window axes"):
        soft_shift(torch.rand(20), torch.rand(21), ndim=1, max_shift=2)
