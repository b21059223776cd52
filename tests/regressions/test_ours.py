"""Bugs that happened to us; those of others are in `test_others.py`.

Each was seen red once, by breaking what it guards.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from conftest import Lib

import xopt
from xopt._engine.runners import threads as _threads
from xopt._engine.runners.tiled.runner import Tiled
from xopt.rule import Array, H, Hyper, Rule, Transform, abs2, hyper

pytestmark = pytest.mark.xla


class Previous(Rule):
    """Keeps the parameter and the gradient of the step before, as Barzilai and Borwein do, and swaps two slots."""

    lr: Hyper = hyper(default=0.1)

    @staticmethod
    def update(
        h: H, xp: Any, p: Array, g: Array, before: Array = 0.0, last: Array = 0.0, a: Array = 1.0, b: Array = 2.0
    ) -> tuple[Array, ...]:
        return -h.lr * (g + 0.1 * last + 0.01 * before), p, g, b, a


@pytest.mark.parametrize("runner", ["eager", None])
def test_a_slot_that_is_the_old_parameter(lib: Lib, runner: Any, rng: np.random.Generator) -> None:
    """Written one after the other, the slot would get the new parameter, and swapped slots would be the same."""
    start, grads = rng.standard_normal(5), [rng.standard_normal(5) for _ in range(3)]
    p, before, last, a, b = start, np.zeros(5), np.zeros(5), 1.0, 2.0
    for g in grads:
        p, before, last, a, b = p - 0.1 * (g + 0.1 * last + 0.01 * before), p, g, b, a
    params = lib.array(start)
    state = Previous().init(params)
    for g in grads:
        g = lib.array(g)
        params, state = Previous().apply(params, g, state, runner=runner)
        if lib.name in ("numpy", "torch", "strict"):  # what comes back shares no memory with what went in
            for x in state.slots.values():
                assert x is not g
                if lib.name != "strict":
                    assert not np.shares_memory(lib.numpy(x), lib.numpy(g))
    np.testing.assert_allclose(lib.numpy(params), p, rtol=1e-14)
    want = {"before": before, "last": last, "a": np.full(5, a), "b": np.full(5, b)}
    for n, x in want.items():
        np.testing.assert_allclose(lib.numpy(state.slots[f"0.previous.{n}"]), x, rtol=1e-14)
    if lib.guise != "read-only":
        opt = xopt.Optimizer(lib.array(start), Previous(), runner=runner)
        for g in grads:
            opt.step(lib.array(g))
        np.testing.assert_allclose(lib.numpy(opt.params), p, rtol=1e-14)
        for n, x in want.items():
            np.testing.assert_allclose(lib.numpy(opt.state.slots[f"0.previous.{n}"]), x, rtol=1e-14)


@pytest.mark.needs("torch")
def test_state_of_a_scalar_torch_parameter_is_the_state() -> None:
    """torch.asarray copies a 0-d NumPy array: the slot that is shown must be the one that is used."""
    torch = pytest.importorskip("torch")
    rule = xopt.SGD(0.1, momentum=0.9)
    draw = lambda: [torch.tensor(1.0), torch.ones(3), torch.ones(2)]
    opt, pure = xopt.Optimizer(draw(), rule), draw()
    state = rule.init(pure)
    for k in range(4):
        grads = [torch.tensor(1.0), torch.ones(3) if k != 2 else None, torch.ones(2)]
        opt.step(grads)
        pure, state = rule.apply(pure, grads, state)
    assert [x.tolist() for x in opt.params] == [x.tolist() for x in pure]
    assert [x.tolist() for x in opt.state.slots["0.sgd.m"]] == [x.tolist() for x in state.slots["0.sgd.m"]]


@pytest.mark.needs("torch")
@pytest.mark.parametrize("runner", ["eager", "tiled"])
def test_torch_parameters_that_were_replaced(runner: Any) -> None:
    torch = pytest.importorskip("torch")
    one = lambda x: torch.nn.Parameter(torch.as_tensor(x))
    p = one(np.arange(6.0).reshape(2, 3)[:, :2].copy())
    opt = xopt.Optimizer(p, xopt.SGD(lr=1.0), runner=runner)
    opt.step(torch.zeros(2, 2, dtype=torch.float64))
    p.data = p.data.t()  # the same pointer, other strides
    want = p.detach().clone() - torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    opt.step(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))
    assert torch.equal(p.detach(), want)
    for change, text in [
        (lambda x: x[:1], r"shape \(1, 2\), dtype torch.float64, device cpu now, but shape \(2, 2\)"),
        (lambda x: x.half(), r"shape \(2, 2\), dtype torch.float16, device cpu now"),
    ]:
        p = one(np.ones((2, 2)))
        opt = xopt.Optimizer({"w": p}, xopt.SGD(lr=1.0), runner=runner)
        p.data = change(p.data)
        with pytest.raises(ValueError, match=r'params\["w"\]: ' + text):
            opt.step({"w": torch.ones(2, 2, dtype=torch.float64)})
        assert bool((p == 1).all())
    a, b = one(np.ones(2)), one(np.ones(2))
    opt = xopt.Optimizer([a, b], xopt.SGD(lr=1.0), runner=runner)
    b.data = a.data
    with pytest.raises(ValueError, match=r"params\[1\]: shares memory with params\[0\]"):
        opt.step([torch.ones(2, dtype=torch.float64)] * 2)
    assert a.tolist() == [1.0, 1.0]


class Alignment(Rule):
    """Needs the sum of p·g, so `reduce` and `update` must see the same gradient."""

    lr: Hyper = hyper(default=1.0)

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"inner": p * g}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return -h.lr * h.inner * g


def test_reduce_sees_the_gradient_that_update_sees(lib: Lib) -> None:
    p, g = np.asarray([1.0, 2.0]), np.asarray([0.5, -1.0])
    for rule, real in [
        (Alignment(), g),
        (Alignment(maximize=True), -g),
        (Alignment(weight_decay=0.5), g + 0.5 * p),
        (Alignment(maximize=True, weight_decay=0.5), -g + 0.5 * p),
    ]:
        x = lib.array(p)
        new, _ = rule.apply(x, lib.array(g), rule.init(x))
        np.testing.assert_allclose(lib.numpy(new), p - (p @ real) * real, rtol=1e-14)


class Fails(Rule):
    """Scalars that cannot be computed, in the body; the state is written first."""

    lr: Hyper = hyper(default=0.1)
    x: Hyper = hyper(default=0.5)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0) -> tuple[Array, ...]:
        m = m + g
        return -m * (1 - h.x) ** 0.5 * (1 / (h.x - 0.25)) * h.t**100.0, m


class PerLeaf(Transform):
    """Divides by the sum of a leaf, which may be zero in a later leaf."""

    scope = "leaf"

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"total": abs2(xp, g)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return g * (1 / h.total)


@pytest.mark.parametrize("runner", ["eager", "tiled", Tiled(2, 2)])
def test_a_scalar_that_cannot_be_computed_moves_nothing(runner: Any) -> None:
    for x, exception in [(2.0, ValueError), (0.25, ZeroDivisionError)]:
        p = [np.ones(5), np.ones(5, "float32")]
        opt = xopt.Optimizer(p, Fails(), runner=runner)
        with pytest.raises(exception):
            opt.step([np.ones(5), np.ones(5, "float32")], x=x)
        assert all((y == 1).all() for y in p)
        assert all((y == 0).all() for y in opt.state.slots["0.fails.m"])
        assert opt.state.step == 0
        assert opt.hyperparams()["x"] == 0.5
    p = [np.ones(5), np.ones(5, "float32"), np.ones(2)]
    opt = xopt.Optimizer(p, xopt.chain(PerLeaf(), xopt.SGD(0.1, 0.9)), runner=runner)
    with pytest.raises(ZeroDivisionError):
        opt.step([np.ones(5), np.zeros(5, "float32"), np.ones(2)])
    assert all((y == 1).all() for y in p)
    opt.step([np.ones(5), None, np.ones(2)])  # a leaf without a gradient has no sum to divide by
    assert not (p[0] == 1).any()
    assert (p[1] == 1).all()


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_a_hyperparameter_in_a_0d_array_is_checked_too(library: str) -> None:
    module = pytest.importorskip(library)
    make = (lambda v: module.numpy.asarray(v)) if library == "jax" else (lambda v: module.tensor(v))
    p = np.ones(4)
    opt = xopt.Optimizer(p, xopt.Adam())
    for value in (1.5, float("nan")):
        with pytest.raises(ValueError, match="Adam.b2"):
            opt.step(np.ones(4), b2=make(value))
    assert (p == 1).all()
    assert (opt.state.slots["0.adam.m"] == 0).all()
    opt.step(np.ones(4), lr=make(0.5))
    np.testing.assert_allclose(p, 0.5, rtol=1e-6)
    with pytest.raises(TypeError, match=f"Adam.lr: an array of {library}, but the parameters are of numpy"):
        xopt.Adam().apply(p, p, xopt.Adam().init(p), lr=make(0.5), runner="eager")


def test_a_step_goes_on_without_threads(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """A thread that cannot be started (no more of them, or at the end of the interpreter) is done without."""
    p, g = rng.standard_normal(5000), rng.standard_normal(5000)
    want = p - 0.5 * g
    opt = xopt.Optimizer([p, np.ones(3), np.ones(2)], xopt.SGD(0.5), runner=Tiled(64, 3))

    def refuse(*args: Any) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(_threads, "_started", 0)
    opt.step([g, np.ones(3), np.ones(2)])
    assert np.array_equal(p, want)


def test_a_step_at_the_end_of_the_interpreter() -> None:
    code = """
import atexit, numpy as np, xopt
from xopt._engine.runners.tiled.runner import Tiled
p = np.ones(5000)
opt = xopt.Optimizer(p, xopt.SGD(1.0), runner=Tiled(64, 3))
opt.step(np.ones(5000))
atexit.register(lambda: (opt.step(np.ones(5000)), print(set(p.tolist()))))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert out.stdout == "{-1.0}\n", out.stderr


def test_a_worker_that_raises_is_heard() -> None:
    def fail() -> None:
        raise ArithmeticError("in a thread")

    with pytest.raises(ArithmeticError, match="in a thread"):
        _threads.run([lambda: None, fail])


def test_a_gradient_that_is_state() -> None:
    p = np.ones(4)
    for runner in ("eager", "tiled"):
        opt = xopt.Optimizer(p.copy(), xopt.Adam(), runner=runner)
        opt.step(np.ones(4))
        with pytest.raises(ValueError, match="grads: shares memory with the optimizer's state"):
            opt.step(opt.state.slots["0.adam.m"])
        split = xopt.Optimizer(p.astype("complex128"), xopt.Adam(complex="split"), runner=runner)
        with pytest.raises(ValueError, match="grads: shares memory with the optimizer's state"):
            split.step(split.state.slots["0.adam.v"][::-1])


def test_memory_that_belongs_to_another_library() -> None:
    torch = pytest.importorskip("torch")
    g = np.ones(6)
    p = torch.from_numpy(g).numpy()
    with pytest.raises(ValueError, match="grads: shares memory with params"):
        xopt.Optimizer(p, xopt.SGD()).step(g)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_reversed_complex_arrays_have_the_same_bits(dtype: str, rng: np.random.Generator) -> None:
    """NumPy's complex loops round otherwise for negative strides."""
    draw = lambda: np.asarray(rng.standard_normal(999) + 1j * rng.standard_normal(999), dtype)[::-1]
    p, g = draw(), draw()
    rule = xopt.chain(xopt.ClipByValue(0.5), xopt.Adam(0.1))
    want, _ = rule.apply(p, g, rule.init(p), runner="eager")
    for tile in (7, 64, 5000):
        got, _ = rule.apply(p, g, rule.init(p), runner=Tiled(tile, 1))
        assert np.array_equal(got, want)


def test_negative_literals_keep_their_sign() -> None:
    class Shift(Rule):
        lr: Hyper = hyper(default=3.0)

        @staticmethod
        def update(h: H, xp: Any, p: Array, g: Array) -> Array:
            return g * (-2 * h.lr) + g * (h.lr**-2) + g * (-1 - h.lr) + g * -(h.lr**2)

    class Power(Rule):
        lr: Hyper = hyper(default=3.0)

        @staticmethod
        def update(h: H, xp: Any, p: Array, g: Array) -> Array:
            return g * (-1) ** h.t

    p = np.zeros(1)
    for runner in ("eager", "tiled"):
        new, _ = Shift().apply(p, np.ones(1), Shift().init(p), runner=runner)
        assert new.tolist() == [-6 + 1 / 9 - 4 - 9]
    with pytest.raises(TypeError, match="a negative base has no real powers"):
        Power().init(p)


def test_int_fields_are_ints() -> None:
    class Twice(Rule):
        lr: Hyper = hyper(default=0.1)
        times: int = 2

        @staticmethod
        def update(h: H, xp: Any, p: Array, g: Array) -> Array:
            for _ in range(h.times):
                g = g + g
            return -h.lr * g

    assert type(Twice(times=3).times) is int
    assert Twice(times=3).apply(np.zeros(1), np.ones(1), Twice().init(np.zeros(1)))[0].tolist() == [-0.8]
    for bad in (2.5, 2.0, True, "2"):
        with pytest.raises(TypeError, match="Twice.times"):
            Twice(times=bad)  # type: ignore[arg-type]


def test_names_that_mean_something_else() -> None:
    for name in (
        "t",
        "update",
        "replace",
        "params",
        "grads",
        "state",
        "runner",
        "scope",
        "carry",
        "on_params",
        "elementwise",
        "value",
    ):
        with pytest.raises(TypeError, match=f"Mine.{name}: this name means something else"):
            type(
                "Mine", (Rule,), {"__annotations__": {name: "Hyper"}, "__module__": __name__, name: hyper(default=1.0)}
            )
    with pytest.raises(TypeError, match="it has no reduce"):
        type(
            "Mine",
            (Transform,),
            {"elementwise": False, "reduce": staticmethod(lambda h, xp, p, g: {}), "__module__": __name__},
        )


class DeadCode(Rule):
    """Reads a slot whose value is then not used."""

    lr: Hyper = hyper(default=0.1)
    flag: bool = False

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, v: Array = 0.0) -> tuple[Array, ...]:
        root = xp.sqrt(v) + 1e-8
        return (-h.lr * g / root if h.flag else -h.lr * g), v


def test_a_slot_that_is_read_in_vain(lib: Lib) -> None:
    for runner in ("eager", None):
        p = lib.array(np.ones(3))
        new, _ = DeadCode().apply(p, lib.array(np.ones(3)), DeadCode().init(p), runner=runner)
        np.testing.assert_allclose(lib.numpy(new), 0.9)


class ByStep(Rule):
    """Gives the step to a function, not to an operator."""

    lr: Hyper = hyper(default=0.1)

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"odd": h.t % 2}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return -xp.minimum(g, h.t) * h.odd + xp.where(g > 100, g, h.t)


def test_the_step_as_an_argument(lib: Lib) -> None:
    p = lib.array(np.zeros(3))
    state = ByStep().init(p)
    apply = lib.module().jit(ByStep().apply) if lib.guise == "jit" else ByStep().apply
    for _ in range(3):
        p, state = apply(p, lib.array(np.asarray([1.0, 2.0, 9.0])), state)
    np.testing.assert_allclose(lib.numpy(p), [6 - 1 - 1, 6 - 1 - 2, 6 - 1 - 3])


@pytest.mark.needs("torch")
def test_a_condition_of_the_host_among_arrays() -> None:
    """The step is an int and the rate a tensor: torch.where takes no bool."""
    torch = pytest.importorskip("torch")
    rule, p, q = xopt.SGD(0.1, 0.9, 0.3), torch.ones(3), np.ones(3, "float32")
    state, other = rule.init(p), rule.init(q)
    for _ in range(3):
        p, state = rule.apply(p, torch.ones(3), state, lr=torch.tensor(0.1), runner="eager")
        q, other = rule.apply(q, np.ones(3, "float32"), other)
    np.testing.assert_allclose(p.numpy(), q, rtol=1e-6)


@pytest.mark.parametrize("runner", ["eager", "tiled"])
def test_a_scalar_that_is_no_float_moves_nothing(runner: str) -> None:
    """Scalars of all leaves at once are checked like those of one."""

    class Huge(Rule):
        lr: Hyper = hyper(default=0.1)
        scope = "leaf"

        @staticmethod
        def reduce(h: H, xp: Any, p: Array, g: Array, m: Array) -> dict[str, Array]:
            return {"s": abs2(xp, g)}

        @staticmethod
        def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0) -> tuple[Array, ...]:
            m = m + h.s * g
            return m * 10**400, m

    opt = xopt.Optimizer(np.ones(200_000), Huge(), runner=runner)
    with pytest.raises(OverflowError):
        opt.step(np.ones(200_000))
    assert (opt.state.slots["0.huge.m"] == 0).all()


def test_a_host_hook_by_leaf_gets_vectors() -> None:
    class Branches(Transform):
        scope = "leaf"

        @staticmethod
        def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
            return {"s": abs2(xp, g)}

        @staticmethod
        def host(h: H, xp: Any) -> dict[str, Any]:
            return {"k": 1.0 if h.s > 0 else 0.0}

        @staticmethod
        def update(h: H, xp: Any, p: Array, g: Array) -> Array:
            return h.k * g

    rule = xopt.chain(Branches(), xopt.SGD())
    with pytest.raises(TypeError, match=r"0.branches: host could not compute .*use xp.where, not if"):
        rule.init(np.ones(3))


@pytest.mark.needs("strict")
def test_leaves_on_two_devices() -> None:
    strict = pytest.importorskip("array_api_strict")
    there = strict.Device("device1")
    p = [strict.ones(3), strict.ones(3, device=there), strict.ones(2, dtype=strict.float32, device=there)]
    rule = xopt.chain(xopt.ClipByNorm(1.0), xopt.SGD(lr=1.0))
    new, _ = rule.apply(p, p, rule.init(p))
    for x, old in zip(new, p, strict=True):
        assert x.device == old.device
        np.testing.assert_allclose(np.from_dlpack(x), 1 - 1 / np.sqrt(x.shape[0]), rtol=1e-6)
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=1.0))
    new, _ = rule.apply(p[1:], p[1:], rule.init(p[1:]))
    np.testing.assert_allclose(np.from_dlpack(new[0]), 1 - 1 / np.sqrt(5), rtol=1e-6)
