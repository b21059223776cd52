"""`Prox`: a convex function that is known by its proximal operator."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.scalars import is_number
from xopt._public import public

Array = Any
P = ParamSpec("P")


@public
class Prox:
    """A convex function of a tree of arrays, for `fista`, `pdhg` and `admm`: made by `l1`, `tv`, `box` and so on.

    ::

        prox(x, t) = argmin over z of f(z) + ‖z - x‖²/(2·t)

    Parameters
    ----------
    prox
        ``prox(x, t)``, with t > 0, returns a tree like x. It must not write into x.
    value
        ``value(x)`` returns f(x), a number or an array of one. None: it is not known, and neither is the objective.
    conjugate
        ``conjugate(y)`` returns f*(y) = sup over x of Re⟨x, y⟩ - f(x), which a duality gap needs.
    scaling
        ``scaling(y)`` returns the largest s ≤ 1 with f*(s·y) finite, where that is not 1. None: 1.
    gradient
        ``gradient(x)`` returns ∇f(x), if f is smooth.
    convexity
        μ ≥ 0 so that f - μ/2·‖x‖² is convex.

    Notes
    -----
    ``prox_conjugate(y, t)`` is the proximal operator of f*, by Moreau's identity: y - t·prox(y/t, 1/t).
    Functions of this module can be pickled and copied; one of your own, if its functions can.

    References
    ----------
    N. Parikh, S. Boyd (2014), Proximal algorithms, Foundations and Trends in Optimization 1(3).

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> f = proximal.Prox(lambda x, t: np.maximum(x, 0.0), lambda x: 0.0)
    >>> f.prox(np.asarray([-1.0, 2.0]), 0.5), f.prox_conjugate(np.asarray([-1.0, 2.0]), 0.5)
    (array([0., 2.]), array([-1.,  0.]))
    """

    def __init__(
        self,
        prox: Callable[[Any, Any], Any],
        value: Callable[[Any], Any] | None = None,
        *,
        conjugate: Callable[[Any], Any] | None = None,
        scaling: Callable[[Any], Any] | None = None,
        gradient: Callable[[Any], Any] | None = None,
        convexity: float = 0.0,
    ) -> None:
        given = {"prox": prox, "value": value, "conjugate": conjugate, "scaling": scaling, "gradient": gradient}
        for name, function in given.items():
            if not callable(function) and (function is not None or name == "prox"):
                raise TypeError(f"{name}: {function!r}, but it must be a function")
        self.prox = prox
        self.value = value
        self.conjugate = conjugate
        self.scaling = scaling
        self.gradient = gradient
        self.convexity = real("convexity", convexity)
        self._name = "Prox(…)"
        self._apart = ""
        """What cannot have steps of different lengths; nothing if all can."""
        self._dual: Callable[[Any, Any], Any] | None = None
        """The prox of the conjugate, where it is known better than by Moreau's identity, whose roundings are of t·x."""
        self._quadratic = False
        """Whether the gradient is linear but for a constant."""
        self._made: tuple[Callable[..., Prox], tuple[Any, ...]] | None = None
        """The function of this module that made it, and its arguments: what a pickle has."""

    def prox_conjugate(self, y: Any, t: float) -> Any:
        """Return the proximal operator of f*: argmin over z of f*(z) + ‖z - y‖²/(2·t)."""
        if self._dual is not None:
            return self._dual(y, t)
        leaves, spec = _tree.flatten(y)
        ts = lengths(t, spec, len(leaves))
        inner = _tree.unflatten(spec, [x / s for x, s in zip(leaves, ts, strict=True)])
        back = 1 / float(t) if is_number(t) else _tree.unflatten(spec, [1 / s for s in ts])
        found = _tree.match(spec, self.prox(inner, back), "prox", "its argument")
        return _tree.unflatten(spec, [x - s * z for x, s, z in zip(leaves, ts, found, strict=True)])

    def __repr__(self) -> str:
        return self._name

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._made or super().__reduce_ex__(protocol)


def remade(make: Callable[P, Prox]) -> Callable[P, Prox]:
    """Let what a public function makes be pickled as a call of it."""

    @functools.wraps(make)
    def made(*args: P.args, **options: P.kwargs) -> Prox:
        found = make(*args, **options)
        found._made = functools.partial(made, *args, **options), ()
        return found

    return made


def lengths(t: Any, spec: Any, count: int) -> list[Any]:
    """Return the step of each array: numbers, or arrays."""
    return [float(t)] * count if is_number(t) else _tree.match(spec, t, "t", "x")


def real(name: str, x: Any, above: float | None = None) -> float:
    """Check a number ≥ 0, or above a bound."""
    if not is_number(x) or x != x:
        raise TypeError(f"{name}: {x!r}, but it must be a number")
    if not 0 <= x < math.inf or (above is not None and x <= above):
        raise ValueError(f"{name}: {x!r}, but it must be {'≥ 0' if above is None else f'> {above:g}'} and finite")
    return float(x)


def each(name: str, x: Any, fits: Callable[[Any, Array], Array], what: str) -> Any:
    """Check the elements of the arrays of a parameter, once; where JAX traces, there are none to see yet."""
    for p in _tree.flatten(x)[0]:
        if _arrays.library(p) is None:
            continue
        if _arrays.is_complex(p):
            raise TypeError(f"{name}: complex, but it must be real")
        xp = _arrays.namespace(p)
        try:
            fine = bool(xp.all(fits(xp, _arrays.detached(p))))
        except TypeError:
            continue
        if not fine:
            raise ValueError(f"{name}: an element that is not {what}")
    return x


def weights(name: str, x: Any) -> Any:
    """Check a strength: a number ≥ 0, or arrays of such."""
    if is_number(x):
        return real(name, x)
    return each(name, x, lambda xp, p: (p >= 0) & xp.isfinite(p), "≥ 0 and finite")


def of_arrays(
    name: str,
    prox: Callable[..., Array],
    value: Callable[..., Any],
    conjugate: Callable[..., Any] | None = None,
    scaling: Callable[..., Any] | None = None,
    gradient: Callable[..., Array] | None = None,
    *,
    dual: Callable[..., Array] | None = None,
    given: Mapping[str, Any] = {},
    apart: bool = True,
    convexity: float = 0.0,
) -> Prox:
    """Make a function of a tree that is a sum over its arrays.

    Each function is called with the namespace, an array, and the parameters by name: numbers, or arrays beside it.
    ``apart``: whether elements may have steps of different lengths.
    """

    def rows(x: Any) -> tuple[list[Any], Any, list[dict[str, Any]]]:
        leaves, spec = _tree.flatten(x)
        leaves = [_checked(f"{name}: x", v) for v in leaves]
        columns = {n: parameters(f"{name}: {n}", p, leaves, spec) for n, p in given.items()}
        return leaves, spec, [{n: column[k] for n, column in columns.items()} for k in range(len(leaves))]

    def stepped(function: Callable[..., Array], x: Any, t: Any = 1.0) -> Any:
        leaves, spec, rest = rows(x)
        ts = lengths(t, spec, len(leaves))
        if not apart and not all(map(is_number, ts)):
            raise TypeError(f"{name}: steps of different lengths, by a preconditioner, but it has no such prox")
        pairs = zip(leaves, ts, rest, strict=True)
        return _tree.unflatten(spec, [function(_arrays.namespace(v), v, s, **more) for v, s, more in pairs])

    def summed(function: Callable[..., Any]) -> Callable[[Any], Any]:
        def total(x: Any) -> Any:
            leaves, _, rest = rows(x)
            return added([function(_arrays.namespace(v), v, **more) for v, more in zip(leaves, rest, strict=True)])

        return total

    def least(x: Any) -> Any:
        assert scaling is not None
        leaves, _, rest = rows(x)
        found = [scaling(_arrays.namespace(v), v, **more) for v, more in zip(leaves, rest, strict=True)]
        return lowest(found)

    def sloped(x: Any) -> Any:
        assert gradient is not None
        leaves, spec, rest = rows(x)
        pairs = zip(leaves, rest, strict=True)
        return _tree.unflatten(spec, [gradient(_arrays.namespace(v), v, **more) for v, more in pairs])

    made = Prox(
        functools.partial(stepped, prox), summed(value), conjugate=None if conjugate is None else summed(conjugate),
        scaling=None if scaling is None else least, gradient=None if gradient is None else sloped, convexity=convexity,
    )  # fmt: skip
    made._name = f"{name}({', '.join(f'{n}={_brief(p)}' for n, p in given.items())})"
    made._apart = "" if apart else name
    made._quadratic = gradient is not None
    made._dual = None if dual is None else functools.partial(stepped, dual)
    return made


def _brief(p: Any) -> str:
    return repr(p) if p is None or is_number(p) else "…"


def _checked(name: str, x: Any) -> Any:
    library = _arrays.library(x)
    if library is None:
        raise TypeError(f"{name}: a {type(x).__name__}, but it must be an array")
    return library.detached(x)


def parameters(name: str, p: Any, leaves: list[Any], spec: Any) -> list[Any]:
    """Return a parameter for each array: a number, None, or an array of the same library and kind."""
    if p is None or is_number(p):
        return [p if p is None else float(p)] * len(leaves)
    found = [p] * len(leaves) if _arrays.library(p) is not None else _tree.match(spec, p, name, "x")
    return [_parameter(name, one, x) for one, x in zip(found, leaves, strict=True)]


def _parameter(name: str, p: Any, x: Any) -> Any:
    if p is None or is_number(p):
        return p if p is None else float(p)  # one of NumPy would be a number of its dtype
    own, other = _arrays.library(x), _arrays.library(p)
    if own != other or own is None:
        raise TypeError(
            f"{name}: {f'an array of {other}' if other else f'a {type(p).__name__}'}, but x is one of {own}"
        )
    if _arrays.is_complex(p) and not _arrays.is_complex(x):
        raise TypeError(f"{name}: complex, but x is real")
    xp, p = _arrays.namespace(x), own.detached(p)
    shape = tuple(x.shape)
    if len(p.shape) > len(shape) or any(n not in (1, m) for n, m in zip(p.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(f"{name}: shape {tuple(p.shape)}, but x has {shape}")
    return _arrays.cast(xp, p, x.dtype if _arrays.is_complex(p) else real_dtype(xp, x))


def real_dtype(xp: Any, x: Array) -> Any:
    """Return the dtype of the real part of an array."""
    kind = _arrays.dtype_name(x)
    return getattr(xp, _arrays.DTYPES[kind].real) if kind in _arrays.DTYPES else x.dtype


def wide(xp: Any, x: Array) -> Any:
    """Return the dtype that sums over an array are taken in."""
    return getattr(xp, _arrays.widest_real(xp, _arrays.device(x), "float32"))


def total(xp: Any, x: Array) -> Any:
    """Return the sum of a real array, in the widest floats of its device."""
    return xp.sum(x, dtype=wide(xp, x))


def indicator(xp: Any, outside: Array, x: Array) -> Array:
    """Return infinity if this is so, else 0, in the dtype of a sum over a real array."""
    none = total(xp, xp.zeros_like(x))
    return xp.where(outside, none + math.inf, none)


def added(values: list[Any]) -> Any:
    """Add numbers and 0-d arrays."""
    found: Any = 0.0
    for x in values:
        found = x if type(found) is float and found == 0 else found + x
    return found


def lowest(values: list[Any]) -> Any:
    """Return the least of numbers and 0-d arrays; at most 1."""
    found: Any = 1.0
    for x in values:
        if is_number(found) and is_number(x):
            found = min(found, x)
        else:
            like = x if is_number(found) else found
            xp = _arrays.namespace(like)
            found, x = (xp.full_like(like, v) if is_number(v) else v for v in (found, x))
            found = xp.where(found < x, found, x)
    return found


@public
@remade
def separable(functions: Any) -> Prox:
    """Sum of functions of the parts of a tree: f(x) = Σᵢ fᵢ(xᵢ).

    The solvers take a tuple, a list or a dictionary of functions for this.

    Parameters
    ----------
    functions
        A tuple, a list or a dictionary of functions with a prox, or of such; x has the same at its top, with a tree for
        each.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> f = proximal.separable((proximal.l1(1.0), proximal.box(0.0, 1.0)))
    >>> f.prox((np.asarray([3.0, 0.5]), np.asarray([3.0, 0.5])), 1.0)
    (array([2., 0.]), array([1. , 0.5]))
    """
    if not isinstance(functions, tuple | list | dict):
        raise TypeError(f"functions: {functions!r}, but it must be a tuple, a list or a dictionary")
    keys = [*functions] if isinstance(functions, dict) else [*range(len(functions))]
    own = {k: as_prox(f"functions[{k!r}]", functions[k]) for k in keys}

    def parts(x: Any, name: str = "x") -> dict[Any, Any]:
        kind = dict if isinstance(functions, dict) else (tuple, list)
        if not isinstance(x, kind) or len(x) != len(keys) or (isinstance(x, dict) and {*x} != {*keys}):
            raise ValueError(f"{name}: a {type(x).__name__}, but separable has functions of {keys}")
        return {k: x[k] for k in keys}

    def stepped(name: str, x: Any, t: Any = 1.0) -> Any:
        ts = dict.fromkeys(keys, t) if is_number(t) else parts(t, "t")
        found = {k: getattr(own[k], name)(v, ts[k]) for k, v in parts(x).items()}
        return _alike(x, found)

    def summed(name: str) -> Callable[[Any], Any] | None:
        each = {k: getattr(f, name) for k, f in own.items()}
        if None in each.values():
            return None
        return lambda x: added([each[k](v) for k, v in parts(x).items()])

    def least(y: Any) -> Any:
        return lowest([own[k].scaling(v) for k, v in parts(y).items() if own[k].scaling is not None])  # type: ignore[misc]

    def sloped(x: Any) -> Any:
        found = {k: own[k].gradient(v) for k, v in parts(x).items()}  # type: ignore[misc]
        return _alike(x, found)

    smooth = all(f.gradient is not None for f in own.values())
    made = Prox(
        functools.partial(stepped, "prox"), summed("value"), conjugate=summed("conjugate"), scaling=least,
        gradient=sloped if smooth else None, convexity=min((f.convexity for f in own.values()), default=0.0),
    )  # fmt: skip
    made._name = f"separable({[*own.values()] if not isinstance(functions, dict) else own})"
    made._apart = next((f._apart for f in own.values() if f._apart), "")
    made._dual = functools.partial(stepped, "prox_conjugate")
    made._quadratic = all(f._quadratic for f in own.values())
    return made


def _alike(x: Any, parts: dict[Any, Any]) -> Any:
    """Return parts as a dictionary, a tuple or a list like x."""
    if isinstance(x, dict):
        return parts
    return type(x)(*parts.values()) if hasattr(x, "_fields") else type(x)(parts.values())  # of a namedtuple by name


def as_prox(name: str, f: Any) -> Prox:
    """Return what stands for a function with a prox as one: such, ``prox(x, t)``, or a tuple, list or dictionary."""
    if isinstance(f, Prox):
        return f
    if isinstance(f, tuple | list | dict):
        return separable(f)
    if not callable(f):
        raise TypeError(f"{name}: {f!r}, but it must be a function such as xopt.proximal.l1(0.1), or a prox(x, t)")
    return Prox(f)
