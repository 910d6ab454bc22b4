// batch_residual: x[b, n] += sum over k of weight[n, k] * input[b, k]; and what the next RMSNorm
// needs of the new x: xg[b, n] = x[b, n] * gain[n], and the squares of x summed per tile of columns
//
// `rows` of the batch are no padding.

#include "tensor_tiles.cuh"

// An item is four neighbours of x; the items of a row of the batch lie in neighbouring lanes.
constexpr int ITEMS = ROWS / 4;
constexpr int TURNS = (SHARE * ITEMS + THREADS - 1) / THREADS;
static_assert(ITEMS <= 32 && (ITEMS & (ITEMS - 1)) == 0, "a warp adds up squares of whole rows");

extern "C" __global__ void __launch_bounds__(THREADS, 2) batch_residual(
    const __half* input, const __nv_bfloat16* weight, const float* gain, float* x, __half* xg,
    float* squares, int rows) {
    using P = Part<WIDTH>;
    const int tile = tile_of_block();
    Stages<WIDTH, Matrix<HIDDEN, WIDTH>> stages = {
        {weight, tile}, input, rows, P::count(), P::first()};

    let_next_start();
    stages.start();
    stages.begin_weights();
    wait_for_previous();
    stages.begin_inputs();

    // Early, so that nothing waits for it in the end, where it is little.
    float4 old[TURNS];
    if (TURNS <= 2) {
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            const int item = threadIdx.x + turn * THREADS;
            const int b = rank_of_block() * SHARE + item / ITEMS;
            const int n = tile * ROWS + item % ITEMS * 4;
            old[turn] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (item < SHARE * ITEMS && b < rows && n < HIDDEN)
                old[turn] = __ldcg(reinterpret_cast<const float4*>(x + (long long)b * HIDDEN + n));
        }
    }

    Sums sums;
    sums.clear();
    for (int stage = 0; stage < stages.count; ++stage) sums.add(stages.next(stage));
    __syncthreads();
    publish(sums);

#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int item = threadIdx.x + turn * THREADS;
        const int b = rank_of_block() * SHARE + item / ITEMS;
        const int n = tile * ROWS + item % ITEMS * 4;
        float square = 0.0f;
        const bool there = item < SHARE * ITEMS && b < rows;
        if (there && n < HIDDEN) {
            const long long at = (long long)b * HIDDEN + n;
            float4* place = reinterpret_cast<float4*>(x + at);
            float4 now = TURNS <= 2 ? old[turn] : __ldcg(place);
            const float4 add = total(b, item % ITEMS * 4);
            now.x += add.x, now.y += add.y, now.z += add.z, now.w += add.w;
            *place = now;
            const float4 gains = *reinterpret_cast<const float4*>(gain + n);
            *reinterpret_cast<uint2*>(xg + at) = {to_half_pair(now.x * gains.x, now.y * gains.y),
                                                  to_half_pair(now.z * gains.z, now.w * gains.w)};
            square = now.x * now.x + now.y * now.y + now.z * now.z + now.w * now.w;
        }
#pragma unroll
        for (int lanes = ITEMS / 2; lanes > 0; lanes /= 2)
            square += __shfl_xor_sync(~0u, square, lanes);
        if (there && item % ITEMS == 0) squares[tile * BATCH + b] = square;
    }
    // The others may still read from here.
    cluster_arrive();
    cluster_wait();
}
