// project_residual: x[b, m] += weight[m] . input[b]
//
// The projection behind attention and the one behind the MLP, each added to the residual stream in
// place: an element of x belongs to one block.
//
// -D options: K (elements of an input), M (elements of x).

#include "weight_stream.cuh"

struct ResidualWork {
    const __nv_bfloat16* weight;
    float* x;
    int units;

    float low_before, high_before;

    __device__ __forceinline__ int rows(int unit, int half) const {
        return max(0, min(HALF, M - unit * ROWS - half * HALF));
    }

    __device__ __forceinline__ const __nv_bfloat16* piece(int unit, int half) const {
        return weight + ((long long)unit * ROWS + half * HALF) * K;
    }

    __device__ __forceinline__ void early(int unit, int b, int j) {
        const int row = unit * ROWS + j;
        low_before = row < M ? x[b * M + row] : 0.0f;
        high_before = row + HALF < M ? x[b * M + row + HALF] : 0.0f;
    }

    __device__ __forceinline__ void finish(
        const Shared&, int unit, int b, int j, float low, float high) {
        const int row = unit * ROWS + j;
        if (row < M) x[b * M + row] = low_before + low;
        if (row + HALF < M) x[b * M + row + HALF] = high_before + high;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) project_residual(
    const __nv_bfloat16* weight, const float* input, float* x, int batch) {
    extern __shared__ __align__(128) unsigned char memory[];
    launch_dependents();
    Ring ring(memory);
    ResidualWork work{weight, x, (M + ROWS - 1) / ROWS, 0.0f, 0.0f};
    ring.start(work);
    wait_for_predecessor();
    Vectors vectors;
    load_vectors(input, batch, vectors);
    stream(ring, work, vectors, batch);
}
