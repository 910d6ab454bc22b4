// fresh: loads of what another kernel of the step wrote. They never come from the L1 cache: a
// kernel may be there long before the one ahead of it has written, and a neighbour of its words may
// have been loaded meanwhile. (__ldcg does the same, where the compiler may move it.) What an
// earlier step wrote, or nobody does, is loaded plainly: before any kernel of this one began.

__device__ __forceinline__ int load_fresh(const int* from) {
    int value;
    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

__device__ __forceinline__ float load_fresh(const float* from) {
    float value;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(from) : "memory");
    return value;
}

__device__ __forceinline__ float2 load_fresh(const float2* from) {
    float2 value;
    asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];"
                 : "=f"(value.x), "=f"(value.y)
                 : "l"(from)
                 : "memory");
    return value;
}

__device__ __forceinline__ float4 load_fresh(const float4* from) {
    float4 value;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}

__device__ __forceinline__ uint4 load_fresh(const uint4* from) {
    uint4 value;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}
