"""Groups of parameters are computed together, with the bits of one optimizer a group."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib
from support import host_cuda
from support.groups import BASE, CASES, DTYPES, LeafTrust, S, TreeScale, apart, check, head, of, rest, rounds, tree
from support.host_cuda import STEP, HostDriver
from support.runners import one_of, same_bits

import xopt
from xopt._engine.runners.cuda.runner import Cuda
from xopt.rule import Array, H, Hyper, Transform, hyper

runner = one_of("eager", "tiled", "cuda", "llvm")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda x: "-".join(x))
def test_bits_of_separate_optimizers(case: str, dtypes: tuple[str, ...], runner: Any, rng: np.random.Generator) -> None:
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


def test_one_launch_for_all_groups(kernel_folder: Any, rng: np.random.Generator) -> None:
    """Other numbers are columns: one kernel, one reduction, nothing uploaded again; the bits of separate optimizers."""
    host_cuda.needs_compiler()
    driver = HostDriver(kernel_folder)
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
def test_columns_of_scalars_go_up_when_they_change(kernel_folder: Any, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    host_cuda.needs_compiler()
    driver = HostDriver(kernel_folder)
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


@pytest.mark.needs("llvm")
def test_one_kernel_of_llvm(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite")
    from xopt._engine.runners.llvm import runner as llvm

    calls: list[str] = []
    for name in ("prepare", "sums"):
        real = getattr(llvm.Llvm, name)
        monkeypatch.setattr(llvm.Llvm, name, lambda *args, name=name, real=real: calls.append(name) or real(*args))
    rule = xopt.chain(xopt.ClipByGlobalNorm(0.5), CASES["numbers"][0])
    opt = xopt.Optimizer(tree(rng, "float32"), rule, runner="llvm")
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
    assert opt._jitted._compiled._cache_size() == 1
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
