// next_token: chooses the token of each row, appends it, moves the position on, and leaves the
// residual stream at the embedding of the token at the new position
//
// The largest of the blocks' largest logits (see project_vocabulary, batch_vocabulary, larger) is the
// token; where there are none (blocks 0) it is what `chosen` holds. Inside the prompt the buffer's
// own next token stays. The position stops at max_len - 1, and nothing is written past it. A row
// that has ended (see row_ends.cuh; `limits` may be null) keeps its tokens, its position and what
// it chose.
//
// embed_token leaves the embedding of the token at the position and does nothing else. The
// embedding of what is no token of the vocabulary, or of no position, is NaN.
//
// Where `xg` is not null, it gets the embedding times `gain` in float16, and `squares` the sum of
// its squares: what batch_qkv takes. One block a row.
//
// -D options: K (hidden size), THREADS.

#include "bfloat16.cuh"
#include "early_start.cuh"
#include "fresh.cuh"
#include "half.cuh"
#include "larger.cuh"
#include "row_ends.cuh"

// The embedding of a token; null where it is none.
__device__ __forceinline__ const unsigned short* embedding_of(
    const __nv_bfloat16* table, int token, int vocab) {
    if ((unsigned int)token >= (unsigned int)vocab) return nullptr;
    return reinterpret_cast<const unsigned short*>(table) + (long long)token * K;
}

// Row b of the residual stream. `sums` is the block's, of one float a warp.
__device__ __forceinline__ void look_up(
    const unsigned short* row, int b, const float* gain, float* x, __half* xg, float* squares,
    float* sums) {
    float square = 0.0f;
    for (int i = threadIdx.x; i < K; i += THREADS) {
        const long long at = (long long)b * K + i;
        const float value = row ? __uint_as_float((unsigned int)row[i] << 16)
                                : __uint_as_float(0x7fc00000u);
        x[at] = value;
        if (xg) {
            xg[at] = to_half(value * gain[i]);
            square = fmaf(value, value, square);
        }
    }
    if (!xg) return;
    for (int lanes = 16; lanes > 0; lanes /= 2) square += __shfl_xor_sync(~0u, square, lanes);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = square;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < THREADS / 32; ++i) square += sums[i];
        squares[b] = square;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) next_token(
    const float* best_value, const int* best_index, int* chosen, int* tokens,
    const int* prompt_len, int* positions, const int* limits, const int* ends,
    const __nv_bfloat16* table, const float* gain, float* x, __half* xg, float* squares, int blocks,
    int columns, int end_count, int max_len, int vocab) {
    __shared__ float values[THREADS / 32];
    __shared__ unsigned int places[THREADS / 32];
    __shared__ int next;
    let_next_start();
    const int b = blockIdx.x;
    // The kernel that writes them is far ahead: whoever comes next must not start before this ends.
    const int now = positions[b], prompt = prompt_len[b];
    const bool moves = -1 <= now && now < max_len - 1;
    const int at = moves ? now + 1 : 0;
    const int* row = tokens + (long long)b * max_len;
    const int held = 0 <= now && now < max_len ? row[now] : -1;
    const int given = moves && at < prompt ? row[at] : -1;
    const bool ended = limits && row_ended(now, held, prompt, limits[b], max_len, ends, end_count);
    wait_for_previous();

    float value = NOTHING;
    unsigned int place = NOWHERE;
    for (int i = threadIdx.x; i < blocks; i += THREADS) {
        const float there = load_fresh(best_value + i * columns + b);
        take_larger(there, load_fresh(best_index + i * columns + b), value, place);
    }
    largest_of_lanes(value, place);
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value, places[threadIdx.x / 32] = place;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < THREADS / 32; ++i)
            if (larger(values[i], places[i], value, place)) value = values[i], place = places[i];
        const int token = ended && held >= 0 ? held : blocks ? index_of(place) : load_fresh(chosen + b);
        chosen[b] = token;
        next = 0 <= now && now < max_len ? held : token;  // where the position stays
        if (moves && !ended) {
            if (at >= prompt) tokens[(long long)b * max_len + at] = token;
            positions[b] = at;
            next = at < prompt ? given : token;
        }
    }
    __syncthreads();
    look_up(embedding_of(table, next, vocab), b, gain, x, xg, squares, values);
}

extern "C" __global__ void __launch_bounds__(THREADS) embed_token(
    const int* tokens, const int* positions, const __nv_bfloat16* table, const float* gain,
    float* x, __half* xg, float* squares, int max_len, int vocab) {
    __shared__ float sums[THREADS / 32];
    let_next_start();
    wait_for_previous();
    const int b = blockIdx.x, at = positions[b];
    const int token = 0 <= at && at < max_len ? tokens[(long long)b * max_len + at] : -1;
    look_up(embedding_of(table, token, vocab), b, gain, x, xg, squares, sums);
}
