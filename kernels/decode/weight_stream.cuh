// weight_stream: the dot products of every row of a matrix with a few vectors, at the speed of
// device memory.
//
// A warp streams its segments of pairs of rows through a ring of its own in shared memory, by bulk
// copies that complete on mbarriers. The first of them are under way before griddepcontrol.wait:
// weights depend on nothing, so the copies of this kernel fill the time in which the one ahead of
// it ends. No warp waits for another before all rows are summed. A lane holds its part of the
// vectors in registers, in float32; rows are summed over lanes, then over segments, always in the
// same order.
//
// A multiprocessor should hold two blocks, one of this kernel and one of the next: with a block to
// each multiprocessor, and each taking half of its shared memory, a block can only come in where
// the kernel before the last has left, so that no multiprocessor gets two.
//
// -D options: K, elements of a row, a multiple of 8; VECTORS: 1, 2 or 4; SPLIT, segments of a row, a
// power of two up to WARPS; STAGES of a ring; MOST_PAIRS of a block.

#include "bfloat16.cuh"
#include "fresh.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
constexpr int GROUPS = WARPS / SPLIT;                     // of warps that share a row
constexpr int CHUNKS = K / 8;                             // of sixteen bytes, in a row
constexpr int SEGMENT = (CHUNKS + SPLIT - 1) / SPLIT;     // of them, a warp's; the last may be less
constexpr int OWN = (SEGMENT + 31) / 32;                  // of them, a lane's
constexpr int SUMS = 2 * VECTORS;                         // of a pair
constexpr unsigned int SEGMENT_BYTES = SEGMENT * 16;
// Two blocks to a multiprocessor, where the vectors leave them the registers.
constexpr int BLOCKS = VECTORS * OWN <= 8 ? 2 : 1;
static_assert(K % 8 == 0 && WARPS % SPLIT == 0 && SUMS <= 32, "see above");

// --- CUDA's instructions -------------------------------------------------------------------------

__device__ __forceinline__ void launch_dependents() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

__device__ __forceinline__ void wait_for_predecessor() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ unsigned int shared_address(const void* pointer) {
    return (unsigned int)__cvta_generic_to_shared(pointer);
}

__device__ __forceinline__ void barrier_init(unsigned long long* barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void barrier_expect(unsigned long long* barrier, unsigned int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void barrier_wait(unsigned long long* barrier, unsigned int phase) {
    asm volatile(
        "{\n\t"
        ".reg .pred done;\n\t"
        "again:\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
        "@!done bra again;\n\t"
        "}" ::"r"(shared_address(barrier)),
        "r"(phase)
        : "memory");
}

// Weights are read once a step: they should not push anything else out of the L2 cache.
__device__ __forceinline__ unsigned long long read_once() {
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ void bulk_copy(
    void* to, const void* from, unsigned int bytes, unsigned long long* barrier,
    unsigned long long policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
        "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
        : "memory");
}

// --- sums over lanes -----------------------------------------------------------------------------

// Sums each of COUNT values over the lanes. Lane i ends up with value i / (32 / COUNT).
template <int COUNT>
__device__ __forceinline__ float sum_over_lanes(float (&value)[COUNT]) {
    const int lane = threadIdx.x % 32;
    int count = COUNT;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        if (count > 1) {
            count /= 2;
#pragma unroll
            for (int i = 0; i < COUNT / 2; ++i) {
                if (i < count) {
                    const bool upper = lane & offset;
                    const float give = upper ? value[i] : value[i + count];
                    const float keep = upper ? value[i + count] : value[i];
                    value[i] = keep + __shfl_xor_sync(~0u, give, offset);
                }
            }
        } else {
            value[0] += __shfl_xor_sync(~0u, value[0], offset);
        }
    }
    return value[0];
}

// --- a block's shared memory ---------------------------------------------------------------------

struct Shared {
    unsigned long long full[WARPS][STAGES];
    float sums[MOST_PAIRS][2][VECTORS][SPLIT];
    float squares[VECTORS][SPLIT];
};

__device__ __forceinline__ float sum_of_segments(const float (&sums)[SPLIT]) {
    float total = 0.0f;
#pragma unroll
    for (int segment = 0; segment < SPLIT; ++segment) total += sums[segment];
    return total;
}

// --- the vectors ---------------------------------------------------------------------------------

// A lane's chunk `i` of its warp's segment: -1 where there is none.
__device__ __forceinline__ int own_chunk(int i) {
    const int within = threadIdx.x % 32 + 32 * i;
    const int chunk = threadIdx.x / 32 % SPLIT * SEGMENT + within;
    return within < SEGMENT && chunk < CHUNKS ? chunk : -1;
}

// What a lane holds of the vectors.
struct Vectors {
    float at[VECTORS][OWN][8];

    // float32 [batch, K]. Only behind wait_for_predecessor.
    __device__ __forceinline__ void load(const float* from, int batch) {
#pragma unroll
        for (int b = 0; b < VECTORS; ++b) {
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const int chunk = own_chunk(i);
                float4 low = make_float4(0.0f, 0.0f, 0.0f, 0.0f), high = low;
                if (b < batch && chunk >= 0) {
                    const float4* eight =
                        reinterpret_cast<const float4*>(from + (long long)b * K + chunk * 8);
                    low = load_fresh(eight);
                    high = load_fresh(eight + 1);
                }
                at[b][i][0] = low.x, at[b][i][1] = low.y, at[b][i][2] = low.z, at[b][i][3] = low.w;
                at[b][i][4] = high.x, at[b][i][5] = high.y, at[b][i][6] = high.z;
                at[b][i][7] = high.w;
            }
        }
    }
};

// The gain of a root mean square norm, loaded while others still write what it belongs to.
struct Gain {
    float4 at[OWN][2];

    __device__ __forceinline__ explicit Gain(const float* from) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int chunk = own_chunk(i);
            const float4* eight = reinterpret_cast<const float4*>(from + max(chunk, 0) * 8);
            at[i][0] = eight[0];
            at[i][1] = eight[1];
        }
    }

    // Multiplies the vectors, and notes their squares: the root comes in behind the sums.
    __device__ __forceinline__ void apply(Vectors& vectors, Shared& shared) const {
#pragma unroll
        for (int b = 0; b < VECTORS; ++b) {
            float square = 0.0f;
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const float gains[8] = {at[i][0].x, at[i][0].y, at[i][0].z, at[i][0].w,
                                        at[i][1].x, at[i][1].y, at[i][1].z, at[i][1].w};
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    const float x = vectors.at[b][i][j];
                    square = fmaf(x, x, square);
                    vectors.at[b][i][j] = x * gains[j];
                }
            }
            if (threadIdx.x / 32 < SPLIT) {
#pragma unroll
                for (int lanes = 16; lanes > 0; lanes /= 2)
                    square += __shfl_xor_sync(~0u, square, lanes);
                if (threadIdx.x % 32 == 0) shared.squares[b][threadIdx.x / 32] = square;
            }
        }
    }
};

// The factor of a root mean square norm, of what Gain::apply noted.
__device__ __forceinline__ float norm_factor(const Shared& shared, int b, float eps) {
    return rsqrtf(sum_of_segments(shared.squares[b]) / K + eps);
}

// --- the stream ----------------------------------------------------------------------------------

// `Work` says where the rows are and what becomes of their sums:
//   pairs                    how many pairs of rows there are
//   row(pair, half)          where a row begins; null where the last pair has no second
//   early(pair, b)           what can be loaded before the sums are there
//   finish(shared, pair, b, low, high)  the sums of both rows with vector b
// A pair and a vector belong to one thread, which calls the last two. A block has neighbouring
// pairs, its groups of warps take them in turn.
template <typename Work>
struct Stream {
    unsigned char* ring;
    Shared& shared;
    Work& work;
    unsigned long long policy;
    int first, count;  // pairs of this block

    // Asks for the first pairs.
    __device__ __forceinline__ Stream(unsigned char* memory, Work& work_)
        : ring(memory + threadIdx.x / 32 * STAGES * 2 * SEGMENT_BYTES),
          shared(*reinterpret_cast<Shared*>(memory + WARPS * STAGES * 2 * SEGMENT_BYTES)),
          work(work_), policy(read_once()) {
        first = (int)((long long)work.pairs * blockIdx.x / gridDim.x);
        count = (int)((long long)work.pairs * (blockIdx.x + 1) / gridDim.x) - first;
        const int warp = threadIdx.x / 32;
        if (threadIdx.x % 32 == 0) {
#pragma unroll
            for (int stage = 0; stage < STAGES; ++stage) barrier_init(&shared.full[warp][stage]);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            for (int stage = 0; stage < STAGES; ++stage)
                fetch(warp / SPLIT + stage * GROUPS, stage);
        }
        __syncwarp();
    }

    // Asks for the warp's segments of a pair. One lane.
    __device__ __forceinline__ void fetch(int at, int stage) {
        if (at >= count) return;
        const int warp = threadIdx.x / 32, chunk = warp % SPLIT * SEGMENT;
        const unsigned int bytes = 16 * max(0, min(SEGMENT, CHUNKS - chunk));
        const __nv_bfloat16* low = work.row(first + at, 0);
        const __nv_bfloat16* high = work.row(first + at, 1);
        unsigned long long* full = &shared.full[warp][stage];
        unsigned char* to = ring + stage * 2 * SEGMENT_BYTES;
        barrier_expect(full, high ? 2 * bytes : bytes);
        if (bytes == 0) return;
        bulk_copy(to, low + chunk * 8, bytes, full, policy);
        if (high) bulk_copy(to + SEGMENT_BYTES, high + chunk * 8, bytes, full, policy);
    }

    __device__ __forceinline__ void sum_pair(
        const unsigned char* rows, const Vectors& vectors, float (&sum)[SUMS]) {
        float parts[SUMS][2] = {};  // two chains each: one would be long
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int within = threadIdx.x % 32 + 32 * i;
            if (CHUNKS % (32 * SPLIT) == 0 || own_chunk(i) >= 0) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const uint4 pairs = *reinterpret_cast<const uint4*>(
                        rows + half * SEGMENT_BYTES + within * 16);
                    const unsigned int words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        // A bfloat16 is the upper half of the float of the same value.
                        const float even = __uint_as_float(words[j] << 16);
                        const float odd = __uint_as_float(words[j] & 0xffff0000u);
#pragma unroll
                        for (int b = 0; b < VECTORS; ++b) {
                            float(&s)[2] = parts[half * VECTORS + b];
                            s[0] = fmaf(even, vectors.at[b][i][2 * j], s[0]);
                            s[1] = fmaf(odd, vectors.at[b][i][2 * j + 1], s[1]);
                        }
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < SUMS; ++i) sum[i] = parts[i][0] + parts[i][1];
    }

    __device__ __forceinline__ void run(const Vectors& vectors, int batch) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        int mine = threadIdx.x;
        if (mine < count * batch) work.early(first + mine / batch, mine % batch);

        int stage = 0, phase = 0;
#pragma unroll 1
        for (int at = warp / SPLIT; at < count; at += GROUPS) {
            barrier_wait(&shared.full[warp][stage], phase);
            float sum[SUMS];
            sum_pair(ring + stage * 2 * SEGMENT_BYTES, vectors, sum);
            __syncwarp();
            if (lane == 0) fetch(at + STAGES * GROUPS, stage);
            const float total = sum_over_lanes(sum);
            if (lane % (32 / SUMS) == 0) {
                const int which = lane / (32 / SUMS);
                shared.sums[at][which / VECTORS][which % VECTORS][warp % SPLIT] = total;
            }
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
        __syncthreads();

        while (mine < count * batch) {
            const int at = mine / batch, b = mine % batch;
            work.finish(
                shared, first + at, b, sum_of_segments(shared.sums[at][0][b]),
                sum_of_segments(shared.sums[at][1][b]));
            mine += THREADS;
            if (mine < count * batch) work.early(first + mine / batch, mine % batch);
        }
    }
};
