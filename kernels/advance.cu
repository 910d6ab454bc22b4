// advance: append the next token of each sequence and move its position on by one
//
// Inside the prompt (position + 1 < prompt_len) the buffer already holds the next token, and it
// stays. The position stops at the last place of the buffer, and nothing is written past it.
// Any grid and any block work: one thread per sequence.

extern "C" __global__ void advance(
    int* tokens, const int* next_token, const int* prompt_len, int* position, int batch,
    int max_len) {
    const int threads = gridDim.x * blockDim.x;
    for (int row = blockIdx.x * blockDim.x + threadIdx.x; row < batch; row += threads) {
        const int at = position[row] + 1;
        if (at < 0 || at >= max_len) continue;
        if (at >= prompt_len[row]) tokens[(long long)row * max_len + at] = next_token[row];
        position[row] = at;
    }
}
