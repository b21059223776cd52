"""MLX: sums in an order of our own, functions that are right in float64, and nothing computed before its time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import catalog
import numpy as np
import pytest
from catalog.links import LINKS
from conftest import Lib
from support import resume

import xopt
from xopt import _arrays

pytestmark = pytest.mark.needs("mlx")
MLX = Lib("mlx")
ROUNDING = 2.0**-24


@pytest.fixture(scope="module")
def mx() -> Any:
    return pytest.importorskip("mlx.core")


@pytest.fixture
def xp(mx: Any) -> Any:
    return _arrays.named("mlx").namespace(mx.array(0.0))


def fsum(x: Any, axis: Any = None) -> Any:
    """Sum exactly, along one axis or all."""
    x = np.asarray(x, float)
    return math.fsum(x.ravel()) if axis is None else np.apply_along_axis(math.fsum, axis, x)


def test_sums_of_float32(xp: Any, rng: np.random.Generator) -> None:
    """Of positive numbers: three levels of blocks, each with 256 roundings at most, and no more than 20 mostly."""
    x = np.exp(3 * rng.standard_normal((70, 1000, 3))).astype("f4")
    for axis in (None, 0, 1, 2, -2):
        np.testing.assert_allclose(MLX.numpy(xp.sum(MLX.array(x), axis=axis)), fsum(x, axis), rtol=20 * ROUNDING)
        mean = np.mean(x.astype(float), axis=axis)
        np.testing.assert_allclose(MLX.numpy(xp.mean(MLX.array(x), axis=axis)), mean, rtol=20 * ROUNDING)
    found = xp.sum(MLX.array(x), axis=(0, 2), keepdims=True)
    np.testing.assert_allclose(MLX.numpy(found), x.astype(float).sum((0, 2), keepdims=True), rtol=20 * ROUNDING)
    assert xp.sum(MLX.array(np.zeros((0, 3), "f4"))).item() == 0
    assert xp.sum(MLX.array(np.ones(3, "f4")), dtype=xp.float64).dtype == xp.float64
    a, b = np.abs(x[:2, :, 0]), np.abs(x[:, :, 1].T)
    long = (np.tile(a, 9), np.tile(b, (9, 1)))  # longer than what MLX adds by itself
    for u, v in ((a, b), (a, b[:, 0]), (a[0], b[:, 0]), (a[0], b), long):
        # of matrices MLX adds up to 4096 products one after the other
        got = xp.matmul(MLX.array(u), MLX.array(v))
        np.testing.assert_allclose(MLX.numpy(got), u.astype(float) @ v.astype(float), rtol=400 * ROUNDING)
    np.testing.assert_allclose(xp.vecdot(MLX.array(a), MLX.array(a)).tolist(), fsum(a.astype(float) ** 2, 1), rtol=1e-6)


def test_many_ones(mx: Any, xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX 0.32 on a CPU adds them to 2^24 and no further; norms, clips and solvers do not, without float64 too."""
    ones = mx.ones(2**25)
    assert xp.sum(ones).item() == xp.matmul(ones, ones).item() == _arrays.named("mlx").dot(ones, ones).item() == 2**25
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=1.0))
    for without in (False, True):
        if without:
            info = SimpleNamespace(dtypes=lambda device=None, kind=None: {"float32": mx.float32})
            monkeypatch.setattr(xp, "__array_namespace_info__", lambda info=info: info)
        new, _ = rule.apply(ones, ones, rule.init(ones))
        np.testing.assert_allclose(1 - float(new[0]), 2.0**-12.5, rtol=1e-3)  # 1 - 2^-12.5 has few digits of it
        update, _ = rule.updates(ones, ones, rule.init(ones))
        np.testing.assert_allclose(float(update[0]), -(2.0**-12.5), rtol=1e-6)


def test_float64_where_there_is_some(mx: Any, xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has it. A GPU has not, so that sums are float32 there."""
    assert "float64" in xp.__array_namespace_info__().dtypes()
    monkeypatch.setattr(xp._mx, "default_device", lambda: "a GPU")
    assert "float64" not in xp.__array_namespace_info__().dtypes()


def test_functions_of_float64(xp: Any) -> None:
    """Those of 0.32 are good to some 1e-6; the others are asked for what NumPy says."""
    x = np.r_[np.linspace(-700, 700, 5001), np.linspace(-8, 8, 999), 0.0, np.nan]
    size = np.abs(x) + 1e-3
    for name, given in (("exp", x), ("sin", x), ("cos", x), ("expm1", x), ("log", size), ("log1p", size)):
        found, want = MLX.numpy(getattr(xp, name)(MLX.array(given))), getattr(np, name)(given)
        # sin and cos are a quotient of tan(x/2): errors are of 1
        np.testing.assert_allclose(found, want, rtol=1e-15, atol=0 if name not in ("sin", "cos") else 1e-15)
    with np.errstate(all="ignore"):
        edges = np.asarray([np.inf, -np.inf, 1e308, -1e308, 0.0])
        np.testing.assert_array_equal(MLX.numpy(xp.exp(MLX.array(edges))), np.exp(edges))
    for a, b in ((3.0, 4.0), (0.0, 0.0), (1e300, 1e300), (np.inf, 1.0), (np.inf, np.inf), (np.nan, 1.0), (1e-300, 0)):
        pair = (MLX.array(np.asarray(y, float)) for y in (a, b))
        np.testing.assert_allclose(xp.hypot(*pair).item(), np.hypot(a, b), rtol=1e-15)


def test_dtypes_are_kept(xp: Any) -> None:
    """MLX makes float32 of NumPy's float64, and of a complex array that is filled with a real number."""
    assert xp.asarray(np.ones(2)).dtype == xp.float64
    assert xp.full((2,), 0.0, dtype=xp.complex64).dtype == xp.complex64
    with pytest.raises(AttributeError, match="complex128"):
        xp.asarray(np.ones(2, complex))


@pytest.fixture
def computes_nothing(mx: Any) -> Iterator[None]:
    """See that no array of the size of the parameters was made: MLX counts the bytes that it holds."""
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    yield
    assert max(mx.get_active_memory(), mx.get_peak_memory()) - before < 100_000, "something was computed"


def lazy(mx: Any) -> Any:
    """Make a parameter of 1 MB, which is not computed."""
    return mx.zeros((512, 512)) + 1.0


CHAINS = [
    *(row.make(**{**catalog.COMMON[-1], **row.options[-1]}) for row in catalog.ROWS),
    *(
        xopt.chain(link.link(**link.options[0]), resume.SGD)
        if link.place == "front"
        else xopt.chain(resume.SGD, link.link(**link.options[0]))
        for link in LINKS
    ),
    # but one that is given the loss, and one whose raising looks at the gradients
    *(rule for rule in resume.SHARED if "Plateau" not in repr(rule) and "'raise'" not in repr(rule)),
]


@pytest.mark.usefixtures("computes_nothing")
@pytest.mark.parametrize("rule", CHAINS, ids=[f"{k}-{str(rule)[:40]}" for k, rule in enumerate(CHAINS)])
def test_a_step_computes_nothing(mx: Any, rule: Any) -> None:
    p = {"wide": lazy(mx), "tall": lazy(mx), "list": [lazy(mx)], "one": lazy(mx)}
    g = {"wide": lazy(mx), "tall": lazy(mx), "list": [lazy(mx)], "one": lazy(mx)}
    state = rule.init(p)
    for _ in range(2):
        p, state = rule.apply(p, g, state)


PEERS = [
    (xopt.SGD, "SGD", {"momentum": 0.9, "weight_decay": 0.25, "nesterov": True}),
    (xopt.Adam, "Adam", {}),
    (xopt.AdamW, "AdamW", {}),
    (xopt.Lion, "Lion", {}),
    (xopt.RMSProp, "RMSprop", {}),
    (xopt.Adagrad, "Adagrad", {}),
    (xopt.Adadelta, "AdaDelta", {}),
    (xopt.Adamax, "Adamax", {}),
    (xopt.Muon, "Muon", {}),
]


@pytest.mark.parametrize(("rule", "name", "options"), PEERS, ids=[row[1] for row in PEERS])
def test_peers(mx: Any, rule: Any, name: str, options: Any, rng: np.random.Generator) -> None:
    """`like="mlx"` takes the steps of ``mlx.optimizers``."""
    optimizers = pytest.importorskip("mlx.optimizers")
    dtype = "float64"
    p, *grads = rng.standard_normal((21, 4, 3))
    like = {} if rule is xopt.SGD else {"like": "mlx"}
    mine = rule(lr=0.0625, **like, **options)
    peer = getattr(optimizers, name)(0.0625, **options)
    x, y = {"w": MLX.array(p, dtype)}, {"w": MLX.array(p, dtype)}
    state = mine.init(x)
    for g in grads:
        x, state = mine.apply(x, {"w": MLX.array(g, dtype)}, state)
        y = peer.apply_gradients({"w": MLX.array(g, dtype)}, y)
    # its products of matrices take their factors, such as 2.0315, in float32
    rtol, atol = (1e-5, 1e-5) if name == "Muon" else (1e-12, 1e-13)
    np.testing.assert_allclose(MLX.numpy(x["w"]), MLX.numpy(y["w"]), rtol=rtol, atol=atol)
