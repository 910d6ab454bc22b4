// feature_entropy: entropy[p] = -sum_i s_i ln s_i, where s = softmax(features[p, :]); in nats
//
// With m the largest feature, e_i = exp(f_i - m) and Z their sum, that is
// ln Z - sum_i (f_i - m) e_i / Z: no logarithm but one. A feature that is not finite makes it NaN.
// One warp per patch; any grid works, and any block of whole warps.

template <typename Visit>
__device__ __forceinline__ void visit_row(const float* row, int width, int lane, Visit visit) {
    if (width % 4 == 0 && (size_t)row % sizeof(float4) == 0) {
        const float4* fours = (const float4*)row;
#pragma unroll 2
        for (int i = lane; i < width / 4; i += 32) {
            const float4 four = fours[i];
            visit(four.x);
            visit(four.y);
            visit(four.z);
            visit(four.w);
        }
    } else {
        for (int i = lane; i < width; i += 32) visit(row[i]);
    }
}

__device__ __forceinline__ float warp_sum(float value) {
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
    return value;
}

extern "C" __global__ void feature_entropy(
    const float* features, float* entropy, int patches, int width) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int patch = blockIdx.x * warps + threadIdx.x / 32; patch < patches;
         patch += gridDim.x * warps) {
        const float* row = features + (long long)patch * width;
        float largest = __int_as_float(0xff800000);  // -inf: no math.h under NVRTC
        visit_row(row, width, lane, [&](float f) { largest = fmaxf(largest, f); });
        for (int lanes = 16; lanes > 0; lanes /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, lanes));
        float sum = 0.0f, weighted = 0.0f;
        visit_row(row, width, lane, [&](float f) {  // from L1 this time
            const float e = expf(f - largest);
            sum += e;
            weighted += (f - largest) * e;
        });
        sum = warp_sum(sum);
        weighted = warp_sum(weighted);
        if (lane == 0) entropy[patch] = logf(sum) - weighted / sum;
    }
}
