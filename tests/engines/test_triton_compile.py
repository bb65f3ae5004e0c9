"""Triton kernels compile for an NVIDIA GPU and fit its registers; no GPU is needed for it.

The interpreter accepts code that the compiler does not, so each variant is compiled to machine code
by the assembler that comes with Triton.
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

MOST_SPILLED = 64  # bytes a thread
SLIDING = {"spread": 0, "strided": 0, "thinned": 0, "direct": 0, "single_channel": 1}
FLOAT32 = {"source": "*fp32", "out": "*fp32", "var_out": "*fp32"}
MOMENTS = {"source": "*fp32", "out": "*fp64", "var_out": "*fp64"}
PAIR = {"first": "*fp64", "second": "*fp64", "input": "*fp32", "base": "*fp32", "out": "*fp32"}
GRADS = {"grad": "*fp32", "mean": "*fp64", "var": "*fp64", "s1": "*fp64", "s2": "*fp64"}
FLOAT64 = dict.fromkeys(FLOAT32, "*fp64")
SCORES = {
    "source": "*fp32",
    "out": "*fp32",
    "numerators": "*fp32",
    "stats": "*fp64",
    "noise": "*fp64",
}
SCORES |= {"coefficients": "*fp64", "eps_bits": "i64"}
WIDE_SCORES = SCORES | {"source": "*fp64", "out": "*fp64", "numerators": "*fp64"}
UPSTREAM = SCORES | {"out": "*fp64", "numerators": "*fp64", "grad": "*fp32"}
UPSTREAM |= {"score_map": "*fp32", "grad_s1": "*fp64", "grad_s2": "*fp64", "non_finite": "*i1"}
WIDE_UPSTREAM = UPSTREAM | {"source": "*fp64", "grad": "*fp64", "score_map": "*fp64"}
OVERLAP = {"tiles": "*fp64", "stats": "*fp64", "out": "*fp64"}
PRODUCTS = dict.fromkeys(("input_spectra", "upstream_spectra", "out"), "*fp64")
TILES = {"source": "*fp32", "sums": "*fp64", "tiles": "*fp32", "stats": "*fp64"}
TILES |= {"numerators": "*fp32", "content": "*fp64"}
NOISE = {"numerators": "*fp32", "content": "*fp64", "stats": "*fp64", "moments": "*fp64"}
NOISE |= {"noise_out": "*fp64", "noise": "fp32"}
WIDE_NOISE = NOISE | {"numerators": "*fp64"}
TEMPLATES = {"source": "*fp64", "out": "*fp32", "moments": "*fp64"}
HALF_TEMPLATES = {"source": "*bf16", "out": "*fp64", "moments": "*fp64"}
SUMS = {
    "numerators": "*fp64",
    "stats": "*fp64",
    "noise": "*fp64",
    "bound": "*fp32",
    "allowed": "fp32",
}
SUMS |= {"bound_stats": "*fp64", "source": "*fp32", "coefficients": "*fp32", "out": "*fp32"}
HALF = dict.fromkeys(FLOAT32, "*bf16")
WIDE_MAPS = ("source", "mean", "left", "square", "first", "second", "input")
WIDE_MAPS += tuple(f"{name}out" for name in ("", "left_", "square_", "second_"))
PASS = {**dict.fromkeys(WIDE_MAPS, "*fp64"), "count": "fp64"}
LNCC = {"a": "*fp32", "b": "*fp32", "out": "*fp32", "grad": "*fp32"}
LNCC |= {"inputs": ("*fp32",) * 2, "grads": ("*fp32",) * 2}
WIDE_LNCC = {name: ("*fp64",) * 2 if name.endswith("s") else "*fp64" for name in LNCC}
MERGED = ("weight", "a", "b", "low_a", "low_b", "square_a", "square_b", "product", "taps", "out")
MERGE = dict.fromkeys((*MERGED, "source"), "*fp64")
LNCC_MAPS = {"maps": ("*fp64",) * 5}
# What a march writes (windows/records.py): kind, zero_mean, scores.
SUM_OF, MOMENTS_OF, DEVIATION_OF = ((kind, False, 0) for kind in range(3))


def variants() -> dict[str, tuple[str, str, int, dict[str, Any], dict[str, Any]]]:
    """Module, kernel, axes, types of its pointers and what distinguishes it."""
    table = {}
    for ndim in (1, 2, 3):
        for name, types, options in (
            ("sum", FLOAT32, {"RESULT": SUM_OF}),
            ("moments", MOMENTS, {"RESULT": MOMENTS_OF}),
            ("spread", FLOAT32, {"RESULT": SUM_OF, "spread": 1}),
        ):
            table[f"{name}-{ndim}d"] = ("windows.windows", "window_kernel", ndim, types, options)
        kernel = "local_std_forward_kernel"
        options = {"RESULT": DEVIATION_OF}
        table[f"local_std-{ndim}d"] = ("windows.local_std", kernel, ndim, FLOAT32, options)
        kernel = "local_std_combine_grads_kernel"
        table[f"combine-{ndim}d"] = (
            "windows.windows",
            kernel,
            ndim,
            PAIR,
            {"spread": 1, "ADDED": 0},
        )
    std, combine = table["local_std-2d"], table["combine-2d"]
    more = {"single_channel": 0, "strided": 1, "thinned": 1}
    table |= {
        "local_std-channels": (*std[:4], std[4] | more),
        "local_std-half": (*std[:3], HALF, std[4]),
        "local_std-float64": (*std[:3], FLOAT64, std[4] | {"direct": 1}),
        "moments-float64": (
            *table["moments-3d"][:3],
            FLOAT64,
            {"RESULT": MOMENTS_OF, "direct": 1} | more,
        ),
        "spread-direct": (
            *table["spread-2d"][:4],
            {"RESULT": SUM_OF, "spread": 1, "direct": 1, "strided": 1},
        ),
        "combine-strided": (*combine[:4], combine[4] | {"strided": 1}),
        "combine-direct": (*combine[:4], combine[4] | {"direct": 1}),
        "combine-onto": (*combine[:3], PAIR | {"base": "*fp64"}, combine[4] | {"ADDED": 1}),
        "prepare": ("windows.local_std", "local_std_prepare_grads_kernel", 0, GRADS, {}),
    }
    for ndim in (1, 2, 3):
        options = {"RESULT": (3, True, 0)}
        table[f"score-{ndim}d"] = ("tiles.scores", "score_kernel", ndim, SCORES, options)
        kernel, options = "upstream_kernel", {"RESULT": (4, True, 1)}
        table[f"upstream-{ndim}d"] = ("tiles.score_grads", kernel, ndim, UPSTREAM, options)
    upstream = table["upstream-2d"]
    table["upstream-alone"] = (*upstream[:4], {"RESULT": (4, True, 0)})
    table["upstream-float64"] = (*upstream[:3], WIDE_UPSTREAM, more | {"RESULT": (4, False, 2)})
    for name, types in (("overlap", OVERLAP), ("overlap-long", OVERLAP | {"count": "i64"})):
        table[name] = ("tiles.score_grads", "overlap_kernel", 0, types, {"BLOCK": 256})
    table["score-float64"] = (
        "tiles.scores",
        "score_kernel",
        2,
        WIDE_SCORES,
        more | {"RESULT": (3, False, 0)},
    )
    part = {"PART": 2048, "CENTRED": 1}
    gather = part | {"SCALED": 1, "PARTS": 1024}
    whole = {"WHOLE": 1, "LANES": 8192, "num_warps": 16}
    padded = {"ABSOLUTE": 0, "PART": 2048}
    table |= {
        "tile_sums": ("tiles.cut", "tile_sums_kernel", 0, TILES, part),
        "gather_tiles": ("tiles.cut", "gather_tiles_kernel", 0, TILES, gather),
        "tile_content": ("tiles.noise", "tile_content_kernel", 0, TILES, {"PART": 2048}),
        "tile_noise": ("tiles.noise", "tile_noise_kernel", 0, NOISE, {"WHOLE": 0, "LANES": 1024}),
        "tile_noise-whole": ("tiles.noise", "tile_noise_kernel", 0, WIDE_NOISE, whole),
        "templates": ("tiles.templates", "prepare_templates_kernel", 0, TEMPLATES, padded),
        "templates-half": (
            *("tiles.templates", "prepare_templates_kernel", 0, HALF_TEMPLATES),
            padded | {"ABSOLUTE": 1},
        ),
    }
    for shape, tile in (("rows", {"R": 16, "B": 32}), ("columns", {"R": 512, "B": 1})):
        for name, kernel, options in (
            ("sum", "sum_pass_kernel", {}),
            ("moments-first", "moments_pass_kernel", {"MERGE": 0, "KIND": 5}),
            ("moments-last", "moments_pass_kernel", {"MERGE": 1, "KIND": 1}),
            ("deviation-last", "moments_pass_kernel", {"MERGE": 1, "KIND": 2}),
            ("spread", "spread_pass_kernel", {"PAIR": 0, "COMBINE": 0}),
            ("pair", "spread_pass_kernel", {"PAIR": 1, "COMBINE": 0}),
            ("combine", "spread_pass_kernel", {"PAIR": 1, "COMBINE": 1}),
        ):
            table[f"{name}-pass-{shape}"] = ("windows.axis_passes", kernel, 0, PASS, options | tile)
    # Sizes beyond int32 come as int64.
    long = PASS | dict.fromkeys(("n", "m", "inner", "rows", "lead_rows"), "i64")
    for name in ("sum", "moments-last", "combine"):
        module, kernel, ndim, _, options = table[f"{name}-pass-rows"]
        table[f"{name}-pass-long"] = (module, kernel, ndim, long, options)
    for added in (0, 1):
        options = {"ADDED": added, "BLOCK": 256}
        table[f"products-{added}"] = ("tiles.products", "products_kernel", 0, PRODUCTS, options)
    for bound in (0, 1):
        options = {"BOUND": bound, "CHECKED": 1, "BLOCK": 256}
        types = SUMS | dict.fromkeys(("source", "coefficients", "out"), "*fp64") if bound else SUMS
        table[f"sums-{bound}"] = ("tiles.correlate", "write_sums_kernel", 0, types, options)
        types = types | {"count": "i64"}
        table[f"sums-{bound}-long"] = ("tiles.correlate", "write_sums_kernel", 0, types, options)
    module, block = "lncc.weighted", {"BLOCK": 256}
    table["lncc_merge"] = (module, "merge_kernel", 0, MERGE, block)
    table["lncc_spread-weights"] = (module, "spread_kernel", 0, MERGE, block)
    bits = {f"t{i}": "i64" for i in range(8)} | {"out": "*fp64"}
    table["lncc_taps"] = (module, "taps_kernel", 0, bits, {"num_warps": 4})
    for ndim in (1, 2, 3):
        table[f"lncc-{ndim}d"] = ("lncc.scores", "lncc_kernel", ndim, LNCC, {})
        for part, spread in (("maps", 0), ("spread", 1)):
            kernel, options = f"lncc_{part}_kernel", {"spread": spread, "BOTH": 1}
            types = LNCC | LNCC_MAPS
            table[f"lncc_{part}-{ndim}d"] = ("lncc.grads", kernel, ndim, types, options)
    for name in ("lncc-2d", "lncc_maps-2d", "lncc_spread-2d"):
        module, kernel, ndim, types, options = table[name]
        strided = more | {"thinned": int(not options.get("spread"))}
        table[f"{name}-strided"] = (module, kernel, ndim, types, options | strided)
        alone = {key: 0 if key == "BOTH" else value for key, value in options.items()}
        wide = WIDE_LNCC | LNCC_MAPS
        table[f"{name}-float64"] = (module, kernel, ndim, wide, alone)
        table[f"{name}-direct"] = (module, kernel, ndim, wide, alone | {"direct": 1})
    return table


def compiled(name: str) -> dict[str, Any]:
    """Registers and spilled bytes of a variant."""
    import importlib
    import re
    import tempfile

    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    from torchcorr._triton.lncc.scores import BLOCKS
    from torchcorr._triton.windows.launch import BLOCK, SCORE_BLOCK, window_launch
    from torchcorr._triton.windows.records import Result

    module, kernel, ndim, types, options = variants()[name]
    function = getattr(importlib.import_module(f"torchcorr._triton.{module}"), kernel)
    constants = dict(options) or {"BLOCK": 1024}
    if ndim > 0:
        size = (300,) * ndim
        blocks = dict.fromkeys(("tiles.scores", "tiles.score_grads"), SCORE_BLOCK)
        blocks |= dict.fromkeys(("lncc.scores", "lncc.grads"), BLOCKS[ndim])
        block = blocks.get(module, BLOCK)
        launch = window_launch(1, 1, size, (31,) * ndim, (1,) * ndim, block=block).options
        form = launch["FORM"]
        fields = {key: constants.pop(key) for key in form._fields if key in constants}
        form = form._replace(**{k: tl.constexpr(v) for k, v in (SLIDING | fields).items()})
        constants = (constants if options else {}) | launch | {"FORM": form}
        if "RESULT" in constants:
            constants["RESULT"] = Result(*map(tl.constexpr, constants["RESULT"]))
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
    needs = report()[name]
    assert needs["spilled"] <= MOST_SPILLED, needs


if __name__ == "__main__":
    print(json.dumps({name: compiled(name) for name in variants()}))


# Bounds of errors, not data: seven digits of them are enough.
TOLERANCES = {"write_sums_kernel.allowed", "_score_kernel.trusted", "tile_noise_kernel.noise"}
TOLERANCES |= {"weighted_kernel.trusted", "sums_noise_kernel.noise"}
TOLERANCES |= {"weighted_tiles_kernel.allowed", "weighted_tiles_kernel.allowed_mean"}


def test_numbers_keep_their_digits() -> None:
    """A Python float that no annotation makes a float64 reaches a kernel as float32."""
    script = Path(__file__).with_name("launches.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, env=environment
    )
    assert set(json.loads(done.stdout)["float32"]) == TOLERANCES
