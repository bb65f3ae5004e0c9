"""What `make wheel` runs with the Python of an environment that has the wheel and nothing else.

The wheel's kernels are in use, right and fast; without them the cause and the command are named,
and the command compiles the sources that the wheel ships.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = str(Path(sys.executable).with_name("torchcorr"))
# Milliseconds with kernels; without them more than a second.
LONGEST_SECONDS = 0.5
CALL = f"""
import time, warnings
import torch, torchcorr

warnings.simplefilter("error")
torch.manual_seed(0)
x, t = torch.rand(512, 512), torch.rand(32, 32)
scores = torchcorr.zncc(x, t)
windows = x[:40, :50].double().unfold(0, 32, 1).unfold(1, 32, 1).flatten(2)
template = t.double().flatten()
centred = windows - windows.mean(-1, keepdim=True)
expected = torch.cosine_similarity(centred, (template - template.mean()).expand_as(centred), -1)
torch.testing.assert_close(scores[:9, :19].double(), expected, rtol=0, atol=1e-5)
seconds = []
for _ in range(5):
    start = time.perf_counter()
    torchcorr.zncc(x, t)
    seconds.append(time.perf_counter() - start)
print(f"zncc, 512 x 512 by 32 x 32: {{1e3 * min(seconds):.1f}} ms")
assert min(seconds) < {LONGEST_SECONDS}, seconds
"""


def output(*command: str) -> str:
    """What a command printed; `SystemExit` if it failed."""
    environment = {**os.environ, "XDG_CACHE_HOME": os.getcwd()}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}{done.stderr}{command} failed: {done.returncode}")
    return done.stdout


def require_info(end: str) -> None:
    """Raise `SystemExit` unless the line of `torchcorr info` about the CPU ends so."""
    lines = output(PROGRAM, "info").splitlines()
    line = next(line for line in lines if line.startswith("cpu "))
    print(line, flush=True)
    require(line.endswith(end), f"torchcorr info does not say: {end}")


def require(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"the wheel fails its test: {what}")


def main() -> None:
    # Not the checkout, whose package would be imported instead.
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chdir(elsewhere)
        where = output(sys.executable, "-c", "import torchcorr; print(torchcorr.__file__)")
        package = Path(where.strip()).parent
        require(package.is_relative_to(sys.prefix), f"{package} is not in {sys.prefix}")
        libraries = [p.name for p in package.parent.glob("torchcorr*/**/*.so*")]
        require(libraries == ["_kernels.so"], f"it carries other libraries: {libraries}")
        require((package / "_examples" / "1_find_coins.py").exists(), "it has no examples")
        require_info("kernels in use")
        print(output(sys.executable, "-c", CALL), end="", flush=True)

        shutil.move(package / "_kernels.so", "_kernels.so")
        require_info("to compile them: torchcorr build")
        print(output(PROGRAM, "build"), end="", flush=True)
        require_info("kernels in use")
        print(output(sys.executable, "-c", CALL), end="", flush=True)
        os.chdir("/")


if __name__ == "__main__":
    main()
