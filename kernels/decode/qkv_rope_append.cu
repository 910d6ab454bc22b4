// qkv_rope_append: the norm ahead of attention, q, k and v of one token a row, their rotary
// embedding, and the append of k and v to the cache.
//
// q[b, h] = rotate(weight_q[h] . norm(x[b])), and likewise k and v, which go to the cache as
// bfloat16. A pair is two rows of a head that turn together, half a head apart.
//
// -D options: K (hidden size), HEADS, KV_HEADS, HEAD_DIM, PAGE (tokens of a page; 0: no pages).

#include "weight_stream.cuh"
#include "cache_place.cuh"

constexpr int TURNS = HEAD_DIM / 2;  // pairs of a head
static_assert(TURNS % UNIT == 0, "a unit is of one head");

struct QkvWork {
    static constexpr bool TOGETHER = false;
    int pairs;
    const __nv_bfloat16 *weight_q, *weight_k, *weight_v;
    const float *cosines, *sines;
    float* q;
    __nv_bfloat16 *k_cache, *v_cache;
    const int* block_table;
    const int* positions;
    int max_len, slots;
    float eps;

    int position, page;
    float cosine, sine;

    __device__ __forceinline__ int rows() const { return 2 * pairs; }

    __device__ __forceinline__ const __nv_bfloat16* row(int pair, int half) const {
        const int head = pair / TURNS;
        const __nv_bfloat16* weight = weight_q;
        int first = 0;
        if (head >= HEADS) weight = weight_k, first = HEADS;
        if (head >= HEADS + KV_HEADS) weight = weight_v, first = HEADS + KV_HEADS;
        const int row = (head - first) * HEAD_DIM + pair % TURNS + half * TURNS;
        return weight + (long long)row * K;
    }

    __device__ __forceinline__ void early(int pair, int b) {
        position = positions[b];
        const bool there = 0 <= position && position < max_len;
        const int turn = (there ? position : 0) * TURNS + pair % TURNS;
        cosine = cosines[turn];
        sine = sines[turn];
        if (PAGE && there && pair / TURNS >= HEADS)
            page = page_of(block_table, b, position, max_len, slots);
        if (!there) position = -1;
    }

    __device__ __forceinline__ void finish(
        const Shared& shared, int pair, int b, float low, float high) {
        const int head = pair / TURNS, i = pair % TURNS;
        const float factor = norm_factor(shared, b, eps);
        low *= factor;
        high *= factor;
        const float turned_low = low * cosine - high * sine;
        const float turned_high = high * cosine + low * sine;
        if (head < HEADS) {
            float* to = q + ((long long)b * HEADS + head) * HEAD_DIM + i;
            to[0] = turned_low;
            to[TURNS] = turned_high;
        } else if (position >= 0 && (!PAGE || page >= 0)) {
            const bool is_k = head < HEADS + KV_HEADS;
            const int kv_head = head - HEADS - (is_k ? 0 : KV_HEADS);
            __nv_bfloat16* to = (is_k ? k_cache : v_cache) +
                                cache_place(PAGE ? page : b, kv_head, position, max_len) + i;
            to[0] = to_bfloat16(is_k ? turned_low : low);
            to[TURNS] = to_bfloat16(is_k ? turned_high : high);
        }
    }

    __device__ __forceinline__ void end(int) {}
};

extern "C" __global__ void BLOCK_LIMITS qkv_rope_append(
    const __nv_bfloat16* weight_q, const __nv_bfloat16* weight_k, const __nv_bfloat16* weight_v,
    const float* x, const float* gain, const float* cosines, const float* sines, float* q,
    __nv_bfloat16* k_cache, __nv_bfloat16* v_cache, const int* block_table, const int* positions,
    int batch, int max_len, int slots, float eps) {
    QkvWork work{(HEADS + 2 * KV_HEADS) * TURNS, weight_q, weight_k, weight_v, cosines, sines, q,
                 k_cache, v_cache, block_table, positions, max_len, slots, eps, -1, -1, 0.0f,
                 0.0f};
    stream_rows<true>(work, x, gain, batch);
}
