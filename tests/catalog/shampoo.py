"""Rules with a matrix for each axis."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Peer, Row, S, decayed, pytorch_optimizer


@decayed
def shampoo(
    p: A, g: A, s: S, t: int, *, lr: Any, eps: Any, momentum: Any, b2: Any, update_every: int, max_dim: int, graft: str
) -> A:
    """Gupta et al. 2018, Algorithm 2, the diagonal form for long axes; every sum over indices is an einsum."""
    if not p.size:
        return p
    shape = p.shape or (1,)
    g = g.reshape(shape)
    rank = len(shape)
    letters = "abcdefgh"[:rank]
    u = g
    for i, n in enumerate(shape):
        other = letters.replace(letters[i], "z")
        new = np.einsum(f"{letters},{other}->{letters[i]}z", g, g.conj())
        new = new if n <= max_dim else np.diag(np.diag(new))
        old = s.get(("s", i), np.zeros((n, n)))
        x = s["s", i] = old + new if b2 is None else b2 * old + (1 - b2) * new
        if (t - 1) % update_every == 0:
            left, values, _ = np.linalg.svd(x)
            s["q", i] = (left * (values + eps) ** (-0.5 / rank)) @ left.conj().T
        u = np.einsum(f"{letters[i]}z,{other}->{letters}", s["q", i], u)
    if graft == "sgd" and np.any(u):
        u = u * (np.linalg.norm(g) / np.linalg.norm(u))
    u = u.reshape(p.shape)
    if momentum is not None:
        u = s["m"] = momentum * s.get("m", np.zeros_like(p)) + u
    return p - lr * u


def along(x: A, matrix: A, i: int) -> A:
    letters = "abcdefgh"[: x.ndim]
    return np.einsum(f"{letters[i]}z,{letters.replace(letters[i], 'z')}->{letters}", matrix, x)


def orthonormal(x: A) -> A:
    """Gram-Schmidt, twice."""
    for _ in range(2):
        columns: list[A] = []
        for a in x.T:
            a = a - sum((b * np.vdot(b, a) for b in columns), np.zeros_like(a))
            columns.append(a / np.linalg.norm(a))
        x = np.stack(columns, axis=1)
    return x


@decayed
def soap(
    p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, shampoo_b: Any, eps: Any, update_every: int, max_dim: int,
    vectors: bool, normalize: bool, eps_mode: str, bias: str,
) -> A:  # fmt: skip
    """Vyas et al. 2024, Algorithms 3 and 4, with the sorted columns and the first step of the authors' code."""
    if not p.size:
        return p
    axes = [i for i, n in enumerate(p.shape) if n <= max_dim and (p.ndim > 1 or vectors)]
    u = np.zeros_like(p)
    if t > 1:
        turned = g
        for i in axes:
            turned = along(turned, s["q", i].conj().T, i)
        m = s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
        v = s["v"] = b2 * s.get("v", 0) + (1 - b2) * abs(turned) ** 2
        c1, c2 = (1 - b1 ** (t - 1), 1 - b2 ** (t - 1)) if bias == "standard" else (1, 1)
        for i in axes:
            m = along(m, s["q", i].conj().T, i)
        u = m / (np.sqrt(v) + eps * (np.sqrt(c2) if eps_mode == "outside" else 1))
        for i in axes:
            u = along(u, s["q", i], i)
        if normalize:
            u = u / (np.sqrt(np.mean(abs(u) ** 2)) + 1e-30)
        u = u * np.sqrt(c2) / c1
    beta = b2 if shampoo_b is None else shampoo_b
    for i in axes:
        rows = np.stack([x.ravel() for x in np.moveaxis(g, i, 0)])
        x = s["s", i] = beta * s.get(("s", i), 0) + (1 - beta) * rows @ rows.conj().T
        if t == 1:
            s["q", i], _, _ = np.linalg.svd(x)
        elif (t - 1) % update_every == 0:
            q = s["q", i]
            order = np.argsort(-np.diag(q.conj().T @ x @ q).real)
            s["v"] = s["v"].take(order, i)
            s["q", i] = orthonormal((x @ q)[:, order])
    return p - lr * u


ROWS = [
    Row(
        xopt.Shampoo,
        shampoo,
        [
            {"eps": 0.1},
            {},
            {"eps": 0.1, "momentum": 0.9},
            {"eps": 0.1, "b2": 0.9},
            {"eps": 0.1, "update_every": 3},
            {"eps": 0.1, "max_dim": 3},
            {"eps": 0.1, "graft": "sgd"},
            {"eps": 0.1, "max_dim": 2, "update_every": 2, "momentum": 0.5, "b2": 0.5, "graft": "sgd"},
        ],
        [{"eps": 0.0}, {"momentum": 1.0}, {"b2": 1.0}, {"update_every": 0}, {"max_dim": 0}, {"graft": "adam"}],
        0.05,
        lacking=("dask",),
    ),
    Row(
        xopt.SOAP,
        soap,
        [
            {},
            {"b1": 0.5, "b2": 0.8},
            {"shampoo_b": 0.5},
            {"eps": 0.1},
            {"eps": 0.1, "eps_mode": "outside"},
            {"update_every": 1},
            {"max_dim": 3},
            {"vectors": True, "max_dim": 1},
            {"normalize": True},
            {"bias": "none"},
        ],
        [
            {"b1": 1.0},
            {"b2": 1.0},
            {"shampoo_b": -0.1},
            {"eps": 0.0},
            {"update_every": 0},
            {"max_dim": 0},
            {"vectors": 1},
            {"normalize": None},
            {"eps_mode": "inside"},
            {"bias": "first"},
        ],
        0.05,
        # a basis of a longer axis would have vectors that no gradient has shown: the library's choice
        base={"max_dim": 4, "update_every": 3},
        lacking=("dask",),
    ),
]

FULL = ((0, 3), (4, 3), (3, 3), (2, 3, 4), (2,), (1,))
"""Shapes of which the first gradient leaves no axis with two unknown directions."""
QR = 1e-4
"""It computes QR in float32."""


def soap_of(rule: xopt.Rule, rtol: float = 1e-12, **kwargs: Any) -> Peer:
    """Say that it is SOAP of pytorch-optimizer, which decays after the step, and not in the first one."""
    given = {"lr": 0.1, "weight_decay": 0.0, "precondition_frequency": rule.update_every, **kwargs}
    return pytorch_optimizer(rule, "SOAP", rtol, FULL, **given)


PEERS: list[Peer] = [
    soap_of(xopt.SOAP(0.1, update_every=30)),
    soap_of(xopt.SOAP(0.1, update_every=30, vectors=True), precondition_1d=True),
    soap_of(xopt.SOAP(0.1, update_every=30, bias="none"), correct_bias=False),
    soap_of(xopt.SOAP(0.1, eps=1e-15, update_every=30, normalize=True), eps=1e-15, normalize_gradient=True),
    soap_of(
        xopt.SOAP(0.1, 0.8, 0.9, 0.5, 1e-3, 30, 3),
        betas=(0.8, 0.9), shampoo_beta=0.5, eps=1e-3, max_precondition_dim=3,
    ),
    soap_of(xopt.SOAP(0.1, update_every=3, vectors=True), QR, precondition_1d=True),
    soap_of(xopt.SOAP(0.1, 0.5, shampoo_b=0.8, update_every=1), QR, betas=(0.5, 0.95), shampoo_beta=0.8),
    pytorch_optimizer(
        xopt.Shampoo(0.1, 1e-3), "Shampoo", shapes=((4, 3), (3, 3), (5,)),
        lr=0.1, matrix_eps=1e-3, preconditioning_compute_steps=1,
    ),
    pytorch_optimizer(
        xopt.Shampoo(0.1, 1e-3, weight_decay=0.3), "Shampoo", shapes=((4, 3), (3, 3), (5,)),
        lr=0.1, matrix_eps=1e-3, preconditioning_compute_steps=1, weight_decay=0.3,
    ),
]  # fmt: skip
