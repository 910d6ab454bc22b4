// local_contrast: contrast[p] = deviation of p / (deviation of the window around p + saturation)
//
// Both are standard deviations of luminance: of the patch's pixels, and of all pixels of the
// patches at most `radius` rows and columns away, p itself included; the window ends at the border.
// A patch without finite moments counts in no window, and its own contrast is NaN.
// One thread per patch; any launch works.

extern "C" __global__ void local_contrast(
    const float* mean, const float* variance, float* contrast, int rows, int columns, int radius,
    float saturation) {
    for (int patch = blockIdx.x * blockDim.x + threadIdx.x; patch < rows * columns;
         patch += gridDim.x * blockDim.x) {
        const int row = patch / columns, column = patch % columns;
        const int top = max(row - radius, 0), bottom = min(row + radius, rows - 1);
        const int left = max(column - radius, 0), right = min(column + radius, columns - 1);
        const float own_mean = mean[patch], own = variance[patch];
        // Differences to the patch's own mean: their squares do not cancel.
        float count = 0.0f, differences = 0.0f, squares = 0.0f;
        for (int y = top; y <= bottom; ++y) {
            for (int x = left; x <= right; ++x) {
                const float other = mean[y * columns + x] - own_mean;
                const float spread = variance[y * columns + x];
                if (isfinite(other) && isfinite(spread)) {
                    count += 1.0f;
                    differences += other;
                    squares += other * other + spread;
                }
            }
        }
        const float shift = differences / count;
        const float window = squares / count - shift * shift;
        const float deviation = sqrtf(window > 0.0f ? window : 0.0f);
        const bool valid = isfinite(own_mean) && isfinite(own);
        contrast[patch] =
            valid ? sqrtf(own) / (deviation + saturation) : __int_as_float(0x7fc00000);
    }
}
