"""The project itself: who imports whom, what an import costs, what a newcomer touches, what is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import catalog
import folders
import numpy as np
import pytest

import xopt
from xopt._engine.runners import choose
from xopt._engine.runners.protocol import Runner

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "xopt"

# each folder, and each module beside them, may import those of earlier rows only
FLOORS = [
    ["_version", "_public"],
    ["_arrays"],
    ["random"],
    ["_engine", "schedules", "nn"],
    ["rule"],
    ["rules", "transforms", "_parse", "_logging", "_curvature"],
    ["checkpoint", "distributed"],
    ["optimizer", "_explain", "_config", "_sharded_files"],
    ["solvers", "_torch_files", "_flax_files", "_sharded_saving"],
    ["adapters", "proximal", "__main__", "_sharded"],
]
ENGINE = [
    ["program"],
    ["runners.threads", "runners.protocol", "bucket", "exclusive", "metrics"],
    ["runners.fallback"],
    ["runners.eager"],
    ["runners.tiled"],
    ["runners.llvm", "runners.cuda"],
    ["runners.choose"],
    ["resolve", "state", "again", "lazy_rows"],
    ["executor", "block"],
    ["eval_params", "buffers", "jitted", "curvature"],
]


def arrows(floors: list[list[str]], inside: str) -> set[tuple[str, str]]:
    """Return who imports whom among the rooms of a folder; modules that only hand names on are in none."""
    rooms = [room for row in floors for room in row]

    def room(module: str) -> str:
        found = [r for r in rooms if f"{module}.".startswith(f"{inside}{r}.")]
        assert found or module in FACES, f"{module} is on no floor"
        return max(found, key=len, default="")

    found = {
        (room(f"xopt.{name}"), room(other))
        for name, tree in folders.modules().items()
        for other in folders.imports(tree)
        if f"xopt.{name}".startswith(inside) and other.startswith(inside)
    }
    return {(a, b) for a, b in found if a and b and a != b}


FACES = {"xopt.", "xopt._engine", "xopt._engine.runners"}


@pytest.mark.parametrize(("floors", "inside"), [(FLOORS, "xopt."), (ENGINE, "xopt._engine.")], ids=["xopt", "engine"])
def test_folders_import_lower_floors_only(floors: list[list[str]], inside: str) -> None:
    floor = {room: i for i, row in enumerate(floors) for room in row}
    found = arrows(floors, inside)
    assert len(found) >= len(floor)
    assert [(a, b) for a, b in found if floor[b] >= floor[a]] == []
    assert len(floors) <= 10


def test_the_documented_floors_have_every_folder() -> None:
    found = folders.floors()
    assert {*found} == {*folders.rooms()} == {room for row in FLOORS for room in row}
    assert all(folders.subject(room) for room in found)


def test_modules_import_no_circle() -> None:
    left = {
        f"xopt.{m}".rstrip("."): {o for o in folders.imports(t) if o.startswith("xopt")}
        for m, t in folders.modules().items()
    }
    while free := [m for m, needs in left.items() if not needs & {*left} - {m}]:
        left = {m: needs for m, needs in left.items() if m not in free}
    assert not left


RULES_IMPORT = {
    "__future__",
    "collections.abc",
    "functools",
    "math",
    "typing",
    "xopt",
    "xopt.random",
    "xopt.rule",
    "xopt.rule._newton_schulz",
    "xopt.rule._whole_array",
    "xopt.rules.adam",
    "xopt.rules.shampoo",
}


def test_rules_import_only_rule() -> None:
    for name, tree in folders.modules().items():
        if name.startswith("rules."):
            assert folders.imports(tree) <= RULES_IMPORT, name


def test_only_the_file_of_a_library_knows_it() -> None:
    """Nobody else compares names of libraries or imports one, but adapters, checkpoints of torch and presets."""
    home, formats = PACKAGE / "_arrays" / "libraries", {"checkpoint._torch", "rule._presets"}
    known = {path.stem for path in home.glob("[!_]*.py")}
    assert {"numpy", "torch", "cupy", "jax", "dask", "dpnp", "cubed", "array_api_strict"} <= known
    compat = {p.parent for p in PACKAGE.rglob("*.py") if "array_api_compat" in p.read_text(encoding="utf-8")}
    assert compat == {home}
    for name, tree in folders.modules().items():
        if name.partition(".")[0] == "_arrays" or name in formats:
            continue
        for node in ast.walk(tree):
            named = {x.value for x in ast.walk(node) if isinstance(x, ast.Constant)} & known
            assert not (named and isinstance(node, ast.Compare | ast.Dict | ast.Match)), (name, named)
        roots = {x.partition(".")[0] for x in folders.imports(tree)}
        own = {name.rpartition(".")[2].lstrip("_")} if name.startswith("adapters.") else set()
        own |= {"jax"} if own == {"optax"} else {"ndonnx"} if own == {"onnx"} else set()
        assert not roots & (known - {"numpy"} - own), name


def test_no_two_classes_have_one_name() -> None:
    """But those that stand for one thing in many frameworks and libraries, and private ones of two modules."""
    found: dict[str, list[str]] = {}
    for module, tree in folders.modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name != "Own":
                found.setdefault(node.name, []).append(module)
    twice = {name: [m for m in own if not m.startswith("adapters.")] for name, own in found.items()}
    assert {name: own for name, own in twice.items() if len(own) > 1} == {}


def test_no_module_is_long() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, path.name
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, path.name


def run(code: str, *flags: str, **env: str) -> str:
    out = subprocess.run(
        [sys.executable, *flags, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | env,
    )
    assert out.returncode == 0, out.stderr
    return out.stdout


def test_import_loads_no_other_array_library() -> None:
    heavy = "torch jax cupy dask array_api_strict array_api_compat llvmlite matplotlib sklearn tqdm concurrent.futures"
    code = f"import xopt, sys; print([m for m in {heavy.split()} if m in sys.modules])"
    assert run(code, "-W", "error") == "[]\n"
    code = """
import sys, numpy as np, xopt
xopt.show_config()
opt = xopt.Optimizer({"w": np.ones(9)}, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam()))
opt.step({"w": np.ones(9)})
xopt.nn.Dropout().forward(np.ones(9))
print([m for m in ("torch", "jax", "cupy", "dask", "array_api_compat") if m in sys.modules])
"""
    assert run(code, "-W", "error").splitlines()[-1] == "[]"


def test_a_runner_is_imported_when_it_is_chosen() -> None:
    """The engine knows `choose` alone; what a user asks for first, a rule or a schedule, loads no backend."""
    code = """
import sys, numpy as np, xopt
def loaded():
    return sorted({m.split(".")[3] for m in sys.modules if m.startswith("xopt._engine.runners.")} - {"choose"})
xopt.SGD(lr=xopt.schedules.cosine(0.1, steps=9)), xopt.Groups, xopt.Accumulate
print(loaded())
xopt.Optimizer(np.ones(2), xopt.SGD(), runner="eager").step(np.ones(2))
print(loaded())
"""
    assert run(code).splitlines() == ["[]", "['eager']"]


@pytest.mark.parametrize("name", ["eager", "tiled", "llvm", "cuda"])
def test_a_runner_is_all_that_callers_use(name: str) -> None:
    runner = choose.backend(name)
    assert isinstance(runner, Runner)
    assert runner.name == name


def test_naming_a_rule_costs_at_most_two_fifths_of_numpy(tmp_path: Path) -> None:
    """Best of five each, of more on a busy machine, in processes of their own, all bytecode cached.

    It loads neither optree nor what takes steps.
    """
    env = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    code = "from time import time as c; t = c(); import numpy; u = c(); import xopt; xopt.SGD; print(u - t, c() - u)"
    run(code, **env)
    pairs: list[list[float]] = []
    for tries in (5, 10, 15):
        pairs += [[float(x) for x in run(code, **env).split()] for _ in range(tries)]
        numpy_s, xopt_s = (min(column) for column in zip(*pairs, strict=True))
        if xopt_s <= 0.4 * numpy_s:
            break
    loaded = run("import numpy, sys; old = {*sys.modules}; import xopt; xopt.SGD; print(*{*sys.modules} - old)").split()
    assert "xopt.rules.sgd" in loaded
    assert not {"optree", "xopt._engine.executor", "xopt._arrays.layout"} & {*loaded}
    assert xopt_s <= 0.4 * numpy_s, f"numpy {numpy_s * 1e3:.0f} ms, xopt {xopt_s * 1e3:.0f} ms more"


def code_lines(cls: type) -> int:
    """Count the lines of code of a class: fields and update, no docstring, no blank lines."""
    text = inspect.getsource(cls.__wrapped__)  # type: ignore[attr-defined]
    tree: Any = ast.parse(text).body[0]
    doc = tree.body[0]
    source = text.splitlines()
    rest = source[: doc.lineno - 1] + source[doc.end_lineno :]
    return sum(1 for line in rest if line.strip() and not line.strip().startswith("#"))


def test_adam_is_about_twelve_lines() -> None:
    assert code_lines(xopt.Adam) <= 21  # of which 8 declare its fields and 2 are `class` and `@staticmethod`
    body = inspect.getsource(xopt.Adam.update).splitlines()
    assert len(body) <= 12


def test_the_median_rule_is_fifteen_lines() -> None:
    """Without the docstring, and without the fields, which take a line each."""
    rules = catalog.public(xopt.Rule)
    assert statistics.median(code_lines(rule) - len(inspect.get_annotations(rule)) for rule in rules) <= 15


def public() -> list[tuple[str, Any]]:
    names = [(n, getattr(xopt, n)) for n in xopt.__all__ if not inspect.ismodule(getattr(xopt, n))]
    for module in (xopt.schedules, xopt.nn, xopt.random, xopt.distributed):
        names += [(f"{module.__name__.removeprefix('xopt.')}.{n}", getattr(module, n)) for n in module.__all__]
    return names


@pytest.mark.parametrize(("name", "thing"), public(), ids=[n for n, _ in public()])
def test_every_public_name_has_a_docstring_with_an_example(name: str, thing: Any) -> None:
    doc = inspect.getdoc(thing) or ""
    assert len(doc) > 30
    assert ">>>" in doc, f"{name} has no example"


@pytest.mark.parametrize("rule", catalog.public(xopt.Rule))
def test_rule_docstrings_are_complete(rule: Any) -> None:
    doc = inspect.getdoc(rule) or ""
    for part in ("Parameters", "Notes", "State:", "bytes per float32", "References", "Examples", "::"):
        assert part in doc, part
    for field in rule._fields:
        assert field in doc, field


def test_adding_a_rule_touches_three_files() -> None:
    """The machinery names no rule: the family's file, the stub and the catalogue do (peers and articles may)."""
    for name in ("Adadelta", "AdamW"):
        tables = {PACKAGE / "rule" / "_presets.py"}  # what is known of other libraries
        naming = {
            str(p.relative_to(ROOT))
            for p in {*PACKAGE.rglob("*.py")} - tables
            if f'"{name}"' in p.read_text(encoding="utf-8")
        }
        assert naming == {f"xopt/rules/{'adaptive' if name == 'Adadelta' else 'adam'}.py"}
        machine = [*(PACKAGE / "_arrays").rglob("*.py"), *(PACKAGE / "_engine").rglob("*.py")]
        naming = {p.name for p in machine if f"{name}(" in p.read_text(encoding="utf-8")}
        assert naming <= {"paths.py"}  # an example of use
    assert "Adadelta" not in (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert (PACKAGE / "__init__.pyi").read_text(encoding="utf-8").count("import Adadelta as Adadelta\n") == 1


def test_seterr_of_the_caller_is_untouched() -> None:
    with np.errstate(all="raise"):
        before = np.geterr()
        xopt.Optimizer(np.ones(3), xopt.Adam()).step(np.ones(3))
        assert np.geterr() == before


def test_no_public_name_is_missing_from_all() -> None:
    names = set()
    for name in folders.modules():
        if name.partition(".")[0] in ("rules", "transforms"):
            module = importlib.import_module(f"xopt.{name}")
            names |= set(getattr(module, "__all__", ()))
    assert names - {"OnNonFinite"} <= set(xopt.__all__)
    assert set(dir(xopt)) >= set(xopt.__all__)
    with pytest.raises(AttributeError, match="module 'xopt' has no attribute 'Adan2'"):
        xopt.Adan2  # noqa: B018


def test_one_version_of_every_tool_and_of_the_package() -> None:
    """What pre-commit runs is what `nox -s lint` runs; what is to be cited is what there is."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    for tool, version in re.findall(r'"(ruff|typos)==([\d.]+)"', project):
        assert re.search(rf"{tool}\S*\n +rev: v{re.escape(version)}\n", hooks), tool
    assert f"\nversion: {xopt.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_no_stray_names_of_the_machine() -> None:
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("*.toml"),
        *ROOT.glob("*.py"),
        *PACKAGE.rglob("*.py"),
        *(ROOT / "docs").glob("*.md"),
    ]:
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text, path
        assert "/tmp/" not in text, path
