"""The functions that generated loops call, and the text of a whole module."""

from __future__ import annotations

from collections.abc import Iterable

from xopt._engine.runners.llvm.text import REALS, printable

_ORDERS = {"maximum": "oge", "minimum": "ole"}
_EXTREME = """define internal {T} @NAME({T} %a, {T} %b) alwaysinline nounwind {{
  %1 = fcmp ORDER {T} %a, %b
  %2 = fcmp uno {T} %a, %a
  %3 = or i1 %1, %2
  %4 = select i1 %3, {T} %a, {T} %b
  ret {T} %4
}}
"""
_OF_REAL = {
    **{name: _EXTREME.replace("NAME", name).replace("ORDER", order) for name, order in _ORDERS.items()},
    "sign": """define internal {T} @sign({T} %a) alwaysinline nounwind {{
  %1 = fcmp ogt {T} %a, 0.0
  %2 = fcmp olt {T} %a, 0.0
  %3 = select i1 %2, {T} -1.0, {T} 0.0
  %4 = select i1 %1, {T} 1.0, {T} %3
  %5 = fcmp uno {T} %a, %a
  %6 = select i1 %5, {T} %a, {T} %4
  ret {T} %6
}}
""",
    # the largest of numbers none of which is below 0, as integers; of a NaN, NaN
    "largest": """define internal {T} @largest(ptr %row, i64 %n) alwaysinline nounwind {{
entry:
  %first = load {I}, ptr %row
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %up, %loop ]
  %top = phi {I} [ %first, %entry ], [ %more, %loop ]
  %at = getelementptr {I}, ptr %row, i64 %i
  %x = load {I}, ptr %at
  %more = call {I} @llvm.smax.{I}({I} %top, {I} %x)
  %up = add nsw i64 %i, 1
  %on = icmp slt i64 %up, %n
  br i1 %on, label %loop, label %end
end:
  %bits = bitcast {I} %more to {T}
  ret {T} %bits
}}
declare {I} @llvm.smax.{I}({I}, {I})
""",
    "of_int8": """define internal {T} @of_int8(i8 %x) alwaysinline nounwind {{
  %1 = sitofp i8 %x to {T}
  ret {T} %1
}}
""",
    "of_uint8": """define internal {T} @of_uint8(i8 %x) alwaysinline nounwind {{
  %1 = uitofp i8 %x to {T}
  ret {T} %1
}}
""",
    "to_int8": """define internal i8 @to_int8({T} %x) alwaysinline nounwind {{
  %1 = fptosi {T} %x to i32
  %2 = trunc i32 %1 to i8
  ret i8 %2
}}
""",
    "to_uint8": """define internal i8 @to_uint8({T} %x) alwaysinline nounwind {{
  %1 = fptosi {T} %x to i32
  %2 = trunc i32 %1 to i8
  ret i8 %2
}}
""",
    # a number in [0, 1), as `xopt.random.hashed` does
    "noise": """define internal i32 @mixed(i32 %x) alwaysinline nounwind {{
  %1 = lshr i32 %x, 16
  %2 = xor i32 %x, %1
  %3 = mul i32 %2, 569420461
  %4 = lshr i32 %3, 15
  %5 = xor i32 %3, %4
  %6 = mul i32 %5, -749064809
  %7 = lshr i32 %6, 15
  %8 = xor i32 %6, %7
  ret i32 %8
}}
define internal i32 @joined({T} %low, {T} %high) alwaysinline nounwind {{
  %1 = fptoui {T} %low to i32
  %2 = fptoui {T} %high to i32
  %3 = shl i32 %2, 16
  %4 = add i32 %1, %3
  ret i32 %4
}}
define internal {T} @noise(i64 %index, {T} %low, {T} %high, {T} %leaf, {T} %seed_low, {T} %seed_high,
{T} %chunk) alwaysinline nounwind {{
  %time = call i32 @joined({T} %low, {T} %high)
  %1 = mul i32 %time, -1640531535
  %step = call i32 @mixed(i32 %1)
  %2 = call i32 @joined({T} %seed_low, {T} %seed_high)
  %seed = call i32 @mixed(i32 %2)
  %3 = xor i32 %step, %seed
  %4 = call i32 @mixed(i32 %3)
  %5 = fptoui {T} %leaf to i32
  %6 = mul i32 %5, -1640531535
  %7 = add i32 %4, %6
  %key = call i32 @mixed(i32 %7)
  %start = call i32 @joined({T} 0.0, {T} %chunk)
  %at = trunc i64 %index to i32
  %8 = add i32 %at, %start
  %9 = mul i32 %8, -1640531535
  %10 = call i32 @mixed(i32 %9)
  %11 = xor i32 %10, %key
  %12 = call i32 @mixed(i32 %11)
  %13 = lshr i32 %12, 8
  %14 = sitofp i32 %13 to {T}
  %15 = fmul {T} %14, 0x3E70000000000000
  ret {T} %15
}}
""",
}

_SUM = """define internal double @sum(ptr %x, i64 %n) alwaysinline nounwind {
entry:
  %odd = and i64 %n, 7
  %even = sub i64 %n, %odd
  %many = icmp sge i64 %n, 8
  br i1 %many, label %lanes, label %rest
lanes:
  %first = load <8 x double>, ptr %x, align 8
  br label %check
check:
  %i = phi i64 [ 8, %lanes ], [ %up, %loop ]
  %eight = phi <8 x double> [ %first, %lanes ], [ %more, %loop ]
  %on = icmp slt i64 %i, %even
  br i1 %on, label %loop, label %across
loop:
  %at = getelementptr double, ptr %x, i64 %i
  %next = load <8 x double>, ptr %at, align 8
  %more = fadd <8 x double> %eight, %next
  %up = add nsw i64 %i, 8
  br label %check
across:
  %a0 = shufflevector <8 x double> %eight, <8 x double> poison, <4 x i32> <i32 0, i32 2, i32 4, i32 6>
  %a1 = shufflevector <8 x double> %eight, <8 x double> poison, <4 x i32> <i32 1, i32 3, i32 5, i32 7>
  %four = fadd <4 x double> %a0, %a1
  %b0 = shufflevector <4 x double> %four, <4 x double> poison, <2 x i32> <i32 0, i32 2>
  %b1 = shufflevector <4 x double> %four, <4 x double> poison, <2 x i32> <i32 1, i32 3>
  %two = fadd <2 x double> %b0, %b1
  %c0 = extractelement <2 x double> %two, i32 0
  %c1 = extractelement <2 x double> %two, i32 1
  %one = fadd double %c0, %c1
  br label %rest
rest:
  %from = phi i64 [ 0, %entry ], [ %even, %across ]
  %begun = phi double [ 0.0, %entry ], [ %one, %across ]
  br label %tail
tail:
  %j = phi i64 [ %from, %rest ], [ %j.up, %add ]
  %total = phi double [ %begun, %rest ], [ %sum, %add ]
  %left = icmp slt i64 %j, %n
  br i1 %left, label %add, label %end
add:
  %last = getelementptr double, ptr %x, i64 %j
  %term = load double, ptr %last
  %sum = fadd double %total, %term
  %j.up = add nsw i64 %j, 1
  br label %tail
end:
  ret double %total
}
"""
"""At most 128 numbers in the order of ``numpy.add.reduce``: eight sums side by side."""

_SOFT = """define internal float @of_float16(i16 %x) alwaysinline nounwind {
  %wide = zext i16 %x to i32
  %1 = and i32 %wide, 32767
  %bits = shl i32 %1, 13
  %exponent = and i32 %bits, 260046848
  %normal = add i32 %bits, 939524096
  %special = add i32 %normal, 939524096
  %2 = add i32 %normal, 8388608
  %3 = bitcast i32 %2 to float
  %4 = fsub float %3, 0x3F10000000000000
  %small = bitcast float %4 to i32
  %tiny = icmp eq i32 %exponent, 0
  %5 = select i1 %tiny, i32 %small, i32 %normal
  %large = icmp eq i32 %exponent, 260046848
  %6 = select i1 %large, i32 %special, i32 %5
  %7 = and i32 %wide, 32768
  %8 = shl i32 %7, 16
  %9 = or i32 %6, %8
  %10 = bitcast i32 %9 to float
  ret float %10
}
define internal i16 @to_float16(float %x) alwaysinline nounwind {
  %bits = bitcast float %x to i32
  %sign = and i32 %bits, -2147483648
  %size = xor i32 %bits, %sign
  %nan = icmp ugt i32 %size, 2139095040
  %special = select i1 %nan, i32 32256, i32 31744
  %1 = bitcast i32 %size to float
  %2 = fadd float %1, 5.0e-1
  %3 = bitcast float %2 to i32
  %small = sub i32 %3, 1056964608
  %4 = lshr i32 %size, 13
  %odd = and i32 %4, 1
  %5 = add i32 %size, -939520001
  %6 = add i32 %5, %odd
  %normal = lshr i32 %6, 13
  %tiny = icmp ult i32 %size, 947912704
  %7 = select i1 %tiny, i32 %small, i32 %normal
  %large = icmp uge i32 %size, 1199570944
  %8 = select i1 %large, i32 %special, i32 %7
  %9 = lshr i32 %sign, 16
  %10 = or i32 %8, %9
  %11 = trunc i32 %10 to i16
  ret i16 %11
}
"""

_HARD = """define internal float @of_float16(i16 %x) alwaysinline nounwind {
  %1 = bitcast i16 %x to half
  %2 = fpext half %1 to float
  ret float %2
}
define internal i16 @to_float16(float %x) alwaysinline nounwind {
  %1 = fptrunc float %x to half
  %2 = bitcast half %1 to i16
  ret i16 %2
}
"""

# What `rounding.stochastic_round` does, on the bits: the digits that are lost, plus noise, carry into those that stay.
# Numbers around 0 of float16 lie equally far apart, and what is too large to have two neighbours stays.
_STOCHASTIC = """define internal float @stochastic_bfloat16(float %x, float %noise) alwaysinline nounwind {
  %1 = fmul float %noise, 6.5536e4
  %chance = fptosi float %1 to i32
  %bits = bitcast float %x to i32
  %2 = sub i32 65535, %chance
  %3 = add i32 %bits, %2
  %4 = and i32 %3, -65536
  %5 = bitcast i32 %4 to float
  %found = fadd float %5, 0.0
  %size = call float @llvm.fabs.f32(float %x)
  %held = fcmp ole float %size, 0x46C0000000000000
  %6 = select i1 %held, float %found, float %x
  ret float %6
}
define internal float @stochastic_float16(float %x, float %noise) alwaysinline nounwind {
  %1 = fmul float %noise, 8.192e3
  %chance = fptosi float %1 to i32
  %bits = bitcast float %x to i32
  %2 = sub i32 8191, %chance
  %3 = add i32 %bits, %2
  %4 = and i32 %3, -8192
  %normal = bitcast i32 %4 to float
  %size = call float @llvm.fabs.f32(float %x)
  %tiny = fcmp olt float %size, 0x3F10000000000000
  %scaled = fmul float %size, 0x4170000000000000
  %5 = select i1 %tiny, float %scaled, float 0.0
  %6 = fptosi float %5 to i32
  %below = sitofp i32 %6 to float
  %part = fsub float %5, %below
  %up = fcmp olt float %noise, %part
  %7 = fadd float %below, 1.0
  %8 = select i1 %up, float %7, float %below
  %9 = fmul float %8, 0x3E70000000000000
  %10 = call float @llvm.copysign.f32(float %9, float %x)
  %11 = select i1 %tiny, float %10, float %normal
  %found = fadd float %11, 0.0
  %held = fcmp ole float %size, 6.5504e4
  %12 = select i1 %held, float %found, float %x
  ret float %12
}
"""

_CONVERSIONS = """define internal float @of_bfloat16(i16 %x) alwaysinline nounwind {
  %1 = zext i16 %x to i32
  %2 = shl i32 %1, 16
  %3 = bitcast i32 %2 to float
  ret float %3
}
define internal i16 @to_bfloat16(float %x) alwaysinline nounwind {
  %bits = bitcast float %x to i32
  %high = lshr i32 %bits, 16
  %odd = and i32 %high, 1
  %1 = add i32 %bits, 32767
  %2 = add i32 %1, %odd
  %rounded = lshr i32 %2, 16
  %quiet = or i32 %high, 64
  %nan = fcmp uno float %x, %x
  %3 = select i1 %nan, i32 %quiet, i32 %rounded
  %4 = trunc i32 %3 to i16
  ret i16 %4
}
"""


def module(title: str, real: str, functions: Iterable[str], half: bool) -> str:
    """Return the text of functions and of those that they call; ``half``: the processor converts float16."""
    body = "\n".join(functions)
    kind, suffix, integer = REALS[real]
    known = {name: text.format(T=kind, I=integer) for name, text in _OF_REAL.items()} | {"sum": _SUM}
    for text in _STOCHASTIC, _CONVERSIONS, _HARD if half else _SOFT:
        known |= {each.split("@")[1].split("(")[0]: f"define{each}" for each in text.split("define")[1:]}
    used = [text for name, text in known.items() if f"@{name}(" in body]
    body += "".join(used)
    outside = [
        f"declare {kind} @{name}({', '.join([kind] * count)}) nounwind willreturn memory(none)"
        for name, count in {
            f"llvm.sqrt.{suffix}": 1,
            f"llvm.fabs.{suffix}": 1,
            f"llvm.copysign.{suffix}": 2,
            **MATHS[real],
        }.items()
        if f"@{name}(" in body
    ]
    return "\n".join([f"; {printable(title)}\n", body, *outside])


FUNCTIONS = {**dict.fromkeys(("exp", "expm1", "log", "log1p", "sin", "cos", "tanh"), 1), "hypot": 2, "pow": 2}
"""Functions of the C library, with their number of arguments."""
MATHS = {"float32": {f"{n}f": k for n, k in FUNCTIONS.items()}, "float64": FUNCTIONS}
"""What they are called there."""
