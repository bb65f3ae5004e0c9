"""
Register by a smooth displacement field, with masks
===================================================

Where a view has changed, or tissue has moved, no shift and no rotation lays one picture on another:
every place moves by itself, though neighbours move together. :class:`torchcorr.nn.LNCCLoss`
compares the two in a window around each pixel, so that neither needs the brightness of the other,
and its masks leave out what only one of them shows.
"""

# %%
# The pictures are the two views of ``stereo_motorcycle`` from scikit-image at half their size. Its
# disparities, measured with structured light, tell the error at the end: the pixel at column x of
# the left view is at x - d of the right one, with d from 4 to 30. The right view is shaded here,
# and a caption, as cameras and scanners print it, hides the same place of both.

import matplotlib.pyplot as plt
import torch
from skimage import data
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate, max_pool2d

import torchcorr

arrays = [torch.from_numpy(array)[:496, :736] for array in data.stereo_motorcycle()]
left, right = (avg_pool2d(view.float().mean(-1)[None, None], 2) for view in arrays[:2])
disparity = arrays[2][None, None, ::2, ::2] / 2
height, width = left.shape[2:]
right = right * torch.linspace(1.0, 0.4, width) + torch.linspace(20, 80, height)[:, None]

text = torch.from_numpy(data.page()[10:70, 4:244]).float()[None, None]
caption = (..., slice(height - 38, height - 8), slice(width - 128, width - 8))
left[caption] = right[caption] = avg_pool2d(text, 2)
valid = torch.ones_like(left)
valid[caption] = 0

# %%
# The field is a displacement in pixels at each of some knots, and bicubic between them. It is found
# from coarse to fine: first few knots, on pictures pooled by 8, then on each step twice as many
# knots along each axis and pictures twice as large, with one window of 9 x 9 at all scales. Adam
# follows the gradient of the loss and of a small penalty on differences between neighbouring knots,
# which fills places without texture and behind the caption.
#
# The caption does not move, so without a mask it is a perfect match at no displacement. The mask is
# the same for both views; that of the right view is bent with it, and zero outside, so that pixels
# that leave the view do not count either.


def bent(image, knots, padding_mode):
    """An image, pooled or not, sampled where the field leads; displacements are full pixels."""
    size = image.shape[2:]
    still = affine_grid(torch.eye(2, 3)[None], image.shape, align_corners=False)
    field = interpolate(knots, size, mode="bicubic", align_corners=True)
    grid = still + field.permute(0, 2, 3, 1) * torch.tensor([2 / width, 2 / height])
    return grid_sample(image, grid, padding_mode=padding_mode, align_corners=False)


def register(masked):
    loss = torchcorr.nn.LNCCLoss(9, ndim=2, weights="gaussian")
    knots = torch.zeros(1, 2, 4, 6)
    for scale, rate in ((8, 0.5), (4, 0.5), (2, 0.3), (1, 0.2)):
        target, moving, mask = (avg_pool2d(image, scale) for image in (left, right, valid))
        size = (32 // scale, 48 // scale)
        knots = interpolate(knots, size, mode="bicubic", align_corners=True).requires_grad_()
        descent = torch.optim.Adam([knots], lr=rate)
        for _ in range(100):
            descent.zero_grad()
            masks = {}
            if masked:
                seen = bent(mask, knots.detach(), "zeros")
                masks = {"input_mask": seen, "target_mask": mask}
            score = loss(bent(moving, knots, "border"), target, **masks)
            rough = knots.diff(dim=2).square().mean() + knots.diff(dim=3).square().mean()
            (score + 0.003 * rough).backward()
            descent.step()
        knots = knots.detach()
    return knots


def errors(knots):
    """Distances from the true displacement, -d along x, in pixels."""
    x, y = interpolate(knots, (height, width), mode="bicubic", align_corners=True)[0]
    return torch.hypot(x + disparity[0, 0], y)


known = disparity[0, 0].isfinite()
zero = torch.zeros(1, 2, 4, 6)
shift = zero.clone()
shift[:, 0] = -disparity[0, 0][known].median()
found = register(masked=True)
misses = {
    "before": errors(zero),
    "the median as one shift": errors(shift),
    "field, without masks": errors(register(masked=False)),
    "field, with masks": errors(found),
}


def table(title, where, names):
    print(f"{title}: {float(where[known].float().mean()):.0%} of the pixels")
    for name in names:
        miss = misses[name][where & known]
        near = ", ".join(f"{(miss < d).float().mean():3.0%} within {d}" for d in (1, 3))
        print(f"   {name:23}  median {miss.median():5.2f} pixels, {near}")


table("12. Register two views by a smooth field", known, misses)

# %%
# A smooth field cannot follow the outlines of objects, where the displacement jumps, and behind
# them lie pixels that only the left view shows; these have counted too. The numbers far from jumps
# leave out 8 pixels around each 3 x 3 pixels whose disparity varies by more than 1 or is not known.

jumps = max_pool2d(disparity, 3, 1, 1) + max_pool2d(-disparity, 3, 1, 1) > 1
near = max_pool2d(jumps.float(), 17, 1, 8)[0, 0] > 0
fields = list(misses)[2:]
table("Far from jumps", ~near, fields)
table("Behind the caption or near", max_pool2d(1 - valid, 17, 1, 8)[0, 0] > 0, fields)

# %%
# The masks leave out what is white in the third picture. There the bench and the wall are drawn
# along with the seat in front of them: error is left around the motorcycle and between its spokes.
# A search of each pixel's disparity, as in :doc:`5_depth_from_stereo`, is not bound to be smooth.
# Pixels of unknown disparity are white in the maps of the error.

seen = bent(valid, found, "zeros") > 0.5
laid = bent(right, found, "border").where(seen, torch.nan)
views = {"left view": left, "right view, shaded": right, "right view, laid on the left": laid}
figure, axes = plt.subplots(2, 3, figsize=(12, 6.2), layout="constrained")
for axis, (title, image) in zip(axes[0], views.items(), strict=True):
    axis.imshow(image[0, 0], cmap="gray")
    axis.set_title(title)
colours = {"cmap": "magma", "norm": "log", "vmin": 0.1, "vmax": 30}
for axis, name in zip(axes[1], ("before", *fields), strict=True):
    shown = axis.imshow(misses[name].where(known, torch.nan), **colours)
    axis.set_title(f"error: {name}")
for axis in axes.flat:
    axis.set_axis_off()
bar = figure.colorbar(shown, ax=axes, shrink=0.45, pad=0.01, anchor=(0, 0.08), label="pixels")
bar.set_ticks([0.1, 1, 10], labels=["0.1", "1", "10"])

# %%
# A volume is registered in the same way, with one more axis. scikit-image has no small volume, so
# this one is made of a photograph, ``gravel``: its planes are the same part of it, turned further
# and further. The second one is bent by a known field, darker towards its last plane, and lacks a
# corner.

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


torch.manual_seed(1)
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
