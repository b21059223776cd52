"""Every dtype that parameters and state may have: one row each, which all else reads."""

from __future__ import annotations

from typing import NamedTuple


class DType(NamedTuple):
    """A dtype, apart from the library that spells it."""

    name: str
    itemsize: int
    """Bytes a number."""
    real: str
    """The real dtype that arithmetic is done in."""
    tag: str
    """What a safetensors file calls it; of complex numbers, their parts."""
    bits: str
    """What NumPy calls its memory in a file: bfloat16 are integers of 16 bits there."""
    compiled: str
    """What a compiled loop loads and stores: NumPy's short name."""
    cuda: str
    """What a kernel loads and stores."""
    complex: bool = False
    parameter: bool = True
    """Whether parameters may have it, and not state alone."""

    @property
    def part(self) -> str:
        """What is stored: of complex numbers, the dtype of their parts."""
        return self.real if self.complex else self.name

    @property
    def compute(self) -> str:
        """The dtype that a parameter of this dtype is computed in: float32 at least."""
        return COMPLEX_OF[self.real] if self.complex else self.real

    @property
    def half(self) -> bool:
        """Whether it has fewer digits than what it is computed in."""
        return self.parameter and self.itemsize == 2

    @property
    def converted(self) -> bool:
        """Whether a compiled loop converts it on the way from and to memory."""
        return self.part != self.real


TABLE = {
    d.name: d
    for d in (
        DType("float16", 2, "float32", "F16", "<f2", "u2", "Half"),
        DType("bfloat16", 2, "float32", "BF16", "<u2", "u2", "BFloat"),
        DType("float32", 4, "float32", "F32", "<f4", "f4", "float"),
        DType("float64", 8, "float64", "F64", "<f8", "f8", "double"),
        DType("complex64", 8, "float32", "F32", "<c8", "f4", "Complex<float>", complex=True),
        DType("complex128", 16, "float64", "F64", "<c16", "f8", "Complex<double>", complex=True),
        DType("int8", 1, "float32", "I8", "|i1", "i1", "signed char", parameter=False),
        DType("uint8", 1, "float32", "U8", "|u1", "u1", "unsigned char", parameter=False),
    )
}
"""All of them, by name."""

DTYPES = {n: d for n, d in TABLE.items() if d.parameter}
"""Those that a parameter may have."""

COMPLEX_OF = {d.real: d.name for d in TABLE.values() if d.complex}


def part(dtype: str) -> str:
    """Return the dtype that is stored: of complex numbers, that of their parts."""
    return TABLE[dtype].part
