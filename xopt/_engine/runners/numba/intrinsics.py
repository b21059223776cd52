"""What generated Numba code is made of: typed access to memory by address, half precision, sums in NumPy's order.

Only generated modules import this one; it imports Numba.
"""

# mypy: disable-error-code="call-arg, var-annotated, no-untyped-call, untyped-decorator, misc"
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_SCOPES = 24
"""Arrays that the compiler is told do not overlap. More are correct too; it then has to check, or keep to scalars."""


@intrinsic
def _pointer(context: Any, address: Any, like: Any) -> Any:
    """Make a pointer of an address; ``like`` is a number type."""
    signature = types.CPointer(like.dtype)(types.int64, like)
    return signature, lambda c, b, s, args: b.inttoptr(args[0], c.get_value_type(s.return_type))


@njit
def f4_at(address: Any) -> Any:
    """Return a pointer to float32 numbers."""
    return _pointer(address, types.float32)


@njit
def f8_at(address: Any) -> Any:
    """Return a pointer to float64 numbers."""
    return _pointer(address, types.float64)


@njit
def u2_at(address: Any) -> Any:
    """Return a pointer to 16-bit patterns."""
    return _pointer(address, types.uint16)


@njit
def i1_at(address: Any) -> Any:
    """Return a pointer to codes with a sign."""
    return _pointer(address, types.int8)


@njit
def u1_at(address: Any) -> Any:
    """Return a pointer to codes without a sign."""
    return _pointer(address, types.uint8)


@njit
def i4_at(address: Any) -> Any:
    """Return a pointer to 32-bit integers."""
    return _pointer(address, types.int32)


@njit
def i8_at(address: Any) -> Any:
    """Return a pointer to addresses."""
    return _pointer(address, types.int64)


def _tag(instruction: Any, module: Any, scope: Any) -> None:
    """Tell the compiler which array this access belongs to, and that no other is the same memory."""
    instruction.align = 1  # an array may start at any byte
    if scope.literal_value < _SCOPES:
        domain = module.add_metadata([ir.MetaDataString(module, "xopt")])
        scopes = [module.add_metadata([ir.MetaDataString(module, f"xopt array {k}"), domain]) for k in range(_SCOPES)]
        mine = scopes.pop(scope.literal_value)
        instruction.set_metadata("alias.scope", module.add_metadata([mine]))
        instruction.set_metadata("noalias", module.add_metadata(scopes))


@intrinsic(prefer_literal=True)
def load(context: Any, pointer: Any, i: Any, scope: Any) -> Any:
    """Read element ``i`` of the array that the kernel knows as number ``scope``."""

    def generate(c: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = builder.load(builder.gep(args[0], [args[1]]))
        _tag(found, builder.module, scope)
        return found

    return pointer.dtype(pointer, i, scope), generate


@intrinsic(prefer_literal=True)
def store(context: Any, pointer: Any, i: Any, scope: Any, value: Any) -> Any:
    """Write element ``i`` of the array that the kernel knows as number ``scope``."""

    def generate(c: Any, builder: Any, signature: Any, args: Any) -> Any:
        _tag(builder.store(args[3], builder.gep(args[0], [args[1]])), builder.module, scope)
        return c.get_dummy_value()

    return types.void(pointer, i, scope, pointer.dtype), generate


@intrinsic
def _float_of(context: Any, bits: Any) -> Any:
    return types.float32(types.uint32), lambda c, b, s, args: b.bitcast(args[0], ir.FloatType())


@intrinsic
def _bits_of(context: Any, x: Any) -> Any:
    return types.uint32(types.float32), lambda c, b, s, args: b.bitcast(args[0], ir.IntType(32))


@njit
def _mixed(x: Any) -> Any:
    u = types.uint32
    x = u((x ^ (x >> u(16))) * u(0x21F0AAAD))
    x = u((x ^ (x >> u(15))) * u(0xD35A2D97))
    return u(x ^ (x >> u(15)))


@njit
def noise(index: Any, low: Any, high: Any, leaf: Any, seed_low: Any, seed_high: Any) -> Any:
    """Return a number in [0, 1), as `xopt.random.hashed` does."""
    u = types.uint32
    step = _mixed(u(u(u(low) + (u(high) << u(16))) * u(0x9E3779B1)))
    seed = _mixed(u(u(seed_low) + (u(seed_high) << u(16))))
    key = _mixed(u(_mixed(u(step ^ seed)) + u(u(leaf) * u(0x9E3779B1))))
    return types.float32(_mixed(u(_mixed(u(u(index) * u(0x9E3779B1))) ^ key)) >> u(8)) * types.float32(2.0**-24)


@njit
def of_bfloat16(x: Any) -> Any:
    """Widen a bfloat16 pattern to float32."""
    return _float_of(types.uint32(x) << types.uint32(16))


@njit
def to_bfloat16(x: Any) -> Any:
    """Round float32 to the nearest bfloat16, ties to even."""
    bits = _bits_of(x)
    odd = (bits >> types.uint32(16)) & types.uint32(1)
    rounded = (bits + types.uint32(0x7FFF) + odd) >> types.uint32(16)
    quiet = (bits >> types.uint32(16)) | types.uint32(0x40)
    return types.uint16(quiet if x != x else rounded)


@njit
def of_float16(x: Any) -> Any:
    """Widen a float16 pattern to float32."""
    u = types.uint32
    bits = (u(x) & u(0x7FFF)) << u(13)
    exponent = bits & u(0x0F800000)
    normal = bits + u(112 << 23)
    special = normal + u(112 << 23)  # infinity and NaN
    small = _bits_of(_float_of(normal + u(1 << 23)) - _float_of(u(113 << 23)))  # denormal: let the subtraction shift
    found = special if exponent == u(0x0F800000) else (small if exponent == u(0) else normal)
    return _float_of(found | ((u(x) & u(0x8000)) << u(16)))


@njit
def to_float16(x: Any) -> Any:
    """Round float32 to the nearest float16, ties to even."""
    u = types.uint32
    bits = _bits_of(x)
    sign = bits & u(0x80000000)
    size = bits ^ sign
    special = u(0x7E00) if size > u(0x7F800000) else u(0x7C00)
    magic = u(126 << 23)  # 0.5: its last bit is worth what the last bit of a float16 denormal is
    small = _bits_of(_float_of(size) + _float_of(magic)) - magic
    odd = (size >> u(13)) & u(1)
    normal = (size - u(112 << 23) + u(0xFFF) + odd) >> u(13)
    found = special if size >= u(0x47800000) else (small if size < u(113 << 23) else normal)
    return types.uint16(found | (sign >> u(16)))


@njit
def of_int8(x: Any) -> Any:
    """Return a code as a number."""
    return types.float32(x)


of_uint8 = of_int8


@njit
def to_int8(x: Any) -> Any:
    """Truncate a number to a code."""
    return types.int8(types.int32(x))


@njit
def to_uint8(x: Any) -> Any:
    """Truncate a number to a code."""
    return types.uint8(types.int32(x))


@njit
def largest(rows: Any, bits: Any, k: Any, n: Any) -> Any:
    """Return the largest of the first ``n`` numbers of row ``k``, none below 0; of a NaN, NaN.

    Compilers find the largest of integers many at a time, but not of floating-point numbers, where NaN is a case.
    """
    top = bits[k, 0]
    for i in range(1, n):
        top = max(top, bits[k, i])
    bits[-1, 0] = top
    return rows[-1, 0]


@njit
def _block(x: Any, low: Any, n: Any) -> Any:
    """Sum at most 128 numbers: eight sums side by side."""
    total = 0.0
    done = low
    if n >= 8:
        a, b, c, d = x[low], x[low + 1], x[low + 2], x[low + 3]
        e, f, g, h = x[low + 4], x[low + 5], x[low + 6], x[low + 7]
        done = low + n - n % 8
        for i in range(low + 8, done, 8):
            a += x[i]
            b += x[i + 1]
            c += x[i + 2]
            d += x[i + 3]
            e += x[i + 4]
            f += x[i + 5]
            g += x[i + 6]
            h += x[i + 7]
        total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(done, low + n):
        total += x[i]
    return total


def _halving(below: Any, most: int) -> Any:
    """Return the sum of up to twice as many numbers. It does not call itself: Numba cannot cache what does.

    Nor can it tell apart, in the cache, functions of one name: each has its own.
    """

    def pairwise(x: Any, low: Any, n: Any) -> Any:
        if n <= 128:
            return _block(x, low, n)
        half = n // 2
        half -= half % 8
        return below(x, low, half) + below(x, low + half, n - half)

    pairwise.__name__ = pairwise.__qualname__ = f"pairwise_{most}"
    return njit(pairwise)


pairwise = _block
"""Sums ``n`` numbers of ``x`` from ``low`` on, 64 Ki at most, in the order in which ``numpy.add.reduce`` does."""
for _k in range(8, 19):
    pairwise = _halving(pairwise, 2**_k)
