"""Every link of the catalogue against its oracle, in front of a rule, behind it and after the step."""

from __future__ import annotations

from collections.abc import Callable
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
from xopt._engine.program import plan as _plan
from xopt._engine.runners.tiled.runner import Tiled


def cases() -> list[Any]:
    """Every link with every set of options, named for pytest; other libraries than NumPy are given the first."""
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
    if row.link.whole or (dtype == "complex64" and not row.complex):
        return
    same_bits_everywhere(chained(row, options), dtype, rng, Tiled(7, 2))


@pytest.mark.needs("numba")
@pytest.mark.parametrize("row", LINKS, ids=lambda row: f"{row.link.__name__}-{row.place}")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numba_gives_the_bits_of_the_eager_runner(row: Link, dtype: str, rng: np.random.Generator) -> None:
    if not row.link.whole:
        pytest.importorskip("numba")
        same_bits_everywhere(chained(row, row.options[-1]), dtype, rng, "numba")


@pytest.mark.needs("numba")
@pytest.mark.parametrize("row", [x for x in LINKS if x.complex and not x.link.whole], ids=lambda row: row.link.__name__)
def test_numba_of_complex_numbers(row: Link, rng: np.random.Generator) -> None:
    """NumPy multiplies complex numbers by instructions of its own: some roundings of numbers about 1 are allowed."""
    pytest.importorskip("numba")
    params, grads = awkward(rng, "complex64"), [awkward(rng, "complex64") for _ in range(4)]
    rule = chained(row, row.options[-1])
    want, got = (trajectory(rule, params, grads, runner) for runner in ("eager", "numba"))
    for x, y in zip(got, want, strict=True):
        assert (np.abs(x - y) <= 8 * np.finfo(x.dtype).eps * (np.abs(y) + 1)).all()


def same_bits_everywhere(rule: Any, dtype: str, rng: np.random.Generator, runner: Any) -> None:
    params = awkward(rng, dtype)
    grads = [poison(awkward(rng, dtype), rng) if k == 2 else awkward(rng, dtype) for k in range(4)]
    want = trajectory(rule, params, grads, "eager")
    assert all(map(same_bits, trajectory(rule, params, grads, runner), want))


# ---- where links may stand


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((xopt.EMA(), SGD), "EMA is given the new parameters, so it must stand behind SGD, not in front"),
        ((xopt.NonNegative(), SGD), "NonNegative is given the new parameters, so it must stand behind SGD"),
        ((xopt.Cautious(), SGD), "Cautious works on the step of the rule, so it must stand behind SGD, not in front"),
        ((xopt.ReduceOnPlateau(), SGD), "ReduceOnPlateau works on the step of the rule, so it must stand behind SGD"),
        ((xopt.AddDecay(0.1, decay="independent"), SGD), "AddDecay works on the step of the rule"),
        ((SGD, xopt.AddDecay(0.1)), "AddDecay changes the gradient, so it must stand in front of SGD, not behind"),
        ((xopt.AddDecay(0.1), xopt.SGD(maximize=True)), "AddDecay in front of SGD.maximize=True. would make the param"),
        (
            (SGD, xopt.EMA(), xopt.ClipByValue(1.0)),
            "ClipByValue changes the step, but EMA .*: put ClipByValue directly behind the rule",
        ),
        ((SGD, xopt.Box(0.0, 1.0), xopt.EMA(), xopt.Cautious()), "Cautious changes the step, but Box in front of it"),
    ],
    ids=lambda x: "-".join(type(y).__name__ for y in x) if isinstance(x, tuple) else "",
)
def test_places_that_are_refused(parts: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"chain: {words}"):
        xopt.chain(*parts)


def test_masked_links_stand_where_their_own_may() -> None:
    xopt.chain(SGD, xopt.EMA(), xopt.Masked(xopt.Box(-1, 1), "w"))
    for parts in (
        (xopt.Masked(xopt.EMA(), "w"), SGD),
        (SGD, xopt.Masked(xopt.EMA(), "w"), xopt.ClipByValue(1.0)),
        (xopt.Masked(xopt.Cautious(), "w"), SGD),
        (xopt.Masked(xopt.AddDecay(0.1), "w"), xopt.SGD(maximize=True)),
        (xopt.Groups(xopt.chain(SGD, xopt.EMA()), ("w", {"lr": 0.5})), xopt.ClipByValue(1.0)),
        (xopt.Groups(SGD, ("w", xopt.chain(SGD, xopt.EMA()))), xopt.ClipByValue(1.0)),
    ):
        with pytest.raises(ValueError, match="chain: "):
            xopt.chain(*parts)


def test_masked_decay_and_averages(lib: Lib, rng: np.random.Generator) -> None:
    p = {"w": rng.standard_normal(3), "b": rng.standard_normal(2)}
    grads = [{"w": rng.standard_normal(3), "b": rng.standard_normal(2)} for _ in range(4)]
    rule = xopt.chain(xopt.Masked(xopt.AddDecay(0.5), "w"), SGD, xopt.Masked(xopt.EMA(0.5), "b"))
    got, state = run(lib, rule, p, grads)
    read = NEW(lib.numpy, rule.eval_params(NEW(lib.array, got), state))
    for name, own in [("w", xopt.chain(xopt.AddDecay(0.5), SGD)), ("b", xopt.chain(SGD, xopt.EMA(0.5)))]:
        want, mine = walk(own, p[name], [g[name] for g in grads])
        assert_close([got[name]], [want], 1e-13, 1e-15)
        assert_close([read[name]], [own.eval_params(want, mine)], 1e-13, 1e-15)


def test_sam_is_no_link() -> None:
    with pytest.raises(TypeError, match="chain: SAM is no link of a chain; it takes a function that returns gradients"):
        xopt.chain(xopt.SAM(), SGD)


def test_clip_adamw_ema_and_a_cautious_mask_are_one_sum_and_one_kernel(rng: np.random.Generator) -> None:
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(), xopt.Cautious(rescale=False), xopt.EMA())
    plan = _plan.plan(rule._specs(), complex=False)
    assert list(plan.sums) == [0]
    text = xopt.explain(rule, np.zeros(10, "f4"), runner="tiled")
    assert text.count("def kernel(") == 2
    stages = [line for line in text.splitlines() if line.startswith("  ") and line.endswith("per parameter")]
    moved = [int(line.split(": ")[1].split()[0]) for line in stages]
    assert moved == [4, 9 * 4], "the sum reads g; the kernel reads p, g, m, v, a and writes all but g"
    rescaled = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(), xopt.Cautious(), xopt.EMA())
    assert list(_plan.plan(rescaled._specs(), complex=False).sums) == [0, 2]


# ---- exactly inside


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_box_has_nothing_outside(lib: Lib, dtype: str, rng: np.random.Generator) -> None:
    low, high = 0.1, 0.3  # numbers of no dtype
    p, g = (lib.array(rng.standard_normal(100).astype("f4"), dtype) for _ in range(2))
    rule = xopt.chain(xopt.SGD(lr=1.0), xopt.Box(low, high))
    new = lib.numpy(rule.apply(p, g, rule.init(p))[0])
    bounds = lib.numpy(lib.array(np.asarray([low, high]), dtype))
    assert new.min() == bounds[0]
    assert new.max() == bounds[1]


def test_nan_stays_nan() -> None:
    for link in (xopt.Box(0.0, 1.0), xopt.NonNegative(), xopt.L1(0.5), xopt.L2(0.5), xopt.Ball(1.0), xopt.Simplex()):
        rule = xopt.chain(xopt.SGD(lr=1.0), link)
        p = np.asarray([np.nan, 2.0])
        assert np.isnan(rule.apply(p, np.zeros(2), rule.init(p))[0][0]), link


@pytest.mark.parametrize("dtype", ["f4", "c8"])
def test_l1_of_small_numbers_is_zero(dtype: str) -> None:
    p = np.asarray([0.0, 0.3, -0.3, 0.7, -0.7, 1.5], dtype)
    for strength, want in [(0.7, [0, 0, 0, 0, 0, 0.8]), (0.0, p)]:
        rule = xopt.chain(xopt.SGD(), xopt.L1(strength))
        new = rule.apply(p, np.zeros_like(p), rule.init(p))[0]
        np.testing.assert_allclose(new, want, rtol=1e-6)
        assert np.count_nonzero(new) == np.count_nonzero(want)


def test_l1_makes_zeros_and_solves_ista(rng: np.random.Generator) -> None:
    """The least squares with an ℓ1 penalty: at the end the gradient is λ·sign(p), or within λ where p is 0."""
    a, y, lam = rng.standard_normal((20, 8)), rng.standard_normal(20), 3.0
    lr = 0.9 / np.linalg.norm(a.T @ a, 2)
    opt = xopt.Optimizer(np.zeros(8), xopt.chain(xopt.SGD(lr), xopt.L1(lr * lam)))
    for _ in range(500):
        opt.step(a.T @ (a @ opt.params - y))
    p, g = opt.params, a.T @ (a @ opt.params - y)
    assert 0 < np.count_nonzero(p) < 8
    np.testing.assert_allclose(g[p != 0], -lam * np.sign(p[p != 0]), atol=1e-9)
    assert np.all(np.abs(g[p == 0]) <= lam)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_simplex_along_an_axis(lib: Lib, axis: int, rng: np.random.Generator) -> None:
    if lib.name == "dask":
        pytest.skip("no sort")
    p, g = rng.standard_normal((5, 7)), rng.standard_normal((5, 7))
    row = next(row for row in LINKS if row.link is xopt.Simplex)
    rule = xopt.chain(xopt.SGD(lr=0.5), xopt.Simplex(2.0, axis=axis))
    got, _ = run(lib, rule, p, [g])
    assert_close(got, row.reference([], [p - 0.5 * g], {}, 1, total=2.0, axis=axis)[0], 1e-13, 1e-15)
    assert np.all(got >= 0)
    np.testing.assert_allclose(got.sum(axis), 2.0, rtol=1e-15 * 7)


def test_simplex_of_a_million(rng: np.random.Generator) -> None:
    """A running sum of float32 would be wrong by more than the elements are large."""
    p = (1e3 + rng.standard_normal(1_000_000)).astype("f4")
    rule = xopt.chain(xopt.SGD(lr=1.0), xopt.Simplex())
    new, _ = rule.apply(p, np.zeros_like(p), rule.init(p))
    assert abs(new.sum(dtype="f8") - 1) < 1e-3  # the elements left are differences of numbers near 1000: ulp 6e-5
    assert new.min() == 0


def test_simplex_and_project_say_what_does_not_fit() -> None:
    for link, p, words in [
        (xopt.Simplex(axis=1), np.zeros(3), r"Simplex: axis 1, but a parameter has shape \(3,\)"),
        (xopt.Simplex(), np.zeros(3, complex), "Simplex: a complex parameter"),
        (xopt.Project(np.sum), np.zeros(3), "Project: .* returned shape .*, but the parameter has shape"),
        (xopt.Project(lambda x: None), np.zeros(3), "Project: .* returned a NoneType, but the parameter has shape"),
    ]:
        rule = xopt.chain(xopt.SGD(), link)
        with pytest.raises((ValueError, TypeError), match=words):
            rule.apply(p, p, rule.init(p))


@pytest.mark.needs("jax")
def test_projections_are_those_of_optax(rng: np.random.Generator, parity: Callable[..., None]) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    p, g = {"w": rng.standard_normal((4, 3)), "b": rng.standard_normal(5)}, {"w": np.zeros((4, 3)), "b": np.zeros(5)}
    jp, o = NEW(jax.numpy.asarray, p), optax.projections
    each = lambda f: NEW(f, jp)
    for link, want in [
        (xopt.NonNegative(), o.projection_non_negative(jp)),
        (xopt.Box(-0.2, 0.5), each(lambda x: o.projection_box(x, -0.2, 0.5))),
        (xopt.Ball(1.5), o.projection_l2_ball(jp, 1.5)),
        (xopt.Ball(1.5, over="leaf"), each(lambda x: o.projection_l2_ball(x, 1.5))),
        (xopt.Simplex(2.0), each(lambda x: o.projection_simplex(x, 2.0))),
    ]:
        rule = xopt.chain(xopt.SGD(), link)
        got = rule.apply(p, g, rule.init(p))[0]
        assert_close(got, leaves(want), 1e-14, 1e-15)
        parity("optax", link, leaves(got), leaves(want))
    rule = xopt.chain(xopt.SGD(), xopt.Project(o.projection_l1_ball))
    got, _ = rule.apply(jp, NEW(jax.numpy.asarray, g), rule.init(jp))
    assert_close(got, leaves(each(o.projection_l1_ball)), 1e-14, 1e-15)


# ---- averages elsewhere


@pytest.mark.needs("torch")
@pytest.mark.parametrize("which", ["ema", "swa"])
def test_averages_are_those_of_torch(which: str, rng: np.random.Generator, parity: Callable[..., None]) -> None:
    torch = pytest.importorskip("torch")
    swa = torch.optim.swa_utils
    model = torch.nn.Linear(3, 2, dtype=torch.float64)
    mine = NEW(lambda p: p.detach().numpy().copy(), list(model.parameters()))
    theirs = swa.AveragedModel(model, multi_avg_fn=swa.get_ema_multi_avg_fn(0.8)) if which == "ema" else None
    theirs = theirs or swa.AveragedModel(model)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    link = xopt.EMA(0.8, start="first") if which == "ema" else xopt.SWA(start=4, every=3)
    ours = xopt.Optimizer(mine, xopt.chain(SGD, link))
    for t in range(1, 21):
        grads = [rng.standard_normal(p.shape) for p in mine]
        for p, g in zip(model.parameters(), grads, strict=True):
            p.grad = torch.tensor(g)
        opt.step()
        if which == "ema" or (t >= 4 and (t - 4) % 3 == 0):
            theirs.update_parameters(model)
        ours.step(grads)
        if which == "ema" or t >= 4:
            for x, p in zip(ours.eval_params(), theirs.module.parameters(), strict=True):
                np.testing.assert_allclose(x, p.detach().numpy(), rtol=1e-12, atol=1e-14)
        else:
            assert_close(ours.eval_params(), mine, 0, 0)
    parity("torch", link, ours.eval_params(), [p.detach().numpy() for p in theirs.module.parameters()])


@pytest.mark.needs("jax")
def test_averages_are_those_of_optax_and_keras(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, parity: Callable[..., None]
) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    p, grads = rng.standard_normal(5), [rng.standard_normal(5) for _ in range(12)]
    debiased, ema = xopt.Optimizer(p.copy(), xopt.chain(SGD, xopt.EMA(0.8, start="zero"))), optax.ema(0.8)
    state = ema.init(jax.numpy.asarray(p))
    for g in grads:
        debiased.step(g)
        want, state = ema.update(jax.numpy.asarray(debiased.params), state)
        np.testing.assert_allclose(debiased.eval_params(), want, rtol=1e-12)
    parity("optax", xopt.EMA(), [debiased.eval_params()], [want])
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    theirs = keras.Variable(p, dtype="float64")
    opt = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.8)
    ours = xopt.Optimizer(p.copy(), xopt.chain(xopt.SGD(0.1), xopt.EMA(0.8, start="first")))
    for g in grads:
        opt.apply([keras.ops.convert_to_tensor(g, "float64")], [theirs])
        ours.step(g)
        want = np.asarray(opt._model_variables_moving_average[0].value)
        np.testing.assert_allclose(ours.eval_params(), want, rtol=1e-7)  # Keras has the 0.8 in float32
    parity("keras", xopt.EMA(), [ours.eval_params()], [want])


@pytest.mark.needs("jax")
def test_lookahead_is_that_of_optax(rng: np.random.Generator, parity: Callable[..., None]) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    p, grads = rng.standard_normal(5), [rng.standard_normal(5) for _ in range(14)]
    opt = optax.lookahead(optax.sgd(0.1, momentum=0.9), 4, 0.3)
    theirs = optax.LookaheadParams.init_synced(jax.numpy.asarray(p))
    state = opt.init(theirs)
    ours = xopt.Optimizer(p.copy(), xopt.chain(SGD, xopt.Lookahead(0.3, k=4)))
    for g in grads:
        updates, state = opt.update(jax.numpy.asarray(g), state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        ours.step(g)
        np.testing.assert_allclose(ours.params, theirs.fast, rtol=1e-12)
        np.testing.assert_allclose(ours.eval_params(), theirs.slow, rtol=1e-12)
    parity("optax", xopt.Lookahead(), [ours.params, ours.eval_params()], [theirs.fast, theirs.slow])


def test_an_average_of_equal_numbers_is_that_number(rng: np.random.Generator) -> None:
    """decay and 1 - decay, rounded apart, do not add up to 1."""
    p = rng.standard_normal(1000).astype("f4")
    for link in (xopt.EMA(0.9), xopt.EMA(0.99, start="zero"), xopt.SWA(), xopt.Lookahead(0.3, k=1)):
        opt = xopt.Optimizer(p.copy(), xopt.chain(xopt.SGD(lr=0.0), link))
        for _ in range(10):
            opt.step(np.ones_like(p))
        np.testing.assert_array_equal(opt.eval_params(), p)


def test_an_average_of_one_is_that_one_to_the_bit(rng: np.random.Generator) -> None:
    start, grads = 1e6 * rng.standard_normal(100).astype("f4"), 1e5 * rng.standard_normal((3, 100)).astype("f4")
    for link, steps in [(xopt.EMA(start="first"), 1), (xopt.EMA(start="zero"), 1), (xopt.SWA(start=3), 3)]:
        rule = xopt.chain(xopt.SGD(lr=9.99), link)
        p, state = walk(rule, start, list(grads[:steps]))
        np.testing.assert_array_equal(rule.eval_params(p, state), p)
    rule = xopt.chain(xopt.SGD(lr=9.99), xopt.Lookahead(start="first"))
    p, state = walk(rule, start, list(grads))
    np.testing.assert_array_equal(rule.eval_params(p, state), p)


@pytest.mark.parametrize("link", [xopt.EMA(0.5), xopt.SWA(start=2), xopt.Lookahead(k=2), xopt.Cautious(rescale=False)])
def test_split_complex_is_two_real_parameters(lib: Lib, link: Any, rng: np.random.Generator) -> None:
    params, grads = problem(rng, "complex128", 4, lib)
    rule = xopt.chain(SGD.replace(complex="split"), link)
    got, state = run(lib, rule, params, grads)
    read = NEW(lib.numpy, rule.eval_params(NEW(lib.array, got), state))
    plain = xopt.chain(SGD, link)
    for part in (np.real, np.imag):
        want, own = walk(plain, NEW(part, params), [NEW(part, g) for g in grads])
        assert_close(NEW(part, got), leaves(want), 1e-13, 1e-15)
        assert_close(NEW(part, read), leaves(plain.eval_params(want, own)), 1e-13, 1e-15)


def test_an_average_of_an_array_without_gradients_is_the_array(rng: np.random.Generator) -> None:
    for link in (
        xopt.EMA(0.5),
        xopt.EMA(0.5, start="first"),
        xopt.EMA(0.5, start="zero"),
        xopt.SWA(),
        xopt.Lookahead(),
    ):
        rule = xopt.chain(SGD, link)
        p, state = walk(rule, [np.ones(3), np.ones(3)], [[np.ones(3), None]] * 3)
        np.testing.assert_array_equal(rule.eval_params(p, state)[1], 1.0)


def test_the_last_link_is_read(rng: np.random.Generator) -> None:
    p, grads = rng.standard_normal(5), [rng.standard_normal(5) for _ in range(5)]
    both = xopt.chain(SGD, xopt.Lookahead(k=2), xopt.EMA(0.5))
    got, state = walk(both, p, grads)
    np.testing.assert_array_equal(both.eval_params(got, state), state.slots["2.ema.average"])
    assert both.eval_params(got, state) is not state.slots["2.ema.average"]


def test_an_average_of_a_projection_is_projected(rng: np.random.Generator) -> None:
    rule = xopt.chain(xopt.SGD(lr=1.0), xopt.NonNegative(), xopt.EMA(0.5, start="first"))
    p = rng.standard_normal(50)
    p, state = walk(rule, p, [rng.standard_normal(50) for _ in range(5)])
    assert np.all(rule.eval_params(p, state) >= 0)
    assert np.any(p == 0)


# ---- averages in place of the parameters


def test_averaged_restores_to_the_bit_after_an_exception(lib: Lib, rng: np.random.Generator) -> None:
    if lib.guise == "read-only":
        pytest.skip("Optimizer refuses read-only arrays")
    params, grads = problem(rng, "float32", 2, lib)
    opt = xopt.Optimizer(NEW(lib.array, params), xopt.chain(SGD, xopt.EMA(0.5)))
    for g in grads:
        opt.step(NEW(lib.array, g))
    before, homes = [np.array(lib.numpy(x)) for x in leaves(opt.params)], leaves(opt.params)
    with pytest.raises(KeyError), opt.averaged() as seen:  # noqa: PT012
        assert any(not np.array_equal(lib.numpy(x), y) for x, y in zip(leaves(seen), before, strict=True))
        if lib.writable:
            assert all(x is y for x, y in zip(leaves(seen), homes, strict=True))
        raise KeyError
    for x, y, home in zip(leaves(opt.params), before, homes, strict=True):
        assert x is home
        assert lib.numpy(x).tobytes() == y.tobytes()
    opt.step(NEW(lib.array, grads[0]))


def test_no_step_while_the_parameters_are_averages() -> None:
    opt = xopt.Optimizer(np.ones(3), xopt.chain(SGD, xopt.EMA(0.5)))
    opt.step(np.ones(3))
    with opt.averaged():
        for what in (lambda: opt.step(np.ones(3)), opt.eval_params, lambda: opt.averaged().__enter__()):
            with pytest.raises(RuntimeError, match="the parameters are averages until the block of averaged"):
                what()
    opt.step(np.ones(3))


# ---- the loss


def plateau(losses: list[Any], **options: Any) -> list[float]:
    """Return the scale of every step."""
    opt = xopt.Optimizer(np.zeros(1), xopt.chain(xopt.SGD(lr=1.0), xopt.ReduceOnPlateau(**options)))
    return np.diff([0.0, *(-opt.step(np.ones(1), value=x).item() for x in losses)]).tolist()


LOSSES = [
    5.0,
    4.0,
    4.0,
    3.99,
    3.99,
    4.1,
    3.0,
    3.0,
    2.9999,
    3.5,
    3.5,
    3.5,
    1.0,
    1.0,
    1.0,
    float("nan"),
    1.0,
    0.5,
    0.5,
    0.5,
]
PLATEAUS: list[dict[str, Any]] = [
    {"patience": 1},
    {"patience": 0, "factor": 0.5},
    {"patience": 2, "factor": 0.5, "cooldown": 2},
    {"patience": 1, "factor": 0.5, "threshold": 0.3, "threshold_mode": "abs"},
    {"patience": 1, "factor": 0.5, "threshold": 0.3},
    {"patience": 0, "factor": 0.5, "min_scale": 0.2},
    {"patience": 1, "factor": 0.5, "mode": "max"},
    {"patience": 1, "factor": 0.5, "mode": "max", "threshold": 0.5, "threshold_mode": "abs"},
]


@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_plateau(options: dict[str, Any]) -> None:
    """What the documentation says, one loss after the other."""
    h = catalog.fields(xopt.ReduceOnPlateau(**options))
    sign = 1 if h["mode"] == "min" else -1
    best, bad, cooling, scale, want = sign * np.inf, 0, 0, 1.0, []
    for loss in LOSSES:
        margin = h["threshold"] * (abs(best) if h["threshold_mode"] == "rel" else 1)
        if not np.isfinite(best) or sign * loss < sign * best - margin:
            best, bad = loss, 0
        else:
            bad += 1
        if cooling:
            cooling, bad = cooling - 1, 0
        if bad > h["patience"]:
            scale, cooling, bad = max(scale * h["factor"], h["min_scale"]), h["cooldown"], 0
        want.append(scale)
    np.testing.assert_allclose(plateau(LOSSES, **options), want, rtol=1e-9)
    assert len(set(want)) > 1


@pytest.mark.needs("torch")
@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_plateau_is_that_of_torch(options: dict[str, Any], parity: Callable[..., None]) -> None:
    torch = pytest.importorskip("torch")
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = dict(options)
    floor = theirs.pop("min_scale", 0.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, min_lr=floor, eps=0.0, **theirs)
    want = []
    for loss in LOSSES:
        scheduler.step(loss)
        want.append(opt.param_groups[0]["lr"])
    got = plateau(LOSSES, **options)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    parity("torch", xopt.ReduceOnPlateau(), [got], [want])
    assert len(set(want)) > 1


@pytest.mark.needs("jax")
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("options", [x for x in PLATEAUS if "mode" not in x], ids=str)
def test_plateau_is_that_of_optax(options: dict[str, Any], size: int, parity: Callable[..., None]) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    theirs = dict(options)
    absolute, threshold = theirs.pop("threshold_mode", "rel") == "abs", theirs.pop("threshold", 1e-4)
    theirs |= {"atol": threshold, "rtol": 0.0} if absolute else {"rtol": threshold}
    theirs["patience"] += 1
    opt = optax.contrib.reduce_on_plateau(**{"factor": 0.1, **theirs}, accumulation_size=size)
    state, want, update = opt.init(jax.numpy.zeros(1)), list[float](), jax.jit(opt.update)
    for loss in LOSSES:
        updates, state = update(jax.numpy.ones(1), state, value=loss)
        want.append(float(updates[0]))
    got = plateau(LOSSES, **options, accumulation_size=size)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    parity("optax", xopt.ReduceOnPlateau(), [got], [want])


def test_every_option_of_a_plateau_matters() -> None:
    base = {"patience": 0, "factor": 0.5}
    sets = [{}, {"factor": 0.1}, {"patience": 1}, {"threshold": 0.3}, {"threshold": 0.3, "threshold_mode": "abs"}]
    sets += [{"cooldown": 2}, {"min_scale": 0.2}, {"mode": "max"}, {"accumulation_size": 2}]
    assert {n for x in sets for n in x} == set(xopt.ReduceOnPlateau._fields)
    found = [tuple(plateau(LOSSES, **{**base, **x})) for x in sets]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "options",
    [{"factor": 1.0}, {"patience": -1}, {"patience": 0.5}, {"threshold": -1.0}, {"threshold_mode": "log"},
     {"cooldown": -1}, {"min_scale": 2.0}, {"mode": "mean"}, {"accumulation_size": 0}],
    ids=str,
)  # fmt: skip
def test_options_that_a_plateau_refuses(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match="ReduceOnPlateau"):
        xopt.ReduceOnPlateau(**options)


def test_plateau_on_every_library(lib: Lib) -> None:
    """The loss is an array of the library, and stays there; a jitted step is traced once."""
    rule = xopt.chain(xopt.SGD(lr=1.0), xopt.ReduceOnPlateau(patience=1, factor=0.5, cooldown=1))
    want = np.cumsum(plateau(LOSSES, patience=1, factor=0.5, cooldown=1))
    p, g = lib.array(np.zeros(3)), lib.array(np.ones(3))
    state, traced = rule.init(p), []
    step = lambda p, state, value: traced.append(1) or rule.apply(p, g, state, value=value)
    if lib.guise == "jit":
        step = lib.module().jit(step)
    for loss, y in zip(LOSSES, want, strict=True):
        p, state = step(p, state, lib.array(np.asarray(loss)))
        np.testing.assert_allclose(lib.numpy(p), -y, rtol=1e-12)
    assert lib.guise != "jit" or len(traced) == 1
    if lib.guise != "read-only":
        opt = xopt.Optimizer(lib.array(np.zeros(3)), rule)
        for loss in LOSSES:
            opt.step(lib.array(np.ones(3)), value=lib.array(np.asarray(loss)))
        np.testing.assert_allclose(lib.numpy(opt.params), -want[-1], rtol=1e-12)


def test_plateau_without_a_loss() -> None:
    opt = xopt.Optimizer(np.ones(3), xopt.chain(SGD, xopt.ReduceOnPlateau()))
    with pytest.raises(TypeError, match="value: missing, but a link of this rule needs it"):
        opt.step(np.ones(3))


# ---- links that are other rules when put together


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


# ---- sharpness


def sam(p: list[Any], g: list[Any], rho: float, adaptive: bool, eta: float) -> list[Any]:
    """Foret et al. 2021, equation 2; Kwon et al. 2021, equation 6."""
    t = [np.abs(x) + eta if adaptive else np.ones(x.shape) for x in p]
    norm = np.sqrt(sum(np.sum(np.abs(x * y) ** 2) for x, y in zip(t, g, strict=True)))
    return [x + (rho / norm * y**2 * z if norm else 0) for x, y, z in zip(p, t, g, strict=True)]


OPTIONS: list[dict[str, Any]] = [{}, {"rho": 0.5}, {"adaptive": True}, {"adaptive": True, "eta": 0.3}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_sam(lib: Lib, options: dict[str, Any], dtype: str, rng: np.random.Generator) -> None:
    params, [grads] = problem(rng, dtype, 1, lib)
    want = sam(leaves(params), leaves(grads), **{"rho": 0.05, "adaptive": False, "eta": 0.01, **options})
    one = xopt.SAM(**options)
    p, g = NEW(lib.array, params), NEW(lib.array, grads)
    seen = []

    def gradient(x: Any) -> Any:
        seen.append(x)
        return g

    assert one.gradient(gradient, p) is g
    assert seen[0] is p
    assert_close(NEW(lib.numpy, seen[1]), want, 1e-12, 1e-14)
    value, again = one.value_and_gradient(lambda x: (("loss", len(seen)), gradient(x)), p)
    assert (value, again is g) == (("loss", 2), True)
    assert_close(NEW(lib.numpy, seen[3]), want, 1e-12, 1e-14)
    for x, y in zip(leaves(NEW(lib.numpy, p)), leaves(params), strict=True):
        np.testing.assert_array_equal(x, y)
    if lib.writable:
        before = [lib.numpy(x).tobytes() for x in leaves(p)]
        with pytest.raises(KeyError), one.perturbed(p, g) as there:  # noqa: PT012
            assert there is p
            assert_close(NEW(lib.numpy, p), want, 1e-12, 1e-14)
            raise KeyError
        assert [lib.numpy(x).tobytes() for x in leaves(p)] == before


def test_every_option_of_sam_matters(rng: np.random.Generator) -> None:
    p, g = rng.standard_normal(5), rng.standard_normal(5)
    found = [tuple(xopt.SAM(**x).perturb(p, g)) for x in OPTIONS]
    assert len(set(found)) == len(found)
    assert {n for x in OPTIONS for n in x} == set(xopt.SAM._fields)


def test_sam_refuses() -> None:
    for options, words in [
        ({"rho": -0.1}, "SAM.rho"),
        ({"eta": 0.1}, "SAM: eta does nothing without adaptive=True"),
        ({"rho": lambda t: 0.1}, "SAM.rho: a schedule, but no steps are counted here"),
        ({"adaptive": 1}, "SAM.adaptive"),
    ]:
        with pytest.raises((ValueError, TypeError), match=words):
            xopt.SAM(**options)
    with pytest.raises(ValueError, match=r'grads\["w"\]: shape \(2,\), but the parameter has \(3,\)'):
        xopt.SAM().gradient(lambda p: {"w": np.ones(2)}, {"w": np.ones(3)})


def test_sam_where_all_gradients_are_zero() -> None:
    np.testing.assert_array_equal(xopt.SAM().perturb(np.ones(3), np.zeros(3)), 1.0)


@pytest.mark.needs("jax")
def test_sam_is_that_of_optax(rng: np.random.Generator) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    a, p = rng.standard_normal((8, 5)), jax.numpy.asarray(rng.standard_normal(5))
    loss = lambda w: jax.numpy.sum(jax.numpy.cos(a @ w)) + jax.numpy.sum(w**4)
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
    opt = optax.contrib.sam(optax.sgd(0.01, momentum=0.9), adversary, opaque_mode=True)
    theirs, state = p, opt.init(p)
    rule = xopt.SGD(0.01, momentum=0.9)
    ours, mine = p, rule.init(p)
    one = xopt.SAM(0.3)
    step = jax.jit(lambda w, s: rule.apply(w, one.value_and_gradient(jax.value_and_grad(loss), w)[1], s))
    for _ in range(20):
        updates, state = opt.update(jax.grad(loss)(theirs), state, theirs, grad_fn=lambda w, _: jax.grad(loss)(w))
        theirs = optax.apply_updates(theirs, updates)
        ours, mine = step(ours, mine)
    np.testing.assert_allclose(ours, theirs, rtol=1e-11)


@pytest.mark.needs("jax")
def test_sam_does_not_write_jax_arrays() -> None:
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match="SAM.perturbed: arrays of jax cannot be written; use SAM.gradient"):
        xopt.SAM().perturbed(jax.numpy.ones(3), jax.numpy.ones(3)).__enter__()


@pytest.mark.parametrize(
    "link", [xopt.EMA(0.5), xopt.SWA(start=2), xopt.Lookahead(k=2), xopt.Cautious(), xopt.Box(-1, 1)]
)
def test_links_of_an_accumulated_step_see_one_step(lib: Lib, link: Any, rng: np.random.Generator) -> None:
    """Averages count steps and not gradients, and a step that is skipped is none."""
    params, grads = problem(rng, "float64", 8, lib)
    inner = xopt.chain(SGD, link)
    rule = xopt.Guard(xopt.Accumulate(inner, every=2), "skip")
    broken = NEW(lambda x: x * np.nan, grads[0])
    got, state = run(lib, rule, params, [*grads[:3], broken, *grads[3:]])
    means = [NEW(lambda a, b: (a + b) / 2, *pair) for pair in zip(grads[::2], grads[1::2], strict=True)]
    want, own = walk(inner, params, means)
    assert_close(got, leaves(want), 1e-12, 1e-13)
    read = rule.eval_params(NEW(lib.array, got), state)
    assert_close(NEW(lib.numpy, read), leaves(inner.eval_params(want, own)), 1e-12, 1e-13)
