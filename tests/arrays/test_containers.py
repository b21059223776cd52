"""Trees of every kind of container: what is plain is accepted, and comes back as what it was."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree
import pytest

import xopt


class Named(dict):  # type: ignore[type-arg]
    """A dict with a name."""

    def __init__(self, name: str, **inside: Any) -> None:
        super().__init__(inside)
        self.name = name


class Ordered(OrderedDict):  # type: ignore[type-arg]
    pass


class Filled(defaultdict):  # type: ignore[type-arg]
    pass


class Stack(list):  # type: ignore[type-arg]
    pass


class Pair(tuple):  # type: ignore[type-arg]
    __slots__ = ()


Point = namedtuple("Point", "x y")
Other = namedtuple("Other", "x y")


@dataclass
class Layer:
    w: Any


def one(k: float = 1.0) -> Any:
    return np.full(2, float(k))


MADE = {
    "dict": lambda k=1.0: Named("n", b=one(k), a=[one(k)]),
    "OrderedDict": lambda k=1.0: Ordered(b=one(k), a=one(k)),
    "defaultdict": lambda k=1.0: Filled(list, {"b": one(k)}),
    "list": lambda k=1.0: Stack([one(k), {"w": one(k)}]),
    "tuple": lambda k=1.0: Pair((one(k), Stack([one(k)]))),
    "dataclass": lambda k=1.0: Layer(Stack([one(k)])),
}


@pytest.mark.parametrize("kind", MADE)
def test_subclasses_of_containers_come_back_as_what_they_are(kind: str) -> None:
    params, rule = MADE[kind](), xopt.chain(xopt.SGD(lr=0.5), xopt.EMA(0.0))
    state = rule.init(params)
    new, state = rule.apply(params, MADE[kind](), state)
    assert type(new) is type(params)
    assert type(state.slots["1.ema.average"]) is type(params)
    leaves = optree.tree_leaves(new, namespace="xopt")
    assert [x.tolist() for x in leaves] == [[0.5, 0.5]] * len(leaves)
    assert len(leaves) == len(optree.tree_leaves(MADE[kind](), namespace="xopt"))
    assert type(rule.eval_params(new, state)) is type(params)
    opt = xopt.Optimizer(params, rule)
    assert opt.step(MADE[kind]()) is params
    assert [x.tolist() for x in optree.tree_leaves(params, namespace="xopt")] == [[0.5, 0.5]] * len(leaves)
    if kind == "dict":
        assert (new.name, list(new)) == ("n", ["b", "a"])
    if kind == "OrderedDict":
        new.move_to_end("b")
        assert list(new) == ["a", "b"]
    if kind == "defaultdict":
        assert new["none"] == []


@pytest.mark.parametrize(
    ("params", "grads"),
    [
        ([one(), one()], (one(1), one(2))),
        ((one(), one()), [one(1), one(2)]),
        (Stack([one(), one()]), (one(1), one(2))),
        ([one(), one()], Pair((one(1), one(2)))),
        ({"a": one(), "b": one()}, OrderedDict(b=one(2), a=one(1))),
        ({"a": one(), "b": one()}, Named("g", b=one(2), a=one(1))),
        (Ordered(b=one(), a=one()), {"a": one(1), "b": one(2)}),
        ({"l": [one(), (one(), None)]}, defaultdict(list, l=(one(1), [one(2), None]))),
        ([one(), one()], (one(1), None)),
    ],
)
def test_what_belongs_together_is_plain(params: Any, grads: Any) -> None:
    rule = xopt.SGD(lr=0.5)
    new, _ = rule.apply(params, grads, rule.init(params))
    assert type(new) is type(params)
    leaves = optree.tree_leaves(new, namespace="xopt")
    if isinstance(new, dict) and "a" in new:
        leaves = [new["a"], new["b"]]
    last = 1.0 if isinstance(grads, tuple) and grads[-1] is None else 0.0
    assert [x.tolist() for x in leaves] == [[0.5, 0.5], [last, last]]
    opt = xopt.Optimizer(params, rule)
    opt.step(grads)
    assert [x.tolist() for x in optree.tree_leaves(params, namespace="xopt")] == [
        x.tolist() for x in optree.tree_leaves(new, namespace="xopt")
    ]


@pytest.mark.parametrize(
    ("params", "grads", "words"),
    [
        ([one(), one()], (one(),), r"grads\[1\]: missing"),
        ([one()], (one(), one()), r"grads\[1\]: not among the parameters"),
        ({"a": one()}, Named("g", b=one()), r'grads\["a"\]: missing'),
        ({"a": [one()]}, Named("g", a={"0": one()}), r'grads\["a"\]: a dict, but the parameters have a list'),
        (Point(one(), one()), (one(), one()), "grads: a tuple of 2, but the parameters have a Point"),
        (Point(one(), one()), Other(one(), one()), "grads: an Other, but the parameters have a Point"),
        ([one(), one()], {"0": one(), "1": one()}, "grads: a dict, but the parameters have a list of 2"),
        ({"a": one()}, UserDict(a=one()), "grads: an? UserDict, but the parameters have a dict"),
    ],
)
def test_what_is_not_plain_is_refused(params: Any, grads: Any, words: str) -> None:
    rule = xopt.SGD(lr=0.5)
    with pytest.raises(ValueError, match=words):
        rule.apply(params, grads, rule.init(params))


# --- classes of arrays


class Marked(np.ndarray):
    """An array with a mark, as `pennylane.numpy.tensor`: its mark goes with it."""

    mark: Any

    def __array_finalize__(self, obj: Any) -> None:
        self.mark = getattr(obj, "mark", None)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        made = np.asarray(array).view(Marked)
        made.mark = self.mark
        return made


class Quantity(np.ndarray):
    unit = "m"


def marked(x: Any) -> Any:
    made = np.asarray(x, float).view(Marked)
    made.mark = "trained"
    return made


@pytest.mark.parametrize("runner", ["eager", "tiled"])
def test_arrays_of_another_class(runner: Any) -> None:
    params, rule = {"a": marked([1.0, 2.0]), "b": np.ones(2)}, xopt.chain(xopt.SGD(lr=0.5), xopt.EMA(0.0))
    grads = {"a": marked([1.0, 1.0]), "b": np.ones(2).view(Marked)}
    new, state = rule.apply(params, grads, rule.init(params), runner=runner)
    assert (type(new["a"]), new["a"].mark, type(new["b"])) == (Marked, "trained", np.ndarray)
    assert new["a"].tolist() == [0.5, 1.5]
    assert type(state.slots["1.ema.average"]["a"]) is np.ndarray
    assert rule.eval_params(new, state)["a"].mark == "trained"
    opt = xopt.Optimizer(params, rule, runner=runner)
    assert opt.step(grads) is params
    assert (params["a"].tolist(), params["a"].mark) == ([0.5, 1.5], "trained")
    params["a"] = marked([1.0, 1.0])
    with pytest.raises(ValueError, match=r'params\["a"\]: not the array'):
        opt.step(grads)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("kind", ["matrix", "masked", "unit"])
def test_arrays_that_mean_something_else(kind: str) -> None:
    make = {"matrix": np.matrix, "masked": np.ma.masked_array, "unit": lambda x: np.asarray(x).view(Quantity)}[kind]
    rule = xopt.SGD(lr=0.5)
    with pytest.raises(TypeError, match=r"params: a .*, but a parameter must be an array"):
        rule.init(make([1.0, 2.0]))
    p = np.ones((1, 2))
    with pytest.raises(TypeError, match=r"grads: a .*, but the parameter is an array of numpy"):
        rule.apply(p, make([[1.0, 2.0]]), rule.init(p))


# --- what JAX knows


class Frozen:
    """A mapping whose keys JAX knows, as `FrozenDict` and `nnx.State`."""

    def __init__(self, inside: Any) -> None:
        self.inside = dict(inside)


class Module:
    """A module with something fixed, as those of Equinox."""

    def __init__(self, w: Any, name: str) -> None:
        self.w, self.name = w, name


@dataclass
class Static:
    """A dataclass of which JAX takes one field as fixed."""

    w: Any
    n: int


class Bare:
    """What JAX knows by number only."""

    def __init__(self, *inside: Any) -> None:
        self.inside = inside


@pytest.fixture(scope="module")
def jnp() -> Any:
    jax = pytest.importorskip("jax")
    tree = jax.tree_util
    tree.register_pytree_with_keys(
        Frozen,
        lambda x: ([(tree.DictKey(k), x.inside[k]) for k in sorted(x.inside)], tuple(sorted(x.inside))),
        lambda keys, children: Frozen(zip(keys, children, strict=True)),
    )
    tree.register_pytree_with_keys(
        Module, lambda x: ([(tree.GetAttrKey("w"), x.w)], x.name), lambda name, children: Module(*children, name)
    )
    tree.register_dataclass(Static, data_fields=["w"], meta_fields=["n"])
    tree.register_pytree_node(Bare, lambda x: (x.inside, None), lambda _, children: Bare(*children))
    return jax.numpy


@pytest.mark.needs("jax")
def test_nodes_of_jax(jnp: Any) -> None:
    import jax

    make = lambda k: Frozen({"m": Module([jnp.full(2, k)], "first"), "s": Static(jnp.full(2, k), 3), "b": Bare(jnp.full(2, k), None)})  # fmt: skip  # noqa: E501
    params, rule = make(1.0), xopt.SGD(lr=0.25, momentum=0.5)
    loss = lambda p: sum(jnp.sum(x**2) for x in jax.tree_util.tree_leaves(p))
    state = rule.init(params)
    for step in (rule.apply, jax.jit(rule.apply)):
        new, after = step(params, jax.grad(loss)(params), state)
        assert (type(new), type(new.inside["m"]), new.inside["m"].name) == (Frozen, Module, "first")
        assert (new.inside["s"].n, type(new.inside["s"])) == (3, Static)
        assert new.inside["m"].w[0].tolist() == new.inside["s"].w.tolist() == [0.5, 0.5]
        assert type(after.slots["0.sgd.m"]) is Frozen
    opt = xopt.Optimizer(params, rule)
    assert opt.step(make(2.0)).inside["b"].inside[0].tolist() == [0.5, 0.5]
    assert {*opt.state_dict()["state"]["0.sgd.m"]} == {"b/0", "m/w/0", "s/w"}
    assert isinstance(opt.params, Frozen)


@pytest.mark.needs("jax")
def test_errors_in_nodes_of_jax_have_paths(jnp: Any) -> None:
    rule, w = xopt.SGD(lr=0.5), jnp.ones(2)
    params = Frozen({"m": Module(w, "first"), "b": Bare(w)})
    state = rule.init(params)
    for grads, words in [
        (Frozen({"m": Module(jnp.ones(3), "first"), "b": Bare(w)}), r'grads\["m"\]\.w: shape \(3,\)'),
        (Frozen({"m": Module(w, "first"), "b": Bare(jnp.ones(3))}), r'grads\["b"\]\[0\]: shape \(3,\)'),
        (Frozen({"m": Module(w, "second"), "b": Bare(w)}), r'grads\["m"\]: what is fixed in this Module is not what'),
        (Frozen({"b": Bare(w)}), r'grads\["m"\]: missing, but the parameters have it'),
        ([w], "grads: a list of 1, but the parameters have a Frozen"),
    ]:
        with pytest.raises(ValueError, match=words):
            rule.apply(params, grads, state)


@pytest.mark.needs("jax")
def test_nodes_of_jax_with_numpy_in_them(jnp: Any) -> None:
    params, rule = Module({"a": np.ones(2)}, "n"), xopt.SGD(lr=0.5)
    opt = xopt.Optimizer(params, rule)
    assert opt.step(Module({"a": np.ones(2)}, "n")) is params
    assert params.w["a"].tolist() == [0.5, 0.5]
    params.w = {"a": np.ones(2)}
    with pytest.raises(ValueError, match=r'params\.w\["a"\]: not the array'):
        opt.step(Module({"a": np.ones(2)}, "n"))


def test_no_library_is_imported_for_a_container() -> None:
    code = """
import sys, numpy as np, xopt
class Own:
    pass
try:
    xopt.SGD().init({"a": Own()})
except TypeError as error:
    assert 'params["a"]: a __main__.Own' in str(error) or 'params["a"]: a' in str(error), error
assert "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
