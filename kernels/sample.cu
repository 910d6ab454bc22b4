// sample: draw one token per row of logits by temperature, top-k and top-p
//
// Every decision is taken in integers, so that this kernel and its NumPy twin draw the same token
// from the same state: the weight exp((logit - largest) / temperature) is computed in single
// operations that round alike everywhere, then held as a fixed-point number below 2^41; sums of
// integers do not depend on their order; random bits come from Philox4x32-10.
//
// top_k keeps the logits that are at least as large as the k-th largest (0: all). top_p keeps, of
// those, the largest ones up to and including the one with which their share of the probability
// reaches top_p (1: all); equal logits are kept or dropped together. temperature 0 takes the
// largest logit, the lowest index of several. NaN is never drawn unless there is nothing else.
//
// state [batch, 4] is device memory: two words of seed, the number of draws so far, and the stream.
// Each launch adds one to the number of draws of each row, at temperature 0 too.
// One block per row; any grid works, and any block of whole warps.

typedef unsigned int Key;            // a logit as an integer of the same order
typedef unsigned long long Measure;  // a number of logits, or a sum of their weights

constexpr int WEIGHT_BITS = 40;  // the largest logit weighs 2^40
constexpr int AT_ONCE = 8;

struct Row {
    const float* logits;
    int vocab;
    float largest;
    float per_unit;  // log2(e) / temperature
};

// Larger value, larger key. 0 for NaN, and -0 equals +0.
__device__ __forceinline__ Key key_of(float value) {
    if (isnan(value)) return 0u;
    const unsigned int bits = value == 0.0f ? 0u : __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// 2^40 * exp((value - largest) / temperature), cut to an integer. The intrinsics keep the compiler
// from fusing a product into a sum, which would round once instead of twice.
__device__ __forceinline__ Measure weight_of(const Row& row, float value) {
    if (value == row.largest) return 1ull << WEIGHT_BITS;
    const float power = __fmul_rn(__fsub_rn(value, row.largest), row.per_unit);
    if (!(power > -WEIGHT_BITS)) return 0;  // NaN too
    const float whole = floorf(power);
    const float part = __fsub_rn(power, whole);
    float mantissa = 1.8775767e-3f;  // 2^part on [0, 1), error below 2.5e-7
    mantissa = __fadd_rn(__fmul_rn(mantissa, part), 8.9893397e-3f);
    mantissa = __fadd_rn(__fmul_rn(mantissa, part), 5.5826318e-2f);
    mantissa = __fadd_rn(__fmul_rn(mantissa, part), 2.4015361e-1f);
    mantissa = __fadd_rn(__fmul_rn(mantissa, part), 6.9315308e-1f);
    mantissa = __fadd_rn(__fmul_rn(mantissa, part), 9.9999994e-1f);
    return (Measure)(mantissa * 8388608.0f) << (WEIGHT_BITS - 23) >> -(int)whole;
}

// Calls visit(index, value) for this thread's share of the row. Eight loads are on their way at a
// time, since one waits for the other otherwise; what lies past the end comes as NaN.
template <typename Visit>
__device__ __forceinline__ void visit_share(const Row& row, Visit visit) {
    for (int base = threadIdx.x; base < row.vocab; base += AT_ONCE * blockDim.x) {
        float values[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const int index = base + i * blockDim.x;
            values[i] = index < row.vocab ? row.logits[index] : __int_as_float(0x7fffffff);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) visit(base + i * (int)blockDim.x, values[i]);
    }
}

struct Add {
    static __device__ __forceinline__ Measure of(Measure a, Measure b) { return a + b; }
};
struct Max {
    static __device__ __forceinline__ Measure of(Measure a, Measure b) { return a > b ? a : b; }
};

template <typename Combine>
__device__ __forceinline__ Measure block_reduce(Measure value) {
    __shared__ Measure partial[32];
    for (int lanes = 16; lanes > 0; lanes /= 2)
        value = Combine::of(value, __shfl_xor_sync(~0u, value, lanes));
    __syncthreads();  // the previous call may still be reading partial
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = partial[0];
    for (int warp = 1; warp < blockDim.x / 32; ++warp) value = Combine::of(value, partial[warp]);
    return value;
}

// The largest key t such that the logits of at least t measure `target` or more, found two bits at
// a time from the top. Only logits of at least `least` count. BY_WEIGHT: weights, else numbers.
template <bool BY_WEIGHT>
__device__ __forceinline__ Key threshold(const Row& row, Key least, Measure target) {
    Key found = 0;
    for (int shift = 30; shift >= 0; shift -= 2) {
        Measure above[4] = {};
        visit_share(row, [&](int, float value) {
            const Key key = key_of(value);
            if (key < least || key < found + (1u << shift)) return;
            const Measure measure = BY_WEIGHT ? weight_of(row, value) : 1;
#pragma unroll
            for (unsigned int digit = 1; digit < 4; ++digit)
                if (key >= found + (digit << shift)) above[digit] += measure;
        });
        Key digit = 0;
#pragma unroll
        for (int i = 1; i < 4; ++i)
            if (block_reduce<Add>(above[i]) >= target) digit = i;
        found += digit << shift;
    }
    return found;
}

// The first 64 of the 128 bits of Philox4x32-10 (Salmon et al., 2011) for one row of the state.
__device__ __forceinline__ Measure random_bits(
    unsigned int key0, unsigned int key1, unsigned int draws, unsigned int stream) {
    unsigned int a = draws, b = 0, c = stream, d = 0;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const Measure left = (Measure)a * 0xD2511F53u, right = (Measure)c * 0xCD9E8D57u;
        a = (unsigned int)(right >> 32) ^ b ^ key0;
        b = (unsigned int)right;
        c = (unsigned int)(left >> 32) ^ d ^ key1;
        d = (unsigned int)left;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return (Measure)a << 32 | b;
}

// The weight of one logit of those that are kept, and 0 of the others.
__device__ __forceinline__ Measure kept_weight(const Row& row, Key least, float value) {
    return key_of(value) >= least ? weight_of(row, value) : 0;
}

// The first index at which the running sum of the kept weights exceeds random / 2^64 of their
// total. Each warp sums one run of the row; the warp whose run holds the index then walks it.
__device__ __forceinline__ void draw(const Row& row, Key least, Measure random, int* out) {
    __shared__ Measure run_sum[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int run = (row.vocab + warps - 1) / warps;
    const int begin = min(warp * run, row.vocab), end = min(begin + run, row.vocab);
    Measure sum = 0;
#pragma unroll 8
    for (int i = begin + lane; i < end; i += 32) sum += kept_weight(row, least, row.logits[i]);
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    __syncthreads();  // the previous row may still be reading run_sum
    if (lane == 0) run_sum[warp] = sum;
    __syncthreads();
    Measure before = 0, total = 0;
    for (int w = 0; w < warps; ++w) {
        if (w < warp) before += run_sum[w];
        total += run_sum[w];
    }
    const Measure target = __umul64hi(random, total);  // below total
    if (target < before || target >= before + sum) return;
    for (int base = begin; base < end; base += 32) {
        const int index = base + lane;
        Measure upto = index < end ? kept_weight(row, least, row.logits[index]) : 0;
        for (int lanes = 1; lanes < 32; lanes *= 2) {
            const Measure lower = __shfl_up_sync(~0u, upto, lanes);
            if (lane >= lanes) upto += lower;
        }
        const unsigned int past = __ballot_sync(~0u, target < before + upto);
        if (past != 0) {
            if (lane == 0) *out = base + __ffs(past) - 1;
            return;
        }
        before += __shfl_sync(~0u, upto, 31);
    }
}

extern "C" __global__ void sample(
    const float* logits, unsigned int* state, int* out, int batch, int vocab,
    float temperature, int top_k, float top_p) {
    for (int b = blockIdx.x; b < batch; b += gridDim.x) {
        Row row = {logits + (long long)b * vocab, vocab, 0.0f, 0.0f};
        unsigned int* words = state + 4ll * b;

        Measure best = 0;  // key in the upper half, complement of the index below
        visit_share(row, [&](int index, float value) {
            best = Max::of(best, (Measure)key_of(value) << 32 | (unsigned int)~index);
        });
        best = block_reduce<Max>(best);
        const int best_index = ~(unsigned int)best;
        row.largest = row.logits[best_index];

        if (temperature > 0.0f && !isnan(row.largest)) {
            row.per_unit = __fdiv_rn(1.44269504f, temperature);
            Key least = 1;  // everything but NaN
            if (top_k > 0 && top_k < vocab) least = max(least, threshold<false>(row, least, top_k));
            if (top_p < 1.0f) {
                Measure total = 0;
                visit_share(
                    row, [&](int, float value) { total += kept_weight(row, least, value); });
                total = block_reduce<Add>(total);
                const Measure target = (Measure)__dmul_rn((double)top_p, (double)total);
                least = max(least, threshold<true>(row, least, Max::of(target, 1)));
            }
            draw(row, least, random_bits(words[0], words[1], words[2], words[3]), out + b);
        } else if (threadIdx.x == 0) {
            out[b] = best_index;
        }
        __syncthreads();  // every warp has read the state
        if (threadIdx.x == 0) words[2] += 1;
    }
}
