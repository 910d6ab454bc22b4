// residual_add: out = x + residual, element by element
//
// Any grid and any block work. out may be x or residual.

extern "C" __global__ void residual_add(const float* x, const float* residual, float* out, int n) {
    const long long threads = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += threads)
        out[i] = x[i] + residual[i];
}
