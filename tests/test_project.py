"""The project itself: who imports whom, what an import costs, what a newcomer touches, what is documented."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import catalog
import numpy as np
import pytest

import xopt

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "xopt"

# each module may import modules of earlier rows only
ORDER = [
    ["_arrays", "_nodes", "_version", "_atomic", "_blocks"],
    [
        "_tree",
        "_transfer",
        "_safetensors",
        "_rounding",
        "random",
        "_scalars",
        "_trace",
        "_reduce",
        "_fields",
        "_names",
        "_block",
        "presets",
    ],
    ["_algebra"],
    ["_pieces", "_emit", "_lower", "_cuda_text", "_layout"],
    ["_storage", "_hooks"],
    ["_compose"],
    ["_emit_numba", "_emit_cuda"],
    [
        "_part",
        "_runners",
        "_runners._pool",
        "_runners._cut",
        "_runners._cache",
        "_runners._jit",
        "_runners._shares",
        "_runners._cuda_driver",
    ],
    ["_runners.eager", "_runners._tiles", "_runners._objects", "_steady"],
    ["_runners.tiled"],
    ["_runners.numba", "_runners.cuda"],
    ["_choice", "_order", "_plan", "_select", "_maths"],
    ["_resolve", "_gates"],
    ["_stages"],
    ["_readout", "_buffers", "_turns", "_kept"],
    ["_method"],
    ["rule"],
    ["_whole", "rules.adam"],
    [
        *(f"rules.{p.stem}" for p in (PACKAGE / "rules").glob("[!_]*.py") if p.stem != "adam"),
        "transforms",
        "transforms_array",
        "schedules._maths",
        "nn",
    ],
    ["schedules._schedule"],
    ["schedules._combine", "schedules._curves", "schedules._phases"],
    ["schedules"],
    ["averages", "projections", "sam", "scaling", "_record"],
    ["_resume"],
    ["rules", "checkpoint", "_foreign"],
    ["_foreign_torch", "_foreign_optax"],
    ["wrappers"],
    ["precision", "_saving"],
    [
        "optimizer",
        "_config",
        "_explain",
        "groups",
        "masked",
        "solvers",
        "solvers._line",
        "solvers._space",
        "solvers._sides",
    ],
    ["solvers._directions", "solvers._differences"],
    ["solvers._objective"],
    ["solvers._bounded"],
    ["solvers._descent"],
    ["solvers._stepping"],
    ["_options"],
    ["_minimize"],
    ["_scipy"],
    ["_lbfgs"],
    [""],
]


@functools.cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module) -> set[str]:
    """Return the modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            inside = [f"{node.module}.{a.name}" for a in node.names]
            known = {f"xopt.{m}" for m in modules() if m}
            found |= {m if m in known else str(node.module) for m in inside}
    return found


def test_imports_run_one_way() -> None:
    rank = {f"xopt.{m}".rstrip("."): i for i, row in enumerate(ORDER) for m in row}
    rank["xopt"] = len(ORDER)
    for name, tree in modules().items():
        mine = rank[f"xopt.{name}".rstrip(".")]
        for other in imports(tree):
            if other.startswith("xopt"):
                assert rank[other] < mine or (name == "_config"), f"{name} imports {other}"


def test_order_has_every_module() -> None:
    assert {m for row in ORDER for m in row} == set(modules())


RULES_IMPORT = {
    "__future__",
    "collections.abc",
    "functools",
    "math",
    "typing",
    "xopt.rule",
    "xopt._whole",
    "xopt.rules.adam",
}


def test_rules_import_only_rule() -> None:
    for name, tree in modules().items():
        if name.startswith("rules."):
            assert imports(tree) <= RULES_IMPORT, name


def test_only_arrays_knows_array_api_compat() -> None:
    knowing = {p.name for p in PACKAGE.rglob("*.py") if "array_api_compat" in p.read_text(encoding="utf-8")}
    assert knowing == {"_arrays.py"}


def test_no_module_is_long() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, path.name


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
    heavy = "torch jax cupy dask array_api_strict array_api_compat numba matplotlib sklearn tqdm concurrent.futures"
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


def test_import_costs_at_most_half_of_numpy(tmp_path: Path) -> None:
    """Best of five each, of more on a busy machine, in processes of their own, all bytecode cached."""
    env = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    code = "from time import perf_counter as c; t = c(); import numpy; u = c(); import xopt; print(u - t, c() - u)"
    run(code, **env)
    pairs: list[list[float]] = []
    for tries in (5, 10, 15):
        pairs += [[float(x) for x in run(code, **env).split()] for _ in range(tries)]
        numpy_s, xopt_s = (min(column) for column in zip(*pairs, strict=True))
        if xopt_s <= 0.5 * numpy_s:
            break
    assert xopt_s <= 0.5 * numpy_s, f"numpy {numpy_s * 1e3:.0f} ms, xopt {xopt_s * 1e3:.0f} ms more"


def code_lines(cls: type) -> int:
    """Count the lines of code of a class: fields and update, no docstring, no blank lines."""
    tree: Any = ast.parse(inspect.getsource(cls)).body[0]
    doc = tree.body[0]
    source = inspect.getsource(cls).splitlines()
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
    for module in (xopt.schedules, xopt.nn, xopt.random):
        names += [(f"{module.__name__.removeprefix('xopt.')}.{n}", getattr(module, n)) for n in module.__all__]
    return names


@pytest.mark.parametrize(("name", "thing"), public(), ids=[n for n, _ in public()])
def test_every_public_name_has_a_docstring_with_an_example(name: str, thing: Any) -> None:
    doc = inspect.getdoc(thing) or ""
    assert len(doc) > 30
    if thing not in (xopt.State, xopt.Rule, xopt.Transform, xopt.hyper, xopt.static):  # shown in the example of a rule
        assert ">>>" in doc, f"{name} has no example"


@pytest.mark.parametrize("rule", catalog.public(xopt.Rule))
def test_rule_docstrings_are_complete(rule: Any) -> None:
    doc = inspect.getdoc(rule) or ""
    for part in ("Parameters", "Notes", "State:", "bytes a float32", "References", "Examples", "::"):
        assert part in doc, part
    for field in rule._fields:
        assert field in doc, field


def test_adding_a_rule_touches_three_files() -> None:
    """The machinery names no rule: the family's file, the stub and the catalogue do (peers and articles may)."""
    for name in ("Adadelta", "AdamW"):
        tables = {PACKAGE / "presets.py"}  # what is known of other libraries
        naming = {
            str(p.relative_to(ROOT))
            for p in {*PACKAGE.rglob("*.py")} - tables
            if f'"{name}"' in p.read_text(encoding="utf-8")
        }
        assert naming == {f"xopt/rules/{'adaptive' if name == 'Adadelta' else 'adam'}.py"}
        naming = {p.name for p in PACKAGE.glob("_*.py") if f"{name}(" in p.read_text(encoding="utf-8")}
        assert naming <= {"_select.py"}  # an example of use
    assert "Adadelta" not in (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert (PACKAGE / "__init__.pyi").read_text(encoding="utf-8").count("import Adadelta as Adadelta\n") == 1


def test_seterr_of_the_caller_is_untouched() -> None:
    with np.errstate(all="raise"):
        before = np.geterr()
        xopt.Optimizer(np.ones(3), xopt.Adam()).step(np.ones(3))
        assert np.geterr() == before


def test_no_public_name_is_missing_from_all() -> None:
    names = set()
    for name in modules():
        parts = name.split(".")
        if parts[0] in ("rules", "transforms", "averages", "projections", "scaling", "groups", "masked", "wrappers"):
            module = importlib.import_module(f"xopt.{name}")
            names |= set(getattr(module, "__all__", ()))
    assert names - {"OnNonFinite"} <= set(xopt.__all__)
    assert set(dir(xopt)) >= set(xopt.__all__)
    with pytest.raises(AttributeError, match="module 'xopt' has no attribute 'Adan2'"):
        xopt.Adan2  # noqa: B018


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
