// batch_gate_up: h[b, j] = silu(gate[b, j]) * up[b, j], where gate and up are the products of the
// two matrices with the normalized residual stream
//
// Every 16 rows of a tile are 8 of gate and the same 8 of up. `rows` of the batch are no padding.

#include "tensor_tiles.cuh"

struct GateUp {
    static constexpr bool WHOLE = INTERMEDIATE % (ROWS / 2) == 0;
    static constexpr int TURN = ONE_TILE;
    static constexpr long long STEP = AT_ONCE % 16 == 0 ? (long long)AT_ONCE / 2 * HIDDEN : 0;

    const __nv_bfloat16 *gate, *up;
    int tile;

    __device__ __forceinline__ int of(int row) const {
        return (tile * (ROWS / 16) + row / 16) * 8 + row % 8;
    }

    __device__ __forceinline__ bool has(int row) const { return of(row) < INTERMEDIATE; }

    __device__ __forceinline__ const __nv_bfloat16* row(int row) const {
        return (row % 16 < 8 ? gate : up) + (long long)of(row) * HIDDEN;
    }

    __device__ __forceinline__ GateUp tile_after(int) const { return *this; }
};

extern "C" __global__ void __launch_bounds__(THREADS, 2) batch_gate_up(
    const __half* xg, const float* squares, const __nv_bfloat16* gate, const __nv_bfloat16* up,
    __half* h, int parts, int rows, float eps) {
    __shared__ Norm norm;
    using P = Part<HIDDEN>;
    const int tile = tile_of_block();
    Stages<HIDDEN, GateUp> stages = {{gate, up, tile}, xg, rows, P::count(), P::first()};

    let_next_start();
    stages.start();
    stages.begin_weights();
    wait_for_previous();
    stages.begin_inputs();
    norm.read(squares, parts);

    Sums sums;
    sums.clear();
    for (int stage = 0; stage < stages.count; ++stage) sums.add(stages.next(stage));
    __syncthreads();
    norm.finish(HIDDEN, eps);
    publish(sums);

    // An item is four neighbours of h.
    constexpr int ITEMS = ROWS / 8;
    for (int item = threadIdx.x; item < SHARE * ITEMS; item += THREADS) {
        const int b = rank_of_block() * SHARE + item / ITEMS, part = item % ITEMS;
        const int row = part / 2 * 16 + part % 2 * 4;
        const int j = (tile * (ROWS / 16) + part / 2) * 8 + part % 2 * 4;
        const float4 g = total(b, row), u = total(b, row + 8);
        const float scale = norm.scale[b];
        const float gates[4] = {g.x, g.y, g.z, g.w}, ups[4] = {u.x, u.y, u.z, u.w};
        float value[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float x = gates[i] * scale;
            value[i] = x / (1.0f + __expf(-x)) * (ups[i] * scale);
        }
        if (b < rows && j < INTERMEDIATE)
            *reinterpret_cast<uint2*>(h + (long long)b * INTERMEDIATE + j) = {
                to_half_pair(value[0], value[1]), to_half_pair(value[2], value[3])};
    }
    // The others may still read from here.
    cluster_arrive();
    cluster_wait();
}
