// cache_place: where a token's row of a head lies in the KV cache
//
// Without pages (PAGE 0) the cache is [slots, KV_HEADS, max_len, HEAD_DIM] and sequence b has slot
// b. With pages it is [pages, KV_HEADS, PAGE, HEAD_DIM], and row b of the block table, [batch,
// max_len / PAGE], names the pages of sequence b in their order.
//
// A table may hold any numbers: a page that is none of the cache's `slots` has no place, and a
// negative number says so. Nothing is written there, and zeros are read. Without pages b must be
// below `slots`.

#include "bfloat16.cuh"

__device__ __forceinline__ long long cache_place(
    const int* block_table, int b, int kv_head, int position, int max_len, int slots) {
#if PAGE
    const int page = block_table[b * (max_len / PAGE) + position / PAGE];
    const long long known = (unsigned int)page < (unsigned int)slots ? page : -1;
    return ((known * KV_HEADS + kv_head) * PAGE + position % PAGE) * HEAD_DIM;
#else
    return (((long long)b * KV_HEADS + kv_head) * max_len + position) * HEAD_DIM;
#endif
}
