// project_residual: x[b, m] += weight[m] . input[b]
//
// The projection behind attention and the one behind the MLP, each added to the residual stream in
// place: an element of x belongs to one block.
//
// -D options: K (elements of an input), M (elements of x).

#include "weight_stream.cuh"

struct ResidualWork {
    static constexpr bool TOGETHER = true;
    int pairs;
    const __nv_bfloat16* weight;
    float* x;

    float low_before, high_before;

    __device__ __forceinline__ int rows() const { return M; }

    __device__ __forceinline__ const __nv_bfloat16* row(int pair, int half) const {
        const int row = 2 * pair + half;
        return weight + (long long)row * K;
    }

    __device__ __forceinline__ void early(int pair, int b) {
        const float* from = x + (long long)b * M + 2 * pair;
        low_before = load_fresh(from);
        high_before = 2 * pair + 1 < M ? load_fresh(from + 1) : 0.0f;
    }

    __device__ __forceinline__ void finish(const Shared&, int pair, int b, float low, float high) {
        float* to = x + (long long)b * M + 2 * pair;
        to[0] = low_before + low;
        if (2 * pair + 1 < M) to[1] = high_before + high;
    }

    __device__ __forceinline__ void end(int) {}
};

extern "C" __global__ void BLOCK_LIMITS project_residual(
    const __nv_bfloat16* weight, const float* input, float* x, int batch) {
    ResidualWork work{(M + 1) / 2, weight, x, 0.0f, 0.0f};
    stream_rows<false>(work, input, nullptr, batch);
}
