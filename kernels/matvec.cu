// matvec: y[b, m] = sum over k of weight[m, k] * x[b, k]
//
// One warp per row of weight and group of four rows of x: weight is what costs, and it is read
// once per group. Sixteen bytes of weight a lane where every row starts on a 16-byte boundary, one
// element a lane otherwise. float32 accumulation. Any grid works, and any block of whole warps.

#ifndef __CUDA_BF16_TYPES_EXIST__
struct __nv_bfloat16 {
    unsigned short bits;
};
#endif

constexpr int GROUP = 4;  // rows of x that share one pass over weight

// One element, or as many as sixteen bytes hold.
__device__ __forceinline__ void load(const float* from, float (&to)[1]) { to[0] = __ldg(from); }

__device__ __forceinline__ void load(const float* from, float (&to)[4]) {
    const float4 four = __ldg(reinterpret_cast<const float4*>(from));
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

__device__ __forceinline__ void load(const float* from, float (&to)[8]) {
    const float4 low = __ldg(reinterpret_cast<const float4*>(from));
    const float4 high = __ldg(reinterpret_cast<const float4*>(from) + 1);
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

__device__ __forceinline__ void load(const __nv_bfloat16* from, float (&to)[1]) {
    // A bfloat16 is the upper half of the float of the same value.
    const unsigned int bits = __ldg(reinterpret_cast<const unsigned short*>(from));
    to[0] = __uint_as_float(bits << 16);
}

__device__ __forceinline__ void load(const __nv_bfloat16* from, float (&to)[8]) {
    const uint4 pairs = __ldg(reinterpret_cast<const uint4*>(from));
    const unsigned int words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to[2 * i] = __uint_as_float(words[i] << 16);
        to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

// The dot products of one row of weight with `count` rows of x. Every lane returns its own share.
template <int WIDE, typename Weight>
__device__ __forceinline__ void dot(
    const Weight* row, const float* x, int count, int k, float (&sum)[GROUP]) {
    const int lane = threadIdx.x % 32;
#pragma unroll 2
    for (int i = lane * WIDE; i < k; i += 32 * WIDE) {
        float w[WIDE];
        load(row + i, w);
#pragma unroll
        for (int b = 0; b < GROUP; ++b) {
            if (b < count) {
                float v[WIDE];
                load(x + (long long)b * k + i, v);
#pragma unroll
                for (int j = 0; j < WIDE; ++j) sum[b] = fmaf(w[j], v[j], sum[b]);
            }
        }
    }
}

template <typename Weight>
__device__ __forceinline__ void multiply(
    const Weight* weight, const float* x, float* y, int batch, int m, int k) {
    constexpr int WIDE = 16 / sizeof(Weight);
    const bool wide = k % WIDE == 0 && (unsigned long long)weight % 16 == 0 &&
                      (unsigned long long)x % 16 == 0;
    const int warps = gridDim.x * (blockDim.x / 32);
    const int first = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    for (int b0 = blockIdx.y * GROUP; b0 < batch; b0 += gridDim.y * GROUP) {
        const int count = min(GROUP, batch - b0);
        for (int row = first; row < m; row += warps) {
            float sum[GROUP] = {};
            if (wide) {
                dot<WIDE>(weight + (long long)row * k, x + (long long)b0 * k, count, k, sum);
            } else {
                dot<1>(weight + (long long)row * k, x + (long long)b0 * k, count, k, sum);
            }
#pragma unroll
            for (int b = 0; b < GROUP; ++b) {
                if (b < count) {
                    for (int lanes = 16; lanes > 0; lanes /= 2)
                        sum[b] += __shfl_xor_sync(~0u, sum[b], lanes);
                    if (threadIdx.x % 32 == 0) y[(long long)(b0 + b) * m + row] = sum[b];
                }
            }
        }
    }
}

extern "C" __global__ void matvec_float32(
    const float* weight, const float* x, float* y, int batch, int m, int k) {
    multiply(weight, x, y, batch, m, k);
}

extern "C" __global__ void matvec_bfloat16(
    const __nv_bfloat16* weight, const float* x, float* y, int batch, int m, int k) {
    multiply(weight, x, y, batch, m, k);
}
