"""Parameter groups: chosen by path and array, computed together, with the bits of one optimizer a group."""

from __future__ import annotations

import copy
import functools
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import optree
import pytest
from conftest import Lib
from support import host_cuda
from support.host_cuda import STEP, HostDriver
from support.runners import same_bits

import xopt
from xopt._arrays import paths as _select
from xopt._arrays.layout import Layout
from xopt._engine.runners.cuda.runner import Cuda
from xopt._engine.runners.tiled.runner import Tiled
from xopt.rule import Array, H, Hyper, Rule, Transform, abs2, hyper

S = xopt.schedules


class LeafTrust(Transform):
    """Scales each leaf by its own carried, running norm: a reduction and a carry a leaf."""

    rate: Hyper = hyper(default=0.5, ge=0)
    scope = "leaf"
    carry = {"norm": 1.0}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"total": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        norm = h.norm + h.rate * (xp.sqrt(h.total) - h.norm)
        return {"norm": norm, "scale": 1.0 / (norm + h.rate)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.scale * g


class TreeScale(Transform):
    """Divides by the running norm of the whole tree: a reduction and a carry for all."""

    rate: Hyper = hyper(default=0.5, ge=0)
    carry = {"norm": 1.0}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"total": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"norm": h.norm + h.rate * (xp.sqrt(h.total) - h.norm)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return g / h.norm


def tree(rng: np.random.Generator, *dtypes: str) -> dict[str, Any]:
    """Parameters or gradients of a small network, its leaves of these dtypes in turn."""
    kinds = iter([*dtypes] * 20)

    def draw(*shape: int) -> Any:
        x = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        kind = next(kinds)
        return np.asarray(x if "complex" in kind else x.real, kind)

    return {
        "embed": {"w": draw(9, 4), "scale": draw()},
        "blocks": [{"w": draw(4, 4), "b": draw(4)}, {"w": draw(70, 3), "b": draw(3)}, {"w": draw(0, 4), "b": draw(1)}],
        "head": {"w": draw(4, 2), "b": draw(2)},
    }


def rounds(rng: np.random.Generator, dtypes: tuple[str, ...], steps: int = 4) -> list[Any]:
    """Gradients; in the second step some are None, in the third all of the head."""
    grads = [tree(rng, *dtypes) for _ in range(steps)]
    grads[1]["blocks"][0]["w"] = grads[1]["blocks"][1]["b"] = grads[1]["head"]["w"] = None
    grads[2]["head"] = dict.fromkeys(grads[2]["head"])
    return grads


def of(x: Any, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Return the leaves of a tree by path, those that are wanted."""
    leaves, spec = optree.tree_flatten(x, none_is_leaf=True)
    found = {"/".join(map(str, path)): leaf for path, leaf in zip(spec.paths(), leaves, strict=True)}
    return {path: leaf for path, leaf in found.items() if wanted(path)}


def apart(groups: list[tuple[Callable[[str], bool], Any]], params: Any, grads: list[Any], runner: Any) -> Any:
    """Take the steps with an optimizer for each group, in pure functions."""
    last = {}
    taken: set[str] = set()
    for wanted, rule in groups:
        mine = {path: x for path, x in of(params, wanted).items() if path not in taken}
        taken |= {*mine}
        if rule is not None and mine:
            state = rule.init(mine)
            for g in grads:
                mine, state = rule.apply(mine, of(g, mine.__contains__), state, runner=runner)
        last |= mine
    return last


def check(rule: Any, groups: Any, dtypes: tuple[str, ...], runner: Any, rng: np.random.Generator) -> None:
    """Compare groups with separate optimizers: in pure functions and in place, bit for bit."""
    params, grads = tree(rng, *dtypes), rounds(rng, dtypes)
    want = apart(groups, params, grads, runner)
    pure, state = params, rule.init(params)
    for g in grads:
        pure, state = rule.apply(pure, g, state, runner=runner)
    opt = xopt.Optimizer(optree.tree_map(np.copy, params), rule, runner=runner)
    for g in grads:
        opt.step(g)
    for path, x in of(pure, lambda path: True).items():
        assert same_bits(x, want[path]), path
    for path, x in of(opt.params, lambda path: True).items():
        assert same_bits(x, want[path]), path
    left, right = (optree.tree_leaves((s.slots, s.carry)) for s in (state, opt.state))
    assert all(map(same_bits, map(np.asarray, left), map(np.asarray, right)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(params=["eager", "tiled", "cuda", pytest.param("numba", marks=pytest.mark.needs("numba"))])
def runner(request: pytest.FixtureRequest) -> Any:
    if request.param == "cuda":
        host_cuda.needs_compiler()
        return Cuda(HostDriver(request.getfixturevalue("folder")))
    if request.param == "numba":
        pytest.importorskip("numba")
        from xopt._engine.runners.numba.runner import Numba

        return Numba(2, 64)
    return Tiled(7, 2) if request.param == "tiled" else "eager"


def bias(path: str) -> bool:
    return path.endswith(("b", "scale"))


def head(path: str) -> bool:
    return path.startswith("head")


def rest(path: str) -> bool:
    return True


def bias_of_arrays(path: str, x: Any) -> bool:
    return bias(path)


def norms(front: float = 0.7, rate: float = 0.5, lr: float = 0.1, behind: float = 1.0) -> Any:
    clip = xopt.ClipByNorm(S.polynomial(0.3 * behind, end=0.1 * behind, steps=3))
    return xopt.chain(xopt.ClipByNorm(front), LeafTrust(rate), xopt.Adam(lr), clip)


BASE = xopt.AdamW(lr=S.cosine(0.1, steps=9), weight_decay=0.3, amsgrad=True)
CASES: dict[str, tuple[Any, list[tuple[Callable[[str], bool], Any]]]] = {
    "numbers": (
        xopt.Groups(BASE, ("head/*", {"lr": 0.5, "b1": 0.3}), (xopt.no_decay_1d, {"weight_decay": 0.0})),
        [(head, BASE.replace(lr=0.5, b1=0.3)), (bias, BASE.replace(weight_decay=0.0)), (rest, BASE)],
    ),
    "schedules": (
        xopt.Groups(
            BASE,
            (re.compile(r"^head/"), {"lr": S.warmup(0.3, steps=3), "b2": lambda t: 1 - 0.5 / t}),
            ("**/[!w]*", {"lr": xopt.scaled(0.25), "b1": xopt.scaled(0.5)}),
        ),
        [
            (head, BASE.replace(lr=S.warmup(0.3, steps=3), b2=lambda t: 1 - 0.5 / t)),
            (bias, BASE.replace(lr=lambda t: 0.25 * S.cosine(0.1, steps=9)(t), b1=0.45)),
            (rest, BASE),
        ],
    ),
    "rules": (
        xopt.Groups(
            BASE,
            ("head/*", xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.SGD(lr=0.1, momentum=0.9), xopt.ClipByValue(0.02))),
            (bias_of_arrays, xopt.Lion(lr=0.01, weight_decay=0.1)),
        ),
        [
            (head, xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.SGD(lr=0.1, momentum=0.9), xopt.ClipByValue(0.02))),
            (bias, xopt.Lion(lr=0.01, weight_decay=0.1)),
            (rest, BASE),
        ],
    ),
    "frozen": (
        xopt.Groups(BASE, ("embed/**", xopt.Freeze), (bias_of_arrays, xopt.SGD(lr=0.1))),
        [(lambda path: path.startswith("embed"), None), (bias, xopt.SGD(lr=0.1)), (rest, BASE)],
    ),
    "norms of leaves": (
        xopt.Groups(
            norms(),
            ("head/*", {"0.clipbynorm.max_norm": 0.2, "lr": 0.3, "rate": 0.1}),
            (bias_of_arrays, {"0.clipbynorm.max_norm": xopt.scaled(2.0), "3.clipbynorm.max_norm": xopt.scaled(0.5)}),
        ),
        [(head, norms(0.2, rate=0.1, lr=0.3)), (bias, norms(1.4, behind=0.5)), (rest, norms())],
    ),
    "norms of groups": (
        xopt.Groups(
            xopt.chain(TreeScale(), xopt.Adagrad(0.1)),
            ("head/*", xopt.chain(TreeScale(0.1), xopt.RMSProp(0.01))),
            (bias_of_arrays, xopt.chain(xopt.ClipByGlobalNorm(0.1), LeafTrust(0.2), xopt.SGD(0.1))),
        ),
        [
            (head, xopt.chain(TreeScale(0.1), xopt.RMSProp(0.01))),
            (bias, xopt.chain(xopt.ClipByGlobalNorm(0.1), LeafTrust(0.2), xopt.SGD(0.1))),
            (rest, xopt.chain(TreeScale(), xopt.Adagrad(0.1))),
        ],
    ),
    "groups of groups": (
        xopt.layerwise_decay(
            xopt.Groups(
                BASE,
                ("blocks/1/*", xopt.SGD(lr=0.2)),
                ("head/*", {"lr": 0.5}),
                (xopt.no_decay_1d, {"weight_decay": 0.0}),
            ),
            ["embed/**", "blocks/0/**", "blocks/1/**"],
            0.5,
        ),
        [
            (lambda path: path.startswith("blocks/1"), xopt.SGD(lr=0.1)),
            (head, BASE.replace(lr=0.5)),
            (lambda path: path == "embed/scale", BASE.replace(lr=S.cosine(0.0125, steps=9), weight_decay=0.0)),
            (lambda path: path.startswith("embed"), BASE.replace(lr=S.cosine(0.0125, steps=9))),
            (lambda path: path == "blocks/0/b", BASE.replace(lr=S.cosine(0.025, steps=9), weight_decay=0.0)),
            (lambda path: path.startswith("blocks/0"), BASE.replace(lr=S.cosine(0.025, steps=9))),
            (bias, BASE.replace(weight_decay=0.0)),
            (rest, BASE),
        ],
    ),
    "masked": (
        xopt.chain(
            xopt.Masked(xopt.ClipByNorm(0.3), "**/b"),
            xopt.Masked(LeafTrust(), re.compile("^(head|embed)/")),
            xopt.Adam(0.1),
            xopt.Masked(xopt.ClipByValue(0.01), xopt.no_decay_1d),
        ),
        [
            (
                lambda path: path == "head/b",
                xopt.chain(xopt.ClipByNorm(0.3), LeafTrust(), xopt.Adam(0.1), xopt.ClipByValue(0.01)),
            ),
            (head, xopt.chain(LeafTrust(), xopt.Adam(0.1))),
            (lambda path: path == "embed/scale", xopt.chain(LeafTrust(), xopt.Adam(0.1), xopt.ClipByValue(0.01))),
            (lambda path: path == "embed/w", xopt.chain(LeafTrust(), xopt.Adam(0.1))),
            (bias, xopt.chain(xopt.ClipByNorm(0.3), xopt.Adam(0.1), xopt.ClipByValue(0.01))),
            (rest, xopt.Adam(0.1)),
        ],
    ),
}
DTYPES = [("float64", "float32", "float16"), ("complex64", "float32", "float32")]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda x: "-".join(x))
def test_bits_of_separate_optimizers(case: str, dtypes: tuple[str, ...], runner: Any, rng: np.random.Generator) -> None:
    if getattr(runner, "name", "") == "numba" and dtypes == DTYPES[0]:
        pytest.skip("compiling takes long, and the other dtypes have it")
    rule, groups = CASES[case]
    check(rule, groups, dtypes, runner, rng)


@pytest.mark.parametrize("case", CASES)
def test_libraries(case: str, lib: Lib, rng: np.random.Generator) -> None:
    """Every library, state through apply; under jax.jit with one trace."""
    rule, groups = CASES[case]
    dtypes = ("float64", "complex128") if lib.name != "torch" else ("float64",)
    params, grads = tree(rng, *dtypes), rounds(rng, dtypes)
    want = apart(groups, params, grads, "eager")
    move = functools.partial(optree.tree_map, lib.array)
    traces = 0

    def step(p: Any, g: Any, state: Any) -> Any:
        nonlocal traces
        traces += 1
        return rule.apply(p, g, state)

    p, state = move(params), rule.init(move(params))
    if lib.guise == "jit":
        step = lib.module().jit(step)
    pure = grads if lib.guise != "jit" else [grads[0], grads[3]]  # where some are None is another trace
    for g in pure:
        p, state = step(p, move(g), state)
    assert lib.guise != "jit" or traces == 1
    found = [(p, apart(groups, params, pure, "eager"))]
    if lib.guise in ("plain", "", "jit") or lib.name == "strict":
        for runner in ("eager", None) if lib.name != "jax" else (None,):  # which is eager there
            opt = xopt.Optimizer(move(params), rule, runner=runner)  # type: ignore[arg-type]
            for g in grads:
                opt.step(move(g))
            found.append((opt.params, want))
    for last, want in found:
        for path, x in of(optree.tree_map(lib.numpy, last), rest).items():
            np.testing.assert_allclose(x, want[path], rtol=1e-12, atol=1e-12, err_msg=path)


# --- one batch, one kernel


def test_one_launch_for_all_groups(folder: Any, rng: np.random.Generator) -> None:
    """Other numbers are columns: one kernel, one reduction, nothing uploaded again; the bits of separate optimizers."""
    host_cuda.needs_compiler()
    driver = HostDriver(folder)
    base = xopt.AdamW(0.1, weight_decay=0.2)
    rule = xopt.chain(
        xopt.ClipByGlobalNorm(0.5),
        xopt.layerwise_decay(xopt.Groups(base, (xopt.no_decay_1d, {"weight_decay": 0.0})), ["embed/**", "blocks/0/*"]),
    )
    params, grads = tree(rng, "float32"), tree(rng, "float32")
    opt = xopt.Optimizer(params, rule, runner=Cuda(driver))
    opt.step(grads)
    driver.launches = []
    opt.step(grads)
    assert driver.launches == ["xopt_sums", "xopt_ordered", "xopt_ordered", STEP]
    driver.launches = []
    opt.set(lr=0.2)
    opt.step(grads)
    assert driver.launches == ["xopt_sums", "xopt_ordered", "xopt_ordered", STEP]
    [bucket] = opt._executor.buckets
    assert len(bucket.chains) == 6


@pytest.mark.needs("torch")
def test_columns_of_scalars_go_up_when_they_change(folder: Any, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    host_cuda.needs_compiler()
    driver = HostDriver(folder)
    rule = xopt.Groups(xopt.AdamW(0.1, weight_decay=0.2), ("head/*", {"lr": xopt.scaled(0.5)}))
    move = lambda x: optree.tree_map(lambda a: torch.from_numpy(a.copy()), x)
    params, grads = tree(rng, "float32"), tree(rng, "float32")
    want = xopt.Optimizer(optree.tree_map(np.copy, params), rule, runner="tiled")
    opt, g = xopt.Optimizer(move(params), rule, runner=Cuda(driver)), move(grads)
    launches = []
    for lr in (0.1, 0.1, 0.1, 0.3, 0.3):
        driver.launches = []
        opt.step(g, lr=lr)
        want.step(grads, lr=lr)
        launches.append(driver.launches.count("xopt_store"))
    assert launches[2] < launches[3]
    for x, y in zip(optree.tree_leaves(opt.params), optree.tree_leaves(want.params), strict=True):
        assert same_bits(x.numpy(), y)


@pytest.mark.needs("numba")
def test_one_kernel_of_numba(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from xopt._engine.runners.numba import runner as numba

    calls: list[str] = []
    for name in ("prepare", "sums"):
        real = getattr(numba.Numba, name)
        monkeypatch.setattr(numba.Numba, name, lambda *args, name=name, real=real: calls.append(name) or real(*args))
    rule = xopt.chain(xopt.ClipByGlobalNorm(0.5), CASES["numbers"][0])
    opt = xopt.Optimizer(tree(rng, "float32"), rule, runner="numba")
    opt.step(tree(rng, "float32"))
    assert calls == ["sums", "prepare"]


def test_an_outer_norm_is_over_all_leaves(runner: Any, rng: np.random.Generator) -> None:
    """Of groups with other rules, but without the frozen; one inside of a group is over that group."""
    params, grads = tree(rng, "float64"), tree(rng, "float64")
    inner = xopt.Groups(
        xopt.SGD(lr=1.0), ("head/*", xopt.SGD(lr=1.0, momentum=0.5, nesterov=True)), ("embed/*", xopt.Freeze)
    )
    got, _ = (rule := xopt.chain(xopt.ClipByGlobalNorm(0.5), inner)).apply(params, grads, rule.init(params))
    moving = of(grads, lambda path: not path.startswith("embed"))
    norm = np.sqrt(sum((g**2).sum() for g in moving.values()))
    for path, g in of(grads, rest).items():
        step = 0 * g if path not in moving else g * 0.5 / norm * (1.5 if head(path) else 1.0)
        np.testing.assert_allclose(of(got, rest)[path], of(params, rest)[path] - step, rtol=1e-12)
    own = xopt.Groups(xopt.SGD(lr=1.0), ("head/*", xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.SGD(lr=1.0))))
    got, _ = own.apply(params, grads, own.init(params))
    norm = np.sqrt(sum((g**2).sum() for path, g in moving.items() if head(path)))
    np.testing.assert_allclose(got["head"]["w"], params["head"]["w"] - grads["head"]["w"] * 0.5 / norm, rtol=1e-12)
    assert np.array_equal(got["embed"]["w"], params["embed"]["w"] - grads["embed"]["w"])


def test_a_norm_of_all_is_that_of_the_plain_chain(runner: Any, rng: np.random.Generator) -> None:
    """The sum runs over the leaves in the order of the tree, however they are grouped: the same bits."""
    params, grads = tree(rng, "float64"), rounds(rng, ("float64",), steps=20)
    plain = xopt.chain(xopt.ClipByGlobalNorm(0.5), TreeScale(), xopt.SGD(lr=0.1))
    grouped = xopt.chain(
        xopt.ClipByGlobalNorm(0.5),
        TreeScale(),
        xopt.Groups(xopt.SGD(lr=0.1), ("blocks/1/*", xopt.chain(xopt.SGD(lr=0.1)))),
    )
    a = xopt.Optimizer(optree.tree_map(np.copy, params), plain, runner=runner)
    b = xopt.Optimizer(optree.tree_map(np.copy, params), grouped, runner=runner)
    for g in grads:
        a.step(g)
        b.step(g)
    assert all(map(same_bits, optree.tree_leaves(a.params), optree.tree_leaves(b.params)))
    assert a.state.carry == b.state.carry


# --- scalars


def test_one_number_for_all_groups(rng: np.random.Generator) -> None:
    """A carry of the tree cannot depend on what differs, in one batch or in two."""
    rule = xopt.Groups(xopt.chain(TreeScale(), xopt.SGD()), ("head/*", {"rate": 0.25}))
    for dtypes in (("float32",), ("float32", "float64")):
        for runner in ("eager", "tiled"):
            params, one = (
                tree(rng, *dtypes),
                r"0\.treescale\.norm: rate is 0\.\d+ in one group and .* one number for all",
            )
            with pytest.raises(ValueError, match=one):
                xopt.Optimizer(params, rule, runner=runner)  # type: ignore[arg-type]
            opt = xopt.Optimizer(params, rule._with({"group0.rate": 0.5}), runner=runner)  # type: ignore[arg-type]
            opt.step(tree(rng, *dtypes))
            before = optree.tree_map(np.copy, params)
            with pytest.raises(ValueError, match="one number for all groups"):
                opt.set(rate=0.25)
            with pytest.raises(ValueError, match="one number for all groups"):
                opt.step(tree(rng, *dtypes), rate=0.25)
            assert all(map(same_bits, optree.tree_leaves(params), optree.tree_leaves(before)))
            opt.step(tree(rng, *dtypes))


def test_values_that_happen_to_be_equal(rng: np.random.Generator) -> None:
    """Groups stay apart: what is set later does not depend on what was equal when the optimizer was made."""
    for runner in ("eager", "tiled"):
        params = {"a": np.zeros(2), "b": np.zeros(2)}
        opt = xopt.Optimizer(params, xopt.Groups(xopt.SGD(lr=0.5), ("b", {"lr": 0.5})), runner=runner)  # type: ignore[arg-type]
        ones = {"a": np.ones(2), "b": np.ones(2)}
        opt.step(ones)
        opt.set(**{"group0.lr": 1.0})
        opt.step(ones)
        opt.step(ones, lr=2.0)
        opt.step(ones, **{"group0.lr": 4.0})
        assert params["a"].tolist() == [-0.5 - 0.5 - 2.0 - 0.5] * 2
        assert params["b"].tolist() == [-0.5 - 1.0 - 1.0 - 4.0] * 2


@pytest.mark.needs("jax")
def test_jax_compiles_once() -> None:
    jax = pytest.importorskip("jax")
    params = {"a": jax.numpy.zeros(2), "b": jax.numpy.zeros(2)}
    opt = xopt.Optimizer(params, xopt.Groups(xopt.SGD(lr=0.5), ("b", {"lr": xopt.scaled(0.5)})))
    ones = {"a": jax.numpy.ones(2), "b": jax.numpy.ones(2)}
    opt.step(ones)
    opt.set(**{"group0.lr": 1.0})
    opt.step(ones, lr=0.25)
    opt.set(lr=S.constant(2.0))
    opt.step(ones)
    assert opt._executor._compiled._cache_size() == 1
    assert opt.params["a"].tolist() == [-2.75] * 2
    assert opt.params["b"].tolist() == [-2.25] * 2


class Needs(Transform):
    """A formula that cannot be computed where the rate is 0."""

    rate: Hyper = hyper(default=1.0)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return g * (1.0 / h.rate)


@pytest.mark.parametrize("dtypes", [("float32",), ("float32", "float64")])
def test_a_formula_that_fails_for_one_group_leaves_everything(
    dtypes: tuple[str, ...], runner: Any, rng: np.random.Generator
) -> None:
    params, grads = tree(rng, *dtypes), tree(rng, *dtypes)
    rule = xopt.Groups(xopt.chain(Needs(), xopt.Adam()), ("head/w", {"rate": lambda t: 1.0 if t < 2 else 0.0}))
    opt = xopt.Optimizer(params, rule, runner=runner)
    opt.step(grads)
    before = [x.copy() for x in optree.tree_leaves((params, opt.state.slots))]
    with pytest.raises(ZeroDivisionError):
        opt.step(grads)
    assert all(map(same_bits, optree.tree_leaves((params, opt.state.slots)), before))
    assert opt.state.step == 1


def test_split_and_modulus_side_by_side(runner: Any, rng: np.random.Generator) -> None:
    split = xopt.Adam(0.1, complex="split")
    rule = xopt.Groups(xopt.Adam(0.1), ("head/*", split))
    check(rule, [(head, split), (rest, xopt.Adam(0.1))], ("complex64",), runner, rng)


@pytest.mark.parametrize("case", CASES)
def test_accumulated(case: str, runner: Any, rng: np.random.Generator) -> None:
    """Around groups, every one is held back alike; without None, which waits in each by itself."""
    rule, groups = CASES[case]
    params, grads = tree(rng, "float32"), [tree(rng, "float32") for _ in range(4)]
    want = apart([(wanted, rule and xopt.Accumulate(rule, 2)) for wanted, rule in groups], params, grads, runner)
    opt = xopt.Optimizer(params, xopt.Accumulate(rule, 2), runner=runner)
    for g in grads:
        opt.step(g)
    for path, x in of(opt.params, rest).items():
        assert same_bits(x, want[path]), path


def test_a_step_left_out_is_left_out_by_all_groups(runner: Any, rng: np.random.Generator) -> None:
    """A gradient that is not finite, in one group; that of a frozen leaf does not count."""
    params, grads = tree(rng, "float32"), tree(rng, "float32")
    rule = xopt.Groups(BASE, ("head/*", xopt.chain(LeafTrust(), xopt.SGD(0.1))), ("embed/*", xopt.Freeze))
    opt = xopt.Optimizer(params, rule, runner=runner, on_nonfinite="skip")
    grads["embed"]["w"][0] = np.nan
    opt.step(grads)
    before = [np.copy(x) for x in optree.tree_leaves((params, opt.state.slots, opt.state.carry))]
    bad = optree.tree_map(np.copy, grads)
    bad["head"]["b"][0] = np.inf
    opt.step(bad)
    after = optree.tree_leaves((params, opt.state.slots, {**opt.state.carry, "nonfinite.skipped": 0.0}))
    assert all(map(same_bits, map(np.asarray, after), before))
    assert opt.state.carry["nonfinite.skipped"] == 1.0


# --- frozen


def test_frozen(lib: Lib, rng: np.random.Generator) -> None:
    """No state; a gradient that is None or fits; one that does not is refused."""
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Groups(xopt.Adam(0.1), ("body/*", xopt.Freeze)))
    draw = lambda: {"body": [lib.array(rng.standard_normal(3))], "head": lib.array(rng.standard_normal(3))}
    params, grads = draw(), draw()
    state = rule.init(params)
    assert {n: x["body"] for n, x in state.slots.items()} == {"1.adam.m": [None], "1.adam.v": [None]}
    new, after = rule.apply(params, grads, state)
    assert np.array_equal(lib.numpy(new["body"][0]), lib.numpy(params["body"][0]))
    other, _ = rule.apply(params, {**grads, "body": [None]}, state)
    assert np.array_equal(lib.numpy(new["head"]), lib.numpy(other["head"]))
    change, _ = rule.updates(params, grads, state)
    assert not lib.numpy(change["body"][0]).any()
    assert lib.numpy(change["head"]).any()
    again, _ = rule.apply(new, grads, after)
    assert not np.array_equal(lib.numpy(again["head"]), lib.numpy(new["head"]))
    with pytest.raises(ValueError, match=r'grads\["body"\]\[0\]: shape \(2,\)'):
        rule.apply(params, {**grads, "body": [lib.array(np.zeros(2))]}, state)


def test_all_frozen(runner: Any) -> None:
    rule = xopt.chain(TreeScale(), xopt.Groups(xopt.Adam(), ("**", xopt.Freeze)))
    p = [np.ones(3)]
    opt = xopt.Optimizer(p, rule, runner=runner)
    opt.step([np.ones(3)])
    assert p[0].tolist() == [1.0] * 3
    assert opt.state == (1, {}, {})
    assert rule.init([]).slots == {}


@pytest.mark.needs("torch")
def test_frozen_parameters_of_torch_are_not_written() -> None:
    """Autograd counts writes: a frozen parameter may be part of a graph that is still to be gone through."""
    torch = pytest.importorskip("torch")
    params = {"a": torch.ones(3, requires_grad=True), "b": torch.ones(3, requires_grad=True)}
    opt = xopt.Optimizer(params, xopt.Groups(xopt.SGD(), ("a", xopt.Freeze)))
    opt.step({"a": torch.ones(3), "b": torch.ones(3)})
    assert params["a"]._version == 0
    assert params["b"]._version > 0


def test_explain_says_what_is_frozen() -> None:
    text = xopt.explain(xopt.Groups(xopt.Adam(), ("a", xopt.Freeze)), {"a": np.ones(7), "b": np.ones(2)})
    assert "frozen: 1 array, 7 parameters\n" in text
    assert "float64: 1 array, 2 parameters, 16 bytes of state each" in text


# --- state


def test_state_has_none_where_a_rule_is_not(rng: np.random.Generator) -> None:
    rule = xopt.Groups(xopt.Adam(), ("head/*", xopt.chain(xopt.ClipByValue(1.0), xopt.SGD(momentum=0.9))))
    params = tree(rng, "float32")
    state = rule.init(params)
    assert list(state.slots) == ["0.adam.m", "0.adam.v", "0.group0.1.sgd.m"]
    assert state.slots["0.adam.m"]["head"] == {"w": None, "b": None}
    assert state.slots["0.group0.1.sgd.m"]["embed"] == {"w": None, "scale": None}
    wrong = copy.deepcopy(state)
    wrong.slots["0.adam.m"]["head"]["w"] = params["head"]["w"]
    with pytest.raises(
        ValueError, match=r'state.slots\["0.adam.m"\]\["head"\]\["w"\]: an array, but the rule keeps none'
    ):
        rule.apply(params, params, wrong)
    wrong = copy.deepcopy(state)
    wrong.slots["0.group0.1.sgd.m"]["head"]["b"] = None
    with pytest.raises(TypeError, match=r'state.slots\["0.group0.1.sgd.m"\]\["head"\]\["b"\]: a NoneType'):
        rule.apply(params, params, wrong)
    with pytest.raises(ValueError, match=r"state.slots: \['0.adam.m', '0.adam.v'\], but this rule keeps"):
        rule.apply(params, params, xopt.Adam().init(params))


def test_numbers_of_groups_leave_the_state_of_the_rule(rng: np.random.Generator) -> None:
    """A checkpoint of the plain rule goes on with groups."""
    params = tree(rng, "float32")
    rule = xopt.Groups(xopt.Adam(), ("head/*", {"lr": 0.1}))
    assert [*rule.init(params).slots] == [*xopt.Adam().init(params).slots]
    rule.apply(params, params, xopt.Adam().init(params))


def test_state_moves_between_apply_and_optimizer(rng: np.random.Generator) -> None:
    rule, _ = CASES["norms of leaves"]
    params, grads = tree(rng, "float64"), tree(rng, "float64")
    opt = xopt.Optimizer(optree.tree_map(np.copy, params), rule, runner="tiled")
    opt.step(grads)
    start, state = copy.deepcopy((opt.params, opt.state))
    opt.step(grads)
    pure, after = rule.apply(start, grads, pickle.loads(pickle.dumps(state)))
    assert all(map(same_bits, optree.tree_leaves(pure), optree.tree_leaves(opt.params)))
    assert after.carry["0.1.leaftrust.norm"].shape == (len(optree.tree_leaves(params)),)


# --- names


def test_names(rng: np.random.Generator) -> None:
    rule = xopt.chain(
        xopt.ClipByGlobalNorm(1.0),
        xopt.Groups(
            xopt.AdamW(lr=0.1),
            ("head/*", {"lr": 0.5, "adamw.b1": 0.5}),
            ("embed/*", xopt.SGD(lr=0.2, momentum=0.9)),
            ("blocks/0/*", xopt.Freeze),
            ("blocks/1/*", {"lr": xopt.scaled(2.0)}),
        ),
    )
    opt = xopt.Optimizer(tree(rng, "float32"), rule)
    names = opt.hyperparams()
    assert names["max_norm"] == 1.0
    assert (names["adamw.lr"], names["sgd.lr"], names["group0.lr"], names["group0.adamw.b1"]) == (0.1, 0.2, 0.5, 0.5)
    assert names["group3.lr"] == xopt.scaled(2.0)
    assert names["b1"] == 0.9
    opt.set(**{"adamw.lr": 0.3, "1.group1.sgd.lr": 0.4, "group0.lr": xopt.scaled(0.5), "1.group0.adamw.b1": 0.25})
    names = opt.hyperparams()
    assert (names["adamw.lr"], names["sgd.lr"], names["group0.lr"]) == (0.3, 0.4, xopt.scaled(0.5))
    assert names["group0.adamw.b1"] == 0.25
    for name in names:
        opt.set(**{name: names[name]})
    for name, error in [
        ("lr", "'lr' is ambiguous: say adamw.lr or sgd.lr"),
        ("group1.lr", "no hyperparameter 'group1.lr'; there are"),
        ("group0.eps", "no hyperparameter 'group0.eps'"),
        ("nesterov", "static field"),
    ]:
        with pytest.raises(TypeError, match=error):
            opt.set(**{name: 0.1})
    with pytest.raises(ValueError, match="group0.lr: -1.0 is out of range"):
        opt.set(**{"group0.lr": -1.0})
    with pytest.raises(TypeError, match="another formula"):
        opt.set(**{"group0.lr": None})
    assert opt.hyperparams() == names


def test_set_moves_the_rule_and_what_follows_it() -> None:
    p = {n: np.zeros(1) for n in "abc"}
    rule = xopt.Groups(xopt.SGD(lr=1.0), ("a", {"lr": 3.0}), ("b", {"lr": xopt.scaled(0.5)}))
    opt = xopt.Optimizer(p, rule)
    opt.set(lr=2.0)
    opt.step({n: np.ones(1) for n in "abc"})
    assert [p[n].item() for n in "abc"] == [-3.0, -1.0, -2.0]
    opt.step({n: np.ones(1) for n in "abc"}, lr=lambda t: 4.0 * t)
    assert [p[n].item() for n in "abc"] == [-6.0, -5.0, -10.0]
    assert opt.rule == xopt.Groups(xopt.SGD(lr=2.0), ("a", {"lr": 3.0}), ("b", {"lr": xopt.scaled(0.5)}))


def test_groups_are_numbered_through() -> None:
    inner = xopt.Groups(xopt.SGD(), ("a", xopt.Adam()), ("b", {"lr": 0.5}))
    outer = xopt.Groups(inner, ("c", xopt.Lion()), ("d", {"sgd.lr": 0.25}), ("e", xopt.Signum()))
    opt = xopt.Optimizer({n: np.zeros(1) for n in "abcde"}, outer)
    assert [*opt.state.slots] == ["0.group0.adam.m", "0.group0.adam.v", "0.group2.lion.m", "0.group4.signum.m"]
    names = opt.hyperparams()
    assert {"group1.lr": 0.5, "group3.sgd.lr": 0.25}.items() <= names.items()
    opt.set(**{"group1.lr": 0.1, "group3.sgd.lr": 0.2, "lion.lr": 0.3})
    assert opt.hyperparams()["group1.lr"] == 0.1


def test_masked_names() -> None:
    rule = xopt.chain(xopt.Masked(xopt.ClipByNorm(1.0), "a"), xopt.SGD(0.1), xopt.ClipByNorm(2.0))
    opt = xopt.Optimizer({"a": np.zeros(1), "b": np.zeros(1)}, rule)
    assert opt.hyperparams()["0.clipbynorm.max_norm"] == 1.0
    opt.set(**{"0.clipbynorm.max_norm": 0.5})
    assert opt.rule.parts[0] == xopt.Masked(xopt.ClipByNorm(0.5), "a")  # type: ignore[attr-defined]


# --- predicates


GLOBS = [
    (
        "encoder/*/bias",
        ["encoder/0/bias"],
        ["encoder/bias", "encoder/0/1/bias", "my/encoder/0/bias", "encoder/0/bias2"],
    ),
    ("**/bias", ["bias", "a/bias", "a/b/bias"], ["a/mybias", "bias/w"]),
    ("backbone/**", ["backbone", "backbone/a", "backbone/a/b"], ["backbone2", "my/backbone/a"]),
    ("a/**/w", ["a/w", "a/b/w", "a/b/c/w"], ["a/bw", "aw"]),
    ("**", ["", "a", "a/b"], []),
    ("*", ["", "a"], ["a/b"]),
    ("", [""], ["a"]),
    ("layer?.w", ["layer1.w"], ["layer10.w", "layer1xw", "layer/.w"]),
    ("encoder.*", ["encoder.0.bias"], ["encoder", "encoder.a/b"]),
    ("[ab]/[!ab]", ["a/c", "b/x"], ["a/a", "c/c", "a/"]),
    ("[a-c]", ["b"], ["-", "d"]),
    ("[]]", ["]"], ["["]),
    ("x[", ["x["], ["x"]),
    ("a^b$(c)", ["a^b$(c)"], ["ab"]),
    ("a**b", ["ab", "axb", "a/x/b"], ["a"]),
    (r"[\d]", ["\\", "d"], ["1"]),
]


@pytest.mark.parametrize(("glob", "yes", "no"), GLOBS, ids=lambda x: x if isinstance(x, str) else "")
def test_globs(glob: str, yes: list[str], no: list[str]) -> None:
    for path in yes:
        assert _select._matches(glob, path, None), path
    for path in no:
        assert not _select._matches(glob, path, None), path


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass
class Layer:
    w: Any
    b: Any


def test_paths() -> None:
    one = np.zeros(1)
    params = {"enc": [Pair(one, (one,)), None, Layer(one, {0: one})], "dotted.name": one}
    assert Layout(params).names() == ["dotted.name", "enc/0/x", "enc/0/y/0", "enc/2/w", "enc/2/b/0"]
    assert Layout(one).names() == [""]


def test_regular_expressions_search_and_functions_see_arrays(rng: np.random.Generator) -> None:
    params = tree(rng, "float32")
    seen: list[tuple[str, tuple[int, ...]]] = []

    def large(path: str, x: Any) -> bool:
        seen.append((path, x.shape))
        return bool(x.size > 100)

    rule = xopt.Groups(xopt.SGD(lr=0.0), (large, {"lr": 1.0}), (re.compile("ead/b"), {"lr": 2.0}))
    ones = optree.tree_map(np.ones_like, params)
    got = of(rule.updates(params, ones, rule.init(params))[0], rest)
    assert {path: -x.flat[0] for path, x in got.items() if x.any()} == {"blocks/1/w": 1.0, "head/b": 2.0}
    assert ("blocks/1/w", (70, 3)) in seen
    seen.clear()
    opt = xopt.Optimizer(params, rule)
    first = len(seen)
    opt.set(lr=0.1)
    opt.step(ones, lr=0.2)
    assert len(seen) == first, "an optimizer asks its predicates once"


def test_a_predicate_that_chooses_nothing(rng: np.random.Generator) -> None:
    params = tree(rng, "float32")
    for wrong, shown in [
        ("blcoks/**", "blcoks"),
        (re.compile("^x"), r"re.compile\('\^x'\)"),
        (lambda p, x: False, "lambda"),
    ]:
        rule = xopt.Groups(xopt.SGD(), (wrong, {"lr": 0.1}))
        with pytest.raises(
            ValueError,
            match=f"Groups: .*{shown}.* matches none of the parameters: blocks/0/b, blocks/0/w, .*head/w; if",
        ):
            rule.init(params)
        with pytest.raises(ValueError, match="Groups: "):
            xopt.Optimizer(params, rule)
        xopt.Groups(xopt.SGD(), (wrong, {"lr": 0.1}), unmatched="ignore").init(params)
        with pytest.raises(ValueError, match="Masked: .* matches none"):
            xopt.chain(xopt.Masked(xopt.ClipByValue(1.0), wrong), xopt.SGD()).init(params)
        xopt.chain(xopt.Masked(xopt.ClipByValue(1.0), wrong, unmatched="ignore"), xopt.SGD()).init(params)
    hidden = xopt.Groups(xopt.SGD(), ("head/**", {"lr": 0.1}), ("head/w", {"lr": 0.2}))
    with pytest.raises(ValueError, match="'head/w' matches only what predicates before it take, of the parameters"):
        hidden.init(params)
    xopt.Groups(xopt.SGD(), ("x", {"lr": 0.1})).init({})
    with pytest.raises(ValueError, match=r"p00.*p19 and 5 more;"):
        xopt.Groups(xopt.SGD(), ("x", xopt.Freeze)).init({f"p{k:02}": np.zeros(1) for k in range(25)})


# --- refusals


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (
            lambda: xopt.Groups(xopt.ClipByValue(1.0)),
            "Groups: ClipByValue, but it must be a rule or a chain; put it in a chain",
        ),  # type: ignore[arg-type]
        (lambda: xopt.Groups(xopt.SGD(), "a"), r"Groups: 'a', but a group is a pair"),  # type: ignore[arg-type]
        (lambda: xopt.Groups(xopt.SGD(), (3, {})), "Groups: 3, but a predicate is a glob"),  # type: ignore[arg-type]
        (lambda: xopt.Groups(xopt.SGD(), (re.compile(b"a"), {})), "searches bytes"),  # type: ignore[arg-type]
        (
            lambda: xopt.Groups(xopt.SGD(), ("a", 3)),
            "group0: int, but it must be a dict of hyperparameters, Freeze, a rule or a chain",
        ),  # type: ignore[arg-type]
        (lambda: xopt.Groups(xopt.SGD(), ("a", xopt.Adam)), "group0: Adam, .*make an object of it"),  # type: ignore[arg-type]
        (lambda: xopt.Groups(xopt.SGD(), ("a", xopt.ClipByValue(1.0))), "group0: ClipByValue, .*put it in a chain"),  # type: ignore[arg-type]
        (lambda: xopt.Groups(xopt.SGD(), ("a", {"b1": 0.1})), "group0: no hyperparameter 'b1'; there are"),
        (lambda: xopt.Groups(xopt.SGD(), ("a", {"nesterov": True})), "group0: 'nesterov' is a static field"),
        (
            lambda: xopt.Groups(xopt.SGD(), ("a", {"weight_decay": 0.1})),
            "group0.weight_decay: 0.1 in place of None is another formula",
        ),
        (
            lambda: xopt.Groups(xopt.SGD(), ("a", {"weight_decay": xopt.scaled(2.0)})),
            r"group0.weight_decay: scaled\(2.0\) of None",
        ),
        (lambda: xopt.Groups(xopt.AdamW(), ("a", {"weight_decay": None})), "group0.weight_decay: None"),
        (lambda: xopt.Groups(xopt.SGD(), ("a", {"lr": "x"})), "group0.lr: 'x' is a str"),
        (lambda: xopt.Groups(xopt.SGD(), ("a", {"lr": -1.0})), "group0.lr: -1.0 is out of range"),
        (lambda: xopt.Groups(xopt.Adam(), ("a", {"b1": xopt.scaled(2.0)})), "Adam.b1: 1.8 is out of range"),
        (
            lambda: xopt.Groups(xopt.Groups(xopt.SGD(), ("a", {"lr": 0.1})), ("b", {"group0.lr": 0.1})),
            "group1: 'group0.lr' is what another group has",
        ),
        (lambda: xopt.Groups(xopt.SGD(), unmatched="warn"), "unmatched='warn'"),  # type: ignore[arg-type]
        (
            lambda: xopt.Masked(xopt.SGD(), "a"),
            r"Masked: SGD\(\), but it must be a transform; for a rule there is Groups",
        ),  # type: ignore[arg-type]
        (lambda: xopt.Masked(xopt.ClipByValue(1.0), 3), "Masked: 3, but a predicate"),  # type: ignore[arg-type]
        (lambda: xopt.Masked(xopt.ClipByValue(1.0), "a", unmatched=None), "Masked: unmatched=None"),  # type: ignore[arg-type]
        (lambda: xopt.scaled(-1.0), "scaled: factor: -1.0 is out of range"),
        (lambda: xopt.scaled("x"), "scaled: factor: 'x' is a str"),  # type: ignore[arg-type]
        (xopt.Freeze, "write xopt.Freeze, the class itself"),
        (lambda: xopt.layerwise_decay(xopt.SGD(), "a/**"), "layers is a/\\*\\*|layers is 'a"),  # type: ignore[arg-type]
        (lambda: xopt.layerwise_decay(xopt.SGD(), ["a"], -0.5), "layerwise_decay: factor"),
        (lambda: xopt.Groups(xopt.Accumulate(xopt.SGD(), 2)), "Groups: Accumulate is for a whole tree; put it around"),
        (lambda: xopt.Groups(xopt.SGD(), ("a", xopt.Guard(xopt.SGD(), "skip"))), "group0: Guard is for a whole tree"),
        (lambda: xopt.chain(xopt.Groups(xopt.SGD()), xopt.SGD()), r"2 rules in \(Groups, SGD\)"),
    ],
)
def test_refusals(make: Callable[[], Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        make()


def test_no_lr_to_decay() -> None:
    class Bare(Rule):
        @staticmethod
        def update(h: H, xp: Any, p: Array, g: Array) -> Array:
            return -g

    with pytest.raises(ValueError, match=r"layerwise_decay: Bare\(\) has no lr"):
        xopt.layerwise_decay(Bare(), ["a"])


# --- the rest


def test_shown_compared_pickled() -> None:
    rules = [
        xopt.Groups(
            xopt.Adam(0.1), ("a/**", {"lr": xopt.scaled(0.5)}), (xopt.no_decay_1d, xopt.Freeze), unmatched="ignore"
        ),
        xopt.Groups(xopt.chain(xopt.ClipByValue(1.0), xopt.SGD()), (re.compile("x"), xopt.Adam())),
        xopt.layerwise_decay(xopt.SGD(), ["a", "b"]),
        xopt.chain(xopt.Masked(xopt.ClipByValue(1.0), re.compile("x"), unmatched="ignore"), xopt.SGD()),
    ]
    for rule in rules:
        for again in (
            eval(repr(rule), {"re": re, **{n: getattr(xopt, n) for n in xopt.__all__}}),
            pickle.loads(pickle.dumps(rule)),
            copy.deepcopy(rule),
        ):
            assert again == rule
            assert hash(again) == hash(rule)
            assert repr(again) == repr(rule)
    assert rules[0] != rules[1]
    assert rules[0] != xopt.Groups(xopt.Adam(0.1), ("a/**", {"lr": 0.5}), (xopt.no_decay_1d, xopt.Freeze))
    with pytest.raises(AttributeError, match="Groups is immutable"):
        rules[0]._unmatched = "error"  # type: ignore[union-attr,assignment]


def test_layerwise_decay_has_the_rates_of_beit() -> None:
    """BEiT and timm number the layers of a transformer of d blocks: embedding 0, block i is i + 1, the rest d + 1;
    the rate of a layer is factor**(d + 1 - number)."""
    depth, factor = 12, 0.65
    number = {"embed": 0, **{f"blocks/{i}": i + 1 for i in range(depth)}, "norm": depth + 1, "head": depth + 1}
    params: dict[str, Any] = {
        "embed": np.zeros(1),
        "blocks": [{"w": np.zeros((1, 1)), "b": np.zeros(1)} for _ in range(depth)],
        "norm": np.zeros(1),
        "head": np.zeros(1),
    }
    layers = ["embed", *(f"blocks/{i}/**" for i in range(depth))]
    rule = xopt.layerwise_decay(xopt.SGD(lr=1.0), layers, factor)
    change, _ = rule.updates(params, optree.tree_map(np.ones_like, params), rule.init(params))
    for path, x in of(change, rest).items():
        name = path.rpartition("/")[0] or path
        np.testing.assert_allclose(-x, factor ** (depth + 1 - number[name]), rtol=1e-15)


def test_decay_follows_the_scaled_rate() -> None:
    """As in timm: decay that is multiplied by lr is scaled with it."""
    rule = xopt.layerwise_decay(xopt.SGD(lr=1.0, weight_decay=0.5, decay="lr"), ["a"], 0.5)
    p = {"a": np.ones(1), "b": np.ones(1)}
    change, _ = rule.updates(p, {"a": np.zeros(1), "b": np.zeros(1)}, rule.init(p))
    assert (change["a"].item(), change["b"].item()) == (-0.25, -0.5)


@pytest.mark.needs("torch")
def test_param_groups_of_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    params = tree(rng, "float64")
    grads = [tree(rng, "float64") for _ in range(10)]
    rule = xopt.Groups(
        xopt.AdamW(lr=0.01, weight_decay=0.1), ("head/*", {"lr": 0.05}), (xopt.no_decay_1d, {"weight_decay": 0.0})
    )
    tensors = {path: torch.from_numpy(x.copy()).requires_grad_() for path, x in of(params, rest).items()}
    groups: list[Any] = [
        {"params": [x for path, x in tensors.items() if head(path)], "lr": 0.05},
        {"params": [x for path, x in tensors.items() if not head(path) and x.ndim < 2], "weight_decay": 0.0},
        {"params": [x for path, x in tensors.items() if not head(path) and x.ndim >= 2]},
    ]
    peer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)
    state = rule.init(params)
    for g in grads:
        params, state = rule.apply(params, g, state)
        for path, x in of(g, rest).items():
            tensors[path].grad = torch.from_numpy(np.asarray(x))
        peer.step()
    for path, x in of(params, rest).items():
        np.testing.assert_allclose(x, tensors[path].detach().numpy(), rtol=1e-12, atol=1e-15, err_msg=path)


@pytest.mark.needs("jax")
def test_partition_and_masked_of_optax(rng: np.random.Generator) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    params = tree(rng, "float64")
    params["blocks"].pop()
    grads = [tree(rng, "float64") for _ in range(10)]
    for g in grads:
        g["blocks"].pop()
    rule = xopt.chain(
        xopt.Masked(xopt.ClipByGlobalNorm(0.5), "**/w"),
        xopt.Groups(xopt.Adam(lr=0.01), ("head/*", xopt.SGD(lr=0.05)), ("embed/*", xopt.Freeze)),
    )
    labels = jax.tree_util.tree_map_with_path(
        lambda path, x: {"head": "sgd", "embed": "frozen"}.get(path[0].key, "adam"), params
    )
    weights = jax.tree_util.tree_map_with_path(lambda path, x: path[-1].key == "w" and path[0].key != "embed", params)
    peer = optax.chain(
        optax.masked(optax.clip_by_global_norm(0.5), weights),
        optax.partition({"adam": optax.adam(0.01), "sgd": optax.sgd(0.05), "frozen": optax.set_to_zero()}, labels),
    )
    mine, state = params, rule.init(params)
    theirs, memory = params, peer.init(params)
    for g in grads:
        mine, state = rule.apply(mine, g, state)
        change, memory = peer.update(g, memory, theirs)
        theirs = optax.apply_updates(theirs, change)
    for x, y in zip(optree.tree_leaves(mine), optree.tree_leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-13)
