// weight_stream: the dot products of every row of a matrix with a few vectors, at the speed of
// device memory.
//
// A block has ten warps. One fetches pairs of rows into a ring in shared memory, by bulk copies that
// complete on an mbarrier each. Eight multiply rows by the vectors, each warp its part of k. One adds
// up what the eight found and does with it what the kernel is for. They meet at mbarriers.
//
// The tensor cores multiply: with ordinary instructions the products of a row take more than half
// as long as its way from memory, and a block hardly catches up with what was fetched ahead.
// mma.m16n8k16 is for matrices, and here are a row and a vector. So both are cut into eight slices:
// the row's are the eight columns, the vector's eight of the 16 rows, and of the 8 x 8 products
// those on the diagonal are added up. The other eight rows are what rounding the vector to bfloat16
// left of it: together 16 bits of mantissa. A lane holds its part of the vectors in registers.
//
// The fetching begins before griddepcontrol.wait: weights depend on nothing, so it fills the time
// in which the kernel ahead of this one ends. Until the vectors are there, no more than FLIGHT pairs
// are asked for and not yet there: what is behind them in the queues of the memory, such as the
// vectors, would wait as long as they take. Sums are over lanes, then over warps, always in the
// same order.
//
// A multiprocessor should hold two blocks, one of this kernel and one of the next: with a block to
// each multiprocessor, and each taking half of its shared memory, a block can only come in where
// the kernel before the last has left, so that no multiprocessor gets two.
//
// -D options: K, elements of a row, a multiple of 8; VECTORS: 1 or 2; STAGES of the ring, and FLIGHT,
// in pairs; TAKEN, pairs that are multiplied at once, a power of two.

#include "bfloat16.cuh"
#include "fresh.cuh"

constexpr int MULTIPLIERS = 8;                          // warps
constexpr int FETCHER = MULTIPLIERS, FINISHER = MULTIPLIERS + 1;
constexpr int THREADS = 32 * (FINISHER + 1);
constexpr int CHUNKS = K / 8;                           // of sixteen bytes, in a row
constexpr int SLICES = 8;                               // of a row, which has them chunk by chunk
constexpr int STEPS = (CHUNKS + 31) / 32;               // a step is one ldmatrix: four chunks a slice
constexpr int OWN = (STEPS + MULTIPLIERS - 1) / MULTIPLIERS;  // of them, a warp's
constexpr int SUMS = 2 * TAKEN * VECTORS;               // of the pairs that are taken at once
constexpr int BENCHES = 4;                              // where sums wait for the finisher
constexpr unsigned int ROW_BYTES = K * 2;
static_assert(K % 8 == 0 && SUMS <= 32 && FLIGHT <= STAGES && TAKEN <= STAGES, "see above");
// So that two blocks leave registers for one of split_attention.
#define BLOCK_LIMITS __maxnreg__(VECTORS * OWN > 4 ? 96 : 64)

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

__device__ __forceinline__ void barrier_init(unsigned long long* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive(unsigned long long* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
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

// Four 8x8 matrices of bfloat16: lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(unsigned int row, unsigned int (&to)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row));
}

__device__ __forceinline__ void multiply(
    float (&sums)[4], const unsigned int (&inputs)[4], unsigned int low, unsigned int high) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(inputs[0]), "r"(inputs[1]), "r"(inputs[2]), "r"(inputs[3]), "r"(low), "r"(high));
}

__device__ __forceinline__ unsigned int rounded_pair(float low, float high) {
    unsigned int pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
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
    unsigned char ring[STAGES][2][ROW_BYTES];
    unsigned char behind[512];  // an ldmatrix may look beyond the last row
    unsigned long long full[STAGES], empty[STAGES];
    unsigned long long summed[BENCHES], finished[BENCHES];
    float sums[BENCHES][SUMS][MULTIPLIERS];
    float squares[VECTORS][MULTIPLIERS];
    volatile int hurry;  // the vectors are there
};

__device__ __forceinline__ float sum_of_multipliers(const float (&sums)[MULTIPLIERS]) {
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < MULTIPLIERS; ++warp) total += sums[warp];
    return total;
}

// --- the vectors ---------------------------------------------------------------------------------

// The chunk of which a lane has two neighbouring elements: in one of the four matrices of a warp's
// step `i`, for the slice that is the lane's.
__device__ __forceinline__ int own_chunk(int i, int matrix) {
    const int step = threadIdx.x / 32 + MULTIPLIERS * i;
    return (4 * step + matrix) * SLICES + threadIdx.x % 32 / 4;
}

// The gain of a root mean square norm, loaded while others still write what it belongs to.
struct Gain {
    float2 at[OWN][4];

    __device__ __forceinline__ explicit Gain(const float* from) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
#pragma unroll
            for (int matrix = 0; matrix < 4; ++matrix) {
                const int chunk = min(own_chunk(i, matrix), CHUNKS - 1);
                at[i][matrix] =
                    *reinterpret_cast<const float2*>(from + chunk * 8 + threadIdx.x % 4 * 2);
            }
        }
    }
};

// What a lane holds of the vectors, as mma wants it.
struct Vectors {
    unsigned int at[VECTORS][OWN][2][4] = {};

    // Takes float32 [batch, K], times the gain where there is one, and notes the squares: the root
    // of the norm comes in behind the sums. Only behind wait_for_predecessor.
    __device__ __forceinline__ void load(
        const float* from, const Gain* gain, int batch, Shared& shared) {
        float2 x[VECTORS][OWN][4];
#pragma unroll
        for (int b = 0; b < VECTORS; ++b) {
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
#pragma unroll
                for (int matrix = 0; matrix < 4; ++matrix) {
                    const int chunk = own_chunk(i, matrix);
                    x[b][i][matrix] = make_float2(0.0f, 0.0f);
                    if (b < batch && chunk < CHUNKS)
                        x[b][i][matrix] = load_fresh(reinterpret_cast<const float2*>(
                            from + (long long)b * K + chunk * 8 + threadIdx.x % 4 * 2));
                }
            }
        }
#pragma unroll
        for (int b = 0; b < VECTORS; ++b) {
            float square = 0.0f;
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
#pragma unroll
                for (int matrix = 0; matrix < 4; ++matrix) {
                    float2 two = x[b][i][matrix];
                    if (gain) {
                        square = fmaf(two.x, two.x, fmaf(two.y, two.y, square));
                        two.x *= gain->at[i][matrix].x;
                        two.y *= gain->at[i][matrix].y;
                    }
                    // Rows of inputs 0 to 7 are the slices, 8 to 15 what rounding leaves of them.
                    const unsigned int upper = rounded_pair(two.x, two.y);
                    unsigned int(&to)[4] = at[b][i][matrix / 2];
                    to[matrix % 2 * 2] = upper;
                    to[matrix % 2 * 2 + 1] = rounded_pair(
                        two.x - __uint_as_float(upper << 16),
                        two.y - __uint_as_float(upper & 0xffff0000u));
                }
            }
            if (gain) {
#pragma unroll
                for (int lanes = 16; lanes > 0; lanes /= 2)
                    square += __shfl_xor_sync(~0u, square, lanes);
                if (threadIdx.x % 32 == 0) shared.squares[b][threadIdx.x / 32] = square;
            }
        }
        // Uses what was loaded, so that it is behind that.
        if (threadIdx.x == 0) shared.hurry = (at[0][0][0][0] & 1) + 1;
    }
};

// The factor of a root mean square norm, of what Gain::apply noted. For the finisher.
__device__ __forceinline__ float norm_factor(const Shared& shared, int b, float eps) {
    return rsqrtf(sum_of_multipliers(shared.squares[b]) / K + eps);
}

// --- the stream ----------------------------------------------------------------------------------

// `Work` says where the rows are and what becomes of their sums:
//   pairs                    how many pairs of rows there are
//   row(pair, half)          where a row begins; null where the last pair has no second
//   early(pair, b)           what can be loaded before the sums are there
//   finish(shared, pair, b, low, high)  the sums of both rows with vector b
// The last two are called by a lane of the finisher for each pair and vector. A block has
// neighbouring pairs.
template <typename Work>
struct Stream {
    Shared& shared;
    Work& work;
    int first, count;  // pairs of this block

    // Makes the barriers and lets the fetcher ask for its first pairs. All threads.
    __device__ __forceinline__ Stream(unsigned char* memory, Work& work_)
        : shared(*reinterpret_cast<Shared*>(memory)), work(work_) {
        first = (int)((long long)work.pairs * blockIdx.x / gridDim.x);
        count = (int)((long long)work.pairs * (blockIdx.x + 1) / gridDim.x) - first;
        if (threadIdx.x == 32 * FETCHER) {
            shared.hurry = 0;
            for (int i = 0; i < STAGES; ++i) {
                barrier_init(&shared.full[i], 1);
                barrier_init(&shared.empty[i], MULTIPLIERS);
            }
            for (int i = 0; i < BENCHES; ++i) {
                barrier_init(&shared.summed[i], MULTIPLIERS);
                barrier_init(&shared.finished[i], 1);
            }
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncthreads();
    }

    __device__ __forceinline__ bool is_fetcher() const { return threadIdx.x / 32 == FETCHER; }
    __device__ __forceinline__ bool is_finisher() const { return threadIdx.x / 32 == FINISHER; }

    // One lane asks for all pairs, one behind the other.
    __device__ __forceinline__ void fetch() {
        if (threadIdx.x % 32) return;
        const unsigned long long policy = read_once();
        int stage = 0, round = 0;
        bool hurry = false;
        for (int at = 0; at < count; ++at) {
            unsigned long long* full = &shared.full[stage];
            if (round) barrier_wait(&shared.empty[stage], (round - 1) % 2);
            if (!hurry && at >= FLIGHT) {
                hurry = shared.hurry;
                const int landing = at - FLIGHT;
                if (!hurry) barrier_wait(&shared.full[landing % STAGES], landing / STAGES % 2);
            }
            const __nv_bfloat16* low = work.row(first + at, 0);
            const __nv_bfloat16* high = work.row(first + at, 1);
            barrier_expect(full, high ? 2 * ROW_BYTES : ROW_BYTES);
            bulk_copy(shared.ring[stage][0], low, ROW_BYTES, full, policy);
            if (high) bulk_copy(shared.ring[stage][1], high, ROW_BYTES, full, policy);
            if (++stage == STAGES) stage = 0, ++round;
        }
    }

    // What this lane has of the sums of one row in the ring.
    __device__ __forceinline__ void multiply_row(
        const unsigned char* row, const Vectors& vectors, float* to) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        float sums[VECTORS][4] = {};
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int step = warp + MULTIPLIERS * i;
            if (STEPS % MULTIPLIERS && step >= STEPS) break;
            unsigned int weights[4];
            // Of matrix `lane / 8` the chunk of slice `lane % 8`.
            load_matrices(shared_address(row) + (step * 32 + lane) * 16, weights);
            if (CHUNKS % 32) {  // what is behind the row's end is anything
#pragma unroll
                for (int matrix = 0; matrix < 4; ++matrix) {
                    if (own_chunk(i, matrix) >= CHUNKS) weights[matrix] = 0;
                }
            }
#pragma unroll
            for (int b = 0; b < VECTORS; ++b) {
                multiply(sums[b], vectors.at[b][i][0], weights[0], weights[1]);
                multiply(sums[b], vectors.at[b][i][1], weights[2], weights[3]);
            }
        }
        // A lane has two neighbouring columns of slice `lane / 4`: is the slice's own among them?
        const int slice = lane / 4;
        const bool diagonal = lane % 4 == slice / 2;
#pragma unroll
        for (int b = 0; b < VECTORS; ++b) {
            const float sum = slice % 2 ? sums[b][1] + sums[b][3] : sums[b][0] + sums[b][2];
            to[b] = diagonal ? sum : 0.0f;
        }
    }

    // A multiplying warp's part. Its first turn is a rehearsal, ahead of griddepcontrol.wait and with
    // vectors of zeros: it brings the instructions into the caches, which costs a kernel that runs for
    // two microseconds one of them. `ready` waits and loads the vectors.
    template <typename Ready>
    __device__ __forceinline__ void multiply_all(Vectors& vectors, const Ready& ready) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        int stage = 0, phase = 0, turn = 0;
        bool rehearsal = true;
#pragma unroll 1
        for (int at = 0; at < count;) {
            float sum[SUMS];
            int taken_stage = stage, taken_phase = phase;
#pragma unroll
            for (int taken = 0; taken < TAKEN; ++taken) {
                if (at + taken < count) barrier_wait(&shared.full[taken_stage], taken_phase);
                if (++taken_stage == STAGES) taken_stage = 0, taken_phase ^= 1;
            }
#pragma unroll
            for (int taken = 0; taken < TAKEN; ++taken) {
                const int there = stage + taken < STAGES ? stage + taken : stage + taken - STAGES;
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    multiply_row(shared.ring[there][half], vectors,
                                 sum + (taken * 2 + half) * VECTORS);
            }
            const float total = sum_over_lanes(sum);
            const int bench = turn % BENCHES;
            if (turn >= BENCHES) barrier_wait(&shared.finished[bench], (turn / BENCHES - 1) % 2);
            if (lane % (32 / SUMS) == 0) shared.sums[bench][lane / (32 / SUMS)][warp] = total;
            __syncwarp();
            if (rehearsal) {
                rehearsal = false;
                ready(vectors);
                continue;
            }
            if (lane < TAKEN && at + lane < count)
                barrier_arrive(&shared.empty[(stage + lane) % STAGES]);
            if (lane == 0) barrier_arrive(&shared.summed[bench]);
            stage = taken_stage;
            phase = taken_phase;
            at += TAKEN;
            ++turn;
        }
    }

    // The finisher's part. Only behind wait_for_predecessor. A lane has every so many pairs of a
    // vector, and loads what the next of them needs as soon as it is done with one.
    __device__ __forceinline__ void finish(int batch) {
        constexpr int APART = 32 / VECTORS;
        const int lane = threadIdx.x % 32, b = lane % VECTORS;
        int mine = b < batch ? lane / VECTORS : count;
        if (mine < count) work.early(first + mine, b);
        int turn = 0;
#pragma unroll 1
        for (int at = 0; at < count; at += TAKEN, ++turn) {
            const int bench = turn % BENCHES;
            barrier_wait(&shared.summed[bench], turn / BENCHES % 2);
            const bool now = mine < min(at + TAKEN, count);
            float low = 0.0f, high = 0.0f;
            if (now) {
                const int which = (mine - at) * 2 * VECTORS + b;
                low = sum_of_multipliers(shared.sums[bench][which]);
                high = sum_of_multipliers(shared.sums[bench][which + VECTORS]);
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(&shared.finished[bench]);
            if (now) {
                work.finish(shared, first + mine, b, low, high);
                mine += APART;
                if (mine < count) work.early(first + mine, b);
            }
        }
    }
};
