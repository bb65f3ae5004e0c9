"""
Register two photographs of different contrast
==============================================

:func:`torchcorr.lncc` compares two images window by window, so that neither a contrast nor a
shading that changes across the picture misleads it. Its loss, :class:`torchcorr.nn.LNCCLoss`, works
for images and volumes. Here a photograph is moved, inverted and shaded, and the movement is found
again by gradient descent.
"""

# %%
# The target is the negative of the moved photograph, and its contrast grows threefold from left to
# right.

import matplotlib.pyplot as plt
import torch
from skimage import data

import torchcorr

photograph = torch.from_numpy(data.coins()[:256, :256]).float()[None, None]
size = photograph.shape[-1]


def moved(by):
    """The photograph moved by ``by``: x and y, in halves of its width and height."""
    pose = torch.cat([torch.eye(2), by[:, None]], dim=1)
    grid = torch.nn.functional.affine_grid(pose[None], photograph.shape, align_corners=False)
    return torch.nn.functional.grid_sample(
        photograph, grid, padding_mode="border", align_corners=False
    )


true = torch.tensor([6.0, -8.0]) * 2 / size
contrast = torch.linspace(0.5, 1.5, size)
target = 300 - contrast * moved(true)

# %%
# The loss takes the square of each coefficient, so that a negative counts as a match. LBFGS follows
# its gradient for the two numbers of the movement. The window must be large compared with the
# movement: with a window of 21, this descent would end in a local optimum near the start.

window = 41
loss = torchcorr.nn.LNCCLoss(window, ndim=2, border="valid", squared=True)
by = torch.zeros(2, requires_grad=True)
descent = torch.optim.LBFGS([by], max_iter=40, line_search_fn="strong_wolfe")


def step():
    descent.zero_grad()
    value = loss(moved(by), target)
    value.backward()
    return value


descent.step(step)
found = by.detach()
for name, movement in (("true", true), ("found", found)):
    x, y = (movement * size / 2).tolist()
    print(f"{name:5}  x {x:6.3f}, y {y:6.3f} pixels")

# %%
# The local coefficients show where the pictures agree. Before registration they are far from -1;
# after it they are -1 nearly everywhere, because the target is a negative. Near the upper edge the
# moved photograph repeats its border.

before, after = (torchcorr.lncc(moved(at), target, window)[0, 0] for at in (torch.zeros(2), found))
figure, axes = plt.subplots(2, 2, figsize=(8.5, 7.6), layout="constrained")
panels = (
    ("Photograph", photograph[0, 0], {"cmap": "gray"}),
    ("Target: moved, inverted, shaded", target[0, 0], {"cmap": "gray"}),
    ("Coefficients before registration", before, {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}),
    ("Coefficients after registration", after, {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}),
)
for ax, (title, image, colours) in zip(axes.flat, panels, strict=True):
    shown = ax.imshow(image.numpy(), **colours)
    ax.set(title=title, xticks=[], yticks=[])
figure.colorbar(shown, ax=axes[1], shrink=0.8, label=f"LNCC, window {window}")
