"""Triton kernels compile for an NVIDIA GPU, which need not be there, and fit its registers.

The interpreter accepts what a compiler does not; so each variant is compiled to machine code by the
assembler that comes with Triton.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

MOST_SPILLED = 64  # bytes a thread, which stay in its cache
SLIDING = {"SPREAD": 0, "STRIDED": 0, "DIRECT": 0, "ONE": 1}
FLOAT32 = {"source": "*fp32", "out": "*fp32", "var_out": "*fp32"}
MOMENTS = {"source": "*fp32", "out": "*fp64", "var_out": "*fp64"}
PAIR = {"first": "*fp64", "second": "*fp64", "input": "*fp32", "base": "*fp32", "out": "*fp32"}
GRADS = {"grad": "*fp32", "mean": "*fp64", "var": "*fp64", "s1": "*fp64", "s2": "*fp64"}
FLOAT64 = dict.fromkeys(FLOAT32, "*fp64")
SCORES = {"source": "*fp32", "out": "*fp32", "found": "*fp32", "stats": "*fp64", "noise": "*fp64"}
SCORES |= {"taps": "*fp64", "eps_bits": "i64"}
WIDE_SCORES = SCORES | {"source": "*fp64", "out": "*fp64", "found": "*fp64"}
UPSTREAM = SCORES | {"out": "*fp64", "found": "*fp64", "grad": "*fp32", "shown": "*fp32"}
UPSTREAM |= {"grad_s1": "*fp64", "grad_s2": "*fp64", "poison": "*fp64"}
WIDE_UPSTREAM = UPSTREAM | {"source": "*fp64", "grad": "*fp64", "shown": "*fp64"}
OVERLAP = {"tiles": "*fp64", "stats": "*fp64", "out": "*fp64"}
PRODUCTS = dict.fromkeys(("found", "given", "out"), "*fp64")
TILES = {"source": "*fp32", "sums": "*fp64", "tiles": "*fp32", "stats": "*fp64"}
TILES |= {"numerators": "*fp32", "content": "*fp64"}
NOISE = {"numerators": "*fp32", "content": "*fp64", "stats": "*fp64", "moments": "*fp64"}
NOISE |= {"noise_out": "*fp64", "noise": "fp32"}
WIDE_NOISE = NOISE | {"numerators": "*fp64"}
TEMPLATES = {"source": "*fp64", "out": "*fp32", "moments": "*fp64"}
HALF_TEMPLATES = {"source": "*bf16", "out": "*fp64", "moments": "*fp64"}
SUMS = {"sums_": "*fp64", "stats": "*fp64", "noise": "*fp64", "bound": "*fp32", "allowed": "fp32"}
SUMS |= {"bound_stats": "*fp64", "source": "*fp32", "taps": "*fp32", "out": "*fp32"}
HALF = dict.fromkeys(FLOAT32, "*bf16")
WIDE_MAPS = ("source", "mean", "left", "square", "first", "second", "input")
WIDE_MAPS += tuple(f"{name}out" for name in ("", "left_", "square_", "second_"))
PASS = {**dict.fromkeys(WIDE_MAPS, "*fp64"), "count": "fp64"}
LNCC = {"a": "*fp32", "b": "*fp32", "out": "*fp32", "grad": "*fp32"}
LNCC |= {"for_a": "*fp32", "for_b": "*fp32"}
WIDE_LNCC = dict.fromkeys(LNCC, "*fp64")
LNCC_MAPS = dict.fromkeys(("through", "own_a", "own_b", "offset_a", "offset_b"), "*fp64")


def variants() -> dict[str, tuple[str, str, int, dict[str, str], dict[str, int]]]:
    """Module, kernel, axes, types of its pointers and what distinguishes it."""
    found = {}
    for ndim in (1, 2, 3):
        for name, types, options in (
            ("sum", FLOAT32, {"KIND": 0}),
            ("moments", MOMENTS, {"KIND": 1}),
            ("spread", FLOAT32, {"KIND": 0, "SPREAD": 1}),
        ):
            found[f"{name}-{ndim}d"] = ("windows.windows", "window_kernel", ndim, types, options)
        kernel = "local_std_forward_kernel"
        found[f"local_std-{ndim}d"] = ("windows.local_std", kernel, ndim, FLOAT32, {})
        kernel = "local_std_combine_grads_kernel"
        found[f"combine-{ndim}d"] = (
            "windows.windows",
            kernel,
            ndim,
            PAIR,
            {"SPREAD": 1, "ADDED": 0},
        )
    std, combine = found["local_std-2d"], found["combine-2d"]
    more = {"ONE": 0, "STRIDED": 1}
    found |= {
        "local_std-channels": (*std[:4], more),
        "local_std-half": (*std[:3], HALF, {}),
        "local_std-float64": (*std[:3], FLOAT64, {"DIRECT": 1}),
        "moments-float64": (*found["moments-3d"][:3], FLOAT64, {"KIND": 1, "DIRECT": 1} | more),
        "spread-direct": (
            *found["spread-2d"][:4],
            {"KIND": 0, "SPREAD": 1, "DIRECT": 1, "STRIDED": 1},
        ),
        "combine-strided": (*combine[:4], combine[4] | {"STRIDED": 1}),
        "combine-direct": (*combine[:4], combine[4] | {"DIRECT": 1}),
        "combine-onto": (*combine[:3], PAIR | {"base": "*fp64"}, combine[4] | {"ADDED": 1}),
        "prepare": ("windows.local_std", "local_std_prepare_grads_kernel", 0, GRADS, {}),
    }
    for ndim in (1, 2, 3):
        found[f"score-{ndim}d"] = ("tiles.scores", "score_kernel", ndim, SCORES, {"ZERO_MEAN": 1})
        kernel, options = "upstream_kernel", {"ZERO_MEAN": 1, "SHOWN": 1}
        found[f"upstream-{ndim}d"] = ("tiles.score_grads", kernel, ndim, UPSTREAM, options)
    upstream = found["upstream-2d"]
    options = {"ZERO_MEAN": 0, "ONE": 0, "STRIDED": 1}
    found["upstream-alone"] = (*upstream[:4], {"ZERO_MEAN": 1, "SHOWN": 0})
    found["upstream-float64"] = (*upstream[:3], WIDE_UPSTREAM, options | {"SHOWN": 2})
    for name, types in (("overlap", OVERLAP), ("overlap-long", OVERLAP | {"count": "i64"})):
        found[name] = ("tiles.score_grads", "overlap_kernel", 0, types, {"BLOCK": 256})
    found["score-float64"] = ("tiles.scores", "score_kernel", 2, WIDE_SCORES, options)
    part = {"PART": 2048, "CENTRED": 1}
    gather = part | {"SCALED": 1, "PARTS": 1024}
    whole = {"WHOLE": 1, "LANES": 8192, "num_warps": 16}
    padded = {"ABSOLUTE": 0, "PART": 2048}
    found |= {
        "tile_sums": ("tiles.cut", "tile_sums_kernel", 0, TILES, part),
        "gather_tiles": ("tiles.cut", "gather_tiles_kernel", 0, TILES, gather),
        "tile_content": ("tiles.cut", "tile_content_kernel", 0, TILES, {"PART": 2048}),
        "tile_noise": ("tiles.cut", "tile_noise_kernel", 0, NOISE, {"WHOLE": 0, "LANES": 1024}),
        "tile_noise-whole": ("tiles.cut", "tile_noise_kernel", 0, WIDE_NOISE, whole),
        "templates": ("tiles.templates", "prepare_templates_kernel", 0, TEMPLATES, padded),
        "templates-half": (
            *("tiles.templates", "prepare_templates_kernel", 0, HALF_TEMPLATES),
            padded | {"ABSOLUTE": 1},
        ),
    }
    for shape, tile in (("rows", {"R": 16, "B": 32}), ("columns", {"R": 512, "B": 1})):
        for name, kernel, options in (
            ("sum", "sum_pass_kernel", {}),
            ("moments-first", "moments_pass_kernel", {"MERGE": 0, "KIND": -1}),
            ("moments-last", "moments_pass_kernel", {"MERGE": 1, "KIND": 1}),
            ("deviation-last", "moments_pass_kernel", {"MERGE": 1, "KIND": 2}),
            ("spread", "spread_pass_kernel", {"PAIR": 0, "COMBINE": 0}),
            ("pair", "spread_pass_kernel", {"PAIR": 1, "COMBINE": 0}),
            ("combine", "spread_pass_kernel", {"PAIR": 1, "COMBINE": 1}),
        ):
            found[f"{name}-pass-{shape}"] = ("windows.axis_passes", kernel, 0, PASS, options | tile)
    # Sizes beyond int32 come as int64.
    long = PASS | dict.fromkeys(("n", "m", "inner", "rows", "lead_rows"), "i64")
    for name in ("sum", "moments-last", "combine"):
        module, kernel, ndim, _, options = found[f"{name}-pass-rows"]
        found[f"{name}-pass-long"] = (module, kernel, ndim, long, options)
    for added in (0, 1):
        options = {"ADDED": added, "BLOCK": 256}
        found[f"products-{added}"] = ("tiles.products", "products_kernel", 0, PRODUCTS, options)
    for bound in (0, 1):
        options = {"BOUND": bound, "CHECKED": 1, "BLOCK": 256}
        types = SUMS | dict.fromkeys(("source", "taps", "out"), "*fp64") if bound else SUMS
        found[f"sums-{bound}"] = ("tiles.correlate", "finish_sums_kernel", 0, types, options)
        types = types | {"count": "i64"}
        found[f"sums-{bound}-long"] = ("tiles.correlate", "finish_sums_kernel", 0, types, options)
    for ndim in (1, 2, 3):
        found[f"lncc-{ndim}d"] = ("lncc.scores", "lncc_kernel", ndim, LNCC, {})
        for part, spread in (("maps", 0), ("spread", 1)):
            kernel, options = f"lncc_{part}_kernel", {"SPREAD": spread, "BOTH": 1}
            types = LNCC | LNCC_MAPS
            found[f"lncc_{part}-{ndim}d"] = ("lncc.grads", kernel, ndim, types, options)
    for name in ("lncc-2d", "lncc_maps-2d", "lncc_spread-2d"):
        module, kernel, ndim, types, options = found[name]
        found[f"{name}-strided"] = (module, kernel, ndim, types, options | more)
        alone = {key: 0 if key == "BOTH" else value for key, value in options.items()}
        wide = WIDE_LNCC | LNCC_MAPS
        found[f"{name}-float64"] = (module, kernel, ndim, wide, alone)
        found[f"{name}-direct"] = (module, kernel, ndim, wide, alone | {"DIRECT": 1})
    return found


def compiled(name: str) -> dict[str, Any]:
    """Registers and spilled bytes of a variant."""
    import importlib
    import re
    import tempfile

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    from torchcorr._triton.lncc.scores import BLOCKS
    from torchcorr._triton.windows.launch import BLOCK, SCORE_BLOCK, plan

    module, kernel, ndim, types, options = variants()[name]
    function = getattr(importlib.import_module(f"torchcorr._triton.{module}"), kernel)
    constants = dict(options) or {"BLOCK": 1024}
    if ndim > 0:
        size = (300,) * ndim
        blocks = dict.fromkeys(("tiles.scores", "tiles.score_grads"), SCORE_BLOCK)
        blocks |= dict.fromkeys(("lncc.scores", "lncc.grads"), BLOCKS[ndim])
        block = blocks.get(module, BLOCK)
        launch = dict(plan(1, 1, size, (31,) * ndim, (1,) * ndim, block=block).options)
        constants = launch | SLIDING | options
    launch = {key: constants.pop(key) for key in ("num_warps", "maxnreg") if key in constants}
    wide = ("scale", "eps", "share", "ratio")
    signature = {
        arg: "constexpr" if arg in constants else types.get(arg, "fp64" if arg in wide else "i32")
        for arg in function.arg_names
    }
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs={})
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch)
    ptxas = get_ptxas(90).path
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(built.asm["ptx"])
        file.flush()
        done = subprocess.run(
            [ptxas, "-v", "--gpu-name=sm_90a", file.name, "-o", os.devnull],
            capture_output=True,
            text=True,
            check=True,
        )
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spilled = re.search(r"(\d+) bytes spill stores", done.stderr)
    return {
        "registers": int(registers[1]),
        "spilled": int(spilled[1]),
        "shared": built.metadata.shared,
    }


@cache
def report() -> dict[str, dict[str, Any]]:
    """What all variants need, compiled in a process that does not interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    here = os.path.dirname(__file__)
    environment["PYTHONPATH"] = os.pathsep.join([here, *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", variants())
def test_compiles_within_its_registers(name: str) -> None:
    found = report()[name]
    assert found["spilled"] <= MOST_SPILLED, found


if __name__ == "__main__":
    print(json.dumps({name: compiled(name) for name in variants()}))


# Bounds of errors, not data: seven digits of them are enough.
TOLERANCES = {"finish_sums_kernel.allowed", "_score_kernel.trusted", "tile_noise_kernel.noise"}


def test_numbers_keep_their_digits() -> None:
    """A Python float that no annotation makes a float64 reaches a kernel as float32."""
    script = Path(__file__).with_name("launches.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, env=environment
    )
    assert set(json.loads(done.stdout)["float32"]) == TOLERANCES
