"""Scalars of a step: one algebra for numbers, 0-d arrays and columns, in composition, on every library."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib
from hypothesis import given, settings
from hypothesis import strategies as st

import xopt
from xopt._arrays import scalars as _scalars
from xopt._engine.program.algebra import Count, Power, Value, functions, merged
from xopt.rule import Array, H, Hyper, Rule, Transform, abs2, hyper

pytestmark = pytest.mark.xla

B = ("b", {"lr": 0.05})
WARM = xopt.schedules.warmup(0.9, steps=4, start=0.5)
BEHIND_SCALE = [
    xopt.Adam, xopt.Yogi, xopt.AdaBelief, xopt.Adan, xopt.MARS, xopt.LAMB, xopt.LaProp, xopt.StableAdamW, xopt.Prodigy,
    xopt.ScheduleFreeAdamW,
]  # fmt: skip
COMPOSITIONS: dict[str, Callable[[], Any]] = {
    "powers of a held step": lambda: xopt.LossScale(xopt.RAdam(0.1)),
    **{
        f"{rule.__name__} of a held step": lambda rule=rule: xopt.LossScale(rule(0.1, b1=WARM)) for rule in BEHIND_SCALE
    },
    "Muon in groups": lambda: xopt.LossScale(xopt.Groups(xopt.Muon(0.1), B)),
    "corrected Muon": lambda: xopt.LossScale(xopt.Muon(0.1, form="corrected")),
    "two gates, groups": lambda: xopt.Accumulate(xopt.LossScale(xopt.Groups(xopt.RMSProp(0.1, centered=True), B)), 3),
    "two gates, sign": lambda: xopt.Guard(xopt.Accumulate(xopt.Groups(xopt.Rprop(0.1), B), 2), "skip"),
    "carried by leaf": lambda: xopt.LossScale(xopt.Groups(xopt.LDoG(0.1), ("b", {"lr": xopt.scaled(0.5)}))),
    "carried beside columns": lambda: xopt.LossScale(
        xopt.Groups(xopt.Prodigy(0.1, weight_decay=0.1), ("b", {"weight_decay": 0.5}))
    ),
    "numbers of groups, carried by leaf": lambda: xopt.Groups(xopt.ScheduleFreeSGD(0.1), ("b", {"b1": 1.0})),
    "schedules in groups": lambda: xopt.Guard(
        xopt.Groups(xopt.Adan(0.1), ("b", {"lr": xopt.schedules.exponential(0.1, rate=0.5), "b1": 0.5})),
        "skip",
    ),
    "averages of a held step": lambda: xopt.Guard(
        xopt.chain(xopt.SGD(0.1, momentum=0.9), xopt.EMA(0.9, warmup="power"), xopt.SWA(2), xopt.Lookahead()), "skip"
    ),
    "matrices": lambda: xopt.LossScale(xopt.SOAP(0.01)),
    "roots now and then": lambda: xopt.Guard(xopt.Shampoo(0.1, update_every=2), "skip"),
    "sums behind whole arrays": lambda: xopt.Accumulate(
        xopt.chain(
            xopt.AddDecay(0.6), xopt.Masked(xopt.AdaptiveGradientClip(0.5), "w"), xopt.StableAdamW(complex="split")
        ),
        2,
    ),
    "noise and a sum": lambda: xopt.chain(xopt.AddNoise(), xopt.ClipByGlobalNorm(1.0), xopt.SGD(0.1)),
    "digits kept": lambda: xopt.Precision(xopt.LossScale(xopt.Adam(0.1)), rounding="kahan"),
}
EIGEN = ("matrices", "roots now and then")


def drawn(rng: np.random.Generator, dtype: str) -> dict[str, Any]:
    """Draw parameters or gradients."""
    draw = lambda *shape: rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if dtype[0] == "c" else 0)
    return {"w": draw(3, 2).astype(dtype), "b": draw(3).astype(dtype)}


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_composition_is_the_same_where_scalars_are_arrays(
    lib: Lib, name: str, dtype: str, rng: np.random.Generator
) -> None:
    """Four steps beside eager NumPy, whose scalars are floats. Matrices of eigenvectors multiply their roundings."""
    if lib.name == "dask" and name in EIGEN:
        pytest.skip("dask has no eigenvalues")
    if dtype == "complex64" and name not in ("sums behind whole arrays", "digits kept", "two gates, groups"):
        pytest.skip("its scalars are those of real parameters")
    rule, params = COMPOSITIONS[name](), drawn(rng, dtype)
    grads = [drawn(rng, dtype) for _ in range(4)]
    want, state = params, rule.init(params)
    p, s = optree.tree_map(lib.array, params), None
    s = rule.init(p)
    step = lambda p, g, s: rule.apply(p, g, s, runner=None if lib.name in ("jax", "dask") else "eager")
    step = lib.module().jit(step) if lib.guise == "jit" else step
    for g in grads:
        want, state = rule.apply(want, g, state, runner="eager")
        p, s = step(p, optree.tree_map(lib.array, g), s)
        p, slots, carry = lib.settled(p, s.slots, s.carry)
        s = s._replace(slots=slots, carry=carry)
    rtol = 5e-4 if name in EIGEN else 2e-5
    for key, x in want.items():
        np.testing.assert_allclose(lib.numpy(p[key]), x, rtol=rtol, atol=rtol)
    for key, x in state.carry.items():
        got = s.carry[key]
        np.testing.assert_allclose(lib.numpy(got) if hasattr(got, "dtype") else got, x, rtol=1e-4)


@pytest.mark.parametrize("given", ["lr", "b1"])
def test_one_number_for_all_groups(lib: Lib, given: str, rng: np.random.Generator) -> None:
    """What a carried number depends on is one for all groups; what it does not depend on may differ."""
    params = optree.tree_map(lib.array, drawn(rng, "float32"))
    refused = [(xopt.Prodigy(), {"lr": xopt.scaled(2.0)}), (xopt.DAdaptAdam(), {"lr": xopt.scaled(2.0)})]
    if given == "b1":
        refused = [(xopt.Prodigy(bias="standard"), {"b1": 0.5})]
    for rule, values in refused:
        with pytest.raises(ValueError, match=rf"{given} is .* one number for all groups; give {given} once"):
            xopt.Groups(rule, ("b", values)).init(params)
    allowed = xopt.Groups(xopt.Prodigy(weight_decay=0.1), ("b", {"weight_decay": 0.0}))
    allowed.apply(params, params, allowed.init(params))


def test_what_is_set_is_refused_too() -> None:
    params = {"w": np.ones(2), "b": np.ones(2)}
    rule = xopt.Groups(xopt.Prodigy(), ("b", {"lr": 1.0}))
    opt = xopt.Optimizer(params, rule)
    with pytest.raises(ValueError, match=r"lr is .* one number for all groups"):
        opt.set(lr=0.5)
    opt.step({"w": np.ones(2), "b": np.ones(2)})
    with pytest.raises(ValueError, match=r"lr is .* one number for all groups"):
        opt.step({"w": np.ones(2), "b": np.ones(2)}, lr=0.5)


class Looks(Transform):
    """A host that can compute with numbers alone."""

    limit: Hyper = hyper(default=1.0, gt=0)

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"total": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"scale": h.limit / max(h.total, h.limit)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.scale * g


def test_a_host_that_looks_is_refused_everywhere(lib: Lib) -> None:
    p = lib.array(np.ones(3, "float32"))
    with pytest.raises(TypeError, match=r"0\.looks: host could not compute .* use xp\.where, not if"):
        xopt.chain(Looks(), xopt.SGD(0.1)).init(p)


class Whole(Rule):
    """Scalars of every kind beside whole arrays."""

    elementwise = False
    lr: Hyper = hyper(gt=0)
    b: Hyper = hyper(default=0.9, ge=0)

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"left": 1 - h.b**h.t}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return -h.lr * g * h.left / h.t


def test_a_rule_of_whole_arrays_is_given_arrays(lib: Lib) -> None:
    """Every scalar in its ``update`` is a number or an array of the library, also the number of a held step."""
    p = lib.array(np.ones((2, 2), "float32"))
    rule = xopt.LossScale(Whole(lr=0.5), initial=1.0)
    apply = lib.module().jit(rule.apply) if lib.guise == "jit" else rule.apply
    q, state = apply(p, p, rule.init(p))
    q, _ = apply(q, p, state)
    want = 1 - 0.5 * 0.1 - 0.5 * (1 - 0.81) / 2
    np.testing.assert_allclose(lib.numpy(q), want, rtol=1e-6)


def arrays(lib: Lib, *values: Any) -> list[Any]:
    """Return 0-d arrays of a library in float32, without a graph."""
    made = [lib.array(np.asarray(x, "float32")) for x in values]
    return [x.detach() if lib.name == "torch" else x for x in made]


def count(lib: Lib, n: int) -> Count:
    """Return a count of steps beside scalars in float32."""
    [like] = arrays(lib, 0.0)
    xp = xopt._arrays.namespace(like)
    return Count(xp.astype(xp.full_like(like, 0), xp.int32) + n, xp.float32)


ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod]
NAMES = sorted(_scalars.FUNCTIONS - {"where"})


@settings(deadline=None, derandomize=True, max_examples=60, database=None)
@given(st.sampled_from(ARITHMETIC), st.integers(-40, 40), st.integers(1, 40), st.integers(0, 2))
def test_operators_are_those_of_numbers(op: Any, a: int, b: int, side: int) -> None:
    """Quarters are exact in every dtype, so that the algebra of columns and 0-d arrays gives what floats give."""
    x, y = a / 4, b / 4
    column = Value(np.asarray([x, 1.0]))
    made, want = {
        0: lambda: (op(column, y), op(x, y)),
        1: lambda: (op(column, Value(np.asarray([y, 1.0]))), op(x, y)),
        2: lambda: (op(x, Value(np.asarray([y, 1.0]))), op(x, y)),
    }[side]()
    assert made.at(0) == want


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_those_of_numbers(lib: Lib, name: str) -> None:
    function, more = getattr(functions, name), (0.25,) if name in ("maximum", "minimum", "hypot") else ()
    want, [x] = function(0.5, *more), arrays(lib, 0.5)
    got = function(Value(x), *more).array
    np.testing.assert_allclose(lib.numpy(lib.settled(got)[0]), want, rtol=1e-6)


def test_functions_that_there_are_not() -> None:
    with pytest.raises(AttributeError, match=r"xp\.median is not a scalar function; there are abs, ceil"):
        functions.median  # noqa: B018


def test_counts_are_whole_beyond_the_digits_of_float32(lib: Lib) -> None:
    """2²⁴ + 1 is no float32: the remainder of a step is taken in integers."""
    for n in (2**24 + 1, 2**30 + 5):
        t = count(lib, n)
        for got, want in [
            (t % 3, n % 3), (t // 7 % 5, n // 7 % 5), ((t - 1) % 2, (n - 1) % 2), ((t - 1) // 4 + 1, (n - 1) // 4 + 1),
            (n - t, 0), (1 + t - n, 1), (t - t, 0),
        ]:  # fmt: skip
            assert int(lib.numpy(lib.settled(got.exact)[0])) == want
        assert bool(lib.numpy(lib.settled((t == n).array)[0]))
        assert not bool(lib.numpy(lib.settled((t == n - 1).array)[0]))
    most = count(lib, 2**31 - 1)
    assert int(lib.numpy(lib.settled((most + 1).exact)[0])) == 2**31 - 1


@pytest.mark.parametrize("base", [0.0, 0.5, 0.999, 0.999999, 1.0])
def test_one_minus_a_power_keeps_its_digits(lib: Lib, base: float) -> None:
    """In float32: as a difference it would be wrong by 1e-5 at 0.999, and by all digits at 0.999999."""
    for t in (0, 1, 2, 1000):
        steps = count(lib, t)
        with np.errstate(all="ignore"):
            got = (1 - base**steps).array, (1 - Value(arrays(lib, base)[0]) ** steps).array
        want = 1 - base**t, 1 - float(np.float32(base)) ** t
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(lib.numpy(lib.settled(x)[0]), y, rtol=3e-7, atol=0)
    assert isinstance(base**steps, Power) == (base > 0)


def test_columns_of_the_host_meet_arrays_of_a_library(lib: Lib) -> None:
    """Numbers of groups are a vector of NumPy until they meet what is elsewhere: no call mixes libraries."""
    [x] = arrays(lib, 2.0)
    column = merged([0.5, 4.0], [0, 1, 1])
    assert type(column.array) is np.ndarray
    for made, want in [
        (column * Value(x), [1.0, 8.0, 8.0]),
        (functions.maximum(column, Value(x)) * 1.0, [2.0, 4.0, 4.0]),
        (functions.where(column > Value(x), column, 3.0), [3.0, 4.0, 4.0]),
        (functions.where(Value(x) > column, 3.0, column), [3.0, 4.0, 4.0]),
    ]:
        np.testing.assert_array_equal(lib.numpy(lib.settled(made.array)[0]), want)


def test_sets_of_columns_are_merged_leaf_by_leaf(lib: Lib) -> None:
    one, two = (Value(lib.array(np.asarray(x, "float32"))) for x in ([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]))
    found = merged([one, two, 5.0], [0, 1, 2]).array
    np.testing.assert_array_equal(lib.numpy(lib.settled(found)[0]), [1.0, 20.0, 5.0])


def test_nobody_looks_at_a_value() -> None:
    value = Value(np.asarray([1.0, 2.0]))
    for look in (bool, float, int, lambda x: 1 if x > 0 else 0, lambda x: max(x, 0.0)):
        with pytest.raises(TypeError, match=r"use xp\.where, not if"):
            look(value)


NORMS = {
    "clip": xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=0.1)),
    "clip by leaf": xopt.chain(xopt.ClipByNorm(1.0), xopt.SGD(lr=0.1)),
    "normalize": xopt.chain(xopt.Normalize(eps=0.0), xopt.SGD(lr=0.1)),
    "LARS": xopt.LARS(0.1, eps=0.0),
    "Fromage": xopt.Fromage(0.1),
    "ball": xopt.chain(xopt.SGD(0.1), xopt.Ball(0.5)),
    "behind whole arrays": xopt.chain(xopt.Centralize(), xopt.Normalize(eps=0.0), xopt.SGD(lr=0.1)),
}


@functools.cache
def jitted(rule: Any) -> Any:
    """Return a step under jit that serves every size."""
    return pytest.importorskip("jax").jit(rule.apply)


def norms(rule: Any, dtype: str, size: float, send: Callable[[Any], Any], step: Callable[..., Any]) -> Any:
    params = {"w": np.ones((2, 3), dtype), "b": np.ones(1, dtype), "none": np.ones((0, 2), dtype)}
    grads = optree.tree_map(
        lambda x: (np.arange(x.size).reshape(x.shape) - 1.5).astype(dtype) * np.float32(size), params
    )
    if dtype == "complex64":
        grads = optree.tree_map(lambda x: x * np.complex64(0.6 + 0.8j), grads)
    p, g = optree.tree_map(send, params), optree.tree_map(send, grads)
    return step(p, g, rule.init(p))[0]


@pytest.mark.parametrize("size", [1e-36, 1e-25, 1.0, 1e19, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("name", NORMS)
def test_norms_where_there_is_no_float64(lib: Lib, name: str, dtype: str, size: float) -> None:
    """Squares of 1e19 overflow in float32 and those of 1e-25 vanish: norms do neither, as where float64 holds them."""
    rule = NORMS[name]
    want = norms(rule, dtype, size, np.copy, rule.apply)
    if lib.name == "jax":
        jax = lib.module()
        with jax.enable_x64(False):
            got = norms(rule, dtype, size, jax.numpy.asarray, jitted(rule))
    else:
        got = norms(rule, dtype, size, lambda x: lib.array(x, dtype), rule.apply)
    for key, x in want.items():
        found = lib.numpy(lib.settled(got[key])[0])
        assert np.all(np.isfinite(x))
        np.testing.assert_allclose(found, x, rtol=2e-6, atol=1e-7)


def test_a_norm_is_one_pass_over_what_is_not_finite(lib: Lib) -> None:
    """An infinity and a NaN come through the scaled sums."""
    xp, root = xopt._arrays.namespace(arrays(lib, 0.0)[0]), xopt._engine.program.summation.root_of_squares
    for values, want in [([np.inf, 1e-30], np.inf), ([np.nan, 1e30], np.nan), ([np.nan, 1e-30], np.nan), ([], 0.0)]:
        x = lib.array(np.asarray(values, "float32"))
        x = x.detach() if lib.name == "torch" else x
        with np.errstate(all="ignore"):
            np.testing.assert_equal(float(lib.numpy(lib.settled(root(xp, x))[0])), want)
