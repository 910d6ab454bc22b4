// select_patches: the k patches of the highest balance, highest first, and their balances
//
// Of equal balances the patch with the lower index comes first. A patch whose balance is NaN is
// never selected: where fewer than k are left, the last places hold -1 and NaN.
// A patch's place is the number of those before it, so that every patch finds its own: no sort, no
// barrier. That takes patches^2 comparisons, a thousand a patch in an image of 512 pixels.
// One warp per patch; any grid works, and any block of whole warps.

extern "C" __global__ void select_patches(
    const float* balance, int* indices, float* selected, int patches, int k) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int patch = blockIdx.x * warps + threadIdx.x / 32; patch < patches;
         patch += gridDim.x * warps) {
        const float own = balance[patch];
        int ahead = 0;
        if (isnan(own)) {
#pragma unroll 8
            for (int other = lane; other < patches; other += 32)
                ahead += !isnan(balance[other]) || other < patch;
        } else {
#pragma unroll 8
            for (int other = lane; other < patches; other += 32) {
                const float value = balance[other];
                ahead += value > own || (value == own && other < patch);
            }
        }
        for (int lanes = 16; lanes > 0; lanes /= 2) ahead += __shfl_xor_sync(~0u, ahead, lanes);
        if (lane == 0 && ahead < k) {
            indices[ahead] = isnan(own) ? -1 : patch;
            selected[ahead] = own;
        }
    }
}
