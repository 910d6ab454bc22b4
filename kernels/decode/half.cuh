// half: float16, as cuda_fp16.h names it, and what is converted to it
//
// All round to nearest, ties to even, as a cast does: beyond 65504 to infinity, below 2**-14 to a
// multiple of 2**-24.

#ifndef __CUDA_FP16_TYPES_EXIST__
struct __half {
    unsigned short bits;
};
#endif

__device__ __forceinline__ __half to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    __half rounded;
    *reinterpret_cast<unsigned short*>(&rounded) = bits;
    return rounded;
}

// Two of them; the first in the lower half.
__device__ __forceinline__ unsigned int to_half_pair(float low, float high) {
    unsigned int both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// Of two bfloat16, each of which is the upper half of the float of the same value.
__device__ __forceinline__ unsigned int to_half_pair(unsigned int pair) {
    return to_half_pair(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
