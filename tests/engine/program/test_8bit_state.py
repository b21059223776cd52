"""State in 8 bits: what codes stand for, the same bits from every runner, and that training does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import catalog
import ml_dtypes
import numpy as np
import optree
import pytest
from conftest import Lib, walk
from support import host_cuda
from support.coded_rules import IDS, RULES, coded
from support.host_cuda import HostDriver
from support.runners import awkward, poison, same_bits, trajectory

import xopt
from xopt._engine.program import quantize as _quantize
from xopt._engine.program.lower import Unsupported
from xopt._engine.runners import eager
from xopt._engine.runners.cuda import codegen as _codegen
from xopt._engine.runners.cuda.runner import Cuda
from xopt._engine.runners.tiled.runner import Tiled
from xopt.rule import Hyper, hyper

KINDS = ["signed", "square"]
DTYPES = ["float16", "bfloat16", "float32", "float64"]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have codes for the smallest parameters too."""
    monkeypatch.setattr(_quantize, "LEAST", 1)


def nearest(x: Any, kind: str) -> Any:
    """Return what is kept of the numbers of one block: of all codes the one whose root is nearest, by a search."""
    codes = np.arange(128.0) / 127 if kind == "signed" else np.arange(256.0) / 255
    power = 2 if kind == "signed" else 4
    scale = np.abs(x).max()
    roots = (np.abs(x) / (scale or 1.0)) ** (1 / power)
    found = np.argmin(np.abs(roots[:, None] - codes), axis=1)
    if kind == "square":
        found = np.maximum(found, x > 0)
    return np.sign(x) * codes[found] ** power * scale


def stored(x: Any, kind: str) -> tuple[Any, Any]:
    top = _quantize.largest(np, np.abs(x))
    with np.errstate(all="ignore"):
        code = _quantize.quantize(np, x, np.abs(x), _quantize.spread(np, top, x), kind)
        return code.astype(_quantize.CODES[kind]), top


def read(code: Any, top: Any, kind: str) -> Any:
    with np.errstate(all="ignore"):
        return _quantize.dequantize(np, code.astype(top.dtype), _quantize.spread(np, top, code), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_codes_are_the_nearest(kind: str, dtype: str, rng: np.random.Generator) -> None:
    """Beside a search over all codes in float64; blocks of every size of number, the last one short."""
    x = (rng.standard_normal((23, 128)) * 10.0 ** rng.uniform(-3, 0, (23, 128))).astype(dtype)
    x *= 10.0 ** np.arange(-22, 24, 2, dtype=dtype)[:, None] if dtype == "float64" else 1e3
    x[3], x[4, 5:] = 0, 0
    x = (x if kind == "signed" else x**2).reshape(-1)[: 22 * 128 + 7]
    got = read(*stored(x, kind), kind)
    want = np.concatenate([nearest(part.astype("float64"), kind) for part in np.split(x, range(128, x.size, 128))])
    np.testing.assert_allclose(got, want, rtol=2e-6 if dtype == "float32" else 1e-14)
    assert len(np.unique(stored(x, kind)[0])) > 100


@pytest.mark.parametrize("kind", KINDS)
def test_codes_come_back_as_they_were(kind: str) -> None:
    """All of them, with scales of every size: a step that is held back changes nothing, however often."""
    codes = np.arange(-127, 128, dtype="int8") if kind == "signed" else np.arange(256).astype("uint8")
    for scale in (1e-30, 3e-7, 1.0, 1.1, 7.7e33):
        block = np.resize(codes, 3 * 128)
        block[::128] = codes[-1]  # the largest number of its block
        top = np.full(3, scale, "float32")
        again, same = stored(read(block, top, kind), kind)
        assert np.array_equal(again, block)
        assert np.array_equal(same, top)


def test_what_is_not_finite_does_not_hide() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones(300, "float32")
        x[130] = bad
        for kind in KINDS if bad != -np.inf else KINDS[:1]:
            got = read(*stored(x, kind), kind)
            assert not np.isfinite(got[130])
            assert np.isfinite(got[:128]).all()
            assert np.isfinite(got[256:]).all()
    assert np.all(read(*stored(np.asarray([1e-12, 1.0], "float32"), "square"), "square") > 0)  # none is divided by 0


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("rule", RULES, ids=IDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("runner", [Tiled(1, 1), Tiled(300, 2), Tiled()], ids=["1", "300", "usual"])
def test_tiles(rule: Any, dtype: str, runner: Any, rng: np.random.Generator) -> None:
    """The bits of the eager runner: leaves of every size and layout, some of which are not in C order."""
    same_as_eager(rule, dtype, runner, rng)


def same_as_eager(rule: Any, dtype: str, runner: Any, rng: np.random.Generator) -> None:
    params = awkward(rng, dtype)
    draw_like = lambda x: (x + rng.standard_normal(x.shape)).astype(x.dtype)
    for part in ({n: x for n, x in params.items() if n in ("many", "tall", "wide", "one")}, params):
        draw = lambda part=part: optree.tree_map(draw_like, part)
        grads = [draw(), poison(draw(), rng, rule), draw()]
        if "Reading" in repr(rule):
            grads = [draw(), draw(), draw()]
        want = trajectory(rule, part, grads, "eager")
        assert all(map(same_bits, trajectory(rule, part, grads, runner), want))


def test_a_leaf_that_is_not_in_c_order_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Only that one is left to the eager runner, whose sums the tiles add up with theirs."""
    seen = []

    def counted(call: Any) -> Any:
        return lambda work, *more: (seen.append(len(work.loads["p"])), call(work, *more))[1]

    for name in ("prepare", "sums"):
        monkeypatch.setattr(eager, name, counted(getattr(eager, name)))
    params = [rng.standard_normal((80, 80)), rng.standard_normal((70, 90)).T, rng.standard_normal(5000)]
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam())
    grads = [p.copy() for p in params]  # in C order
    xopt.Optimizer([p.copy() for p in params], rule, state_dtype="int8", runner="tiled").step(grads)
    assert seen == []
    xopt.Optimizer(params, rule, state_dtype="int8", runner="tiled").step(grads)
    assert seen == [1, 1]


@pytest.mark.usefixtures("always")
@pytest.mark.needs("llvm")
@pytest.mark.parametrize("rule", RULES, ids=IDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled(rule: Any, dtype: str, rng: np.random.Generator) -> None:
    from xopt._engine.runners.llvm.runner import Llvm

    for runner in (Llvm(), Llvm(threads=3, task=130)) if dtype == "float32" else (Llvm(),):
        same_as_eager(rule, dtype, runner, rng)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> HostDriver:
    host_cuda.needs_compiler()
    made = HostDriver(tmp_path_factory.mktemp("blocks"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_quantize, "LEAST", 1)
        made.build([k for rule in RULES for dtype in DTYPES for k in host_cuda.kernels(rule, dtype)])
    return made


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("rule", RULES, ids=IDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_text_for_gpus(rule: Any, dtype: str, driver: HostDriver, rng: np.random.Generator) -> None:
    same_as_eager(rule, dtype, Cuda(driver), rng)
    assert "xopt_tile" in driver.launches


@pytest.mark.usefixtures("always")
def test_threads_of_a_gpu_wait_for_each_other(tmp_path: Path, rng: np.random.Generator) -> None:
    same_as_eager(RULES[0], "float32", Cuda(HostDriver(tmp_path, team=7)), rng)


def test_a_gpu_has_so_much_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is left to the eager runner."""
    monkeypatch.setattr(_quantize, "LEAST", 1)
    monkeypatch.setattr(_codegen, "SHARED", 20_000)
    host_cuda.kernels(coded(xopt.Lion()), "float32")
    with pytest.raises(Unsupported, match="shared memory"):
        host_cuda.kernels(coded(xopt.Adam(b1=0.875)), "float64")


@pytest.mark.parametrize("rule", [xopt.Adam(0.1), xopt.chain(xopt.ClipByGlobalNorm(5.0), xopt.Lion(0.1))], ids=str)
def test_libraries(lib: Lib, rule: Any, rng: np.random.Generator) -> None:
    """The codes, scales and parameters of NumPy; but for roundings on JAX, and of norms where there is no float64."""
    rounds = lib.name == "jax" or (lib.guise in ("no_float64", "no_x64") and "Clip" in repr(rule))
    shapes = {"large": (67, 65), "small": (5,)}
    params = {n: rng.standard_normal(shape).astype("float32") for n, shape in shapes.items()}
    grads = [{n: rng.standard_normal(x.shape).astype("float32") for n, x in params.items()} for _ in range(3)]
    want, state = walk(coded(rule), params, grads, runner="eager")
    theirs = coded(rule)
    apply, now = theirs.apply, optree.tree_map(lib.array, params)
    apply = lib.module().jit(apply) if lib.guise == "jit" else apply
    found = theirs.init(now)
    for g in grads:
        now, found = lib.settled(*apply(now, optree.tree_map(lib.array, g), found))
    if not rounds:
        assert all(same_bits(lib.numpy(now[n]), want[n]) for n in shapes)
    for name, column in state.slots.items():
        for n, x in column.items():
            got = found.slots[name][n]
            assert (got is None) == (x is None)
            if x is not None:
                assert str(got.dtype).rpartition(".")[2] == x.dtype.name
                near = 1 if x.dtype.name in ("int8", "uint8") else 1e-5
                np.testing.assert_allclose(lib.numpy(got).astype("float64"), x, atol=near * rounds)
    for n in shapes:
        np.testing.assert_allclose(lib.numpy(now[n]), want[n], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", [xopt.Adam(), xopt.AdamW(), xopt.Lion(), xopt.SGD(momentum=0.9)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes(rule: Any, dtype: str) -> None:
    """2.06 a parameter for two moments, and nothing else; parameters that are small keep theirs."""
    p = np.ones(100_000, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    columns = coded(rule).init(p).slots
    moments = len(xopt.Precision(rule).init(p).slots)
    assert sum(x.nbytes for x in columns.values()) / p.size == pytest.approx(moments * (1 + 4 / 128), rel=1e-4)
    assert f"{moments + moments * 4 / 128:.4g} bytes of state each" in xopt.explain(coded(rule), p, runner="tiled")
    opt = xopt.Optimizer({"large": p, "small": np.ones(_quantize.LEAST - 1, "float32")}, rule, state_dtype="int8")
    place = next(iter(opt.state.slots)).removeprefix(_quantize.SCALE)
    assert opt.state.slots[place]["small"].dtype == "float32"
    assert opt.state.slots[_quantize.SCALE + place]["small"] is None
    assert opt.state.slots[place]["large"].dtype == "int8"


def test_a_step_that_is_held_back_changes_no_bit() -> None:
    rng = np.random.default_rng(3)
    p, g = rng.standard_normal(5000), rng.standard_normal(5000)
    rule = coded(xopt.Guard(xopt.Adam(0.1), "skip"))
    p, state = walk(rule, p, [g, 2 * g])
    bad = np.where(np.arange(5000) == 77, np.nan, g)
    again, after = rule.apply(p, bad, state)
    assert same_bits(again, p)
    assert all(same_bits(after.slots[n], x) for n, x in state.slots.items())


def quadratic(size: int) -> tuple[Any, Any]:
    """Return loss and noisy gradient of a separable bowl: curvatures from 1e-3 to 1, in no order."""
    rng = np.random.default_rng(1)
    a = (10.0 ** -rng.uniform(0, 3, size)).astype("float32")

    def gradient(w: Any, t: int) -> Any:
        noise = np.random.default_rng(t).standard_normal(size, dtype="float32")
        return a * (w - 1 + 0.3 * noise)

    return lambda w: float(np.mean(a * (w - 1) ** 2) / a.mean()), gradient


CODED = [row.rule for row in catalog.ROWS if row.rule.moments]
RATES = {"Adadelta": 8.0, "LARS": 8.0, "LAMB": 1 / 16, "NovoGrad": 1 / 8, "DAdaptAdam": 1.0, "Prodigy": 1.0, "SGD": 1.0}
RATES |= dict.fromkeys(("SOAP", "KLSOAP"), 0.03)
"""Those at which 400 steps bring the bowl's loss down; of others 0.01."""
MORE: dict[Any, Any] = {
    xopt.SGD: {"momentum": 0.9},
    xopt.LARS: {"momentum": 0.9},
    xopt.Adafactor: {"b1": 0.9, "relative_step": False, "scale_parameter": False},
    xopt.Shampoo: {"momentum": 0.9, "b2": 0.9, "update_every": 10},
}
"""What makes rules keep averages that else do not."""


def converged(rule: type[xopt.Rule], steps: int) -> dict[Any, float]:
    """Return the loss after so many steps, as a part of the first, for state in float32 and in 8 bits."""
    loss, gradient = quadratic(1 << 14)
    found = {}
    for how in (None, "int8"):
        w = np.zeros(1 << 14, "float32")
        p = w if rule.elementwise else w.reshape(128, 128)
        lr = xopt.schedules.cosine(RATES.get(rule.__name__, 0.01), steps=steps)
        opt = xopt.Optimizer(p, rule(lr=lr, **MORE.get(rule, {})), state_dtype=how)
        for t in range(steps):
            opt.step(gradient(w, t).reshape(p.shape))
        found[how] = loss(w) / loss(np.zeros(1 << 14))
    return found


@pytest.mark.parametrize("rule", [xopt.Adam, xopt.Lion], ids=lambda r: r.__name__)
def test_it_converges_as_in_float32(rule: Any) -> None:
    """Within 5 % of the loss in float32; docs/precision.md has a million parameters, and handwritten digits."""
    found = converged(rule, 400)
    assert found["int8"] < 1.05 * found[None]
    assert found[None] < 0.01


@pytest.mark.parametrize("rule", CODED, ids=lambda r: r.__name__)
def test_every_rule_with_moments(rule: Any) -> None:
    """Within a tenth of the loss in float32; and its state takes a quarter of the bytes, where it is all moments."""
    found = converged(rule, 150)
    assert found["int8"] < 1.1 * found[None]
    assert found[None] < 0.8
    state = coded(rule(**MORE.get(rule, {}))).init(np.ones((50, 100), "float32"))
    slots = {n: x.dtype.name for n, x in state.slots.items() if "." in n and x is not None}
    kept = {n.rpartition(".")[2] for n, d in slots.items() if d in ("int8", "uint8")}
    assert kept == {*rule.moments} & {n.rpartition(".")[2] for n in slots}
    assert kept


def test_the_docstring_names_every_rule_with_moments() -> None:
    text = xopt.Precision.__doc__ or ""
    assert [rule.__name__ for rule in CODED if rule.__name__ not in text] == []


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("rule", CODED, ids=lambda r: r.__name__)
def test_tiles_of_every_rule(rule: Any, rng: np.random.Generator) -> None:
    same_as_eager(coded(rule()), "float32", Tiled(300, 2), rng)


@pytest.mark.usefixtures("always")
@pytest.mark.needs("llvm")
@pytest.mark.parametrize("rule", CODED, ids=lambda r: r.__name__)
def test_every_rule_compiled(rule: Any, rng: np.random.Generator) -> None:
    from xopt._engine.runners.llvm.runner import Llvm

    same_as_eager(coded(rule()), "float32", Llvm(), rng)


def optimizers() -> Iterator[xopt.Optimizer]:
    for how in ("int8", None, "int8"):
        p = {"w": np.linspace(-1, 1, 5000).astype("float32"), "b": np.ones(3, "float32")}
        yield xopt.Optimizer(p, xopt.Adam(0.1), state_dtype=how)  # type: ignore[arg-type]


def test_checkpoints(tmp_path: Path, rng: np.random.Generator) -> None:
    """Codes are saved as they are, and go nowhere but where codes are."""
    opt, plain, other = optimizers()
    g = {"w": rng.standard_normal(5000).astype("float32"), "b": np.ones(3, "float32")}
    for _ in range(3):
        opt.step(g)
        plain.step(g)
    opt.save(tmp_path / "codes")
    plain.save(tmp_path / "plain")
    other.load(tmp_path / "codes")
    opt.step(g)
    other.step(g)
    assert all(map(same_bits, *map(optree.tree_leaves, [(x.params, x.state.slots) for x in (opt, other)])))
    for to, source in ((other, "plain"), (plain, "codes")):
        before = [x.copy() for x in optree.tree_leaves((to.params, to.state.slots))]
        for more in ({}, {"strict": False, "cast": True}):
            with pytest.raises(xopt.CheckpointError, match="the codes of state in 8 bits are not converted"):
                to.load(tmp_path / source, **more)  # type: ignore[arg-type]
        assert all(map(same_bits, before, optree.tree_leaves((to.params, to.state.slots))))


@pytest.mark.parametrize("lost", ["0.adam.v", f"{_quantize.SCALE}0.adam.v"])
def test_codes_without_their_scales(lost: str) -> None:
    opt, _, other = optimizers()
    saved = opt.state_dict()
    del saved["state"][lost]["w"]
    with pytest.raises(xopt.CheckpointError, match=r"state/.*0.adam.v/w: without state/.*0.adam.v/w"):
        other.load_state_dict(saved, strict=False)
    del saved["state"]["0.adam.v"], saved["state"][f"{_quantize.SCALE}0.adam.v"]
    other.load_state_dict(saved, strict=False)


def test_refusals() -> None:
    p = np.ones(5000)
    for rule in (
        xopt.Adagrad(),
        xopt.RMSProp(centered=True),
        xopt.SM3(),
        xopt.chain(xopt.ClipByNorm(1.0), xopt.Rprop()),
    ):
        with pytest.raises(ValueError, match="has no averages that may be kept in 8 bits, as Adam, Lion and SGD have"):
            xopt.Optimizer(p, rule, state_dtype="int8")
    for dtype in ("complex64", "complex128"):
        with pytest.raises(TypeError, match=rf'params\["z"\]: dtype {dtype}, but state_dtype=\'int8\''):
            xopt.Optimizer({"z": np.ones(3, dtype), "w": p}, xopt.Adam(), state_dtype="int8")
    saved = xopt.Optimizer(p, xopt.Adam(), state_dtype="int8").state_dict()
    with pytest.raises(TypeError, match="it keeps its state in 8 bits, which torch.optim does not"):
        xopt.to_torch(saved, coded(xopt.Adam()), p, {})
    with pytest.raises(TypeError, match="it keeps its state in 8 bits, which optax does not"):
        xopt.from_optax((), coded(xopt.Adam()), p)


def test_averages_that_do_not_begin_with_0(lib: Lib) -> None:
    """The first value is kept to the last bit of float32, on every runner: the first step is that of float32."""
    p = lib.array(np.linspace(-1, 1, 5000, dtype="float32"))
    for rule in (xopt.RMSProp(initial=0.7), xopt.Yogi(initial=0.7, initial_m=-0.3, b1=0.99)):
        new, _ = coded(rule).apply(p, p, coded(rule).init(p))
        want, _ = rule.apply(p, p, rule.init(p))
        np.testing.assert_array_equal(lib.numpy(new), lib.numpy(want))


def test_a_difference_of_averages_keeps_its_digits() -> None:
    """Centered, only the momentum is in codes."""
    state = coded(xopt.RMSProp(centered=True, momentum=0.9)).init(np.ones(5000, "float32"))
    kept = {n.removeprefix("0.rmsprop."): x.dtype.name for n, x in state.slots.items() if n.startswith("0.")}
    assert kept == {"v": "float32", "a": "float32", "m": "int8"}


def test_another_layout_of_the_state() -> None:
    p = np.ones((80, 80), "float32")
    rule = coded(xopt.Adam())
    state = rule.init(p)
    state.slots[f"{_quantize.SCALE}0.adam.m"] = np.zeros(49, "float32")
    with pytest.raises(ValueError, match=r"shape \(49,\).*\(50,\)"):
        rule.apply(p, p, state)


@pytest.mark.parametrize(
    "link", [xopt.AdaptiveGradientClip(0.1), xopt.Centralize(), xopt.AddNoise(0.1)], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("more", [{}, {"rounding": "kahan"}, {"master_weights": True}], ids=str)
def test_beside_links_of_whole_arrays(link: Any, more: Any, rng: np.random.Generator) -> None:
    """There too the moments are kept, in codes; a step is almost that of a run that keeps them in full."""
    dtype = "float16" if more else "float32"
    p = {"w": rng.standard_normal((70, 60)).astype(dtype), "b": rng.standard_normal(7).astype(dtype)}
    grads = [optree.tree_map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), p) for _ in range(4)]
    rule = xopt.chain(link, xopt.Adam(0.1))
    want, _ = walk(xopt.Precision(rule, **more), p, grads)
    got, state = walk(coded(rule, **more), p, grads)
    assert same_bits(got["b"], want["b"])
    np.testing.assert_allclose(got["w"].astype("float64"), want["w"].astype("float64"), atol=0.02)
    kinds = {"1.adam.m": "int8", "1.adam.v": "uint8"}
    for n, kind in kinds.items():
        assert state.slots[n]["w"].dtype == kind
        assert state.slots[_quantize.SCALE + n]["w"].shape == (33,)
        assert state.slots[n]["b"].dtype == "float32"
        assert state.slots[_quantize.SCALE + n]["b"] is None


@pytest.mark.needs("torch")
@pytest.mark.parametrize("runner", ["tiled", pytest.param("llvm", marks=pytest.mark.needs("llvm"))])
def test_tiles_of_torch_in_another_order(runner: Any, rng: np.random.Generator) -> None:
    """The bits of NumPy: what the tiled runner leaves to the eager one is not computed by torch, whose sqrt differs."""
    torch = pytest.importorskip("torch")
    if runner == "llvm":
        pytest.importorskip("llvmlite")
    params = {"w": np.asfortranarray(rng.standard_normal((70, 60)).astype("float32"))}
    params["u"] = rng.standard_normal(20_000).astype("float32")
    grads = [optree.tree_map(lambda x: rng.standard_normal(x.shape).astype("float32"), params) for _ in range(3)]
    rule = coded(xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(0.1)))
    want = trajectory(rule, params, grads, "eager")
    theirs = [{n: torch.from_numpy(x.copy(order="K")) for n, x in tree.items()} for tree in (params, *grads)]
    assert not theirs[0]["w"].is_contiguous()
    found = [x.numpy() for x in trajectory(rule, theirs[0], theirs[1:], runner)]
    opt = xopt.Optimizer(theirs[0], rule, runner=runner)
    for g in theirs[1:]:
        opt.step(g)
    written = [x.numpy() for x in optree.tree_leaves((opt.params, opt.state.slots))]
    for got in (found, written):
        assert all(map(same_bits, got, want))


def test_readouts_are_given_numbers() -> None:
    class Reader(xopt.Rule):
        lr: Hyper = hyper(default=0.1, ge=0)
        moments = {"m": "signed"}

        @staticmethod
        def update(h: Any, xp: Any, p: Any, g: Any, m: Any = 0.0) -> Any:
            return -h.lr * g, 0.5 * m + g

        @staticmethod
        def readout(h: Any, xp: Any, p: Any, m: Any) -> Any:
            return p + m

    found = []
    for rule in (Reader(), coded(Reader())):
        p, state = walk(rule, np.ones(5000), [np.full(5000, 0.25)])
        found.append(rule.eval_params(p, state))
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_moments_are_checked_where_a_rule_is_made() -> None:
    def update(h: Any, xp: Any, p: Any, g: Any, m: Any = 0.0, top: Any = "p") -> Any:
        return -m * top, m + g, top

    for moments, message in (
        ({"v": "square"}, r"Own.moments: 'v' is no state array of update; it has m, top"),
        ({"m": "unsigned"}, r"Own.moments: 'm' is 'unsigned', but it must be 'signed' or 'square'"),
        ({"top": "signed"}, r"Own.moments: 'top' begins with 'p', but it must begin with a number"),
        (["m"], r"Own.moments: \['m'\], but it must be a dict"),
    ):
        with pytest.raises(TypeError, match=message):
            type("Own", (xopt.Rule,), {"update": staticmethod(update), "moments": moments})
    made: Any = type("Other", (xopt.SGD,), {"update": staticmethod(update)})
    assert made.moments == {}, "another formula"
    assert type("Same", (xopt.SGD,), {}).moments == xopt.SGD.moments  # type: ignore[attr-defined]


@pytest.mark.parametrize(("b2", "least", "most"), [(0.999, 2.0, 6.0), (0.99, 0.98, 1.02)])
def test_second_moments_that_have_to_fall(b2: float, least: float, most: float, rng: np.random.Generator) -> None:
    """What the docstring of Precision says of gradients that become a tenth, but for one of each block."""
    found = {}
    draws = rng.standard_normal((2000, 4096)).astype("float32")
    draws[300:, np.arange(4096) % 128 > 0] /= 10
    for how in (None, "int8"):
        opt = xopt.Optimizer(np.zeros(4096, "float32"), xopt.Adam(1.0, b2=b2), state_dtype=how)
        for g in draws:
            opt.step(g)
        w = opt.params.copy()
        opt.step(draws[-1])
        found[how] = np.median(np.abs(opt.params - w))
    assert least < found[None] / found["int8"] < most
