// top_k: the k largest values of x[r, :], largest first, and their indices
//
// Of equal values the one with the lower index comes first; NaN counts as less than anything.
// Each thread knows the best of its own share of the row (every blockDim-th element). k times, the
// block takes the best of those, and the thread that had it looks through its share for the next.
// One block per row; any grid works, and any block of whole warps.

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
    __syncthreads();  // the previous round may still be reading partial
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = best;
    __syncthreads();
    for (int warp = 0; warp < blockDim.x / 32; ++warp) best = max(best, partial[warp]);
    return best;
}

// The best of this thread's share that comes after `before`; 0 where there is none.
__device__ __forceinline__ Candidate best_of_share(const float* from, int width, Candidate before) {
    Candidate best = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const Candidate here = candidate(from[i], i);
        if (here < before) best = max(best, here);
    }
    return best;
}

extern "C" __global__ void top_k(
    const float* x, float* values, int* indices, int rows, int width, int k) {
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const float* from = x + (long long)row * width;
        Candidate mine = best_of_share(from, width, ~0ull);
        for (int rank = 0; rank < k; ++rank) {
            const Candidate best = block_max(mine);
            if (mine == best) {  // candidates hold their index: one thread has it
                const int index = ~(unsigned int)best;
                values[(long long)row * k + rank] = from[index];
                indices[(long long)row * k + rank] = index;
                mine = best_of_share(from, width, best);
            }
        }
    }
}
