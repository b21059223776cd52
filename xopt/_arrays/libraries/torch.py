"""PyTorch, in the dress of array-api-compat."""

from __future__ import annotations

import functools
import importlib
import operator
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from xopt._arrays.library import DTYPE, SHAPE, Array, Library, NDArray, bfloat16, described, shapes_and_dtypes

_contiguous, _address = operator.methodcaller("is_contiguous"), operator.methodcaller("data_ptr")
_conj, _neg, _stride = (operator.methodcaller(n) for n in ("is_conj", "is_neg", "stride"))
_CONSTANT = "fun: returned values that do not depend on x, so that torch cannot differentiate them"
_FACTS = (DTYPE, SHAPE, operator.attrgetter("device"), operator.attrgetter("layout"))


def _torch() -> Any:
    return importlib.import_module("torch")


def _fake(*column: Array) -> bool:
    """Whether any of these is a FakeTensor, which must not be asked where it lies."""
    return any(kind.__name__ == "FakeTensor" for kind in {*map(type, column)})


def _transforms() -> Any:
    """Return the transforms of ``torch.func`` that run here, in which new tensors hide their memory; None of none."""
    return _torch()._C._functorch.peek_interpreter_stack()


class Own(Library):
    packages = ("torch",)
    served = "like NumPy on CPU, cuda on GPUs, eager elsewhere"
    writes = True
    graphs = True
    differentiates = True
    cuda = True
    random_dtype = "int64"  # it has next to no arithmetic of unsigned integers

    def namespace(self, x: Array) -> Any:
        return importlib.import_module("array_api_compat.torch")

    def reason(self, x: Array) -> str:
        if isinstance(x, _torch().nn.parameter.UninitializedTensorMixin):
            return "a parameter of a lazy module, which has no shape yet; call the module once before"
        if x.is_nested:
            return "a nested tensor, whose components differ in shape; pass the list of them, x.unbind()"
        if _torch()._C._functorch.is_gradtrackingtensor(x):  # else their gradients would be 0
            return "a tensor of torch.func.grad or jvp, which do not see through a step; take the step outside of them"
        if x.layout != _torch().strided:
            return f"a tensor in the layout {x.layout}, but a parameter must be dense; pass x.to_dense()"
        if not hasattr(x, "to_local"):
            return ""
        return (
            "a DTensor, whose parts lie with several processes; pass x.to_local().detach(), where no component needs "
            "the whole array"
        )

    def stands_for(self, x: Array) -> str:
        return "a FakeTensor" if _fake(x) else ""

    def is_part(self, x: Array) -> bool:
        return "ToTorchTensor" in type(x.grad_fn).__name__  # nobody can tell once it is detached

    def resolved(self, x: Array) -> Array:
        return x.resolve_conj().resolve_neg()

    def is_plain(self, x: Array) -> bool:
        return not (x.is_conj() or x.is_neg())

    def detached(self, x: Array) -> Array:
        return x.detach() if hasattr(x, "detach") else x

    def ordered(self, x: Array, matrix: bool) -> Array:
        return x.contiguous() if matrix else x

    def layout(self, x: Array) -> Any:
        return x.layout

    def copied(self, xp: Any, p: Array, kind: Any) -> Array:
        return self.resolved(p.detach()).to(kind, copy=True).contiguous()

    def join_complex(self, xp: Any, re: Array, im: Array) -> Array:
        return _torch().complex(re, im)

    def constant(self, xp: Any, like: Array, value: int) -> Any:
        return value

    def host_view(self, x: Array) -> NDArray | None:
        if _transforms() is not None or x.device.type != "cpu" or not self.is_plain(x):
            return None
        half, x = x.dtype == _torch().bfloat16, x.detach()
        if half and bfloat16() is None:
            return None
        try:
            view: NDArray = (x.view(_torch().int16) if half else x).numpy()
        except RuntimeError:  # one that stands for others, under vmap, or for one without memory, a FakeTensor
            if x._is_zerotensor():
                raise
            return None
        return view.view(bfloat16()) if half else view

    def to_host(self, x: Array) -> Any:
        x = self.resolved(x.detach())
        x = x.view(_torch().int16) if x.dtype == _torch().bfloat16 else x
        return x.cpu().contiguous().numpy()

    def from_host(self, xp: Any, x: NDArray, dtype: str, like: Array) -> Array:
        return self.shared(x, dtype).to(like.device)

    def shared(self, x: NDArray, dtype: str) -> Array:
        torch = _torch()
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if dtype == "bfloat16" else torch.from_numpy(x)

    def concatenate(self, pieces: list[Array], out: Array) -> None:
        _torch().cat(pieces, out=out)

    def written(self, arrays: list[Array]) -> None:
        # so that a stale graph raises instead of lying
        _torch().autograd.graph.increment_version(arrays)

    def no_grad(self) -> Any:
        return _torch().no_grad()

    def contiguous(self, column: list[Array]) -> list[bool]:
        return list(map(_contiguous, column))

    def addresses(self, column: list[Array]) -> list[int]:
        return list(map(_address, column))

    def facts(self, column: list[Array]) -> list[Any]:
        if _fake(*column) or any(map(_conj, column)) or any(map(_neg, column)):
            return []
        return [list(map(fact, column)) for fact in _FACTS]

    def plain_types(self) -> list[type]:
        return [_torch().Tensor]

    def marked(self, column: list[Array], wide: bool) -> bool:
        tensor = _torch().Tensor
        return any(map(tensor.is_neg, column)) or (wide and any(map(tensor.is_conj, column)))

    def unmapped(self, x: Array) -> bool:
        try:
            return bool(x.numel() > 0 and (_fake(x) or x.data_ptr() == 0))
        except RuntimeError:  # of what stands for a tensor
            return True

    def phantom(self, x: Array) -> NDArray | None:
        if _fake(x):
            return None
        try:
            size = x.element_size()
            return described(x.data_ptr(), x.shape, tuple(s * size for s in x.stride()), size)
        except RuntimeError:
            return None

    def moving(self, leaves: list[Array], wide: bool) -> list[Any]:
        if _transforms() is not None:
            raise TypeError("Optimizer: inside torch.func, where it cannot write; use rule.init and rule.apply")
        views = [list(map(_conj, leaves)) if wide else None, list(map(_stride, leaves))]
        return [*shapes_and_dtypes(leaves), *views, self._memory(leaves)]

    def _memory(self, leaves: list[Array]) -> list[int]:
        """Return where tensors lie; nothing of those that stand for others."""
        try:
            return [] if _fake(*leaves) else self.addresses(leaves)
        except RuntimeError:
            return []

    def places(self, xp: Any, indices: Array) -> Array:
        return indices.to(_torch().int64)

    def distinct(self, xp: Any, indices: Array, count: int) -> tuple[Array, Array]:
        found: tuple[Array, Array] = _torch().unique(indices, return_inverse=True)
        return found

    def add_rows(self, xp: Any, table: Array, at: Array, rows: Array) -> Array:
        if table.device.type == "cpu":
            return table.index_add_(0, at, rows)
        return table.index_put_((at,), rows, accumulate=True)  # which sorts, where the other is a race

    def put_rows(self, xp: Any, table: Array, at: Array, rows: Array) -> Array:
        return table.index_copy_(0, at, rows)

    def on_device(self, x: Array) -> Any:
        return _torch().cuda.device(x.device) if x.device.type == "cuda" else nullcontext()

    def cuda_stream(self, x: Array) -> tuple[int, int]:
        return x.device.index, _torch().cuda.current_stream(x.device).cuda_stream

    def synchronize(self, x: Array) -> None:
        if x.device.type == "cuda":
            _torch().cuda.current_stream(x.device).synchronize()

    def on_cuda(self, x: Array) -> bool:
        return x.device.type == "cuda" and self.is_plain(x)

    def second(self, function: Callable[[list[Array]], Any]) -> Callable[[list[Array]], Any]:
        torch = _torch()

        def at(leaves: list[Array]) -> Callable[[list[Array]], list[Array]]:
            leaves = [p.detach().requires_grad_() for p in leaves]
            with torch.enable_grad():
                value = function(leaves).reshape(())
                grads = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
            curved = [k for k, g in enumerate(grads) if g is not None and g.requires_grad]  # the others are constant

            def along(v: list[Array]) -> list[Array]:
                outputs = [grads[k] for k in curved]
                weights = [v[k] for k in curved]
                found = [None] * len(leaves)
                if curved:
                    found = torch.autograd.grad(outputs, leaves, weights, retain_graph=True, allow_unused=True)
                return [torch.zeros_like(p) if h is None else h.detach() for p, h in zip(leaves, found, strict=True)]

            return along

        return at

    def value_and_grad(self, function: Callable[[list[Array]], Any]) -> Callable[[list[Array]], Any]:
        torch = _torch()

        def both(leaves: list[Array]) -> Any:
            leaves = [p.detach().requires_grad_() for p in leaves]
            with torch.enable_grad():
                value = function(leaves)
                if not isinstance(value, torch.Tensor) or not value.requires_grad:
                    raise TypeError(
                        f"fun: returned {value!r}, but with jac=False it must return a tensor that torch can "
                        f'differentiate; jac="2-point" takes differences'
                    )
                scalar = value.reshape(()) if value.numel() == 1 else value
                grads = torch.autograd.grad(scalar, leaves, allow_unused=True)
            return value.detach(), [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, grads, strict=True)]

        return both

    def along(self, function: Callable[[Array], Array], x: Array) -> Callable[[Array], Array]:
        jvp = _jvp()

        def product(v: Array) -> Array:
            try:
                return jvp(function, (x,), (v,), strict=True)[1]
            except RuntimeError as error:
                if "strict=True" in str(error):
                    raise TypeError(_CONSTANT) from None
                raise

        return product

    def across(self, function: Callable[[Array], Array], x: Array) -> tuple[Array, Callable[[Array], Array]]:
        torch = _torch()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = function(x)
        if not y.requires_grad:
            raise TypeError(_CONSTANT)

        def back(u: Array) -> Array:
            [found] = torch.autograd.grad(y, x, u, retain_graph=True, allow_unused=True, materialize_grads=True)
            return found

        return y.detach(), back


@functools.cache
def _jvp() -> Any:
    """Return torch's derivative along a direction; its first use warns of what torch itself uses."""
    torch = _torch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))
    return torch.func.jvp
