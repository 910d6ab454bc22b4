// rope_append: rotate q and k by the angle of position[b], and append k and v to the cache there
//
// Half-split convention of Hugging Face's Llama: element i is paired with element i + head_dim / 2,
// and both turn by the angle whose cosine and sine are cos_table[position, i] and
// sin_table[position, i].
// q is rotated in place; the rotated k and v go to place `position` of k_cache and v_cache
// [slot_count, kv_heads, max_len, head_dim], in row slots[b], or in row b without slots. k itself
// is left as it is.
// One block per (head, batch) of heads + kv_heads; any grid and any block work. A position or a
// slot outside the cache leaves everything as it is.

extern "C" __global__ void rope_append(
    float* q, const float* k, const float* v, const float* cos_table, const float* sin_table,
    float* k_cache, float* v_cache, const int* position, const int* slots,
    int batch, int slot_count, int heads, int kv_heads, int head_dim, int max_len) {
    const int half = head_dim / 2;
    for (int b = blockIdx.y; b < batch; b += gridDim.y) {
        const int at = position[b], slot = slots ? slots[b] : b;
        if (at < 0 || at >= max_len || slot < 0 || slot >= slot_count) continue;
        const float* cosines = cos_table + (long long)at * half;
        const float* sines = sin_table + (long long)at * half;
        for (int head = blockIdx.x; head < heads + kv_heads; head += gridDim.x) {
            const bool query = head < heads;
            const int kv = head - heads;
            const long long dense = (long long)b * kv_heads + kv;
            const long long cached =
                (((long long)slot * kv_heads + kv) * max_len + at) * head_dim;
            const float* from = query ? q + ((long long)b * heads + head) * head_dim
                                      : k + dense * head_dim;
            float* to = query ? q + ((long long)b * heads + head) * head_dim : k_cache + cached;
            for (int i = threadIdx.x; i < half; i += blockDim.x) {
                const float low = from[i], high = from[i + half];
                to[i] = low * cosines[i] - high * sines[i];
                to[i + half] = high * cosines[i] + low * sines[i];
            }
            if (!query)
                for (int i = threadIdx.x; i < head_dim; i += blockDim.x)
                    v_cache[cached + i] = v[dense * head_dim + i];
        }
    }
}
