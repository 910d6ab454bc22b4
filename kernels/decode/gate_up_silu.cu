// gate_up_silu: out[b, i] = silu(gate[i] . norm(x[b])) * (up[i] . norm(x[b]))
//
// A unit is a few rows of gate and the same rows of up. silu(v) = v / (1 + exp(-v)).
//
// -D options: K (hidden size), M (intermediate size).

#include "weight_stream.cuh"

struct GateUpWork {
    const __nv_bfloat16 *gate, *up;
    float* out;
    float eps;
    int units;

    __device__ __forceinline__ int rows(int unit, int) const { return min(HALF, M - unit * HALF); }

    __device__ __forceinline__ const __nv_bfloat16* piece(int unit, int half) const {
        return (half ? up : gate) + (long long)unit * HALF * K;
    }

    __device__ __forceinline__ void early(int, int, int) {}

    __device__ __forceinline__ void finish(
        const Shared& shared, int unit, int b, int j, float low, float high) {
        const int row = unit * HALF + j;
        const float factor = norm_factor(shared, b, eps);
        low *= factor;
        high *= factor;
        if (row < M) out[b * M + row] = low / (1.0f + __expf(-low)) * high;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) gate_up_silu(
    const __nv_bfloat16* gate, const __nv_bfloat16* up, const float* x, const float* gain,
    float* out, int batch, float eps) {
    extern __shared__ __align__(128) unsigned char memory[];
    launch_dependents();
    Ring ring(memory);
    GateUpWork work{gate, up, out, eps, (M + HALF - 1) / HALF};
    ring.start(work);
    Gain own_gain;
    load_gain(gain, own_gain);
    wait_for_predecessor();
    Vectors vectors;
    load_vectors(x, batch, vectors);
    begin_norm(vectors, own_gain);
    note_squares(*ring.shared, vectors);
    stream(ring, work, vectors, batch);
}
