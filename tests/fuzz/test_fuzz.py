"""Random compositions, on every path of the library at hand; and the fuzzer itself, which must see what is planted."""

from __future__ import annotations

import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import xopt
from fuzz import cases, compare, paths, reduce
from fuzz.campaign import SHARE, every
from fuzz.cases import Case, Leaf, Resume, Step
from fuzz.compare import Difference, Reference
from fuzz.kept import KEPT
from fuzz.paths import Path
from fuzz.strategies import compositions

SECONDS = 45
"""Of each library: what has been drawn until then has been tried."""
EXAMPLES = {"numpy": 300, "torch": 250, "strict": 250, "jax": 40, "dask": 25, "llvm": 100, "cupy": 100}
"""So many compositions take some half of that on two cores."""

LIBRARIES = [
    pytest.param(name, marks=[] if name == "numpy" else [pytest.mark.needs(name)], id=name) for name in EXAMPLES
]


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    if request.param not in paths.libraries():
        pytest.skip(f"{request.param} cannot be used here")
    return str(request.param)


def differences(case: Case, which: list[Path]) -> list[str]:
    ref = Reference(case)
    found = [compare.check(case, path, ref) for path in which]
    return [f"{x.kind}\n{x.text}" for x in found if isinstance(x, Difference)]


@pytest.mark.parametrize("case", KEPT, ids=[case.rule for case in KEPT])
def test_kept(library: str, case: Case) -> None:
    if library == "dask" and KEPT.index(case) % 4:
        pytest.skip("each takes seconds there: every fourth is tried")
    which = paths.paths(library)
    assert not differences(case, which[:1] if library in ("jax", "dask") else which)


def test_compositions(library: str) -> None:
    some, begin, count = every([library]), time.monotonic(), 0
    step = SHARE[library][1]

    @settings(
        max_examples=EXAMPLES[library],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],  # compositions are large
    )
    @given(compositions())
    def one(case: Case) -> None:
        nonlocal count
        count += 1
        try:
            cases.made(case.rule)
        except (TypeError, ValueError):  # by a constructor, which knows no library
            return
        if time.monotonic() < begin + SECONDS:
            number = zlib.crc32(repr(case).encode())  # the same paths when it is tried again
            assert not differences(case, some(number * step))

    one()
    assert count >= EXAMPLES[library]


# ---- the fuzzer

ADAM = Case({"w": Leaf((3, 2)), "b": Leaf((3,))}, "xopt.Adam(lr=0.1)", (Step(), Step()))
TILED, PLACE = Path("numpy", "", "tiled", "pure"), Path("numpy", "", "eager", "place")


def planted(case: Case, path: Path, change: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what is seen when a record of a path is other than it should be."""
    ref = Reference(case)
    ref.near()
    real = paths.run

    def other(case: Case, path: Path, **more: Any) -> Any:
        return change(real(case, path, **more))

    monkeypatch.setattr(compare, "run", other)
    return compare.check(case, path, ref)


def nudged(name: str, by: float, at: int = -1) -> Any:
    def change(records: list[Any]) -> list[Any]:
        x = np.array(records[at].found[name])
        x.flat[0] *= 1 + by
        records[at].found[name] = x
        return records

    return change


@pytest.mark.parametrize(
    ("path", "change", "kind"),
    [
        (TILED, nudged("params[0]", 2.0**-23), "numpy-tiled: bits of params"),
        (PLACE, nudged("slots.0.adam.v[1]", 2.0**-23), "numpy-eager: bits of slots.adam.v"),
        (Path("none"), nudged("params[1]", 1e-3), "none: values of params"),
        (Path("none"), nudged("slots.0.adam.m[0]", 1e-3), "none: values of slots.adam.m"),
        (Path("none"), nudged("params[1]", np.nan), "none: what is not finite of params"),
        (Path("none"), lambda rs: [*rs[:-1], rs[-1]._replace(broken="x")], "none: written: x"),
        (
            Path("none"),
            lambda rs: [*rs[:-1], rs[-1]._replace(refusal=paths.Refusal("TypeError", "no", ""))],
            "none: TypeError at : no, where NumPy: accepted",
        ),
        (
            Path("none"),
            lambda rs: [*rs[:-1], rs[-1]._replace(found={n: x for n, x in rs[-1].found.items() if "adam.v" not in n})],
            "none: other names: slots.adam.v",
        ),
    ],
)
def test_what_is_planted_is_seen(path: Path, change: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = paths.run
    like = path if path.library == "numpy" else paths.REFERENCE
    monkeypatch.setattr(paths, "run", lambda case, _, **more: real(case, like, **more))
    assert planted(ADAM, path, lambda records: records, monkeypatch) is None
    found = planted(ADAM, path, change, monkeypatch)
    assert isinstance(found, Difference)
    assert found.kind == kind


def test_a_fault_of_one_runner_is_seen_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiled runner has another square root."""
    from xopt._engine.runners.tiled import codegen as _emit

    kernel = _emit.numpy_kernel

    def wrong(program: Any) -> Any:
        made = kernel(program)
        return made._replace(run=lambda *xs: made.run(*xs)) if "sqrt" not in made.source else _off(made)

    def _off(made: Any) -> Any:
        def run(*xs: Any) -> None:
            made.run(*xs)
            for x in xs:
                if isinstance(x, np.ndarray) and x.flags.writeable and x.dtype.kind == "f":
                    x *= 1.001

        return made._replace(run=run)

    monkeypatch.setattr("xopt._engine.runners.tiled.tiles.numpy_kernel", wrong, raising=False)
    monkeypatch.setattr(_emit, "numpy_kernel", wrong)
    large = Case(
        {"w": Leaf((3, 2)), "b": [Leaf((3,)), Leaf(())]},
        "xopt.chain(xopt.ClipByGlobalNorm(max_norm=1.0), xopt.Adam(lr=0.1, b1=0.5), xopt.EMA())",
        (Step(), Step("small"), Resume(), Step()),
        seed=3,
    )

    def fails(case: Case) -> bool:
        return isinstance(compare.check(case, TILED, Reference(case)), Difference)

    assert fails(large)
    small = reduce.smaller(large, fails, 20)
    assert len(repr(small)) < len(repr(large)) / 2
    assert eval(repr(small), vars(cases)) == small
    assert fails(small)


def test_a_pure_function_that_writes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = xopt.Adam.apply

    def apply(self: Any, params: Any, grads: Any, state: Any, **more: Any) -> Any:
        found = real(self, params, grads, state, **more)
        grads["w"][...] = 0
        return found

    ref = Reference(ADAM)
    monkeypatch.setattr(xopt.Adam, "apply", apply)
    found = compare.check(ADAM, TILED, ref)
    assert isinstance(found, Difference)
    assert found.kind == "numpy-tiled: written: the gradients"


def test_a_refused_step_that_wrote_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Any, grads: Any, **more: Any) -> Any:
        self.params["w"][0] = 0
        raise ValueError("late")

    ref = Reference(ADAM)
    monkeypatch.setattr(xopt.Optimizer, "step", step)
    found = compare.check(ADAM, PLACE, ref)
    assert isinstance(found, Difference)
    assert found.kind == "numpy-eager: written: something, by what was refused"


def test_a_run_that_forgets_at_a_resume_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = ADAM._replace(events=(Step(), Resume(), Step()))
    ref = Reference(case)
    load = xopt.Optimizer.load_state_dict

    def forgetful(self: Any, state: Any, **more: Any) -> Any:
        found = load(self, state, **more)
        self.state.slots["0.adam.m"]["w"][...] = 0
        return found

    monkeypatch.setattr(xopt.Optimizer, "load_state_dict", forgetful)
    assert isinstance(compare.check(case, PLACE, ref), Difference)


@pytest.mark.parametrize("layout", cases.SHARED)
def test_what_nobody_may_write_into_is_refused(layout: str) -> None:
    case = ADAM._replace(params={"w": Leaf((3, 2), layout=layout), "b": Leaf((3,))})
    [record] = paths.run(case, PLACE)
    assert record.refusal is not None
    assert record.refusal.kind == "ValueError"
    assert Reference(case).records[-1].refusal is None


def test_a_case_is_the_python_that_it_prints() -> None:
    @settings(max_examples=50, derandomize=True, database=None, deadline=None)
    @given(compositions())
    def one(case: Case) -> None:
        assert eval(repr(case), vars(cases)) == case

    one()
