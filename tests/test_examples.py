"""The examples of the docs: the main job, and the pictures of the paths."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Lib
from support import convergence
from support.ranks import Rank, World

import xopt

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib").use("Agg")
    return load("train_digits")


def quick(digits: Any, *args: str) -> Any:
    return digits.main(["--quiet", "--output", "", "--seed", "0", *args])


def test_defaults_reach_97_percent_and_draw(digits: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = digits.main(["--library", "numpy", "--output", str(tmp_path / "loss.png")])
    assert result["test accuracy"] >= 0.97
    assert (tmp_path / "loss.png").stat().st_size > 10_000
    table = capsys.readouterr().out
    for word in ("optimizer", "library", "runner", "steps", "training loss", "test accuracy", "adam", "numpy", "tiled"):
        assert word in table


def test_the_same_seed_gives_the_same_digits(digits: Any) -> None:
    args = ("--library", "numpy", "--epochs", "3")
    first, second = quick(digits, *args), quick(digits, *args)
    assert first["training loss"] == second["training loss"]
    assert first["training loss"] != digits.main(["--quiet", "--output", "", "--seed", "1", *args])["training loss"]


def test_libraries_agree(digits: Any, lib: Lib) -> None:
    """The final loss in float64 is the same to 1e-4 on every library that the script knows."""
    if lib.name not in ("torch", "jax", "cupy") or lib.guise == "grad":
        pytest.skip("not a library of the script")
    args = ("--epochs", "4", "--optimizer", "rmsprop", "--schedule", "cosine")
    want = quick(digits, "--library", "numpy", *args)["training loss"]
    got = quick(digits, "--library", lib.name, *args)["training loss"]
    assert abs(got - want) < 1e-4 * want


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adadelta", "rmsprop", "adamw", "lion"])
@pytest.mark.parametrize("schedule", ["constant", "warmup_cosine"])
def test_options(digits: Any, optimizer: str, schedule: str) -> None:
    result = quick(
        digits, "--library", "numpy", "--epochs", "6", "--optimizer", optimizer, "--schedule", schedule, "--clip", "5"
    )
    assert result["test accuracy"] > 0.9


def test_state_in_fewer_digits(digits: Any) -> None:
    """It is another run, of nearly the same loss."""
    args = ("--library", "numpy", "--epochs", "6", "--dtype", "float32")
    found = [quick(digits, *args, *more)["training loss"] for more in ((), ("--state-dtype", "int8"))]
    assert found[0] != found[1]
    assert found[1] < 1.2 * found[0]


def test_pictures_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    module = load("compare_paths")
    monkeypatch.setattr(sys, "argv", ["compare_paths.py"])
    module.main(["--output-dir", str(tmp_path)])
    assert len(list(tmp_path.glob("*.png"))) == 3
    matplotlib.pyplot.close("all")


def test_pictures_of_schedules(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    module = load("draw_schedules")
    module.main(["--output-dir", str(tmp_path)])
    assert len(list(tmp_path.glob("*.png"))) == 2
    drawn = [x.name for panels in (module.SCHEDULES, module.COMBINED) for found in panels.values() for x in found]
    assert set(drawn) >= set(xopt.schedules.__all__) - {"Schedule"}
    matplotlib.pyplot.close("all")


def test_pictures_of_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what was measured; and a measurement of one rule, with a few steps."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    module = load("compare_rules")
    module.main(["--output-dir", str(tmp_path)])
    assert len(list(tmp_path.glob("*.png"))) == 1 + len(module.PROBLEMS)
    measured = json.loads((EXAMPLES / "compare_rules.json").read_text(encoding="utf-8"))
    assert [*measured["problems"]] == [*module.PROBLEMS]
    assert measured["rules"].keys() <= convergence.read().keys()

    pytest.importorskip("sklearn")
    few = {"rosenbrock": ("A valley", 50, None, 1), "network": ("A network", 45, 64, 2)}
    monkeypatch.setattr(module, "PROBLEMS", few)
    data = tmp_path / "rules.json"
    for text in ("Adam", "ScheduleFreeSGD"):
        module.main(["--measure", text, "--data", str(data), "--output-dir", str(tmp_path)])
    measured = json.loads(data.read_text(encoding="utf-8"))
    assert [*measured["rules"]] == ["Adam", "ScheduleFreeSGD"]
    for row in measured["rules"].values():
        for name, found in row["curves"].items():
            assert len(found["median"]) == len(measured["problems"][name]["steps"])
            assert found["median"][-1] < 0.2 < found["median"][0] == 1
            assert ("low" in found) == (name == "network")
    matplotlib.pyplot.close("all")


SMALL: dict[str, list[str]] = {  # the same shapes twice: JAX compiles for each shape
    "deblur_camera": ["--size", "64", "--radius", "2"],
    "mri_undersampled": ["--size", "50", "--coils", "6"],
    "phase_retrieval": ["--size", "50", "--masks", "6"],
    "logistic_regression": ["--size", "300"],
}


def problem(name: str) -> Any:
    """Load a script that minimizes."""
    for need in ("sklearn", "skimage"):
        pytest.importorskip(need)
    pytest.importorskip("matplotlib").use("Agg")
    return load(name)


def drawn(name: str, folder: Path, *args: str) -> Any:
    """Return what a script returns that draws two pictures."""
    result = problem(name).main(["--library", "numpy", "--output-dir", str(folder), *args])
    pictures = list(folder.glob("*.png"))
    assert len(pictures) == 2
    assert all(file.stat().st_size > 20_000 for file in pictures)
    sys.modules["matplotlib.pyplot"].close("all")
    return result


def gaps(result: Any) -> dict[str, float]:
    """Return how far each method ended above the lowest value, as a part of it."""
    ends = {name: curve[-1, 1] for name, curve in result["curves"].items()}
    return {name: end / min(ends.values()) - 1 for name, end in ends.items()}


def test_deblurring(tmp_path: Path) -> None:
    """L-BFGS gains 4 dB and ends lowest; the minimum is one, and the others come near it."""
    result = drawn("deblur_camera", tmp_path, "--size", "128", "--radius", "2")
    assert result["psnr"]["L-BFGS"] > result["psnr"]["blurred"] + 4
    assert gaps(result)["L-BFGS"] == 0
    assert max(gaps(result).values()) < 1e-4


def test_deblurring_with_total_variation(tmp_path: Path) -> None:
    """PDHG gains 4 dB, and with adapted steps it ends lower than with equal ones."""
    result = drawn("deblur_tv", tmp_path, "--size", "128", "--radius", "2", "--iterations", "100")
    assert result["psnr"]["adapted"] > result["psnr"]["blurred"] + 4
    assert gaps(result)["adapted"] == 0 < gaps(result)["σ/τ = 1"]
    assert 0 <= result["images"]["adapted"].min() <= result["images"]["adapted"].max() <= 1


def test_undersampled_mri(tmp_path: Path) -> None:
    """The error is less than a third of that of zeros for what was not measured."""
    result = drawn("mri_undersampled", tmp_path, "--size", "100")
    assert result["error"]["L-BFGS"] < min(0.1, result["error"]["zeros"] / 3)
    assert gaps(result)["L-BFGS"] == 0
    assert max(gaps(result).values()) < 1e-4


def test_phase_retrieval(tmp_path: Path) -> None:
    """Without noise, the object is found to all digits, but for Adam."""
    error = drawn("phase_retrieval", tmp_path, "--size", "32", "--masks", "8")["error"]
    assert 0.2 < error["start"] < 0.7
    assert max(error["L-BFGS"], error["conjugate gradients"]) < 1e-11
    assert error["Adam"] < 1e-4


def test_map_of_relaxation_times(tmp_path: Path) -> None:
    """All pixels converge, and T2 is off by what its standard error says."""
    pytest.importorskip("matplotlib").use("Agg")
    result = load("fit_relaxation").main(["--library", "numpy", "--size", "64", "--output-dir", str(tmp_path)])
    assert result["success"].all()
    assert abs(result["noise"] - 0.01) < 1e-3
    maps = result["maps"]
    off = ((maps["T2"] - maps["true T2"]) / maps["error"])[maps["T2"] > 0]
    assert len(off) == len(result["success"]) > 1500
    assert 0.95 < off.std() < 1.05  # of 2,000 numbers, whose spread is known within 3 % (2 standard deviations)
    assert len([file for file in tmp_path.glob("*.png") if file.stat().st_size > 20_000]) == 2
    sys.modules["matplotlib.pyplot"].close("all")


def test_fits_of_nist(tmp_path: Path) -> None:
    """From both starts at least 7 digits of the parameters that are certified, and 6 of their standard errors."""
    pytest.importorskip("matplotlib").use("Agg")
    right = load("fit_nist").main(["--library", "numpy", "--output-dir", str(tmp_path)])
    assert len(right) == 4
    for both in right.values():
        assert len(both) == 2
        for parameters, errors in both:
            assert parameters > 7
            assert errors > 6
    [file] = tmp_path.glob("*.png")
    assert file.stat().st_size > 20_000
    sys.modules["matplotlib.pyplot"].close("all")


def test_tomography_on_many_ranks(tmp_path: Path) -> None:
    """Ranks with a share of the pictures each find what one process does, but for roundings of float64."""
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib").use("Agg")
    module = load("tomography_mpi")
    args = ["--library", "numpy", "--dtype", "float64", "--noise", "0.1", "--size", "48", "--output-dir", str(tmp_path)]
    want = module.main(args)
    assert want["errors"][-1] < 0.1 < want["errors"][1]
    assert [file.name for file in tmp_path.glob("*.png")] == ["tomography.png"]

    def job(comm: Rank) -> Any:
        return module.solve(module.arguments(args), comm)[1]

    for got in World(3).run(job):
        assert abs(got - want["volume"]).max() < 1e-9
    sys.modules["matplotlib.pyplot"].close("all")


def test_logistic_regression(tmp_path: Path) -> None:
    """L-BFGS and conjugate gradients end where scikit-learn does."""
    found = drawn("logistic_regression", tmp_path)["found"]
    want = found["scikit-learn"]
    for name in ("L-BFGS", "conjugate gradients"):
        assert abs(found[name]["value"] - want["value"]) < 1e-9 * want["value"]
        assert abs(found[name]["params"]["w"] - want["params"]["w"]).max() < 1e-3
        assert found[name]["accuracy"] == want["accuracy"] > 0.95
    assert found["Adam"]["value"] < (1 + 1e-6) * want["value"] < found["gradient descent"]["value"]


def few(name: str, *args: str) -> Any:
    """Return what each method found in a dozen evaluations, and its curve."""
    module = problem(name)
    found, curves = module.solve(module.arguments([*SMALL[name], "--evaluations", "12", *args]))
    return {k: found[k]["params"]["w"] if "params" in found[k] else found[k] for k in curves}, curves


@pytest.mark.parametrize("name", SMALL)
def test_libraries_minimize_alike(name: str, lib: Lib) -> None:
    """A dozen evaluations of float64 make of roundings (1e-16) no more than 1e-9, on any library and by any method."""
    if lib.name not in ("torch", "jax", "cupy") or lib.guise == "grad":
        pytest.skip("not a library of the scripts")
    (want, before), (got, after) = few(name, "--library", "numpy"), few(name, "--library", lib.name)
    for method in want:
        assert abs(got[method] - want[method]).max() < 1e-9 * abs(want[method]).max()
        assert after[method] == pytest.approx(before[method], rel=1e-9)


@pytest.mark.parametrize("name", SMALL)
def test_single_precision(name: str) -> None:
    """In float32, images stay float32 or complex64, and L-BFGS goes the same way to 1e-4."""
    want, got = few(name, "--library", "numpy")[0]["L-BFGS"], few(name, "--library", "numpy", "--dtype", "float32")[0]
    if name != "logistic_regression":  # which compares with scikit-learn in float64
        assert {x.dtype.name for x in got.values()} == {"complex64" if want.dtype.kind == "c" else "float32"}
    assert abs(got["L-BFGS"] - want).max() < 1e-4 * abs(want).max()
