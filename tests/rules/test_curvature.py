"""Estimates of the curvature between steps: Sophia beside its paper and its peers, and what is refused."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from typing import Any

import catalog
import numpy as np
import pytest
from catalog.curvature import sophia
from conftest import Lib
from support.oracles import NEW, assert_close, leaves
from support.runners import one_of

import xopt
from xopt.random import signs

STEPS, EVERY = 9, 2
runner = one_of("eager", "tiled", "llvm")


def draws(rng: np.random.Generator, dtype: str = "float64", split: bool = False) -> tuple[Any, list[Any], list[Any]]:
    """Return parameters, gradients, and estimates of both signs of which some are None, in double precision."""
    shapes = {"w": (4, 3), "b": (), "none": (0,)}

    def draw(complex: bool = False) -> Any:
        part = lambda s: np.asarray(rng.standard_normal(s))
        return {n: np.asarray(part(s) + 1j * part(s)) if complex else part(s) for n, s in shapes.items()}

    wide = "complex" in dtype
    found = [draw(wide and split) for _ in range(STEPS)]
    found[0]["b"] = None
    return draw(wide), [draw(wide) for _ in range(STEPS)], found


def rule(**options: Any) -> xopt.Sophia:
    return xopt.Sophia(**{"lr": 0.1, "b1": 0.5, "b2": 0.6, "gamma": 0.7, "eps": 0.1, **options})


def oracle(rule: Any, params: Any, grads: list[Any], found: list[Any]) -> list[Any]:
    split = rule.complex == "split"
    part = lambda x: np.stack([x.real, x.imag], -1) if split and np.iscomplexobj(x) else x
    out = []
    for n in sorted(params):
        p, s = part(params[n]), dict[str, Any]()
        for t, g in enumerate(grads, 1):
            x = found[t - 1][n]
            if t % EVERY == 1 and x is not None:
                s["estimate"] = part(-x if rule.maximize else x)
            h = {n: v(t) if callable(v) else v for n, v in catalog.fields(rule).items()}
            p = sophia(p, part(g[n]), s, t, **h)
        out.append(p if p.shape == params[n].shape else p[..., 0] + 1j * p[..., 1])
    return out


def pure(
    rule: Any, params: Any, grads: list[Any], found: list[Any], jit: Callable[[Any], Any] = lambda f: f
) -> tuple[Any, Any]:
    state, update, apply = rule.init(params), jit(rule.update_curvature), jit(rule.apply)
    for t, (g, x) in enumerate(zip(grads, found, strict=True), 1):
        if t % EVERY == 1:
            state = update(params, x, state)
        params, state = apply(params, g, state)
    return params, state


def placed(lib: Lib, tree: Any, dtype: str) -> Any:
    """Return arrays of a library; real ones of the dtype that goes with a complex one."""
    real = {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    kind = lambda x: dtype if np.iscomplexobj(x) else real
    return {n: None if x is None else lib.array(x, kind(x)) for n, x in tree.items()}


OPTIONS: list[dict[str, Any]] = [
    {}, {"eps_mode": "add"}, {"bias": "standard"}, {"maximize": True}, {"weight_decay": 0.3},
    {n: xopt.schedules.polynomial(x, end=0.1 * x, steps=STEPS) for n, x in (("b2", 0.9), ("lr", 0.1))},
]  # fmt: skip
KINDS = [("float64", "modulus"), ("float32", "modulus"), ("complex128", "modulus"), ("complex64", "split")]


@pytest.mark.parametrize(("dtype", "complex"), KINDS)
def test_sophia_is_algorithm_3(lib: Lib, dtype: str, complex: Any, rng: np.random.Generator) -> None:
    if lib.name == "jax" and dtype in ("float64", "complex128"):
        pytest.skip("JAX compiles what it does in single precision")
    params, grads, found = draws(rng, dtype, complex == "split")
    # a few roundings a step, of numbers of size 1
    rtol, atol = (1e-12, 1e-13) if dtype in ("float64", "complex128") else (2e-5, 4e-6)
    for options in OPTIONS if lib.id == "numpy-plain" else OPTIONS[-2:-1]:
        method = rule(complex=complex, **options)
        given = [placed(lib, x, dtype) for x in (params, *grads, *found)]
        jit = {"jit": lib.module().jit} if lib.guise == "jit" else {}
        got, _ = pure(method, given[0], given[1 : STEPS + 1], given[STEPS + 1 :], **jit)
        assert_close(NEW(lib.numpy, got), oracle(method, params, grads, found), rtol, atol)


@pytest.mark.needs("jax")
@pytest.mark.parametrize("like", [None, "optax"])
def test_sophia_of_optax(like: Any, rng: np.random.Generator, parity: Callable[..., None]) -> None:
    """optax estimates behind the momentum of a step, for the next one: that is here before the next one."""
    optax, jnp = importlib.import_module("optax"), importlib.import_module("jax.numpy")
    params, grads, found = (x[:4] if isinstance(x, list) else x for x in draws(rng))
    found[0]["b"] = np.asarray(0.3)
    rest = iter([NEW(jnp.asarray, x) for x in found])
    taken = optax.GradientTransformation(lambda p: (), lambda u, s, p=None: (next(rest), s))
    options = {} if like else {"b1": 0.5, "b2": 0.6, "eps": 0.1, "gamma": 0.7, "weight_decay": 0.3}
    tx = optax.contrib.sophia(0.1, hessian_diagonal_fn=taken, update_interval=1, **options)
    theirs = NEW(jnp.asarray, params)
    jax = importlib.import_module("jax")
    state = tx.init(theirs)
    with jax.disable_jit():  # their estimate is a value that a compiled step would keep
        for g in grads:
            steps, state = tx.update(NEW(jnp.asarray, g), state, theirs)
            theirs = optax.apply_updates(theirs, steps)
    mine = xopt.Sophia(0.1, like="optax") if like else rule(bias="standard", weight_decay=0.3)
    got, kept = params, mine.init(params)
    for g, x in zip(grads, found, strict=True):
        got, kept = mine.apply(got, g, kept)
        kept = mine.update_curvature(got, x, kept)
    assert_close(got, leaves(theirs), 1e-12, 1e-13)
    parity("optax", mine, leaves(got), leaves(theirs))


@pytest.mark.needs("torch")
def test_sophia_of_pytorch_optimizer(rng: np.random.Generator, parity: Callable[..., None]) -> None:
    """Theirs has no γ and clips to a bound c: lr·c for lr, c for γ and c·ε for ε."""
    module, torch = pytest.importorskip("pytorch_optimizer"), pytest.importorskip("torch")
    params, grads, found = draws(rng)
    found[0]["b"] = np.asarray(0.3)
    theirs = [torch.tensor(p, requires_grad=True) for p in leaves(params)]
    opt = module.SophiaH(theirs, lr=0.1, betas=(0.5, 0.6), weight_decay=0.3, p=0.25, eps=0.1, update_period=1)
    for g, x in zip(grads, found, strict=True):
        for p, y in zip(theirs, leaves(g), strict=True):
            p.grad = torch.tensor(y)
        opt.step(hessian=[torch.tensor(y) for y in leaves(x)])
    mine = xopt.Sophia(0.025, 0.5, 0.6, gamma=0.25, eps=0.025, weight_decay=1.2)
    got, state = params, mine.init(params)
    for g, x in zip(grads, found, strict=True):
        got, state = mine.apply(got, g, mine.update_curvature(got, x, state))
    assert_close(got, [p.detach().numpy() for p in theirs], 1e-12, 1e-13)
    parity("pytorch-optimizer", mine, leaves(got), [p.detach().numpy() for p in theirs])


def test_the_code_of_the_authors(rng: np.random.Generator) -> None:
    """SophiaG, as its source has it; the batch is a factor of the estimate here, B·ĝ², and one of ρ·B·h there."""
    params, grads, _ = draws(rng)
    batch, h, m, p, mine = 32.0, 0.0, 0.0, params["w"], xopt.Sophia(like="authors")
    got, state = p, mine.init(p)
    for t, g in enumerate((g["w"] for g in grads), 1):
        if t % EVERY == 1:
            h = 0.99 * h + (1 - 0.99) * g * g
            state = mine.update_curvature(got, batch * g * g, state)
        p = p * (1 - 1e-4 * 1e-1)
        m = 0.965 * m + (1 - 0.965) * g
        ratio = np.minimum(np.abs(m) / (0.04 * batch * h + 1e-15), 1)
        p = p - 1e-4 * np.sign(m) * ratio
        got, state = mine.apply(got, g, state)
    np.testing.assert_allclose(got, p, rtol=1e-13)
    assert np.abs(ratio - 1).max() > 0  # some are not clipped


AROUND: list[Any] = [
    lambda r: r,
    lambda r: xopt.chain(xopt.ClipByGlobalNorm(0.5), r, xopt.EMA(0.5)),
    lambda r: xopt.chain(xopt.Centralize(), r),
    lambda r: xopt.Accumulate(r, 2),
    lambda r: xopt.Groups(r, ("w", {"b2": 0.1, "gamma": 0.3})),
    lambda r: xopt.Groups(xopt.Adam(0.1), ("w", xopt.chain(xopt.ClipByValue(0.5), r))),
    lambda r: xopt.Groups(r, ("b", xopt.Freeze)),
    lambda r: xopt.Precision(r, state_dtype="bfloat16"),
]


@pytest.mark.parametrize("around", AROUND, ids=range(len(AROUND)))
def test_optimizer_is_the_pure_form(runner: Any, around: Any, rng: np.random.Generator) -> None:
    if around is AROUND[-1]:
        pytest.importorskip("ml_dtypes")
    stepped(Lib("numpy", "plain"), around(rule()), rng, runner)


def test_on_every_library(lib: Lib, rng: np.random.Generator) -> None:
    if lib.guise == "read-only":
        pytest.skip("Optimizer refuses read-only arrays")
    stepped(lib, AROUND[4](rule()), rng, tol=1e-5)  # libraries round fused steps in their own ways


def stepped(lib: Lib, method: Any, rng: np.random.Generator, runner: Any = None, tol: float = 0.0) -> None:
    """Take steps in place, some of them after a resume, and compare them with the pure form on NumPy."""
    params, grads, found = draws(rng, "float32")
    want, state = pure(method, _f32(params), [_f32(g) for g in grads], [_f32(x) for x in found])
    opt = xopt.Optimizer(placed(lib, params, "float32"), method, runner=runner)
    for t, (g, x) in enumerate(zip(grads, found, strict=True), 1):
        if t % EVERY == 1:
            opt.update_curvature(placed(lib, x, "float32"))
        if t == 5:
            resumed = xopt.Optimizer(NEW(lambda p: lib.array(lib.numpy(p)), opt.params), method, runner=runner)
            resumed.load_state_dict(opt.state_dict(only_state=False))
            opt = resumed
        opt.step(placed(lib, g, "float32"))
    assert any("hessian" in n for n in opt.state.slots)
    for a, b in zip(leaves((opt.params, opt.state.slots)), leaves((want, state.slots)), strict=True):
        np.testing.assert_allclose(lib.numpy(a).astype("f8"), np.asarray(b, "f8"), rtol=tol, atol=tol)


def _f32(tree: Any) -> Any:
    return {n: None if x is None else np.asarray(x, np.float32) for n, x in tree.items()}


def test_8_bits(runner: Any, rng: np.random.Generator) -> None:
    p, g, x = (rng.standard_normal((70, 70)).astype(np.float32) for _ in range(3))
    g[:2] = 1e-6  # where codes of m are not those of 0, the quotient is as near as both
    method, full = rule(b2=0.0), rule(b2=0.0)
    opt = xopt.Optimizer(p.copy(), method, runner=runner, state_dtype="int8")
    want = full.update_curvature(p, x, full.init(p))
    opt.update_curvature(x)
    before = {n: y.copy() for n, y in opt.state.slots.items() if "hessian" in n}
    assert {y.dtype.name for y in before.values()} == {"int8", "float32"}
    scale = np.repeat(before["precision.scale.0.sophia.hessian"], 128)[: x.size].reshape(x.shape)
    code = before["0.sophia.hessian"].astype("f8")
    # roots are rounded to 1/127, so that a number of size s·r² is off by no more than s·r/127, and 1/254² where r is 0
    root = np.sqrt(np.abs(x) / scale)
    assert np.all(np.abs(code * np.abs(code) / 127**2 * scale - x) <= scale * (root / 127 + 1 / 254**2) * 1.01)
    for _ in range(3):
        opt.step(g)
    for n, y in before.items():
        np.testing.assert_array_equal(opt.state.slots[n], y, n)  # a step leaves it as it is, to the bit
    got, state = full.apply(p, g, want)[0], method.init(p, state_dtype="int8")
    state = method.update_curvature(p, x, state)
    for n, y in before.items():
        np.testing.assert_array_equal(state.slots[n], y, n)
    np.testing.assert_allclose(method.apply(p, g, state)[0], got, atol=0.1 * 0.05)  # of steps no larger than 0.1


@pytest.mark.parametrize("mode", ["max", "add"])
def test_no_gradient_and_negative_curvature_is_no_step(runner: Any, mode: Any) -> None:
    opt = xopt.Optimizer(np.ones(3), rule(eps_mode=mode), runner=runner)
    opt.update_curvature(np.asarray([-1.0, -1.0, 1.0]))
    opt.step(np.asarray([0.0, 2.0, 0.0]))
    np.testing.assert_allclose(opt.params, [1.0, 0.9, 1.0], rtol=1e-15)


def test_half_precision_parameters_take_both(rng: np.random.Generator) -> None:
    method, p = rule(), np.ones(3, np.float16)
    for x in (np.full(3, 2.0, np.float16), np.full(3, 2.0, np.float32)):
        state = method.update_curvature(p, x, method.init(p))
        np.testing.assert_array_equal(state.slots["0.sophia.hessian"], np.full(3, 0.8, np.float32))
    with pytest.raises(TypeError, match=r"curvature: dtype float64, but the parameter has float16"):
        method.update_curvature(p, np.ones(3), method.init(p))


def test_what_is_refused(rng: np.random.Generator) -> None:
    params = {"w": np.ones((2, 2)), "z": np.ones(2, complex)}
    opt = xopt.Optimizer(params, rule())
    fits = {"w": np.ones((2, 2)), "z": np.ones(2)}
    for changes, error, words in [
        ({"w": np.ones(2)}, ValueError, r'curvature\["w"\]: shape \(2,\), but the parameter has \(2, 2\)'),
        ({"w": np.ones((2, 2), "f4")}, TypeError, r'curvature\["w"\]: dtype float32, but the parameter has float64'),
        ({"z": np.ones(2, complex)}, TypeError, r'curvature\["z"\]: dtype complex128, but the rule keeps float64'),
        ({"w": 1.0}, TypeError, r'curvature\["w"\]: 1.0, a Python float'),
        ({"q": np.ones(2)}, ValueError, r'curvature\["q"\]: not among the parameters'),
    ]:
        before = opt.state_dict()
        with pytest.raises(error, match=words):
            opt.update_curvature({**fits, **changes})
        with pytest.raises(error, match=words):
            opt.rule.update_curvature(params, {**fits, **changes}, opt.state)
        assert str(before) == str(opt.state_dict())
    opt.update_curvature(fits)
    for method in (xopt.Adam(), xopt.chain(xopt.ClipByValue(1.0), xopt.SGD()), xopt.Groups(xopt.SGD())):
        words = r"update_curvature: no rule here takes estimates of the curvature, as Sophia does: .*(adam|sgd)"
        with pytest.raises(TypeError, match=words):
            xopt.Optimizer({"w": np.ones(2)}, method).update_curvature({"w": np.ones(2)})
        with pytest.raises(TypeError, match=words):
            method.update_curvature({"w": np.ones(2)}, {"w": np.ones(2)}, method.init({"w": np.ones(2)}))
    with opt.averaged(), pytest.raises(RuntimeError, match="update_curvature: the parameters are averages"):
        opt.update_curvature(fits)


def test_a_hook_names_state() -> None:
    for hook in (lambda h, xp, x: x, lambda h, xp, x, v: x):
        with pytest.raises(TypeError, match=r"Own.curvature must take \(h, xp, x\) and then state arrays .* are m"):
            type("Own", (xopt.Rule,), {
                "__annotations__": {"lr": float}, "lr": 0.1, "curvature": staticmethod(hook),
                "update": staticmethod(lambda h, xp, p, g, m=0.0: (-h.lr * g, m)),
            })  # fmt: skip
    assert type("Other", (xopt.Sophia,), {"update": staticmethod(lambda h, xp, p, g: -h.lr * g)}).curvature is None


# --- Hutchinson


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_signs_are_the_same_everywhere(lib: Lib, dtype: str) -> None:
    like = np.zeros((5, 67), dtype)
    want = signs(like, (3, 4), 5)
    np.testing.assert_array_equal(lib.numpy(signs(lib.array(like), (3, 4), 5)), want)
    values, counts = np.unique(want, return_counts=True)
    assert {*values.tolist()} == ({1, -1} if dtype == "float32" else {1, 1j, -1, -1j})
    assert counts.min() > 0.7 * want.size / len(values)
    for other in [((3, 4), 6), ((4, 4), 5), ((3, 5), 5)]:
        assert (signs(like, *other) != want).sum() > 0.3 * want.size
    np.testing.assert_array_equal(signs(np.zeros(4, dtype), (3, 4), 5)[:1], want.ravel()[:1])
    assert signs(like[:0], (3, 4), 5).shape == (0, 67)


def hessian(rng: np.random.Generator, n: int) -> Any:
    a = rng.standard_normal((n, n))
    return a + a.T


@pytest.mark.parametrize("complex", ["modulus", "split"])
def test_hutchinson(complex: Any, rng: np.random.Generator) -> None:
    """Of real functions of the real and imaginary parts of z, one after the other, with any symmetric Hessian."""
    n = 4
    matrix = hessian(rng, 2 * n)

    def hessp(u: Any) -> Any:
        v = matrix @ np.concatenate([u["z"].real, u["z"].imag])
        return {"z": v[:n] + 1j * v[n:], "x": u["x"] * np.asarray([2.0, -3.0]), "none": None}

    params = {"z": np.zeros(n, "complex128"), "x": np.zeros(2), "none": np.zeros(1)}
    found = [xopt.hutchinson(hessp, params, seed=7, step=t, complex=complex) for t in range(400)]
    assert all(x["none"] is None for x in found)
    np.testing.assert_array_equal([x["x"] for x in found], np.tile([2.0, -3.0], (400, 1)))  # a diagonal Hessian
    d = np.diag(matrix)
    exact = (d[:n] + d[n:]) / 2 if complex == "modulus" else d[:n] + 1j * d[n:]
    got = np.asarray([x["z"] for x in found])
    assert got.dtype == exact.dtype
    # six standard deviations of the mean of four hundred
    for part in (np.real, np.imag):
        assert np.all(np.abs(part(got).mean(axis=0) - part(exact)) <= 6 * part(got).std(axis=0) / 400**0.5)


def test_hutchinson_on_every_library(lib: Lib, rng: np.random.Generator) -> None:
    matrix, params = np.round(hessian(rng, 5), 2), {"a": np.zeros(5), "s": np.zeros(())}

    def estimate(make: Any, step: Any) -> Any:
        m = make(matrix)
        return xopt.hutchinson(lambda u: {"a": m @ u["a"], "s": 3 * u["s"]}, NEW(make, params), seed=1, step=step)

    want, make = estimate(np.asarray, 2), lambda x: lib.array(x, "float64")
    if lib.guise == "jit":
        jax = importlib.import_module("jax")
        got = jax.jit(lambda step: estimate(make, step))(jax.numpy.asarray(2, jax.numpy.int32))
    else:
        got = estimate(make, 2)
    assert_close(NEW(lib.numpy, got), leaves(want), 1e-14, 1e-15)


def test_a_product_may_write_into_the_vector() -> None:
    matrix, p = np.asarray([[2.0, 1.0], [1.0, 3.0]]), np.zeros(2)
    for t in range(4):
        got = xopt.hutchinson(lambda u: np.matmul(matrix, u.copy(), out=u), p, seed=np.int64(3), step=t)  # type: ignore[arg-type]
        np.testing.assert_array_equal(got, xopt.hutchinson(lambda u: matrix @ u, p, seed=3, step=t))


def test_hutchinson_refuses() -> None:
    p, same = {"w": np.zeros(2)}, lambda u: u
    for words, error, match in [
        ({"seed": -1}, ValueError, "seed: -1, but it must be from 0"),
        ({"seed": 2**32}, ValueError, "seed: 4294967296"),
        ({"seed": np.int64(-1)}, ValueError, "seed: -1, but it must be from 0"),
        ({"step": 0.5}, TypeError, "step: 0.5, but it must be a whole number"),
        ({"step": np.asarray(0.5)}, TypeError, r"step: array\(0.5\), but it must be a whole number"),
        ({"step": np.True_}, TypeError, "step: .*True.*, but it must be a whole number"),
        ({"step": np.int64(-1)}, ValueError, "step: -1, but it must be from 0"),
        ({"seed": True}, TypeError, "seed: True"),
        ({"complex": "polar"}, ValueError, "complex: 'polar'"),
    ]:
        with pytest.raises(error, match=match):
            xopt.hutchinson(same, p, **words)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="hessp: a ndarray, but it must be a function of u that returns H·u"):
        xopt.hutchinson(np.eye(2), p)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'hessp\(u\)\["w"\]: shape \(3,\), but the parameter has \(2,\)'):
        xopt.hutchinson(lambda u: {"w": np.zeros(3)}, p)


@pytest.mark.needs("jax")
def test_a_loop_of_jax_compiles_once(rng: np.random.Generator) -> None:
    jax = importlib.import_module("jax")
    a, traced = jax.numpy.asarray([1.0, 100.0]), list[int]()
    method = xopt.Sophia(lr=0.5, b1=0.0, b2=0.0, gamma=1.0)

    def loop(w: Any, state: Any) -> Any:
        traced.append(1)
        grad = lambda w: a * w

        def observe(state: Any) -> Any:
            hessp = lambda u: jax.jvp(grad, (w,), (u,))[1]
            return method.update_curvature(w, xopt.hutchinson(hessp, w, step=state.step), state)

        state = jax.lax.cond(state.step % 10 == 0, observe, lambda state: state, state)
        return method.apply(w, grad(w), state)

    w = jax.numpy.asarray([1.0, 1.0])
    state, step = method.init(w), jax.jit(loop)
    for _ in range(3):
        w, state = step(w, state)
    assert len(traced) == 1
    np.testing.assert_allclose(w, [0.125, 0.125], rtol=1e-12)


def test_it_takes_no_notice_of_what_stays(rng: np.random.Generator) -> None:
    """The estimate may be the state itself; other slots are the same arrays."""
    params, _, found = draws(rng)
    method = rule()
    state = method.update_curvature(params, found[1], method.init(params))
    again = method.update_curvature(params, state.slots["0.sophia.hessian"], state)
    assert all(x is y for x, y in zip(*(leaves(s.slots["0.sophia.m"]) for s in (state, again)), strict=True))
    for a, b in itertools.zip_longest(leaves(again.slots["0.sophia.hessian"]), leaves(state.slots["0.sophia.hessian"])):
        np.testing.assert_allclose(a, b, rtol=1e-15)
        assert a is not b


@pytest.mark.needs("torch")
def test_products_of_torch(rng: np.random.Generator) -> None:
    """As docs/curvature.md has it: of f = ½ Σ a·w² + b³, whose Hessian is diagonal."""
    torch = importlib.import_module("torch")
    a = torch.tensor([1.0, 100.0], dtype=torch.float64)
    params = {n: torch.ones(k, dtype=torch.float64, requires_grad=True) for n, k in (("w", 2), ("b", 1))}
    value = 0.5 * (a * params["w"] ** 2).sum() + (params["b"] ** 3).sum()
    grads = dict(zip(params, torch.autograd.grad(value, list(params.values()), create_graph=True), strict=True))

    def hessp(u: Any) -> Any:
        found = torch.autograd.grad(list(grads.values()), list(params.values()), [u[n] for n in params])
        return dict(zip(params, found, strict=True))

    found = xopt.hutchinson(hessp, params)
    assert {n: x.tolist() for n, x in found.items()} == {"w": [1.0, 100.0], "b": [6.0]}
    assert not any(x.requires_grad for x in found.values())
    opt = xopt.Optimizer(params, xopt.Sophia(lr=0.5, b1=0.0, b2=0.0, gamma=1.0))
    opt.update_curvature(found)
    opt.step({n: g.detach() for n, g in grads.items()})
    assert {n: x.tolist() for n, x in params.items()} == {"w": [0.5, 0.5], "b": [0.75]}
