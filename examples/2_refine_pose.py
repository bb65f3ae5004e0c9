"""
Refine a pose by gradient ascent
================================

Scores are differentiable, so the position and the rotation of a template can be refined by
following the gradient of its score, to a small fraction of a pixel.
"""

# %%
# The template is a patch of a photograph, turned by 9 degrees about a centre between pixels, with
# another brightness and contrast, and with noise. It is sampled with SciPy's splines, independently
# of the interpolation that is used below.

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage import data

import torchcorr
from torchcorr.plot import draw_refinement

CENTRE, ANGLE, SIZE = (98.37, 111.64), 9.0, 71


def grid(row, column, angle):
    """Rows and columns ``(SIZE, SIZE)`` of a patch about a centre, turned by degrees."""
    steps = torch.arange(SIZE, dtype=torch.float64) - SIZE // 2
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    turn = torch.deg2rad(angle)
    return row + v * turn.cos() - u * turn.sin(), column + v * turn.sin() + u * turn.cos()


photograph = data.camera()[20:240, 110:330].astype(np.float64)
pose = torch.tensor([*CENTRE, ANGLE], dtype=torch.float64)
places = [axis.numpy() for axis in grid(*pose)]
patch = ndimage.map_coordinates(ndimage.gaussian_filter(photograph, 0.7), places, order=3)
noise = np.random.default_rng(20).normal(scale=2.0, size=patch.shape)
image, template = torch.from_numpy(photograph), torch.from_numpy(0.6 * patch + 40 + noise)

# %%
# The start is the whole-pixel position with the best score, at an angle of 0.

scores = torchcorr.zncc(image, template)
row, column = (n + SIZE // 2 for n in divmod(int(scores.argmax()), scores.shape[1]))

# %%
# ``grid_sample`` samples the photograph at a pose, and LBFGS follows the gradient of the score of
# that sample for the three numbers of the pose. An image as large as its template has a single
# score.


def sample(row, column, angle):
    """The patch ``(SIZE, SIZE)`` of the image at a pose."""
    rows, columns = grid(row, column, angle)
    height, width = image.shape
    places = torch.stack([columns / (width - 1), rows / (height - 1)], dim=-1) * 2 - 1
    how = {"mode": "bicubic", "padding_mode": "border", "align_corners": True}
    return F.grid_sample(image[None, None], places[None], **how)[0, 0]


pose = torch.tensor([row, column, 0], dtype=torch.float64, requires_grad=True)
course = []


def loss():
    optimiser.zero_grad()
    score = torchcorr.zncc(sample(*pose), template).sum()
    course.append((*pose.tolist(), score.item()))
    (-score).backward()
    return -score


optimiser = torch.optim.LBFGS([pose], max_iter=30, line_search_fn="strong_wolfe")
optimiser.step(loss)

pixels = [math.dist(step[:2], CENTRE) for step in course]
degrees = [abs(step[2] - ANGLE) for step in course]
print("2. Refine position and rotation of a template by following the gradient of its score")
for name, at in (("start", 0), ("end", -1)):
    row, column, angle, score = course[at]
    print(
        f"   {name:5} ({row:.2f}, {column:.2f}) at {angle:4.2f} degrees, score {score:.3f}: "
        f"off by {pixels[at]:.3f} pixels and {degrees[at]:.3f} degrees"
    )

# %%
# :func:`torchcorr.estimate_pose` follows the same gradient. It finds its start itself, and a scale
# as well.

found = torchcorr.estimate_pose(image, template)
row, column = (found.shift + SIZE // 2).tolist()
print(
    f"   estimate_pose: ({row:.2f}, {column:.2f}) at {found.angle.item():.2f} degrees, enlarged by "
    f"{found.scale.item():.3f}"
)

# %%
# The differences contain edges at the start, and little but noise at the end.


def standard(values):
    return (values - values.mean()) / values.std()


reference = standard(template.numpy())
poses = torch.tensor([course[0][:3], course[-1][:3]], dtype=torch.float64)
before, after = (standard(sample(*pose).numpy()) for pose in poses)
figure = draw_refinement(
    [
        ("Template", reference - reference.min()),
        (f"Before: off by\n{pixels[0]:.2f} px, {degrees[0]:.1f} deg", before - before.min()),
        ("Template\nminus before", reference - before),
        (f"After: off by\n{pixels[-1]:.2f} px, {degrees[-1]:.2f} deg", after - after.min()),
        ("Template\nminus after", reference - after),
    ],
    [("position (pixels)", pixels), ("rotation (degrees)", degrees)],
    title="Pose of a template, refined by gradient ascent on ZNCC",
)
