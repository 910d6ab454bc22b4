// next_token: chooses the token of each row, appends it, moves the position on, and leaves the
// residual stream at the embedding of the token that comes next
//
// The largest of the blocks' largest logits (see project_vocabulary) is the token; where there are
// none (blocks 0) it is what `chosen` holds. Inside the prompt the buffer's own next token stays.
// The position stops at max_len - 1, and nothing is written past it. One block a row.
//
// -D options: K (hidden size), THREADS.

#include "bfloat16.cuh"
#include "larger.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) next_token(
    const float* best_value, const int* best_index, int* chosen, int* tokens,
    const int* prompt_len, int* positions, const __nv_bfloat16* table, float* x, int blocks,
    int batch, int max_len) {
    __shared__ float values[THREADS / 32];
    __shared__ int indices[THREADS / 32];
    __shared__ int next;
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    const int b = blockIdx.x;
    // The kernel that writes them is far ahead: whoever comes next must not start before this ends.
    const int at = positions[b] + 1, prompt = prompt_len[b];
    const int given = 0 <= at && at < prompt && at < max_len ? tokens[(long long)b * max_len + at] : -1;
    asm volatile("griddepcontrol.wait;" ::: "memory");

    float value = NOTHING;
    int index = NOWHERE;
    for (int i = threadIdx.x; i < blocks; i += THREADS) {
        const float other = best_value[i * batch + b];
        const int where = best_index[i * batch + b];
        if (larger(other, where, value, index)) value = other, index = where;
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const float other = __shfl_xor_sync(~0u, value, lanes);
        const int where = __shfl_xor_sync(~0u, index, lanes);
        if (larger(other, where, value, index)) value = other, index = where;
    }
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value, indices[threadIdx.x / 32] = index;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < THREADS / 32; ++i)
            if (larger(values[i], indices[i], value, index)) value = values[i], index = indices[i];
        const int token = blocks ? index : chosen[b];
        chosen[b] = token;
        next = given >= 0 ? given : token;
        if (0 <= at && at < max_len) {
            if (at >= prompt) tokens[(long long)b * max_len + at] = token;
            positions[b] = at;
        }
    }
    __syncthreads();
    const unsigned short* row =
        reinterpret_cast<const unsigned short*>(table) + (long long)next * K;
    for (int i = threadIdx.x; i < K; i += THREADS)
        x[(long long)b * K + i] = __uint_as_float((unsigned int)row[i] << 16);
}
