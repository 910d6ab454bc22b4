// cache_place: where a token's row of a head lies in the KV cache
//
// Without pages (PAGE 0) the cache is [slots, KV_HEADS, max_len, HEAD_DIM] and sequence b has slot
// b. With pages it is [pages, KV_HEADS, PAGE, HEAD_DIM], and row b of the block table, [batch,
// max_len / PAGE], names the pages of sequence b in their order.
//
// A table may hold any numbers: a page that is none of the cache's `slots` is -1 here, and has a
// negative place. Nothing is written there, and zeros are read. Without pages b must be below
// `slots`.

#include "bfloat16.cuh"

// The page that a position is in, or the slot.
__device__ __forceinline__ int page_of(
    const int* block_table, int b, int position, int max_len, int slots) {
#if PAGE
    const int page = block_table[b * (max_len / PAGE) + position / PAGE];
    return (unsigned int)page < (unsigned int)slots ? page : -1;
#else
    return b;
#endif
}

__device__ __forceinline__ long long cache_place(
    int page, int kv_head, int position, int max_len) {
    const int places = PAGE ? PAGE : max_len, row = PAGE ? position % PAGE : position;
    return (((long long)page * KV_HEADS + kv_head) * places + row) * HEAD_DIM;
}
