"""Random numbers from a counter: the same seed gives the same bits on every array library.

Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror & Shaw 2011, Parallel random numbers: as easy as 1, 2, 3), written
with the integer operations of the array-API standard.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from xopt import _arrays
from xopt._arrays import Library

Array = Any
_MASK = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA

__all__ = ["normal", "signs", "threefry2x32", "words"]


def threefry2x32(xp: Any, key: tuple[int, int], x0: Array, x1: Array) -> tuple[Array, Array]:
    """Encrypt counters with Threefry-2x32-20.

    Parameters
    ----------
    xp
        Array-API namespace.
    key
        Two integers of 32 bits.
    x0, x1
        Counters below 2³², in uint32 or in int64 (for libraries without arithmetic on uint32).

    Returns
    -------
    tuple
        Two arrays of the same dtype with 32 random bits per element.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt.random import threefry2x32
    >>> a, b = threefry2x32(np, (0, 0), np.zeros(1, np.uint32), np.zeros(1, np.uint32))
    >>> f"{a[0]:08x} {b[0]:08x}"
    '6b200159 99ba4efe'
    """
    number, mask = _constants(xp, x0)
    keys = [k & _MASK for k in key]
    keys.append(keys[0] ^ keys[1] ^ _PARITY)
    x0, x1 = mask(x0 + number(keys[0])), mask(x1 + number(keys[1]))
    for group in range(5):
        for r in _ROTATIONS[group % 2]:
            x0 = mask(x0 + x1)
            x1 = mask(x1 << number(r)) | (x1 >> number(32 - r))
            x1 = x1 ^ x0
        x0 = mask(x0 + number(keys[(group + 1) % 3]))
        x1 = mask(x1 + number((keys[(group + 2) % 3] + group + 1) & _MASK))
    return x0, x1


def _library(x: Array) -> Library:
    found = _arrays.library(x)
    if found is None:
        raise TypeError(f"like: a {type(x).__name__}, but it must be an array")
    return found


def constant(xp: Any, like: Array, value: int) -> Any:
    """Make a constant that mixes with ``like``, without a transfer to a device where a host scalar will do."""
    return _library(like).constant(xp, like, value)


def _constants(xp: Any, like: Array) -> tuple[Any, Any]:
    """Return how to make a constant of this dtype, and how to keep 32 bits: uint32 wraps, int64 is masked."""
    number = functools.partial(constant, xp, like)
    if like.dtype == xp.uint32:
        return number, lambda x: x
    full = number(_MASK)
    return number, lambda x: x & full


def _counters(xp: Any, like: Array, count: int) -> Array:
    """Count from 0 on, beside an array, in the dtype that the library has arithmetic for."""
    dtype = getattr(xp, _library(like).random_dtype)
    return xp.arange(count, dtype=dtype, **_arrays.beside(like))


def words(like: Array, seed: int, stream: int, count: int) -> Array:
    """Return ``count`` random words of 32 bits, as a flat array beside ``like``.

    Word i of a stream depends on (seed, stream, i) and on nothing else: not on the library, nor the device.

    Parameters
    ----------
    like
        An array whose library and device the result has.
    seed
        0 to 2⁶⁴ - 1.
    stream
        0 to 2³² - 1; another stream is other numbers.
    count
        How many, at most 2³³.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt.random import words
    >>> words(np.zeros(1), 0, 0, 2)
    array([1797259609, 2579123966], dtype=uint32)
    """
    if not 0 <= seed < 2**64 or not 0 <= stream < 2**32 or not 0 <= count <= 2**33:
        raise ValueError(f"words: seed {seed}, stream {stream} or count {count} is out of range")
    xp = _arrays.namespace(like)
    index = _counters(xp, like, -(-count // 2))
    a, b = threefry2x32(xp, (seed & _MASK, seed >> 32), index, xp.full_like(index, stream))
    return xp.reshape(xp.stack([a, b], axis=-1), (-1,))[:count]


_SPREAD, _FIRST, _SECOND = 0x9E3779B1, 0x21F0AAAD, 0xD35A2D97


def hashed(xp: Any, index: Array, key: Any, real: Any) -> Array:
    """Return numbers in [0, 1), multiples of 2⁻²⁴, that depend on nothing but these arguments: for rounding.

    ``index`` counts elements, in uint32, or in int64 below 2³². ``key`` are six numbers below 2¹⁶, or arrays of such
    floats: the two halves of the step, the leaf, the two halves of the seed, and how many times 2¹⁶ elements of the
    leaf come before the first one here. Each 32 bits are mixed by two multiplications, as in Wellons' hash. Kernels do
    the same.
    """
    low, high, leaf, seed_low, seed_high, chunk = key
    number, mask = _constants(xp, index)
    first = index if getattr(leaf, "ndim", 0) else index[:1]

    def mix(x: Array) -> Array:
        x = mask((x ^ (x >> number(16))) * number(_FIRST))
        x = mask((x ^ (x >> number(15))) * number(_SECOND))
        return x ^ (x >> number(15))

    def whole(x: Any) -> Array:
        return xp.astype(x, index.dtype) if hasattr(x, "dtype") else number(int(x))

    def both(a: Any, b: Any) -> Array:
        return xp.zeros_like(first) + whole(a) + (xp.zeros_like(first) + whole(b) << number(16))

    step, seed = mix(mask(both(low, high) * number(_SPREAD))), mix(both(seed_low, seed_high))
    key = mix(mask(mix(step ^ seed) + mask(both(leaf, 0.0) * number(_SPREAD))))
    if hasattr(chunk, "dtype") or chunk:
        index = mask(index + mask(whole(chunk) << number(16)))
    return xp.astype(mix(mix(mask(index * number(_SPREAD))) ^ key) >> number(8), real) * 2.0**-24


def noise(xp: Any, like: Array, *key: Any) -> Array:
    """Return such numbers for the elements of an array, in its shape and dtype."""
    return xp.reshape(hashed(xp, _counters(xp, like, math.prod(like.shape)), key, like.dtype), like.shape)


def _of_stream(xp: Any, index: Array, stream: Any) -> Array:
    """Return the number of a stream beside each counter; it may be an array."""
    if hasattr(stream, "dtype"):
        return xp.zeros_like(index) + xp.astype(stream, index.dtype)
    return xp.full_like(index, int(stream) & _MASK)


def signs(like: Array, key: tuple[int, int], stream: Any) -> Array:
    r"""Return 1 and -1 at random, in the shape and dtype of an array; complex numbers are 1, i, -1 and -i.

    Number i depends on (key, stream, i) and on whether it is complex, and is the same on every library.

    Parameters
    ----------
    like
        An array of real or complex floating-point numbers.
    key
        Two integers of 32 bits.
    stream
        An integer from 0 to 2³² - 1, or a 0-d array of one.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt.random import signs
    >>> signs(np.zeros(6), (0, 1), 2)
    array([-1.,  1.,  1.,  1., -1.,  1.])
    """
    xp, count = _arrays.namespace(like), math.prod(like.shape)
    many = 2 * count if _arrays.is_complex(like) else count
    index = _counters(xp, like, -(-many // 64))
    found = xp.stack(threefry2x32(xp, key, index, _of_stream(xp, index, stream)), axis=-1)
    shifts = xp.astype(_counters(xp, like, 32), found.dtype)
    bits = (xp.reshape(found, (-1, 1)) >> shifts[None, :]) & constant(xp, found, 1)
    bits = xp.reshape(bits, (-1,))[:many]
    if not _arrays.is_complex(like):
        return xp.reshape(1 - 2 * xp.astype(bits, like.dtype), like.shape)
    bits = xp.astype(xp.reshape(bits, (*like.shape, 2)), xp.real(like).dtype)
    sign, turned = 1 - 2 * bits[..., 0], bits[..., 1]
    return _library(like).join_complex(xp, sign * (1 - turned), sign * turned)


def normal(like: Array, key: tuple[int, int], stream: Any) -> Array:
    r"""Return standard normal numbers in the shape and dtype of an array; complex ones have E\|z\|² = 1.

    Number i depends on (key, stream, i) and on the dtype only; the last bits may differ between libraries, which
    compute logarithms and cosines each in its own way (Box & Muller 1958).

    Parameters
    ----------
    like
        An array of float32, float64, complex64 or complex128.
    key
        Two integers of 32 bits.
    stream
        An integer from 0 to 2³² - 1, or a 0-d array of one.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt.random import normal
    >>> normal(np.zeros(3), (0, 1), 2).round(3)
    array([ 0.816, -0.392,  0.115])
    """
    xp = _arrays.namespace(like)
    index = _counters(xp, like, math.prod(like.shape))
    counter = _of_stream(xp, index, stream)
    real = (xp.real(like) if _arrays.is_complex(like) else like).dtype
    u, v = ((xp.astype(x, real) + 1) * 2.0**-32 for x in threefry2x32(xp, key, index, counter))
    size, angle = xp.sqrt(-xp.log(u)), 2 * math.pi * v
    if _arrays.is_complex(like):
        z = _library(like).join_complex(xp, size * xp.cos(angle), size * xp.sin(angle))
    else:
        z = math.sqrt(2) * size * xp.cos(angle)
    return xp.reshape(z, like.shape)
