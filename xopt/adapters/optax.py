"""A rule as an optax ``GradientTransformation``, for loops written for JAX; and a transformation of optax as a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xopt._arrays import tree as _tree
from xopt._arrays.rows import SparseRows
from xopt._engine.program.contract import ComponentSpec
from xopt.rule import Array, FunctionalOptimizer, H, Rule, State, Transform, check_method, static
from xopt.rule._precision import Rounding, StateDType, StoragePrecision, is_default

__all__ = ["rule", "transform", "transformation"]


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
    usual = usual and not any(isinstance(link.part, StoragePrecision) for link in rule._all_links())

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
            if any(map(_by_rows, jax.tree.leaves(updates, is_leaf=_by_rows))):
                raise ValueError("params: missing, but SparseRows need them; call update(grads, state, params)")
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


def _by_rows(x: Any) -> bool:
    return isinstance(x, SparseRows)


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
    if g is None or _by_rows(g) or g.dtype == p.dtype or not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (g, p)):
        return g, p
    wide = jnp.promote_types(p.dtype, jnp.float32)
    return g.astype(wide), p.astype(wide)


def rule(tx: optax.GradientTransformation, *, value: bool = False) -> Rule:
    r"""Make an optax transformation a rule: for :class:`xopt.Optimizer`, and in the place of the rule in a chain.

    So what optax has alone stands beside what xopt has: :class:`xopt.Groups`, averages, projections, low precision of
    parameters, checkpoints.

    Parameters
    ----------
    tx
        What ``optax.adamw(0.1)`` and so on return, or an ``optax.MultiSteps``. Its ``update`` is given the gradients of
        all parameters at once, as a tree, and the parameters; what it returns is added to them. It is given no other
        arguments than the loss, which a line search would need.
    value
        Whether ``tx`` is given the loss, as ``optax.contrib.reduce_on_plateau`` needs it: then ``step(grads,
        value=loss)``.

    Returns
    -------
    xopt.Rule
        Without hyperparameters: those of optax are in ``tx``, or, with ``optax.inject_hyperparams``, in its state.

    Raises
    ------
    TypeError
        For what is no transformation. When the parameters are known: where these are not arrays of JAX, and for
        ``state_dtype``.

    Notes
    -----
    In a group of parameters, other leaves of the tree are None for ``tx``. Where a gradient is None, ``tx`` is given 0,
    and what it does to that parameter is left out; its moments in the state of ``tx`` decay. Where all are, ``tx`` is
    not called. The state must keep its structure, which that of ``optax.monitor`` does not. Arrays are those of the
    arithmetic, also in ``tx.init``: float32 for parameters in float16 and bfloat16.

    State is that of ``tx``, to the bit: each array is a slot of its name, ``0.optax.0.mu.w``, filed at one parameter of
    the tree, as floating-point numbers. What float32 does not hold, such as integers and keys, is kept 16 bits a number
    there: twice the bytes. A rule with ``tx`` in it cannot be pickled, because functions of optax cannot.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import xopt
    >>> from xopt.adapters.optax import rule
    >>> params = {"w": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([3.0])}
    >>> adabelief = rule(optax.adabelief(0.1))
    >>> opt = xopt.Optimizer(params, xopt.chain(xopt.ClipByGlobalNorm(1.0), adabelief, xopt.NonNegative()))
    >>> for _ in range(100):
    ...     _ = opt.step({"w": opt.params["w"] - 0.5, "b": opt.params["b"] + 1.0})
    >>> opt.params["w"].round(1).tolist(), opt.params["b"].tolist()
    ([0.5, 0.5], [0.0])
    """
    tx = _checked("rule", tx)
    return OptaxRule(init_fn=tx.init, update_fn=tx.update, takes_value=value)


def transform(tx: optax.GradientTransformation, *, value: bool = False) -> Transform:
    r"""Make an optax transformation a component of a chain beside its rule: in front of it, or behind.

    In front, ``tx`` is given the gradients, behind the rule its steps, which have the sign and the size of what is
    added to the parameters. All else is as for :func:`rule`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import xopt
    >>> from xopt.adapters.optax import transform
    >>> clip = transform(optax.clip_by_block_rms(1.0))
    >>> rule, w = xopt.chain(clip, xopt.SGD(lr=0.5)), jnp.asarray([0.0, 0.0])
    >>> rule.apply(w, jnp.asarray([3.0, 3.0]), rule.init(w))[0].tolist()
    [-0.5, -0.5]
    """
    tx = _checked("transform", tx)
    return OptaxTransform(init_fn=tx.init, update_fn=tx.update, takes_value=value)


def _checked(who: str, tx: Any) -> Any:
    tx = tx.gradient_transformation() if isinstance(tx, optax.MultiSteps) else tx
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(f"{who}: {tx!r}, but it must be a GradientTransformation of optax, as optax.adam(0.1) is")
    return optax.with_extra_args_support(tx)


class _Tree:
    """A transformation of optax on whole trees, its state as slots of one leaf: see `TreeUpdate`."""

    def __init__(self, tx: Any, takes_value: bool) -> None:
        self._tx, self._takes_value = tx, takes_value
        self.home = -1
        self.members: tuple[int, ...] = ()
        self.like: dict[str, Any] = {}
        self._real = ""
        """The dtype of the arithmetic of the leaf that has the state."""
        self._state: Any = None
        """The tree of the state, without arrays."""
        self._keys: list[Any] = []
        """Of each array of it that has random keys, of which kind."""

    def bound(self, spec: ComponentSpec, layout: Any, members: tuple[int, ...]) -> ComponentSpec:
        for k in members:
            if not isinstance(layout.leaves[k], jax.Array):
                raise TypeError(
                    f"{layout.path(k)}: an array of {layout.library}, but {spec.key} is a transformation of optax, for "
                    f"arrays of JAX"
                )
        made = _Tree(self._tx, self._takes_value)
        if not members:
            return spec._replace(tree=made)
        made.members = members
        made.home = max(members, key=lambda k: (jnp.dtype(layout.dtypes[k].real).itemsize, -k))
        made._real = layout.dtypes[made.home].real

        def state(leaves: Any) -> Any:
            found = self._tx.init(made._tree(layout, leaves))
            made._keys = [jax.random.key_impl(x) if _is_key(x) else None for x in jax.tree.leaves(found)]
            return found

        made._state = jax.eval_shape(state, layout.leaves)
        found = jax.eval_shape(made._filed, made._state)  # whose keys are sorted
        made.like = {n: found[n] for n in made._names(made._state)}
        shapes = tuple((k, layout.shapes[k], layout.dtypes[k].name) for k in members)
        formula = (spec.formula, layout.spec, shapes)
        return spec._replace(formula=formula, slots=dict.fromkeys(made.like, "tree"), tree=made)

    def first(self, layout: Any) -> dict[str, Any]:
        return self._filed(self._tx.init(self._tree(layout, layout.leaves)))

    def run(
        self, layout: Any, xs: list[Any], ps: list[Any], slots: Mapping[str, Any], h: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        likes, spec = jax.tree.flatten(self._state)
        rows = zip(self.like, likes, self._keys, strict=True)
        state = spec.unflatten([self._decoded(slots[n], like, key) for n, like, key in rows])
        value = getattr(h["value"], "array", h["value"]) if self._takes_value else None
        extra = {"value": value} if self._takes_value else {}
        try:
            steps, state = self._tx.update(self._tree(layout, xs), state, self._tree(layout, ps), **extra)
        except TypeError as error:
            if "required keyword-only argument" not in str(error):
                raise
            raise TypeError(
                f"optax: {error}; rule(tx, value=True) gives it the loss, and other arguments than that there are not"
            ) from error
        return _tree.match(layout.spec, steps, "updates"), self._filed(state)

    def _tree(self, layout: Any, leaves: list[Any]) -> Any:
        """Return a tree for optax: of members in the dtype of the arithmetic, None for others."""
        own: list[Any] = [None] * len(layout.leaves)
        for k in self.members:
            own[k] = leaves[k].astype(layout.dtypes[k].compute)
        return layout.tree(own)

    def _filed(self, state: Any) -> dict[str, Any]:
        """Return a state as slots."""
        likes, spec = jax.tree.flatten(self._state)
        leaves, now = jax.tree.flatten(state)
        if now != spec:
            raise ValueError(f"optax: update returned the state {now}, but it began as {spec}")
        names = self._names(state)
        return {n: self._encoded(x, like) for n, x, like in zip(names, leaves, likes, strict=True)}

    def _names(self, state: Any) -> list[str]:
        """Name the arrays of a state by where they are in it."""
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
        return [n if n and names.count(n) == 1 else f"{n}.{i}" for i, n in enumerate(names)]

    def _encoded(self, x: Any, like: Any) -> Any:
        """Return an array of any dtype in that of the arithmetic, from which it comes back to the bit."""
        if _is_key(like):
            x = jax.random.key_data(x)
        elif jnp.issubdtype(like.dtype, jnp.complexfloating):
            x = jnp.stack([jnp.real(x), jnp.imag(x)], axis=-1).astype(jnp.finfo(like.dtype).dtype)
        else:
            x = jnp.asarray(x, like.dtype)
        return (x if self._fits(x.dtype) else jax.lax.bitcast_convert_type(x, jnp.uint16)).astype(self._real)

    def _decoded(self, x: Any, like: Any, key: Any) -> Any:
        if _is_key(like):
            return jax.random.wrap_key_data(self._back(x, jnp.dtype("uint32")), impl=key)
        if jnp.issubdtype(like.dtype, jnp.complexfloating):
            parts = self._back(x, jnp.finfo(like.dtype).dtype)
            return jax.lax.complex(parts[..., 0], parts[..., 1])
        return self._back(x, like.dtype)

    def _back(self, x: Any, dtype: Any) -> Any:
        return x.astype(dtype) if self._fits(dtype) else jax.lax.bitcast_convert_type(x.astype(jnp.uint16), dtype)

    def _fits(self, dtype: Any) -> bool:
        """Whether the dtype of the arithmetic holds all numbers of another."""
        real = jnp.issubdtype(dtype, jnp.floating)
        return bool(dtype.itemsize <= 2 or (real and dtype.itemsize <= jnp.dtype(self._real).itemsize))


def _is_key(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


class _OfTree:
    """What a component has that is a transformation of optax."""

    init_fn: Callable[..., Any]
    update_fn: Callable[..., Any]
    takes_value: bool
    elementwise = False

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        raise AssertionError("it takes all arrays at once")

    def _base_spec(self, key: str, order: tuple[int, ...]) -> ComponentSpec:
        spec: ComponentSpec = super()._base_spec(key, order)  # type: ignore[misc]
        tx = optax.GradientTransformationExtraArgs(self.init_fn, self.update_fn)
        return spec._replace(tree=_Tree(tx, self.takes_value), inputs=("value",) if self.takes_value else ())

    def _label(self) -> str:
        return "optax"

    def __repr__(self) -> str:
        kind = "rule" if isinstance(self, FunctionalOptimizer) else "transform"
        return f"{kind}({getattr(self.init_fn, '__qualname__', '').partition('.')[0]})"


class OptaxRule(_OfTree, Rule):
    init_fn: Callable[..., Any] = static()
    update_fn: Callable[..., Any] = static()
    takes_value: bool = False


del OptaxRule._fields["weight_decay"], OptaxRule._fields["peak_lr"]  # transformations see to decay themselves
OptaxRule.weight_decay = OptaxRule.peak_lr = None


class OptaxTransform(_OfTree, Transform):
    init_fn: Callable[..., Any] = static()
    update_fn: Callable[..., Any] = static()
    takes_value: bool = False
