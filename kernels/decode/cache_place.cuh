// cache_place: where a token's row of a head lies in the KV cache
//
// Without pages (PAGE 0) the cache is [slots, KV_HEADS, max_len, HEAD_DIM] and sequence b has slot
// b. With pages it is [pages, KV_HEADS, PAGE, HEAD_DIM], and row b of the block table, [batch,
// max_len / PAGE], names the pages of sequence b in their order.

#include "bfloat16.cuh"

__device__ __forceinline__ long long cache_place(
    const int* block_table, int b, int kv_head, int position, int max_len) {
#if PAGE
    const long long page = block_table[b * (max_len / PAGE) + position / PAGE];
    return ((page * KV_HEADS + kv_head) * PAGE + position % PAGE) * HEAD_DIM;
#else
    return (((long long)b * KV_HEADS + kv_head) * max_len + position) * HEAD_DIM;
#endif
}
