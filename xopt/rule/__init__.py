"""What the author of a rule imports: fields, components of a chain, elementwise helpers, chains."""

from xopt.rule._component import Array as Array
from xopt.rule._component import Component as Component
from xopt.rule._component import H as H
from xopt.rule._component import Hyper as Hyper
from xopt.rule._component import Moments as Moments
from xopt.rule._component import RoutedComponent as RoutedComponent
from xopt.rule._component import routed as routed
from xopt.rule._component import unchanged as unchanged
from xopt.rule._elementwise import abs2 as abs2
from xopt.rule._elementwise import inner as inner
from xopt.rule._elementwise import is_complex as is_complex
from xopt.rule._elementwise import sign as sign
from xopt.rule._elementwise import trust_ratio as trust_ratio
from xopt.rule._fields import hyper as hyper
from xopt.rule._fields import static as static
from xopt.rule._functional import FunctionalOptimizer as FunctionalOptimizer
from xopt.rule._functional import RunnerName as RunnerName
from xopt.rule._functional import State as State
from xopt.rule._functional import check_method as check_method
from xopt.rule._rule import Chain as Chain
from xopt.rule._rule import Decay as Decay
from xopt.rule._rule import Rule as Rule
from xopt.rule._rule import Transform as Transform
from xopt.rule._rule import chain as chain
from xopt.rule._rule import decayed_step as decayed_step
from xopt.rule._rule import shrunk as shrunk
