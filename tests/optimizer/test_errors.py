"""What does not fit is refused with a message that names the path and both sides, before a byte is written."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import optree
import pytest
from conftest import Lib

import xopt
from xopt._engine.program import plan as _plan

NT = namedtuple("NT", "w b")


def ones(*shape: int, dtype: str = "float64") -> Any:
    return np.ones(shape, dtype)


def snapshot(opt: xopt.Optimizer) -> list[bytes]:
    leaves = [*optree.tree_leaves(opt.params), *optree.tree_leaves(opt.state.slots)]
    return [x.tobytes() for x in leaves] + [bytes(str((opt.state.step, opt.state.carry, opt.rule)), "utf-8")]


def refuses(exception: Any, message: str, params: Any, grads: Any, rule: Any = None, **overrides: Any) -> None:
    """Assert that both APIs refuse, with this message, and that nothing has moved."""
    rule = rule or xopt.Adam(lr=0.1)
    opt = xopt.Optimizer(params, rule)
    opt.step(optree.tree_map(np.ones_like, params))
    before = snapshot(opt)
    with pytest.raises(exception) as caught:
        opt.step(grads, **overrides)
    assert message in str(caught.value)
    assert snapshot(opt) == before
    state = rule.init(params)
    with pytest.raises(exception) as caught:
        rule.apply(params, grads, state, **overrides)
    assert message in str(caught.value)
    assert snapshot(opt) == before


@pytest.mark.parametrize(
    ("params", "grads", "message"),
    [
        ({"w": ones(2), "b": ones(1)}, {"w": ones(2)}, 'grads["b"]: missing, but the parameters have it'),
        ({"w": ones(2)}, {"w": ones(2), "b": ones(1)}, 'grads["b"]: not among the parameters'),
        ({"a": {"w": ones(2)}}, {"a": ones(2)}, 'grads["a"]: a ndarray, but the parameters have a dict'),
        ({"a": [ones(2), ones(1)]}, {"a": [ones(2)]}, 'grads["a"][1]: missing, but the parameters have it'),
        ({"a": [ones(2)]}, {"a": {"0": ones(2)}}, 'grads["a"]: a dict, but the parameters have a list of 1'),
        ([ones(2), None], [ones(2), ones(3)], "grads[1]: a ndarray, but the parameters have None"),
        (NT(ones(2), ones(1)), (ones(2), ones(1)), "grads: a tuple of 2, but the parameters have a NT"),
        ({"a": [ones(2)]}, None, "grads: None, but the parameters have a dict"),
    ],
)
def test_structure(params: Any, grads: Any, message: str) -> None:
    refuses(ValueError, message, params, grads)


@pytest.mark.parametrize(
    ("param", "grad", "exception", "message"),
    [
        (ones(3), ones(3, 1), ValueError, 'grads["l"]["w"]: shape (3, 1), but the parameter has (3,)'),
        (ones(1, 3), ones(3), ValueError, 'grads["l"]["w"]: shape (3,), but the parameter has (1, 3)'),
        (ones(3), ones(1, 3), ValueError, 'grads["l"]["w"]: shape (1, 3), but the parameter has (3,)'),
        (ones(3), ones(), ValueError, 'grads["l"]["w"]: shape (), but the parameter has (3,)'),
        (ones(3), ones(3, dtype="float32"), TypeError, "dtype float32, but the parameter has float64"),
        (ones(3, dtype="float32"), ones(3), TypeError, "dtype float64, but the parameter has float32"),
        (ones(3), ones(3, dtype="complex128"), TypeError, "dtype complex128, but the parameter has float64"),
        (ones(3), ones(3, dtype=">f8"), TypeError, "byte-swapped"),
        (ones(3), ones(3, dtype="int64"), TypeError, "dtype int64"),
        (ones(3), [1.0, 1.0, 1.0], TypeError, 'grads["l"]["w"]: a list, but the parameter is an array of numpy'),
        (ones(), 2.0, TypeError, 'grads["l"]["w"]: 2.0, a Python float, but the parameter is an array of numpy'),
        (ones(3), np.ma.masked_array(ones(3)), TypeError, "a numpy.MaskedArray"),
        (ones(1, 3), ones(1, 3).view(np.matrix), TypeError, "a numpy.matrix"),
    ],
)
def test_gradient(param: Any, grad: Any, exception: Any, message: str) -> None:
    refuses(exception, message, {"l": {"w": param}, "z": ones(4)}, {"l": {"w": grad}, "z": ones(4)})


def test_last_leaf_is_checked_before_the_first_is_written() -> None:
    refuses(ValueError, "grads[99]: shape", [ones(2) for _ in range(100)], [ones(2) for _ in range(99)] + [ones(3)])


@pytest.mark.parametrize("other", ["torch", "jax", "array_api_strict", "dask.array"])
def test_library_of_a_gradient(other: str) -> None:
    module = pytest.importorskip(other)
    module = module.numpy if other == "jax" else module
    name = other.partition(".")[0]
    refuses(
        TypeError, f"an array of {name}, but the parameter is an array of numpy", {"w": ones(3)}, {"w": module.ones(3)}
    )
    with pytest.raises(TypeError, match=rf'params\["v"\]: an array of numpy, but params\["u"\] is one of {name}'):
        xopt.Adam().init({"u": module.ones(3), "v": ones(3)})


def test_device_of_a_gradient() -> None:
    strict = pytest.importorskip("array_api_strict")
    p = strict.ones(3, dtype=strict.float32, device=strict.Device("device1"))
    g = strict.ones(3, dtype=strict.float32, device=strict.Device("device2"))
    opt = xopt.Optimizer({"w": p}, xopt.Adam())
    for call in (lambda: opt.step({"w": g}), lambda: xopt.Adam().apply({"w": p}, {"w": g}, xopt.Adam().init({"w": p}))):
        with pytest.raises(ValueError, match=r'grads\["w"\]: on device .*device2.*, but the parameter is on .*device1'):
            call()
    assert opt.state.step == 0


@pytest.mark.needs("torch")
def test_device_and_layout_of_a_torch_gradient() -> None:
    torch = pytest.importorskip("torch")
    p = torch.ones(3, 3)
    with pytest.raises(ValueError, match="grads: on device meta, but the parameter is on cpu"):
        xopt.Optimizer(p, xopt.Adam()).step(torch.ones(3, 3, device="meta"))
    with pytest.raises(TypeError, match="layout torch.sparse_coo.*to_dense"):
        xopt.Optimizer(p, xopt.Adam()).step(torch.ones(3, 3).to_sparse())
    assert bool((p == 1).all())


@pytest.mark.needs("torch")
def test_parts_of_an_array_of_several_processes_have_no_norm() -> None:
    torch = pytest.importorskip("torch")
    tensor, group = pytest.importorskip("torch.distributed.tensor"), torch.distributed
    group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        w = torch.nn.Parameter(tensor.distribute_tensor(torch.ones(4, 3), mesh, [tensor.Shard(0)]))
        rules = [
            xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(0.1)),
            xopt.Guard(xopt.SGD(0.1), "skip"),
            xopt.LAMB(0.1),
            xopt.Muon(0.1),
        ]
        for make in (xopt.Optimizer, lambda p, rule: rule.init(p)):
            with pytest.raises(TypeError, match=r'params\["w"\]: a DTensor, .*to_local'):
                make({"w": w}, xopt.SGD(0.1))
            for rule, name in zip(rules, ("clipbyglobalnorm", "nonfinite", "lamb", "muon"), strict=True):
                with pytest.raises(ValueError, match=rf'params\["w"\]: the local part of a DTensor, and .*{name}'):
                    make({"w": w.to_local()}, rule)
                make({"w": w.to_local().detach()}, rule)
        opt = xopt.Optimizer({"w": w.to_local()}, xopt.SGD(0.5))
        with pytest.raises(TypeError, match=r'grads\["w"\]: a DTensor'):
            opt.step({"w": w})
        opt.step({"w": torch.ones(4, 3)})
        assert (w.to_local() == 0.5).all()
    finally:
        group.destroy_process_group()


@pytest.mark.parametrize(
    ("params", "exception", "message"),
    [
        (np.arange(3), TypeError, "params: dtype int64, but a parameter must be one of float16"),
        ({"w": np.ones(3, bool)}, TypeError, 'params["w"]: dtype bool'),
        ({"w": np.ones(3, "longdouble")}, TypeError, 'params["w"]: dtype'),
        ({"w": np.ones(3, ml_dtypes.float8_e5m2)}, TypeError, 'params["w"]: dtype float8_e5m2'),
        ({"w": np.ones(3, ">f4")}, TypeError, 'params["w"]: dtype >f4 (byte-swapped)'),
        ({"w": np.array(["a"], object)}, TypeError, 'params["w"]: dtype object'),
        ({"w": [1.0, 2.0]}, TypeError, 'params["w"][0]: 1.0, a Python float, but a parameter must be an array'),
        ("w", TypeError, "params: a str, but a parameter must be an array"),
        (3.0, TypeError, "params: 3.0, a Python float"),
        (np.ma.masked_array(np.ones(3)), TypeError, "params: a numpy.MaskedArray"),
    ],
)
def test_parameters(params: Any, exception: Any, message: str) -> None:
    for make in (lambda: xopt.Optimizer(params, xopt.Adam()), lambda: xopt.Adam().init(params)):
        with pytest.raises(exception) as caught:
            make()
        assert message in str(caught.value)


def test_read_only_and_scalars_are_for_apply() -> None:
    frozen = ones(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r'params\["w"\]: a read-only array.*pass a copy, or use rule.apply'):
        xopt.Optimizer({"w": frozen}, xopt.Adam())
    with pytest.raises(TypeError, match=r'params\["w"\]: a NumPy scalar \(float64\), which cannot be written into'):
        xopt.Optimizer({"w": np.float64(1)}, xopt.Adam())
    for p in (frozen, np.float64(1)):
        new, _ = xopt.SGD(lr=0.5).apply(p, np.asarray(p), xopt.SGD().init(p))
        assert np.array_equal(new, np.asarray(p) / 2)
        assert type(new) is np.ndarray


def test_made_read_only_later() -> None:
    p = [ones(3), ones(3)]
    opt = xopt.Optimizer(p, xopt.SGD())
    p[1].flags.writeable = False
    with pytest.raises(ValueError, match=r"params\[1\]: a read-only array"):
        opt.step([ones(3), ones(3)])
    assert np.array_equal(p[0], ones(3))


def test_the_same_memory_twice() -> None:
    x, base = ones(6), ones(4, 6)
    cases = {
        "the same": [x, x],
        "a view": [x, x[:]],
        "overlapping": [base[:3], base[2:]],
        "reversed": [x[:4], x[::-1][:4]],
        "transposed": [base, base.T],
        "apart and overlapping": [ones(2), x[1:], ones(3), x[:2]],
    }
    for params in cases.values():
        with pytest.raises(ValueError, match=r"params\[\d\]: shares memory with params\[\d\]"):
            xopt.Optimizer(params, xopt.Adam())
    with pytest.raises(ValueError, match=r'params\["b"\]: shares memory with params\["a"\]'):
        xopt.Optimizer({"a": x, "b": x}, xopt.Adam())
    with pytest.raises(ValueError, match="elements of this array share memory"):
        xopt.Optimizer(np.lib.stride_tricks.as_strided(x, (4, 3), (8, 8)), xopt.Adam())


def test_memory_that_only_looks_shared() -> None:
    base = ones(4, 6)
    params = [base[:, ::2], base[:2, 1::2], base[2:, 1::2], ones(0), ones(0), base[:0]]
    opt = xopt.Optimizer(params, xopt.SGD(lr=1.0))
    opt.step([ones(*x.shape) for x in params])
    assert np.array_equal(base, np.zeros((4, 6)))


def test_a_gradient_that_is_a_parameter() -> None:
    p = [ones(4), ones(4)]
    opt = xopt.Optimizer(p, xopt.SGD(lr=0.5))
    for grads, text in [
        ([p[0], ones(4)], r"grads\[0\]: shares memory with params\[0\]"),
        ([ones(4), p[0]], r"grads\[1\]: shares memory with params\[0\]"),
        ([ones(4), p[1][::-1]], r"grads\[1\]: shares memory with params\[1\]"),
        ([memoryview_of(p[1]), ones(4)], r"grads\[0\]: shares memory with params\[1\]"),
    ]:
        with pytest.raises(ValueError, match=text):
            opt.step(grads)
    assert all(np.array_equal(x, ones(4)) for x in p)
    flat = np.zeros((2, 8))  # parameters and gradients in one buffer, side by side, are fine
    opt = xopt.Optimizer(flat[0], xopt.SGD(lr=1.0))
    flat[1] = 1
    opt.step(flat[1])
    assert np.array_equal(flat[0], -np.ones(8))


def memoryview_of(x: Any) -> Any:
    return np.frombuffer(memoryview(x), x.dtype)


@pytest.mark.needs("torch")
def test_torch_memory() -> None:
    torch = pytest.importorskip("torch")
    p = torch.ones(4)
    with pytest.raises(ValueError, match=r"params\[1\]: shares memory with params\[0\]"):
        xopt.Optimizer([p, p[1:]], xopt.Adam())
    with pytest.raises(ValueError, match="elements of this array share memory"):
        xopt.Optimizer(torch.ones(1).expand(3), xopt.Adam())
    opt = xopt.Optimizer([p[::2], p[1::2]], xopt.SGD(lr=1.0))
    with pytest.raises(ValueError, match=r"grads\[0\]: shares memory with params\[1\]"):
        opt.step([p[1::2], torch.ones(2)])
    opt.step([torch.ones(2), torch.ones(2)])
    assert bool((p == 0).all())


@pytest.mark.parametrize(
    ("rule", "overrides", "exception", "message"),
    [
        (None, {"learning_rate": 0.1}, TypeError, "no hyperparameter 'learning_rate'; there are"),
        (None, {"lr": -0.1}, ValueError, "Adam.lr: -0.1 is out of range, it must be ≥ 0"),
        (None, {"b1": 1.0}, ValueError, "Adam.b1: 1.0 is out of range, it must be ≥ 0 and < 1"),
        (None, {"lr": float("nan")}, ValueError, "Adam.lr: nan, but it must be finite"),
        (None, {"lr": float("inf")}, ValueError, "Adam.lr: inf, but it must be finite"),
        (None, {"lr": 10**400}, TypeError, "is not a real number"),
        (None, {"lr": True}, TypeError, "Adam.lr: True is a bool"),
        (None, {"lr": np.True_}, TypeError, "is a bool"),
        (None, {"lr": "0.1"}, TypeError, "Adam.lr: '0.1' is a str"),
        (None, {"lr": ones(2)}, TypeError, "Adam.lr"),
        (None, {"lr": None}, TypeError, "another formula"),
        (None, {"amsgrad": True}, TypeError, "'amsgrad' is a static field"),
        (None, {"weight_decay": 0.1}, TypeError, "weight_decay: 0.1 in place of None is another formula"),
        (xopt.SGD(lr=lambda t: float("nan")), {}, ValueError, "SGD.lr: nan, but it must be finite (the schedule"),
        (xopt.SGD(lr=lambda t: -1.0), {}, ValueError, "SGD.lr: -1.0 is out of range"),
        (xopt.SGD(lr=lambda t: "0.1"), {}, TypeError, "SGD.lr: '0.1' is a str"),
        (xopt.SGD(lr=lambda t: True), {}, TypeError, "SGD.lr: True is a bool"),
        (xopt.SGD(lr=lambda t: None), {}, TypeError, "SGD.lr: None is a NoneType"),
        (xopt.SGD(lr=lambda t: ones(2)), {}, TypeError, "SGD.lr"),
        (xopt.SGD(lr=lambda t: 1 / 0), {}, ZeroDivisionError, "division"),
        (
            xopt.chain(xopt.ClipByNorm(1.0), xopt.ClipByNorm(2.0), xopt.SGD()),
            {"max_norm": 1.0},
            TypeError,
            "'max_norm' is ambiguous: say 0.clipbynorm.max_norm or 1.clipbynorm.max_norm",
        ),
    ],
)
def test_hyperparameters(
    rule: Any, overrides: Any, exception: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_plan, "_plans", {})  # also where the chain was never recorded, it is the step that raises
    rule = rule or xopt.Adam(lr=0.1)
    p = ones(3)
    opt = xopt.Optimizer(p, rule)
    before = snapshot(opt)
    with pytest.raises(exception) as caught:
        opt.step(ones(3), **overrides)
    assert message in str(caught.value)
    if overrides:
        with pytest.raises(exception) as caught:
            opt.set(**overrides)
        assert message in str(caught.value)
    with pytest.raises(exception) as caught:
        rule.apply(p, ones(3), rule.init(p), **overrides)
    assert message in str(caught.value)
    assert snapshot(opt) == before


def test_set_changes_all_or_nothing() -> None:
    opt = xopt.Optimizer(ones(3), xopt.Adam(lr=0.1))
    with pytest.raises(ValueError, match="b1"):
        opt.set(lr=0.5, b1=2.0)
    assert opt.hyperparams()["lr"] == 0.1


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        (lambda s: xopt.SGD(momentum=0.9).init(ones(3)), ValueError, "belongs to another rule or to other options"),
        (lambda s: xopt.Adam(amsgrad=True).init(ones(3)), ValueError, "belongs to another rule or to other options"),
        (lambda s: xopt.AdamW().init(ones(3)), ValueError, "belongs to another rule"),
        (
            lambda s: xopt.Adam().init(ones(4)),
            ValueError,
            'state.slots["0.adam.m"]: shape (4,), but the parameter has (3,)',
        ),
        (
            lambda s: xopt.Adam().init(ones(3, dtype="float32")),
            TypeError,
            "dtype float32, but the parameter has float64",
        ),
        (lambda s: xopt.Adam().init({"w": ones(3)}), TypeError, 'state.slots["0.adam.m"]: a dict'),
        (lambda s: s._replace(step=-1), ValueError, "state.step: -1"),
        (lambda s: s._replace(step=1.5), TypeError, "state.step: 1.5"),
        (lambda s: s._replace(step=True), TypeError, "state.step: True"),
        (lambda s: s._replace(carry={"d": 1.0}), ValueError, "state.carry: ['d'], but this rule keeps []"),
        (lambda s: s._replace(slots=[]), TypeError, "state.slots: a list"),
        (lambda s: {}, TypeError, "state: a dict, but rule.init returns a State"),
        (lambda s: None, TypeError, "state: a NoneType"),
    ],
)
def test_state_of_another_rule(change: Any, exception: Any, message: str) -> None:
    rule = xopt.Adam()
    with pytest.raises(exception) as caught:
        rule.apply(ones(3), ones(3), change(rule.init(ones(3))))
    assert message in str(caught.value)


def test_half_precision_state_is_named() -> None:
    rule, p = xopt.Adam(), ones(3, dtype="float16")
    state = rule.init(p)
    bad = {n: x.astype("float16") for n, x in state.slots.items()}
    with pytest.raises(TypeError, match="dtype float16, but the rule keeps float32"):
        rule.apply(p, p, state._replace(slots=bad))


def test_chains() -> None:
    with pytest.raises(ValueError, match=r"chain: 0 rules in \(ClipByNorm\), but a chain has exactly one"):
        xopt.chain(xopt.ClipByNorm(1.0))
    with pytest.raises(ValueError, match=r"chain: 0 rules in \(nothing\)"):
        xopt.chain()
    with pytest.raises(ValueError, match=r"chain: 2 rules in \(Adam, SGD\)"):
        xopt.chain(xopt.Adam(), xopt.SGD())
    with pytest.raises(ValueError, match="chain: 2 rules"):
        xopt.chain(xopt.chain(xopt.Adam()), xopt.SGD())
    with pytest.raises(TypeError, match="is neither a transform, a rule nor a chain"):
        xopt.chain(xopt.Adam)  # type: ignore[arg-type]


def test_optimizer_needs_a_rule() -> None:
    for rule, text in [
        (xopt.Adam, "rule: Adam, but it must be a rule or a chain; make an object of it"),
        (xopt.ClipByNorm(1.0), "rule: ClipByNorm, but it must be a rule or a chain; put it in a chain with a rule"),
        ("adam", "rule: str"),
    ]:
        with pytest.raises(TypeError, match=text):
            xopt.Optimizer(ones(3), rule)  # type: ignore[arg-type]


def test_constructors() -> None:
    with pytest.raises(TypeError, match="ClipByNorm needs max_norm"):
        xopt.ClipByNorm()  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"ClipByNorm.max_norm: 0.0 is out of range, it must be > 0"):
        xopt.ClipByNorm(0.0)
    with pytest.raises(TypeError, match="Adam: lr is given twice"):
        xopt.Adam(0.1, lr=0.1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="SGD takes 5 positional arguments"):
        xopt.SGD(0.1, 0.9, 0.1, True, "ema", 3)  # type: ignore[misc, call-arg]
    with pytest.raises(AttributeError, match="Adam is immutable; use replace"):
        xopt.Adam().lr = 0.1
    with pytest.raises(AttributeError, match="Adam is immutable"):
        del xopt.Adam().lr


def test_unknown_runner() -> None:
    with pytest.raises(ValueError, match='runner=\'warp\': there are "eager", "tiled", "llvm" and "cuda"'):
        xopt.Optimizer(ones(3), xopt.Adam(), runner="warp")
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(ValueError, match="needs arrays that share memory with NumPy; these are of array_api_strict"):
        xopt.Optimizer(strict.ones(3), xopt.Adam(), runner="tiled")


def test_none_gradients_leave_their_leaf_alone(lib: Lib) -> None:
    rule = xopt.chain(xopt.ClipByGlobalNorm(5.0), xopt.AdamW(lr=0.1))
    params = {"a": lib.array(ones(3)), "b": lib.array(ones(2))}
    state = rule.init(params)
    new, after = rule.apply(params, {"a": lib.array(3 * ones(3)), "b": None}, state)
    assert np.array_equal(lib.numpy(new["b"]), ones(2))
    assert np.all(lib.numpy(new["a"]) < 1)
    assert all(np.array_equal(lib.numpy(x["b"]), np.zeros(2)) for x in after.slots.values())
    norm = np.sqrt(27)  # of what has a gradient
    np.testing.assert_allclose(
        lib.numpy(after.slots["1.adamw.m"]["a"]), 0.1 * 3 * ones(3) * min(1, 5 / norm), rtol=1e-12
    )
    change, _ = rule.updates(params, {"a": None, "b": None}, state)
    assert all(np.array_equal(lib.numpy(x), np.zeros(x.shape)) for x in change.values())
    if lib.guise != "read-only":
        mine = {"a": lib.array(ones(3)), "b": lib.array(ones(2))}
        opt = xopt.Optimizer(mine, rule)
        opt.step({"a": lib.array(3 * ones(3)), "b": None})
        assert np.array_equal(lib.numpy(opt.params["b"]), ones(2))
        np.testing.assert_allclose(lib.numpy(opt.params["a"]), lib.numpy(new["a"]), rtol=1e-14)


def test_trees_of_every_kind(rng: np.random.Generator) -> None:
    @dataclass
    class Layer:
        w: Any
        b: Any

    @dataclass(frozen=True)
    class Model:
        first: Layer
        rest: Any

    draw = lambda: Model(
        Layer(rng.standard_normal((2, 3)), rng.standard_normal(3)),
        [NT(rng.standard_normal(2), {"x": rng.standard_normal(())}), OrderedDict(z=rng.standard_normal(1), a=None), ()],
    )
    params, grads = draw(), draw()
    rule = xopt.SGD(lr=0.5)
    new, _ = rule.apply(params, grads, rule.init(params))
    assert type(new) is Model
    assert type(new.first) is Layer
    assert type(new.rest[0]) is NT
    assert list(new.rest[1]) == ["z", "a"]
    assert np.array_equal(new.first.w, params.first.w - 0.5 * grads.first.w)
    assert np.array_equal(new.rest[0].b["x"], params.rest[0].b["x"] - 0.5 * grads.rest[0].b["x"])
    opt = xopt.Optimizer(params, rule)
    opt.step(grads)
    assert np.array_equal(params.rest[1]["z"], new.rest[1]["z"])
    bad = Model(Layer(grads.first.w, ones(4)), grads.rest)
    with pytest.raises(ValueError, match=r"grads\.first\.b: shape \(4,\), but the parameter has \(3,\)"):
        opt.step(bad)
    with pytest.raises(ValueError, match=r"grads\.first: a dict, but the parameters have a Layer"):
        opt.step(Model({}, grads.rest))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'grads\.rest\[0\]\.b\["x"\]: missing'):
        opt.step(Model(grads.first, [NT(grads.rest[0].w, {}), *grads.rest[1:]]))


def test_order_of_dict_keys_does_not_matter() -> None:
    a, b = ones(2), 2 * ones(3)
    rule = xopt.SGD(lr=1.0)
    new, _ = rule.apply({"a": a, "b": b}, {"b": b, "a": a}, rule.init({"b": b, "a": a}))
    assert np.array_equal(new["a"], [0, 0])
    assert np.array_equal(new["b"], [0, 0, 0])


def test_an_empty_tree_is_a_tree() -> None:
    for empty in ({}, [], None, {"a": None}):
        rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam())
        state = rule.init(empty)
        new, state = rule.apply(empty, empty, state)
        assert new == empty
        assert state.step == 1
        xopt.Optimizer(empty, rule).step(empty)
