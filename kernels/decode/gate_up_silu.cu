// gate_up_silu: out[b, i] = silu(gate[i] . norm(x[b])) * (up[i] . norm(x[b]))
//
// A pair is a row of gate and the same row of up. silu(v) = v / (1 + exp(-v)).
//
// -D options: K (hidden size), M (intermediate size).

#include "weight_stream.cuh"

struct GateUpWork {
    static constexpr bool TOGETHER = false;
    int pairs;
    const __nv_bfloat16 *gate, *up;
    float* out;
    float eps;

    __device__ __forceinline__ int rows() const { return 2 * pairs; }

    __device__ __forceinline__ const __nv_bfloat16* row(int pair, int half) const {
        return (half ? up : gate) + (long long)pair * K;
    }

    __device__ __forceinline__ void early(int, int) {}

    __device__ __forceinline__ void finish(
        const Shared& shared, int pair, int b, float low, float high) {
        const float factor = norm_factor(shared, b, eps);
        low *= factor;
        high *= factor;
        out[(long long)b * M + pair] = low / (1.0f + __expf(-low)) * high;
    }

    __device__ __forceinline__ void end(int) {}
};

extern "C" __global__ void BLOCK_LIMITS gate_up_silu(
    const __nv_bfloat16* gate, const __nv_bfloat16* up, const float* x, const float* gain,
    float* out, int batch, float eps) {
    GateUpWork work{M, gate, up, out, eps};
    stream_rows<true>(work, x, gain, batch);
}
