"""dpnp, whose arrays lie behind queues, and cubed, whose arrays are chunks that nobody has computed yet."""

from __future__ import annotations

import importlib
from typing import Any

import catalog
import numpy as np
import pytest
from catalog.links import LINKS
from support.links import SGD, chained

import xopt

BOTH = [pytest.param(name, marks=pytest.mark.needs(name), id=name) for name in ("dpnp", "cubed")]
CLIPS = [xopt.ClipByValue(0.5), xopt.ClipByNorm(1.0), xopt.ClipByGlobalNorm(1.0)]
ARRAYS = [xopt.AdaptiveGradientClip(), xopt.Centralize(), xopt.AddNoise(0.1)]
RULES = [pytest.param(x.values[1], id=x.values[0].rule.__name__) for x in catalog.rules() if not x.marks]
RULES += [pytest.param(chained(x, x.options[0]), id=f"{x.link.__name__}-{x.place}") for x in LINKS]
RULES += [pytest.param(xopt.chain(x, SGD), id=type(x).__name__) for x in [*CLIPS, *ARRAYS]]
LACKING = dict.fromkeys(("Shampoo", "SOAP", "KLShampoo", "KLSOAP"), r"linalg\.eigh")
LACKING |= {"PSGDKron": r"cubed\.linalg has no solve", "Simplex-after": "cubed has no sort"}
"""What cubed cannot do, and which function it says that it has not."""


def back(x: Any) -> Any:
    return x.asnumpy() if hasattr(x, "asnumpy") else np.asarray(x.compute() if hasattr(x, "compute") else x)


def walk(rule: Any, make: Any, dtype: str, steps: int) -> list[Any]:
    rng = np.random.default_rng(20260101)

    def draw() -> dict[str, Any]:
        made = {}
        for name, shape in {"w": (3, 4), "b": (4,), "s": ()}.items():
            x = rng.standard_normal(shape) + 1j * rng.standard_normal(shape) * ("c" in dtype)
            made[name] = make((x if "c" in dtype else x.real).astype(dtype))
        return made

    params = draw()
    state = rule.init(params)
    for _ in range(steps):
        params, state = rule.apply(params, draw(), state)
    return [back(x) for x in params.values()]


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # of cubed
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, which computes in cubed's place at the end
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", BOTH)
def test_every_rule_and_transform(name: str, rule: Any, request: pytest.FixtureRequest) -> None:
    module = pytest.importorskip(name)
    lacking = LACKING.get(request.node.callspec.id.partition("-")[2]) if name == "cubed" else None
    if lacking:
        with pytest.raises((TypeError, AttributeError), match=lacking):
            walk(rule, module.asarray, "float32", 2)
        return
    for dtype in ("float32", "float64", "complex64", "complex128") if name == "dpnp" else ("float32",):
        try:
            want = walk(rule, np.asarray, dtype, 2 if name == "dpnp" else 1)
        except TypeError:  # a rule of real numbers
            assert "complex" in dtype
            continue
        got = walk(rule, module.asarray, dtype, 2 if name == "dpnp" else 1)
        tol = 2e-5 if dtype in ("float32", "complex64") else 1e-10  # two steps of a few roundings, roots of matrices
        for x, y in zip(got, want, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_allclose(x, y, rtol=tol, atol=tol)


@pytest.mark.needs("dpnp")
def test_arrays_of_two_queues_are_named() -> None:
    dpnp, dpctl = pytest.importorskip("dpnp"), importlib.import_module("dpctl")
    queue = dpctl.SyclQueue()
    here, there = dpnp.ones(3), dpnp.ones(3, sycl_queue=queue)
    opt = xopt.Optimizer(here, xopt.Adam(0.1))
    with pytest.raises(ValueError, match=r"grads: on device \S+ \(queue \d+\), but the parameter is on \S+ \(queue"):
        opt.step(there)
    np.testing.assert_array_equal(back(here), np.ones(3))
    both = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(0.1))
    with pytest.raises(ValueError, match=r"queue \d+\), but .* sums over both"):
        both.init([here, there])
    rule = xopt.Adam(0.1)
    new, state = rule.apply([here, there], [here, there], rule.init([here, there]))
    assert [x.sycl_queue == y.sycl_queue for x, y in zip(new, [here, there], strict=True)] == [True, True]
    assert all(x.sycl_queue == queue for name, x in state.slots.items() if name.startswith("1"))


@pytest.mark.needs("dpnp")
@pytest.mark.parametrize("kind", ["device", "shared", "host"])
def test_the_state_is_in_memory_like_the_parameter(kind: str) -> None:
    dpnp = pytest.importorskip("dpnp")
    p = dpnp.ones((4, 6), usm_type=kind)
    opt = xopt.Optimizer({"p": p}, xopt.Adam(0.1))
    opt.step({"p": p * 2})
    assert {
        x.usm_type for slot in opt.state.slots.values() for x in [slot["p"] if isinstance(slot, dict) else slot]
    } == {kind}
    np.testing.assert_allclose(back(p), 0.9, rtol=1e-7)


@pytest.mark.needs("dpnp")
def test_memory_of_dpnp() -> None:
    dpnp = pytest.importorskip("dpnp")
    x = dpnp.ones((4, 6))
    with pytest.raises(ValueError, match="shares memory"):
        xopt.Optimizer([x, x[1:, ::2]], xopt.SGD(0.1))
    turned, strided = dpnp.ones((4, 6)).T, dpnp.ones((4, 6))[:, ::2]
    opt = xopt.Optimizer([x[:, ::2], x[:, 1::2], turned, strided], xopt.Adam(0.1))
    opt.step([dpnp.ones(p.shape) for p in opt.params])
    np.testing.assert_allclose(back(x), 0.9, rtol=1e-7)
    with pytest.raises(ValueError, match="shares memory"):
        opt.step([x[:, ::2], *[dpnp.ones(p.shape) for p in opt.params[1:]]])
    fixed = dpnp.ones(3)
    fixed.flags.writable = False
    with pytest.raises(ValueError, match="read-only"):
        xopt.Optimizer(fixed, xopt.SGD(0.1))


@pytest.mark.needs("dpnp")
def test_a_step_never_asks_dpnp_for_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    dpnp = pytest.importorskip("dpnp")
    p, g = dpnp.ones(10), dpnp.ones(10)
    opt = xopt.Optimizer(p, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(0.1)))
    seen: list[str] = []
    for name in ("asnumpy", "__float__", "__int__", "__bool__", "item"):
        monkeypatch.setattr(dpnp.ndarray, name, lambda *_, name=name: seen.append(name))
    opt.step(g)
    assert not seen


@pytest.mark.needs("dpnp")
def test_rows_and_solvers_on_dpnp() -> None:
    dpnp = pytest.importorskip("dpnp")
    table, other = dpnp.ones((5, 2)), np.ones((5, 2))
    rows, at = np.arange(8.0).reshape(4, 2), np.asarray([1, 3, 1, 1])
    opt, want = xopt.Optimizer(table, xopt.Adam(0.1)), xopt.Optimizer(other, xopt.Adam(0.1))
    opt.step(xopt.SparseRows(dpnp.asarray(at), dpnp.asarray(rows)))
    want.step(xopt.SparseRows(at, rows))
    np.testing.assert_allclose(back(table), other, rtol=1e-14)
    got = xopt.minimize(lambda x: (((x - 3) ** 2).sum(), 2 * (x - 3)), dpnp.zeros(4))
    np.testing.assert_allclose(back(got.x), 3, rtol=1e-6)


@pytest.mark.needs("cubed")
def test_cubed_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cubed = pytest.importorskip("cubed")
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=0.1))
    spec = cubed.Spec(allowed_mem="10MB", reserved_mem=0)  # what a chunk may take: the arrays themselves are larger
    n = 2_000_000
    make = lambda: [cubed.full((n,), x, chunks=(100_000,), spec=spec, dtype=cubed.float64) for x in (1.0, 2.0)]
    with monkeypatch.context() as patch:

        def refuse(*args: Any, **given: Any) -> Any:
            raise AssertionError("a step must not compute")

        patch.setattr("cubed.core.plan.FinalizedPlan.execute", refuse)
        with pytest.raises(AssertionError):
            cubed.ones(2).compute()
        params = make()
        state = rule.init(params)
        new, state = rule.apply(params, make(), state)
        opt = xopt.Optimizer(make(), rule)
        opt.step(make())
    assert [x.chunks for x in new] == [x.chunks for x in params]
    assert all(x.spec == spec for x in new)
    total = sum(float(cubed.sum(x).compute()) for x in new)
    given = [np.full(n, 1.0), np.full(n, 2.0)]
    want, _ = rule.apply(given, given, rule.init(given))
    np.testing.assert_allclose(total, sum(float(x.sum()) for x in want), rtol=1e-12)
    with pytest.raises(TypeError, match="computes nothing until the end"):
        xopt.minimize(lambda x: (cubed.sum(x * x), 2 * x), params[0])
