"""What a user gives to be minimized, as one function from parameters to value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xopt import _arrays
from xopt._arrays.layout import Layout
from xopt.solvers._differences import SCHEMES, Differences
from xopt.solvers._space import gradients

Fun = Callable[[Any], tuple[Any, Any]]


def objective(fun: Any, jac: Any, args: Any, layout: Layout, conjugate: bool, step: Any = None, box: Any = None) -> Fun:
    """Return a function of the parameters alone that returns the value and the gradient ∂f/∂Re + i·∂f/∂Im.

    ``step`` and ``box`` are of differences.
    """
    if not callable(fun):
        raise TypeError(f"fun: {fun!r}, but it must be a function")
    args = args if isinstance(args, tuple) else (args,)
    jac = way(jac, step, layout)
    if isinstance(jac, str):
        sides = [] if box is None else [box.space.host(side) for _, side in box.named()]
        return Differences(lambda x: fun(x, *args), layout, jac, step, *sides)

    def both(x: Any) -> tuple[Any, Any]:
        return pair(fun(x, *args)) if jac is True else (fun(x, *args), jac(x, *args))

    if jac is False:
        return _differentiated(fun, args, layout)
    return _conjugated(both, layout) if conjugate else both


def way(jac: Any, step: Any, layout: Layout) -> Any:
    """Return how the gradient is found: True, a function, False where the library differentiates, or a scheme."""
    if jac is None:
        jac = False if layout.library.differentiates else "2-point"
    if isinstance(jac, str) and jac in SCHEMES:
        return jac
    if step is not None:
        raise TypeError(f"eps: {step!r}, but with jac={jac!r} no differences are taken")
    if jac is False and not layout.library.differentiates:
        raise TypeError(
            f"jac: False, but {layout.library} does not differentiate; return the gradient with the value, give "
            f'jac=function, use arrays of torch or JAX, or take differences with jac="2-point"'
        )
    if not isinstance(jac, bool) and not callable(jac):
        raise TypeError(
            f"jac: {jac!r}, but it must be True (fun returns value and gradient), a function, False (torch or JAX "
            f"differentiates), None, '2-point' or '3-point' (differences of values)"
        )
    return jac


def pair(found: Any) -> tuple[Any, Any]:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise TypeError(
            f"fun: returned a {type(found).__name__}, but with jac=True it must return two things, value and gradient"
        )
    return found[0], found[1]


def _conjugated(fun: Fun, layout: Layout) -> Fun:
    def both(x: Any) -> tuple[Any, Any]:
        value, grads = fun(x)
        xp = layout.xp
        return value, layout.tree([g if g is None or not _arrays.is_complex(g) else xp.conj(g)
                                   for g in gradients(layout, grads)])  # fmt: skip

    return both


def _differentiated(fun: Any, args: tuple[Any, ...], layout: Layout) -> Fun:
    by_leaves = layout.library.value_and_grad(lambda leaves: fun(layout.tree(leaves), *args))

    def both(x: Any) -> tuple[Any, Any]:
        value, grads = by_leaves(Layout(x).leaves)
        return value, layout.tree(grads)

    return both
