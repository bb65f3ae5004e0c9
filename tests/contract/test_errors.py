"""Bad input is refused in Python: the rule, the argument's name and what was given."""

from __future__ import annotations

import pytest
import torch
from inputs import array, says

import torchcorr

PAIRS = ("correlate", "convolve", "zncc", "ncc")
SCORES = ("zncc", "ncc")
MOMENTS = ("local_sum", "local_mean", "local_var", "local_std", "flat_windows")
# Shapes of the tensors that each function takes first; () stands for a window.
TENSORS = {
    "match_template": ((8, 9), (3, 4)),
    "find_peaks": ((8, 9),),
    "estimate_shift": ((8, 9), (8, 9)),
    "cross_correlation": ((8, 9), (8, 9)),
    "phase_correlation": ((8, 9), (8, 9)),
    "register_stack": ((3, 8, 9),),
    "distance_profile": ((9,), (4,)),
    "closest_windows": ((9,), (4,)),
    "match_filter": ((2, 9), (3, 2, 4)),
    "lncc": ((8, 9), (8, 9), ()),
    "plan": ((8, 9), (3, 4)),
    **dict.fromkeys(PAIRS, ((8, 9), (3, 4))),
    **dict.fromkeys(MOMENTS, ((8, 9), ())),
}
MODULES = {"ZNCC": (3, 4), "Correlate": (3, 4), "LNCCLoss": ()}


def image(dtype=None):
    return torch.ones(8, 9, dtype=dtype)


def template(dtype=None):
    return torch.ones(3, 4, dtype=dtype)


def arguments(*shapes):
    """Tensors of some shapes; a window of 3 for an empty one."""
    return [torch.ones(shape) if shape else 3 for shape in shapes]


def second(name):
    return "kernel" if name == "convolve" else "template"


def refused(kind, name, *words, first=None, other=None, **options):
    first = image() if first is None else first
    if other is None:
        other = 3 if name in MOMENTS else template()
    with pytest.raises(kind, match=says(*words)):
        getattr(torchcorr, name)(first, other, **options)


@pytest.mark.parametrize("name", PAIRS)
def test_a_larger_template_is_never_swapped(name):
    with pytest.raises(
        ValueError,
        match=rf"^{second(name)} is larger than input along axis -1: got 65, input has 64$",
    ):
        getattr(torchcorr, name)(torch.ones(64, 64), torch.ones(3, 65))
    refused(ValueError, name, second(name), "axis -2", "9", "8", other=torch.ones(9, 3))


@pytest.mark.parametrize("name", MOMENTS)
def test_a_larger_window(name):
    refused(ValueError, name, "window is larger than input along axis -2", "9", "8", other=(9, 2))


@pytest.mark.parametrize("name", PAIRS)
def test_an_empty_window(name):
    refused(ValueError, name, second(name), "empty", "(0, 3)", other=torch.ones(0, 3))


@pytest.mark.parametrize("name", PAIRS + MOMENTS)
def test_an_empty_input(name):
    refused(ValueError, name, "input", "0", first=torch.ones(8, 0), mode="full")


WORDS = [(n, k) for n in PAIRS + MOMENTS for k in ("mode", "channels", "pad_mode")]


@pytest.mark.parametrize(("name", "key"), WORDS + [(name, "method") for name in PAIRS])
def test_an_unknown_word(name, key):
    refused(ValueError, name, f"{key} must be one of", "'sideways'", **{key: "sideways"})


@pytest.mark.parametrize("name", PAIRS)
def test_leading_axes_that_do_not_broadcast(name):
    words = ("leading axes", "input", "template", "broadcast", "(2, 3)", "(2, 4)")
    other = torch.ones(2, 4, 3, 3)
    words = tuple(w for w in words if w != "template" or name != "convolve")
    refused(ValueError, name, *words, first=torch.ones(2, 3, 8, 9), other=other)


@pytest.mark.parametrize("name", PAIRS)
def test_joint_channels_that_differ(name):
    other = torch.ones(4, 3, 3)
    words = ("channels", "3", "4")
    refused(ValueError, name, *words, first=torch.ones(3, 8, 9), other=other, channels="joint")


@pytest.mark.parametrize("name", PAIRS + MOMENTS)
@pytest.mark.parametrize("stride", [0, -2, (1, 0)])
def test_a_stride_below_one(name, stride):
    refused(ValueError, name, "stride must be at least 1", stride, stride=stride)


@pytest.mark.parametrize("name", PAIRS + MOMENTS)
def test_a_stride_of_the_wrong_kind(name):
    refused(ValueError, name, "stride", "(1, 2, 3)", stride=(1, 2, 3))
    refused(TypeError, name, "stride", "float", stride=1.5)
    refused(TypeError, name, "stride", "1.5", stride=(1, 1.5))


@pytest.mark.parametrize("name", MOMENTS)
def test_a_wrong_window(name):
    refused(ValueError, name, "window must be at least 1", "(3, 0)", other=(3, 0))
    refused(ValueError, name, "window must be at least 1", "-1", other=-1)
    refused(ValueError, name, "window", "(3, 3, 3)", other=(3, 3, 3))
    refused(TypeError, name, "window", "float", other=2.0)


@pytest.mark.parametrize("name", PAIRS + MOMENTS)
@pytest.mark.parametrize("ndim", [0, 4, -1])
def test_ndim_outside_one_to_three(name, ndim):
    refused(ValueError, name, "ndim must be 1, 2 or 3", ndim, ndim=ndim)


@pytest.mark.parametrize("name", PAIRS + MOMENTS)
def test_ndim_of_the_wrong_kind(name):
    refused(TypeError, name, "ndim", "float", ndim=2.0)


@pytest.mark.parametrize("name", PAIRS + MOMENTS)
def test_too_few_axes(name):
    refused(ValueError, name, "input", "window axes", "(8,)", first=torch.ones(8))
    refused(ValueError, name, "input", "channel", "(8, 9)", channels="joint")
    if name in PAIRS:
        refused(ValueError, name, second(name), "window axes", "(3,)", other=torch.ones(3))


@pytest.mark.parametrize("name", PAIRS)
def test_dtypes_do_not_mix(name):
    refused(
        TypeError, name, "input", second(name), "float32", "float64", other=template(torch.float64)
    )
    refused(TypeError, name, "float32", "uint8", other=template(torch.uint8))


@pytest.mark.parametrize("name", PAIRS)
def test_devices_do_not_mix(name, device):
    words = ("input", second(name), device.type, "meta")
    refused((ValueError, TypeError), name, *words, other=template().to("meta"))


@pytest.mark.parametrize("name", SCORES + MOMENTS)
def test_complex_is_refused(name):
    other = 3 if name in MOMENTS else template(torch.complex64)
    refused(TypeError, name, "input", "complex64", first=image(torch.complex64), other=other)


@pytest.mark.parametrize("name", PAIRS + MOMENTS)
def test_booleans_are_refused(name):
    other = 3 if name in MOMENTS else template(torch.bool)
    refused(TypeError, name, "input", "bool", first=image(torch.bool), other=other)


@pytest.mark.parametrize("name", PAIRS + MOMENTS)
def test_only_tensors(name):
    refused(TypeError, name, "input", "ndarray", first=array(image()))
    if name in PAIRS:
        refused(TypeError, name, second(name), "list", other=[[1.0]])


@pytest.mark.parametrize("name", [*SCORES, "local_std"])
@pytest.mark.parametrize("eps", [-1e-3, float("nan"), float("inf")])
def test_eps_is_finite_and_not_negative(name, eps):
    refused(ValueError, name, "eps", eps, eps=eps)


@pytest.mark.parametrize("name", ["local_var", "local_std"])
def test_correction_below_the_count(name):
    refused(ValueError, name, "correction", "9", correction=9)
    refused(ValueError, name, "correction", "-1", correction=-1)


@pytest.mark.parametrize("name", PAIRS + MOMENTS)
@pytest.mark.parametrize("pad_mode", ["reflect", "circular"])
def test_a_pad_that_does_not_fit(name, pad_mode):
    other = 6 if name in MOMENTS else torch.ones(6, 6)
    options = {"first": torch.ones(4, 4), "other": other, "mode": "full", "pad_mode": pad_mode}
    refused(ValueError, name, "pad_mode", pad_mode, "5", **options)


@pytest.mark.parametrize("name", PAIRS + MOMENTS)
def test_only_two_positional_arguments(name):
    with pytest.raises(TypeError, match="positional"):
        getattr(torchcorr, name)(image(), 3 if name in MOMENTS else template(), 2)


@pytest.mark.parametrize("name", PAIRS + MOMENTS)
def test_a_request_beyond_memory_says_the_bytes_and_offers_tiles(name):
    huge = torch.ones(1).expand(1 << 24, 1 << 24)
    refused((ValueError, MemoryError), name, "bytes", "tile", first=huge)


@pytest.mark.parametrize("name", TENSORS)
def test_a_misspelt_keyword_of_a_function_names_the_function_and_the_word(name):
    with pytest.raises(TypeError, match=rf"^{name}\(\) .*'chanels'"):
        getattr(torchcorr, name)(*arguments(*TENSORS[name]), chanels="joint")


@pytest.mark.parametrize("name", MODULES)
def test_a_misspelt_keyword_of_a_module_names_its_public_class_and_the_word(name):
    with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) .*'chanels'"):
        getattr(torchcorr.nn, name)(*arguments(MODULES[name]), chanels="joint")


@pytest.mark.parametrize("name", TENSORS)
def test_only_dense_tensors(name):
    tensors = arguments(*TENSORS[name])
    for i, x in enumerate(tensors):
        if isinstance(x, torch.Tensor):
            sparse = [*tensors[:i], x.to_sparse(), *tensors[i + 1 :]]
            with pytest.raises(TypeError, match="must be a dense tensor: got sparse_coo"):
                getattr(torchcorr, name)(*sparse)


def test_what_an_earlier_call_found_hides_no_error():
    # Python takes 1, True and 1.0 for one key.
    options = {"ndim": 2, "stride": 1, "pad_value": 0.0}
    torchcorr.zncc(image(), template(), **options)
    for name, value in (("ndim", 2.0), ("stride", True), ("stride", 1.0), ("pad_value", False)):
        refused(TypeError, "zncc", name, **options | {name: value})
    refused(TypeError, "zncc", "template", other=template(torch.float64))
    refused(ValueError, "zncc", "template", other=torch.ones(9, 4))
    refused(ValueError, "zncc", "window axes", first=image()[0])
    refused(
        TypeError, "zncc", "real", first=image(torch.complex64), other=template(torch.complex64)
    )
    torchcorr.correlate(image(torch.complex64), template(torch.complex64))
