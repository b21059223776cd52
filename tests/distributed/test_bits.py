"""Sharded state has the bits of one process: every rule and component, precision and dtype, at any number of ranks."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import catalog
import ml_dtypes
import numpy as np
import pytest
from catalog.links import LINKS
from support.bits import bits
from support.ranks import Rank, World

import xopt

SHAPES: dict[str, tuple[int, ...]] = {
    "wide": (70, 1300),  # chunks in the middle of a row
    "b": (7,),
    "empty": (0, 3),
    "kernel": (2, 3, 4, 5),
    "scalar": (),
    "long": (65536 + 9,),
    "small": (5, 4),
}
STEPS = 3
RUNNERS = pytest.mark.parametrize("runner", ["eager", "tiled", pytest.param("llvm", marks=pytest.mark.needs("llvm"))])


def kind(dtype: str) -> Any:
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def numbers(key: Any, shape: tuple[int, ...], dtype: str) -> Any:
    rng = np.random.default_rng(key)
    x = rng.standard_normal(shape)
    return np.asarray(x + 1j * rng.standard_normal(shape) if "complex" in dtype else x).astype(kind(dtype))


def tree(dtype: str = "float32", shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Any]:
    return {n: numbers((0, k), shape, dtype) for k, (n, shape) in enumerate(shapes.items())}


def gradients(t: int, dtype: str = "float32", shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Any]:
    found = {n: numbers((t, k), shape, dtype) * kind(dtype).type(0.25) for k, (n, shape) in enumerate(shapes.items())}
    return {n: np.asarray(x) for n, x in found.items()}  # NumPy makes a number of one without dimensions


def settled(opt: Any) -> Any:
    """Return all that there is of an optimizer as bytes."""
    found = opt.state_dict(only_state=False)
    return bits({"params": opt.params, "state": found["state"], "carry": found["carry"], "step": found["step"]})


def alone(rule: Any, dtype: str, shapes: dict[str, tuple[int, ...]], **options: Any) -> Any:
    opt = xopt.Optimizer(tree(dtype, shapes), rule, **options)
    for t in range(1, STEPS + 1):
        opt.step(gradients(t, dtype, shapes), value=1.0 / t)
    return settled(opt)


def together(size: int, rule: Any, dtype: str, shapes: dict[str, tuple[int, ...]], **options: Any) -> list[Any]:
    """Take the same steps on many ranks, of which one has the gradients in turn, and the others none."""

    def job(comm: Rank) -> Any:
        opt = xopt.Optimizer(tree(dtype, shapes), rule, comm=comm, **options)
        for t in range(1, STEPS + 1):
            mine = t % size == comm.rank
            g = gradients(t, dtype, shapes)
            opt.step(g if mine else dict.fromkeys(g), value=1.0 / t if mine else 0.0)
        return settled(opt)

    return World(size).run(job)


def check(rule: Any, dtype: str = "float32", sizes: Any = (3,), shapes: Any = SHAPES, **options: Any) -> None:
    want = alone(rule, dtype, shapes, **options)
    for size in sizes:
        for got in together(size, rule, dtype, shapes, **options):
            if isinstance(got, BaseException):
                raise got
            for part in want:
                assert got[part] == want[part], (size, part)


@pytest.mark.parametrize("row", catalog.ROWS, ids=[row.rule.__name__ for row in catalog.ROWS])
@RUNNERS
def test_rules(row: Any, runner: str) -> None:
    check(row.make(**row.options[-1]), runner=runner)


@pytest.mark.parametrize("link", LINKS, ids=[f"{link.link.__name__}-{link.place}" for link in LINKS])
def test_components(link: Any) -> None:
    part, rule = link.link(**link.options[-1]), xopt.SGD(lr=0.1, momentum=0.9)
    chain = xopt.chain(part, rule) if link.place == "front" else xopt.chain(rule, part)
    check(chain, shapes={"w": (70, 1000), "b": (7,), "m": (5, 4)})


COMPOSED = {
    "clip": xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(lr=0.1, weight_decay=0.1)),
    "groups": xopt.chain(
        xopt.ClipByGlobalNorm(1.0), xopt.Groups(xopt.Adam(lr=0.1), ("long", {"lr": 0.01}), ("b", xopt.Freeze))
    ),
    "muon": xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Groups(xopt.Adam(lr=0.1), ("small", xopt.Muon(lr=0.1)))),
    "low rank": xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.LowRank(xopt.Adam(lr=0.1), 3, update_every=2)),
    "noise": xopt.chain(xopt.AddNoise(0.1), xopt.Adam(lr=0.1), xopt.EMA(0.9)),
    "loss": xopt.LossScale(xopt.Adam(lr=0.1), initial=4.0),
    "accumulate": xopt.Accumulate(xopt.Prodigy(), 2),
    "plateau": xopt.chain(xopt.SGD(lr=0.1, momentum=0.5), xopt.ReduceOnPlateau(factor=0.5, patience=0)),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_compositions(name: str) -> None:
    check(COMPOSED[name], sizes=(1, 2, 3, 4, 7))


@pytest.mark.needs("llvm")
@pytest.mark.parametrize("parts", [None, 6])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_tensors(dtype: str, parts: int | None) -> None:
    """Of PyTorch, too, it is known where gradients lie, and they are copied from there."""
    torch = pytest.importorskip("torch")
    rule = COMPOSED["clip"]
    many = 1 if parts is None else parts // 3

    def one(comm: Rank | None) -> Any:
        opt = xopt.Optimizer(
            {n: torch.from_numpy(x) for n, x in tree(dtype).items()},
            rule,
            runner="llvm",
            **({} if comm is None else {"comm": comm, "parts": parts}),
        )
        for t in range(1, STEPS + 1):
            given = [gradients(10 * t + j, dtype) for j in range(3 * many)]
            whole = functools.reduce(lambda a, b: {n: np.asarray(x + b[n]) for n, x in a.items()}, given)
            own = [{n: torch.from_numpy(x) for n, x in g.items()} for g in ([whole] if comm is None else given)]
            mine = slice(0, 1) if comm is None else slice(comm.rank * many, (comm.rank + 1) * many)
            opt.step(own[mine] if comm is not None and parts is not None else own[mine][0])
        return bits(opt.params)

    want = one(None)
    assert World(3).run(one) == [want] * 3


@pytest.mark.parametrize("dtype", ["float64", "complex64", "complex128", "bfloat16", "float16"])
@pytest.mark.parametrize("complex", ["split", "modulus"])
@RUNNERS
def test_dtypes(dtype: str, complex: Any, runner: str) -> None:
    """The chunks of a sum over complex numbers as pairs have half as many of them."""
    rule = xopt.Adam(lr=0.1, complex=complex)
    check(
        xopt.chain(xopt.ClipByGlobalNorm(1.0), rule, xopt.TrustRatio()),
        dtype,
        (2, 3),
        {"v": (140_001,), "b": (7,)},
        runner=runner,
    )


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("bfloat16", {"rounding": "stochastic", "seed": 7}),
        ("float16", {"rounding": "stochastic"}),
        ("bfloat16", {"rounding": "kahan"}),
        ("bfloat16", {"master_weights": True, "state_dtype": "bfloat16"}),
        ("float32", {"state_dtype": "int8"}),
        ("float32", {"on_nonfinite": "skip"}),
    ],
)
@RUNNERS
def test_precision(dtype: str, options: dict[str, Any], runner: str) -> None:
    check(xopt.Adam(lr=0.1), dtype, sizes=(2, 3), runner=runner, **options)


def test_tree_of_two_dtypes() -> None:
    """What lies side by side in a bucket may be of other dtypes."""

    def params(make: Any) -> Any:
        return {n: make(k, (n, "float64" if k % 2 else "float32")) for k, n in enumerate(SHAPES)}

    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=0.1))

    def run(comm: Any, size: int) -> Any:
        p = params(lambda k, x: numbers((0, k), SHAPES[x[0]], x[1]))
        opt = xopt.Optimizer(p, rule, comm=comm)
        for t in range(1, 4):
            g = params(lambda k, x: numbers((t, k), SHAPES[x[0]], x[1]))  # noqa: B023
            opt.step(g if comm is None or t % size == comm.rank else dict.fromkeys(g))
        return settled(opt)

    want = run(None, 1)
    for size in (2, 3):
        assert World(size).run(functools.partial(run, size=size)) == [want] * size


@pytest.mark.parametrize("layout", ["strided", "reversed", "columns"])
def test_gradients_and_parameters_in_other_orders(layout: str) -> None:
    """What is not in C order is copied, however large; a parameter is the business of one rank then."""

    def laid(x: Any) -> Any:
        if layout == "columns":
            return np.asfortranarray(x)
        wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]))
        made = wide[..., ::2] if layout == "strided" else wide[..., ::-2]
        made[...] = x
        return made

    shapes = {"v": (150_001,), "w": (300, 200), "b": (3,)}
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=0.1), xopt.EMA(0.5))

    def run(comm: Any, size: int, odd: bool) -> Any:
        p = {n: laid(x) if odd else x for n, x in tree("float64", shapes).items()}
        opt: Any = xopt.Optimizer(p, rule, comm=comm)
        for t in range(1, 4):
            g = {n: laid(x) for n, x in gradients(t, "float64", shapes).items()}
            opt.step(g if comm is None or t % size == comm.rank else dict.fromkeys(g))
        assert all(p[n] is x for n, x in opt.params.items())
        return settled(opt), bits(opt.eval_params())

    want = run(None, 1, odd=False)
    for odd in (False, True):
        assert World(3).run(functools.partial(run, size=3, odd=odd)) == [want] * 3


def added(t: int, dtype: str) -> dict[str, Any]:
    """Return four gradients of a step, added from left to right."""
    total = gradients(10 * t, dtype)
    for j in range(1, 4):
        total = {n: np.asarray(x + gradients(10 * t + j, dtype)[n]) for n, x in total.items()}
    return total


@pytest.mark.parametrize("total", ["sum", "mean"])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_gradients_are_added_in_the_order_of_the_ranks(total: Any, dtype: str) -> None:
    """Four ranks with a gradient each, and two, or one, with parts: the same bits."""
    rule, divisor = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=0.1)), 4 if total == "mean" else 1
    opt = xopt.Optimizer(tree(dtype), rule)
    for t in range(1, 3):
        opt.step({n: np.asarray(x / divisor).astype(dtype) for n, x in added(t, dtype).items()})
    want = settled(opt)

    def job(comm: Rank) -> Any:
        opt = xopt.Optimizer(tree(dtype), rule, comm=comm, total=total, parts=4)
        many = 4 // comm.size
        for t in range(1, 3):
            own = [gradients(10 * t + comm.rank * many + j, dtype) for j in range(many)]
            opt.step(own)
        return settled(opt)

    for size in (1, 2, 4):
        assert World(size).run(job) == [want] * size


def test_halves_are_added_in_float32_and_rounded_once() -> None:
    """256 + 1 + 1 is 258 in bfloat16; rounded each time, it is 256."""

    def job(comm: Rank) -> Any:
        opt = xopt.Optimizer(np.zeros(3, ml_dtypes.bfloat16), xopt.SGD(lr=1.0), comm=comm)
        return opt.step(np.full(3, 1.0 if comm.rank else 256.0, ml_dtypes.bfloat16)).astype(float).tolist()

    assert World(3).run(job) == [[-258.0] * 3] * 3


def test_a_checkpoint_is_that_of_one_process(tmp_path: Path) -> None:
    """Byte for byte, at any number of ranks; and a run that was saved at one goes on at another to the same bits."""
    rule = xopt.chain(
        xopt.ClipByGlobalNorm(1.0), xopt.Groups(xopt.Prodigy(), ("small", xopt.Muon(lr=0.1))), xopt.EMA(0.9)
    )

    def run(comm: Any, save: Path | None, load: Path | None) -> Any:
        opt = xopt.Optimizer(tree(), rule, comm=comm)
        if load:
            assert opt.load(load) == {"epoch": 3}
        for t in (3, 4) if load else (1, 2):
            g = gradients(t)
            opt.step(g if comm is None or comm.rank == t % comm.size else dict.fromkeys(g))
        if save:
            assert opt.save(save, extra={"epoch": 3}) == save
        return settled(opt)

    first, last = tmp_path / "1.safetensors", tmp_path / "end.safetensors"
    run(None, first, None)
    want = run(None, last, first)
    for size in (1, 2, 3, 4):
        path = tmp_path / f"{size}-ranks.safetensors"
        World(size).run(lambda comm: run(comm, path, None))  # noqa: B023
        assert path.read_bytes() == first.read_bytes()
        for other in (1, 2, 3, 4):
            assert World(other).run(lambda comm: run(comm, None, path)) == [want] * other  # noqa: B023
        assert run(None, None, path) == want


def test_state_dict_and_averages() -> None:
    rule = xopt.chain(xopt.Adam(lr=0.1), xopt.EMA(0.9))

    def run(comm: Any) -> Any:
        opt = xopt.Optimizer(tree(), rule, comm=comm)
        opt.step(gradients(1) if comm is None or comm.rank == 0 else dict.fromkeys(SHAPES))
        found = opt.state_dict(only_state=False, extra={"a": 1})
        new = xopt.Optimizer(tree(), rule, comm=comm)
        assert new.load_state_dict(found) == {"a": 1}
        before = bits(new.params)
        with new.averaged() as averages:
            inside = bits(averages)
        assert bits(new.params) == before == bits(opt.params)
        assert inside == bits(opt.eval_params()) == bits(new.eval_params())
        assert inside != before
        return {n: x for n, x in found.items() if n not in ("params", "state")}, bits(found["state"]), inside

    assert World(3).run(run) == [run(None)] * 3


@pytest.mark.parametrize("options", [{}, {"state_dtype": "int8"}, {"complex": "modulus"}, {"complex": "split"}])
def test_estimates_of_the_curvature(options: dict[str, Any]) -> None:
    """One rank has an estimate in turn, and the others none, or not of all parameters."""
    complex = options.get("complex")
    rule = xopt.Sophia(0.1, 0.5, 0.5, gamma=0.3, complex=complex or "modulus")
    keeping = {n: x for n, x in options.items() if n != "complex"}
    dtype = "complex64" if complex else "float32"

    def steps(opt: Any, rank: int, size: int) -> Any:
        for t in range(1, STEPS + 1):
            for what, take in (("h", opt.update_curvature), ("g", opt.step)):
                x = gradients(t + 10 * (what == "h"), dtype)
                x = {n: y.real for n, y in x.items()} if what == "h" and complex == "modulus" else x
                x["b"] = None if what == "h" else x["b"]
                take(x if t % size == rank else dict.fromkeys(x))
        return settled(opt)

    want = steps(xopt.Optimizer(tree(dtype), rule, **keeping), 0, 1)
    assert want != alone(rule, dtype, SHAPES, **keeping)  # which has no estimates
    for size in (2, 3):
        job = lambda comm: steps(xopt.Optimizer(tree(dtype), rule, comm=comm, **keeping), comm.rank, comm.size)
        assert all(x == want for x in World(size).run(job))


@pytest.mark.parametrize("total", ["sum", "mean"])
def test_estimates_are_added_up_as_gradients_are(total: Any) -> None:
    shapes = {"b": (7,)}
    rule = xopt.Sophia(0.1, b2=0.0)

    def job(comm: Rank) -> Any:
        opt = xopt.Optimizer(tree("float32", shapes), rule, comm=comm, total=total)
        opt.update_curvature({"b": np.full(7, 2.0 + comm.rank, np.float32)})
        words = ""
        try:
            opt.update_curvature({"b": np.zeros(8 if comm.rank else 7, np.float32)})
        except (ValueError, RuntimeError) as error:
            words = str(error)
        return opt.state_dict()["state"]["0.sophia.hessian"]["b"].tolist(), words

    for found, words in World(2).run(job):
        assert found == [5.0 if total == "sum" else 2.5] * 7
        assert 'curvature["b"]: shape (8,), but the parameter has (7,)' in words
