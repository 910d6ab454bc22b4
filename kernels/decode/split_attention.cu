// split_attention: attention of one new token a row to the cache, split over its positions
//
// out[b, h] = softmax(scale * q[b, h] . k[b, g, :n]) . v[b, g, :n], n = position[b] + 1,
// g = h / GROUP. A block takes the GROUP query heads of a key head with one reading of the cache.
//
// The products are mma.sync's, 16 rows by 8 by 16. Rows 0 to 7 are the heads of the group rounded to
// bfloat16, rows 8 to 15 what the rounding left, so that the sum of both is exact to 16 bits; keys
// and values are bfloat16 anyway. Both come from memory straight into registers: the elements of a
// head stand in an order of their own, the same on both sides of a product, in which what a lane
// loads at once is what it multiplies. A warp takes a tile of positions at a time, and keeps a
// softmax of its own; they are put together at the end, over the warps, and where several blocks
// share a head, by the last of them to end.
//
// Earlier steps wrote all rows of the cache but the newest: before griddepcontrol.wait those of a
// warp's first tile are loaded, and those of the next are sent to the L2 cache.
//
// A block is small enough to be the third beside one of the kernel ahead and one of the next.
// Blocks that a short sequence does not need end at once. split_attention_half writes float16, for
// the tensor cores.
//
// -D options: GROUP (query heads of a key head, 8 at most), KV_HEADS, HEAD_DIM, PAGE; SPLIT, blocks
// that share a head at most; WARPS; TIMES, sixteens of positions in a tile; REGISTERS of a thread.

#include "cache_place.cuh"
#include "fresh.cuh"
#include "half.cuh"

#define MINUS_INFINITY __int_as_float(0xff800000)  // no math.h under NVRTC

constexpr int TILE = 16 * TIMES;
constexpr int KEY_BLOCKS = (HEAD_DIM + 31) / 32;    // what four lanes load at once of a row
constexpr int VALUE_BLOCKS = (HEAD_DIM + 63) / 64;  // and eight lanes
constexpr int PATIENCE = 2;  // tiles that a warp takes before another block helps
constexpr int FAR = 3;       // tiles behind the first that are sent to the L2 cache
constexpr float LOG2_E = 1.4426950408889634f;
static_assert(HEAD_DIM % 8 == 0 && GROUP <= 8, "sixteen bytes of a row; rows of a product");

struct Shared {
    float4 rows[WARPS][GROUP][HEAD_DIM / 4];
    float most[WARPS][GROUP], sum[WARPS][GROUP];
    float2 found[SPLIT][GROUP];  // most and sum of each block
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

// Two floats as bfloat16, the first in the lower half; and what the rounding left of them.
__device__ __forceinline__ void split(float low, float high, unsigned int& most, unsigned int& rest) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(most) : "f"(high), "f"(low));
    low -= __uint_as_float(most << 16), high -= __uint_as_float(most & 0xffff0000u);
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(rest) : "f"(high), "f"(low));
}

// c += a * b, of 16 x 16 and 16 x 8.
__device__ __forceinline__ void multiply(
    float (&c)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Element j of eight in each of two rows.
__device__ __forceinline__ unsigned int pair(const uint4& row, const uint4& next, int j) {
    const unsigned int a[4] = {row.x, row.y, row.z, row.w};
    const unsigned int b[4] = {next.x, next.y, next.z, next.w};
    return __byte_perm(a[j / 2], b[j / 2], j % 2 ? 0x7632 : 0x5410);
}

__device__ __forceinline__ void put(float* to, float value) { *to = value; }
__device__ __forceinline__ void put(__half* to, float value) { *to = to_half(value); }

__device__ __forceinline__ void let_next_start() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// The rows of a tile that a lane holds: its four neighbours have keys 8 * i + lane / 4 among them,
// its eight neighbours values, two by two as the products take them.
struct Tile {
    uint4 k[2 * TIMES][KEY_BLOCKS], v[4 * TIMES][VALUE_BLOCKS];

    __device__ __forceinline__ static int key_row(int i) { return i * 8 + threadIdx.x % 32 / 4; }
    __device__ __forceinline__ static int value_row(int i) {
        return i / 4 * 16 + i % 4 / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
    }
};

template <typename Out>
__device__ __forceinline__ void attend(
    const float* q, const __nv_bfloat16* k_cache, const __nv_bfloat16* v_cache,
    const int* block_table, const int* positions, float* found, int* arrived, Out* out,
    int max_len, float scale) {
    __shared__ Shared shared;
    if (!LATE) let_next_start();
    const int which = blockIdx.x / SPLIT, rank = blockIdx.x % SPLIT;
    const int b = which / KV_HEADS, kv_head = which % KV_HEADS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int head = lane / 4, quarter = lane % 4;  // of the products' rows and of 32 elements

    const int newest = positions[b];  // the last step wrote it
    const int length = newest < 0 ? 0 : min(newest, max_len - 1) + 1;
    const int tiles = (length + TILE - 1) / TILE;
    const int active = max(1, min(SPLIT, (tiles + WARPS * PATIENCE - 1) / (WARPS * PATIENCE)));
    if (rank >= active) return;  // at once: the next kernel fetches weights in its place

    // Loads a tile's rows from `from` to `until`; what is not there stays as it is.
    Tile tile;
    int first = (rank * WARPS + warp) * TILE;
    const auto place = [&](int at) { return cache_place(block_table, b, kv_head, at, max_len); };
    const auto load_keys = [&](int from, int until) {
#pragma unroll
        for (int i = 0; i < 2 * TIMES; ++i) {
            const int at = first + Tile::key_row(i);
            if (at < from || at >= until) continue;
            const __nv_bfloat16* row = k_cache + place(at) + quarter * 8;
#pragma unroll
            for (int block = 0; block < KEY_BLOCKS; ++block) {
                if (HEAD_DIM % 32 == 0 || block * 32 + quarter * 8 < HEAD_DIM)
                    tile.k[i][block] = load_fresh(reinterpret_cast<const uint4*>(row + block * 32));
            }
        }
    };
    const auto load_values = [&](int from, int until) {
#pragma unroll
        for (int i = 0; i < 4 * TIMES; ++i) {
            const int at = first + Tile::value_row(i);
            if (at < from || at >= until) continue;
            const __nv_bfloat16* row = v_cache + place(at) + head * 8;
#pragma unroll
            for (int block = 0; block < VALUE_BLOCKS; ++block) {
                if (HEAD_DIM % 64 == 0 || block * 64 + head * 8 < HEAD_DIM)
                    tile.v[i][block] = load_fresh(reinterpret_cast<const uint4*>(row + block * 64));
            }
        }
    };
    const uint4 zeros = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 2 * TIMES * KEY_BLOCKS; ++i) tile.k[i / KEY_BLOCKS][i % KEY_BLOCKS] = zeros;
#pragma unroll
    for (int i = 0; i < 4 * TIMES * VALUE_BLOCKS; ++i)
        tile.v[i / VALUE_BLOCKS][i % VALUE_BLOCKS] = zeros;
    load_keys(0, length - 1);
    load_values(0, length - 1);
    const int stride = active * WARPS * TILE;
    for (int far = 1; far <= FAR; ++far) {
        for (int row = lane; row < TILE; row += 32) {
            const int at = first + far * stride + row;
            if (at >= length - 1) break;
            for (int element = 0; element < HEAD_DIM; element += 64) {
                prefetch(k_cache + place(at) + element);
                prefetch(v_cache + place(at) + element);
            }
        }
    }
    asm volatile("griddepcontrol.wait;" ::: "memory");
    load_keys(length - 1, length);  // the newest row, which the kernel ahead of this wrote
    load_values(length - 1, length);

    // As the left operand: two products for each 32 elements.
    unsigned int query[KEY_BLOCKS][2][4];
#pragma unroll
    for (int block = 0; block < KEY_BLOCKS; ++block) {
        const int element = block * 32 + quarter * 8;
        const bool there = head < GROUP && (HEAD_DIM % 32 == 0 || element < HEAD_DIM);
        const float4* from = reinterpret_cast<const float4*>(
            q + ((long long)which * GROUP + head) * HEAD_DIM + element);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
            if (there) x = load_fresh(from + half);
            const float factor = scale * LOG2_E;
            unsigned int(&a)[4] = query[block][half];
            split(x.x * factor, x.y * factor, a[0], a[1]);
            split(x.z * factor, x.w * factor, a[2], a[3]);
        }
    }

    float most = MINUS_INFINITY, sum = 0.0f, row[VALUE_BLOCKS][8][4];
#pragma unroll
    for (int i = 0; i < VALUE_BLOCKS * 8 * 4; ++i) row[i / 32][i / 4 % 8][i % 4] = 0.0f;
    while (first < length) {
        float score[2 * TIMES][4];
#pragma unroll
        for (int i = 0; i < 2 * TIMES; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) score[i][j] = 0.0f;
#pragma unroll
            for (int block = 0; block < KEY_BLOCKS; ++block) {
                multiply(score[i], query[block][0], tile.k[i][block].x, tile.k[i][block].y);
                multiply(score[i], query[block][1], tile.k[i][block].z, tile.k[i][block].w);
            }
        }
        const int left = length - first - quarter * 2;
        first += stride;
        load_keys(0, length);  // the next tile's, while this one's are looked at

        float now = most;
#pragma unroll
        for (int i = 0; i < 2 * TIMES; ++i) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                score[i][j] = i * 8 + j < left ? score[i][j] + score[i][j + 2] : MINUS_INFINITY;
                now = fmaxf(now, score[i][j]);
            }
        }
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
        // Every tile of the loop has a position in it, so this is finite, or a score is not.
        const float shrink = power_of_two(most - now);
        most = now;
        sum *= shrink;
#pragma unroll
        for (int i = 0; i < VALUE_BLOCKS * 8 * 4; ++i) row[i / 32][i / 4 % 8][i % 4] *= shrink;
#pragma unroll
        for (int i = 0; i < TIMES; ++i) {
            unsigned int odds[4];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float even = power_of_two(score[i * 2 + j][0] - now);
                const float odd = power_of_two(score[i * 2 + j][1] - now);
                sum += even + odd;
                split(even, odd, odds[j * 2], odds[j * 2 + 1]);
            }
            uint4(*v)[VALUE_BLOCKS] = tile.v + i * 4;
#pragma unroll
            for (int block = 0; block < VALUE_BLOCKS; ++block) {
#pragma unroll
                for (int j = 0; j < 8; ++j)
                    multiply(row[block][j], odds, pair(v[0][block], v[1][block], j),
                             pair(v[2][block], v[3][block], j));
            }
        }
        load_values(0, length);
    }

    if (LATE) let_next_start();

    // A lane has the sixteen elements from lane % 4 * 16 on of each 64 of its head.
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (head < GROUP) {
        if (quarter == 0) shared.most[warp][head] = most, shared.sum[warp][head] = sum;
#pragma unroll
        for (int block = 0; block < VALUE_BLOCKS; ++block) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int element = block * 64 + quarter * 16 + half * 8;
                if (HEAD_DIM % 64 != 0 && element >= HEAD_DIM) continue;
                float of[8];
#pragma unroll
                for (int j = 0; j < 8; ++j) of[j] = row[block][j][half] + row[block][j][half + 2];
                float4* to = shared.rows[warp][head] + element / 4;
                to[0] = {of[0], of[1], of[2], of[3]};
                to[1] = {of[4], of[5], of[6], of[7]};
            }
        }
    }
    __syncthreads();

    // Over the warps.
    Out* const here = out + (long long)which * GROUP * HEAD_DIM;
    float* const own = found + (long long)which * SPLIT * GROUP * FOUND;
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += 32 * WARPS) {
        const int h = i / HEAD_DIM, d = i % HEAD_DIM;
        float all = MINUS_INFINITY, total = 0.0f, value = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) all = fmaxf(all, shared.most[w][h]);
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            const float share =
                shared.most[w][h] == MINUS_INFINITY ? 0.0f : power_of_two(shared.most[w][h] - all);
            total = fmaf(share, shared.sum[w][h], total);
            value = fmaf(share, reinterpret_cast<const float*>(shared.rows[w][h])[d], value);
        }
        if (active == 1) {
            put(here + i, length ? value / total : 0.0f);
        } else {
            float* to = own + (rank * GROUP + h) * FOUND;
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
    for (int i = threadIdx.x; i < GROUP * active; i += 32 * WARPS) {
        const float* from = own + i * FOUND + HEAD_DIM;
        shared.found[i / GROUP][i % GROUP] = {load_fresh(from), load_fresh(from + 1)};
    }
    __syncthreads();
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += 32 * WARPS) {
        const int h = i / HEAD_DIM, d = i % HEAD_DIM;
        float all = MINUS_INFINITY, total = 0.0f, value = 0.0f;
        for (int block = 0; block < active; ++block) all = fmaxf(all, shared.found[block][h].x);
#pragma unroll 16
        for (int block = 0; block < active; ++block) {
            const float2 there = shared.found[block][h];
            const float share = there.x == MINUS_INFINITY ? 0.0f : power_of_two(there.x - all);
            total = fmaf(share, there.y, total);
            value = fmaf(share, load_fresh(own + (block * GROUP + h) * FOUND + d), value);
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
