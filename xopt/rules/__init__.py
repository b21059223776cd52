"""The maths: one file a family of rules."""

from xopt.rules.adam import Adam, AdamW
from xopt.rules.adaptive import Adadelta, Adagrad, RMSProp
from xopt.rules.sgd import SGD

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "RMSProp"]
