// project_vocabulary: logits[b, v] = weight[v] . norm(x[b]), and the largest of each block
//
// A NaN is less than anything, and the first of equals wins. Block i writes the largest of its logits of
// row b to best_value[i, b] and where it stands to best_index[i, b]; next_token looks at those.
//
// -D options: K (hidden size), M (vocabulary size).

#include "weight_stream.cuh"
#include "larger.cuh"

struct VocabularyWork {
    const __nv_bfloat16* weight;
    float* logits;
    float eps;
    int units;

    float best_value;
    int best_index;

    __device__ __forceinline__ int rows(int unit, int half) const {
        return max(0, min(HALF, M - unit * ROWS - half * HALF));
    }

    __device__ __forceinline__ const __nv_bfloat16* piece(int unit, int half) const {
        return weight + ((long long)unit * ROWS + half * HALF) * K;
    }

    __device__ __forceinline__ void early(int, int, int) {}

    __device__ __forceinline__ void put(int b, int row, float value) {
        if (row >= M) return;
        logits[(long long)b * M + row] = value;
        value = comparable(value);
        if (larger(value, row, best_value, best_index)) best_value = value, best_index = row;
    }

    __device__ __forceinline__ void finish(
        const Shared& shared, int unit, int b, int j, float low, float high) {
        const float factor = norm_factor(shared, b, eps);
        put(b, unit * ROWS + j, low * factor);
        put(b, unit * ROWS + j + HALF, high * factor);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) project_vocabulary(
    const __nv_bfloat16* weight, const float* x, const float* gain, float* logits,
    float* best_value, int* best_index, int batch, float eps) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ float values[BATCH][WARPS][HALF];
    __shared__ int indices[BATCH][WARPS][HALF];
    launch_dependents();
    Ring ring(memory);
    VocabularyWork work{weight, logits, eps, (M + ROWS - 1) / ROWS, NOTHING, NOWHERE};
    ring.start(work);
    Gain own_gain;
    load_gain(gain, own_gain);
    wait_for_predecessor();
    Vectors vectors;
    load_vectors(x, batch, vectors);
    begin_norm(vectors, own_gain);
    note_squares(*ring.shared, vectors);
    stream(ring, work, vectors, batch);

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane < BATCH * HALF) {
        values[lane / HALF][warp][lane % HALF] = work.best_value;
        indices[lane / HALF][warp][lane % HALF] = work.best_index;
    }
    __syncthreads();
    const int b = threadIdx.x;
    if (b < BATCH && b < batch) {
        float value = NOTHING;
        int index = NOWHERE;
        for (int i = 0; i < WARPS * HALF; ++i) {
            const float other = values[b][i / HALF][i % HALF];
            const int at = indices[b][i / HALF][i % HALF];
            if (larger(other, at, value, index)) value = other, index = at;
        }
        best_value[blockIdx.x * batch + b] = value;
        best_index[blockIdx.x * batch + b] = index;
    }
}
