"""
Register by a smooth displacement field, with masks
===================================================

Where tissue or a lens has bent a picture, no shift and no rotation lays it on another one: every
place moves by itself, though neighbours move together. :class:`torchcorr.nn.LNCCLoss` compares the
two in a window around each pixel, so that neither needs the brightness of the other, and its masks
leave out what only one of them shows.
"""

# %%
# The photograph is ``retina`` from scikit-image. The second picture is the same photograph bent by
# a known field, so that the error can be told at the end; it is brighter on one side, its contrast
# is weaker, and a reflection hides a part of it. Only pixels of the round field of view count.

import matplotlib.pyplot as plt
import torch
from skimage import data
from torch.nn.functional import affine_grid, grid_sample, interpolate

import torchcorr

size = 176
green = torch.from_numpy(data.retina()[..., 1]).float()[None, None]
photograph = interpolate(green, (size, size), mode="area")
still = affine_grid(torch.eye(2, 3)[None], photograph.shape, align_corners=False)


def bent(image, knots):
    """An image sampled where a field of displacements, given at a few knots in pixels, leads."""
    field = interpolate(knots, (size, size), mode="bicubic", align_corners=True)
    grid = still + field.permute(0, 2, 3, 1) * 2 / size
    return grid_sample(image, grid, padding_mode="border", align_corners=False), field


torch.manual_seed(1)
true = 4.0 * torch.randn(1, 2, 5, 5)
ramp = torch.linspace(0.4, 1.0, size)
target, true_field = bent(photograph, true)
target = 60 + 0.5 * ramp * target

y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
eye = ((y - size / 2) ** 2 + (x - size / 2) ** 2 < (0.46 * size) ** 2).float()[None, None]
reflection = (y - 110) ** 2 + (x - 60) ** 2 < 18**2
target[:, :, reflection] = 255.0
valid = eye * ~reflection

# %%
# The field is one displacement at each of 7 x 7 knots, and bicubic between them: smooth by itself,
# with 98 numbers to find. Adam follows the gradient of the loss. The mask of the photograph is bent
# as the photograph is, so that gradients come from pixels that both pictures have.


def register(window, mask):
    knots = torch.zeros(1, 2, 7, 7, requires_grad=True)
    loss = torchcorr.nn.LNCCLoss(window, ndim=2, weights="gaussian")
    descent = torch.optim.Adam([knots], lr=0.3)
    for _ in range(150):
        descent.zero_grad()
        moving, _ = bent(photograph, knots)
        seen, _ = bent(eye, knots.detach())
        masks = {"input_mask": seen, "target_mask": mask} if mask is not None else {}
        loss(moving, target, **masks).backward()
        descent.step()
    return bent(photograph, knots.detach())


def error(field):
    """Root mean square distance from the true field, over pixels that count."""
    square = (field - true_field).square().sum(1, keepdim=True)
    return float(((square * valid).sum() / valid.sum()).sqrt())


found, found_field = register(31, valid)
_, blind_field = register(31, None)
print("12. Undo a smooth deformation between two pictures of different brightness")
print(f"   error before        {error(torch.zeros_like(true_field)):.2f} pixels")
print(f"   error with masks    {error(found_field):.2f} pixels")
print(f"   error without masks {error(blind_field):.2f} pixels")

# %%
# A volume is registered in the same way, with one more axis. scikit-image has no small volume, so
# this one is made of another photograph, ``gravel``: its planes are the same part of it, turned
# further and further. The second one is bent, darker towards its last plane, and lacks a corner.

gravel = torch.from_numpy(data.gravel()[:384, :384]).float()[None, None]
part = interpolate(gravel, (64, 64), mode="area")[0, 0]
angles = torch.linspace(-0.5, 0.5, 24)
turns = torch.stack([torch.stack([a.cos(), -a.sin(), a.sin(), a.cos()]).view(2, 2) for a in angles])
poses = torch.cat([turns, torch.zeros(24, 2, 1)], dim=2)
planes = part.expand(24, 1, 64, 64)
grid = affine_grid(poses, planes.shape, align_corners=False)
volume = grid_sample(planes, grid, padding_mode="border", align_corners=False)[:, 0][None, None]
depth = volume.shape[2:]
still3 = affine_grid(torch.eye(3, 4)[None], volume.shape, align_corners=False)
per_axis = torch.tensor([2 / n for n in reversed(depth)])


def bent_volume(knots):
    field = interpolate(knots, depth, mode="trilinear", align_corners=True)
    grid = still3 + field.permute(0, 2, 3, 4, 1) * per_axis
    return grid_sample(volume, grid, padding_mode="border", align_corners=False), field


true3 = 1.5 * torch.randn(1, 3, 3, 4, 4)
target3, true_field3 = bent_volume(true3)
target3 = 20 + target3 * torch.linspace(1.0, 0.4, depth[0])[:, None, None]
valid3 = torch.ones_like(volume)
valid3[..., :10, :24, :24] = 0
target3 = target3.masked_fill(valid3 == 0, 0.0)

knots3 = torch.zeros(1, 3, 3, 4, 4, requires_grad=True)
loss3 = torchcorr.nn.LNCCLoss(11)
descent3 = torch.optim.Adam([knots3], lr=0.1)
for _ in range(80):
    descent3.zero_grad()
    loss3(bent_volume(knots3)[0], target3, target_mask=valid3).backward()
    descent3.step()
_, found_field3 = bent_volume(knots3.detach())

for name, field in (("before", torch.zeros_like(true_field3)), ("after ", found_field3)):
    square = (field - true_field3).square().sum(1, keepdim=True)
    miss = float(((square * valid3).sum() / valid3.sum()).sqrt())
    print(f"   volume, error {name} {miss:.2f} voxels")

# %%
# Differences of the pictures, after the brightness of both is taken out of them by their local mean
# and deviation, with the same masks.


def standard(image, mask):
    mean = torchcorr.local_mean(image, 31, mode="same", input_mask=mask)
    std = torchcorr.local_std(image, 31, mode="same", input_mask=mask, eps=1.0)
    return ((image - mean) / std)[0, 0].masked_fill(mask[0, 0] == 0, torch.nan)


figure, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
axes[0].imshow(photograph[0, 0], cmap="gray")
axes[0].set_title("photograph")
axes[1].imshow(target[0, 0], cmap="gray", vmax=180)
step = slice(8, None, 16)
arrows = found_field[0, :, step, step]
axes[1].quiver(
    x[step, step], y[step, step], arrows[0], arrows[1],
    color="tab:orange", angles="xy", scale_units="xy", scale=0.5, width=0.006,
)  # fmt: skip
axes[1].set_title("bent and shaded; field found")
for axis, image, title in ((axes[2], photograph, "before"), (axes[3], found, "after")):
    axis.imshow(standard(image, valid) - standard(target, valid), cmap="RdBu_r", vmin=-3, vmax=3)
    axis.set_title(f"difference {title}")
for axis in axes:
    axis.set_axis_off()
