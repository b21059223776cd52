"""Functions that rules share, of arrays and of norms: each gives one answer on every library, and can be recorded."""

from __future__ import annotations

from typing import Any

from xopt import _arrays
from xopt._public import public
from xopt.rule._component import Array


@public
def abs2(xp: Any, x: Array) -> Array:
    """Square the modulus of an array: x² of a real one, Re² + Im² (real) of a complex one.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt.rule import abs2
    >>> abs2(np, np.asarray([3.0 + 4.0j]))
    array([25.])
    """
    if not is_complex(x):
        return x * x
    re, im = xp.real(x), xp.imag(x)
    return re * re + im * im


@public
def is_complex(x: Array) -> bool:
    """Whether an array is complex, in a rule that is running or being recorded.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt.rule import is_complex
    >>> is_complex(np.zeros(2, np.complex64))
    True
    """
    kind = getattr(type(x), "kind", None)
    return x.kind == "complex" if kind is not None else _arrays.is_complex(x)


@public
def inner(xp: Any, x: Array, y: Array) -> Array:
    """Return the terms of the real inner product of two arrays: x·y, of complex ones Re(x̄·y).

    Examples
    --------
    >>> import numpy as np
    >>> from xopt.rule import inner
    >>> inner(np, np.asarray([3.0 + 4.0j]), np.asarray([1.0 + 2.0j]))
    array([11.])
    """
    return xp.real(x) * xp.real(y) + xp.imag(x) * xp.imag(y) if is_complex(x) else x * y


@public
def sign(xp: Any, x: Array) -> Array:
    """Return -1, 0 or 1, of a complex number its phase x/|x|.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt.rule import sign
    >>> sign(np, np.asarray([3.0, 0.0, -2.0])), sign(np, np.asarray([3.0 + 4.0j, 0j]))
    (array([ 1.,  0., -1.]), array([0.6+0.8j, 0. +0.j ]))
    """
    if not is_complex(x):
        return xp.sign(x)
    a = xp.abs(x)
    return x / xp.where(a > 0, a, 1.0)


def along(xp: Any, x: Array, y: Array) -> Array:
    """Return something with the sign of Re(x̄·y), element by element: signs, multiplied, stay in range."""
    return inner(xp, sign(xp, x), sign(xp, y))


@public
def trust_ratio(xp: Any, over: Any, under: Any, first: Any, second: Any) -> Any:
    """Divide, in a ``host``, what is made of two norms, but where one of these is 0: there the ratio is 1.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt.rule import trust_ratio
    >>> trust_ratio(np, 0.5 * 3.0, 2.0, 3.0, 2.0).item(), trust_ratio(np, 0.5 * 3.0, 0.0, 3.0, 0.0).item()
    (0.75, 1.0)
    """
    zero = xp.where(first == 0, 1.0, xp.where(second == 0, 1.0, 0.0))
    return xp.where(zero > 0, 1.0, over / xp.where(zero > 0, 1.0, under))
