// softmax: out[r, :] = exp(x[r, :] - max) / sum(exp(x[r, :] - max))
//
// One block per row; any grid works, and any block of whole warps. out may be x.

// The sum over the block or, of MAXIMUM, the largest value of it.
template <bool MAXIMUM>
__device__ __forceinline__ float block_reduce(float value) {
    __shared__ float partial[32];
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const float other = __shfl_xor_sync(~0u, value, lanes);
        value = MAXIMUM ? fmaxf(value, other) : value + other;
    }
    __syncthreads();  // the previous row may still be reading partial
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = partial[0];
    for (int warp = 1; warp < blockDim.x / 32; ++warp)
        value = MAXIMUM ? fmaxf(value, partial[warp]) : value + partial[warp];
    return value;
}

extern "C" __global__ void softmax(const float* x, float* out, int rows, int width) {
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const float* from = x + (long long)row * width;
        float* to = out + (long long)row * width;
        float largest = __int_as_float(0xff800000);  // -inf: no math.h under NVRTC
        for (int i = threadIdx.x; i < width; i += blockDim.x) largest = fmaxf(largest, from[i]);
        largest = block_reduce<true>(largest);
        float sum = 0.0f;
        for (int i = threadIdx.x; i < width; i += blockDim.x) sum += expf(from[i] - largest);
        sum = block_reduce<false>(sum);
        for (int i = threadIdx.x; i < width; i += blockDim.x)
            to[i] = expf(from[i] - largest) / sum;
    }
}
