// project_vocabulary: logits[b, v] = weight[v] . norm(x[b]), and the largest of each block
//
// Block i writes the largest of its logits of row b, in the order of larger.cuh, to best_value[i, b]
// and where it stands to best_index[i, b]; next_token looks at those.
//
// -D options: K (hidden size), M (vocabulary size).

#include "weight_stream.cuh"
#include "larger.cuh"

struct VocabularyWork {
    static constexpr bool TOGETHER = true;
    int pairs;
    const __nv_bfloat16* weight;
    float *logits, *best_value;
    int* best_index;
    float eps;

    // Of the logits that this lane finished, which are of one row.
    float largest;
    unsigned int place;

    __device__ __forceinline__ int rows() const { return M; }

    __device__ __forceinline__ const __nv_bfloat16* row(int pair, int half) const {
        const int row = 2 * pair + half;
        return weight + (long long)row * K;
    }

    __device__ __forceinline__ void early(int, int) {}

    __device__ __forceinline__ void put(int b, int row, float value) {
        logits[(long long)b * M + row] = value;
        take_larger(value, row, largest, place);
    }

    __device__ __forceinline__ void finish(
        const Shared& shared, int pair, int b, float low, float high) {
        const float factor = norm_factor(shared, b, eps);
        put(b, 2 * pair, low * factor);
        if (2 * pair + 1 < M) put(b, 2 * pair + 1, high * factor);
    }

    // The largest of the block: lanes of the same row are VECTORS apart.
    __device__ __forceinline__ void end(int batch) {
        largest_of_lanes(largest, place, VECTORS);
        const int b = threadIdx.x % 32;
        if (b < VECTORS && b < batch) {
            best_value[blockIdx.x * batch + b] = value_at(largest, place);
            best_index[blockIdx.x * batch + b] = index_of(place);
        }
    }
};

extern "C" __global__ void BLOCK_LIMITS project_vocabulary(
    const __nv_bfloat16* weight, const float* x, const float* gain, float* logits,
    float* best_value, int* best_index, int batch, float eps) {
    VocabularyWork work{(M + 1) / 2, weight, logits, best_value, best_index, eps, NOTHING,
                        NOWHERE};
    stream_rows<true>(work, x, gain, batch);
}
