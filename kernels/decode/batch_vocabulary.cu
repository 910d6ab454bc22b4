// batch_vocabulary: logits[b, n] = product of the vocabulary's matrix with the normalized residual
// stream; and each block's best token of each row of the batch
//
// A block does tile after tile, and the weights of the next are on their way while one is finished.
// The best is the lowest index of the largest value; NaN is less than anything, as in argmax.
// logits may be null. `rows` of the batch are no padding.

#include "tensor_tiles.cuh"

static_assert(SPLIT == 1 && WARP_SPLIT == 1, "a warp has the whole sums of its rows");

constexpr int STAGES_OF_TILE = (HIDDEN + DEPTH - 1) / DEPTH;
constexpr int TILES = (VOCABULARY + ROWS - 1) / ROWS;

using Tokens = Matrix<VOCABULARY, HIDDEN, STAGES_OF_TILE>;

typedef unsigned long long Candidate;  // value in the upper half, complement of the index below

// Orders floats as unsigned integers: larger value, larger key. 0 for NaN, and -0 equals +0.
__device__ __forceinline__ Candidate candidate(float value, int index) {
    const unsigned int bits = value == 0.0f ? 0u : __float_as_uint(value);
    unsigned int key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (isnan(value)) key = 0u;
    return (Candidate)key << 32 | (unsigned int)~index;
}

__device__ __forceinline__ float value_of(Candidate best) {
    const unsigned int key = best >> 32;
    if (key == 0u) return __uint_as_float(0x7fc00000u);
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

extern "C" __global__ void __launch_bounds__(THREADS) batch_vocabulary(
    const __half* xg, const float* squares, const __nv_bfloat16* weight, float* logits,
    float* best, int* best_index, int parts, int rows, float eps) {
    __shared__ Norm norm;
    __shared__ Candidate candidates[ROW_WARPS][BATCH];
    const int mine = (TILES - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    Stages<HIDDEN, Tokens> stages = {
        {weight, (int)blockIdx.x}, xg, rows, max(mine, 0) * STAGES_OF_TILE, 0};
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    let_next_start();
    stages.start();
    stages.begin_weights();
    wait_for_previous();
    stages.begin_inputs();
    norm.read(squares, parts);
    for (int b = lane; b < BATCH; b += 32) candidates[warp][b] = 0;
    __syncthreads();
    norm.finish(HIDDEN, eps);
    __syncthreads();

    int stage = 0;
    for (int tile = blockIdx.x; tile < TILES; tile += gridDim.x) {
        const int row0 = tile * ROWS + warp * WARP_ROWS + lane / 4;
        Sums sums;
        sums.clear();
        for (int i = 0; i < STAGES_OF_TILE; ++i, ++stage) sums.add(stages.next(stage));

        // A thread has two rows of the batch of every eight.
#pragma unroll
        for (int n = 0; n < ACROSS; ++n) {
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
                const int b = n * 8 + lane % 4 * 2 + odd;
                const float scale = norm.scale[b];
                Candidate top = 0;
#pragma unroll
                for (int m = 0; m < DOWN; ++m) {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int row = row0 + m * 16 + half * 8;
                        const float value = sums.of[m][n][half * 2 + odd] * scale;
                        if (Tokens::WHOLE || row < VOCABULARY) {
                            top = max(top, candidate(value, row));
                            if (logits && b < rows)
                                logits[(long long)b * VOCABULARY + row] = value;
                        }
                    }
                }
#pragma unroll
                for (int lanes = 16; lanes >= 4; lanes /= 2)
                    top = max(top, __shfl_xor_sync(~0u, top, lanes));
                if (lane < 4) candidates[warp][b] = max(candidates[warp][b], top);
            }
        }
    }

    __syncthreads();
    for (int b = threadIdx.x; b < rows; b += THREADS) {
        Candidate top = 0;
        for (int i = 0; i < ROW_WARPS; ++i) top = max(top, candidates[i][b]);
        best[blockIdx.x * BATCH + b] = value_of(top);
        best_index[blockIdx.x * BATCH + b] = (int)~(unsigned int)top;
    }
}
