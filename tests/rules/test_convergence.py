"""Every rule converges on the shared problems, as fast as the table says."""

from __future__ import annotations

import functools
import inspect
from itertools import islice
from typing import Any

import catalog
import numpy as np
import pytest
from conftest import Lib, walk
from support import convergence
from support import shared_problems as shared
from support.convergence import FRACTIONS, PROBLEMS, Cell, allowed

import xopt
from xopt.rule import abs2

TABLE = convergence.read()
LARGE = {row.rule.__name__ for row in catalog.ROWS if row.large}
CELLS = [pytest.param(text, name, id=f"{text}-{name}") for text, row in TABLE.items() for name in row]


@functools.cache
def problem(name: str) -> shared.Problem:
    if name == "logistic":
        pytest.importorskip("sklearn")
    return PROBLEMS[name]()


def check(rule: xopt.Rule, cell: Cell, problem: shared.Problem, dtype: str) -> None:
    """Assert that a rule comes within each fraction of the table, in the steps of the table, and stays there."""
    stages = [(f, allowed(n)) for f, n in zip(FRACTIONS, cell.steps, strict=True) if n is not None]
    found = list(islice(convergence.gaps(rule, problem, dtype), stages[-1][1] + 1))
    for fraction, steps in stages:
        worst = max(x if x == x else np.inf for x in found[steps:])
        assert worst <= fraction, f"after {steps} steps {worst:.2g} of the first distance, not {fraction:g}"


def name_of(text: str) -> str:
    return text.partition("(")[0]


def test_every_public_rule_has_a_row() -> None:
    public = {rule.__name__ for rule in catalog.public(xopt.Rule)}
    missing = public - {name_of(text) for text in TABLE}
    assert not missing, f"nox -s rates -- {' '.join(sorted(missing))}"
    assert {name_of(text) for text in TABLE} == public


STUCK = {"LAMB": "its steps are a part of the norm of the parameter, and Rosenbrock's valley passes the origin"}


@pytest.mark.parametrize(("text", "name"), CELLS)
def test_what_the_table_promises(text: str, name: str) -> None:
    """All come to 1/100; where the scales of the parameters do not differ much, to 1/1000."""
    steps = TABLE[text][name].steps
    assert steps[0] is not None
    if name == "rosenbrock" and text in STUCK:
        return
    assert steps[1] is not None
    assert steps[1] <= convergence.LATE
    if name in ("quadratic", "logistic"):
        assert steps[2] is not None
        assert steps[2] <= convergence.SOON


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("text", "name"), CELLS)
def test_converges(text: str, name: str, dtype: str) -> None:
    cell = TABLE[text][name]
    check(convergence.rule_of(text, 2.0**cell.power), cell, problem(name), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("text", "name"), CELLS)
def test_pure_and_in_place_agree(text: str, name: str, dtype: str) -> None:
    """To the bit, along the way down; each computes its own gradients."""
    cell = TABLE[text][name]
    rule, here = convergence.rule_of(text, 2.0**cell.power), problem(name).astype(dtype)
    opt, params, state = xopt.Optimizer(here.to(np.array).start, rule), here.start, rule.init(here.start)
    for _ in range(min(allowed(cell.steps[1] or 0), 12 if name_of(text) in LARGE else 50)):
        opt.step(here(opt.params)[1])
        params, state = rule.apply(params, here(params)[1], state)
    mine, pure = ((x.values() if isinstance(x, dict) else [x]) for x in (opt.params, params))
    for x, y in zip(mine, pure, strict=True):
        np.testing.assert_array_equal(x, y)


LACKING = {row.rule.__name__: row.lacking for row in catalog.ROWS}


@pytest.mark.parametrize("text", TABLE)
def test_on_every_library(lib: Lib, text: str) -> None:
    """To 1/10 of the quadratic, with gradients that the library computes; on dask, which is slow, three steps of it."""
    if lib.name in LACKING[name_of(text)]:
        pytest.skip(f"{lib.name} lacks what it needs")
    cell, exact = TABLE[text]["quadratic"], problem("quadratic")
    rule, here = convergence.rule_of(text, 2.0**cell.power), exact.to(lib.array)
    steps, params = allowed(cell.steps[0] or 0), here.start
    if lib.guise == "eager" and name_of(text) in LARGE:
        pytest.skip("XLA compiles each operation for each shape; test_float64 has it under jit")
    steps = min(steps, 3) if lib.name == "dask" else steps

    def curvature(t: int, params: Any) -> Any:
        found = shared.curvature(exact, {n: lib.numpy(x) for n, x in params.items()}, t)
        return {n: lib.array(x) for n, x in found.items()}

    if lib.guise == "plain":
        opt = xopt.Optimizer(params, rule)
        for t in range(steps):
            if rule.curvature and t % 10 == 0:
                opt.update_curvature(curvature(t, params))
            params = opt.step(here({n: x.detach() if lib.name == "torch" else x for n, x in opt.params.items()})[1])
    else:
        step = lambda p, s: rule.apply(p, here(p)[1], s)
        step, state = lib.module().jit(step) if lib.guise == "jit" else step, rule.init(params)
        for t in range(steps):
            if rule.curvature and t % 10 == 0:
                state = rule.update_curvature(params, curvature(t, params), state)
            params, state = step(params, state)
    left = float(exact({n: lib.numpy(x) for n, x in params.items()})[0]) / float(exact(exact.start)[0])
    want = next(islice(convergence.gaps(rule, exact), steps, None)) if not rule.readout else left
    np.testing.assert_allclose(left, want, rtol=1e-6)
    assert left <= 0.1 or lib.name == "dask"


# --- the problems


ALL = [*PROBLEMS, "digits"]


@pytest.mark.parametrize("name", ALL)
def test_gradients(name: str, rng: np.random.Generator) -> None:
    """Against central differences in a random direction."""
    here = shared.digits() if name == "digits" else problem(name)
    start = here.start if isinstance(here.start, dict) else {"": here.start}
    turn = {n: rng.standard_normal(x.shape) * (1 + 1j if x.dtype.kind == "c" else 1) for n, x in start.items()}
    at = lambda e: {n: x + e * turn[n] for n, x in start.items()}
    value = lambda e: float(here(at(e) if isinstance(here.start, dict) else at(e)[""])[0])
    grads = here(here.start)[1]
    grads = grads if isinstance(grads, dict) else {"": grads}
    slope = sum(float(np.sum((np.conj(grads[n]) * turn[n]).real)) for n in start)
    np.testing.assert_allclose((value(1e-5) - value(-1e-5)) / 2e-5, slope, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_below_the_least_value(name: str) -> None:
    """SciPy comes to the least value from the start, with our gradients, and not below it."""
    optimize = pytest.importorskip("scipy.optimize")
    here = shared.digits() if name == "digits" else problem(name)
    many = isinstance(here.start, dict)
    start = here.start if many else {"": here.start}
    sizes = np.cumsum([x.size for x in start.values()])[:-1]
    kind = next(iter(start.values())).dtype
    flat = lambda tree: np.concatenate([np.ravel(x) for x in tree.values()]).view(np.float64)

    def value(x: Any) -> tuple[float, Any]:
        parts = np.split(x.view(kind), sizes)
        p = {n: part.reshape(y.shape) for (n, y), part in zip(start.items(), parts, strict=True)}
        v, g = here(p if many else p[""])
        return float(v), flat(g if many else {"": g})

    best = optimize.minimize(value, flat(start), jac=True, method="L-BFGS-B", options={"maxiter": 9999, "ftol": 1e-15})
    first = float(here(here.start)[0])
    assert abs(best.fun - here.least) < 1e-6 * (first - here.least)


def test_some_rows_are_a_mean_of_their_own() -> None:
    """The gradient of halves, averaged, is that of the whole: what mini-batches rely on."""
    pytest.importorskip("sklearn")
    here = shared.digits()
    halves = [np.arange(here.rows)[k::2] for k in range(2)]
    whole, parts = here(here.start)[1]["b"], [here(here.start, rows)[1]["b"] * len(rows) for rows in halves]
    np.testing.assert_allclose(sum(parts) / here.rows, whole, rtol=1e-10, atol=1e-15)


# --- the check itself: broken rules fail


def faulty(name: str) -> type[xopt.Rule]:
    """Return Adam with a fault."""

    def update(h: Any, xp: Any, p: Any, g: Any, m: Any = 0.0, v: Any = 0.0) -> tuple[Any, ...]:
        m = h.b1 * m + (1 - h.b1) * g
        v = h.b2 * v + (1 - h.b2) * (xp.abs(g) if name == "no square" else abs2(xp, g))
        c1 = 1.0 if name in ("no correction", "no correction of m") else 1 - h.b1**h.t
        c2 = 1.0 if name in ("no correction", "no correction of v") else 1 - h.b2**h.t
        root = v / c2 if name == "no root" else xp.sqrt(v / c2)
        return -h.lr * (m / c1) / (root + h.eps), m, v

    return type("Adam", (xopt.Adam,), {"update": staticmethod(update), "__doc__": "Adam with a fault."})


def passes(kind: type[xopt.Rule], text: str) -> list[str]:
    """Return the problems on which a class passes for the rule of a row, after the first on which it does not."""
    for name, cell in TABLE[text].items():
        rule = convergence.rule_of(text, 2.0**cell.power)
        broken = kind(**{n: getattr(rule, n) for n in kind._fields if getattr(rule, n) != kind._fields[n].default})
        try:
            check(broken, cell, problem(name), "float64")
        except (AssertionError, ArithmeticError, IndexError):
            return []
    return [*TABLE[text]]


@pytest.mark.parametrize("fault", ["no correction", "no correction of m", "no correction of v", "no square", "no root"])
def test_a_faulty_adam_fails(fault: str) -> None:
    assert passes(faulty("none"), "Adam") == [*PROBLEMS]
    assert passes(faulty(fault), "Adam") == []


def broken(kind: type[xopt.Rule], slot: str | None) -> type[xopt.Rule]:
    """Return a rule that goes uphill, or with an array of state that stays as it is."""

    @functools.wraps(kind.update)
    def update(*args: Any, **slots: Any) -> tuple[Any, ...]:
        out = kind.update(*args, **slots)
        step, *new = out if isinstance(out, tuple) else (out,)
        if slot is None:
            return (-step, *new)
        new[[*inspect.signature(kind.update).parameters][4:].index(slot)] = slots[slot]
        return (step, *new)

    return type(kind.__name__, (kind,), {"update": staticmethod(update), "__doc__": kind.__doc__})


def slots_of(text: str) -> list[str | None]:
    """Return the arrays of state that change from step to step, and None."""
    rule, p = convergence.rule_of(text, 0.1), np.asarray([[1.0, -2.0], [3.0, 0.5]])
    first, (_, state) = rule.init(p), walk(rule, p, [p, -2 * p, p], runner="eager")  # as files are read: quickly
    changed = [n.rpartition(".")[2] for n, x in first.slots.items() if x is not None and np.any(state.slots[n] != x)]
    return [None, *(n for n in changed if n in inspect.signature(type(rule).update).parameters)]


UNSEEN = {
    ("ASGD", "mean"): "a result: no step depends on it",
    ("KLSOAP", "e"): "without it the rule is SOAP with matrices of one size, which converges as fast",
    ("Muon", "m"): "its steps have one length, and go down without momentum too",
    ("NorMuon", "m"): "as for Muon",
    ("NorMuon", "v"): "without it the rule is Muon but for the length of steps, which is divided out",
    ("RMSProp(momentum=0.9, centered=True)", "a"): "without it the rule is another one that converges as fast",
}


@pytest.mark.parametrize(("text", "slot"), [(text, slot) for text in TABLE for slot in slots_of(text)])
def test_a_broken_rule_fails(text: str, slot: str | None) -> None:
    if (text, slot) not in UNSEEN:
        assert not passes(broken(type(convergence.rule_of(text, 1.0)), slot), text)
