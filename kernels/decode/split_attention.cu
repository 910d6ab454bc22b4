// split_attention: attention of one new token a row to the cache, split over its positions
//
// out[b, h] = softmax(scale * q[b, h] . k[b, g, :n]) . v[b, g, :n], n = position[b] + 1,
// g = h / GROUP. A block takes the query heads of a key head with one reading of the cache.
//
// The products are mma.sync's, 16 rows by 8 by 16. Rows 0 to 7 are the heads rounded to bfloat16,
// rows 8 to 15 what the rounding left, so that the sum of both is exact to 16 bits; keys and values
// are bfloat16 anyway. These come from memory straight into the registers that are multiplied: the
// elements of a head stand in an order of their own, the same on both sides of a product, in which
// what a lane loads at once is what it multiplies.
//
// A warp takes tiles of 16 positions, of which DEPTH are there or on their way, and keeps a softmax
// of its own; they are put together at the end, over the warps, and where several blocks share a
// head, by the last of them to end. Earlier steps wrote all rows of the cache but the newest: those
// of a warp's first tiles are loaded before griddepcontrol.wait.
//
// With heads of 64 elements a block is small enough to be the third beside one of the kernel ahead
// and one of the next.
// Blocks that a short sequence does not need end at once. split_attention_half writes float16, for
// the tensor cores.
//
// -D options: GROUP (query heads of a key head, 8 at most), KV_HEADS, HEAD_DIM, PAGE; ONE_PAGE,
// whether it holds a whole sequence; SPLIT, blocks that share a key head at most; WARPS; DEPTH;
// LATE, whether the next kernel is let in when the cache has been read, not before; REGISTERS of a
// thread.

#include "cache_place.cuh"
#include "early_start.cuh"
#include "fresh.cuh"
#include "half.cuh"

#define MINUS_INFINITY __int_as_float(0xff800000)  // no math.h under NVRTC

constexpr int TILE = 16;
constexpr int KEY_BLOCKS = (HEAD_DIM + 31) / 32;    // what four lanes load at once of a row
constexpr int VALUE_BLOCKS = (HEAD_DIM + 63) / 64;  // and eight lanes
constexpr int PATIENCE = 4;  // tiles that a warp takes before another block helps, which takes 2 us
constexpr float LOG2_E = 1.4426950408889634f;
static_assert(HEAD_DIM % 8 == 0 && GROUP <= 8, "sixteen bytes of a row; rows of a product");

// 2^x to the last bits but two; 0 for minus infinity.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two floats as bfloat16, the first in the lower half; and what the rounding left of them.
__device__ __forceinline__ void split(
    float low, float high, unsigned int& most, unsigned int& rest) {
    most = to_bfloat16_pair(low, high);
    low -= __uint_as_float(most << 16), high -= __uint_as_float(most & 0xffff0000u);
    rest = to_bfloat16_pair(low, high);
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

// A lane's place in the products: the head of its row, and the quarter that it has of 32 elements.
__device__ __forceinline__ int own_head() { return threadIdx.x % 32 / 4; }
__device__ __forceinline__ int own_quarter() { return threadIdx.x % 4; }

// What a lane holds of 16 positions: keys 8 * i + lane / 4, a quarter of each; and values two by
// two as the products take them, an eighth of each.
struct Tile {
    uint4 k[2][KEY_BLOCKS], v[4][VALUE_BLOCKS];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 2 * KEY_BLOCKS; ++i) k[i / KEY_BLOCKS][i % KEY_BLOCKS] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < 4 * VALUE_BLOCKS; ++i)
            v[i / VALUE_BLOCKS][i % VALUE_BLOCKS] = {0, 0, 0, 0};
    }
};

// What is read of a page that is none of the cache's. To choose an address costs less than to choose
// what was loaded, or a branch.
__device__ const __align__(16) __nv_bfloat16 no_row[HEAD_DIM] = {};

// The rows of a key head of a sequence.
struct Rows {
    const __nv_bfloat16 *k_cache, *v_cache;
    const int* block_table;
    int b, kv_head, max_len, slots;
    int page;  // of the whole sequence, where it has just one

    // Load those from `from` to `until` of the tile at a position; what is not there stays.
    __device__ __forceinline__ void load(Tile& tile, int at, int from, int until) const {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int position = at + i * 8 + own_head();
            if (position < from || position >= until) continue;
            const int element = own_quarter() * 8;
            const long long begin = place(position);
            const __nv_bfloat16* row = k_cache + begin + element;
            if (PAGE && !ONE_PAGE && begin < 0) row = no_row + element;
#pragma unroll
            for (int block = 0; block < KEY_BLOCKS; ++block) {
                if (HEAD_DIM % 32 == 0 || block * 32 + element < HEAD_DIM)
                    tile.k[i][block] = load_fresh(reinterpret_cast<const uint4*>(row + block * 32));
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int position = at + i / 2 * 8 + own_quarter() * 2 + i % 2;
            if (position < from || position >= until) continue;
            const int element = own_head() * 8;
            const long long begin = place(position);
            const __nv_bfloat16* row = v_cache + begin + element;
            if (PAGE && !ONE_PAGE && begin < 0) row = no_row + element;
#pragma unroll
            for (int block = 0; block < VALUE_BLOCKS; ++block) {
                if (HEAD_DIM % 64 == 0 || block * 64 + element < HEAD_DIM)
                    tile.v[i][block] = load_fresh(reinterpret_cast<const uint4*>(row + block * 64));
            }
        }
    }

    __device__ __forceinline__ long long place(int position) const {
        const int here = ONE_PAGE ? page : page_of(block_table, b, position, max_len, slots);
        return cache_place(here, kv_head, position, max_len);
    }
};

// The heads' queries as the left operand: two products for each 32 elements.
struct Query {
    unsigned int of[KEY_BLOCKS][2][4];

    __device__ __forceinline__ void load(const float* q, float scale) {
#pragma unroll
        for (int block = 0; block < KEY_BLOCKS; ++block) {
            const int element = block * 32 + own_quarter() * 8;
            const bool there = own_head() < GROUP && (HEAD_DIM % 32 == 0 || element < HEAD_DIM);
            const float4* from =
                reinterpret_cast<const float4*>(q + own_head() * HEAD_DIM + element);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
                if (there) x = load_fresh(from + half);
                const float factor = scale * LOG2_E;
                unsigned int(&a)[4] = of[block][half];
                split(x.x * factor, x.y * factor, a[0], a[1]);
                split(x.z * factor, x.w * factor, a[2], a[3]);
            }
        }
    }
};

// What was found of a head: the largest score, and sums of exponentials of what is less.
struct Found {
    float most = MINUS_INFINITY, sum = 0.0f, value = 0.0f;

    __device__ __forceinline__ void add(float most_there, float sum_there, float value_there) {
        const float now = fmaxf(most, most_there);
        const float keep = most == MINUS_INFINITY ? 0.0f : power_of_two(most - now);
        const float take = most_there == MINUS_INFINITY ? 0.0f : power_of_two(most_there - now);
        sum = sum * keep + sum_there * take;
        value = value * keep + value_there * take;
        most = now;
    }
};

// A float for each element of a row, and then most and sum.
constexpr int FOUND = HEAD_DIM + 2;
constexpr int FOUND_PITCH = (FOUND + 3) / 4 * 4;  // of a row in shared memory

// The softmax of a warp. A lane has the sums of its own head, in two parts: those of the rounded
// exponentials and those of what the rounding left.
struct Softmax {
    float most, sum, row[VALUE_BLOCKS][8][4];

    __device__ __forceinline__ void clear() {
        most = MINUS_INFINITY, sum = 0.0f;
#pragma unroll
        for (int i = 0; i < VALUE_BLOCKS * 8 * 4; ++i) row[i / 32][i / 4 % 8][i % 4] = 0.0f;
    }

    // Add a tile, of which the first `count` positions are there, and one at least.
    __device__ __forceinline__ void add(const Tile& tile, const Query& query, int count) {
        float score[2][4], now = most;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) score[i][j] = 0.0f;
#pragma unroll
            for (int block = 0; block < KEY_BLOCKS; ++block) {
                multiply(score[i], query.of[block][0], tile.k[i][block].x, tile.k[i][block].y);
                multiply(score[i], query.of[block][1], tile.k[i][block].z, tile.k[i][block].w);
            }
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const bool there = i * 8 + own_quarter() * 2 + j < count;
                score[i][j] = there ? score[i][j] + score[i][j + 2] : MINUS_INFINITY;
                now = fmaxf(now, score[i][j]);
            }
        }
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
        const float shrink = power_of_two(most - now);
        most = now;
        sum *= shrink;
#pragma unroll
        for (int i = 0; i < VALUE_BLOCKS * 8 * 4; ++i) row[i / 32][i / 4 % 8][i % 4] *= shrink;
        unsigned int odds[4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float even = power_of_two(score[i][0] - now);
            const float odd = power_of_two(score[i][1] - now);
            sum += even + odd;
            split(even, odd, odds[i * 2], odds[i * 2 + 1]);
        }
#pragma unroll
        for (int block = 0; block < VALUE_BLOCKS; ++block) {
#pragma unroll
            for (int j = 0; j < 8; ++j)
                multiply(row[block][j], odds, pair(tile.v[0][block], tile.v[1][block], j),
                         pair(tile.v[2][block], tile.v[3][block], j));
        }
    }

    // Write it to rows of FOUND_PITCH, one for each head. Of each 64 elements a lane has 16.
    __device__ __forceinline__ void publish(float* rows) {
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (own_head() >= GROUP) return;
        float* own = rows + own_head() * FOUND_PITCH;
        if (own_quarter() == 0) own[HEAD_DIM] = most, own[HEAD_DIM + 1] = sum;
#pragma unroll
        for (int block = 0; block < VALUE_BLOCKS; ++block) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int element = block * 64 + own_quarter() * 16 + half * 8;
                if (HEAD_DIM % 64 != 0 && element >= HEAD_DIM) continue;
                float of[8];
#pragma unroll
                for (int j = 0; j < 8; ++j) of[j] = row[block][j][half] + row[block][j][half + 2];
                float4* to = reinterpret_cast<float4*>(own + element);
                to[0] = {of[0], of[1], of[2], of[3]};
                to[1] = {of[4], of[5], of[6], of[7]};
            }
        }
    }
};

// Whether this is the last of `blocks` to come here. What the others wrote before is visible then.
__device__ __forceinline__ bool last_of(int* arrived, int blocks) {
    __shared__ int last;
    __syncthreads();
    if (threadIdx.x == 0) {
        int before;
        asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;"
                     : "=r"(before)
                     : "l"(arrived)
                     : "memory");
        last = before == blocks - 1;
        if (last) *arrived = 0;  // for the next launch
    }
    __syncthreads();
    return last;
}

template <typename Out>
__device__ __forceinline__ void attend(
    const float* q, const __nv_bfloat16* k_cache, const __nv_bfloat16* v_cache,
    const int* block_table, const int* positions, float* found, int* arrived, Out* out,
    int max_len, int slots, float scale) {
    __shared__ __align__(16) float of_warps[WARPS][GROUP][FOUND_PITCH];
    if (!LATE) let_next_start();
    const int which = blockIdx.x / SPLIT, rank = blockIdx.x % SPLIT;  // key head of all rows
    const int b = which / KV_HEADS, kv_head = which % KV_HEADS;
    const int warp = threadIdx.x / 32;

    const int newest = positions[b];  // the last step wrote it
    // Of rows that name a slot, at once: who looks it up for each row of the cache waits each time.
    const int page = ONE_PAGE ? page_of(block_table, b, 0, max_len, slots) : 0;
    const int length = newest < 0 || page < 0 ? 0 : min(newest, max_len - 1) + 1;
    const int tiles = (length + TILE - 1) / TILE;
    const int active = max(1, min(SPLIT, (tiles + WARPS * PATIENCE - 1) / (WARPS * PATIENCE)));
    if (rank >= active) return;  // at once: the next kernel fetches weights in its place

    const Rows rows = {k_cache, v_cache, block_table, b, kv_head, max_len, slots, page};
    const int first = (rank * WARPS + warp) * TILE, stride = active * WARPS * TILE;
    Tile tile[DEPTH];
#pragma unroll
    for (int i = 0; i < DEPTH; ++i) {
        tile[i].clear();
        rows.load(tile[i], first + i * stride, 0, length - 1);
    }
    wait_for_previous();
    Query query;
    query.load(q + (long long)which * GROUP * HEAD_DIM, scale);
#pragma unroll
    for (int i = 0; i < DEPTH; ++i) {  // the newest row, which the kernel ahead of this wrote
        const int at = first + i * stride;
        if (at < length && length <= at + TILE) rows.load(tile[i], at, length - 1, length);
    }

    Softmax softmax;
    softmax.clear();
    for (int at = first; at < length;) {
#pragma unroll
        for (int i = 0; i < DEPTH; ++i, at += stride) {
            if (at >= length) break;
            softmax.add(tile[i], query, length - at);
            const int later = at + DEPTH * stride;
            if (later < length) rows.load(tile[i], later, 0, length);
        }
    }
    if (LATE) let_next_start();
    softmax.publish(of_warps[warp][0]);
    __syncthreads();

    Out* const here = out + (long long)which * GROUP * HEAD_DIM;
    float* const own = found + (long long)which * SPLIT * GROUP * FOUND;
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += 32 * WARPS) {
        const int h = i / HEAD_DIM, d = i % HEAD_DIM;
        Found all;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            const float* from = of_warps[w][h];
            all.add(from[HEAD_DIM], from[HEAD_DIM + 1], from[d]);
        }
        if (active == 1) {
            put(here + i, length ? all.value / all.sum : 0.0f);
        } else {
            float* to = own + (rank * GROUP + h) * FOUND;
            to[d] = all.value;
            if (d == 0) to[HEAD_DIM] = all.most, to[HEAD_DIM + 1] = all.sum;
        }
    }
    if (active == 1 || !last_of(arrived + which, active)) return;

    // In the order of the blocks' ranks, whoever came last.
    constexpr int MOST = HEAD_DIM <= 64 ? 16 : 4;  // as registers allow
    constexpr int AT_ONCE = SPLIT < MOST ? SPLIT : MOST;
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += 32 * WARPS) {
        const float* row = own + i / HEAD_DIM * FOUND;
        Found all;
        for (int block0 = 0; block0 < active; block0 += AT_ONCE) {
            Found there[AT_ONCE];
#pragma unroll
            for (int block = 0; block < AT_ONCE; ++block) {
                if (block0 + block >= active) break;
                const float* from = row + (block0 + block) * GROUP * FOUND;
                there[block].most = load_fresh(from + HEAD_DIM);
                there[block].sum = load_fresh(from + HEAD_DIM + 1);
                there[block].value = load_fresh(from + i % HEAD_DIM);
            }
#pragma unroll
            for (int block = 0; block < AT_ONCE; ++block)
                all.add(there[block].most, there[block].sum, there[block].value);
        }
        put(here + i, all.value / all.sum);
    }
}

extern "C" __global__ void __maxnreg__(REGISTERS) split_attention(
    const float* q, const __nv_bfloat16* k_cache, const __nv_bfloat16* v_cache,
    const int* block_table, const int* positions, float* found, int* arrived, float* out,
    int max_len, int slots, float scale) {
    attend(q, k_cache, v_cache, block_table, positions, found, arrived, out, max_len, slots, scale);
}

extern "C" __global__ void __maxnreg__(REGISTERS) split_attention_half(
    const float* q, const __nv_bfloat16* k_cache, const __nv_bfloat16* v_cache,
    const int* block_table, const int* positions, float* found, int* arrived, __half* out,
    int max_len, int slots, float scale) {
    attend(q, k_cache, v_cache, block_table, positions, found, arrived, out, max_len, slots, scale);
}
