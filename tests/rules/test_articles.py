"""The five articles that this project started from: their code in plain float64 NumPy, and xopt equal to it.

Each class or function below is an article's formula as it was published, not a call of the oracle in `catalog.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xopt
from xopt import schedules
from xopt.nn import Dropout

A = Any
STEPS = 50


def assert_same(rule: Any, theirs: Callable[[A, A], A], rng: np.random.Generator, steps: int = STEPS) -> None:
    """Run 50 steps on a noisy quadratic, theirs and ours, each along its own path."""
    w = v = rng.standard_normal((4, 3))
    state = rule.init(v)
    for _ in range(steps):
        noise = 0.1 * rng.standard_normal(w.shape)
        w = theirs(w, 2 * w + noise)
        v, state = rule.apply(v, 2 * v + noise, state)
        np.testing.assert_allclose(v, w, rtol=1e-12, atol=1e-12)
    assert not np.allclose(w, rng.standard_normal((4, 3)))


# ---- 1. objects with update(w, grad) -> w


class Article1AdaGrad:
    def __init__(self, lr: float = 0.01) -> None:
        self.lr, self.eps, self.G = lr, 1e-8, None

    def update(self, w: A, grad: A) -> A:
        if self.G is None:
            self.G = np.zeros(np.shape(w))
        self.G += np.power(grad, 2)
        return w - self.lr * grad / np.sqrt(self.G + self.eps)


class Article1Adadelta:
    def __init__(self, rho: float = 0.95, eps: float = 1e-6) -> None:
        self.rho, self.eps, self.E_w, self.E_g = rho, eps, None, None

    def update(self, w: A, grad: A) -> A:
        if self.E_g is None:
            self.E_w, self.E_g = np.zeros(np.shape(w)), np.zeros(np.shape(w))
        self.E_g = self.rho * self.E_g + (1 - self.rho) * np.power(grad, 2)
        step = np.sqrt(self.E_w + self.eps) / np.sqrt(self.E_g + self.eps) * grad
        self.E_w = self.rho * self.E_w + (1 - self.rho) * np.power(step, 2)
        return w - step


class Article1RMSprop:
    def __init__(self, lr: float = 0.01, rho: float = 0.9) -> None:
        self.lr, self.rho, self.eps, self.E = lr, rho, 1e-8, None

    def update(self, w: A, grad: A) -> A:
        if self.E is None:
            self.E = np.zeros(np.shape(w))
        self.E = self.rho * self.E + (1 - self.rho) * np.power(grad, 2)
        return w - self.lr * grad / np.sqrt(self.E + self.eps)


class Article1Adam:
    """Its bias correction divides by 1 - β at every step: frozen at the first."""

    def __init__(self, lr: float = 0.001, b1: float = 0.9, b2: float = 0.999) -> None:
        self.lr, self.b1, self.b2, self.eps, self.m, self.v = lr, b1, b2, 1e-8, None, None

    def update(self, w: A, grad: A) -> A:
        if self.m is None:
            self.m, self.v = np.zeros(np.shape(w)), np.zeros(np.shape(w))
        self.m = self.b1 * self.m + (1 - self.b1) * grad
        self.v = self.b2 * self.v + (1 - self.b2) * np.power(grad, 2)
        m_hat, v_hat = self.m / (1 - self.b1), self.v / (1 - self.b2)
        return w - self.lr * m_hat / (np.sqrt(v_hat) + self.eps)


@pytest.mark.parametrize(
    ("theirs", "rule"),
    [
        (Article1AdaGrad(), xopt.Adagrad(lr=0.01, eps=1e-8, eps_mode="inside")),
        (Article1Adadelta(), xopt.Adadelta(rho=0.95, eps=1e-6)),
        (Article1RMSprop(), xopt.RMSProp(lr=0.01, rho=0.9, eps=1e-8, eps_mode="inside")),
        (Article1Adam(), xopt.Adam(lr=0.001, bias="first")),
    ],
    ids=lambda x: type(x).__name__,
)
def test_article_1(theirs: Any, rule: Any, rng: np.random.Generator) -> None:
    assert_same(rule, theirs.update, rng)


# ---- 2. a base class with lr and weight_decay; the decay is not multiplied by lr


class Article2:
    def __init__(self, lr: float, weight_decay: float = 0.0) -> None:
        self.lr, self.weight_decay, self.b, self.s, self.t = lr, weight_decay, 0.0, 0.0, 0

    def decrement(self, g: A) -> A:
        raise NotImplementedError

    def step(self, params: A, g: A) -> A:
        decrement = self.decrement(g)
        if self.weight_decay:
            decrement = decrement + self.weight_decay * params
        return params - decrement


class Article2SGD(Article2):
    def decrement(self, g: A) -> A:
        return self.lr * g


class Article2Momentum(Article2):
    def decrement(self, g: A) -> A:
        self.b = 0.9 * self.b + 0.1 * g
        return self.lr * self.b


class Article2Adagrad(Article2):
    def decrement(self, g: A) -> A:
        self.s = self.s + g**2
        return self.lr * g / (np.sqrt(self.s) + 1e-8)


class Article2RMSProp(Article2):
    def decrement(self, g: A) -> A:
        self.s = 0.99 * self.s + 0.01 * g**2
        return self.lr * g / (np.sqrt(self.s) + 1e-8)


class Article2Adam(Article2):
    def decrement(self, g: A) -> A:
        self.t += 1
        self.b = 0.9 * self.b + 0.1 * g
        self.s = 0.999 * self.s + 0.001 * g**2
        return self.lr * (self.b / (1 - 0.9**self.t)) / (np.sqrt(self.s / (1 - 0.999**self.t)) + 1e-8)


@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
@pytest.mark.parametrize(
    ("theirs", "rule"),
    [
        (Article2SGD, xopt.SGD(lr=0.1)),
        (Article2Momentum, xopt.SGD(lr=0.1, momentum=0.9, form="ema")),
        (Article2Adagrad, xopt.Adagrad(lr=0.1, eps=1e-8)),
        (Article2RMSProp, xopt.RMSProp(lr=0.1, rho=0.99, eps=1e-8)),
        (Article2Adam, xopt.Adam(lr=0.1)),
    ],
    ids=lambda x: getattr(x, "__name__", None) or type(x).__name__,
)
def test_article_2(theirs: Any, rule: Any, weight_decay: float, rng: np.random.Generator) -> None:
    rule = rule.replace(weight_decay=weight_decay, decay="independent")
    assert_same(rule, theirs(0.1, weight_decay).step, rng)


# ---- 3. RMSprop as functions of (params, states, hyperparams)


def article3_states(params: list[A]) -> list[list[A]]:
    return [[np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)] for p in params]


def article3_rmsprop(params: list[A], grads: list[A], states: list[list[A]], hp: dict[str, Any]) -> None:
    for p, g, s in zip(params, grads, states, strict=True):
        s[0][:] = hp["rho"] * s[0] + (1 - hp["rho"]) * g**2
        v = s[0]
        if hp.get("centered"):
            s[1][:] = hp["rho"] * s[1] + (1 - hp["rho"]) * g
            v = s[0] - s[1] ** 2
        if hp.get("momentum"):
            s[2][:] = hp["momentum"] * s[2] + hp["lr"] * g / np.sqrt(v + hp["eps"])
            p[:] -= s[2]
        else:
            p[:] -= hp["lr"] * g / np.sqrt(v + hp["eps"])


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("momentum", [None, 0.5])
def test_article_3(momentum: float | None, centered: bool, rng: np.random.Generator) -> None:
    """100 epochs of linear regression over a weight (10, 1) and a bias (1,)."""
    x = rng.standard_normal((64, 10))
    y = x @ rng.standard_normal((10, 1)) + 0.5 + 0.01 * rng.standard_normal((64, 1))

    def gradients(w: A, b: A) -> list[A]:
        error = x @ w + b - y
        return [2 * x.T @ error / 64, np.asarray([2 * error.mean()])]

    def loss(w: A, b: A) -> float:
        return float(((x @ w + b - y) ** 2).mean())

    theirs = [0.1 * rng.standard_normal((10, 1)), np.zeros(1)]
    ours = {"w": theirs[0].copy(), "b": theirs[1].copy()}
    states = article3_states(theirs)
    hp = {"lr": 1e-3, "rho": 0.9, "eps": 1e-8, "momentum": momentum, "centered": centered}
    options = {} if momentum is None else {"momentum": momentum, "form": "lr_inside"}
    opt = xopt.Optimizer(
        ours, xopt.RMSProp(lr=1e-3, rho=0.9, eps=1e-8, eps_mode="inside", centered=centered, **options)
    )
    before = loss(*theirs)
    for _ in range(100):
        w, b = gradients(*theirs)  # one gradient for both: near the minimum, paths of their own drift apart
        article3_rmsprop(theirs, [w, b], states, hp)
        opt.step({"w": w, "b": b})
        np.testing.assert_allclose(ours["w"], theirs[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(ours["b"], theirs[1], rtol=1e-12, atol=1e-12)
    assert loss(ours["w"], ours["b"]) < before


# ---- 4. dicts of arrays updated in place


class Article4SGD:
    def __init__(self, lr: float = 0.01) -> None:
        self.lr = lr

    def update(self, params: dict[str, A], grads: dict[str, A]) -> None:
        for key in params:
            params[key] -= self.lr * grads[key]


class Article4Momentum:
    def __init__(self, lr: float = 0.01, momentum: float = 0.9) -> None:
        self.lr, self.momentum, self.v = lr, momentum, None

    def update(self, params: dict[str, A], grads: dict[str, A]) -> None:
        if self.v is None:
            self.v = {key: np.zeros_like(val) for key, val in params.items()}
        for key in params:
            self.v[key] = self.momentum * self.v[key] - self.lr * grads[key]
            params[key] += self.v[key]


class Article4AdaGrad:
    def __init__(self, lr: float = 0.01) -> None:
        self.lr, self.h = lr, None

    def update(self, params: dict[str, A], grads: dict[str, A]) -> None:
        if self.h is None:
            self.h = {key: np.zeros_like(val) for key, val in params.items()}
        for key in params:
            self.h[key] += grads[key] * grads[key]
            params[key] -= self.lr * grads[key] / (np.sqrt(self.h[key]) + 1e-7)


class Article4Adam:
    def __init__(self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.lr, self.beta1, self.beta2, self.iter = lr, beta1, beta2, 0
        self.m: Any = None
        self.v: Any = None

    def update(self, params: dict[str, A], grads: dict[str, A]) -> None:
        if self.m is None:
            self.m = {key: np.zeros_like(val) for key, val in params.items()}
            self.v = {key: np.zeros_like(val) for key, val in params.items()}
        self.iter += 1
        lr_t = self.lr * np.sqrt(1.0 - self.beta2**self.iter) / (1.0 - self.beta1**self.iter)
        for key in params:
            self.m[key] += (1 - self.beta1) * (grads[key] - self.m[key])
            self.v[key] += (1 - self.beta2) * (grads[key] ** 2 - self.v[key])
            params[key] -= lr_t * self.m[key] / (np.sqrt(self.v[key]) + 1e-7)


def bowl(p: dict[str, A]) -> dict[str, A]:
    """Return the gradient of x²/20 + y²."""
    return {"x": p["x"] / 10.0, "y": 2.0 * p["y"]}


@pytest.mark.parametrize(
    ("theirs", "rule"),
    [
        (Article4SGD(0.95), xopt.SGD(lr=0.95)),
        (Article4Momentum(0.1), xopt.SGD(lr=0.1, momentum=0.9, form="lr_inside")),
        (Article4AdaGrad(1.5), xopt.Adagrad(lr=1.5, eps=1e-7)),
        (Article4Adam(0.3), xopt.Adam(lr=0.3, eps=1e-7, eps_mode="hat")),
    ],
    ids=lambda x: type(x).__name__,
)
def test_article_4(theirs: Any, rule: Any) -> None:
    a, b = ({"x": np.asarray(-7.0), "y": np.asarray(2.0)} for _ in range(2))
    a = {k: v.reshape(1) for k, v in a.items()}
    opt = xopt.Optimizer(b, rule)
    for _ in range(STEPS):
        theirs.update(a, bowl(a))
        opt.step(bowl(b))
        for key in a:
            np.testing.assert_allclose(b[key], a[key][0], rtol=1e-12, atol=1e-12)
    assert abs(float(b["x"])) < 7


def test_article_4_dropout(rng: np.random.Generator) -> None:
    """Training masks and does not scale; testing scales by 1 - ratio; backward has the mask of forward."""
    x, layer = rng.standard_normal((200, 50)), Dropout(0.3, seed=5, form="classic")
    y = layer.forward(x)
    mask = y != 0
    assert np.array_equal(y, x * mask)
    assert abs(mask.mean() - 0.7) < 0.01  # 10,000 draws: sd 0.0046
    dy = rng.standard_normal(x.shape)
    assert np.array_equal(layer.backward(dy), dy * mask)
    assert np.array_equal(layer.forward(x, training=False), x * (1.0 - 0.3))


# ---- 5. f(x) = x² from x = 10, ten iterations each


def article5_path(name: str) -> list[float]:
    x, m, v, path = 10.0, 0.0, 0.0, [10.0]
    for t in range(1, 11):
        g = 2 * x
        if name == "gd":
            x -= 0.1 * g
        elif name == "momentum":
            m = 0.9 * m - 0.1 * g
            x += m
        elif name == "adagrad":
            v += g**2
            x -= 1.0 * g / (np.sqrt(v) + 1e-8)
        elif name == "rmsprop":
            v = 0.9 * v + 0.1 * g**2
            x -= 0.1 * g / (np.sqrt(v) + 1e-8)
        else:
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * g**2
            x -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        path.append(float(x))
    return path


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("gd", xopt.SGD(lr=0.1)),
        ("momentum", xopt.SGD(lr=0.1, momentum=0.9, form="lr_inside")),
        ("adagrad", xopt.Adagrad(lr=1.0, eps=1e-8)),
        ("rmsprop", xopt.RMSProp(lr=0.1, rho=0.9, eps=1e-8)),
        ("adam", xopt.Adam(lr=0.1)),
    ],
)
def test_article_5(name: str, rule: Any) -> None:
    x, path = np.asarray(10.0), [10.0]
    state = rule.init(x)
    for _ in range(10):
        x, state = rule.apply(x, 2 * x, state)
        path.append(float(x))
    np.testing.assert_allclose(path, article5_path(name), rtol=1e-12)
    assert abs(path[-1]) < 10


def test_article_5_a_sample_at_a_time() -> None:
    w = 0.0
    ours, rule = np.asarray(0.0), xopt.SGD(lr=0.01)
    state = rule.init(ours)
    for _ in range(20):
        for x in (1.0, 2.0, 3.0, 4.0):
            w -= 0.01 * 2 * (w * x - 2 * x) * x
            ours, state = rule.apply(ours, np.asarray(2 * (float(ours) * x - 2 * x) * x), state)
            np.testing.assert_allclose(ours, w, rtol=1e-12)
    assert abs(w - 2) < 1e-3
    assert state.step == 80


def test_article_5_a_scheduled_learning_rate() -> None:
    x = 10.0
    ours, rule = np.asarray(10.0), xopt.SGD(lr=schedules.inverse_time(0.1, rate=0.1))
    state = rule.init(ours)
    for epoch in range(10):
        x -= 0.1 / (1 + 0.1 * epoch) * 2 * x
        ours, state = rule.apply(ours, 2 * ours, state)
        np.testing.assert_allclose(ours, x, rtol=1e-12)
