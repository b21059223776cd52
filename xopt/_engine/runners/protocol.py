"""What a runner is to those that call it: the executor, the optimizer and `explain`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from xopt._engine.program.contract import BucketStep, StepScalars
from xopt._engine.program.trace import Program


class Stepper(Protocol):
    """What computes a step of a bucket."""

    def prepare(
        self, work: BucketStep, values: StepScalars, into: dict[str, list[Any]] | None
    ) -> Callable[[], dict[str, list[Any]]]:
        """Return a function that runs the whole chain over every leaf.

        ``into`` are the arrays that results are written into; None for new ones. What can fail for what the caller gave
        fails here, before any write.
        """

    def sums(self, work: BucketStep, values: StepScalars, index: int) -> dict[str, Any]:
        """Return the sums that component ``index`` asks for, a vector over the leaves."""


@runtime_checkable
class Runner(Stepper, Protocol):
    """What computes the steps of an optimizer. It has no maths and knows no rule."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def host(self) -> bool:
        """Whether the host computes: scalars are Python floats, and the state lies in memory that NumPy sees."""

    @property
    def caches(self) -> bool:
        """Whether it keeps something from step to step, as those of the host do."""

    @property
    def inspector(self) -> Any:
        """What looks at gradients in a compiled loop, see `AliasGuard`; None for a loop of Python."""

    @property
    def copy(self) -> Any:
        """What copies between addresses of memory in a compiled loop, see `llvm.copies`; None where there is none."""

    def again(self, work: BucketStep, values: StepScalars) -> tuple[Callable[[Any], None], Callable[[], None]] | None:
        """Return two functions, if it has such, for steps of a bucket with the same arrays.

        The first makes one ready, given the addresses of its gradients, with the scalars that ``values`` has then; the
        second takes it.
        """

    def total(self, xp: Any, leaves: Any) -> Any:
        """Sum a vector over the leaves, in their order."""

    def source(
        self, program: Program, title: str, stored: Mapping[str, str], real: str, split: bool, body: bool
    ) -> str:
        """Return what is made of a program as text.

        ``stored`` has the dtype of each array, ``real`` that of the arithmetic; ``split``: of complex numbers, that of
        their parts; ``body``: the program is that of the step, not of its sums.
        """
