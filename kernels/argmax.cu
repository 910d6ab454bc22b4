// argmax: out[r] = index of the largest value of x[r, :], the lowest one where several are largest
//
// NaN counts as less than anything. One block per row; any grid works, and any block of whole
// warps.

typedef unsigned long long Candidate;  // value in the upper half, complement of the index below

// Orders floats as unsigned integers: larger value, larger key. 0 for NaN, and -0 equals +0.
__device__ __forceinline__ Candidate candidate(float value, int index) {
    const unsigned int bits = value == 0.0f ? 0u : __float_as_uint(value);
    unsigned int key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (isnan(value)) key = 0u;
    return (Candidate)key << 32 | (unsigned int)~index;
}

__device__ __forceinline__ Candidate block_max(Candidate best) {
    __shared__ Candidate partial[32];
    for (int lanes = 16; lanes > 0; lanes /= 2)
        best = max(best, __shfl_xor_sync(~0u, best, lanes));
    __syncthreads();  // the previous row may still be reading partial
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = best;
    __syncthreads();
    for (int warp = 0; warp < blockDim.x / 32; ++warp) best = max(best, partial[warp]);
    return best;
}

extern "C" __global__ void argmax(const float* x, int* out, int rows, int width) {
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const float* from = x + (long long)row * width;
        Candidate best = 0;
        for (int i = threadIdx.x; i < width; i += blockDim.x)
            best = max(best, candidate(from[i], i));
        best = block_max(best);
        if (threadIdx.x == 0) out[row] = ~(unsigned int)best;
    }
}
