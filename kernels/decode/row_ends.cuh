// row_ends: when a row has ended. Nothing is kept for it: its tokens and its position say so.
//
// A row has ended when it has as many tokens as `limit` or the buffer allow, or when the last of
// them is one of `ends` and the model chose it: those of the prompt are not asked.

__device__ __forceinline__ bool row_ended(
    int position, int token, int prompt_len, int limit, int max_len, const int* ends,
    int end_count) {
    const long long length = position + 1LL;
    if (length < 0 || length >= limit || length >= max_len) return true;
    if (position < 0 || length <= prompt_len) return false;
    for (int i = 0; i < end_count; ++i)
        if (token == ends[i]) return true;
    return false;
}
