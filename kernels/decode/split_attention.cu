// split_attention: attention of one new token a row to the cache, split over its positions
//
// out[b, h] = softmax(scale * q[b, h] . k[b, g, :n]) . v[b, g, :n], n = position[b] + 1,
// g = h / GROUP. A block takes HEADS query heads of a group with one reading of the cache: all of
// them where the cache is what costs, one where the time of a single tile is.
//
// A few lanes hold a token's row of k and of v, eight elements each; a warp takes a tile of tokens
// at a time, and every group of lanes keeps a softmax of its own, which are put together at the
// end: over lanes, over warps, and where several blocks share a head, by the last of them to end.
// The rows of the first tile that earlier steps wrote are loaded before griddepcontrol.wait.
//
// A block is small enough to be the third beside one of the kernel ahead and one of the next.
// Blocks that a short sequence does not need end at once. split_attention_half writes float16, for
// the tensor cores.
//
// -D options: GROUP (query heads of a key head), KV_HEADS, HEAD_DIM, PAGE; HEADS, a divisor of
// GROUP; SPLIT, blocks that share a head at most; WARPS; TIMES, rows of a tile that a lane holds;
// REGISTERS of a thread.

#include "cache_place.cuh"
#include "fresh.cuh"
#include "half.cuh"

#define MINUS_INFINITY __int_as_float(0xff800000)  // no math.h under NVRTC

constexpr int PARTS = HEAD_DIM / 8;  // of sixteen bytes, in a row
constexpr int LANES = PARTS <= 1 ? 1 : PARTS <= 2 ? 2 : PARTS <= 4 ? 4 : PARTS <= 8 ? 8
                      : PARTS <= 16 ? 16 : 32;  // of a row
constexpr int SIDE = 32 / LANES;                // rows that a warp loads at once
constexpr int TILE = SIDE * TIMES;
constexpr int PATIENCE = 2;  // tiles that a warp takes before another block helps
constexpr float LOG2_E = 1.4426950408889634f;
static_assert(HEAD_DIM % 8 == 0 && PARTS <= 32, "a row is held by the lanes of a warp");

struct Shared {
    float most[WARPS][HEADS], sum[WARPS][HEADS];
    float rows[WARPS][HEADS][HEAD_DIM];
    int last;
};

// What one of several blocks found of a head: for each query head its row, the largest score and
// the sum of the exponentials.
constexpr int FOUND = HEAD_DIM + 2;

// 2^x to the last bits but two; 0 for minus infinity.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ void widen(const uint4& pairs, float (&to)[8]) {
    const unsigned int words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        to[2 * j] = __uint_as_float(words[j] << 16);
        to[2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
    }
}

__device__ __forceinline__ void put(float* to, float value) { *to = value; }
__device__ __forceinline__ void put(__half* to, float value) { *to = to_half(value); }

template <typename Out>
__device__ __forceinline__ void attend(
    const float* q, const __nv_bfloat16* k_cache, const __nv_bfloat16* v_cache,
    const int* block_table, const int* positions, float* found, int* arrived, Out* out,
    int max_len, float scale) {
    __shared__ Shared shared;
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    // The heads of row b from `first_head` on.
    const int which = blockIdx.x / SPLIT, rank = blockIdx.x % SPLIT;
    constexpr int PER_ROW = KV_HEADS * GROUP / HEADS;
    const int b = which / PER_ROW, first_head = which % PER_ROW * HEADS;
    const int kv_head = first_head / GROUP;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int part = lane % LANES, side = lane / LANES;
    const bool holds = part < PARTS;

    const int newest = positions[b];  // the last step wrote it
    const int length = newest < 0 ? 0 : min(newest, max_len - 1) + 1;
    const int tiles = (length + TILE - 1) / TILE;
    const int active = max(1, min(SPLIT, (tiles + WARPS * PATIENCE - 1) / (WARPS * PATIENCE)));

    uint4 k[TIMES], v[TIMES];
    int first = (rank * WARPS + warp) * TILE;
    // Loads a tile's rows from `from` to `until`; what is not there stays as it is.
    const auto load = [&](uint4(&to)[TIMES], const __nv_bfloat16* cache, int from, int until) {
#pragma unroll
        for (int i = 0; i < TIMES; ++i) {
            const int at = first + i * SIDE + side;
            if (holds && from <= at && at < until) {
                const long long place = cache_place(block_table, b, kv_head, at, max_len);
                to[i] = load_fresh(reinterpret_cast<const uint4*>(cache + place + part * 8));
            }
        }
    };
#pragma unroll
    for (int i = 0; i < TIMES; ++i) k[i] = v[i] = make_uint4(0, 0, 0, 0);
    if (rank >= active) return;  // at once: the next kernel fetches weights in its place
    load(k, k_cache, 0, length - 1);
    load(v, v_cache, 0, length - 1);
    asm volatile("griddepcontrol.wait;" ::: "memory");
    load(k, k_cache, length - 1, length);  // the newest row, which the kernel ahead of this wrote
    load(v, v_cache, length - 1, length);

    float query[HEADS][8], most[HEADS], sum[HEADS], row[HEADS][8];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        most[h] = MINUS_INFINITY;
        sum[h] = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; ++j) row[h][j] = query[h][j] = 0.0f;
        if (holds) {
            const float4* from = reinterpret_cast<const float4*>(
                q + ((long long)b * KV_HEADS * GROUP + first_head + h) * HEAD_DIM + part * 8);
            const float4 low = load_fresh(from), high = load_fresh(from + 1);
            const float eight[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int j = 0; j < 8; ++j) query[h][j] = eight[j] * (scale * LOG2_E);
        }
    }

    while (first < length) {
        float score[TIMES][HEADS];
#pragma unroll
        for (int i = 0; i < TIMES; ++i) {
            float key[8];
            widen(k[i], key);
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                float dot = 0.0f;
#pragma unroll
                for (int j = 0; j < 8; ++j) dot = fmaf(query[h][j], key[j], dot);
                score[i][h] = dot;
            }
        }
#pragma unroll
        for (int lanes = LANES / 2; lanes > 0; lanes /= 2) {
#pragma unroll
            for (int i = 0; i < TIMES; ++i) {
#pragma unroll
                for (int h = 0; h < HEADS; ++h)
                    score[i][h] += __shfl_xor_sync(~0u, score[i][h], lanes);
            }
        }
        const int tile_first = first;
        first += active * WARPS * TILE;
        load(k, k_cache, 0, length);  // the next tile's, while this one's are looked at

#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            float now = most[h];
#pragma unroll
            for (int i = 0; i < TIMES; ++i) {
                if (tile_first + i * SIDE + side >= length) score[i][h] = MINUS_INFINITY;
                now = fmaxf(now, score[i][h]);
            }
            // Nothing seen yet: any finite number keeps the differences from being NaN.
            const float base = now == MINUS_INFINITY ? 0.0f : now;
            const float shrink = power_of_two(most[h] - base);
            most[h] = now;
            sum[h] *= shrink;
#pragma unroll
            for (int j = 0; j < 8; ++j) row[h][j] *= shrink;
#pragma unroll
            for (int i = 0; i < TIMES; ++i) {
                score[i][h] = power_of_two(score[i][h] - base);
                sum[h] += score[i][h];
            }
        }
#pragma unroll
        for (int i = 0; i < TIMES; ++i) {
            float value[8];
            widen(v[i], value);
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
#pragma unroll
                for (int j = 0; j < 8; ++j) row[h][j] = fmaf(score[i][h], value[j], row[h][j]);
            }
        }
        load(v, v_cache, 0, length);
    }

    // Over the groups of lanes.
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        float all = most[h];
#pragma unroll
        for (int lanes = LANES; lanes < 32; lanes *= 2)
            all = fmaxf(all, __shfl_xor_sync(~0u, all, lanes));
        const float share = all == MINUS_INFINITY ? 0.0f : power_of_two(most[h] - all);
        sum[h] *= share;
#pragma unroll
        for (int j = 0; j < 8; ++j) row[h][j] *= share;
#pragma unroll
        for (int lanes = LANES; lanes < 32; lanes *= 2) {
            sum[h] += __shfl_xor_sync(~0u, sum[h], lanes);
#pragma unroll
            for (int j = 0; j < 8; ++j) row[h][j] += __shfl_xor_sync(~0u, row[h][j], lanes);
        }
        if (lane == 0) shared.most[warp][h] = all, shared.sum[warp][h] = sum[h];
        if (side == 0 && holds) {
#pragma unroll
            for (int j = 0; j < 8; ++j) shared.rows[warp][h][part * 8 + j] = row[h][j];
        }
    }
    __syncthreads();

    // Over the warps.
    Out* const here = out + ((long long)b * KV_HEADS * GROUP + first_head) * HEAD_DIM;
    float* const own = found + (long long)which * SPLIT * HEADS * FOUND;
    for (int i = threadIdx.x; i < HEADS * HEAD_DIM; i += 32 * WARPS) {
        const int h = i / HEAD_DIM, d = i % HEAD_DIM;
        float all = MINUS_INFINITY, total = 0.0f, value = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) all = fmaxf(all, shared.most[w][h]);
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            const float share =
                shared.most[w][h] == MINUS_INFINITY ? 0.0f : power_of_two(shared.most[w][h] - all);
            total = fmaf(share, shared.sum[w][h], total);
            value = fmaf(share, shared.rows[w][h][d], value);
        }
        if (active == 1) {
            put(here + i, length ? value / total : 0.0f);
        } else {
            float* to = own + (rank * HEADS + h) * FOUND;
            to[d] = value;
            if (d == 0) to[HEAD_DIM] = all, to[HEAD_DIM + 1] = total;
        }
    }
    if (active == 1) return;

    // Over the blocks: in the order of their ranks, whoever comes last.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) shared.last = atomicAdd(arrived + which, 1) == active - 1;
    __syncthreads();
    if (!shared.last) return;
    __threadfence();
    for (int i = threadIdx.x; i < HEADS * HEAD_DIM; i += 32 * WARPS) {
        const int h = i / HEAD_DIM, d = i % HEAD_DIM;
        float all = MINUS_INFINITY, total = 0.0f, value = 0.0f;
#pragma unroll 4
        for (int block = 0; block < active; ++block) {
            const float* from = own + (block * HEADS + h) * FOUND;
            const float most_there = load_fresh(from + HEAD_DIM);
            const float sum_there = load_fresh(from + HEAD_DIM + 1);
            const float value_there = load_fresh(from + d);
            const float now = fmaxf(all, most_there);
            const float keep = all == MINUS_INFINITY ? 0.0f : power_of_two(all - now);
            const float add = most_there == MINUS_INFINITY ? 0.0f : power_of_two(most_there - now);
            total = total * keep + sum_there * add;
            value = value * keep + value_there * add;
            all = now;
        }
        put(here + i, value / total);
    }
    if (threadIdx.x == 0) arrived[which] = 0;  // for the next launch
}

extern "C" __global__ void __maxnreg__(REGISTERS) split_attention(
    const float* q, const __nv_bfloat16* k_cache, const __nv_bfloat16* v_cache,
    const int* block_table, const int* positions, float* found, int* arrived, float* out,
    int max_len, float scale) {
    attend(q, k_cache, v_cache, block_table, positions, found, arrived, out, max_len, scale);
}

extern "C" __global__ void __maxnreg__(REGISTERS) split_attention_half(
    const float* q, const __nv_bfloat16* k_cache, const __nv_bfloat16* v_cache,
    const int* block_table, const int* positions, float* found, int* arrived, __half* out,
    int max_len, float scale) {
    attend(q, k_cache, v_cache, block_table, positions, found, arrived, out, max_len, scale);
}
