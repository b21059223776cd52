"""Rules that find their learning rate by themselves: D-Adaptation, Prodigy, Distance over Gradients."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from xopt.rule import Array, H, Hyper, Moments, Rule, abs2, hyper, inner, shrunk, static
from xopt.rules.adam import bias_corrections

__all__ = ["DAdaptAdam", "DAdaptSGD", "DoG", "LDoG", "Prodigy"]


def _grown(h: H, xp: Any, d: Any, top: Any) -> Any:
    """Return the new estimate of the distance, at most ``growth_rate`` times the old one."""
    return top if h.growth_rate is None else xp.minimum(top, d * h.growth_rate)


def _bias(h: H) -> Any:
    c1, c2 = bias_corrections(h)
    return c2**0.5 / c1


class DAdaptSGD(Rule):
    r"""Parameter-free (learning-rate-free) SGD: D-Adaptation (Defazio & Mishchenko 2023, arXiv:2301.07733).

    d is a lower bound of the distance from the first parameters to a solution, G = ‖g‖ of the first step; sums and
    norms are those of the whole tree::

        γ = lr·d / G
        n ← n + γ·⟨g, s⟩
        s ← s + γ·g
        d ← max(d, min(2·n/‖s‖, growth_rate·d))
        p ← p - γ·g                                    no momentum
        z ← z - γ·g,  p ← μ·p + (1-μ)·z                momentum

    Parameters
    ----------
    lr
        Factor of the rate that is found, ≥ 0; leave it at 1, or give it a schedule that begins at 1.
    momentum
        μ in [0, 1); None for none.
    d0
        First d, > 0; a lower bound by far, in the unit of the distance.
    growth_rate
        Largest factor by which d grows in a step, ≥ 1; None for any.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`; ``decay="lr"`` multiplies w by γ.

    Notes
    -----
    State: ``s``, and with momentum ``z``, which starts as the parameter, 4 or 8 bytes per float32 parameter; in
    ``state.carry`` d, n (``weighted``) and G (``first``).

    The authors' ``dadaptation.DAdaptSGD`` keeps the first parameters too and has L2 decay alone. While no gradient
    differs from 0 nothing moves, and G is that of the first which does. Parameters with learning rates of their own
    are refused: there is one d.

    References
    ----------
    A. Defazio, K. Mishchenko (2023), Learning-rate-free learning by D-adaptation, arXiv:2301.07733, Algorithm 4.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> opt = xopt.Optimizer(np.asarray([1.0, -2.0]), xopt.DAdaptSGD())
    >>> for _ in range(100):
    ...     _ = opt.step(2 * opt.params)
    >>> bool(np.abs(opt.params).max() < 0.1)
    True
    """

    lr: Hyper = hyper(default=1.0, ge=0)
    momentum: Hyper | None = hyper(default=None, ge=0, lt=1)
    d0: float = static(default=1e-6, gt=0)
    growth_rate: Hyper | None = hyper(default=None, ge=1)
    carry: ClassVar = {"d": "d0", "weighted": 0.0, "first": 0.0}
    metrics: ClassVar = {"d": "d", "effective_lr": "rate"}
    decay_by = None

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array, s: Array, z: Array = "p") -> dict[str, Array]:
        return {"ss": abs2(xp, s), "sg": inner(xp, s, g), "gg": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        first = xp.where(h.first > 0, h.first, xp.sqrt(h.gg))
        rate = xp.where(first > 0, h.lr * h.d / xp.where(first > 0, first, 1.0), 0.0)
        weighted = h.weighted + rate * h.sg
        added = rate * xp.sqrt(h.gg)
        norm = xp.sqrt(xp.maximum(h.ss + 2 * rate * h.sg + added**2, 0.0))  # of s, once it has this step
        found = xp.where(norm > 0, 2 * weighted / xp.where(norm > 0, norm, 1.0), 0.0)
        d = xp.maximum(h.d, _grown(h, xp, h.d, found))
        return {"d": d, "weighted": weighted, "first": first, "rate": rate}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, s: Array = 0.0, z: Array = "p") -> tuple[Array, ...]:
        s = s + h.rate * g
        u = shrunk(h, xp, h.rate * g, h.rate, p)
        if h.momentum is None:
            return -u, s, z
        z = z - u
        return (1 - h.momentum) * (z - p), s, z


class DAdaptAdam(Rule):
    r"""Parameter-free (learning-rate-free) Adam: D-Adaptation (Defazio & Mishchenko 2023, arXiv:2301.07733).

    d is a lower bound of the distance from the first parameters to a solution in the largest norm; sums and norms are
    those of the whole tree. With r = √β₂, and c = 1, or √(1-β₂ᵗ)/(1-β₁ᵗ) with ``bias="standard"``::

        γ = lr·d·c
        n ← r·n + (1-r)·γ·⟨g, s/(√v + ε)⟩
        m ← β₁·m + (1-β₁)·γ·g
        v ← β₂·v + (1-β₂)·|g|²
        s ← r·s + (1-r)·γ·g
        d ← max(d, min(n/((1-r)·‖s‖₁), growth_rate·d))
        p ← p - m/(√v + ε)

    Parameters
    ----------
    lr
        Factor of the rate that is found, ≥ 0; leave it at 1, or give it a schedule that begins at 1.
    b1, b2
        β₁ and β₂ in [0, 1).
    eps
        ε > 0.
    bias
        ``"none"`` (the paper) or ``"standard"``, Adam's correction (optax).
    d0
        First d, > 0; a lower bound by far, in the unit of the parameters.
    growth_rate
        Largest factor by which d grows in a step, ≥ 1; None for any.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`; ``decay="lr"`` multiplies w by γ.

    Notes
    -----
    State: ``m``, ``s`` and ``v`` (real), 12 bytes per float32 parameter; in ``state.carry`` d and n (``weighted``).

    A step in which s is 0 leaves d alone, where ``optax.contrib.dadapt_adamw`` makes it NaN; there is no growth rate
    there either. Parameters with learning rates of their own are refused: there is one d.

    References
    ----------
    A. Defazio, K. Mishchenko (2023), Learning-rate-free learning by D-adaptation, arXiv:2301.07733, Algorithm 5.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> opt = xopt.Optimizer(np.asarray([1.0, -2.0]), xopt.DAdaptAdam())
    >>> for _ in range(200):
    ...     _ = opt.step(2 * opt.params)
    >>> bool(np.abs(opt.params).max() < 0.1)
    True
    """

    lr: Hyper = hyper(default=1.0, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.999, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-8, gt=0)
    bias: Literal["none", "standard"] = "none"
    d0: float = static(default=1e-6, gt=0)
    growth_rate: Hyper | None = hyper(default=None, ge=1)
    carry: ClassVar = {"d": "d0", "weighted": 0.0}
    metrics: ClassVar = {"d": "d", "effective_lr": "rate"}
    decay_by = "rate"
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array, m: Array, v: Array, s: Array) -> dict[str, Array]:
        r, rate = h.b2**0.5, h.lr * h.d * _bias(h)
        return {
            "along": inner(xp, g, s / (xp.sqrt(v) + h.eps)),
            "size": xp.abs(r * s + (1 - r) * rate * g),
        }

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        r, rate = h.b2**0.5, h.lr * h.d * _bias(h)
        weighted = xp.where(h.size > 0, r * h.weighted + (1 - r) * rate * h.along, h.weighted)
        found = xp.where(h.size > 0, weighted / ((1 - r) * xp.where(h.size > 0, h.size, 1.0)), 0.0)
        return {"d": xp.maximum(h.d, _grown(h, xp, h.d, found)), "weighted": weighted, "rate": rate}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0, s: Array = 0.0) -> tuple[Array, ...]:
        r = h.b2**0.5
        m = h.b1 * m + (1 - h.b1) * h.rate * g
        v = h.b2 * v + (1 - h.b2) * abs2(xp, g)
        s = r * s + (1 - r) * h.rate * g
        return -m / (xp.sqrt(v) + h.eps), m, v, s


class Prodigy(Rule):
    r"""Prodigy, parameter-free Adam (Mishchenko & Defazio 2023, arXiv:2306.06101, Algorithm 4, the Adam version).

    d is a lower bound of the distance from the first parameters x₀ to a solution; sums and norms are those of the
    whole tree. With c = 1, or √(1-β₂ᵗ)/(1-β₁ᵗ) with ``bias="standard"``::

        γ = lr·d·c
        n ← β₃·n + d·γ·⟨g, x₀ - p⟩
        m ← β₁·m + (1-β₁)·d·g
        v ← β₂·v + (1-β₂)·d²·|g|²
        s ← β₃·s + d·γ·g                         safeguard_warmup: β₃·s + d²·g
        d ← max(d, d_coef·n/‖s‖₁)
        p ← p - γ·m/(√v + d·ε)

    Parameters
    ----------
    lr
        Factor of the rate that is found, ≥ 0; leave it at 1, or give it a schedule that begins at 1.
    b1, b2
        β₁ and β₂ in [0, 1).
    b3
        β₃ in [0, 1); None for √β₂.
    eps
        ε > 0.
    bias
        ``"none"`` (the paper) or ``"standard"``, Adam's correction (optax).
    safeguard_warmup
        Leave lr and c out of s, so that a warm-up does not make d too large.
    d0
        First d, > 0; a lower bound by far, in the unit of the parameters.
    d_coef
        Factor of the estimate of d, > 0; the one to tune, between 0.5 and 2.
    growth_rate
        Largest factor by which d grows in a step, ≥ 1, after a first growth that is free; None for any.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`; ``decay="lr"`` multiplies w by γ.

    Notes
    -----
    State: ``m``, ``s``, ``x0`` (the first parameters) and ``v`` (real), 16 bytes per float32 parameter; in
    ``state.carry`` d, n (``weighted``) and the largest estimate so far (``top``).

    m is kept divided by d0, and v, s and n by d0²: the same step, and nothing underflows in float32. A step in which s
    is 0 leaves d alone. Parameters with learning rates of their own are refused: there is one d.

    References
    ----------
    K. Mishchenko, A. Defazio (2023), Prodigy: an expeditiously adaptive parameter-free learner, arXiv:2306.06101,
    Algorithm 4.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> opt = xopt.Optimizer(np.asarray([1.0, -2.0]), xopt.Prodigy())
    >>> for _ in range(200):
    ...     _ = opt.step(2 * opt.params)
    >>> bool(np.abs(opt.params).max() < 0.1)
    True
    """

    lr: Hyper = hyper(default=1.0, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.999, ge=0, lt=1)
    b3: Hyper | None = hyper(default=None, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-8, gt=0)
    bias: Literal["none", "standard"] = "none"
    safeguard_warmup: bool = False
    d0: float = static(default=1e-6, gt=0)
    d_coef: Hyper = hyper(default=1.0, gt=0)
    growth_rate: Hyper | None = hyper(default=None, ge=1)
    carry: ClassVar = {"d": "d0", "top": "d0", "weighted": 0.0}
    metrics: ClassVar = {"d": "d", "effective_lr": "rate"}
    decay_by = "rate"
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def _sum(h: H, d: Any, rate: Any, s: Array, g: Array) -> Array:
        b3 = h.b2**0.5 if h.b3 is None else h.b3
        return b3 * s + (d / h.d0) * ((d if h.safeguard_warmup else rate) / h.d0) * g

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array, m: Array, v: Array, s: Array, x0: Array) -> dict[str, Array]:
        s = Prodigy._sum(h, h.d, h.lr * h.d * _bias(h), s, g)
        return {"along": inner(xp, g, x0 - p), "size": xp.abs(s)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        rate = h.lr * h.d * _bias(h)
        b3 = h.b2**0.5 if h.b3 is None else h.b3
        weighted = xp.where(h.size > 0, b3 * h.weighted + (h.d / h.d0) * (rate / h.d0) * h.along, h.weighted)
        found = xp.where(h.size > 0, h.d_coef * weighted / xp.where(h.size > 0, h.size, 1.0), 0.0)
        d = xp.where(h.d == h.d0, xp.maximum(h.d, found), h.d)
        top = xp.maximum(h.top, found)
        return {"d": _grown(h, xp, d, top), "top": top, "weighted": weighted, "rate": rate, "before": h.d / h.d0}

    @staticmethod
    def update(
        h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0, s: Array = 0.0, x0: Array = "p"
    ) -> tuple[Array, ...]:
        m = h.b1 * m + (1 - h.b1) * h.before * g
        v = h.b2 * v + (1 - h.b2) * h.before**2 * abs2(xp, g)
        s = Prodigy._sum(h, h.before * h.d0, h.rate, s, g)
        return -h.rate * m / (xp.sqrt(v) + h.d / h.d0 * h.eps), m, v, s, x0


class DoG(Rule):
    r"""DoG, parameter-free SGD: distance over gradients (Ivgi, Hinder & Carmon 2023, arXiv:2302.12022).

    With x₀ the first parameters, and norms those of the whole tree::

        r ← max(r, ‖p - x₀‖)                     in step 1: reps_rel·(1 + ‖x₀‖)
        G ← G + ‖g‖²
        p ← p - lr·r/√(G + ε) · g

    Parameters
    ----------
    lr
        Factor of the rate that is found, ≥ 0; leave it at 1.
    reps_rel
        What the first step is made of, > 0, small enough to do no harm: 1e-6, with batch normalization 1e-4.
    first
        ``"relative"``: reps_rel·(1 + ‖x₀‖) is the first r. ``"distance"``: reps_rel is. ``"rate"``: reps_rel is the
        rate of the first step, whatever lr (``init_eta`` elsewhere), and r begins at 0.
    eps
        ε ≥ 0, in the unit of ‖g‖².
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`; ``decay="lr"`` multiplies w by lr·r/√(G + ε).

    Notes
    -----
    State: ``x0`` (the first parameters), 4 bytes per float32 parameter; in ``state.carry`` r (``rbar``) and √G
    (``norm``), which is in range where G is not.

    The first step is that with the first gradient that differs from 0. The authors average the parameters to evaluate.

    References
    ----------
    M. Ivgi, O. Hinder, Y. Carmon (2023), DoG is SGD's best friend: a parameter-free dynamic step size schedule,
    arXiv:2302.12022.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> opt = xopt.Optimizer(np.asarray([1.0, -2.0]), xopt.DoG(reps_rel=0.01))
    >>> for _ in range(100):
    ...     _ = opt.step(2 * opt.params)
    >>> bool(np.abs(opt.params).max() < 0.1)
    True
    """

    lr: Hyper = hyper(default=1.0, ge=0)
    reps_rel: Hyper = hyper(default=1e-6, gt=0)
    first: Literal["relative", "distance", "rate"] = "relative"
    eps: Hyper = hyper(default=1e-8, ge=0)
    carry: ClassVar = {"rbar": 0.0, "norm": 0.0}
    metrics: ClassVar = {"distance": "rbar", "effective_lr": "eta"}
    decay_by = "eta"

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array, x0: Array) -> dict[str, Array]:
        return {"moved": abs2(xp, p - x0), "start": abs2(xp, x0), "gg": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        far = {"relative": h.reps_rel * (1 + xp.sqrt(h.start)), "distance": h.reps_rel, "rate": 0.0}[h.first]
        rbar = xp.where(h.norm > 0, xp.maximum(h.rbar, xp.sqrt(h.moved)), far)
        norm = xp.hypot(h.norm, xp.sqrt(h.gg))
        root = xp.hypot(norm, xp.sqrt(h.eps))
        eta = h.lr * rbar / xp.where(root > 0, root, 1.0)
        if h.first == "rate":
            eta = xp.where(h.norm > 0, eta, h.reps_rel)
        return {"rbar": rbar, "norm": norm, "eta": eta}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, x0: Array = "p") -> tuple[Array, ...]:
        return -h.eta * g, x0


class LDoG(DoG):
    r"""Layer-wise DoG: distance over gradients (Ivgi, Hinder & Carmon 2023, arXiv:2302.12022, section 4).

    As :class:`~xopt.DoG`, but each leaf of the tree has its own norms::

        p ← p - lr·r/√(G + ε) · g

    Parameters
    ----------
    lr, reps_rel, first, eps, weight_decay, decay, peak_lr, maximize, complex, like
        As for :class:`~xopt.DoG`.

    Notes
    -----
    State: ``x0`` (the first parameters), 4 bytes per float32 parameter; in ``state.carry`` r (``rbar``) and √G
    (``norm``) of each leaf.

    References
    ----------
    M. Ivgi, O. Hinder, Y. Carmon (2023), DoG is SGD's best friend: a parameter-free dynamic step size schedule,
    arXiv:2302.12022.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> opt = xopt.Optimizer([np.asarray([1.0]), np.asarray([-200.0])], xopt.LDoG(reps_rel=0.01))
    >>> for _ in range(100):
    ...     _ = opt.step([2 * p for p in opt.params])
    >>> bool(abs(opt.params[0]) < 0.1 and abs(opt.params[1]) < 20)
    True
    """

    scope = "leaf"
