// weight_stream: the dot products of every row of a matrix with a few vectors, at the speed of
// device memory.
//
// A block streams units of ROWS rows through a ring in shared memory (bulk copies that complete on
// an mbarrier each). The first of them are under way before griddepcontrol.wait: weights depend on
// nothing, so the copies of this kernel fill the time in which the one ahead of it ends. A thread
// holds eight elements of the vectors in registers for each sixteen bytes of a row that are its
// own, in float32; rows are summed over the lanes, then over the warps, always in the same order.
//
// -D options: K, elements of a row, a multiple of 8; ROWS of a unit, 2 to 8; BATCH, vectors: 1, 2
// or 4; STAGES of the ring; THREADS of a block.

#include "bfloat16.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int CHUNKS = K / 8;                             // of sixteen bytes, in a row
constexpr int OWN = (CHUNKS + THREADS - 1) / THREADS;     // of them, a thread's
constexpr int HALF = ROWS / 2;                            // a unit is two pieces of so many rows
constexpr int SUMS = BATCH * ROWS;
constexpr unsigned int ROW_BYTES = K * 2;
constexpr unsigned int UNIT_BYTES = ROWS * ROW_BYTES;
static_assert(K % 8 == 0 && ROWS % 2 == 0 && SUMS <= 32 && BATCH * HALF <= 32, "see above");

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

// --- the vectors ---------------------------------------------------------------------------------

// What a thread holds of the vectors, and what it adds to their sums of squares.
struct Vectors {
    float at[BATCH][OWN][8];
    float squares[BATCH];
};

__device__ __forceinline__ void load_eight(const float* from, float (&to)[8]) {
    const float4 low = *reinterpret_cast<const float4*>(from);
    const float4 high = *reinterpret_cast<const float4*>(from + 4);
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

// float32 [batch, K]. Only behind wait_for_predecessor.
__device__ __forceinline__ void load_vectors(const float* from, int batch, Vectors& vectors) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int chunk = threadIdx.x + i * THREADS;
            if (b < batch && chunk < CHUNKS) {
                load_eight(from + (long long)b * K + chunk * 8, vectors.at[b][i]);
            } else {
#pragma unroll
                for (int j = 0; j < 8; ++j) vectors.at[b][i][j] = 0.0f;
            }
        }
    }
}

// The gain of a root mean square norm: eight elements for each of a thread's chunks.
struct Gain {
    float at[OWN][8];
};

__device__ __forceinline__ void load_gain(const float* from, Gain& gain) {
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int chunk = threadIdx.x + i * THREADS;
        if (chunk < CHUNKS) load_eight(from + chunk * 8, gain.at[i]);
    }
}

// Multiplies by the gain and notes the squares; the root comes in with the sums.
__device__ __forceinline__ void begin_norm(Vectors& vectors, const Gain& gain) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
        vectors.squares[b] = 0.0f;
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int chunk = threadIdx.x + i * THREADS;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float x = vectors.at[b][i][j];
                vectors.squares[b] = fmaf(x, x, vectors.squares[b]);
                vectors.at[b][i][j] = chunk < CHUNKS ? x * gain.at[i][j] : 0.0f;
            }
        }
    }
}

// --- the stream ----------------------------------------------------------------------------------

// Shared memory of a block: the ring, then what follows here.
struct Shared {
    unsigned long long full[STAGES];
    float sums[2][SUMS][WARPS];
    float squares[BATCH][WARPS];
};

struct Ring {
    unsigned char* stages;
    Shared* shared;
    unsigned long long policy;

    __device__ __forceinline__ explicit Ring(unsigned char* memory)
        : stages(memory), shared(reinterpret_cast<Shared*>(memory + STAGES * UNIT_BYTES)),
          policy(read_once()) {}

    // Asks for a unit. One thread.
    template <typename Matrix>
    __device__ __forceinline__ void fetch(const Matrix& matrix, int unit, int stage) {
        unsigned char* to = stages + stage * UNIT_BYTES;
        unsigned long long* full = &shared->full[stage];
        const unsigned int low = matrix.rows(unit, 0) * ROW_BYTES;
        const unsigned int high = matrix.rows(unit, 1) * ROW_BYTES;
        barrier_expect(full, low + high);
        bulk_copy(to, matrix.piece(unit, 0), low, full, policy);
        if (high) bulk_copy(to + HALF * ROW_BYTES, matrix.piece(unit, 1), high, full, policy);
    }

    // Asks for the first units. All threads; nobody may read the ring before the next barrier.
    template <typename Matrix>
    __device__ __forceinline__ void start(const Matrix& matrix) {
        if (threadIdx.x == 0) {
#pragma unroll
            for (int stage = 0; stage < STAGES; ++stage) barrier_init(&shared->full[stage]);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#pragma unroll
            for (int stage = 0; stage < STAGES; ++stage) {
                const int unit = blockIdx.x + stage * gridDim.x;
                if (unit < matrix.units) fetch(matrix, unit, stage);
            }
        }
        __syncthreads();
    }
};

__device__ __forceinline__ float sum_of_warps(const float* sums) {
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) total += sums[warp];
    return total;
}

// The factor of a root mean square norm, of what begin_norm noted.
__device__ __forceinline__ float norm_factor(const Shared& shared, int b, float eps) {
    return rsqrtf(sum_of_warps(shared.squares[b]) / K + eps);
}

// Takes all units of a block. `Work` says where rows are and what becomes of their sums:
//   units                      how many there are
//   rows(unit, i), piece(unit, i)   of the two pieces of a unit
//   early(unit, b, j)          what can be loaded before the sums are there
//   finish(shared, unit, b, j, low, high)  the sums of row j of both pieces with vector b
// The last two are called by one thread for each b below `batch` and j below HALF.
template <typename Work>
__device__ __forceinline__ void stream(Ring& ring, Work& work, const Vectors& vectors, int batch) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Shared& shared = *ring.shared;
    int step = 0;
    for (int unit = blockIdx.x; unit < work.units; unit += gridDim.x, ++step) {
        const int stage = step % STAGES;
        const bool finishes = warp == step % WARPS && lane < BATCH * HALF && lane / HALF < batch;
        if (finishes) work.early(unit, lane / HALF, lane % HALF);
        barrier_wait(&shared.full[stage], step / STAGES % 2);

        float sum[SUMS] = {};
        const unsigned char* rows = ring.stages + stage * UNIT_BYTES;
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int chunk = threadIdx.x + i * THREADS;
            if (CHUNKS % THREADS == 0 || chunk < CHUNKS) {
#pragma unroll
                for (int row = 0; row < ROWS; ++row) {
                    const uint4 pairs =
                        *reinterpret_cast<const uint4*>(rows + row * ROW_BYTES + chunk * 16);
                    const unsigned int words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        // A bfloat16 is the upper half of the float of the same value.
                        const float even = __uint_as_float(words[j] << 16);
                        const float odd = __uint_as_float(words[j] & 0xffff0000u);
#pragma unroll
                        for (int b = 0; b < BATCH; ++b) {
                            float& s = sum[b * ROWS + row];
                            s = fmaf(even, vectors.at[b][i][2 * j], s);
                            s = fmaf(odd, vectors.at[b][i][2 * j + 1], s);
                        }
                    }
                }
            }
        }
        const float total = sum_over_lanes(sum);
        if (lane % (32 / SUMS) == 0) shared.sums[step % 2][lane / (32 / SUMS)][warp] = total;
        __syncthreads();

        if (threadIdx.x == (step + 1) % WARPS * 32) {  // not one that finishes this unit
            const int next = unit + STAGES * gridDim.x;
            if (next < work.units) ring.fetch(work, next, stage);
        }
        if (finishes) {
            const int b = lane / HALF, j = lane % HALF;
            const float(*sums)[WARPS] = shared.sums[step % 2] + b * ROWS;
            work.finish(shared, unit, b, j, sum_of_warps(sums[j]), sum_of_warps(sums[HALF + j]));
        }
    }
}

// Notes the squares of the vectors for norm_factor, which may be called behind the next barrier.
__device__ __forceinline__ void note_squares(Shared& shared, Vectors& vectors) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
        float square = vectors.squares[b];
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2) square += __shfl_xor_sync(~0u, square, lanes);
        if (threadIdx.x % 32 == 0) shared.squares[b][threadIdx.x / 32] = square;
    }
}
