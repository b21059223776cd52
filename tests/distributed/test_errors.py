"""What is wrong on one rank is raised on all, before anything moves; nothing hangs, and the next step is right."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bits import bits
from support.ranks import Rank, World

import xopt
from xopt import _sharded_files
from xopt.checkpoint import _safetensors
from xopt.distributed import RankError

SIZE, BAD = 3, 1
RULE = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=0.1))


def tree() -> dict[str, Any]:
    return {"w": np.linspace(1, 2, 70_000), "b": np.ones(3), "s": np.ones(())}


def gradients() -> dict[str, Any]:
    return {n: x * 0.5 for n, x in tree().items()}


def settled(opt: Any) -> Any:
    found = opt.state_dict()
    return bits(opt.params), bits(found["state"]), found["carry"], found["step"]


def raised(found: list[Any], kind: type[BaseException], text: str, bad: int = BAD) -> None:
    """Check that one rank raised this, and that the others say so."""
    for rank, error in enumerate(found):
        assert isinstance(error, BaseException), (rank, found)
        if rank == bad:
            assert type(error) is kind, error
            assert re.search(text, str(error)), error
        else:
            assert type(error) is RankError, error
            assert error.rank == bad
            assert str(error) == f"rank {bad}: {kind.__name__}: {found[bad]}"


def refuse() -> None:
    raise OSError("no weather today")


def wrong(t: int) -> float:
    return -1.0


GRADIENTS: dict[str, tuple[Callable[[], Any], type[BaseException], str]] = {
    "shape": (lambda: {**gradients(), "b": np.ones(4)}, ValueError, r'grads\["b"\]: shape \(4,\)'),
    "dtype": (lambda: {**gradients(), "b": np.ones(3, np.float32)}, TypeError, r'grads\["b"\]: dtype float32'),
    "structure": (lambda: {"w": np.ones(70_000)}, ValueError, r'grads\["b"\]: missing'),
    "number": (lambda: {**gradients(), "s": 1.0}, TypeError, r'grads\["s"\]: 1.0, a Python float'),
    "string": (lambda: {**gradients(), "s": "x"}, TypeError, r'grads\["s"\]'),
    "list": (lambda: [*gradients().values()], ValueError, "grads"),
    "nothing": (lambda: None, ValueError, "grads"),
    "lazy rows": (
        lambda: {**gradients(), "b": xopt.SparseRows(np.zeros(1, int), np.ones(1), lazy=True)},
        TypeError,
        r'grads\["b"\]: SparseRows with lazy=True, which comm= cannot add up; use lazy=False',
    ),
}


def steps(job: Callable[[Any, Rank], Any], rule: Any = RULE, **options: Any) -> list[Any]:
    """Do something after a step, on all ranks; check that it moves nothing and that the next step is right."""

    def one(comm: Rank) -> Any:
        opt = xopt.Optimizer(tree(), rule, comm=comm, **options)
        opt.step(gradients())
        before = settled(opt)
        try:
            job(opt, comm)
        except BaseException as error:
            found: Any = error
        else:
            found = None
        assert settled(opt) == before
        opt.step(gradients())
        return found, settled(opt)

    def usual(comm: Rank) -> Any:
        opt = xopt.Optimizer(tree(), rule, comm=comm, **options)
        for _ in range(2):
            opt.step(gradients())
        return settled(opt)

    [want, *_], found = World(SIZE).run(usual), World(SIZE).run(one)
    for x in found:
        assert isinstance(x, tuple), x
        assert x[1] == want
    return [x[0] for x in found]


@pytest.mark.parametrize("owned", [False, True])
def test_rows_on_each_rank_are_added_as_dense_gradients(owned: bool) -> None:
    def one(comm: Rank, sparse: bool) -> Any:
        opt = xopt.Optimizer({"w": np.ones((5000, 20)), "b": np.ones(3)}, RULE, comm=comm, owned=owned)
        for k in range(2):
            rows, values = np.asarray([comm.rank, 7, 4000 + k, 7]), np.full((4, 20), 1.0 + comm.rank)
            dense = np.zeros((5000, 20))
            np.add.at(dense, rows, values)
            opt.step({"w": xopt.SparseRows(rows, values) if sparse else dense, "b": np.ones(3)})
        return bits(opt.params)

    found, want = (World(SIZE).run(lambda comm, sparse=sparse: one(comm, sparse)) for sparse in (True, False))
    assert found == want
    assert not any(isinstance(x, BaseException) for x in found)


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("bad", [0, 2])
def test_a_gradient(name: str, bad: int) -> None:
    make, kind, text = GRADIENTS[name]
    found = steps(lambda opt, comm: opt.step(make() if comm.rank == bad else gradients()))
    raised(found, kind, text, bad)


WORDS: dict[str, tuple[dict[str, Any], type[BaseException], str]] = {
    "out of range": ({"lr": -1.0}, ValueError, "lr"),
    "no such name": ({"speed": 1.0}, TypeError, "speed"),
    "a schedule that raises": ({"lr": lambda t: refuse()}, OSError, "no weather"),
    "a schedule out of range": ({"lr": wrong}, ValueError, "lr"),
    "another value": ({"lr": 0.5}, ValueError, r"lr: 0.5 on rank 1, but 0.1 on rank 0"),
    "value of a wrong kind": ({"value": "x"}, TypeError, "value"),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_hyperparameter(name: str) -> None:
    words, kind, text = WORDS[name]
    more = lambda comm: words if comm.rank == BAD else {"value": 1.0} if "value" in words else {}
    raised(steps(lambda opt, comm: opt.step(gradients(), **more(comm))), kind, text)


def test_value_on_some_ranks_only() -> None:
    rule = xopt.chain(xopt.SGD(lr=0.1), xopt.ReduceOnPlateau())

    def one(comm: Rank) -> Any:
        opt = xopt.Optimizer(tree(), rule, comm=comm)
        return opt.step(gradients(), value=None if comm.rank == BAD else 1.0)

    raised(World(SIZE).run(one), TypeError, "value: missing")


def test_value_is_that_of_all_ranks() -> None:
    """Each has its own part of the loss; the scale of a plateau is the same everywhere."""

    def one(comm: Any, total: str = "mean") -> Any:
        more = {} if comm is None else {"comm": comm, "total": total}
        rule = xopt.chain(xopt.SGD(lr=0.1), xopt.ReduceOnPlateau(factor=0.5, patience=0))
        opt = xopt.Optimizer(tree(), rule, **more)
        for t in range(4):
            rank = 1 if comm is None else comm.rank
            opt.step(gradients(), value=1.0 + t * (rank - 1) + 0.01 * t)  # of all: 1.0, 1.01, 1.02 …
        return settled(opt)[2]

    want = one(None)
    assert World(3).run(one) == [want] * 3
    assert want["1.reduceonplateau.scale"] < 1


@pytest.mark.parametrize("how", ["raise", "skip", "zero"])
def test_a_gradient_that_is_not_finite(how: Any) -> None:
    """The decision is that of one process, on all ranks."""

    def one(comm: Any) -> Any:
        opt = xopt.Optimizer(tree(), RULE, on_nonfinite=how, **({} if comm is None else {"comm": comm}))
        g = gradients()
        g["w"][65_540] = np.inf
        other = {n: x * 0 for n, x in gradients().items()}
        with nullcontext() if how != "raise" else pytest.raises(FloatingPointError, match=r'"w"\]: 1 elements are not'):
            opt.step(g if comm is None or comm.rank == BAD else other)
        return settled(opt)

    assert World(SIZE).run(one) == [one(None)] * SIZE


def test_none_on_all_ranks_leaves_a_parameter_alone() -> None:
    def one(comm: Any) -> Any:
        opt = xopt.Optimizer(tree(), RULE, **({} if comm is None else {"comm": comm}))
        opt.step({**gradients(), "w": None, "s": gradients()["s"] if comm is None or comm.rank == 2 else None})
        return settled(opt)

    def third(comm: Any) -> Any:
        opt = xopt.Optimizer(tree(), RULE, comm=comm)
        g = gradients() if comm.rank == 2 else dict.fromkeys(tree())
        opt.step({**g, "w": None})
        return settled(opt)

    assert World(SIZE).run(third) == [one(None)] * SIZE


MADE: dict[str, tuple[Callable[[], tuple[Any, Any, dict[str, Any]]], type[BaseException], str]] = {
    "no array": (lambda: ({**tree(), "b": 1.0}, RULE, {}), TypeError, r'params\["b"\]: 1.0, a Python float'),
    "read-only": (lambda: (read_only(), RULE, {}), ValueError, "read-only"),
    "shared": (lambda: (shared(), RULE, {}), ValueError, "shares memory"),
    "shape": (lambda: ({**tree(), "b": np.ones(4)}, RULE, {}), ValueError, r'"b"\]: shape: \[4\] on rank 1'),
    "dtype": (lambda: ({**tree(), "b": np.ones(3, "float32")}, RULE, {}), ValueError, "float32 on rank 1, but "),
    "names": (lambda: ({"w": tree()["w"], "c": np.ones(3), "s": np.ones(())}, RULE, {}), ValueError, r'params\["b"\]'),
    "order": (lambda: ([*tree().values()][::-1], RULE, {}), ValueError, "on rank 1"),
    "fewer": (lambda: ({"w": tree()["w"]}, RULE, {}), ValueError, "number of parameters: 1 on rank 1, but 3 on rank 0"),
    "contents": (lambda: ({**tree(), "b": np.zeros(3)}, RULE, {}), ValueError, r'params\["b"\]: contents'),
    "rule": (lambda: (tree(), xopt.Adam(lr=0.1), {}), ValueError, "rule"),
    "hyperparameter": (lambda: (tree(), clipped(lr=0.2), {}), ValueError, "lr"),
    "static": (lambda: (tree(), clipped(lr=0.1, amsgrad=True), {}), ValueError, "amsgrad: True on rank 1"),
    "total": (lambda: (tree(), RULE, {"total": "mean"}), ValueError, "total: mean on rank 1, but sum on rank 0"),
    "no such total": (lambda: (tree(), RULE, {"total": "max"}), ValueError, 'total=.*there are "sum" and "mean"'),
    "owned": (lambda: (tree(), RULE, {"owned": True}), ValueError, "owned: True on rank 1, but False on rank 0"),
    "no such owned": (lambda: (tree(), RULE, {"owned": 1}), TypeError, "owned: 1"),
    "parts": (lambda: (tree(), RULE, {"parts": 3}), ValueError, "parts: 3 on rank 1, but nothing on rank 0"),
    "odd parts": (lambda: (tree(), RULE, {"parts": 4}), ValueError, "multiple of the number of ranks, 3"),
    "runner": (lambda: (tree(), RULE, {"runner": "eager"}), ValueError, "runner: eager on rank 1"),
    "precision": (lambda: (tree(), RULE, {"state_dtype": "float32"}), ValueError, "rule"),
    "metrics": (lambda: (tree(), RULE, {"metrics": ["param_norm"]}), ValueError, "metrics"),
    "no such option": (lambda: (tree(), RULE, {"seed": -1}), ValueError, "seed"),
}  # fmt: skip


def clipped(**options: Any) -> Any:
    return xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(**options))


def read_only() -> Any:
    p = tree()
    p["b"].flags.writeable = False
    return p


def shared() -> Any:
    p = tree()
    return {**p, "b": p["w"][:3]}


@pytest.mark.parametrize("name", MADE)
def test_making_an_optimizer(name: str) -> None:
    make, kind, text = MADE[name]

    def one(comm: Rank) -> Any:
        params, rule, more = make() if comm.rank == BAD else (tree(), RULE, {})
        return xopt.Optimizer(params, rule, comm=comm, **{"runner": "tiled", **more})

    raised(World(SIZE).run(one), kind, text)


def test_what_no_rank_may_have() -> None:
    for one, text in (
        (lambda comm: xopt.Optimizer(tree(), RULE, comm="MPI"), "comm: str, but it must be a communicator of mpi4py"),
        (lambda comm: xopt.Optimizer(tree(), xopt.Adafactor(), comm=comm, owned=True), "adafactor takes whole arrays"),
        (lambda comm: xopt.Optimizer(tree(), RULE, comm=comm, owned=True, parts=4), "nothing to add up"),
        (lambda comm: xopt.Optimizer(tree(), RULE, total="mean"), "go with comm"),
    ):
        for error in World(2).run(one):
            assert text in str(error)


def test_parts_must_be_a_list_of_so_many() -> None:
    for given, text in ((gradients(), "a dict"), ([gradients()], "1 of them")):

        def one(comm: Rank, given: Any = given) -> Any:
            opt = xopt.Optimizer(tree(), RULE, comm=comm, parts=4)
            return opt.step(given if comm.rank == BAD else [gradients()] * 2)

        raised(World(2).run(one), ValueError, f"grads: {text}, but with parts=4 each rank has a list of 2")


def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    other, none = tmp_path / "other.safetensors", tmp_path / "none.safetensors"
    xopt.Optimizer({"w": np.ones(2)}, RULE).save(other)
    found = steps(lambda opt, comm: opt.load(other))
    assert all(isinstance(x, xopt.CheckpointError) for x in found)
    raised(steps(lambda opt, comm: opt.load(none)), FileNotFoundError, "none", 0)
    good = tmp_path / "good.safetensors"
    xopt.Optimizer(tree(), RULE).save(good)
    damaged = bytearray(good.read_bytes())
    damaged[-3] ^= 1
    good.write_bytes(damaged)
    raised(steps(lambda opt, comm: opt.load(good)), xopt.CheckpointError, "checksum", 0)


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.safetensors"
    xopt.Optimizer(tree(), RULE).save(path)
    old = path.read_bytes()
    real = _safetensors._write_arrays

    def full(fd: int, tensors: Any) -> Any:
        real(fd, tensors[:3])
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(_safetensors, "_write_arrays", full)
    raised(steps(lambda opt, comm: opt.save(path)), OSError, "no space left", 0)
    raised(steps(lambda opt, comm: opt.save(path, extra={"a": object()})), TypeError, "extra", 0)
    raised(steps(lambda opt, comm: opt.save(path, keep=0)), ValueError, "keep", 0)
    extra = lambda comm: {"a": object()} if comm.rank == BAD else {}
    raised(steps(lambda opt, comm: opt.state_dict(extra=extra(comm))), TypeError, "extra")
    assert path.read_bytes() == old
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("bad", [0, BAD])
@pytest.mark.parametrize("many", [1, 4])
@pytest.mark.parametrize("what", ["save", "state_dict", "load"])
def test_no_memory_for_an_array(
    what: str, many: int, bad: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank has no room in the middle of a file: all raise, an old file stays, and what was half loaded is torn."""
    path, real = tmp_path / "run.safetensors", _sharded_files._room
    old = xopt.Optimizer(tree(), RULE).save(path).read_bytes()
    counts: dict[int, int] = {}

    def room(size: int) -> Any:
        left = counts[threading.get_ident()] = counts.get(threading.get_ident(), 0) - 1
        if not left:
            raise MemoryError("no room")
        return real(size)

    monkeypatch.setattr(_sharded_files, "_room", room)

    def one(comm: Rank) -> Any:
        opt = xopt.Optimizer(tree(), RULE, comm=comm)
        opt.step(gradients())
        want = settled(opt)
        if comm.rank == bad:
            counts[threading.get_ident()] = many
        error = None
        try:
            opt.state_dict() if what == "state_dict" else getattr(opt, what)(path)
        except BaseException as found:
            error = found
        counts.pop(threading.get_ident(), None)
        if what == "load":
            with pytest.raises(RuntimeError, match="interrupted while it wrote"):
                opt.step(gradients())
            opt.load(path)
        else:
            assert settled(opt) == want
            opt.step(gradients())
        return error

    raised(World(SIZE).run(one), MemoryError, "no room", bad)
    assert path.read_bytes() == old


@pytest.mark.parametrize("when", ["sums", "prepare", "write"])
def test_an_error_in_the_middle_of_a_step(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first write all go on; after it, all know that arrays are torn."""
    from xopt._engine.runners.tiled.runner import Tiled

    here = []

    def one(comm: Rank) -> Any:
        opt = xopt.Optimizer(tree(), RULE, comm=comm, runner="tiled")
        opt.step(gradients())
        before = settled(opt)
        if comm.rank == BAD:
            here.append(opt._executor)
        comm.largest(np.zeros(1, np.int64))
        error = None
        try:
            opt.step(gradients())
        except BaseException as found:
            error = found
        here.clear()
        comm.largest(np.zeros(1, np.int64))
        if when == "write":
            with pytest.raises(RuntimeError, match="interrupted while it wrote"):
                opt.step(gradients())
        else:
            assert settled(opt) == before
            opt.step(gradients())
        return error

    sums, prepare = Tiled.sums, Tiled.prepare

    def is_bad(work: Any) -> bool:
        return any(work.runner is x.runner and work.leaves and x.buckets[0].leaves is work.leaves for x in here)

    def bad_sums(self: Any, work: Any, *rest: Any) -> Any:
        if when == "sums" and is_bad(work):
            raise MemoryError("sums")
        return sums(self, work, *rest)

    def bad_prepare(self: Any, work: Any, *rest: Any) -> Any:
        job = prepare(self, work, *rest)
        if when == "prepare" and is_bad(work):
            raise MemoryError("prepare")

        def finish() -> Any:
            if is_bad(work):
                raise KeyboardInterrupt("write")
            return job()

        return finish if when == "write" else job

    monkeypatch.setattr(Tiled, "sums", bad_sums)
    monkeypatch.setattr(Tiled, "prepare", bad_prepare)
    raised(World(SIZE).run(one), KeyboardInterrupt if when == "write" else MemoryError, when)


def test_it_cannot_be_copied() -> None:
    import copy
    import pickle

    def one(comm: Rank) -> None:
        opt = xopt.Optimizer(tree(), RULE, comm=comm)
        for make in (pickle.dumps, copy.deepcopy, copy.copy):
            with pytest.raises(TypeError, match="cop"):
                make(opt)
        with pytest.raises(RuntimeError, match="state_dict"):
            opt.state  # noqa: B018

    assert World(2).run(one) == [None, None]


def test_another_array_in_the_place_of_a_parameter() -> None:
    def job(opt: Any, comm: Rank) -> None:
        own = opt.params["b"]
        try:
            if comm.rank == BAD:
                opt.params["b"] = own.copy()
            opt.step(gradients())
        finally:
            opt.params["b"] = own

    raised(steps(job), ValueError, r'params\["b"\]: not the array that this optimizer trains')


def test_the_same_exception_twice() -> None:
    """An exception that a function of the user keeps is told each time that it comes."""
    kept = OSError("no weather")

    def forecast(t: int) -> float:
        raise kept

    def one(comm: Rank) -> list[str]:
        opt = xopt.Optimizer(tree(), RULE, comm=comm)
        found = []
        for _ in range(3):
            with pytest.raises((OSError, RankError)) as error:
                opt.step(gradients(), **{"adam.lr": forecast if comm.rank == BAD else 0.1})
            found.append(type(error.value).__name__)
        opt.step(gradients())
        return found

    assert World(SIZE).run(one) == [["OSError" if rank == BAD else "RankError"] * 3 for rank in range(SIZE)]


def test_a_parameter_in_another_order_on_one_rank() -> None:
    """It would be cut on some ranks and not on others."""
    w = np.zeros((300, 1000))
    job = lambda comm: xopt.Optimizer({"w": np.asfortranarray(w) if comm.rank == BAD else w.copy()}, RULE, comm=comm)
    raised(World(SIZE).run(job), ValueError, r'params\["w"\]: order: not C on rank 1, but C on rank 0')


def test_an_exception_in_the_block_of_averages_waits_for_nobody() -> None:
    """The others may wait for that rank in the block."""
    world = World(SIZE)

    def one(comm: Rank) -> bool:
        opt = xopt.Optimizer(tree(), xopt.chain(RULE, xopt.EMA(0.5)), comm=comm)
        opt.step(gradients())
        before = settled(opt)
        with nullcontext() if comm.rank != BAD else pytest.raises(ValueError, match="no data"), opt.averaged():
            if comm.rank == BAD:
                raise ValueError("no data")
            world.mail[BAD, comm.rank].acquire(timeout=10)
        for rank in range(SIZE if comm.rank == BAD else 0):
            world.mail[BAD, rank].release()
        return settled(opt) == before

    assert world.run(one) == [True] * SIZE


def test_a_tree_without_arrays() -> None:
    assert World(2).run(lambda comm: xopt.Optimizer({}, RULE, comm=comm).step({})) == [{}, {}]


@pytest.mark.parametrize("module", ["communicator", "ranks", "torch_like"])
def test_a_communicator_in_a_module_of_any_name(module: str) -> None:
    kind = type("Mine", (Rank,), {"__module__": module})

    def one(comm: Rank) -> Any:
        comm.__class__ = kind
        return xopt.Optimizer(np.zeros(1), xopt.SGD(lr=1.0), comm=comm).step(np.ones(1)).tolist()

    assert World(2).run(one) == [[-2.0]] * 2


@pytest.mark.needs("torch")
def test_parameters_of_torch_that_get_other_memory() -> None:
    """What `p.data = x` puts there is evaluated; what was cut must stay in C order; a small one need not."""
    import torch

    def one(comm: Any) -> Any:
        p, q = torch.nn.Parameter(torch.zeros(300, 400)), torch.nn.Parameter(torch.zeros(4, 5))
        opt = xopt.Optimizer([p, q], xopt.SGD(lr=1.0), **({} if comm is None else {"comm": comm}))
        g = [torch.ones(300, 400) / 2, torch.ones(4, 5) / 2] if comm else [torch.ones(300, 400), torch.ones(4, 5)]
        opt.step(g)
        p.data, q.data = torch.full((300, 400), 7.0), torch.full((5, 4), 8.0).t()
        evaluated = [float(x.detach()[0, 0]) for x in opt.eval_params()]
        for _ in range(2):
            opt.step(g)
        found = evaluated, [x.detach().unique().tolist() for x in (p, q)]
        if comm is not None:
            p.data = torch.zeros(400, 300).t()
            with pytest.raises(ValueError, match="not in C order now"):
                opt.step(g)
            p.data = torch.zeros(300, 400)
            opt.step(g)
        return found

    assert World(2).run(one) == [one(None)] * 2
