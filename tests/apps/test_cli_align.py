"""``torchcorr align`` on the command line: recordings and images, and what it says about them."""

import json
import re

import numpy as np
import pytest
import tifffile
from inputs import tensor
from PIL import Image
from scipy.io import wavfile
from scipy.signal import resample_poly
from skimage import data

from torchcorr import Shift, estimate_shift
from torchcorr.__main__ import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_align_wav_in_samples_and_seconds(folder, capsys):
    source = np.random.default_rng(2).normal(size=4000).cumsum()
    source = np.int16(source / np.abs(source).max() * 20000)
    wavfile.write("a.wav", 8000, source[:3000])
    wavfile.write("b.wav", 8000, np.stack([source[400:]] * 2, axis=-1))
    assert main(["align", "a.wav", "b.wav", "--json", "lag.json", "--plot", "lag.png"]) == 0
    found = json.loads((folder / "lag.json").read_text())
    assert found["lag_samples"] == pytest.approx(400, abs=0.1)
    assert found["lag_seconds"] == pytest.approx(0.05, abs=1e-4)
    assert found["rate"] == 8000
    assert found["score"] == pytest.approx(1.0)
    assert "lag +400.0" in capsys.readouterr().out
    assert (folder / "lag.png").stat().st_size > 10_000

    assert found["overlap"] == 2600
    assert found["found"] is True and found["at_limit"] is False
    assert found["false_alarm"] < 0.01 < 0.9 > found["runner_up_score"]


def test_align_resamples_and_says_so(folder, capsys):
    source = np.random.default_rng(2).normal(size=8000)
    source = resample_poly(source, 4, 1)
    wavfile.write("a.wav", 8000, np.float32(source[::4][:6000]))
    wavfile.write("b.wav", 16000, np.float32(source[::2][4001:]))
    assert main(["align", "a.wav", "b.wav"]) == 0
    said = capsys.readouterr().out
    assert "b.wav resampled from 16000 Hz to 8000 Hz" in said
    lag = float(re.search(r"lag ([+\d.]+) samples", said)[1])
    assert lag == pytest.approx(2000.5, abs=0.02)


def test_align_says_that_there_is_no_common_pattern(folder, capsys):
    noise = np.random.default_rng(2).normal(size=1000)
    wavfile.write("silence.wav", 8000, np.zeros(1000, dtype=np.int16))
    np.save("noise.npy", noise)
    assert main(["align", "silence.wav", "noise.npy", "--json", "a.json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "no common pattern\n" and captured.err == ""
    found = json.loads((folder / "a.json").read_text())
    assert found["found"] is False and found["lag_samples"] is None
    assert found["score"] == 0 and found["runner_up"] == [None]


def test_align_takes_a_channel_instead_of_the_mean(folder, capsys):
    source = np.int16(9000 * np.random.default_rng(2).normal(size=1000).clip(-3, 3))
    wavfile.write("antiphase.wav", 8000, np.stack([source[50:], -source[50:]], axis=-1))
    wavfile.write("mono.wav", 8000, source)
    assert main(["align", "mono.wav", "antiphase.wav"]) == 0
    said = capsys.readouterr().out
    assert "channel 1 of the 2 of antiphase.wav" in said and "lag +50.000" in said
    options = ["--channel", "2", "--polarity", "either"]
    assert main(["align", "antiphase.wav", "antiphase.wav", *options]) == 0
    assert main(["align", "mono.wav", "antiphase.wav", "--channel", "3"]) == 2
    assert "antiphase.wav: has channels 1 to 2: got 3" in capsys.readouterr().err
    assert main(["align", "mono.wav", "antiphase.wav", "--channel", "1"]) == 0
    assert main(["align", "mono.wav", "antiphase.wav", *options]) == 0
    assert "lag +50.000 samples (+0.006250 s), score -1.0000" in capsys.readouterr().out


def test_align_has_all_the_options_of_the_function(folder, capsys):
    source = np.random.default_rng(4).normal(size=700)
    np.save("a.npy", source[:500])
    np.save("b.npy", -source[60:560])
    command = "align a.npy b.npy --polarity either --lags 0 60 --min-overlap 0.5 --subsample gauss"
    assert main([*command.split(), "--weighting", "phat", "--json", "a.json"]) == 0
    found = json.loads((folder / "a.json").read_text())
    assert found["shift"][0] == pytest.approx(60, abs=0.5)
    assert found["score"] < 0 and found["at_limit"] is True and found["lags"] == [[0, 60]]
    assert "limit of the search" in capsys.readouterr().out


@pytest.mark.parametrize("weighting", ["phat", "ml"])
def test_align_weighs_the_spectra_of_what_is_there(folder, capsys, weighting):
    source = np.random.default_rng(4).normal(size=700) + 90
    first, second = source[:500].copy(), source[60:560].copy()
    first[100:180] = second[300:410] = np.nan
    np.save("a.npy", first)
    np.save("b.npy", second)
    command = f"align a.npy b.npy --weighting {weighting} --json a.json"
    assert main(command.split()) == 0
    assert "80 of 500 elements of a.npy are missing" in capsys.readouterr().out
    found = json.loads((folder / "a.json").read_text())
    assert found["shift"][0] == pytest.approx(60, abs=0.01)
    assert found["overlap"] == np.isfinite(first[60:] + second[:-60]).sum()


@pytest.mark.parametrize("ndim", [1, 2])
def test_align_json_holds_all_of_the_result(folder, ndim):
    rng = np.random.default_rng(6)
    source = rng.normal(size=(90, 90)[:ndim])
    first, second = (
        source[(slice(k, k + 70),) * ndim] + rng.normal(size=(70,) * ndim) for k in (0, 9)
    )
    np.save("a.npy", first)
    np.save("b.npy", second)
    assert main(["align", "a.npy", "b.npy", "--json", "a.json"]) == 0
    found = json.loads((folder / "a.json").read_text())
    shift = estimate_shift(*map(tensor, (first, second)), ndim=ndim)
    for name in set(Shift.__dataclass_fields__) - {"ranges", "score_map"}:
        assert found[name] == getattr(shift, name).tolist(), name
    assert found["lags"] == [list(ends) for ends in shift.ranges]


def test_align_images(folder, capsys):
    image = data.camera()
    Image.fromarray(image[:300, :300]).save("a.png")
    Image.fromarray(image[40:340, 25:325]).save("b.tif")
    assert main(["align", "a.png", "b.tif", "--json", "a.json"]) == 0
    assert "shift (+40.000, +25.000) pixels, score 1.0000" in capsys.readouterr().out
    found = json.loads((folder / "a.json").read_text())
    assert found["shift"] == [40, 25] and found["overlap"] == 260 * 275
    assert "lag_samples" not in found


def test_align_leaves_out_what_is_transparent_or_missing(folder, capsys):
    image = data.camera()
    first = np.stack([image[:300, :300], np.full((300, 300), 255, np.uint8)], -1)
    first[80:200, 60:250] = 0
    Image.fromarray(first).save("a.png")
    gaps = np.float32(image[40:340, 25:325])
    gaps[10:30] = np.nan
    tifffile.imwrite("b.tif", gaps)
    assert main(["align", "a.png", "b.tif", "--json", "a.json"]) == 0
    said = capsys.readouterr().out
    assert "the alpha channel of a.png weighs its pixels" in said
    assert "6000 of 90000 elements of b.tif are missing" in said
    assert "shift (+40.000, +25.000) pixels, score 1.0000" in said and "pixels overlap" in said
    assert len(json.loads((folder / "a.json").read_text())["remarks"]) == 2
    assert main(["align", "a.png", "b.tif", "--ignore-alpha"]) == 0
    assert "score 1.0000" not in capsys.readouterr().out


def test_align_recordings_with_gaps_and_a_cut_file(folder, capsys):
    source = np.random.default_rng(5).normal(size=1500)
    np.save("a.npy", np.where(np.arange(1000) % 300 < 20, np.nan, source[:1000]))
    np.save("b.npy", source[70:1070])
    assert main(["align", "a.npy", "b.npy", "--plot", "a.svg"]) == 0
    said = capsys.readouterr().out
    assert "80 of 1000 elements of a.npy are missing" in said and "lag +70.000 samples" in said
    wavfile.write("whole.wav", 8000, source)
    (folder / "cut.wav").write_bytes((folder / "whole.wav").read_bytes()[:8000])
    assert main(["align", "whole.wav", "cut.wav"]) == 0
    said = capsys.readouterr().out
    assert "cut.wav ends before its header says" in said
    assert "lag +0.000 samples (+0.000000 s), score 1.0000" in said


def test_align_doubts_what_chance_explains(folder, capsys):
    rng = np.random.default_rng(0)
    np.save("a.npy", rng.normal(size=400))
    np.save("b.npy", rng.normal(size=400))
    assert main(["align", "a.npy", "b.npy"]) == 0
    assert "doubt it: unrelated recordings" in capsys.readouterr().out
    assert main(["align", "a.npy", "a.npy"]) == 0
    assert "doubt it" not in capsys.readouterr().out


def test_align_takes_the_rate_of_npy_signals(folder, capsys):
    """As an option beside a WAV, whose header says its own."""
    source = resample_poly(np.random.default_rng(2).normal(size=3000), 4, 1)
    np.save("a.npy", source[::4][:2500])
    wavfile.write("b.wav", 16000, np.float32(source[::2][1001:]))
    for names, lag in ((("a.npy", "b.wav"), 500.5), (("b.wav", "a.npy"), -1001)):
        assert main(["align", *names, "--rate", "8000"]) == 0
        said = capsys.readouterr().out
        assert f"{names[1]} resampled from" in said
        assert float(re.search(r"lag ([-+\d.]+)", said)[1]) == pytest.approx(lag, abs=0.02)
    assert main(["align", "b.wav", "b.wav", "--rate", "8000"]) == 2
    assert "--rate is for NPY signals: got 8000, the WAV says 16000" in capsys.readouterr().err


def test_align_npy_with_and_without_rate(folder, capsys):
    source = np.random.default_rng(3).normal(size=500)
    np.save("a.npy", source[:400])
    np.save("b.npy", source[25:])
    assert main(["align", "a.npy", "b.npy", "--json", "lag.json"]) == 0
    assert json.loads((folder / "lag.json").read_text())["lag_seconds"] is None
    assert main(["align", "a.npy", "b.npy", "--rate", "100"]) == 0
    assert " s), score 1.0000" in capsys.readouterr().out
    assert main(["align", "a.npy", "b.npy", "--rate", "-1"]) == 2
    assert "--rate must be positive: got -1" in capsys.readouterr().err
