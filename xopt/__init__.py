"""Gradient-based optimizers, written once against the Python Array API standard."""

from xopt import nn, random, schedules
from xopt._config import show_config
from xopt.optimizer import Optimizer
from xopt.rule import Chain, Rule, State, Transform, abs2, chain, hyper, is_complex, static
from xopt.rules import SGD, Adadelta, Adagrad, Adam, AdamW, RMSProp
from xopt.transforms import ClipByGlobalNorm, ClipByNorm, ClipByValue

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Chain",
    "ClipByGlobalNorm",
    "ClipByNorm",
    "ClipByValue",
    "Optimizer",
    "RMSProp",
    "Rule",
    "State",
    "Transform",
    "abs2",
    "chain",
    "hyper",
    "is_complex",
    "nn",
    "random",
    "schedules",
    "show_config",
    "static",
]
