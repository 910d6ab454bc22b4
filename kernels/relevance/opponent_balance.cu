// opponent_balance: balance[p] = excitation of p - inhibition * mean excitation of p's competitors
//
// excitation = weights . z, where z are the three scores of a patch, each less its mean over the
// image and divided by sqrt(variance + 1e-8). Competitors are the other patches at most `radius`
// rows and columns away. A patch with a score that is not finite is left out of means, variances
// and competitors, and its balance is NaN.
// One block, of any number of whole warps, with one float of dynamic shared memory a patch.

struct Scores {
    float entropy, contrast, similarity;
};

__device__ __forceinline__ Scores load(
    const float* entropy, const float* contrast, const float* similarity, int patch) {
    return {entropy[patch], contrast[patch], similarity[patch]};
}

__device__ __forceinline__ bool finite(const Scores& scores) {
    return isfinite(scores.entropy) && isfinite(scores.contrast) && isfinite(scores.similarity);
}

// Replaces each value by its sum over the block.
template <int COUNT>
__device__ __forceinline__ void block_sum(float (&values)[COUNT]) {
    __shared__ float partial[COUNT][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        for (int lanes = 16; lanes > 0; lanes /= 2)
            values[i] += __shfl_xor_sync(~0u, values[i], lanes);
        if (lane == 0) partial[i][warp] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        values[i] = lane < warps ? partial[i][lane] : 0.0f;
        for (int lanes = 16; lanes > 0; lanes /= 2)
            values[i] += __shfl_xor_sync(~0u, values[i], lanes);
    }
}

extern "C" __global__ void opponent_balance(
    const float* entropy, const float* contrast, const float* similarity, float* balance, int rows,
    int columns, int radius, float entropy_weight, float contrast_weight, float similarity_weight,
    float inhibition) {
    extern __shared__ float excitation[];
    const int patches = rows * columns;
    const float nan = __int_as_float(0x7fc00000);

    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int patch = threadIdx.x; patch < patches; patch += blockDim.x) {
        const Scores scores = load(entropy, contrast, similarity, patch);
        if (finite(scores)) {
            sums[0] += scores.entropy;
            sums[1] += scores.contrast;
            sums[2] += scores.similarity;
            sums[3] += 1.0f;
        }
    }
    block_sum(sums);
    const float count = sums[3];
    const Scores about = {sums[0] / count, sums[1] / count, sums[2] / count};

    // What rounding left in the means is seen here, and taken off: equal scores get z = 0.
    float moments[6] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    for (int patch = threadIdx.x; patch < patches; patch += blockDim.x) {
        const Scores scores = load(entropy, contrast, similarity, patch);
        if (finite(scores)) {
            const float differences[3] = {
                scores.entropy - about.entropy, scores.contrast - about.contrast,
                scores.similarity - about.similarity};
#pragma unroll
            for (int i = 0; i < 3; ++i) {
                moments[i] += differences[i];
                moments[3 + i] += differences[i] * differences[i];
            }
        }
    }
    block_sum(moments);
    float shift[3], scale[3];
    const float weights[3] = {entropy_weight, contrast_weight, similarity_weight};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        shift[i] = moments[i] / count;
        const float variance = fmaxf(moments[3 + i] / count - shift[i] * shift[i], 0.0f);
        scale[i] = weights[i] / sqrtf(variance + 1e-8f);
    }

    for (int patch = threadIdx.x; patch < patches; patch += blockDim.x) {
        const Scores scores = load(entropy, contrast, similarity, patch);
        const float sum = (scores.entropy - about.entropy - shift[0]) * scale[0] +
                          (scores.contrast - about.contrast - shift[1]) * scale[1] +
                          (scores.similarity - about.similarity - shift[2]) * scale[2];
        excitation[patch] = finite(scores) ? sum : nan;
    }
    __syncthreads();

    for (int patch = threadIdx.x; patch < patches; patch += blockDim.x) {
        const int row = patch / columns, column = patch % columns;
        const int top = max(row - radius, 0), bottom = min(row + radius, rows - 1);
        const int left = max(column - radius, 0), right = min(column + radius, columns - 1);
        const float own = excitation[patch];
        float others = 0.0f, competitors = 0.0f;
        for (int y = top; y <= bottom; ++y) {
            for (int x = left; x <= right; ++x) {
                const float other = excitation[y * columns + x];
                if (y * columns + x != patch && isfinite(other)) {
                    others += other;
                    competitors += 1.0f;
                }
            }
        }
        const float mean = competitors > 0.0f ? others / competitors : 0.0f;
        const float value = own - inhibition * mean;
        balance[patch] = isfinite(value) ? value : nan;
    }
}
