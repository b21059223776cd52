"""Every component of the catalogue against its oracle, in front of a rule, behind it and after the step."""

from __future__ import annotations

from typing import Any

import catalog
import numpy as np
import pytest
from catalog import links, sgd
from catalog.links import LINKS, Link
from conftest import Lib, walk
from support.links import SGD, chained
from support.oracles import NEW, assert_close, by_apply, leaves, length, problem, run
from support.runners import awkward, poison, same_bits, trajectory

import xopt
from xopt._engine.runners.tiled.runner import Tiled


def cases() -> list[Any]:
    """Every component with every set of options, named for pytest; other libraries than NumPy are given the first."""
    made = []
    for row in LINKS:
        for k, options in enumerate(row.options):
            name = "-".join([row.link.__name__, row.place, *(f"{n}={v}" for n, v in options.items())])
            name = name.replace(repr(links.centre), "centre")
            made.append(pytest.param(row, options, id=name, marks=[pytest.mark.options] if k else []))
    return made


def oracle(row: Link, options: dict[str, Any], params: Any, grads: list[Any], rule: Any = SGD) -> tuple[Any, Any]:
    """Return the last parameters, and what is read as them."""
    wide = lambda x: np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)
    ps, h = [wide(p) for p in leaves(params)], catalog.fields(rule)
    s: dict[str, Any] = {}
    states: list[dict[str, Any]] = [{} for _ in ps]
    fields, read = catalog.fields(row.link(**options)), ps
    for t, g in enumerate(grads, 1):
        own = {n: v(t) if callable(v) and n != "function" else v for n, v in fields.items()}
        if "strength" in own:
            own["strength"] /= 1 - rule.momentum
        gs = [wide(x) for x in leaves(g)]
        entering = row.reference(ps, gs, gs, s, t, **own) if row.place == "front" else gs
        new = [sgd.sgd(p, x, q, t, **h) for p, x, q in zip(ps, entering, states, strict=True)]
        if row.place == "behind":
            steps = [x - p for p, x in zip(ps, new, strict=True)]
            new = [p + u for p, u in zip(ps, row.reference(ps, steps, gs, s, t, **own), strict=True)]
        ps, read = row.reference(ps, new, s, t, **own) if row.place == "after" else (new, new)
    return ps, read


def test_every_public_transform_has_a_row() -> None:
    public = {*catalog.public(xopt.Transform)}
    clips = {xopt.ClipByValue, xopt.ClipByNorm, xopt.ClipByGlobalNorm}  # in rules/test_oracles.py
    arrays = {xopt.AdaptiveGradientClip, xopt.Centralize, xopt.AddNoise}  # in test_whole_arrays.py
    assert public - clips - arrays - {xopt.Masked} == {row.link for row in LINKS} | {xopt.ReduceOnPlateau}


def test_every_field_is_given_by_some_row() -> None:
    given: dict[Any, set[str]] = {}
    for row in LINKS:
        given.setdefault(row.link, set()).update(*row.options)
    for link, names in given.items():
        # the axis of a simplex is tried on arrays that have one
        assert names | ({"axis"} if link is xopt.Simplex else set()) == set(link._fields), link


@pytest.mark.parametrize(("row", "options"), cases())
@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128"])
def test_oracle(lib: Lib, row: Link, options: dict[str, Any], dtype: str, rng: np.random.Generator) -> None:
    if (dtype == "complex128" and not row.complex) or (lib.name == "dask" and row.link is xopt.Simplex):
        pytest.skip(f"{row.link.__name__} of {dtype} on {lib.name}")
    params, grads = problem(rng, dtype, min(length(lib), 8), lib if dtype != "float64" else None)
    rule = chained(row, options)
    got, state = run(lib, rule, params, grads)
    want, read = oracle(row, options, params, grads)
    # float32: eight steps of a few roundings each. A sum that decides nothing is not compared more loosely.
    tol = {"rtol": 1e-12, "atol": 1e-13} if dtype != "float32" else {"rtol": 1e-5, "atol": 2e-6}
    assert_close(got, want, **tol)
    evaluated = rule.eval_params(NEW(lambda x: lib.array(x), got), state)
    for p, x in zip(leaves(NEW(lib.array, got)), leaves(evaluated), strict=True):
        assert (p.shape, p.dtype) == (x.shape, x.dtype)
    assert_close(NEW(lib.numpy, evaluated), read, **tol)
    assert {n.rpartition(".")[2] for n in state.slots} - {"b", "m", "v"} == set(row.state)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("row", LINKS, ids=lambda row: f"{row.link.__name__}-{row.place}")
def test_half(lib: Lib, row: Link, dtype: str, rng: np.random.Generator) -> None:
    """One step: rounded once, when it is stored; averages are kept in float32."""
    if lib.name == "dask" and row.link is xopt.Simplex:
        pytest.skip("no sort")
    params, grads = problem(rng, "float32", 1, lib)
    back = lambda x: lib.numpy(lib.array(x, dtype)).astype(np.float32)
    params, grads = NEW(back, params), [NEW(back, g) for g in grads]
    options = row.options[0]
    got, state = run(lib, chained(row, options), params, grads, dtype)
    want, _ = oracle(row, options, params, grads)
    ulp = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    for x, y in zip(leaves(got), want, strict=True):
        np.testing.assert_allclose(np.asarray(x, "f8"), y, rtol=ulp * 1.01, atol=2e-6)
    assert all("float32" in str(x.dtype) for x in leaves(state.slots))


@pytest.mark.parametrize(("row", "options"), cases())
def test_optimizer_equals_apply(lib: Lib, row: Link, options: dict[str, Any], rng: np.random.Generator) -> None:
    if lib.guise == "read-only" or (lib.name == "dask" and row.link is xopt.Simplex):
        pytest.skip("not here")
    params, grads = problem(rng, "float64", 4, lib)
    rule = chained(row, options)
    other = by_apply(lib)
    want, state = run(other, rule, params, grads)
    read = NEW(other.numpy, rule.eval_params(NEW(other.array, want), state))
    opt = xopt.Optimizer(NEW(lib.array, params), rule)
    for g in grads:
        opt.step(NEW(lib.array, g))
    tol = 0 if lib.name != "jax" else 1e-12  # XLA fuses a jitted step otherwise than single operations
    assert_close(NEW(lib.numpy, opt.params), leaves(want), tol, tol)
    assert_close(NEW(lib.numpy, opt.eval_params()), leaves(read), tol, tol)
    before = [np.array(lib.numpy(x)) for x in leaves(opt.params)]
    with opt.averaged() as seen:
        assert_close(NEW(lib.numpy, seen), leaves(read), tol, tol)
        assert seen is opt.params
    for x, y in zip(leaves(opt.params), before, strict=True):
        np.testing.assert_array_equal(lib.numpy(x), y)


@pytest.mark.parametrize("row", LINKS, ids=lambda row: f"{row.link.__name__}-{row.place}")
def test_every_option_matters_and_every_array_changes(row: Link, rng: np.random.Generator) -> None:
    params, grads = problem(rng, "float64", steps=6)
    bare = np.concatenate([x.ravel() for x in leaves(walk(SGD, params, grads)[0])])
    seen = [bare] if row.place != "after" or not row.state else []
    for options in row.options:
        rule = chained(row, options)
        got, state = walk(rule, params, grads)
        now = np.concatenate([x.ravel() for x in leaves((got, rule.eval_params(got, state)))])
        same = options in ({"strength": 0.0}, {"decay": 0.0, "start": "zero"})
        assert same or not any(np.array_equal(now[: len(x)], x) for x in seen), options
        seen.append(now)
        p = rng.standard_normal(5)
        first = rule.init(p)
        _, state = walk(rule, p, [rng.standard_normal(5) for _ in range(6)])
        for name in row.state:
            [key] = [n for n in state.slots if n.endswith(name)]
            assert not np.any(first.slots[key] == state.slots[key])


@pytest.mark.parametrize("row", LINKS, ids=lambda row: f"{row.link.__name__}-{row.place}")
def test_refused_options(row: Link) -> None:
    for options in row.refused:
        with pytest.raises((ValueError, TypeError)) as caught:
            row.link(**options)
        assert row.link.__name__ in str(caught.value)


@pytest.mark.parametrize(("row", "options"), cases())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_tiles_give_the_bits_of_the_eager_runner(
    row: Link, options: dict[str, Any], dtype: str, rng: np.random.Generator
) -> None:
    if not row.link.elementwise or (dtype == "complex64" and not row.complex):
        return
    same_bits_everywhere(chained(row, options), dtype, rng, Tiled(7, 2))


@pytest.mark.needs("llvm")
@pytest.mark.parametrize("row", LINKS, ids=lambda row: f"{row.link.__name__}-{row.place}")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_llvm_gives_the_bits_of_the_eager_runner(row: Link, dtype: str, rng: np.random.Generator) -> None:
    if row.link.elementwise:
        pytest.importorskip("llvmlite")
        same_bits_everywhere(chained(row, row.options[-1]), dtype, rng, "llvm")


@pytest.mark.needs("llvm")
@pytest.mark.parametrize(
    "row", [x for x in LINKS if x.complex and x.link.elementwise], ids=lambda row: row.link.__name__
)
def test_llvm_of_complex_numbers(row: Link, rng: np.random.Generator) -> None:
    """NumPy multiplies complex numbers by instructions of its own: some roundings of numbers about 1 are allowed."""
    pytest.importorskip("llvmlite")
    params, grads = awkward(rng, "complex64"), [awkward(rng, "complex64") for _ in range(4)]
    rule = chained(row, row.options[-1])
    want, got = (trajectory(rule, params, grads, runner) for runner in ("eager", "llvm"))
    for x, y in zip(got, want, strict=True):
        assert (np.abs(x - y) <= 8 * np.finfo(x.dtype).eps * (np.abs(y) + 1)).all()


def same_bits_everywhere(rule: Any, dtype: str, rng: np.random.Generator, runner: Any) -> None:
    params = awkward(rng, dtype)
    grads = [poison(awkward(rng, dtype), rng) if k == 2 else awkward(rng, dtype) for k in range(4)]
    want = trajectory(rule, params, grads, "eager")
    assert all(map(same_bits, trajectory(rule, params, grads, runner), want))


# ---- components that are other rules when put together


def test_cautious_adamw_as_its_authors_wrote_it(rng: np.random.Generator) -> None:
    """Their AdamW: the decay is taken from p first, and is not masked."""
    p, grads = rng.standard_normal(40), [rng.standard_normal(40) for _ in range(20)]
    rule = xopt.chain(xopt.Adam(lr=1.0), xopt.Cautious(), xopt.AddDecay(0.1, decay="independent"), xopt.Scale(0.05))
    got, _ = walk(rule, p, grads)
    m = v = np.zeros(40)
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        mask = (m * g > 0).astype("f8")
        mask /= max(mask.mean(), 1e-3)
        p = p - 0.05 * 0.1 * p - 0.05 * (m * mask) / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(got, p, rtol=1e-12)


def test_cautious_keeps_a_step_of_numbers_too_small_to_multiply() -> None:
    rule = xopt.chain(xopt.SGD(lr=1.0), xopt.Cautious(rescale=False))
    p, g = np.zeros(2, "f4"), np.asarray([1e-30, -1e-30], "f4")
    np.testing.assert_array_equal(rule.apply(p, g, rule.init(p))[0], -g)


def test_a_trust_ratio_without_a_norm_is_1() -> None:
    rule = xopt.chain(xopt.SGD(lr=1.0), xopt.TrustRatio(0.5))
    p, g = [np.zeros(2), np.ones(2), np.ones(0)], [np.ones(2), np.zeros(2), np.ones(0)]
    new, _ = rule.apply(p, g, rule.init(p))
    np.testing.assert_array_equal(new[0], -1.0)
    np.testing.assert_array_equal(new[1], 1.0)


def test_a_cautious_mask_hides_no_nan() -> None:
    rule = xopt.chain(xopt.SGD(lr=1.0), xopt.Cautious())
    p, g = np.zeros(4), np.asarray([1.0, np.nan, -1.0, 0.0])
    new, _ = rule.apply(p, g, rule.init(p))
    np.testing.assert_array_equal(np.isnan(new), [False, True, False, False])
