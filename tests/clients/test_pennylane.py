"""A rule as a PennyLane optimizer: the ground state of a small Hamiltonian, beside PennyLane's own optimizers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import xopt

qml = pytest.importorskip("pennylane")
import numpy as onp
from pennylane import numpy as np

from xopt.adapters.pennylane import Optimizer

HAMILTONIAN = qml.Hamiltonian([0.5, -0.8, 0.3], [qml.Z(0) @ qml.Z(1), qml.X(0), qml.Y(1)])


@qml.qnode(qml.device("default.qubit", wires=2))
def energy(angles: Any, twist: Any, offset: Any) -> Any:
    for i in range(2):
        qml.RX(angles[0, i] + offset[i], wires=i)
        qml.RY(angles[1, i], wires=i)
    qml.CNOT(wires=[0, 1])
    qml.RY(twist, wires=1)
    return qml.expval(HAMILTONIAN)


def start() -> list[Any]:
    angles = np.array([[0.3, -0.2], [0.5, 0.1]], requires_grad=True)
    return [angles, np.array(0.4, requires_grad=True), np.array([0.1, 0.2], requires_grad=False)]


def run(opt: Any, steps: int = 12) -> tuple[list[Any], list[float]]:
    args, costs = start(), []
    for _ in range(steps):
        args, cost = opt.step_and_cost(energy, *args)
        costs.append(float(cost))
    return args, costs


def apart(got: list[Any], want: list[Any]) -> float:
    return max(float(onp.max(onp.abs(a - b))) for a, b in zip(got, want, strict=True))


BESIDE: dict[str, tuple[Any, Callable[[], Any]]] = {
    "gradient descent": (xopt.SGD(0.1), lambda: qml.GradientDescentOptimizer(0.1)),
    "momentum": (xopt.SGD(0.1, momentum=0.8, like="keras"), lambda: qml.MomentumOptimizer(0.1, 0.8)),
    "adam": (xopt.Adam(0.1, b2=0.99, like="thinc"), lambda: qml.AdamOptimizer(0.1)),
    "adam, eps": (
        xopt.Adam(0.1, b1=0.7, b2=0.9, eps=0.1, like="thinc"),
        lambda: qml.AdamOptimizer(0.1, beta1=0.7, beta2=0.9, eps=0.1),
    ),
    "adagrad": (xopt.Adagrad(0.1, eps=0.1, eps_mode="inside"), lambda: qml.AdagradOptimizer(0.1, eps=0.1)),
    "rmsprop": (
        xopt.RMSProp(0.1, rho=0.8, eps=0.1, eps_mode="inside"),
        lambda: qml.RMSPropOptimizer(0.1, decay=0.8, eps=0.1),
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_twelve_steps_beside_pennylane(name: str) -> None:
    """In float64: the same formulas in another order of operations."""
    rule, theirs = BESIDE[name]
    (got, ours), (want, other) = run(Optimizer(rule)), run(theirs())
    assert apart(got, want) <= 1e-12
    assert apart(got, start()) > 0.1
    assert ours == pytest.approx(other, abs=1e-12)
    assert ours[-1] < ours[0] - 0.1
    for x, first in zip(got, start(), strict=True):
        assert type(x) is type(first)
        assert x.requires_grad == first.requires_grad
        assert (x.shape, x.dtype) == (first.shape, first.dtype)


def test_another_step_size_from_step_to_step() -> None:
    """As momentum has it in PennyLane, where the step size is in the buffer."""
    rule, theirs = BESIDE["momentum"]
    ends = []
    for opt in (Optimizer(rule), theirs()):
        args = start()
        for k in range(12):
            opt.stepsize = 0.1 / (1 + k)
            args = opt.step(energy, *args)
        ends.append(args)
    assert apart(*ends) <= 1e-12
    assert apart(ends[0], run(theirs())[0]) > 1e-2


def test_nothing_that_is_passed_in_is_written() -> None:
    args = start()
    for x in args:
        x.flags.writeable = False
    opt = Optimizer(xopt.Adam(0.1))
    new = opt.step(energy, *args)
    assert apart(args, start()) == 0
    assert isinstance(new, list)
    assert new[2] is args[2]
    assert not any(onp.shares_memory(a, b) for a, b in zip(new[:2], args[:2], strict=True))
    state, before = opt.state, copy.deepcopy(opt.state)
    opt.step(energy, *new)
    assert repr(state) == repr(before)
    assert opt.state.step == 2


def test_one_argument_is_no_list() -> None:
    x = np.array([1.0, -2.0], requires_grad=True)
    opt = Optimizer(xopt.SGD(0.25))
    new = opt.step(lambda x: np.sum(x**2), x)
    assert new.tolist() == [0.5, -1.0]
    new, cost = opt.step_and_cost(lambda x, w: w * np.sum(x**2), new, w=2.0)
    assert (new.tolist(), cost) == ([0.0, 0.0], 2.5)
    assert type(opt.step(lambda x: x**2, np.array(2.0, requires_grad=True), grad_fn=lambda x: 4.0)).__name__ == "tensor"


def test_gradients_of_the_users() -> None:
    opt, calls = Optimizer(xopt.SGD(0.5)), []

    def cost(x: Any, y: Any) -> Any:
        calls.append(1)
        return onp.sum(x**2) + y**2

    x, y = np.array([1.0, 2.0], requires_grad=True), np.array(3.0, requires_grad=True)
    new = opt.step(cost, x, y, grad_fn=lambda x, y: (2 * x, 2 * y))
    assert not calls
    assert [n.tolist() for n in new] == [[0.0, 0.0], 0.0]
    new, value = opt.step_and_cost(cost, x, y, grad_fn=lambda x, y: (x, y))
    assert (value, len(calls)) == (14.0, 1)
    assert new[0].tolist() == [0.5, 1.0]
    for fn in (lambda x: x, lambda x: (x,)):  # what PennyLane takes, and what it says that it takes
        assert Optimizer(xopt.SGD(0.5)).step(None, x, grad_fn=fn).tolist() == [0.5, 1.0]
    assert Optimizer(xopt.SGD(0.5)).apply_grad((x,), (x,))[0].tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match=r"grad: 3 gradients, but 2 arguments are trainable: args\[0\], args\[1\]"):
        opt.step(cost, x, y, grad_fn=lambda x, y: (x, y, x))
    with pytest.raises(ValueError, match=r"grads\[1\]: shape \(2,\), but the parameter has \(\)"):
        opt.step(cost, x, y, grad_fn=lambda x, y: (x, x))
    assert opt.state.step == 2


@pytest.mark.parametrize("way", ["step", "step_and_cost", "grad_fn", "apply_grad"])
def test_a_rule_that_needs_the_loss_is_given_it(way: str) -> None:
    rule = xopt.chain(xopt.SGD(0.5), xopt.ReduceOnPlateau(factor=0.5, patience=0))
    opt, x, w = Optimizer(rule), np.array([8.0], requires_grad=True), onp.asarray([8.0])
    state = rule.init(w)
    for _ in range(4):
        flat = lambda x: 3.0 + 0.0 * np.sum(x)
        ones: dict[str, Any] = {"grad_fn": lambda x: onp.ones(1)}
        if way == "apply_grad":
            [x] = opt.apply_grad((onp.ones(1),), (x,), value=np.array(3.0))
        elif way == "grad_fn":
            x = opt.step(flat, x, **ones)
        elif way == "step":
            x = opt.step(lambda x: np.sum(x) - float(x._value[0]) + 3.0, x)
        else:
            x, _ = opt.step_and_cost(flat, x, **ones)
        w, state = rule.apply(w, onp.ones(1), state, value=3.0)
    assert x.tolist() == w.tolist()
    assert x[0] > 6.0  # not four whole steps
    with pytest.raises(TypeError, match="value: missing, but a component of this rule needs it"):
        opt.apply_grad((onp.ones(1),), (x,))


def test_an_argument_that_is_frozen_keeps_its_state() -> None:
    rule = xopt.chain(xopt.ClipByGlobalNorm(0.1), xopt.Adam(0.1))
    opt, args, want = Optimizer(rule), start(), start()
    state = rule.init({0: want[0], 1: want[1]})
    for k in range(4):
        args[1].requires_grad = want[1].requires_grad = k < 2
        grads = qml.grad(energy)(*want)
        own = {0: grads[0], 1: onp.asarray(grads[1])} if k < 2 else {0: grads, 1: None}
        last = args[1]
        args = opt.step(energy, *args)
        assert (args[1] is last) == (k >= 2)
        new, state = rule.apply({0: want[0], 1: want[1]}, own, state)
        want = [new[0], new[1] if k < 2 else want[1], want[2]]
    assert apart(args, want) == 0
    assert not args[1].requires_grad
    args[2].requires_grad = True
    with pytest.raises(
        ValueError, match=r"args\[2\]: trainable now, but the state is of args\[0\], args\[1\]; call reset"
    ):
        opt.step(energy, *args)
    opt.reset()
    assert opt.state is None
    assert len(opt.step(energy, *args)) == 3
    assert {*opt.state.slots["1.adam.m"]} == {0, 2}


def test_reset() -> None:
    opt = Optimizer(xopt.Adam(0.1))
    first = run(opt, 4)
    assert apart(run(opt, 4)[0], first[0]) > 1e-3
    opt.reset()
    assert run(opt, 4)[1] == first[1]


COPIES: dict[str, Callable[[Any], Any]] = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_goes_on_with_the_same_bits(how: str) -> None:
    opt = Optimizer(xopt.chain(xopt.Adam(0.1), xopt.EMA(0.9)))
    args, _ = run(opt, 4)
    other = COPIES[how](opt)
    assert apart(opt.step(energy, *args), other.step(energy, *args)) == 0
    assert opt.state.step == other.state.step == 5


def test_averages() -> None:
    rule, x = xopt.chain(xopt.SGD(1.0), xopt.EMA(0.5)), np.array([2.0], requires_grad=True)
    opt, y = Optimizer(rule), np.array(1.0, requires_grad=False)
    with pytest.raises(ValueError, match="averaged: no step was taken yet"):
        opt.averaged(x)
    new = opt.step(lambda x, y: y * np.sum(x), x, y)
    found = opt.averaged(*new)
    assert (new[0].tolist(), found[0].tolist()) == ([1.0], [1.5])
    assert found[0].requires_grad
    assert found[1] is y
    opt.reset()
    assert opt.averaged(opt.step(np.sum, x)).tolist() == [1.5]


def test_dtypes() -> None:
    """PennyLane's own make float64 of float32, and climb in the imaginary part: Autograd's gradient is a conjugate."""
    x = np.array([0.5, 0.2], dtype="float32", requires_grad=True)
    assert qml.GradientDescentOptimizer(0.1).step(lambda x: np.sum(x**2), x).dtype == "float64"
    assert Optimizer(xopt.SGD(0.1)).step(lambda x: np.sum(x**2), x).dtype == "float32"
    away = lambda z: np.real((z - (1 + 2j)) * np.conj(z - (1 + 2j)))
    z = np.array(0.5 - 1j, requires_grad=True)
    assert away(qml.GradientDescentOptimizer(0.1).step(away, z)) > away(z)
    opt = Optimizer(xopt.SGD(0.1))
    for _ in range(100):
        z = opt.step(away, z)
    assert abs(z - (1 + 2j)) < 1e-6


def test_stepsize() -> None:
    opt = Optimizer(xopt.Adam(0.1))
    assert opt.stepsize == 0.1
    opt.stepsize = 0.2
    assert opt.stepsize == opt.rule.lr == 0.2
    assert run(opt, 3)[1] == run(Optimizer(xopt.Adam(0.2)), 3)[1]
    opt.stepsize = falling = xopt.schedules.cosine(0.1, steps=8)
    assert opt.stepsize is falling
    with pytest.raises(ValueError, match=r"Adam\.lr: -0\.5"):
        opt.stepsize = -0.5
    assert opt.stepsize is falling
    two = Optimizer(xopt.Groups(xopt.SGD(0.1), ("1", xopt.Adam(0.2))))
    with pytest.raises(AttributeError, match=r"stepsize: .* has no single lr; it has sgd\.lr, adam\.lr"):
        two.stepsize  # noqa: B018
    with pytest.raises(TypeError, match="'lr' is ambiguous"):
        two.stepsize = 0.5
    assert isinstance(two, qml.GradientDescentOptimizer)


def test_errors() -> None:
    with pytest.raises(TypeError, match="rule: Adam, but it must be a rule or a chain; make an object of it"):
        Optimizer(xopt.Adam)
    opt, calls = Optimizer(xopt.SGD(0.1)), []
    seen = lambda *args: calls.append(args)
    with pytest.raises(TypeError, match=r"args: ndarray, float, of which nothing is trainable; make it pennylane"):
        opt.step(seen, onp.ones(2), 1.0)
    with pytest.raises(TypeError, match="args: nothing, of which nothing"):
        opt.step_and_cost(seen)

    class Tensor(onp.ndarray):
        requires_grad = True

    Tensor.__module__ = "torch.of.others"
    with pytest.raises(TypeError, match=r"args\[1\]: a torch.Tensor, but PennyLane's .* there are other adapters"):
        opt.step(seen, np.ones(2), onp.ones(2).view(Tensor))
    assert not calls
    with pytest.raises(ValueError, match="Autograd does not support differentiation of ints"):
        opt.step(np.sum, np.array([1, 2], requires_grad=True))
    x = np.array([1.0], requires_grad=True)
    opt = Optimizer(xopt.Adam(0.1))
    opt.step(np.sum, x)
    with pytest.raises(ValueError, match=r"shape \(1,\), but the parameter has \(2,\)"):
        opt.step(np.sum, np.array([1.0, 2.0], requires_grad=True))
    assert opt.state.step == 1
