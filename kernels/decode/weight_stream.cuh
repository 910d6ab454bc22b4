// weight_stream: the dot products of every row of a matrix with a few vectors, at the speed of
// device memory.
//
// A block has eleven warps. Two fetch pairs of rows into a ring in shared memory, by bulk copies that
// complete on an mbarrier each. Eight multiply eight columns at a time by the vectors, each warp
// its part of k, on the tensor cores: with the cores' ordinary instructions the products of a row
// take nearly as long as its way from memory, and a block never catches up. One warp adds up what
// the eight found and does with it what the kernel is for. They meet at mbarriers.
//
// mma.m16n8k16 has room for 16 rows of inputs where there are one or two vectors. Eight of them are
// vectors rounded to bfloat16, eight what the rounding left: together 16 bits of mantissa. And a row
// of weights that is long is cut into slices, each a column of its own and the vectors' slices rows
// of their own, so that a column is never longer than the ring can hold eight of; of the products
// only those count whose slices agree.
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
// -D options: K, elements of a row, a multiple of 8; VECTORS: 1 or 2; SLICES of a row: 1, 2 or 4;
// STAGES of the ring, and FLIGHT, in pairs.

#include "bfloat16.cuh"
#include "fresh.cuh"

constexpr int SUMMERS = 8;                              // warps that multiply
constexpr int FETCHERS = 2;                             // warps that fetch
constexpr int FINISHER = SUMMERS + FETCHERS;            // the last warp
constexpr int THREADS = 32 * (FINISHER + 1);
constexpr int CHUNKS = K / 8;                           // of sixteen bytes, in a row
constexpr int ROWS = 8 / SLICES;                        // of weights that are taken at once
constexpr int TAKEN = ROWS / 2;                         // pairs of them
constexpr int STEP = 4 * SLICES;                        // chunks of a row in one ldmatrix
constexpr int STEPS = (CHUNKS + STEP - 1) / STEP;
constexpr int BENCHES = 4;                              // where sums wait for the finisher
constexpr unsigned int ROW_BYTES = K * 2;
// So that the eight columns of an ldmatrix lie in different banks.
constexpr unsigned int PITCH = (ROW_BYTES + 127) / 128 * 128 + 16 * SLICES;
static_assert(K % 8 == 0 && VECTORS * SLICES <= 8 && FLIGHT <= STAGES, "see above");
// So that two blocks leave registers for one of split_attention.
#define BLOCK_LIMITS __maxnreg__(56)
static_assert(STAGES % TAKEN == 0, "the rows that are taken at once lie one behind the other");

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
__device__ __forceinline__ void load_matrices(const void* row, unsigned int (&to)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void multiply(
    float (&sums)[4], const uint4& inputs, unsigned int low, unsigned int high) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(inputs.x), "r"(inputs.y), "r"(inputs.z), "r"(inputs.w), "r"(low), "r"(high));
}

// --- a block's shared memory ---------------------------------------------------------------------

struct Shared {
    unsigned char ring[STAGES][2][PITCH];
    // The vectors as mma wants them: for each row of inputs and 16 of k four lanes' registers.
    uint4 inputs[VECTORS * SLICES][2 * STEPS][4];
    unsigned long long full[STAGES], empty[STAGES];
    unsigned long long summed[BENCHES], finished[BENCHES];
    float sums[BENCHES][ROWS * VECTORS][SUMMERS];
    float squares[VECTORS][SUMMERS];
    volatile int hurry;  // the vectors are there
};

__device__ __forceinline__ float sum_of_summers(const float (&sums)[SUMMERS]) {
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < SUMMERS; ++warp) total += sums[warp];
    return total;
}

// --- the vectors ---------------------------------------------------------------------------------

constexpr int OWN = (STEPS * STEP + 32 * SUMMERS - 1) / (32 * SUMMERS);  // chunks of a thread

// The gain of a root mean square norm, or nothing to multiply by.
struct Gain {
    float4 at[OWN][2];

    // Loads a thread's part: while others still write what it belongs to.
    __device__ __forceinline__ void load(const float* from) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int chunk = threadIdx.x + 32 * SUMMERS * i;
            at[i][0] = at[i][1] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (chunk < CHUNKS) {
                at[i][0] = reinterpret_cast<const float4*>(from + chunk * 8)[0];
                at[i][1] = reinterpret_cast<const float4*>(from + chunk * 8)[1];
            }
        }
    }
};

__device__ __forceinline__ unsigned int rounded_pair(float low, float high) {
    unsigned int pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// Puts float32 [batch, K], times the gain where there is one, where the multiplying warps find it,
// and notes the squares: the root of the norm comes in behind the sums. Only behind
// wait_for_predecessor; the multiplying warps together.
__device__ __forceinline__ void take_vectors(
    const float* from, const Gain* gain, int batch, Shared& shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int b = 0; b < VECTORS; ++b) {
        float square = 0.0f;
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int chunk = threadIdx.x + 32 * SUMMERS * i;
            if (chunk >= STEPS * STEP) continue;
            float4 low = make_float4(0.0f, 0.0f, 0.0f, 0.0f), high = low;
            if (b < batch && chunk < CHUNKS) {
                const float4* eight =
                    reinterpret_cast<const float4*>(from + (long long)b * K + chunk * 8);
                low = load_fresh(eight);
                high = load_fresh(eight + 1);
            }
            float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
            if (gain) {
                const float gains[8] = {gain->at[i][0].x, gain->at[i][0].y, gain->at[i][0].z,
                                        gain->at[i][0].w, gain->at[i][1].x, gain->at[i][1].y,
                                        gain->at[i][1].z, gain->at[i][1].w};
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    square = fmaf(x[j], x[j], square);
                    x[j] *= gains[j];
                }
            }
            // A chunk is half of the 16 of k of an mma, for one slice.
            const int slice = chunk % SLICES, half = chunk / SLICES;
            uint4* to = shared.inputs[slice * VECTORS + b][half / 2];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const unsigned int upper = rounded_pair(x[2 * j], x[2 * j + 1]);
                const unsigned int rest = rounded_pair(
                    x[2 * j] - __uint_as_float(upper << 16),
                    x[2 * j + 1] - __uint_as_float(upper & 0xffff0000u));
                reinterpret_cast<uint2*>(to + j)[half % 2] = make_uint2(upper, rest);
            }
        }
        if (gain) {
#pragma unroll
            for (int lanes = 16; lanes > 0; lanes /= 2)
                square += __shfl_xor_sync(~0u, square, lanes);
            if (lane == 0) shared.squares[b][warp] = square;
        }
    }
    asm volatile("bar.sync 1, %0;" ::"n"(32 * SUMMERS) : "memory");
    if (threadIdx.x == 0) shared.hurry = 1;
}

// The factor of a root mean square norm, of what Gain::apply noted. For the finisher.
__device__ __forceinline__ float norm_factor(const Shared& shared, int b, float eps) {
    return rsqrtf(sum_of_summers(shared.squares[b]) / K + eps);
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
        if (threadIdx.x == 32 * SUMMERS) {
            shared.hurry = 0;
            for (int i = 0; i < STAGES; ++i) {
                barrier_init(&shared.full[i], 1);
                barrier_init(&shared.empty[i], SUMMERS);
            }
            for (int i = 0; i < BENCHES; ++i) {
                barrier_init(&shared.summed[i], SUMMERS);
                barrier_init(&shared.finished[i], 1);
            }
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncthreads();
    }

    __device__ __forceinline__ bool is_fetcher() const { return threadIdx.x / 32 - SUMMERS < FETCHERS && threadIdx.x / 32 >= SUMMERS; }
    __device__ __forceinline__ bool is_finisher() const { return threadIdx.x / 32 == FINISHER; }

    // A lane of each fetcher asks for every other pair, one behind the other.
    __device__ __forceinline__ void fetch() {
        if (threadIdx.x % 32) return;
        const unsigned long long policy = read_once();
        int at = threadIdx.x / 32 - SUMMERS;
        int stage = at, round = 0, landing = at;  // the stage that is looked at for what arrived
        for (; at < count; at += FETCHERS) {
            unsigned long long* full = &shared.full[stage];
            if (round) barrier_wait(&shared.empty[stage], (round - 1) % 2);
            if (at >= FLIGHT && !shared.hurry) {
                barrier_wait(&shared.full[landing % STAGES], landing / STAGES % 2);
                landing += FETCHERS;
            }
            const __nv_bfloat16* low = work.row(first + at, 0);
            const __nv_bfloat16* high = work.row(first + at, 1);
            barrier_expect(full, high ? 2 * ROW_BYTES : ROW_BYTES);
            bulk_copy(shared.ring[stage][0], low, ROW_BYTES, full, policy);
            if (high) bulk_copy(shared.ring[stage][1], high, ROW_BYTES, full, policy);
            stage += FETCHERS;
            if (stage >= STAGES) stage -= STAGES, ++round;
        }
    }

    // A multiplying warp's part: every eighth step of k.
    __device__ __forceinline__ void multiply_all() {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int input = lane / 4;  // this lane's row of inputs, of which some are there
        // The column whose address this lane gives, which is a slice of a row, and its own columns.
        const int column = lane % 8, row = column % ROWS, slice = column / ROWS;
        const int own_slice = lane / 4 / ROWS;
        int stage = 0, phase = 0, turn = 0;
#pragma unroll 1
        for (int at = 0; at < count; at += TAKEN, ++turn) {
#pragma unroll
            for (int taken = 0; taken < TAKEN; ++taken) {
                if (at + taken < count) barrier_wait(&shared.full[stage + taken], phase);
            }
            const unsigned char* from = shared.ring[stage][0] + row * PITCH + slice * 16 +
                                        lane / 8 * 16 * SLICES;
            float sums[2][4] = {};
#pragma unroll 4
            for (int step = warp; step < STEPS; step += SUMMERS) {
                unsigned int weights[4];
                load_matrices(from + step * 16 * STEP, weights);
                if (CHUNKS % STEP) {  // what is behind the row's end is anything
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        if ((step * 4 + i) * SLICES + own_slice >= CHUNKS) weights[i] = 0;
                    }
                }
                uint4 inputs[2] = {};
                if (input < VECTORS * SLICES) {
                    inputs[0] = shared.inputs[input][2 * step][lane % 4];
                    inputs[1] = shared.inputs[input][2 * step + 1][lane % 4];
                }
                multiply(sums[0], inputs[0], weights[0], weights[1]);
                multiply(sums[1], inputs[1], weights[2], weights[3]);
            }
            __syncwarp();
            if (lane < TAKEN && at + lane < count) barrier_arrive(&shared.empty[stage + lane]);

            // A lane has two neighbouring columns of its row of inputs, and of what was left of it.
            float low = sums[0][0] + sums[1][0] + (sums[0][2] + sums[1][2]);
            float high = sums[0][1] + sums[1][1] + (sums[0][3] + sums[1][3]);
            const int first_column = lane % 4 * 2;
            const bool agrees =
                input < VECTORS * SLICES && first_column / ROWS == input / VECTORS;
            // The lanes of the slices of a row and a vector.
#pragma unroll
            for (int i = 1; i < SLICES; i *= 2) {
                low += __shfl_xor_sync(~0u, low, i * (4 * VECTORS + ROWS / 2));
                high += __shfl_xor_sync(~0u, high, i * (4 * VECTORS + ROWS / 2));
            }
            const int bench = turn % BENCHES;
            if (turn >= BENCHES) barrier_wait(&shared.finished[bench], (turn / BENCHES - 1) % 2);
            if (agrees && input < VECTORS) {
                float(*to)[SUMMERS] = shared.sums[bench] + first_column * VECTORS + input;
                to[0][warp] = low;
                to[VECTORS][warp] = high;
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(&shared.summed[bench]);
            stage += TAKEN;
            if (stage == STAGES) stage = 0, phase ^= 1;
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
                low = sum_of_summers(shared.sums[bench][which]);
                high = sum_of_summers(shared.sums[bench][which + VECTORS]);
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
