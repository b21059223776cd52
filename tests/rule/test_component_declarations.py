"""What a component may be beside elementwise: a state from the parameter, scalars carried for each leaf, projections
behind the step, the gradient that entered the rule, the loss, whole arrays.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib, walk
from support.runners import awkward, one_of, same_bits

import xopt
from xopt.rule import Array, H, Hyper, Rule, Transform, abs2, hyper, static


class Anchor(Rule):
    """Pulls towards where the parameters were when the state was made."""

    lr: Hyper = hyper(default=0.1, ge=0)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, start: Array = "p") -> tuple[Array, ...]:
        return -h.lr * (g + (p - start)), start


class LeafMean(Transform):
    """Divides each leaf by a running mean of its squared norm, unbiased by a count of its own."""

    b: Hyper = hyper(default=0.5, ge=0, lt=1)
    scope = "leaf"
    carry = {"mean": 0.0, "weight": 0.0}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"total": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        mean = h.b * h.mean + (1 - h.b) * h.total
        weight = h.b * h.weight + (1 - h.b)
        return {"mean": mean, "weight": weight, "scale": 1.0 / xp.sqrt(1.0 + mean / weight)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.scale * g


class Box(Transform):
    """A projection: parameters stay within [-limit, limit]."""

    limit: Hyper = hyper(default=0.5, gt=0)
    on_params = True

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return xp.real(g) * 0.0 + xp.minimum(xp.maximum(xp.real(g), -h.limit), h.limit)


class Average(Transform):
    """A running mean of the parameters, which goes on beside them; in ``count`` is who is averaged."""

    on_params = True

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, mean: Array = "p") -> tuple[Array, ...]:
        return g, mean + (g - mean) / h.t


class Agree(Transform):
    """Behind the rule: keep a step only where it descends (as cautious optimizers do)."""

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, *, grad: Array) -> Array:
        return xp.where(xp.real(g) * xp.real(grad) < 0, g, g * 0.0)


class AgreeAll(Transform):
    """The same for a whole leaf, by a sum."""

    scope = "leaf"

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array, *, grad: Array) -> dict[str, Array]:
        return {"dot": xp.real(g) * xp.real(grad)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"keep": xp.where(h.dot < 0, 1.0, 0.0)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.keep * g


class Polyak(Rule):
    """A step as long as the loss says (Polyak 1987)."""

    lr: Hyper = hyper(default=1.0, ge=0)
    inputs = ("value",)

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"total": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"rate": h.lr * h.value / (h.total + 1e-8)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return -(h.rate * g) - 0.0 * h.value * p


class Rows(Rule):
    """Whole arrays: a second moment for every row of a matrix, one number for other arrays; 0-d leaves have none."""

    lr: Hyper = hyper(default=0.1, ge=0)
    keep: float = static(default=0.5)
    elementwise = False

    @staticmethod
    def first(h: H, xp: Any, p: Array) -> Array | None:
        if p.ndim == 0:
            return None
        return 0.0 * (xp.sum(abs2(xp, p), axis=1) if p.ndim == 2 else xp.sum(abs2(xp, p))) + h.keep

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, v: Array = "first", m: Array = 0.0) -> tuple[Array, ...]:
        if v is None:
            return -h.lr * g, None, m
        if bool(xp.any(xp.isnan(xp.real(g)))):
            raise FloatingPointError("no root of a matrix that is not a number")
        new = h.keep * v + (1 - h.keep) * (xp.sum(abs2(xp, g), axis=1) if g.ndim == 2 else xp.sum(abs2(xp, g)))
        m = 0.5 * m + g
        return -h.lr * m / xp.sqrt(1.0 + (xp.reshape(new, (-1, 1)) if g.ndim == 2 else new)), new, m


def rows(p: Any, grads: list[Any], lr: float = 0.1, keep: float = 0.5) -> Any:
    """The same, by hand."""
    m, v = np.zeros_like(p), np.full(p.shape[0] if p.ndim == 2 else (), keep)
    for g in grads:
        if p.ndim == 0:
            p = p - lr * g
            continue
        v = keep * v + (1 - keep) * ((g**2).sum(axis=1) if p.ndim == 2 else (g**2).sum())
        m = 0.5 * m + g
        p = p - lr * m / np.sqrt(1 + (v[:, None] if p.ndim == 2 else v))
    return p


RULES = [
    Anchor(),
    xopt.chain(LeafMean(), xopt.Adam(0.1)),
    xopt.chain(LeafMean(), xopt.SGD(0.1), LeafMean(0.25)),
    xopt.chain(xopt.SGD(0.3), Box(), Average()),
    xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(0.3, momentum=0.9), Agree(), Average()),
    xopt.chain(xopt.SGD(0.3, momentum=0.9, maximize=True, weight_decay=0.1), AgreeAll(), Box(0.7)),
]


runner = one_of("tiled", "cuda", "llvm")


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_runners(rule: Any, dtype: str, runner: Any, rng: np.random.Generator) -> None:
    """Every runner has the bits of the eager one, in pure functions and in place; None and state included."""
    params, grads = awkward(rng, dtype), [awkward(rng, dtype) for _ in range(4)]
    grads[1]["many"][2] = grads[2]["tall"] = None
    want, after = walk(rule, params, grads, runner="eager")
    got, state = walk(rule, params, grads, runner=runner)
    opt = xopt.Optimizer(optree.tree_map(np.copy, params), rule, runner=runner)
    for g in grads:
        opt.step(g)
    for found in ((got, state.slots, state.carry), (opt.params, opt.state.slots, opt.state.carry)):
        left, right = optree.tree_leaves(found), optree.tree_leaves((want, after.slots, after.carry))
        assert all(map(same_bits, left, right))


def brought(lib: Lib, x: Any) -> Any:
    """Bring a result back; carried scalars are the host's already, where it computes."""
    return lib.numpy(x) if hasattr(x, "dtype") and not isinstance(x, np.ndarray) else np.array(x)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_libraries(rule: Any, lib: Lib, rng: np.random.Generator) -> None:
    draw = lambda: {"a": rng.standard_normal((3, 4)), "b": [rng.standard_normal(5), rng.standard_normal(())]}
    params, grads = draw(), [draw() for _ in range(4)]
    grads[1]["b"][0] = None  # type: ignore[index]
    want, after = walk(rule, params, grads, runner="eager")
    move = functools.partial(optree.tree_map, functools.partial(lib.array, dtype="float64"))
    apply = lib.module().jit(rule.apply) if lib.guise == "jit" else rule.apply
    p, state = move(params), rule.init(move(params))
    for g in grads:
        p, state = apply(p, move(g), state)
    got = optree.tree_map(functools.partial(brought, lib), (p, state.slots, state.carry))
    for x, y in zip(*map(optree.tree_leaves, (got, (want, after.slots, after.carry))), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


# --- what each of them does


def test_a_slot_starts_as_the_parameter(lib: Lib) -> None:
    p = lib.array(np.asarray([1.0, 2.0, 3.0], "float32"))
    state = Anchor().init(p)
    assert lib.numpy(state.slots["0.anchor.start"]).tolist() == [1.0, 2.0, 3.0]
    assert state.slots["0.anchor.start"] is not p
    g = lib.array(np.asarray([1.0, 0.0, -1.0], "float32"))
    first, state = Anchor(lr=0.5).apply(p, g, state)
    assert lib.numpy(first).tolist() == [0.5, 2.0, 3.5]
    second, state = Anchor(lr=0.5).apply(first, g, state)
    assert lib.numpy(second).tolist() == [0.25, 2.0, 3.75]
    assert lib.numpy(state.slots["0.anchor.start"]).tolist() == [1.0, 2.0, 3.0]
    if lib.writable:
        opt = xopt.Optimizer(p, Anchor(lr=0.5))
        opt.step(g)
        opt.step(g)
        assert lib.numpy(opt.params).tolist() == [0.25, 2.0, 3.75]


def test_a_slot_from_the_parameter_has_the_dtype_of_arithmetic() -> None:
    for dtype, kept in [("float16", "float32"), ("float64", "float64"), ("complex64", "complex64")]:
        p = np.arange(3).astype(dtype)
        opt = xopt.Optimizer(p, Anchor())
        start = opt.state.slots["0.anchor.start"]
        assert start.dtype == kept
        opt.step(np.ones(3, dtype))
        assert start.tolist() == [0, 1, 2]
    p = np.asarray([1 + 2j], "complex64")
    assert Anchor(complex="split").init(p).slots["0.anchor.start"].tolist() == [1 + 2j]


def test_a_carry_of_leaves_by_hand() -> None:
    """A leaf without a gradient keeps its number."""
    rule = xopt.chain(LeafMean(b=0.5), xopt.SGD(lr=1.0))
    p = {"a": np.zeros(1), "b": np.zeros(2)}
    state = rule.init(p)
    assert state.carry["0.leafmean.mean"].tolist() == [0.0, 0.0]
    p, state = rule.apply(p, {"a": np.asarray([2.0]), "b": np.asarray([3.0, 4.0])}, state)
    np.testing.assert_allclose(p["a"], -2 / np.sqrt(1 + 4))
    np.testing.assert_allclose(p["b"], [-3 / np.sqrt(26), -4 / np.sqrt(26)])
    assert state.carry["0.leafmean.mean"].tolist() == [2.0, 12.5]
    _, state = rule.apply(p, {"a": None, "b": np.asarray([1.0, 0.0])}, state)
    assert state.carry["0.leafmean.mean"].tolist() == [2.0, 6.75]
    assert state.carry["0.leafmean.weight"].tolist() == [0.5, 0.75]
    _, last = rule.apply(p, {"a": None, "b": None}, state)
    assert last.carry["0.leafmean.mean"].tolist() == [2.0, 6.75]
    with pytest.raises(ValueError, match=r'state.carry\["0.leafmean.mean"\]: shape \(3,\), but the rule keeps \(2,\)'):
        rule.apply(p, {"a": None, "b": None}, state._replace(carry={**state.carry, "0.leafmean.mean": np.zeros(3)}))


def test_state_of_one_runner_goes_on_in_another(runner: Any, rng: np.random.Generator) -> None:
    rule = RULES[2]
    params, grads = awkward(rng, "float32"), [awkward(rng, "float32") for _ in range(4)]
    want, _ = walk(rule, params, grads, runner="eager")
    half, state = walk(rule, params, grads[:2], runner=runner)
    for g in grads[2:]:
        half, state = rule.apply(half, g, state, runner="eager")
    assert all(map(same_bits, optree.tree_leaves(half), optree.tree_leaves(want)))


def test_behind_the_step_by_hand(lib: Lib) -> None:
    rule = xopt.chain(xopt.SGD(lr=1.0), Box(0.5), Average())
    p = lib.array(np.asarray([0.0, 0.4]))
    state = rule.init(p)
    g = lib.array(np.asarray([2.0, 0.25]))
    p, state = rule.apply(p, g, state)
    np.testing.assert_allclose(lib.numpy(p), [-0.5, 0.15])
    np.testing.assert_allclose(lib.numpy(state.slots["2.average.mean"]), [-0.5, 0.15])
    change, _ = rule.updates(p, g, state)
    np.testing.assert_allclose(lib.numpy(change), [0.0, -0.25], atol=1e-15)
    p, state = rule.apply(p, g, state)
    np.testing.assert_allclose(lib.numpy(p), [-0.5, -0.1], atol=1e-15)
    np.testing.assert_allclose(lib.numpy(state.slots["2.average.mean"]), [-0.5, 0.025], atol=1e-15)


def test_a_link_that_only_looks_leaves_the_step_alone(rng: np.random.Generator) -> None:
    """``updates`` returns the step itself, not the difference of two roundings."""
    p, g = rng.standard_normal(50, dtype="f4"), 1e-3 * rng.standard_normal(50, dtype="f4")
    plain, looked = xopt.Adam(1e-6), xopt.chain(xopt.Adam(1e-6), Average())
    for call in ("updates", "apply"):
        want, _ = getattr(plain, call)(p, g, plain.init(p))
        got, _ = getattr(looked, call)(p, g, looked.init(p))
        assert same_bits(got, want)


def test_nothing_but_its_like_stands_behind() -> None:
    with pytest.raises(ValueError, match=r"ClipByValue changes the step, but Box in front of it"):
        xopt.chain(xopt.SGD(), Box(), xopt.ClipByValue(1.0))
    grouped = xopt.Groups(xopt.SGD(), ("a", xopt.chain(xopt.SGD(), Box())))
    with pytest.raises(ValueError, match=r"ClipByValue changes the step, but Box in front of it"):
        xopt.chain(grouped, xopt.ClipByValue(1.0))


def test_the_gradient_that_entered_the_rule() -> None:
    """After maximize has changed its sign, before decay; what stood in front of the rule has changed it already."""
    p = np.zeros(2)
    rule = xopt.chain(xopt.ClipByValue(1.0), xopt.SGD(lr=1.0, momentum=0.5), Agree())
    p, state = rule.apply(p, np.asarray([4.0, 1.0]), rule.init(p))
    assert p.tolist() == [-1.0, -1.0]
    p, state = rule.apply(p, np.asarray([-0.25, 1.0]), state)  # momentum still descends in the first
    assert p.tolist() == [-1.0, -2.5]
    up = xopt.chain(xopt.SGD(lr=1.0, maximize=True, weight_decay=100.0), Agree())
    q = np.asarray([1.0, -1.0])
    q, _ = up.apply(q, np.asarray([2.0, 2.0]), up.init(q))
    assert q.tolist() == [1.0, 101.0]


# --- the loss


def test_the_loss_is_an_input(lib: Lib) -> None:
    """A number, or a 0-d array of the library."""
    p = lib.array(np.asarray([1.0, -2.0]))
    g, loss = lib.array(np.asarray([2.0, -4.0])), 5.0
    rule = Polyak()
    want = np.asarray([1.0, -2.0]) * (1 - 2 * 5 / (20 + 1e-8))
    zero = lib.array(np.asarray(loss))
    for value in (loss, 5, np.float64(5), np.asarray(5.0), zero):
        new, _ = rule.apply(p, g, rule.init(p), value=value)
        np.testing.assert_allclose(lib.numpy(new), want, rtol=1e-7)
        change, _ = rule.updates(p, g, rule.init(p), value=value)
        np.testing.assert_allclose(lib.numpy(change), want - lib.numpy(p), rtol=1e-7)
    if lib.guise == "jit":
        jitted = lib.module().jit(lambda p, g, s, v: rule.apply(p, g, s, value=v))
        np.testing.assert_allclose(lib.numpy(jitted(p, g, rule.init(p), 5.0)[0]), want, rtol=1e-7)
    if lib.writable or lib.name == "jax":
        opt = xopt.Optimizer(p, rule)
        opt.step(g, value=loss)
        np.testing.assert_allclose(lib.numpy(opt.params), want, rtol=1e-7)
        opt.step(g, value=zero)


def test_a_loss_that_does_not_fit(lib: Lib) -> None:
    p = lib.array(np.ones(2))
    rule = Polyak()
    for bad, kind, error in [
        (None, TypeError, r"value: missing, but a component of this rule needs it: step\(grads, value=...\)"),
        (p, ValueError, r"value: shape \(2,\), but it must be one number"),
        ("1", TypeError, "value: '1' is a str, but it must be a number"),
        (True, TypeError, "value: True is a bool"),
        ([1.0], TypeError, r"value: \[1.0\] is a list"),
    ]:
        with pytest.raises(kind, match=error):
            rule.apply(p, p, rule.init(p), value=bad)
    if lib.writable:
        opt, other = xopt.Optimizer(p, rule), lib.array(np.ones(2))
        with pytest.raises(TypeError, match="value: missing"):
            opt.step(other)
        assert opt.state.step == 0
        assert lib.numpy(p).tolist() == [1.0, 1.0]


def test_a_loss_that_no_link_asks_for(lib: Lib) -> None:
    """Callers that always have one may always pass it: it changes nothing, but must be a number all the same."""
    rule, p = xopt.Adam(lr=0.1), lib.array(np.ones(2))
    g, state = lib.array(np.asarray([0.5, -2.0])), rule.init(p)
    want = lib.numpy(rule.apply(p, g, state)[0])
    for value in (3.0, 7, np.float32(1), lib.array(np.asarray(5.0)), None):
        assert np.array_equal(lib.numpy(rule.apply(p, g, state, value=value)[0]), want)
        assert np.array_equal(lib.numpy(rule.updates(p, g, state, value=value)[0]) + 1.0, want)
    if lib.guise == "jit":
        jitted = lib.module().jit(lambda p, g, s, v: rule.apply(p, g, s, value=v))
        np.testing.assert_allclose(lib.numpy(jitted(p, g, state, 5.0)[0]), want, rtol=1e-7)
    for bad in ("1", [1.0], True):
        with pytest.raises(TypeError, match="value: "):
            rule.apply(p, g, state, value=bad)
    with pytest.raises(ValueError, match=r"value: shape \(2,\), but it must be one number"):
        rule.apply(p, g, state, value=g)
    if lib.writable or lib.name == "jax":
        opt = xopt.Optimizer(p, rule)
        opt.step(g, value=lib.array(np.asarray(3.0)))
        np.testing.assert_allclose(lib.numpy(opt.params), want, rtol=1e-7)


def test_the_loss_on_every_runner(runner: Any, rng: np.random.Generator) -> None:
    params, grads = awkward(rng, "float32"), awkward(rng, "float32")
    rule = xopt.chain(Polyak(0.1), xopt.ClipByValue(0.5))
    want, _ = rule.apply(params, grads, rule.init(params), value=3.0, runner="eager")
    opt = xopt.Optimizer(optree.tree_map(np.copy, params), rule, runner=runner)
    opt.step(grads, value=3.0)
    assert all(map(same_bits, optree.tree_leaves(opt.params), optree.tree_leaves(want)))


# --- whole arrays


def shapes(rng: np.random.Generator) -> dict[str, Any]:
    return {"m": rng.standard_normal((3, 4)), "v": rng.standard_normal(5), "s": rng.standard_normal(())}


def test_whole_arrays(lib: Lib, rng: np.random.Generator) -> None:
    """Slots of other shapes, and of no shape at all; with components in front and behind that are elementwise."""
    params, grads = shapes(rng), [shapes(rng) for _ in range(3)]
    grads[1]["v"] = None
    move = functools.partial(optree.tree_map, functools.partial(lib.array, dtype="float64"))
    want = {n: rows(params[n], [np.clip(g[n], -1, 1) for g in grads if g[n] is not None]) for n in params}
    rule = xopt.chain(xopt.ClipByValue(1.0), Rows(), Average())
    if lib.guise == "jit":
        pytest.skip("it looks at its gradient")
    p, state = walk(rule, move(params), [move(g) for g in grads])
    for n in want:
        np.testing.assert_allclose(lib.numpy(p[n]), want[n], rtol=1e-12)
    slots = state.slots
    assert slots["1.rows.v"]["s"] is None
    assert tuple(slots["1.rows.v"]["m"].shape) == (3,)
    assert tuple(slots["1.rows.v"]["v"].shape) == ()
    assert tuple(slots["1.rows.m"]["m"].shape) == (3, 4)
    if lib.writable:
        opt = xopt.Optimizer(move(params), rule)
        for g in grads:
            opt.step(move(g))
        for n in want:
            np.testing.assert_allclose(lib.numpy(opt.params[n]), want[n], rtol=1e-12)


def test_whole_arrays_on_every_runner(runner: Any, rng: np.random.Generator) -> None:
    """The eager runner computes them; what stands beside them in other groups goes its own way, one norm for all."""
    params, grads = shapes(rng), [shapes(rng) for _ in range(3)]
    rule = xopt.chain(
        xopt.ClipByGlobalNorm(0.5), LeafMean(), xopt.Groups(xopt.Adam(0.1), (lambda path, x: x.ndim == 2, Rows()))
    )
    want, _ = walk(rule, params, grads, runner="eager")
    opt = xopt.Optimizer(optree.tree_map(np.copy, params), rule, runner=runner)
    for g in grads:
        opt.step(g)
    assert all(map(same_bits, optree.tree_leaves(opt.params), optree.tree_leaves(want)))
    separate, _ = walk(xopt.chain(LeafMean(), Rows()), params["m"], [g["m"] for g in grads], runner="eager")
    assert separate.shape == opt.params["m"].shape


@pytest.mark.needs("torch")
def test_whole_arrays_of_torch_beside_compiled_ones(rng: np.random.Generator) -> None:
    """Sums of the eager runner are tensors, those of the others arrays of NumPy."""
    torch = pytest.importorskip("torch")
    params, grads = shapes(rng), [shapes(rng) for _ in range(3)]
    rule = xopt.chain(
        xopt.ClipByGlobalNorm(0.5),
        xopt.ClipByNorm(0.4),
        xopt.Groups(xopt.chain(LeafMean(), xopt.Adam(0.1)), ("m", xopt.chain(LeafMean(), Rows())), ("s", {"b": 0.2})),
    )
    want, _ = walk(rule, params, grads, runner="eager")
    for runner in ("tiled", "eager"):
        opt = xopt.Optimizer(optree.tree_map(lambda x: torch.asarray(x).clone(), params), rule, runner=runner)  # type: ignore[arg-type]
        for g in grads:
            opt.step(optree.tree_map(torch.asarray, g))
        for x, y in zip(optree.tree_leaves(opt.params), optree.tree_leaves(want), strict=True):
            np.testing.assert_allclose(x.numpy(), y, rtol=1e-12)


@pytest.mark.parametrize("mode", ["modulus", "split"])
def test_whole_complex(mode: str, rng: np.random.Generator) -> None:
    p, g = (rng.standard_normal((3, 4)) + 1j * rng.standard_normal((3, 4)) for _ in range(2))
    rule = Rows(complex=mode)
    got, state = rule.apply(p, g, rule.init(p))
    if mode == "split":
        assert state.slots["0.rows.v"].dtype == complex
        np.testing.assert_allclose(got, rows(p.real, [g.real]) + 1j * rows(p.imag, [g.imag]), rtol=1e-12)
    else:
        assert state.slots["0.rows.v"].dtype == float
        v = 0.25 + 0.5 * (np.abs(g) ** 2).sum(axis=1)
        np.testing.assert_allclose(got, p - 0.1 * g / np.sqrt(1 + v[:, None]), rtol=1e-12)


@pytest.mark.parametrize("library", ["numpy", pytest.param("torch", marks=pytest.mark.needs("torch"))])
def test_a_leaf_that_raises_leaves_all_leaves(library: str, rng: np.random.Generator) -> None:
    """Also those that were computed before it, and those of other groups."""
    lib = Lib(library, "plain")
    move = functools.partial(optree.tree_map, lib.array)
    rule = xopt.chain(LeafMean(), xopt.Groups(Rows(), ("x*", xopt.Adam(0.1))))
    params = move({"a": np.ones((2, 2)), "b": np.ones((2, 2)), "x": np.ones(3)})
    opt = xopt.Optimizer(params, rule)
    opt.step(move({"a": np.ones((2, 2)), "b": np.ones((2, 2)), "x": np.ones(3)}))
    leaves = lambda: [
        brought(lib, x).copy() for x in optree.tree_leaves((opt.params, opt.state.slots, opt.state.carry))
    ]
    before = leaves()
    with pytest.raises(FloatingPointError, match="no root"):
        opt.step(move({"a": np.ones((2, 2)), "b": np.full((2, 2), np.nan), "x": np.ones(3)}))
    assert all(map(same_bits, leaves(), before))
    assert opt.state.step == 1
    opt.step(move({"a": np.ones((2, 2)), "b": np.ones((2, 2)), "x": np.ones(3)}))
    assert not any(map(same_bits, leaves()[:3], before[:3]))


def test_state_of_whole_arrays_is_checked(rng: np.random.Generator) -> None:
    params = shapes(rng)
    rule = Rows()
    state = rule.init(params)
    for name, x, kind, error in [
        ("m", np.zeros(4), ValueError, r'state.slots\["0.rows.v"\]\["m"\]: shape \(4,\), but the rule keeps \(3,\)'),
        ("v", np.zeros(5), ValueError, r'state.slots\["0.rows.v"\]\["v"\]: shape \(5,\), but the rule keeps \(\)'),
        ("m", np.zeros(3, "f4"), TypeError, r'\["m"\]: dtype float32, but .* float64'),
        ("m", None, TypeError, r'\["0.rows.v"\]\["m"\]: a NoneType'),
        ("s", np.zeros(()), ValueError, r'\["0.rows.v"\]\["s"\]: an array, but the rule keeps none for this parameter'),
    ]:
        wrong = copy.deepcopy(state)
        wrong.slots["0.rows.v"][name] = x
        with pytest.raises(kind, match=error):
            rule.apply(params, params, wrong)
    assert rule.apply(params, params, state)[1].step == 1


def test_explain_whole_arrays(rng: np.random.Generator) -> None:
    text = xopt.explain(xopt.chain(xopt.ClipByGlobalNorm(1.0), Rows()), shapes(rng))
    assert "float64: 3 arrays, 18 parameters\n  step: whole arrays, for 1.rows; by the eager runner\n" in text
    assert "0 bytes per step, beside those of whole arrays" in text


def test_what_a_class_may_not_be() -> None:
    with pytest.raises(TypeError, match="Bad: a component of whole arrays sums by itself; it has no reduce"):

        class Bad(Rule):
            elementwise = False

            @staticmethod
            def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
                return {}

    with pytest.raises(TypeError, match="s='start' names no field of Worse, nor is it \"p\", the parameter itself"):

        class Worse(Rule):
            @staticmethod
            def start(h: H, xp: Any, p: Array) -> Array:
                return p

            @staticmethod
            def update(h: H, xp: Any, p: Array, g: Array, s: Array = "start") -> tuple[Array, ...]:
                return g, s

    class Hosted(Transform):
        scope = "leaf"

        @staticmethod
        def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
            return {"total": abs2(xp, g)}

        @staticmethod
        def host(h: H, xp: Any) -> dict[str, Any]:
            return {"s": 1.0 if h.total > 1 else 0.0}

        @staticmethod
        def update(h: H, xp: Any, p: Array, g: Array) -> Array:
            return h.s * g

    with pytest.raises(TypeError, match=r"0.hosted: host could not compute .*use xp.where, not if"):
        xopt.chain(Hosted(), xopt.SGD()).init(np.ones(3))


def test_a_static_field_of_another_kind() -> None:
    def pair(where: str, value: Any) -> Any:
        if len(value) != 2:
            raise ValueError(f"{where}: {value!r}, but it must be two numbers")
        return tuple(map(float, value))

    class Mixed(Rule):
        lr: Hyper = hyper(default=1.0, ge=0)
        shares: Any = static(default=[1, 1], convert=pair)

        @staticmethod
        def update(h: H, xp: Any, p: Array, g: Array) -> Array:
            return -h.lr * (h.shares[0] + h.shares[1]) * g

    rule, p = Mixed(0.5, shares=[1, 2]), np.ones(2)
    assert rule.shares == (1.0, 2.0)
    assert Mixed() == Mixed(shares=(1, 1))
    assert hash(Mixed()) == hash(Mixed().replace(lr=1.0))
    assert hash(rule) == hash(Mixed(0.5, shares=np.asarray([1, 2])))
    np.testing.assert_array_equal(rule.apply(p, p, rule.init(p))[0], 1 - 0.5 * 3 * p)
    with pytest.raises(ValueError, match=r"Mixed.shares: \[1\], but it must be two numbers"):
        Mixed(shares=[1])
