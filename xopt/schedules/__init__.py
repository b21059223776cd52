r"""Schedules: hyperparameters that follow the step.

A schedule is a callable of the step t = 1, 2, 3, …; step 1 is the first update. With s = t - 1 updates already made,
``schedule(t)`` equals optax's schedule at count s and torch's ``LambdaLR`` at epoch s. Every hyperparameter of every
rule may be one, and so may any function of your own; written with arithmetic alone it is also traced under ``jax.jit``.

Schedules add, subtract, multiply, divide and take powers, with numbers and with each other::

    xopt.schedules.warmup(1.0, steps=100) * xopt.schedules.inverse_time(0.1, rate=0.01)
"""

from xopt.schedules._combine import clip, delay, join, scale, staircase
from xopt.schedules._curves import constant, cosine, exponential, inverse_time, multi_step, polynomial, rex, step
from xopt.schedules._phases import (
    cosine_restarts,
    cyclic,
    inverse_sqrt,
    noam,
    one_cycle,
    piecewise,
    warmup,
    warmup_cosine,
    wsd,
)
from xopt.schedules._schedule import Schedule
from xopt.schedules._schedule import _rebuild as _rebuild  # pickles name it

__all__ = [
    "Schedule",
    "clip",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "delay",
    "exponential",
    "inverse_sqrt",
    "inverse_time",
    "join",
    "multi_step",
    "noam",
    "one_cycle",
    "piecewise",
    "polynomial",
    "rex",
    "scale",
    "staircase",
    "step",
    "warmup",
    "warmup_cosine",
    "wsd",
]
