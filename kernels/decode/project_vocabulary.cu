// project_vocabulary: logits[b, v] = weight[v] . norm(x[b]), and the largest of each block
//
// A NaN is less than anything, and the first of equals wins. Block i writes the largest of its logits of
// row b to best_value[i, b] and where it stands to best_index[i, b]; next_token looks at those.
//
// -D options: K (hidden size), M (vocabulary size).

#include "weight_stream.cuh"
#include "larger.cuh"

struct VocabularyWork {
    int pairs;
    const __nv_bfloat16* weight;
    float* logits;
    float eps;

    float best_value[VECTORS];
    int best_index[VECTORS];

    __device__ __forceinline__ const __nv_bfloat16* row(int pair, int half) const {
        const int row = 2 * pair + half;
        return row < M ? weight + (long long)row * K : nullptr;
    }

    __device__ __forceinline__ void early(int, int) {}

    __device__ __forceinline__ void put(int b, int row, float value) {
        logits[(long long)b * M + row] = value;
        value = comparable(value);
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {  // no index into registers at run time
            if (i == b && larger(value, row, best_value[i], best_index[i]))
                best_value[i] = value, best_index[i] = row;
        }
    }

    __device__ __forceinline__ void finish(
        const Shared& shared, int pair, int b, float low, float high) {
        const float factor = norm_factor(shared, b, eps);
        put(b, 2 * pair, low * factor);
        if (2 * pair + 1 < M) put(b, 2 * pair + 1, high * factor);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) project_vocabulary(
    const __nv_bfloat16* weight, const float* x, const float* gain, float* logits,
    float* best_value, int* best_index, int batch, float eps) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ float values[VECTORS][WARPS];
    __shared__ int indices[VECTORS][WARPS];
    launch_dependents();
    VocabularyWork work{(M + 1) / 2, weight, logits, eps, {}, {}};
#pragma unroll
    for (int b = 0; b < VECTORS; ++b) work.best_value[b] = NOTHING, work.best_index[b] = NOWHERE;
    Stream<VocabularyWork> stream(memory, work);
    const Gain own_gain(gain);
    wait_for_predecessor();
    Vectors vectors;
    vectors.load(x, batch);
    own_gain.apply(vectors, stream.shared);
    stream.run(vectors, batch);

    // The largest of the block.
#pragma unroll
    for (int b = 0; b < VECTORS; ++b) {
        float value = work.best_value[b];
        int index = work.best_index[b];
        for (int lanes = 16; lanes > 0; lanes /= 2) {
            const float other = __shfl_xor_sync(~0u, value, lanes);
            const int at = __shfl_xor_sync(~0u, index, lanes);
            if (larger(other, at, value, index)) value = other, index = at;
        }
        if (threadIdx.x % 32 == 0)
            values[b][threadIdx.x / 32] = value, indices[b][threadIdx.x / 32] = index;
    }
    __syncthreads();
    const int b = threadIdx.x;
    if (b < batch) {
        float value = NOTHING;
        int index = NOWHERE;
        for (int warp = 0; warp < WARPS; ++warp) {
            if (larger(values[b][warp], indices[b][warp], value, index))
                value = values[b][warp], index = indices[b][warp];
        }
        best_value[blockIdx.x * batch + b] = value;
        best_index[blockIdx.x * batch + b] = index;
    }
}
