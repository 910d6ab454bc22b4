// token_budget: tokens of each selected patch, in proportion to its balance, within bounds
//
// Jefferson's method with bounds: tokens = clamp(floor(level * weight), least, most), at the
// highest
// level whose sum is not above the total; what is missing then goes, one token each, to the first
// of those that the next level would raise. The sum is exactly the total, or most for each patch
// where the total is more. A higher balance never gets fewer tokens, and a higher total never takes
// one away.
// weight = max(balance, 1e-3) over the largest such, in units of 2^-20, and level is in the same
// units: all else is in integers. A balance that is not finite gets none.
// One block of 32 warps, with one int of dynamic shared memory a patch; most is below 2^15.

typedef unsigned long long Level;

#define UNIT_BITS 20
#define ROUNDS 7  // of 5 bits: a level is below most << UNIT_BITS, hence below 2^35
#define WARPS 32

__device__ __forceinline__ int share(Level level, int weight, int least, int most) {
    const Level tokens = level * weight >> UNIT_BITS;
    return tokens < least ? least : tokens > most ? most : (int)tokens;
}

// One flag a warp, said by its first lane, as a mask that all threads get.
__device__ __forceinline__ unsigned int ballot_warps(bool flag, unsigned int* flags) {
    if (threadIdx.x % 32 == 0) flags[threadIdx.x / 32] = flag;
    __syncthreads();
    return __ballot_sync(~0u, flags[threadIdx.x % 32]);
}

extern "C" __global__ void token_budget(
    const float* selected, int* tokens, int k, int total, int least, int most) {
    extern __shared__ int weights[];
    __shared__ float partial[WARPS];
    __shared__ unsigned int flags[2][WARPS];
    __shared__ int counts[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    float largest = 1e-3f;
    for (int i = threadIdx.x; i < k; i += blockDim.x)
        if (isfinite(selected[i])) largest = fmaxf(largest, selected[i]);
    for (int lanes = 16; lanes > 0; lanes /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, lanes));
    if (lane == 0) partial[warp] = largest;
    __syncthreads();
    largest = partial[lane];
    for (int lanes = 16; lanes > 0; lanes /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, lanes));

    int own = 0;
    for (int i = threadIdx.x; i < k; i += blockDim.x) {
        const float balance = selected[i];
        const float ratio = fmaxf(balance, 1e-3f) / largest;
        weights[i] = isfinite(balance) ? max((int)rintf(ratio * (1 << UNIT_BITS)), 1) : 0;
        own += weights[i] > 0;
    }
    own = __reduce_add_sync(~0u, own);
    if (lane == 0) counts[warp] = own;
    __syncthreads();
    const int patches = __reduce_add_sync(~0u, counts[lane]);
    const int available = min(total, patches * most);

    // Each warp tries a level; 32 in a round, then 32 between the best of them and the next.
    Level level = 0;
    const Level end = (Level)most << UNIT_BITS;
    for (int round = 0; round < ROUNDS; ++round) {
        const Level tried = level + ((Level)warp << 5 * (ROUNDS - 1 - round));
        int sum = 0;
        for (int i = lane; i < k; i += 32)
            if (weights[i]) sum += share(tried, weights[i], least, most);
        sum = __reduce_add_sync(~0u, sum);
        const unsigned int mask = ballot_warps(sum <= available && tried <= end, flags[round % 2]);
        // Warp 0 tried the level of before, which is known to fit.
        level += (Level)(__popc(mask | 1u) - 1) << 5 * (ROUNDS - 1 - round);
    }

    int sum = 0;
    for (int i = lane; i < k; i += 32)
        if (weights[i]) sum += share(level, weights[i], least, most);
    int missing = available - __reduce_add_sync(~0u, sum);
    for (int begin = 0; begin < k; begin += blockDim.x) {
        const int i = begin + threadIdx.x;
        const int weight = i < k ? weights[i] : 0;
        const int here = weight ? share(level, weight, least, most) : 0;
        const bool rises = weight && share(level + 1, weight, least, most) > here;
        const unsigned int risen = __ballot_sync(~0u, rises);
        if (lane == 0) counts[warp] = __popc(risen);
        __syncthreads();
        const int before = __reduce_add_sync(~0u, lane < warp ? counts[lane] : 0) +
                           __popc(risen & ((1u << lane) - 1u));
        if (i < k) tokens[i] = here + (rises && before < missing);
        missing -= min(missing, (int)__reduce_add_sync(~0u, counts[lane]));
        __syncthreads();  // counts are written again
    }
}
