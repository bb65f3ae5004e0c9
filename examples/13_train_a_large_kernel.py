"""
Train a network with a large kernel
===================================

A layer with a kernel of 31 × 31 sees a texture as a whole, but its convolution is slow, above all
its gradients. :func:`torchcorr.nn.convert` puts :class:`torchcorr.nn.Conv2d` in the place of
PyTorch's layers: the network learns the same, step for step, in less time.
"""

# %%
# Patches of three textures from scikit-image are to be told apart. Each patch has a brightness of
# its own, so that only the texture helps.

import copy
import resource
import time

import matplotlib.pyplot as plt
import torch
from skimage import data

import torchcorr

torch.manual_seed(0)
names = ("brick", "grass", "gravel")
side, steps, batch = 64, 20, 12
textures = [torch.from_numpy(getattr(data, name)()).float() / 255 for name in names]


def draw_batch(generator):
    """Patches (batch, 1, side, side), and which texture each is cut from."""
    kinds = torch.randint(3, (batch,), generator=generator)
    corners = torch.randint(512 - side, (batch, 2), generator=generator).tolist()
    patches = [
        textures[kind][y : y + side, x : x + side]
        for kind, (y, x) in zip(kinds.tolist(), corners, strict=True)
    ]
    gains = 0.5 + torch.rand(batch, 1, 1, generator=generator)
    return (gains * torch.stack(patches))[:, None], kinds


# %%
# The network: a few filters, the large kernel on each of their maps, the power of what comes out.


class Network(torch.nn.Module):
    def __init__(self, channels=8):
        super().__init__()
        self.first = torch.nn.Conv2d(1, channels, 5, padding=2)
        self.large = torch.nn.Conv2d(channels, channels, 31, padding=15, groups=channels)
        self.norm = torch.nn.BatchNorm2d(channels)
        self.last = torch.nn.Linear(channels, len(names))

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = self.norm(x + self.large(x))
        return self.last(x.square().mean((-2, -1)))


theirs = Network()
ours = torchcorr.nn.convert(copy.deepcopy(theirs))


def train(network):
    """The loss of each step, and milliseconds of the median step."""
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses, times = [], []
    for _ in range(steps):
        patches, kinds = draw_batch(generator)
        start = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(network(patches), kinds)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        times.append(1e3 * (time.perf_counter() - start))
        losses.append(loss.item())
    return losses, sorted(times)[steps // 2]


def peak():
    """The most memory that the process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# %%
# Both are trained on the same patches, ours first: the peak of the process only grows.

print("13. Train a network with a layer of 31 x 31")
before = peak()
results, peaks = {}, {}
for name, network in (("torchcorr", ours), ("PyTorch", theirs)):
    results[name] = train(network)
    peaks[name] = peak() - before
    losses, step = results[name]
    print(
        f"   {name}: loss {losses[0]:.4f} to {losses[-1]:.4f}, {step:.0f} ms a step, "
        f"peak {peaks[name]:.0f} MiB above the start"
    )
curves = torch.tensor([results[name][0] for name in results])
print(f"   largest difference of the losses: {float((curves[0] - curves[1]).abs().max()):.1e}")
print(f"   {results['PyTorch'][1] / results['torchcorr'][1]:.1f} times as fast")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for (name, (losses, _)), style in zip(results.items(), ("-", "--"), strict=True):
    axes[0].plot(losses, style, label=name)
axes[0].set_xlabel("step")
axes[0].set_ylabel("loss")
axes[0].legend()
axes[1].bar(list(results), [step for _, step in results.values()])
axes[1].set_ylabel("milliseconds a step")
