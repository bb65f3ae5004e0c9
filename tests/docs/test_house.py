"""The rules of the house: layers, public surface, sizes, cost of import, documentation."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import torchcorr

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "src" / "torchcorr"
# The modules and folders of src/torchcorr from the lowest layer up: imports go downwards only.
LAYERS = (
    {"_plan"},
    {"_definition"},
    {"_contract"},
    {"_cpu", "_triton"},
    {"_arguments", "_checks", "_docstrings", "_engines", "_pairs", "_prepared", "_weights"},
    {"convolution", "functional", "layers", "local", "similarity", "nn", "planning"},
    {"match", "align", "plot"},
    {"_command", "__init__", "__main__"},
)
ENGINES = ("_cpu", "_triton")
HEAVY = ("triton", "dask", "matplotlib", "PIL", "skimage", "scipy", "pywt", "tifffile", "tqdm")
# The tensors that may be passed by position; everything else is named.
POSITIONAL = {
    "correlate": ["input", "template"],
    "convolve": ["input", "kernel"],
    "zncc": ["input", "template"],
    "ncc": ["input", "template"],
    "plan": ["input", "template"],
    "plan_layer": ["input", "weight"],
    "local_sum": ["input", "window"],
    "local_mean": ["input", "window"],
    "local_var": ["input", "window"],
    "local_std": ["input", "window"],
    "flat_windows": ["input", "window"],
    "lncc": ["a", "b", "window"],
    "coverage": ["input_mask", "template_mask"],
    "match_template": ["image", "template"],
    "find_peaks": ["score_map"],
    "estimate_shift": ["reference", "moving"],
    "estimate_pose": ["reference", "moving"],
    "cross_correlation": ["a", "b"],
    "correlation_lags": ["size", "moved"],
    "phase_correlation": ["reference", "moving"],
    "distance_profile": ["input", "query"],
    "register_stack": ["frames"],
    "soft_shift": ["reference", "moving"],
    "closest_windows": ["input", "query"],
    "match_filter": ["record", "templates"],
}
# These have PyTorch's signatures, so as to be called in the place of its functions.
LAYERS_OF_PYTORCH = {
    "conv": ["input", "weight", "bias", "stride", "padding", "dilation", "groups"],
    "conv_transpose": ["input", "weight", "bias", "stride", "padding"]
    + ["output_padding", "groups", "dilation"],
}
LONGEST_FILE = 450
LONGEST_FUNCTION = 80


def layer_of(module: str) -> int:
    return next(level for level, names in enumerate(LAYERS) if module in names)


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def source_files() -> list[Path]:
    kernels = [*ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.h")]
    return [*python_files(), *sorted(kernels), *sorted((ROOT / "tests").rglob("*.py"))]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room(path: Path) -> str:
    """The name of a file's module or folder in LAYERS."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "torchcorr" if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "torchcorr" and len(parts) > 1 and known(parts[1]):
                yield parts[1]


def known(name: str) -> bool:
    return any(name in names for names in LAYERS)


@pytest.mark.parametrize("path", python_files(), ids=relative)
def test_imports_go_downwards(path: Path) -> None:
    name = room(path)
    assert known(name), f"{name} has no layer: give it one in LAYERS and in CONTRIBUTING.md"
    for other in imported_rooms(ast.parse(path.read_text())):
        assert layer_of(other) <= layer_of(name), f"{name} imports {other} of a higher layer"


def test_no_import_cycles() -> None:
    """Within a layer modules may import one another, but not in a circle."""
    edges = {
        room(path): set(imported_rooms(ast.parse(path.read_text()))) - {room(path)}
        for path in python_files()
    }
    left = dict(edges)
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"import cycle among {sorted(left)}"
        for name in free:
            del left[name]


@pytest.mark.parametrize("path", source_files(), ids=relative)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def lines_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function that are not its docstring."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if is_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", python_files(), ids=relative)
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert lines_without_docstring(node) <= LONGEST_FUNCTION, node.name


@pytest.mark.parametrize("path", python_files(), ids=relative)
def test_no_blanket_exceptions_and_no_asserts(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type is not None else "BaseException"
            assert caught not in ("Exception", "BaseException"), f"line {node.lineno}: {caught}"


def public_objects() -> dict[str, Any]:
    return {name: getattr(torchcorr, name) for name in torchcorr.__all__}


def rendered(value: Callable[..., Any]) -> str:
    """A signature as text that is the same under every version of Python and of PyTorch."""
    if inspect.isclass(value) and value.__init__.__module__.startswith("torch.nn."):
        return f"(as torch.nn.{value.__name__})"
    signature = inspect.signature(value)
    parts: list[str] = []
    for p in signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = "" if p.default is p.empty else f" = {p.default!r}"
        parts.append(f"{p.name}: {p.annotation}{default}")
    result = "" if inspect.isclass(value) else f" -> {signature.return_annotation}"
    return f"({', '.join(parts)}){result}"


def describe(name: str, value: Any) -> list[str]:
    """One line for a function, a record or a constant; one more for each member of a module."""
    if isinstance(value, ModuleType):
        return [name, *(f"{name}.{m}{rendered(getattr(value, m))}" for m in value.__all__)]
    return [f"{name}{rendered(value)}" if callable(value) else name]


def public_surface() -> list[str]:
    return [
        line for name, value in sorted(public_objects().items()) for line in describe(name, value)
    ]


def test_public_surface_is_the_list_on_file() -> None:
    listed = (ROOT / "tests" / "public_api.txt").read_text().splitlines()
    assert public_surface() == listed, (
        "a change of the public surface needs a line in CHANGELOG.md and a new list on file:"
        " python tests/docs/test_house.py > tests/public_api.txt"
    )


def functions() -> dict[str, Callable[..., Any]]:
    return {name: f for name, f in public_objects().items() if inspect.isfunction(f)}


def documented() -> dict[str, Any]:
    """Functions, records and the classes of modules: everything that is documented."""
    result = {k: v for k, v in public_objects().items() if not isinstance(v, (str, ModuleType))}
    for name, value in public_objects().items():
        if isinstance(value, ModuleType):
            result |= {f"{name}.{member}": getattr(value, member) for member in value.__all__}
    return result


@pytest.mark.parametrize("name", functions())
def test_only_the_tensors_are_positional(name: str) -> None:
    parameters = inspect.signature(functions()[name]).parameters.values()
    free = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    layer = LAYERS_OF_PYTORCH.get(re.sub(r"[123]d$", "", name))
    if layer is not None:
        assert free == layer
        assert [p.default for p in parameters][:3] == [inspect.Parameter.empty] * 2 + [None]
        return
    assert free == POSITIONAL[name]
    assert all(p.default is p.empty for p in parameters if p.name in free)


@pytest.mark.parametrize("name", documented())
def test_docstring_is_whole(name: str) -> None:
    value = documented()[name]
    text = inspect.getdoc(value) or ""
    assert re.match(r".+[.:]$", text.splitlines()[0] if text else ""), "one first line, a sentence"
    assert "(" in text, "a shape"
    if not name.startswith("plot."):
        assert re.search(r"float(32|64)|dtype", text), "dtypes"
    if not inspect.isfunction(value):
        assert re.search(r"^(Attributes|Parameters)\n-+$", text, re.M)
        return
    sections = ["Parameters", "Returns", "Raises", "References", "Examples"]
    if name.startswith("plot."):
        sections.remove("References")
    for section in sections:
        assert re.search(rf"^{section}\n-+$", text, re.M), section
    assert ">>> " in text, "an example that runs"
    for parameter in inspect.signature(value).parameters:
        assert re.search(rf"\b{parameter}\b", text), f"{parameter} is not explained"


def test_import_is_cheap() -> None:
    code = f"import sys, torchcorr; print([m for m in {HEAVY} if m in sys.modules])"
    alone = f"import sys, torch; print([m for m in {HEAVY} if m in sys.modules])"
    ours, torchs = (
        subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=True).stdout
        for c in (code, alone)
    )
    assert set(ast.literal_eval(ours)) <= set(ast.literal_eval(torchs))


def test_what_aligns_and_plots_is_imported_on_first_use() -> None:
    code = (
        "import sys, torchcorr\n"
        "assert set(torchcorr.__all__) <= set(dir(torchcorr))\n"
        "assert not {'torchcorr.align', 'torchcorr.plot'} & sys.modules.keys()\n"
        "assert torchcorr.plot is sys.modules['torchcorr.plot']\n"
        "first = torchcorr.estimate_shift\n"
        "from torchcorr.align import estimate_shift\n"
        "assert first is estimate_shift is vars(torchcorr)['estimate_shift']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import torchcorr; assert 'align' in dir(torchcorr); torchcorr.align.estimate_shift"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="'torchcorr' has no attribute 'estimate_shifts'"):
        getattr(torchcorr, "estimate_shifts")  # noqa: B009 - mypy knows that it is missing


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_can_be_deleted_whole(engine: str, tmp_path: Path) -> None:
    """`make test` runs each engine's tests without the other one."""
    shutil.copytree(PACKAGE, tmp_path / "torchcorr")
    shutil.rmtree(tmp_path / "torchcorr" / engine)
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import torch, torchcorr\n"
        f"assert torchcorr.__file__.startswith({str(tmp_path)!r})\n"
        "from torchcorr import _contract, _engines\n"
        f"device = next(d for d, name in _engines.ENGINES.items() if name == {engine!r})\n"
        "assert _engines.load()[device] is not None\n"
        "keys = {key.lower() for o in _contract.OPERATORS for key in o.kernels()}\n"
        "assert keys == {'cpu', 'cuda'} - {device}, keys\n"
        "x, t = torch.rand(20, 21), torch.rand(4, 5, requires_grad=True)\n"
        "torchcorr.zncc(x, t).sum().backward()\n"
        "assert t.grad.isfinite().all()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize("engine", ENGINES)
def test_tests_of_an_engine_are_on_its_list(engine: str) -> None:
    """What `ENGINE_TESTS` in tests/conftest.py does not name is collected without the engine."""
    collected = subprocess.run(
        (sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/engines")
        + ("--without", engine, "-p", "no:cacheprovider"),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert collected.returncode == 0, collected.stdout


def test_engines_do_not_know_each_other() -> None:
    for engine, other in (ENGINES, ENGINES[::-1]):
        for path in (PACKAGE / engine).rglob("*.py"):
            assert other not in imported_rooms(ast.parse(path.read_text())), relative(path)


def test_every_operator_has_kernels() -> None:
    from torchcorr import _contract, _triton

    names = {operator.name for operator in _contract.OPERATORS}
    # What is left to the definition is left on purpose.
    assert names == set(_triton.KERNELS)
    for operator in _contract.OPERATORS:
        assert set(operator.kernels()) >= {"CPU", "CUDA"}, operator.name


def test_operators_are_all_on_the_list() -> None:
    from torchcorr import _contract

    registered = {
        schema.name.split("::")[1]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("torchcorr::")
    }
    assert registered == {operator.name for operator in _contract.OPERATORS}


def test_missing_kernels_are_named_by_the_first_call_and_only_there() -> None:
    code = (
        "import warnings, pathlib; warnings.simplefilter('always')\n"
        "exists = pathlib.Path.exists\n"
        "pathlib.Path.exists = lambda p: not p.name.startswith('_kernels') and exists(p)\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    import torch, torchcorr\n"
        "    from torchcorr import _engines\n"
        "    at_import = len([w for w in seen if w.category is _engines.KernelsMissingWarning])\n"
        "    for _ in range(2):\n"
        "        torchcorr.zncc(torch.rand(9, 9), torch.rand(3, 3))\n"
        "        torchcorr.local_std(torch.rand(9, 9), 3)\n"
        "ours = [w for w in seen if w.category is _engines.KernelsMissingWarning]\n"
        "print(at_import, len(ours), _engines.load()['cpu'] in str(ours[0].message))\n"
        "print(ours[0].filename)\n"
        "print(ours[0].message)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    counts, place, message = done.stdout.splitlines()
    assert counts.split() == ["0", "1", "True"]
    assert place == "<string>"
    assert message.startswith("torchcorr has no kernels for cpu and uses its slower definitions: ")
    assert message.endswith("; to compile them: torchcorr build")


def test_equations_cite_tests_that_exist() -> None:
    """docs/math.md names, for each equation, a test of its numbers."""
    page = (ROOT / "docs" / "math.md").read_text()
    labels = re.findall(r"^:label: (\S+)$", page, re.M)
    rows = re.findall(r"^\| \{eq\}`([^`]+)` \| (.+) \|$", page, re.M)
    assert [label for label, _ in rows] == labels
    for label, cell in rows:
        cited = re.findall(r"`(test_\w+\.py)::(test_\w+)`", cell)
        assert cited, f"no test for {label}"
        for file, test in cited:
            text = next((ROOT / "tests").rglob(file)).read_text()
            assert f"def {test}(" in text, f"{file} has no {test}"


def positional(function: ast.FunctionDef) -> int:
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (bool(names) and names[0] in ("self", "cls"))


def is_kernel(function: ast.FunctionDef) -> bool:
    """Whether Triton compiles it: it cannot take sizes in tuples without compiling for each."""
    return any("jit" in ast.unparse(d) for d in function.decorator_list)


@pytest.mark.parametrize("path", python_files(), ids=relative)
def test_at_most_eight_arguments_are_positional(path: Path) -> None:
    """More are a record. Only what implements an operator has the list of its schema."""
    from torchcorr import _contract

    operators = {operator.name for operator in _contract.OPERATORS}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and not is_kernel(node):
            assert positional(node) <= 8 or node.name in operators, node.name


def test_the_recipe_for_an_operator_lists_the_files_of_lncc() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    recipe = text[text.index("## Add an operator") : text.index("## House rules")]
    spans = re.findall(r"`([\w/.]+(?:\.\w+|/))`", recipe)
    named = {span.replace("NAME", "lncc") for span in spans}
    files = {name for name in named if (ROOT / name).is_file()}
    folders = {name for name in named if name.endswith("/") and (ROOT / name).is_dir()}
    assert named == files | folders, f"not there: {sorted(named - files - folders)}"
    searched = [*source_files(), *(ROOT / "docs").glob("*.md"), ROOT / "docs" / "api.rst"]
    searched += [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    mentioning = {
        relative(path) for path in searched if re.search("lncc", path.read_text(), re.IGNORECASE)
    }
    missing = {name for name in mentioning - files if not any(name.startswith(f) for f in folders)}
    assert not missing, f"CONTRIBUTING.md does not list {sorted(missing)}"
    unrelated = {name for name in files - mentioning if name != "tests/public_api.txt"}
    assert not unrelated, f"these do not mention lncc: {sorted(unrelated)}"


if __name__ == "__main__":
    print("\n".join(public_surface()))
