// embedding: out[b, :] = table[tokens[b, position[b]], :]
//
// tokens [batch, max_len] and position [batch] are device memory, so a captured launch follows the
// sequence without the host. Without positions the first token of each row is taken.
// One block per row of out; any grid and any block work.
// An id outside the vocabulary, or a position outside the buffer, gives a row of NaN: it shows in
// the logits, and nothing out of bounds is read.

#ifndef __CUDA_BF16_TYPES_EXIST__
struct __nv_bfloat16 {
    unsigned short bits;
};
#endif

__device__ __forceinline__ float to_float(float value) { return value; }

__device__ __forceinline__ float to_float(__nv_bfloat16 value) {
    // A bfloat16 is the upper half of the float of the same value.
    return __uint_as_float((unsigned int)*reinterpret_cast<unsigned short*>(&value) << 16);
}

template <typename Weight>
__device__ __forceinline__ void embed(
    const int* tokens, const int* position, const Weight* table, float* out,
    int batch, int max_len, int vocab, int width) {
    for (int row = blockIdx.x; row < batch; row += gridDim.x) {
        const int at = position ? position[row] : 0;
        const int token = (at >= 0 && at < max_len) ? tokens[(long long)row * max_len + at] : -1;
        const bool known = token >= 0 && token < vocab;
        const Weight* from = table + (long long)(known ? token : 0) * width;
        float* to = out + (long long)row * width;
        for (int i = threadIdx.x; i < width; i += blockDim.x)
            to[i] = known ? to_float(from[i]) : __int_as_float(0x7fffffff);
    }
}

extern "C" __global__ void embedding_float32(
    const int* tokens, const int* position, const float* table, float* out,
    int batch, int max_len, int vocab, int width) {
    embed(tokens, position, table, out, batch, max_len, vocab, width);
}

extern "C" __global__ void embedding_bfloat16(
    const int* tokens, const int* position, const __nv_bfloat16* table, float* out,
    int batch, int max_len, int vocab, int width) {
    embed(tokens, position, table, out, batch, max_len, vocab, width);
}
