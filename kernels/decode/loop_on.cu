// loop_on: whether a loop makes another step: while any row goes on and steps are left
//
// It sets the condition of a while node, ahead of the node (`begins`) and as the last of its body.
// `left` counts the steps; without a number of them `steps` is the largest int, and rows end at the
// end of the buffer at the latest. See row_ends.cuh. One block.
//
// -D options: THREADS.

#include "early_start.cuh"
#include "fresh.cuh"
#include "row_ends.cuh"

// It stands for cudadevrt's header, which NVRTC does not bring: the driver knows the function.
extern "C" __device__ __cudart_builtin__ void cudaGraphSetConditional(
    cudaGraphConditionalHandle handle, unsigned int value);

extern "C" __global__ void __launch_bounds__(THREADS) loop_on(
    cudaGraphConditionalHandle handle, const int* tokens, const int* prompt_len,
    const int* positions, const int* limits, const int* ends, int* left, int begins, int steps,
    int end_count, int batch, int max_len) {
    let_next_start();
    wait_for_previous();
    int goes_on = 0;
    for (int b = threadIdx.x; b < batch; b += THREADS) {
        const int at = load_fresh(positions + b);
        const bool inside = 0 <= at && at < max_len;
        const int token = inside ? load_fresh(tokens + (long long)b * max_len + at) : -1;
        goes_on |= !row_ended(at, token, prompt_len[b], limits[b], max_len, ends, end_count);
    }
    goes_on = __syncthreads_or(goes_on);
    if (threadIdx.x == 0) {
        const int now = begins ? steps : *left - 1;
        *left = now;
        cudaGraphSetConditional(handle, goes_on && now > 0);
    }
}
