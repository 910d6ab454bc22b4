// rms_norm: out[r, :] = x[r, :] / sqrt(mean(x[r, :]^2) + eps) * weight
//
// One block per row; any grid works, and any block of whole warps. out may be x.

__device__ __forceinline__ float block_sum(float value) {
    __shared__ float partial[32];
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
    __syncthreads();  // the previous row may still be reading partial
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < blockDim.x / 32; ++warp) sum += partial[warp];
    return sum;
}

extern "C" __global__ void rms_norm(
    const float* x, const float* weight, float* out, int rows, int width, float eps) {
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const float* from = x + (long long)row * width;
        float* to = out + (long long)row * width;
        float squares = 0.0f;
        for (int i = threadIdx.x; i < width; i += blockDim.x) squares += from[i] * from[i];
        const float scale = 1.0f / sqrtf(block_sum(squares) / width + eps);
        for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i] * scale * weight[i];
    }
}
