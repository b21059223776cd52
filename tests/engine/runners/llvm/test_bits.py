"""The llvm runner gives the bits of eager NumPy, on real numbers; on complex ones it is near."""

from __future__ import annotations

from typing import Any

import catalog
import ml_dtypes
import numpy as np
import optree
import pytest
from catalog import Row
from support.random_rules import random_rule
from support.runners import CHAIN, CHAINS, RULES, STORED, alike, awkward, poison, same_bits, trajectory

import xopt
from xopt._engine.program import rounding as _rounding
from xopt._engine.program.lower import KNOWN
from xopt._engine.program.trace import BOOL, Tracer, replay
from xopt._engine.runners.llvm import codegen as _codegen
from xopt.rule import Array, H, Hyper, Rule, abs2, hyper

pytestmark = pytest.mark.needs("llvm")
pytest.importorskip("llvmlite")

from xopt._engine.runners.llvm import compiler as _compiler
from xopt._engine.runners.llvm import templates as _templates
from xopt._engine.runners.llvm import text as _text
from xopt._engine.runners.llvm.runner import Llvm

CUTS = [(1, 65_536), (1, 7), (2, 64), (3, 1)]


def each(usual: list[str], more: str) -> list[Any]:
    """Pair every rule with the usual dtypes; chains, and rules with precision around them, with one more."""
    pairs = [(rule, dtype) for rule in RULES for dtype in (*usual, *([more] if rule in [*CHAINS, *STORED] else []))]
    return [pytest.param(rule, dtype, id=f"{type(rule).__name__}-{dtype}") for rule, dtype in pairs]


@pytest.mark.parametrize(("rule", "dtype"), each(["bfloat16", "float32", "float64"], "float16"))
def test_bits_of_eager(rule: Any, dtype: str, rng: np.random.Generator) -> None:
    params = awkward(rng, dtype)
    grads = [poison(awkward(rng, dtype), rng, rule) if k == 2 else awkward(rng, dtype) for k in range(4)]
    want = trajectory(rule, params, grads, "eager")
    for threads, task in CUTS:
        got = trajectory(rule, params, grads, Llvm(threads, task))
        assert all(map(alike(rule), got, want)), (threads, task)


@pytest.mark.parametrize(("rule", "dtype"), each(["complex64"], "complex128"))
def test_complex_is_within_roundings_of_eager(rule: Any, dtype: str, rng: np.random.Generator) -> None:
    """NumPy multiplies complex numbers by instructions of its own: some roundings of numbers about 1 are allowed."""
    params, grads = awkward(rng, dtype), [awkward(rng, dtype) for k in range(4)]
    want = trajectory(rule, params, grads, "eager")
    got = trajectory(rule, params, grads, Llvm(2, 64))
    for x, y in zip(got, want, strict=True):
        assert x.dtype == y.dtype
        assert (np.abs(x - y) <= 8 * np.finfo(x.dtype).eps * (np.abs(y) + 1)).all()


@pytest.mark.parametrize("row", catalog.TRACED, ids=lambda row: row.rule.__name__)
def test_every_option(row: Row, rng: np.random.Generator) -> None:
    params = awkward(rng, "float32")
    grads = [poison(awkward(rng, "float32"), rng, row.make()), awkward(rng, "float32")]
    for options in [*row.options, *catalog.COMMON, *catalog.DECAYS[:1]]:
        rule = row.make(**options)
        want = trajectory(rule, params, grads, "eager")
        assert all(map(alike(rule), trajectory(rule, params, grads, Llvm(1)), want)), rule


class Whole(Rule):
    """Complex arithmetic that needs literals of its own: a quotient, a real number in a complex branch."""

    lr: Hyper = hyper(default=0.1)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 1.0) -> tuple[Array, ...]:
        m = 0.5 * m + g / (p + j_free(xp, g)) + 1.0 / (abs2(xp, g) + 1.0)
        return -h.lr * xp.where(xp.real(g) > 0, m, xp.abs(m)), m


def j_free(xp: Any, g: Any) -> Any:
    return xp.conj(g) + 3.0


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_with_literals(dtype: str, rng: np.random.Generator) -> None:
    params, grads = awkward(rng, dtype), [awkward(rng, dtype)]
    want, got = (trajectory(Whole(), params, grads, runner) for runner in ("eager", "llvm"))
    for x, y in zip(got, want, strict=True):
        assert (np.abs(x - y) <= 16 * np.finfo(x.dtype).eps * (np.abs(y) + 1)).all()


def test_complex_split_is_two_reals(rng: np.random.Generator) -> None:
    rule = xopt.Adam(0.1, amsgrad=True, complex="split", weight_decay=0.1)
    params, grads = awkward(rng, "complex64"), [awkward(rng, "complex64") for _ in range(3)]
    want = trajectory(rule, params, grads, "eager")
    assert all(map(same_bits, trajectory(rule, params, grads, Llvm(2, 7)), want))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_in_place_equals_pure(rule: Any, rng: np.random.Generator) -> None:
    params, grads = awkward(rng, "float32"), [awkward(rng, "float32") for _ in range(4)]
    grads[1]["many"][2] = None
    grads[1]["rows"] = np.ascontiguousarray(grads[1]["rows"])
    grads[2]["tall"] = np.asfortranarray(grads[2]["tall"])
    want = trajectory(rule, params, grads, "eager")
    opt = xopt.Optimizer(params, rule, runner=Llvm(2, 64))
    for g in grads:
        opt.step(g)
    assert all(map(alike(rule), optree.tree_leaves((params, opt.state.slots)), want))


def test_updates(rng: np.random.Generator) -> None:
    params, grads = awkward(rng, "float32"), awkward(rng, "float32")
    for rule in RULES:
        want, _ = rule.updates(params, grads, rule.init(params), runner="eager")
        got, _ = rule.updates(params, grads, rule.init(params), runner="llvm")
        assert all(map(alike(rule), optree.tree_leaves(got), optree.tree_leaves(want)))


def test_dtypes_of_one_tree(rng: np.random.Generator) -> None:
    kinds = ["float32", "float64", "float16", "float32", "float64"]
    draw = lambda: [np.asarray(rng.standard_normal(9), k) for k in kinds]
    params, grads = draw(), [draw() for _ in range(3)]
    want = trajectory(CHAIN, params, grads, "eager")
    assert all(map(same_bits, trajectory(CHAIN, params, grads, Llvm(2, 7)), want))


@pytest.mark.parametrize("seed", range(40))
def test_random_rules(seed: int, rng: np.random.Generator) -> None:
    """Swapped slots, a slot that is written and never read, two slots of one value: whatever a rule may return."""
    rule = random_rule(seed, complex=False)
    p, grads = rng.standard_normal(67), [rng.standard_normal(67) for _ in range(3)]
    want = trajectory(rule, p, grads, "eager")
    assert all(map(same_bits, trajectory(rule, p, grads, Llvm(2, 16)), want))
    opt = xopt.Optimizer(p.copy(), rule, runner="llvm")
    for g in grads:
        opt.step(g)
    assert all(map(same_bits, optree.tree_leaves((opt.params, opt.state.slots)), want))


# --- single operations ---------------------------------------------------------------------------------------------

HALVES = pytest.mark.skipif(not _compiler.converts_half(), reason="the processor has no instructions for float16")
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.5, -1e-42, 1e-42, 1e38, -1e38, np.inf, -np.inf, np.nan]


def of_every_operation(xp: Any, x: Any, y: Any) -> dict[str, Any]:
    found = {}
    for op in _codegen.OPERATIONS:
        if op in ("logical_and", "logical_or"):
            found[op] = xp.where(getattr(xp, op)(x > 0, y > 0), x, y)
        elif op == "logical_not":
            found[op] = xp.where(xp.logical_not(x > y), x, y)
        elif op == "where":
            found[op] = xp.where(x > 0, x, 3.0)
        elif op in ("add", "subtract", "multiply", "divide", "maximum", "minimum", "pow"):
            found[op] = getattr(xp, op)(x, y)
        elif op in ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"):
            found[op] = xp.where(getattr(xp, op)(x, y), x, y + 1)
        elif op in ("isnan", "isinf", "isfinite"):
            found[op] = xp.where(getattr(xp, op)(x), y, 0.5)
        elif op not in (
            "hypot",
            "noise",
            "largest",
            *KNOWN,
        ):  # complex numbers, few digits and 8 bits have tests of their own
            found[op] = getattr(xp, op)(x)
    return found


def run(kernel: Any, task: list[int], addresses: list[int], scalars: Any, *more: int) -> None:
    """Call a kernel for one task of one leaf."""
    given = np.asarray(task, np.int64), np.asarray(addresses, np.int64), np.asarray(scalars, np.float64)
    tasks, columns, values = (x.ctypes.data for x in given)
    frame = np.asarray([tasks, columns, 1, values, 1, *(more or (0,))], np.int64)
    kernel(frame.ctypes.data, 0, 1)


@pytest.mark.parametrize("real", ["float32", "float64"])
def test_every_operation(real: str) -> None:
    a, b = (np.asarray(x, real).ravel() for x in np.meshgrid(SPECIAL, SPECIAL))
    tape = Tracer(inexact=True)
    made = of_every_operation(tape, tape.load("p", "real"), tape.load("g", "real"))
    assert all(x.kind != BOOL for x in made.values())
    program = tape.finish(made, [])
    scalars = program.evaluate({})
    with np.errstate(all="ignore"):
        want = replay(program, np, {"p": a, "g": b}, scalars)
    columns = _codegen.table(program, dict.fromkeys([*program.loads, *program.outputs], real), fresh=True)
    source = _codegen.body_source("every operation", program, columns, real)
    kernel = _compiler.compiled(source, 3)
    got = {n: np.empty_like(a) for n in want}
    arrays = [{"p": a, "g": b}.get(x.name, got.get(x.name[4:])) for x in columns.arrays]
    run(kernel, [0, 0, a.size], [x.ctypes.data for x in arrays], scalars)
    for name, x in got.items():
        if name in ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "pow"):
            np.testing.assert_allclose(x, want[name], rtol=4 * np.finfo(real).eps, err_msg=name)
        else:
            assert same_bits(x, want[name]), name


def convert(half: bool, name: str, of: str, to: str, x: Any, out: Any) -> None:
    """Compile a loop that converts every element."""
    text = _text.Text()
    with text.loop("i", "0", "%n") as i:
        value = text.load(of, "%x", i)
        text.store(to, text.do(f"call {to} @{name}({of} {value})"), "%out", i)
    loop = text.function("kernel", ["ptr %x", "ptr %out", "i64 %n"])
    _compiler.compiled(_templates.module(name, "float32", [loop], half), 3)(x.ctypes.data, out.ctypes.data, x.size)


@pytest.mark.parametrize("half", [False, pytest.param(True, marks=HALVES)])
def test_half_precision(half: bool) -> None:
    """Every 16-bit pattern is widened, and what lies around every one and half way between two is rounded, rightly."""
    patterns = np.arange(65_536, dtype=np.uint16)
    for name, kind in [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)]:
        wide = np.empty(65_536, np.float32)
        convert(half, f"of_{name}", "i16", "float", patterns, wide)
        assert np.array_equal(wide, patterns.view(kind).astype(np.float32), equal_nan=True)
        finite = np.sort(wide[np.isfinite(wide)])
        with np.errstate(all="ignore"):
            middle = finite[:-1] + (finite[1:] - finite[:-1]) / 2
            near = [np.nextafter(x, np.float32(s)) for x in (finite, middle) for s in (np.inf, -np.inf)]
            x = np.concatenate([wide, finite, middle, *near, np.asarray([65519.9, 65520, 3.39e38, 3.4e38], np.float32)])
            want = x.astype(kind)
        out = np.empty(x.size, np.uint16)
        convert(half, f"to_{name}", "float", "i16", x, out)
        assert np.array_equal(out.view(kind).astype(np.float32), want.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stochastic_rounding_by_bits_is_that_by_arithmetic(dtype: str, rng: np.random.Generator) -> None:
    """Of numbers of all sizes, those half way between two and beside them, with all kinds of noise."""
    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    wide = np.arange(65_536, dtype=np.uint16).view(kind).astype(np.float32)
    every = rng.integers(0, 2**32, 400_000, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        finite = np.sort(wide[np.isfinite(wide)])
        middle = finite[:-1] + (finite[1:] - finite[:-1]) / 2
        near = [np.nextafter(x, np.float32(s)) for x in (finite, middle) for s in (np.inf, -np.inf)]
        small = rng.standard_normal(100_000).astype(np.float32) * np.float32(2.0**-14)
        x = np.concatenate(
            [wide, middle, *near, every, small, np.float32([65504, 65519, 65520, 65521, 7e4, 2.0**109, 2.0**110])]
        )
        noise = (rng.integers(0, 2**24, x.size) * 2.0**-24).astype(np.float32)
        noise[::5] = np.float32([0.0, 0.5, 0.5 - 2.0**-24, 0.25, 1 - 2.0**-24])[np.arange(len(noise[::5])) % 5]
        want = _rounding.stochastic_round(np, x, dtype, noise)
    text = _text.Text()
    with text.loop("i", "0", "%n") as i:
        a, b = text.load("float", "%x", i), text.load("float", "%noise", i)
        text.store("float", text.do(f"call float @stochastic_{dtype}(float {a}, float {b})"), "%out", i)
    loop = text.function("kernel", ["ptr %x", "ptr %noise", "ptr %out", "i64 %n"])
    got = np.empty_like(x)
    kernel = _compiler.compiled(_templates.module(dtype, "float32", [loop], False), 4)
    kernel(x.ctypes.data, noise.ctypes.data, got.ctypes.data, x.size)
    odd = ~((got.view(np.int32) == want.view(np.int32)) | (np.isnan(got) & np.isnan(want)))
    assert not odd.any(), (x[odd][:5], noise[odd][:5], got[odd][:5], want[odd][:5], odd.sum())


def test_pairwise_is_the_order_of_numpy(rng: np.random.Generator) -> None:
    tape = Tracer(inexact=False)
    program = tape.finish({"x": tape.load("p", "real")}, [])
    columns = _codegen.table(program, {"p": "float64"}, fresh=None)
    kernel = _compiler.compiled(_codegen.sums_source("a sum", program, columns), 3)
    found = np.empty(1)
    for n in [*range(300), 1000, 4097, 65_535, 65_536]:
        x = rng.standard_normal(n) * 10.0 ** rng.integers(-5, 5, n)
        run(kernel, [0, 0, n], [x.ctypes.data], [], found.ctypes.data)
        assert found[0] == np.add.reduce(x), n


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_003])
def test_norm_has_the_bits_of_eager(size: int, rng: np.random.Generator) -> None:
    g = [rng.standard_normal(size), rng.standard_normal(7), rng.standard_normal((5, 4)).T, rng.standard_normal(300)]
    p = [np.zeros(x.shape) for x in g]
    rule = xopt.chain(xopt.ClipByNorm(5.0), xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=1.0))
    want, _ = rule.apply(p, g, rule.init(p), runner="eager")
    for threads, task in CUTS[:3]:
        got, _ = rule.apply(p, g, rule.init(p), runner=Llvm(threads, task))
        assert all(map(same_bits, got, want))
