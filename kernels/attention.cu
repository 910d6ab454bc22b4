// attention: one query per sequence against its cache, for one new token
//
// out[b, h, :] =
//     softmax(scale * q[b, h, :] . k_cache[b, g, 0..position[b], :]) . v_cache[b, g, ...]
// with g = h / (heads / kv_heads). One block per (head, batch). The warps of a block share out the
// positions of the cache; each keeps a running maximum, sum and weighted value (online softmax), so
// shared memory depends on the number of warps and not on the context. Any grid works, and any
// block of 1 to 8 whole warps. head_dim at most 256. A position past the cache reads the whole of
// it; a negative one attends to nothing and gives zeros.
//
// With slots, sequence b has row slots[b] of the caches instead of row b; the caches have
// slot_count rows, and a slot outside them attends to nothing.

#define MINUS_INFINITY __int_as_float(0xff800000)  // no math.h under NVRTC

constexpr int MAX_HEAD_DIM = 256;
constexpr int SHARE = MAX_HEAD_DIM / 32;  // elements of a head that one lane holds
constexpr int MAX_WARPS = 8;

extern "C" __global__ void attention(
    const float* q, const float* k_cache, const float* v_cache, const int* position,
    const int* slots, float* out, int batch, int slot_count, int heads, int kv_heads, int head_dim,
    int max_len, float scale) {
    __shared__ float warp_max[MAX_WARPS], warp_sum[MAX_WARPS];
    __shared__ float warp_value[MAX_WARPS][MAX_HEAD_DIM];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;

    for (int b = blockIdx.y; b < batch; b += gridDim.y) {
        const int slot = slots ? slots[b] : b, upto = max(0, min(position[b] + 1, max_len));
        const int length = slot >= 0 && slot < slot_count ? upto : 0;
        for (int head = blockIdx.x; head < heads; head += gridDim.x) {
            const long long dense = ((long long)b * heads + head) * head_dim;
            const long long cached =
                ((long long)slot * kv_heads + head / (heads / kv_heads)) * max_len * head_dim;
            float query[SHARE], value[SHARE];
#pragma unroll
            for (int i = 0; i < SHARE; ++i) {
                const int d = lane + 32 * i;
                query[i] = d < head_dim ? q[dense + d] * scale : 0.0f;
                value[i] = 0.0f;
            }

            float running_max = MINUS_INFINITY, running_sum = 0.0f;
            for (int at = warp; at < length; at += warps) {
                const float* key_row = k_cache + cached + (long long)at * head_dim;
                const float* value_row = v_cache + cached + (long long)at * head_dim;
                float row[SHARE], score = 0.0f;
#pragma unroll
                for (int i = 0; i < SHARE; ++i) {
                    const int d = lane + 32 * i;
                    if (d < head_dim) score = fmaf(query[i], key_row[d], score);
                    row[i] = d < head_dim ? value_row[d] : 0.0f;  // asked for before the shuffles
                }
                for (int lanes = 16; lanes > 0; lanes /= 2)
                    score += __shfl_xor_sync(~0u, score, lanes);
                const float new_max = fmaxf(running_max, score);
                const float keep = expf(running_max - new_max), weight = expf(score - new_max);
                running_max = new_max;
                running_sum = running_sum * keep + weight;
#pragma unroll
                for (int i = 0; i < SHARE; ++i) value[i] = value[i] * keep + weight * row[i];
            }

            __syncthreads();  // the previous head may still be reading what is written here
            if (lane == 0) {
                warp_max[warp] = running_max;
                warp_sum[warp] = running_sum;
            }
#pragma unroll
            for (int i = 0; i < SHARE; ++i) warp_value[warp][lane + 32 * i] = value[i];
            __syncthreads();

            const int used = min(warps, length);  // the other warps had no position
            float block_max = MINUS_INFINITY, block_sum = 0.0f;
            for (int w = 0; w < used; ++w) block_max = fmaxf(block_max, warp_max[w]);
            for (int w = 0; w < used; ++w) block_sum += warp_sum[w] * expf(warp_max[w] - block_max);
            for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
                float sum = 0.0f;
                for (int w = 0; w < used; ++w)
                    sum += warp_value[w][d] * expf(warp_max[w] - block_max);
                out[dense + d] = length > 0 ? sum / block_sum : 0.0f;
            }
        }
    }
}
