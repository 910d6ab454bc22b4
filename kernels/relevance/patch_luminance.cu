// patch_luminance: mean and population variance of Y = 0.2126 R + 0.7152 G + 0.0722 B in each patch
//
// image is [3, height, width]; patches are square and numbered along the rows. Sums are taken of
// the differences to the patch's first pixel: exactly 0 in a flat patch, and in any other the
// variance loses at most patch^2 roundings to cancellation, since a sample is no farther from the
// mean than that many variances. A pixel that is not finite makes both NaN.
// One warp per patch, of a side of 46,340 at most; any grid works, and any block of whole warps.

__device__ __forceinline__ float warp_sum(float value) {
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
    return value;
}

// fmaf by name, so that equal pixels give equal bits wherever this is inlined.
__device__ __forceinline__ float luminance(float red, float green, float blue) {
    return fmaf(0.2126f, red, fmaf(0.7152f, green, 0.0722f * blue));
}

struct Sums {
    float differences, squares;

    __device__ __forceinline__ void add(float difference) {
        differences += difference;
        squares += difference * difference;
    }
};

extern "C" __global__ void patch_luminance(
    const float* image, float* mean, float* variance, int height, int width, int size) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const int columns = width / size, patches = height / size * columns;
    const long long plane = (long long)height * width;
    const bool fours = size % 4 == 0 && (size_t)image % sizeof(float4) == 0;
    for (int patch = blockIdx.x * warps + threadIdx.x / 32; patch < patches;
         patch += gridDim.x * warps) {
        const int top = patch / columns * size, left = patch % columns * size;
        const float* corner = image + (long long)top * width + left;
        const float first = luminance(corner[0], corner[plane], corner[2 * plane]);
        Sums sum = {0.0f, 0.0f};
        if (fours) {
            const int across = size / 4;
#pragma unroll 2
            for (int i = lane; i < size * across; i += 32) {
                const float* at = corner + (long long)(i / across) * width + i % across * 4;
                const float4 red = *(const float4*)at;
                const float4 green = *(const float4*)(at + plane);
                const float4 blue = *(const float4*)(at + 2 * plane);
                sum.add(luminance(red.x, green.x, blue.x) - first);
                sum.add(luminance(red.y, green.y, blue.y) - first);
                sum.add(luminance(red.z, green.z, blue.z) - first);
                sum.add(luminance(red.w, green.w, blue.w) - first);
            }
        } else {
            for (int i = lane; i < size * size; i += 32) {
                const float* at = corner + (long long)(i / size) * width + i % size;
                sum.add(luminance(at[0], at[plane], at[2 * plane]) - first);
            }
        }
        sum.differences = warp_sum(sum.differences);
        sum.squares = warp_sum(sum.squares);
        if (lane == 0) {
            const float pixels = (float)size * size, shift = sum.differences / pixels;
            const float spread = sum.squares / pixels - shift * shift;
            const float nan = __int_as_float(0x7fc00000);
            mean[patch] = isfinite(spread) ? first + shift : nan;
            variance[patch] = isfinite(spread) ? fmaxf(spread, 0.0f) : nan;
        }
    }
}
