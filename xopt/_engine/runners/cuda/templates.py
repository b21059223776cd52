"""The part of the CUDA text that is the same for every program: types, conversions, accesses, sums, and tools."""

from __future__ import annotations

from xopt._engine.program import summation as _summation
from xopt._engine.program.quantize import BLOCK

CHUNK = _summation.CHUNK
"""Elements that one block computes."""
THREADS = 256
"""Threads of a block of the step."""
TILE = 8 * BLOCK
"""Elements of a step with state in 8 bits that a block of threads has in shared memory at a time."""
SUM_THREADS = 512
"""Threads of a block that sums."""
UPLOAD = 480
"""Words that one launch of ``xopt_store`` carries: with its two arguments, less than the 4 KiB every device takes."""

PREAMBLE = f"""\
#define CHUNK {CHUNK}
typedef unsigned long long Word;

#ifdef __CUDACC__
static __device__ __forceinline__ float from_half(unsigned short x) {{
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}}
static __device__ __forceinline__ unsigned short to_half(float x) {{
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}}
#endif
static __device__ __forceinline__ unsigned short to_bfloat(float x) {{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned short y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
#else
    const unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fff : (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
#endif
}}

static __device__ __forceinline__ unsigned mixed(unsigned x) {{
    x = (x ^ x >> 16) * 0x21f0aaadu;
    x = (x ^ x >> 15) * 0xd35a2d97u;
    return x ^ x >> 15;
}}
// a number in [0, 1) that depends on the element, the step, the leaf and the seed
static __device__ __forceinline__ float noise(
    long long index, float low, float high, float leaf, float a, float b, float chunk
) {{
    const unsigned step = mixed(((unsigned)low + ((unsigned)high << 16)) * 0x9e3779b1u);
    const unsigned seed = mixed((unsigned)a + ((unsigned)b << 16));
    const unsigned key = mixed(mixed(step ^ seed) + (unsigned)leaf * 0x9e3779b1u);
    const unsigned at = (unsigned)index + ((unsigned)chunk << 16);
    return (float)(mixed(mixed(at * 0x9e3779b1u) ^ key) >> 8) * 5.9604644775390625e-8f;
}}

struct Half {{ unsigned short bits; }};
struct BFloat {{ unsigned short bits; }};
template <class T> struct Complex {{ T re, im; }};

static __device__ __forceinline__ float get(float x) {{ return x; }}
static __device__ __forceinline__ double get(double x) {{ return x; }}
static __device__ __forceinline__ float get(Half x) {{ return from_half(x.bits); }}
static __device__ __forceinline__ float get(BFloat x) {{ return __uint_as_float((unsigned)x.bits << 16); }}
static __device__ __forceinline__ float get(signed char x) {{ return x; }}
static __device__ __forceinline__ float get(unsigned char x) {{ return x; }}
static __device__ __forceinline__ void put(signed char& y, double x) {{ y = (signed char)(int)x; }}
static __device__ __forceinline__ void put(unsigned char& y, double x) {{ y = (unsigned char)(int)x; }}
static __device__ __forceinline__ void put(float& y, float x) {{ y = x; }}
static __device__ __forceinline__ void put(double& y, double x) {{ y = x; }}
static __device__ __forceinline__ void put(Half& y, float x) {{ y.bits = to_half(x); }}
static __device__ __forceinline__ void put(BFloat& y, float x) {{ y.bits = to_bfloat(x); }}

struct Scalar {{ double value; const double* at; long long stride; }};  // a number, or where it lies, for each leaf
struct Chunk {{ int leaf, number; }};

static __device__ __forceinline__ double scalar(const Scalar& s, int leaf) {{
    return s.at ? s.at[leaf * s.stride] : s.value;
}}

// {CHUNK:,} elements of one leaf, or what is left of it
struct Part {{ int leaf, size; long long first; }};
static __device__ __forceinline__ Part part(const Chunk& chunk, const long long* sizes) {{
    const long long first = (long long)chunk.number * CHUNK, left = sizes[chunk.leaf] - first;
    return {{chunk.leaf, left < CHUNK ? (int)left : CHUNK, first}};
}}
"""

PACKS = """
// as many elements as fill 16 bytes of the narrowest array, in 16-byte accesses that pass the caches by
template <class T, int N> union Pack {
    uint4 raw[sizeof(T) * N / 16];
    T at[N];
};
template <class T, int N> static __device__ __forceinline__ void read(Pack<T, N>& pack, const T* from, int k) {
    const int count = sizeof(T) * N / 16;
    #pragma unroll
    for (int i = 0; i < count; ++i) pack.raw[i] = __ldcs((const uint4*)from + (k * count + i));
}
template <class T, int N> static __device__ __forceinline__ void write(const Pack<T, N>& pack, T* to, int k) {
    const int count = sizeof(T) * N / 16;
    #pragma unroll
    for (int i = 0; i < count; ++i) __stcs((uint4*)to + (k * count + i), pack.raw[i]);
}
"""

SUMS = """
// Where a block of at most 128 elements lies: NumPy halves what it sums until it is that short.
struct Range {{ int first, size; }};
static __device__ __forceinline__ Range range(int size, int path) {{
    Range r = {{0, size}};
    #pragma unroll
    for (int bit = 512; bit; bit /= 2) {{
        if (r.size > 128) {{
            const int half = r.size / 2 / 8 * 8;
            r = path & bit ? Range{{r.first + half, r.size - half}} : Range{{r.first, half}};
        }} else if (path & bit) {{
            r.size = 0;
        }}
    }}
    return r;
}}

// One chunk: the sum of its terms, added in NumPy's order.
extern "C" __global__ void __launch_bounds__({threads}, 1) {name}(const Arguments a) {{
    __shared__ double lanes[4096], blocks[1024];
    const Part c = part(a.chunks[blockIdx.x], a.sizes);
    {setup}
    const auto term = [&](int i) {{
        {element};
        return body(x{scalars});
    }};
    for (int odd = 0; odd < 2; ++odd) {{  // the odd blocks of a whole chunk are empty
        for (int i = threadIdx.x; i < 4096; i += blockDim.x) {{  // eight sums a block, side by side
            const Range r = range(c.size, i / 8 * 2 + odd);
            double sum = 0;
            for (int k = i % 8; k < r.size / 8 * 8; k += 8) sum += term(r.first + k);
            lanes[i] = sum;
        }}
        __syncthreads();
        for (int i = threadIdx.x; i < 512; i += blockDim.x) {{
            const Range r = range(c.size, i * 2 + odd);
            const double* s = lanes + 8 * i;
            double sum = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
            for (int k = r.size / 8 * 8; k < r.size; ++k) sum += term(r.first + k);
            blocks[i * 2 + odd] = sum;
        }}
        __syncthreads();
    }}
    for (int step = 1; step < 1024; step *= 2) {{
        for (int i = threadIdx.x; i < 512 / step; i += blockDim.x) blocks[2 * step * i] += blocks[2 * step * i + step];
        __syncthreads();
    }}
    if (threadIdx.x == 0) ((double*)a.results)[blockIdx.x] = blocks[0];
}}
"""

BLOCKS = f"""
// A tile of blocks of {BLOCK} elements at a time: what depends on the largest number of a block waits for it.
extern "C" __global__ void __launch_bounds__({{bounds}}) xopt_tile(const Arguments a) {{{{
    __shared__ {{C}} rows[{{rows}}][{TILE}], parts[{{tops}}][{TILE // BLOCK}][33], tops[{{tops}}][{TILE // BLOCK}];
    const Part c = part(a.chunks[blockIdx.x], a.sizes);
    {{setup}}
    for (int begin = 0; begin < c.size; begin += {TILE}) {{{{
        const int size = c.size - begin < {TILE} ? c.size - begin : {TILE}, blocks = (size + {BLOCK - 1}) / {BLOCK};
        for (int j = threadIdx.x; j < size; j += blockDim.x) {{{{
            const int i = begin + j;
            {{element}};
            Kept y;
            {{first}}
            {{keep}}
            {{put_first}}
        }}}}
        __syncthreads();
        for (int q = threadIdx.x; q < {{tops}} * {TILE // 4}; q += blockDim.x) {{{{  // four numbers each
            const int k = q / {TILE // 4}, row = {{row}}, b = q / 32 % {TILE // BLOCK}, lane = q % 32;
            {{C}} top = 0;
            for (int j = b * {BLOCK} + lane; j < (b + 1) * {BLOCK} && j < size; j += 32) {{{{
                const {{C}} x = rows[row][j];
                top = top >= x || top != top ? top : x;  // a NaN stays
            }}}}
            parts[k][b][lane] = top;
        }}}}
        __syncthreads();
        for (int q = threadIdx.x; q < {{tops}} * blocks; q += blockDim.x) {{{{
            const int k = q / blocks, b = q % blocks;
            {{C}} top = 0;
            for (int lane = 0; lane < 32; ++lane) {{{{
                const {{C}} x = parts[k][b][lane];
                top = top >= x || top != top ? top : x;
            }}}}
            tops[k][b] = top;
            {{put_tops}}
        }}}}
        __syncthreads();
        for (int j = threadIdx.x; j < size; j += blockDim.x) {{{{
            const int i = begin + j;
            Element x;
            Kept y;
            {{take}}
            {{last}}
            {{put_last}}
        }}}}  // what a thread has read here, it alone writes in the next round
    }}}}
}}}}
"""

TOOLS = f"""\
typedef unsigned long long Word;

// Tables are uploaded as arguments of a launch: in the order of the stream, and without waiting for anything.
struct Upload {{ Word* to; Word count; Word words[{UPLOAD}]; }};
extern "C" __global__ void __launch_bounds__({THREADS}) xopt_store(const Upload a) {{
    for (int i = threadIdx.x; i < a.count; i += blockDim.x) a.to[i] = a.words[i];
}}

// For each leaf, its parts added from left to right.
struct Ordered {{ const double* parts; const long long* starts; double* sums; long long count; }};
extern "C" __global__ void __launch_bounds__({THREADS}) xopt_ordered(const Ordered a) {{
    __shared__ double near[1024];
    const long long begin = a.starts ? a.starts[blockIdx.x] : 0, end = a.starts ? a.starts[blockIdx.x + 1] : a.count;
    double sum = 0;
    for (long long low = begin; low < end; low += 1024) {{
        const int n = end - low < 1024 ? (int)(end - low) : 1024;
        for (int i = threadIdx.x; i < n; i += blockDim.x) near[i] = a.parts[low + i];
        __syncthreads();
        if (threadIdx.x == 0) {{
            for (int i = 0; i < n; ++i) sum += near[i];
        }}
        __syncthreads();
    }}
    if (threadIdx.x == 0) a.sums[blockIdx.x] = sum;
}}
"""
