// silu_mul: out = gate / (1 + exp(-gate)) * up, element by element
//
// Any grid and any block work. out may be gate or up.

extern "C" __global__ void silu_mul(const float* gate, const float* up, float* out, int n) {
    const long long threads = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += threads)
        out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}
