// bfloat16: the type, as cuda_bf16.h names it, and its rounding

#ifndef __CUDA_BF16_TYPES_EXIST__
struct __nv_bfloat16 {
    unsigned short bits;
};
#endif

// Rounds to nearest, ties to even, as a cast does.
__device__ __forceinline__ __nv_bfloat16 to_bfloat16(float value) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    __nv_bfloat16 rounded;
    *reinterpret_cast<unsigned short*>(&rounded) = bits;
    return rounded;
}

// Two of them; the first in the lower half.
__device__ __forceinline__ unsigned int to_bfloat16_pair(float low, float high) {
    unsigned int both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
