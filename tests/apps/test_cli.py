"""The command line: what it finds, what it writes, and one line with status 2 for bad input."""

import csv
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.io import wavfile
from skimage import data

from torchcorr.__main__ import _PACKAGES, main

PLACE = (92, 236, 60, 64)
WITHOUT_KERNELS = (
    "import pathlib; exists = pathlib.Path.exists\n"
    "pathlib.Path.exists = lambda p: not p.name.startswith('_kernels') and exists(p)\n"
    "from torchcorr.__main__ import main; main(['info'])"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a photograph and a coin cut from it, in several formats."""
    monkeypatch.chdir(tmp_path)
    y, x, height, width = PLACE
    gray = data.coins()
    coin = gray[y : y + height, x : x + width]
    for name, image in (("image", gray), ("coin", coin)):
        Image.fromarray(image).save(f"{name}.png")
        Image.fromarray(image).save(f"{name}.jpg", quality=95)
        Image.fromarray(image).save(f"{name}.tif")
        Image.fromarray(image.astype(np.uint16) * 257).save(f"{name}16.png")
        Image.fromarray(np.stack([image, image // 2, 255 - image], -1)).save(f"{name}-colour.png")
        tifffile.imwrite(f"{name}16-colour.tif", np.stack([image.astype(np.uint16) * 200] * 3, -1))
        np.save(f"{name}.npy", image.astype(np.float64) / 255)
    return tmp_path


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("image", "template"),
    [
        ("image.png", "coin.png"),
        ("image.jpg", "coin.jpg"),
        ("image.tif", "coin16.png"),
        ("image16.png", "coin.npy"),
        ("image.npy", "coin.tif"),
        ("image16-colour.tif", "coin.png"),
        ("image-colour.png", "coin-colour.png"),
    ],
)
def test_match_reads_every_format(folder, capsys, image, template):
    assert main(["match", image, template, "--json", "found.json"]) == 0
    best = json.loads((folder / "found.json").read_text())["matches"][0]
    assert (best["height"], best["width"]) == PLACE[2:]
    assert (best["y"], best["x"]) == pytest.approx(PLACE[:2], abs=0.1)
    assert best["score"] > 0.98
    assert "matches of 60 x 64 pixels" in capsys.readouterr().out


def test_match_writes_every_output_and_leaves_nothing_else(folder):
    before = files(folder)
    command = "match image.png coin.png --threshold 0.5 --max-matches 3 --json a.json --csv a.csv"
    assert main([*command.split(), "--plot", "a.png", "--score-map", "a.npy"]) == 0
    found = json.loads((folder / "a.json").read_text())["matches"]
    with (folder / "a.csv").open(newline="") as stream:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]
    assert rows == found
    assert len(found) == 3
    assert [m["score"] for m in found] == sorted((m["score"] for m in found), reverse=True)
    scores = np.load("a.npy")
    assert scores.dtype == np.float32
    assert scores.shape == tuple(np.subtract(data.coins().shape, PLACE[2:]) + 1)
    assert scores[PLACE[:2]] == scores.max() == pytest.approx(found[0]["score"])
    with Image.open("a.png") as picture:
        assert picture.size > (600, 300)
    assert files(folder) == sorted([*before, "a.csv", "a.json", "a.npy", "a.png"])


def test_score_map_as_picture_and_plot_as_svg(folder):
    command = "match image.png coin.png --score-map map.png --plot plot.svg"
    assert main(command.split()) == 0
    with Image.open("map.png") as picture:
        levels = np.asarray(picture)
    assert levels[PLACE[:2]] == levels.max() == 255
    assert xml.etree.ElementTree.parse("plot.svg").getroot().tag.endswith("svg")


def test_joint_colour_sees_what_gray_does_not(folder):
    image = np.full((40, 60, 3), 100, np.uint8)
    patch = np.random.default_rng(0).integers(0, 80, (10, 12), dtype=np.uint8)
    image[5:15, 5:17, 0] += patch
    image[20:30, 40:52, 2] += patch
    Image.fromarray(image).save("scene.png")
    Image.fromarray(image[20:30, 40:52]).save("blue.png")
    for channels, expected in (("joint", 1), ("gray", 2)):
        arguments = ["--channels", channels, "--threshold", "0.9", "--json", "c.json"]
        assert main(["match", "scene.png", "blue.png", *arguments]) == 0
        assert len(json.loads((folder / "c.json").read_text())["matches"]) == expected


def test_bands_of_rows_give_the_same_answer(folder, monkeypatch):
    assert main(["match", "image.png", "coin.png", "--score-map", "whole.npy"]) == 0
    monkeypatch.setattr("torchcorr._command.match._BAND_PIXELS", 1000)
    assert main(["match", "image.png", "coin.png", "--score-map", "bands.npy"]) == 0
    np.testing.assert_allclose(np.load("bands.npy"), np.load("whole.npy"), atol=2e-5)


def test_no_match_is_said_with_the_best_score(folder, capsys):
    np.save("noise.npy", np.random.default_rng(1).normal(size=(20, 20)))
    assert main(["match", "image.png", "noise.npy", "--json", "n.json"]) == 0
    assert "no match with a score of 0.8 or more; the best score is 0." in capsys.readouterr().out
    assert json.loads((folder / "n.json").read_text()) == {"matches": []}


def test_alpha_and_masks_hide_pixels_of_the_template(folder, capsys):
    """A coin on another background, cut out by its alpha channel or by a picture."""
    y, x, height, width = PLACE
    coin = data.coins()[y : y + height, x : x + width]
    rows, columns = np.ogrid[:height, :width]
    seen = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (height / 2.2) ** 2
    pasted = np.where(seen, coin, np.where(columns % 2, 255, 0)).astype(np.uint8)
    alpha = (255 * seen).astype(np.uint8)
    Image.fromarray(np.stack([pasted, alpha], -1)).save("cut.png")
    Image.fromarray(np.stack([pasted] * 3 + [alpha], -1)).save("cut-colour.png")
    Image.fromarray(pasted).save("pasted.png")
    Image.fromarray(alpha).save("mask.png")
    for command in ("cut.png", "cut-colour.png", "pasted.png --mask mask.png"):
        assert main(["match", "image.png", *command.split(), "--json", "m.json"]) == 0
        said = capsys.readouterr().out
        assert ("the alpha channel of cut" in said) == command.startswith("cut")
        (match,) = json.loads((folder / "m.json").read_text())["matches"]
        assert (round(match["y"]), round(match["x"])) == (y, x)
        assert match["score"] > 0.999
    for command in ("cut.png --ignore-alpha", "pasted.png"):
        assert main(["match", "image.png", *command.split()]) == 0
        assert "no match" in capsys.readouterr().out


def test_missing_pixels_do_not_end_a_search(folder, capsys):
    image = data.coins().astype(np.float32)
    image[:, 200:203] = np.nan
    np.save("gaps.npy", image)
    tifffile.imwrite("gaps.tif", image)
    for name in ("gaps.npy", "gaps.tif"):
        assert main(["match", name, "coin.png", "--threshold", "0.9"]) == 0
        assert "1 match of 60 x 64" in capsys.readouterr().out
    np.save("noise.npy", np.random.default_rng(1).normal(size=(20, 20)))
    assert main(["match", "gaps.npy", "noise.npy"]) == 0
    assert "the best score is 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("match image.png gap.npy", "gap.npy: the template has pixels that are not finite"),
        ("match image.png flat.png", "flat.png: all pixels of the template are equal"),
        ("match image.png coin.png --mask flat.png", "flat.png: a mask has the size of its"),
        ("match image.png coin.png --mask black.png", "black.png: a mask is not negative and not"),
        ("match image.png clear.png", "clear.png: every pixel is transparent"),
        ("match none.png coin.png", "none.png: cannot be read: no such file or directory"),
        ("match text.png coin.png", "text.png: cannot be read: not a picture that Pillow knows"),
        ("match text.npy coin.png", "text.npy: cannot be read"),
        ("match cut.png coin.png", "cut.png: cannot be read"),
        ("match image.bmp coin.png", "image.bmp: unknown extension '.bmp': expected one of .png"),
        ("match coin.png image.png", "template is larger than image: got 303 x 384, image is 60"),
        ("match image.png coin-colour.png --channels joint", "needs a colour image and a colour"),
        ("match image.png coin.png --json none/a.json", "none/a.json: cannot be written: no dir"),
        ("match image.png coin.png --csv a.txt", "a.txt: unknown extension '.txt'"),
        ("match image.png coin.png --plot a.gif", "a.gif: unknown extension '.gif'"),
        ("match image.png coin.png --score-map a.tif", "a.tif: unknown extension '.tif'"),
        ("match image.png coin.png --max-matches 0", "--max-matches must be at least 1: got 0"),
        ("match image.png coin.png --threshold nan", "--threshold must be a number: got nan"),
        ("match image.png coin.png --plot image.png", "image.png: is read by this command"),
        ("match image.png coin.png --plot a.png --score-map a.png", "a.png: two outputs have"),
        ("match missing.npy coin.png", "missing.npy: every pixel is missing"),
        ("align missing.npy image.png", "missing.npy: every element is missing"),
        ("align clear.png image.png", "clear.png: every pixel is transparent"),
        ("align header.wav header.wav", "header.wav: the file is damaged"),
        ("match image.png coin.png --threshold high", "argument --threshold: invalid float"),
        ("match image.png", "the following arguments are required: TEMPLATE"),
        ("guess image.png", "argument COMMAND: invalid choice: 'guess'"),
        ("align image.npy text.wav", "both must be recordings, or both images: got one of each"),
        ("align image.png image.png --rate 3", "--rate is for recordings: got images"),
        ("align image.png image.png --plot a.png", "--plot draws recordings: got images"),
        ("align image.png image.png --lags 900 901", "lags must contain one at which recordings"),
        ("align none.wav text.wav", "none.wav: cannot be read: no such file or directory"),
        ("align text.wav text.wav", "text.wav: cannot be read"),
        ("align notes.txt notes.txt", "notes.txt: unknown extension '.txt': expected one of .wav"),
        ("demo --output image.png/demo", "image.png/demo: cannot be made"),
    ],
)
def test_bad_input_is_one_line_and_status_2(folder, capsys, command, said):
    for name in ("text.png", "text.npy", "text.wav"):
        (folder / name).write_text("just words")
    (folder / "cut.png").write_bytes((folder / "image.png").read_bytes()[:3000])
    wavfile.write("whole.wav", 8000, np.arange(9, dtype=np.int16))
    (folder / "header.wav").write_bytes((folder / "whole.wav").read_bytes()[:20])
    np.save("missing.npy", np.full((70, 70), np.nan))
    np.save("gap.npy", np.where(np.eye(8), np.nan, np.arange(8.0)))
    Image.fromarray(np.full((9, 8), 7, np.uint8)).save("flat.png")
    Image.fromarray(np.zeros(PLACE[2:], np.uint8)).save("black.png")
    Image.fromarray(np.stack([np.eye(9), np.zeros((9, 9))], -1).astype(np.uint8)).save("clear.png")
    before = files(folder)
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("torchcorr: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert files(folder) == before


def test_failed_write_keeps_the_old_file(folder, monkeypatch, capsys):
    (folder / "a.json").write_text("old")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    before = files(folder)
    assert main(["match", "image.png", "coin.png", "--json", "a.json"]) == 2
    assert "a.json: cannot be written: no space left" in capsys.readouterr().err
    assert (folder / "a.json").read_text() == "old"
    assert files(folder) == before


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"torchcorr {importlib.metadata.version('torchcorr')}\n"


def test_info_names_versions_and_kernels(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("torchcorr", "torch ", "threads", "kernels", "window_moments"):
        assert word in out


def test_info_without_kernels_names_cause_and_cure():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERNELS],
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("cpu "))
    assert "no kernels: " in line
    assert line.endswith("; to compile them: torchcorr build")


@pytest.mark.parametrize(
    ("command", "module", "package"),
    [
        ("match image.png coin.png", "PIL", "Pillow"),
        ("match image.png coin.png --plot a.png", "matplotlib", "matplotlib"),
        ("align a.wav a.wav", "scipy", "scipy"),
        ("demo", "skimage", "scikit-image"),
    ],
)
def test_missing_package_is_named_as_pip_knows_it(
    folder, monkeypatch, capsys, command, module, package
):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"torchcorr: this needs {package}: pip install {package}, or all")
    assert said.endswith("pip install 'torchcorr[cli,plot]'\n")
    assert said.count("\n") == 1


def test_what_the_message_installs_is_everything_that_commands_import():
    required = [line.lower() for line in importlib.metadata.requires("torchcorr")]
    for module in ("PIL", "matplotlib", "pywt", "scipy", "skimage", "tifffile", "tqdm"):
        package = _PACKAGES.get(module, module).lower()
        assert any(re.match(rf"{package}\b.*extra == .(cli|plot)", line) for line in required), (
            module
        )


def test_demo_finds_refines_and_aligns(folder, capsys):
    assert main(["demo", "--output", "shown"]) == 0
    out = capsys.readouterr().out
    assert "(92, 236)" in out
    pictures = ["1-find-coins.png", "2-refine-pose.png", "3-align-recordings.png"]
    assert files(folder / "shown") == pictures
    for picture in pictures:
        with Image.open(folder / "shown" / picture) as image:
            assert image.size > (600, 300)
    end = next(line for line in out.splitlines() if line.strip().startswith("end"))
    words = end.split("off by ")[1].split()
    assert float(words[0]) < 0.1
    assert float(words[3]) < 0.3
    lag = next(line for line in out.splitlines() if "lag found" in line)
    assert float(lag.split("off by ")[1].split()[0]) < 0.2


def test_demo_without_its_examples_says_so(folder, capsys, monkeypatch):
    monkeypatch.setattr("torchcorr._command.demo._PACKAGE", folder / "src" / "torchcorr")
    before = files(folder)
    assert main(["demo"]) == 2
    assert "the examples are missing" in capsys.readouterr().err
    assert files(folder) == before


def test_as_a_program(folder):
    run = subprocess.run(
        [sys.executable, "-m", "torchcorr", "match", "image.png", "none.png"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("torchcorr: none.png")
    assert run.stdout == ""
