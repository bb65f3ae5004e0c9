"""estimate_pose against poses of photographs that SciPy's splines made."""

import math

import numpy as np
import pytest
import torch
from inputs import array, normal, tensor
from scipy import ndimage
from skimage import data
from skimage.transform import rotate

from torchcorr import Pose, estimate_pose
from torchcorr.align.polar import likely_turns

PICTURES = {
    "camera": data.camera(),
    "coins": data.coins(),
    "moon": data.moon(),
    "page": data.page(),
    "grass": data.grass(),
}


def taken(
    picture: np.ndarray,
    size: tuple[int, int],
    angle: float,
    scale: float,
    shift: tuple[float, float],
    size_of_moving: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The middle of a picture, and what lies on it after this pose. Splines of the whole picture
    make both; what is sampled more coarsely than it is blurred before.
    """
    picture = picture.astype(np.float64)
    size = tuple(min(n, m) for n, m in zip(size, picture.shape, strict=True))
    middle = [(n - m) / 2 for n, m in zip(picture.shape, size, strict=True)]
    first = np.mgrid[: size[0], : size[1]] + np.reshape(middle, (2, 1, 1))
    rows, columns = np.mgrid[tuple(slice(n) for n in size_of_moving or size)].astype(float)
    centre = [(n - 1) / 2 for n in rows.shape]
    v, u, turn = rows - centre[0], columns - centre[1], math.radians(angle)
    second = [
        centre[0] + shift[0] + scale * (math.cos(turn) * v - math.sin(turn) * u) + middle[0],
        centre[1] + shift[1] + scale * (math.sin(turn) * v + math.cos(turn) * u) + middle[1],
    ]
    blurred = ndimage.gaussian_filter(picture, 0.5 * math.sqrt(max(scale**2 - 1, 0)))
    return tuple(
        tensor(ndimage.map_coordinates(values, places, order=3, mode="reflect"))
        for values, places in ((picture, first), (blurred, second))
    )


def check(pose: Pose, angle: float, scale: float, shift: tuple[float, float], bound: float) -> None:
    assert pose.found
    assert abs(math.remainder(pose.angle.item() - angle, 360)) < bound
    assert abs(pose.scale.item() / scale - 1) < bound / 50
    np.testing.assert_allclose(array(pose.shift), shift, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("name", "angle", "scale", "shift"),
    [
        ("camera", 180.0, 0.5, (3.0, -11.5)),
        ("coins", -169.8, 0.59, (-8.3, 2.7)),
        ("coins", 90.0, 2.0, (10.0, 10.0)),
        ("moon", -131.4, 1.36, (5.5, -9.1)),
        ("page", 135.5, 0.54, (6.1, 8.8)),
        ("grass", -84.2, 1.06, (-12.5, 13.5)),
    ],
)
def test_known_poses_of_photographs(name, angle, scale, shift):
    reference, moving = taken(PICTURES[name], (190, 210), angle, scale, shift)
    pose = estimate_pose(reference, moving)
    check(pose, angle, scale, shift, 0.02)
    assert pose.score.item() > 0.98
    assert pose.at_limit.item() == (scale in (0.5, 2.0))


def test_contrast_and_noise():
    angle, scale, shift = 73.0, 1.3, (4.0, -6.0)
    reference, moving = taken(PICTURES["camera"], (190, 210), angle, scale, shift)
    spoiled = 40 + 0.5 * moving + 4 * normal(*moving.shape, seed=1)
    check(estimate_pose(reference, spoiled), angle, scale, shift, 0.1)


@pytest.mark.parametrize(
    ("name", "angle", "scale", "shift"),
    [
        ("camera", 30.0, 2.0, (6.3, -4.2)),
        ("moon", 30.0, 2.0, (6.3, -4.2)),
        ("coins", -100.0, 0.5, (3.1, 5.7)),
        ("grass", -100.0, 0.5, (3.1, 5.7)),
    ],
)
def test_noise_in_both_images_at_the_largest_factors(name, angle, scale, shift):
    """Of a fifth of their contrast."""
    pair = taken(PICTURES[name], (190, 210), angle, scale, shift)
    noisy = [v + 0.2 * v.std() * normal(*v.shape, seed=i) for i, v in enumerate(pair)]
    check(estimate_pose(*noisy), angle, scale, shift, 0.1)


def test_the_sign_is_that_of_scikit_image_and_the_matrix_lays_one_on_the_other():
    picture = PICTURES["camera"].astype(np.float64)
    turned = rotate(picture, 20)
    reference, moving = picture[150:330, 100:320], turned[150:330, 100:320]
    pose = estimate_pose(tensor(turned[156:356, 156:356]), tensor(picture[156:356, 156:356]))
    check(pose, 20.0, 1.0, (0.0, 0.0), 0.05)
    pose = estimate_pose(tensor(reference), tensor(moving))
    back = np.linalg.inv(array(pose.matrix))
    laid = ndimage.affine_transform(
        moving, back[:2, :2], back[:2, 2], output_shape=reference.shape, order=3, cval=np.nan
    )
    there = np.isfinite(laid)
    assert np.corrcoef(laid[there], reference[there])[0, 1] > 0.99
    assert abs(there.sum() - pose.overlap.item()) < 0.1 * there.sum()


def test_spectra_tell_the_turn():
    for angle, scale in ((40.0, 0.7), (-110.0, 1.5)):
        reference, moving = taken(PICTURES["moon"], (160, 180), angle, scale, (9.0, -7.0))
        best = likely_turns(reference, moving, math.pi, 2.0, 1)
        assert any(abs(math.remainder(math.degrees(t.angle) - angle, 360)) < 1 for t in best)
        assert all(abs(math.log(t.scale / scale)) < 0.02 for t in best)


def test_a_turned_template_and_limits():
    size = (71, 71)
    reference, moving = taken(PICTURES["camera"], (220, 220), 9.0, 1.0, (60.0, 40.0), size)
    for options in ({}, {"max_angle": 20, "max_scale": 1.0}, {"start": (5, 1.0, 62, 38)}):
        check(estimate_pose(reference, moving, **options), 9.0, 1.0, (60.0, 40.0), 0.05)


def test_batches_are_the_pairs_one_by_one():
    pairs = [
        taken(PICTURES["coins"], (80, 90), angle, scale, (2.0, 3.0))
        for angle, scale in ((30.0, 1.2), (-100.0, 0.9))
    ]
    first, second = (torch.stack(v) for v in zip(*pairs, strict=True))
    together = estimate_pose(first.float(), second.float())
    assert together.matrix.shape == (2, 3, 3) and together.shift.shape == (2, 2)
    for i in range(2):
        alone = estimate_pose(first[i].float(), second[i].float())
        for name in Pose.__dataclass_fields__:
            got, want = getattr(together, name)[i], getattr(alone, name)
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert estimate_pose(first[:0], second[:0]).angle.shape == (0,)


def test_flat_images_have_no_pose():
    pose = estimate_pose(torch.full((30, 30), 0.1), torch.rand(30, 30))
    assert not pose.found
    assert pose.scale.item() == 1 and pose.angle.item() == 0 and pose.score.item() == 0
    torch.testing.assert_close(pose.matrix, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_angle": 190.0}, r"max_angle must lie in \[0, 180\]: got 190.0"),
        ({"max_scale": 0.5}, r"max_scale must lie in \[1, inf\]: got 0.5"),
        ({"start": (1.0, 2.0)}, "start must have 4 numbers: got 2"),
        ({"start": (1.0, 0.0, 0.0, 0.0)}, r"start\[1\] must be positive"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        estimate_pose(torch.rand(30, 30), torch.rand(30, 30), **options)


def test_refuses_images():
    with pytest.raises(ValueError, match="moving must have at least 16 pixels a side"):
        estimate_pose(torch.rand(30, 30), torch.rand(30, 15))
    with pytest.raises(TypeError, match="share one dtype"):
        estimate_pose(torch.rand(30, 30), torch.rand(30, 30).double())
