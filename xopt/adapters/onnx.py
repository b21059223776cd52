"""A training step as an ONNX model, for onnxruntime, without Python: that of a rule, or a whole one of yours."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ndonnx
import numpy as np
import onnx

from xopt import _arrays
from xopt._arrays import NDArray
from xopt._arrays import tree as _tree
from xopt._arrays.transfer import to_host
from xopt._public import public
from xopt.rule import FunctionalOptimizer, State

__all__ = ["export", "feeds", "restore"]

NEXT = "next/"
"""What the name of an output begins with: the rest is the input that it replaces."""


@public
def export(
    step: FunctionalOptimizer | Callable[..., Any],
    params: Any,
    state: Any = None,
    *batch: Any,
    hyperparams: Sequence[str] = (),
    path: str | os.PathLike[str] | None = None,
) -> onnx.ModelProto:
    """Export a training step as an ONNX model: onnxruntime takes the steps, on any device, without Python and xopt.

    Parameters
    ----------
    step
        A rule or a chain, whose step is taken, or a function ``step(params, state, *batch) -> (params, state)``, or
        ``(params, state, outputs)``, written in array-API code: forward, gradient, a rule's ``apply``. It is called
        once, with arrays of ndonnx that have shapes and dtypes and no values, so that it cannot look at one by ``if``
        or ``float``.
    params
        Parameters: a tree of arrays of any library, float16, float32 or float64. The model has inputs of their shapes
        and dtypes; the values are not in it.
    state
        For a function, its state: that of a rule, ``rule.init(params)``, or any tree of arrays and numbers, or none. A
        rule makes its own.
    *batch
        For a function, an example of each other argument: an array, a number or a tree of such; an
        ``ndonnx.argument(shape=("n", 64), dtype=ndonnx.float32)`` has an axis of any length. What ndonnx computes of
        such has sizes that it does not know: ``xp.reshape`` gradients to the shapes of the parameters.
    hyperparams
        For a rule, hyperparameters that become inputs, such as ``["lr"]``: scalars in float64.
    path
        Where to write the model too.

    Returns
    -------
    onnx.ModelProto
        Inputs ``params/w`` and so on, as in the files of `Optimizer.save`; ``state/step``, a count in int32;
        ``state/1.adam.m/w``, a slot of the first rule behind another; carried numbers ``state/0.name.number`` in
        float64. A rule has ``grads/w`` and its hyperparameters by their names, a function its arguments by theirs.
        Each parameter and each array of the state comes out as ``next/params/w`` and so on, for the input of that name
        in the next step; what else a function returns is ``output``, or of a tree ``output/loss``.

    Raises
    ------
    TypeError, ValueError
        Before anything is written: a dtype that ndonnx has not, such as complex64; a step that looks at a value, or
        needs a function that ndonnx has not, such as an eigendecomposition; new parameters or a new state of another
        structure, shape or dtype than the old ones; two inputs of one name.

    Notes
    -----
    The numbers are those of ``rule.apply`` elsewhere up to rounding in the last digits: onnxruntime's exp, log and sums
    round otherwise. Both branches of a condition are computed. State: that of the rule, and the count.

    Examples
    --------
    >>> import numpy as np
    >>> import onnxruntime
    >>> import xopt
    >>> from xopt.adapters.onnx import export, feeds
    >>> params, rule = {"w": np.zeros(3, np.float32)}, xopt.Adam(lr=0.1)
    >>> model = export(rule, params)
    >>> [x.name for x in model.graph.input]
    ['params/w', 'grads/w', 'state/step', 'state/0.adam.m/w', 'state/0.adam.v/w']
    >>> session = onnxruntime.InferenceSession(model.SerializeToString())
    >>> names = [x.name for x in session.get_outputs()]
    >>> values = feeds(params, rule.init(params))
    >>> for _ in range(2):
    ...     values["grads/w"] = np.asarray([1, 2, 3], np.float32)
    ...     new = session.run(names, values)
    ...     values = {name.removeprefix("next/"): x for name, x in zip(names, new)}
    >>> values["params/w"].round(3)
    array([-0.2, -0.2, -0.2], dtype=float32)
    """
    params = _values("params", params)
    if isinstance(step, FunctionalOptimizer):
        if batch or state is not None:
            raise TypeError("state, batch: only of a function; a rule has its state, and is given gradients")
        names, batch = ["grads", *hyperparams], (params, *(np.zeros(()) for _ in hyperparams))
        state, call = step.init(params), _of_rule(step, hyperparams)
    else:
        if hyperparams:
            raise TypeError("hyperparams: only of a rule; give a function an argument for each instead")
        names, call = _argument_names(step, len(batch)), step
    trees = {"params": params, **dict(zip(names, batch, strict=True)), "state": state}
    trees = {name: _recorded(_values(name, x)) for name, x in trees.items()}
    found = _called(call, trees["params"], trees["state"], *(trees[name] for name in names))
    if not isinstance(found, tuple) or len(found) not in (2, 3):
        what = f"{len(found)} things" if isinstance(found, tuple) else f"a {type(found).__name__}"
        raise TypeError(f"step: returned {what}, but it must return (params, state) or (params, state, outputs)")
    outputs: dict[str, Any] = {}
    for name, x in zip(("params", "state"), found, strict=False):
        outputs |= _following(name, trees[name], x)
    outputs |= _named("output", found[2]) if len(found) == 3 else {}
    inputs = [pair for name, x in trees.items() for pair in _named(name, x).items()]
    if double := [name for name, n in Counter(name for name, _ in inputs).items() if n > 1]:
        raise ValueError(f"{double[0]}: two inputs of this name")
    model = ndonnx.build(dict(inputs), {name: ndonnx.asarray(x) for name, x in outputs.items()})
    if path is not None:
        Path(path).write_bytes(model.SerializeToString())
    return model


@public
def feeds(params: Any, state: Any = None) -> dict[str, NDArray]:
    """Return parameters and state as a model that was exported takes them: arrays of NumPy, by the names of inputs.

    Parameters
    ----------
    params, state
        As they were given to :func:`export`; for an exported rule, its ``rule.init(params)``, or a later state.

    Raises
    ------
    TypeError
        For dtypes that ONNX has not.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> from xopt.adapters.onnx import feeds
    >>> params = {"w": np.ones(2)}
    >>> feeds(params, xopt.SGD(momentum=0.9).init(params))
    {'params/w': array([1., 1.]), 'state/step': array(0, dtype=int32), 'state/0.sgd.m/w': array([0., 0.])}
    """
    return {
        n: x
        for name, tree in (("params", params), ("state", state))
        for n, x in _named(name, _values(name, tree)).items()
    }


@public
def restore(values: Mapping[str, Any], params: Any, state: Any = None) -> tuple[Any, Any]:
    """Return the parameters and the state that a model has come to, as trees of NumPy's arrays.

    Parameters
    ----------
    values
        Arrays by the names of inputs, or of outputs; those of other names are not looked at.
    params, state
        As they were given to :func:`feeds`: numbers of Python become such again, and `rule.apply` goes on.

    Raises
    ------
    ValueError
        Where there is no value for a name.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> from xopt.adapters.onnx import feeds, restore
    >>> params = {"w": np.ones(2)}
    >>> state = xopt.SGD().init(params)
    >>> restore(feeds(params, state), params, state)
    ({'w': array([1., 1.])}, State(step=0, slots={}, carry={}))
    """
    found = {name.removeprefix(NEXT): np.asarray(x) for name, x in values.items()}

    def of(name: str, tree: Any) -> Any:
        leaves, spec = _tree.flatten(tree)
        names = list(_named(name, tree))
        if missing := [n for n in names if n not in found]:
            raise ValueError(f"{missing[0]}: no value for it")
        new = [found[n].item() if isinstance(x, int | float) else found[n] for n, x in zip(names, leaves, strict=True)]
        return _tree.unflatten(spec, new)

    return of("params", params), of("state", state)


def _argument_names(step: Callable[..., Any], count: int) -> list[str]:
    """Name what a function is given behind parameters and state as it does; what it has no name for by its number."""
    known = [x.name for x in inspect.signature(step).parameters.values() if x.kind is not x.VAR_POSITIONAL][2:]
    return [known[k] if k < len(known) else f"batch/{k}" for k in range(count)]


def _values(name: str, tree: Any) -> Any:
    """Return a tree with arrays of NumPy; those of ndonnx, which may have no values, stay."""
    if isinstance(tree, State):  # on JAX, scalars are in float32 perhaps
        carry = {n: np.asarray(to_host(x) if hasattr(x, "dtype") else x, np.float64) for n, x in tree.carry.items()}
        step = np.asarray(tree.step, np.int32)
        return State(step, {n: _values(f"{name}/{n}", x) for n, x in tree.slots.items()}, carry)
    leaves, spec = _tree.flatten(tree)
    return _tree.unflatten(spec, [_value(n, x) for n, x in zip(_named(name, tree), leaves, strict=True)])


def _value(name: str, x: Any) -> Any:
    if isinstance(x, int | float):
        return np.asarray(x)
    if _arrays.library(x) is None:
        raise TypeError(f"{name}: {type(x).__name__}, but it must be an array or a number")
    if (dtype := _arrays.dtype_name(x)) == "bfloat16" or "complex" in dtype:
        raise TypeError(f"{name}: dtype {dtype}, but ndonnx computes in float16, float32 and float64")
    return x if isinstance(x, ndonnx.Array) else to_host(x)


def _named(name: str, tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree, in their order, by the names that they have in a checkpoint."""
    leaves, spec = _tree.flatten(tree)
    keys = _tree.pointers(spec)
    if isinstance(tree, State):  # slots/0.adam.m/w
        keys = [key.partition("/")[2] or key for key in keys]
    return {f"{name}/{key}" if key else name: x for key, x in zip(keys, leaves, strict=True)}


def _recorded(tree: Any) -> Any:
    """Return a tree of the same shapes and dtypes whose values are not known: the inputs of a model."""
    leaves, spec = _tree.flatten(tree)
    kinds = [ndonnx.from_numpy_dtype(x.dtype) if isinstance(x, np.ndarray) else None for x in leaves]
    made = [x if k is None else ndonnx.argument(shape=x.shape, dtype=k) for x, k in zip(leaves, kinds, strict=True)]
    return _tree.unflatten(spec, made)


def _of_rule(rule: FunctionalOptimizer, names: Sequence[str]) -> Callable[..., Any]:
    """Return the step of a rule as a function of the trees and of some hyperparameters."""

    def step(params: Any, state: Any, grads: Any, *numbers: Any) -> Any:
        return rule.apply(params, grads, state, **dict(zip(names, numbers, strict=True)))

    return step


def _called(step: Callable[..., Any], *args: Any) -> Any:
    try:
        return step(*args)
    except ValueError as error:
        if "propagated value" not in str(error):
            raise
        raise TypeError("step: looks at a value, by if, float or int, but what is recorded has none") from error
    except AttributeError as error:
        if getattr(error, "obj", None) is not ndonnx:
            raise
        raise TypeError(f"step: needs {error.name}, which ndonnx has not") from error


def _following(name: str, old: Any, new: Any) -> dict[str, Any]:
    """Return what takes the place of a tree, by the names of outputs; it must be of the same structure and arrays."""
    was, now = _named(name, old), _named(name, new)
    for n in [*was, *now]:
        if n not in now or n not in was:
            raise ValueError(f"{n}: {'lost' if n in was else 'made'} by the step, but it must return what it is given")
        a, b = was[n], ndonnx.asarray(now[n])
        sizes = zip(a.shape, b.shape, strict=False)
        fits = len(a.shape) == len(b.shape) and all(None in pair or pair[0] == pair[1] for pair in sizes)
        if a.dtype != b.dtype or not fits:
            raise ValueError(
                f"{n}: {b.dtype} of shape {b.shape} behind the step, but {a.dtype} of shape {a.shape} before"
            )
    return {NEXT + n: x for n, x in now.items()}
