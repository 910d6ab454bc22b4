// batch_qkv: q, k and v of a batch from the normalized residual stream; q and k rotated, q written
// as it is, k and v appended to the caches
//
// Elements i and i + HEAD_DIM / 2 of a head turn by the angle of row position[b] of the tables:
// every 16 rows of a tile are 8 elements of the lower half of a head and their partners. Heads are
// counted through: those of q, of k, of v. `rows` of the batch are no padding.
//
// A position outside of the caches writes nothing, a page or a slot outside of them nothing to the
// caches: see cache_place.cuh.

#include "tensor_tiles.cuh"
#include "cache_place.cuh"

constexpr int HALF = HEAD_DIM / 2, UNITS = HALF / 8;  // of 16 rows in a head
constexpr int ALL_HEADS = HEADS + 2 * KV_HEADS;
static_assert(HEAD_DIM % 16 == 0, "a head is whole units");

struct Heads {
    static constexpr bool WHOLE = ALL_HEADS * HEAD_DIM % ROWS == 0;
    static constexpr int TURN = ONE_TILE;
    static constexpr long long STEP = 0;

    const __nv_bfloat16 *wq, *wk, *wv;
    int tile;

    __device__ __forceinline__ bool has(int row) const {
        return tile * (ROWS / 16) + row / 16 < ALL_HEADS * UNITS;
    }

    __device__ __forceinline__ const __nv_bfloat16* row(int row) const {
        int unit = tile * (ROWS / 16) + row / 16;
        // Worked out anew for each stage: kept, the addresses of all rows would fill the registers.
        asm volatile("" : "+r"(unit));
        const int head = unit / UNITS;
        const int element = unit % UNITS * 8 + row % 8 + (row % 16 < 8 ? 0 : HALF);
        const __nv_bfloat16* matrix = head < HEADS ? wq : head < HEADS + KV_HEADS ? wk : wv;
        const int there = head < HEADS              ? head
                          : head < HEADS + KV_HEADS ? head - HEADS
                                                    : head - HEADS - KV_HEADS;
        return matrix + (long long)(there * HEAD_DIM + element) * HIDDEN;
    }

    __device__ __forceinline__ Heads tile_after(int) const { return *this; }
};

// An item is four neighbours of the lower half of a head, and their partners.
constexpr int ITEMS = ROWS / 8;
constexpr int TURNS = (SHARE * ITEMS + THREADS - 1) / THREADS;

struct Item {
    int b, row;         // of the batch; of the tile
    int head, element;  // of all heads; of the head
    bool there;

    __device__ __forceinline__ Item(int tile, int item, int rows) {
        const int part = item % ITEMS, unit = tile * (ROWS / 16) + part / 2;
        b = rank_of_block() * SHARE + item / ITEMS;
        row = part / 2 * 16 + part % 2 * 4;
        head = unit / UNITS;
        element = unit % UNITS * 8 + part % 2 * 4;
        there = item < SHARE * ITEMS && b < rows && head < ALL_HEADS;
    }
};

// Where an item goes to, and its angles.
struct Target {
    bool inside;     // the position is one of the cache's
    long long line;  // in the caches, or -1 where there is none
    float4 cosine, sine;

    __device__ __forceinline__ void read(
        const Item& item, const float* cos_table, const float* sin_table, const int* position,
        const int* block_table, int max_len, int slots) {
        inside = false;
        line = -1;
        cosine = sine = {0.0f, 0.0f, 0.0f, 0.0f};
        if (!item.there) return;
        const int at = __ldcg(position + item.b);
        inside = at >= 0 && at < max_len;
        if (!inside) return;
        if (item.head < HEADS + KV_HEADS) {
            const long long angle = (long long)at * HALF + item.element;
            cosine = __ldg(reinterpret_cast<const float4*>(cos_table + angle));
            sine = __ldg(reinterpret_cast<const float4*>(sin_table + angle));
        }
        if (item.head < HEADS) return;
        const int head = (item.head - HEADS) % KV_HEADS;
        if (PAGE || item.b < slots)
            line = cache_place(
                page_of(block_table, item.b, at, max_len, slots), head, at, max_len);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 2) batch_qkv(
    const __half* xg, const float* squares, const __nv_bfloat16* wq, const __nv_bfloat16* wk,
    const __nv_bfloat16* wv, const float* cos_table, const float* sin_table,
    const int* position, const int* block_table, float* q,
    __nv_bfloat16* k_cache, __nv_bfloat16* v_cache, int parts, int rows, int max_len,
    int slots, float eps) {
    __shared__ Norm norm;
    using P = Part<HIDDEN>;
    const int tile = tile_of_block();
    Stages<HIDDEN, Heads> stages = {{wq, wk, wv, tile}, xg, rows, P::count(), P::first()};

    let_next_start();
    stages.start();
    stages.begin_weights();
    wait_for_previous();
    stages.begin_inputs();
    norm.read(squares, parts);

    // Early, so that nothing waits for it in the end, where it is little.
    Target targets[TURNS];
    if (TURNS <= 2) {
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn)
            targets[turn].read(Item(tile, threadIdx.x + turn * THREADS, rows), cos_table, sin_table,
                               position, block_table, max_len, slots);
    }

    Sums sums;
    sums.clear();
    for (int stage = 0; stage < stages.count; ++stage) sums.add(stages.next(stage));
    __syncthreads();
    norm.finish(HIDDEN, eps);
    publish(sums);

#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const Item item(tile, threadIdx.x + turn * THREADS, rows);
        Target& target = targets[turn];
        if (TURNS > 2)
            target.read(item, cos_table, sin_table, position, block_table, max_len, slots);
        if (!target.inside) continue;
        const float scale = norm.scale[item.b];
        float4 low = total(item.b, item.row), high = total(item.b, item.row + 8);
        low.x *= scale, low.y *= scale, low.z *= scale, low.w *= scale;
        high.x *= scale, high.y *= scale, high.z *= scale, high.w *= scale;
        if (item.head < HEADS + KV_HEADS) {
            const float4 c = target.cosine, s = target.sine, l = low, h = high;
            low = {l.x * c.x - h.x * s.x, l.y * c.y - h.y * s.y, l.z * c.z - h.z * s.z,
                   l.w * c.w - h.w * s.w};
            high = {h.x * c.x + l.x * s.x, h.y * c.y + l.y * s.y, h.z * c.z + l.z * s.z,
                    h.w * c.w + l.w * s.w};
        }
        if (item.head < HEADS) {
            float* to = q + ((long long)item.b * HEADS + item.head) * HEAD_DIM + item.element;
            *reinterpret_cast<float4*>(to) = low;
            *reinterpret_cast<float4*>(to + HALF) = high;
        } else if (target.line >= 0) {
            const bool key = item.head < HEADS + KV_HEADS;
            __nv_bfloat16* to = (key ? k_cache : v_cache) + target.line + item.element;
            *reinterpret_cast<uint2*>(to) = {to_bfloat16_pair(low.x, low.y),
                                             to_bfloat16_pair(low.z, low.w)};
            *reinterpret_cast<uint2*>(to + HALF) = {to_bfloat16_pair(high.x, high.y),
                                                    to_bfloat16_pair(high.z, high.w)};
        }
    }
    // The others may still read from here.
    cluster_arrive();
    cluster_wait();
}
