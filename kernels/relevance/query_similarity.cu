// query_similarity: similarity[p] = f . q / max(|f| |q|, 1e-8), where f = features[p, :]
//
// The cosine of the angle between a patch's features and the query; 0 where either is zero.
// One warp per patch; any grid works, and any block of whole warps.

__device__ __forceinline__ float warp_sum(float value) {
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
    return value;
}

struct Products {
    float both, features, query;

    __device__ __forceinline__ void add(float f, float q) {
        both += f * q;
        features += f * f;
        query += q * q;
    }
};

extern "C" __global__ void query_similarity(
    const float* features, const float* query, float* similarity, int patches, int width) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int patch = blockIdx.x * warps + threadIdx.x / 32; patch < patches;
         patch += gridDim.x * warps) {
        const float* row = features + (long long)patch * width;
        Products sum = {0.0f, 0.0f, 0.0f};
        if (width % 4 == 0 && ((size_t)row | (size_t)query) % sizeof(float4) == 0) {
#pragma unroll 2
            for (int i = lane; i < width / 4; i += 32) {
                const float4 f = ((const float4*)row)[i], q = ((const float4*)query)[i];
                sum.add(f.x, q.x);
                sum.add(f.y, q.y);
                sum.add(f.z, q.z);
                sum.add(f.w, q.w);
            }
        } else {
            for (int i = lane; i < width; i += 32) sum.add(row[i], query[i]);
        }
        sum.both = warp_sum(sum.both);
        sum.features = warp_sum(sum.features);
        sum.query = warp_sum(sum.query);
        if (lane == 0) {
            const float norms = sqrtf(sum.features) * sqrtf(sum.query);
            // Not fmaxf: it would turn a norm that is NaN into the bound.
            similarity[patch] = sum.both / (norms < 1e-8f ? 1e-8f : norms);
        }
    }
}
