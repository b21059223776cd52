"""Programs without complex arrays say the same as programs with them."""

from __future__ import annotations

from typing import Any

import catalog
import numpy as np
import pytest

import xopt
from xopt._engine.program import lower as _lower
from xopt._engine.program import plan as _plan
from xopt._engine.program.trace import COMPLEX, Tracer, replay

VALUES = [0.0, -0.0, 1.0, -2.5, 3e-30, 1e30, np.inf, -np.inf, np.nan]


def numbers(rng: np.random.Generator) -> Any:
    """Complex numbers, all pairs of special ones among them."""
    special = [complex(a, b) for a in VALUES for b in VALUES]
    return np.asarray([*special, *(rng.standard_normal(200) + 1j * rng.standard_normal(200))])


def parts(arrays: dict[str, Any], program: Any) -> dict[str, Any]:
    """Give a lowered program the arrays of the program it was made from."""
    found = {}
    for name in program.loads:
        whole, part = name[:-3], name[-3:]
        if name in arrays:
            found[name] = arrays[name]
        else:
            found[name] = arrays[whole].real if part == ".re" else arrays[whole].imag
    return found


def both(make: Any, arrays: dict[str, Any]) -> tuple[Any, Any]:
    """Run a formula of complex arrays as it is and lowered; of a complex result, the parts are stacked."""
    tape = Tracer(inexact=True)
    out = make(tape, *[tape.load(n, COMPLEX) for n in arrays])
    program = tape.finish({"y": out}, [])
    scalars = program.evaluate({})
    lowered = _lower.lower(program)
    assert all(node.kind != COMPLEX for node in lowered.nodes)
    with np.errstate(all="ignore"):
        want = replay(program, np, arrays, scalars)["y"]
        got = replay(lowered, np, parts(arrays, lowered), lowered.evaluate({}))
    if "y" in got:
        return want, got["y"]
    return np.stack([want.real, want.imag]), np.stack([got["y.re"], got["y.im"]])


EXACT = {
    "add": lambda xp, a, b: a + b,
    "subtract": lambda xp, a, b: a - b,
    "scale": lambda xp, a, b: 0.5 * a,
    "halve": lambda xp, a, b: b / 2.0,
    "shift": lambda xp, a, b: a + 0.25,
    "from": lambda xp, a, b: 0.25 - a,
    "minus real": lambda xp, a, b: a - xp.real(b),
    "real minus": lambda xp, a, b: xp.real(b) - a,
    "negative": lambda xp, a, b: -a,
    "conj": lambda xp, a, b: xp.conj(a),
    "real": lambda xp, a, b: xp.real(a) * xp.imag(b),
    "where": lambda xp, a, b: xp.where(xp.real(a) > xp.imag(b), a, b),
    "where real": lambda xp, a, b: xp.where(xp.real(a) > xp.imag(b), a, xp.real(b)),
    "where scalar": lambda xp, a, b: xp.where(xp.real(a) > 0, a, 0.0),
    "isnan": lambda xp, a, b: xp.where(xp.isnan(a), xp.real(a), xp.imag(b)),
    "isinf": lambda xp, a, b: xp.where(xp.isinf(a), xp.real(b), xp.imag(b)),
    "isfinite": lambda xp, a, b: xp.where(xp.isfinite(a), xp.real(b), xp.imag(b)),
    "equal": lambda xp, a, b: xp.where(a == b, xp.real(b), 2 * xp.imag(b)),
    "not equal": lambda xp, a, b: xp.where(a != b, xp.real(b), 2 * xp.imag(b)),
}
CLOSE = {
    "multiply": lambda xp, a, b: a * b,
    "divide": lambda xp, a, b: a / b,
    "reciprocal": lambda xp, a, b: 1.0 / b,
    "abs": lambda xp, a, b: xp.abs(a),
}


@pytest.mark.parametrize("name", EXACT)
def test_same_numbers(name: str, rng: np.random.Generator) -> None:
    a = numbers(rng)
    b = np.roll(a, 7)
    if name in ("scale", "halve", "shift", "from", "minus real", "real minus"):  # NumPy adds 0j: inf * 0 is NaN
        keep = np.isfinite(a) & np.isfinite(b)
        a, b = a[keep], b[keep]
    want, got = both(EXACT[name], {"a": a, "b": b})
    assert np.array_equal(want, got, equal_nan=True)


@pytest.mark.parametrize("name", CLOSE)
def test_same_numbers_but_for_roundings(name: str, rng: np.random.Generator) -> None:
    a = rng.standard_normal(500) + 1j * rng.standard_normal(500)
    b = np.roll(a, 7) * 10.0 ** rng.integers(-9, 9, a.size)
    want, got = both(CLOSE[name], {"a": a, "b": b})
    size = np.hypot(*want) if want.ndim == 2 else want
    assert (np.abs(want - got) <= 4 * np.finfo(float).eps * size).all()


def test_real_programs_stay_as_they_are() -> None:
    body = _plan.plan(xopt.Adam()._specs(), False).body(("p",))
    assert _lower.lower(body) is body


@pytest.mark.parametrize("row", catalog.TRACED, ids=lambda row: row.rule.__name__)
def test_every_rule(row: catalog.Row, rng: np.random.Generator) -> None:
    for options in row.options:
        plan = _plan.plan(row.make(**options)._specs(), True)
        body = plan.body(("p", *plan.live))
        lowered = _lower.lower(body)
        draw = lambda: rng.standard_normal(50) + 1j * rng.standard_normal(50)
        arrays = {n: draw() if body.nodes[i].kind == COMPLEX else np.abs(draw()) for n, i in body.loads.items()}
        scalars = {**dict.fromkeys(body.inputs, 0.25), "t": 3}
        want = replay(body, np, arrays, body.evaluate(scalars))
        got = replay(lowered, np, parts(arrays, lowered), lowered.evaluate(scalars))
        for n, x in want.items():
            y = got[n] if n in got else got[n + ".re"] + 1j * got[n + ".im"]
            np.testing.assert_allclose(y, x, rtol=1e-14)


def test_what_has_no_form() -> None:
    tape = Tracer(inexact=True)
    program = tape.finish({"y": tape.sqrt(tape.load("a", COMPLEX))}, [])
    with pytest.raises(_lower.Unsupported, match="sqrt of a complex array"):
        _lower.lower(program)
    with pytest.raises(_lower.Unsupported, match="multiply"):
        list(_lower.statements(_plan.plan(xopt.SGD()._specs(), False).body(("p",)), {"add": "{} + {}"}))
