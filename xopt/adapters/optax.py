"""A rule as an optax ``GradientTransformation``: for optax, Flax, Equinox, NumPyro and loops written for JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xopt.rule import FunctionalOptimizer, State, check_method
from xopt.rule._precision import Precision, Rounding, StateDType, is_default

__all__ = ["transformation"]


def transformation(
    rule: FunctionalOptimizer,
    *,
    rounding: Rounding = "nearest",
    master_weights: bool = False,
    state_dtype: StateDType = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Make a rule an optax ``GradientTransformationExtraArgs``: what ``update`` returns is added to the parameters.

    The functions are pure and may be called in ``jit``, ``vmap``, ``scan`` and ``grad``; the transformation may stand
    in ``optax.chain``, ``masked``, ``MultiSteps``, ``inject_hyperparams`` and in whatever takes one.

    Parameters
    ----------
    rule
        A rule or a chain. What ``update`` returns has the sign and the size of the step: nothing has to be scaled by
        the learning rate.
    rounding, master_weights, state_dtype, seed
        The precision in which the optimizer state is stored, as for :meth:`xopt.Rule.init`.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        ``init(params)`` returns a :class:`xopt.State`, whose slots are trees shaped like the parameters.
        ``update(updates, state, params=None, *, value=None, **extra)`` returns the change of the parameters and the new
        state. ``value`` is the loss, for rules that ask for it; no notice is taken of other arguments. A gradient of
        None leaves its parameter and its state alone, and the change is 0.

    Raises
    ------
    TypeError, ValueError
        As :meth:`xopt.Rule.init` and :meth:`xopt.Rule.updates` do. A ValueError where ``params`` is left out and the
        rule computes with the parameters, as weight decay does.

    Notes
    -----
    Where a real gradient has another dtype than its parameter, both are cast to that of the arithmetic, in which the
    change is returned: float32 for float16 and bfloat16. With ``rounding``, ``master_weights`` or ``state_dtype``, or
    a :class:`xopt.Precision` in the rule, they must agree.

    State is that of the rule, and 4 bytes for the number of steps.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import xopt
    >>> from xopt.adapters.optax import transformation
    >>> tx = optax.chain(optax.clip_by_global_norm(1.0), transformation(xopt.AdamW(lr=0.1)))
    >>> params = {"w": jnp.asarray([1.0, -2.0])}
    >>> state = tx.init(params)
    >>> @jax.jit
    ... def step(params, state):
    ...     grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2))(params)
    ...     updates, state = tx.update(grads, state, params)
    ...     return optax.apply_updates(params, updates), state
    >>> for _ in range(100):
    ...     params, state = step(params, state)
    >>> bool(jnp.max(jnp.abs(params["w"])) < 0.1)
    True
    """
    check_method(rule)
    keep: dict[str, Any] = {
        "rounding": rounding, "master_weights": master_weights, "state_dtype": state_dtype, "seed": seed,
    }  # fmt: skip
    usual = is_default(rounding, master_weights, state_dtype, seed)
    if not usual:
        rule._asked(**keep)  # raises what is wrong with them
    usual = usual and not any(isinstance(link.part, Precision) for link in rule._all_links())

    def init(params: Any) -> State:
        state = rule.init(jax.tree.map(_strong, params), **keep)
        if jax.tree.leaves(params):
            return state
        step = jnp.asarray(state.step, jnp.int32)  # of no arrays nobody knows that they are of JAX
        return State(step, state.slots, {n: jnp.asarray(x, jnp.float32) for n, x in state.carry.items()})

    def update(updates: Any, state: State, params: Any = None, *, value: Any = None, **_: Any) -> tuple[Any, State]:
        if not jax.tree.leaves(updates):
            return updates, state._replace(step=state.step + 1)
        grads, state = jax.tree.map(_strong, updates), jax.tree.map(_of_jax, state)
        if params is None:
            if rule._reads_params(grads, state):
                raise ValueError(f"params: missing, but {rule!r} computes with them; call update(grads, state, params)")
            params = grads
        else:
            params = jax.tree.map(_strong, params)
            if usual:
                grads, params = _alike(grads, params)
        return rule.updates(params, grads, state, value=value)

    return optax.GradientTransformationExtraArgs(init, update)


def _strong(x: Any) -> Any:
    """Return an array of JAX of a dtype that does not give way, so that a state keeps its types from step to step."""
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype) if x.weak_type else x


def _of_jax(x: Any) -> Any:
    """Return an array of JAX, where a state was brought to the host or read from a file."""
    return jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x


def _alike(grads: Any, params: Any) -> tuple[Any, Any]:
    """Return gradients and parameters leaf by leaf in one dtype, where these are real and differ."""
    leaves, spec = jax.tree.flatten(params)
    try:
        found = spec.flatten_up_to(grads)
    except ValueError:  # which the rule says better
        return grads, params
    pairs = [_in_one_dtype(g, p) for g, p in zip(found, leaves, strict=True)]
    return spec.unflatten([g for g, _ in pairs]), spec.unflatten([p for _, p in pairs])


def _in_one_dtype(g: Any, p: Any) -> tuple[Any, Any]:
    if g is None or g.dtype == p.dtype or not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (g, p)):
        return g, p
    wide = jnp.promote_types(p.dtype, jnp.float32)
    return g.astype(wide), p.astype(wide)
