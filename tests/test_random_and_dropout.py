"""The generator against its published vectors, and dropout on every library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xopt.nn import Dropout
from xopt.random import threefry2x32, words

# Threefry-2x32 with 20 rounds, from the known-answer vectors of Random123 (Salmon et al. 2011): counter, key, result
VECTORS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


def uint32(lib: Any, x: Any) -> Any:
    """Make an array of the integers that the generator uses on this library."""
    if lib.name == "torch":
        return lib.module().asarray(np.asarray(x, "int64"))
    if lib.name == "jax":
        return lib.module().numpy.asarray(np.asarray(x, "uint32"))
    return lib.array(np.asarray(x, "uint32"))


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
def test_known_answers(lib: Any, counter: Any, key: Any, result: Any) -> None:
    from xopt import _arrays

    x0, x1 = uint32(lib, [counter[0]] * 3), uint32(lib, [counter[1]] * 3)
    call = lambda a, b: threefry2x32(_arrays.namespace(a), key, a, b)
    a, b = (lib.module().jit(call) if lib.guise == "jit" else call)(x0, x1)
    assert lib.numpy(a).tolist() == [result[0]] * 3
    assert lib.numpy(b).tolist() == [result[1]] * 3


@pytest.mark.needs("jax")
def test_against_the_threefry_of_jax() -> None:
    prng = pytest.importorskip("jax.extend.random")
    counters = np.arange(20, dtype="uint32")
    theirs = np.asarray(prng.threefry_2x32(np.asarray([7, 9], "uint32"), counters))
    a, b = threefry2x32(np, (7, 9), counters[:10], counters[10:])
    assert np.array_equal(np.concatenate([a, b]), theirs)


def test_words_are_the_same_everywhere(lib: Any) -> None:
    want = words(np.zeros(1), 123456789012345, 7, 1001)
    got = lib.numpy(words(lib.array(np.zeros(1, "float32")), 123456789012345, 7, 1001))
    assert np.array_equal(np.asarray(got, "uint32"), want)
    assert np.array_equal(words(np.zeros(1), 123456789012345, 7, 10), want[:10]), "a word depends on its place alone"
    assert len(np.unique(want)) == 1001


def test_streams_and_seeds_differ() -> None:
    base = words(np.zeros(1), 1, 0, 100)
    for other in (words(np.zeros(1), 2, 0, 100), words(np.zeros(1), 1, 1, 100), words(np.zeros(1), 1 + 2**40, 0, 100)):
        assert not np.any(base == other)
    for bad in [(-1, 0, 1), (2**64, 0, 1), (0, 2**32, 1), (0, -1, 1), (0, 0, -1)]:
        with pytest.raises(ValueError, match="out of range"):
            words(np.zeros(1), *bad)


@pytest.mark.parametrize("form", ["inverted", "classic"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 3), (7, 3), (2, 3, 4)])
def test_dropout(lib: Any, shape: Any, form: Any, rng: np.random.Generator) -> None:
    x, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    layer, same = Dropout(0.4, seed=11, form=form), Dropout(0.4, seed=11, form=form)
    scale = 1 / 0.6 if form == "inverted" else 1.0
    masks = []
    for call in range(3):
        y = layer.forward(lib.array(x))
        mask = same.mask(np.asarray(x), call)
        masks.append(mask)
        assert y.shape == shape
        assert y.dtype == lib.array(x).dtype
        np.testing.assert_allclose(lib.numpy(y), x * mask * scale, rtol=1e-15)
        np.testing.assert_allclose(lib.numpy(layer.backward(lib.array(dy))), dy * mask * scale, rtol=1e-15)
    assert layer.calls == 3
    if x.size > 6:
        assert not np.array_equal(masks[0], masks[1]), "every call has a mask of its own"
    y = layer.forward(lib.array(x), training=False)
    expected = x if form == "inverted" else x * 0.6
    np.testing.assert_allclose(lib.numpy(y), expected, rtol=1e-15)
    np.testing.assert_allclose(
        lib.numpy(layer.backward(lib.array(dy))), dy if form == "inverted" else dy * 0.6, rtol=1e-15
    )
    assert layer.calls == 3


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1e-12])
def test_rate_is_the_rate(rate: float) -> None:
    x = np.ones(100_000)
    y = Dropout(rate, seed=3).forward(x)
    sd = np.sqrt(rate * (1 - rate) / x.size)
    assert abs((y == 0).mean() - rate) <= 4 * sd
    assert abs(y.mean() - 1) <= 5 * np.sqrt(rate / (1 - rate) / x.size)


def test_resume() -> None:
    x, a = np.ones(50), Dropout(0.5, seed=1)
    a.forward(x)
    want = a.forward(x)
    b = Dropout(0.5, seed=1)
    b.calls = 1
    assert np.array_equal(b.forward(x), want)


def test_a_nan_that_is_dropped_is_gone() -> None:
    y = Dropout(0.5, seed=0).forward(np.full(64, np.nan))
    assert 10 < (y == 0).sum() < 54


def test_dropout_errors() -> None:
    for rate in (-0.1, 1.0, True, "0.5", float("nan")):
        with pytest.raises(ValueError, match="Dropout.rate"):
            Dropout(rate)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Dropout.form: 'spatial'"):
        Dropout(0.5, form="spatial")  # type: ignore[arg-type]
    for seed in (-1, 2**64, 1.0, True):
        with pytest.raises(ValueError, match="Dropout.seed"):
            Dropout(0.5, seed=seed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Dropout.backward before forward"):
        Dropout(0.5).backward(np.ones(3))
