"""Gradient-based optimizers, written once against the Python Array API standard."""

from xopt import averages, nn, projections, random, scaling, schedules
from xopt._config import show_config
from xopt._explain import explain
from xopt._select import no_decay_1d
from xopt.averages import *
from xopt.groups import Freeze, Groups, layerwise_decay, scaled
from xopt.masked import Masked
from xopt.optimizer import Optimizer
from xopt.projections import *
from xopt.rule import Chain, Rule, State, Transform, abs2, chain, hyper, is_complex, static
from xopt.rules import adam, adam_denominator, adam_difference, adam_momentum, adaptive, averaging, layerwise, sgd, sign
from xopt.rules.adam import *
from xopt.rules.adam_denominator import *
from xopt.rules.adam_difference import *
from xopt.rules.adam_momentum import *
from xopt.rules.adaptive import *
from xopt.rules.averaging import *
from xopt.rules.layerwise import *
from xopt.rules.sgd import *
from xopt.rules.sign import *
from xopt.sam import SAM
from xopt.scaling import *
from xopt.transforms import ClipByGlobalNorm, ClipByNorm, ClipByValue
from xopt.wrappers import Accumulate, Guard

__version__ = "0.1.0"

__all__ = [
    "SAM",
    "Accumulate",
    "Chain",
    "ClipByGlobalNorm",
    "ClipByNorm",
    "ClipByValue",
    "Freeze",
    "Groups",
    "Guard",
    "Masked",
    "Optimizer",
    "Rule",
    "State",
    "Transform",
    "abs2",
    "chain",
    "explain",
    "hyper",
    "is_complex",
    "layerwise_decay",
    "nn",
    "no_decay_1d",
    "random",
    "scaled",
    "schedules",
    "show_config",
    "static",
]
__all__ += adam.__all__
__all__ += adam_denominator.__all__
__all__ += adam_difference.__all__
__all__ += adam_momentum.__all__
__all__ += adaptive.__all__
__all__ += averages.__all__
__all__ += averaging.__all__
__all__ += layerwise.__all__
__all__ += projections.__all__
__all__ += scaling.__all__
__all__ += sgd.__all__
__all__ += sign.__all__
