// weight_stream: the dot products of every row of a matrix with a few vectors, at the speed of
// device memory.
//
// A block has ten warps. One fetches units of a few pairs of rows into a ring in shared memory, by
// bulk copies that complete on an mbarrier for each unit. Eight take their eighth of every row
// against their part of the vectors, which a lane holds in registers, in float32. One adds up what
// the eight found and does with it what the kernel is for. They meet at mbarriers only, never all
// at once.
//
// The fetching begins before griddepcontrol.wait: weights depend on nothing, so it fills the time
// in which the kernel ahead of this one ends. Until the vectors are there, no more than FLIGHT
// units are asked for and not yet there: what is behind them in the queues of the memory, such as
// the vectors, would wait as long as they take. Sums are over lanes, then over warps, always in
// the same order.
//
// A multiprocessor should hold two blocks, one of this kernel and one of the next: with a block to
// each multiprocessor, and each taking nearly half of its shared memory, a block can only come in
// where the kernel before the last has left, so that no multiprocessor gets two.
//
// -D options: K, elements of a row, a multiple of 8; VECTORS: 1 or 2; UNIT, pairs of one, 1, 2 or
// 4; STAGES of the ring and FLIGHT, in units.

#include "bfloat16.cuh"
#include "early_start.cuh"
#include "fresh.cuh"
#include "shared_copies.cuh"

constexpr int SUMMERS = 8;                                // warps that sum
constexpr int FETCHER = SUMMERS, FINISHER = SUMMERS + 1;   // the other two
constexpr int CHUNKS = K / 8;                             // of sixteen bytes, in a row
constexpr int OWN = (CHUNKS + 32 * SUMMERS - 1) / (32 * SUMMERS);  // of them, a lane's
constexpr int SUMS = 2 * UNIT * VECTORS;                  // of a unit
constexpr int BENCHES = 16;                               // where sums wait for the finisher
constexpr unsigned int ROW_BYTES = K * 2;
static_assert(K % 8 == 0 && SUMS <= 32 && FLIGHT <= STAGES, "see above");
// So that two blocks leave registers for one of split_attention.
#define BLOCK_LIMITS __maxnreg__(VECTORS * OWN > 4 ? 96 : 56)

// --- CUDA's instructions -------------------------------------------------------------------------

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
    unsigned char ring[STAGES][2 * UNIT][ROW_BYTES];
    unsigned long long full[STAGES], empty[STAGES];
    unsigned long long summed[BENCHES], finished[BENCHES];
    float sums[BENCHES][SUMS][SUMMERS];
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

// What a lane of a summing warp holds of the vectors.
struct Vectors {
    float at[VECTORS][OWN][8];

    // float32 [batch, K]. Only behind wait_for_previous.
    __device__ __forceinline__ void load(const float* from, int batch) {
#pragma unroll
        for (int b = 0; b < VECTORS; ++b) {
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const int chunk = threadIdx.x + 32 * SUMMERS * i;
                float4 low = make_float4(0.0f, 0.0f, 0.0f, 0.0f), high = low;
                if (b < batch && chunk < CHUNKS) {
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

    __device__ __forceinline__ void load(const float* from) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int chunk = threadIdx.x + 32 * SUMMERS * i;
            if (chunk < CHUNKS) {
                at[i][0] = reinterpret_cast<const float4*>(from + chunk * 8)[0];
                at[i][1] = reinterpret_cast<const float4*>(from + chunk * 8)[1];
            }
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
                const bool there = threadIdx.x + 32 * SUMMERS * i < CHUNKS;
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    const float x = vectors.at[b][i][j];
                    square = fmaf(x, x, square);
                    vectors.at[b][i][j] = there ? x * gains[j] : 0.0f;
                }
            }
#pragma unroll
            for (int lanes = 16; lanes > 0; lanes /= 2)
                square += __shfl_xor_sync(~0u, square, lanes);
            if (threadIdx.x % 32 == 0) shared.squares[b][threadIdx.x / 32] = square;
        }
    }
};

// The factor of a root mean square norm, of what Gain::apply noted. For the finisher.
__device__ __forceinline__ float norm_factor(const Shared& shared, int b, float eps) {
    return rsqrtf(sum_of_summers(shared.squares[b]) / K + eps);
}

// --- the stream ----------------------------------------------------------------------------------

// `Work` says where the rows are and what becomes of their sums:
//   pairs                    how many pairs of rows there are
//   TOGETHER                 whether the two rows of a pair lie one behind the other
//   row(pair, half)          where a row begins; those of neighbouring pairs of a unit lie one
//                            behind the other, or with TOGETHER both rows of all pairs
//   rows()                   with TOGETHER, how many rows there are: the last pair may be half of
//                            one
//   early(pair, b)           what can be loaded before the sums are there
//   finish(shared, pair, b, low, high)  the sums of both rows with vector b
//   end(batch)               what is left to do when all sums were finished
// early and finish are called by a lane of the finisher for each pair and vector, end by all its
// lanes. A block has neighbouring units.
template <typename Work>
struct Stream {
    Shared& shared;
    Work& work;
    int first, count;  // units of this block

    // Makes the barriers. All threads.
    __device__ __forceinline__ Stream(unsigned char* memory, Work& work_)
        : shared(*reinterpret_cast<Shared*>(memory)), work(work_) {
        const long long units = (work.pairs + UNIT - 1) / UNIT;
        first = (int)(units * blockIdx.x / gridDim.x);
        count = (int)(units * (blockIdx.x + 1) / gridDim.x) - first;
        if (threadIdx.x == 32 * FETCHER) {
            shared.hurry = 0;
            for (int i = 0; i < STAGES; ++i) {
                barrier_init(&shared.full[i], 1);
                barrier_init(&shared.empty[i], SUMMERS);
            }
            for (int i = 0; i < BENCHES; ++i) {
                barrier_init(&shared.summed[i], SUMMERS * SUMS);
                barrier_init(&shared.finished[i], 32);
            }
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncthreads();
    }

    __device__ __forceinline__ bool is_fetcher() const { return threadIdx.x / 32 == FETCHER; }
    __device__ __forceinline__ bool is_finisher() const { return threadIdx.x / 32 == FINISHER; }

    // One lane asks for all units, one behind the other.
    __device__ __forceinline__ void fetch() {
        if (threadIdx.x % 32) return;
        const unsigned long long policy = evict_first();
        int stage = 0, round = 0;
        bool hurry = false;
#pragma unroll 1
        for (int at = 0; at < count; ++at) {
            unsigned long long* full = &shared.full[stage];
            if (round) barrier_wait(&shared.empty[stage], (round - 1) % 2);
            if (at >= FLIGHT && !hurry) {
                hurry = shared.hurry;
                const int landing = at - FLIGHT;
                if (!hurry) barrier_wait(&shared.full[landing % STAGES], landing / STAGES % 2);
            }
            const int pair = (first + at) * UNIT;
            const __nv_bfloat16* low = work.row(pair, 0);
            if (Work::TOGETHER) {
                const unsigned int rows = min(2 * UNIT, work.rows() - 2 * pair);
                barrier_expect(full, rows * ROW_BYTES);
                bulk_copy(shared.ring[stage][0], low, rows * ROW_BYTES, full, policy);
            } else {
                const unsigned int rows = min(UNIT, work.pairs - pair);
                barrier_expect(full, 2 * rows * ROW_BYTES);
                bulk_copy(shared.ring[stage][0], low, rows * ROW_BYTES, full, policy);
                bulk_copy(
                    shared.ring[stage][UNIT], work.row(pair, 1), rows * ROW_BYTES, full, policy);
            }
            if (++stage == STAGES) stage = 0, ++round;
        }
    }

    // The sums of a unit, for one lane's chunks. Of rows that are not there they mean nothing.
    __device__ __forceinline__ void add_up(
        const unsigned char (*rows)[ROW_BYTES], const Vectors& vectors, float (&sum)[SUMS]) {
#pragma unroll
        for (int i = 0; i < SUMS; ++i) sum[i] = 0.0f;
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int chunk = threadIdx.x + 32 * SUMMERS * i;
            if (CHUNKS % (32 * SUMMERS) == 0 || chunk < CHUNKS) {
#pragma unroll
                for (int which = 0; which < 2 * UNIT; ++which) {
                    const int pair = which / 2, half = which % 2;
                    const uint4 eight = *reinterpret_cast<const uint4*>(
                        rows[Work::TOGETHER ? which : half * UNIT + pair] + chunk * 16);
                    const unsigned int words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        // A bfloat16 is the upper half of the float of the same value.
                        const float even = __uint_as_float(words[j] << 16);
                        const float odd = __uint_as_float(words[j] & 0xffff0000u);
#pragma unroll
                        for (int b = 0; b < VECTORS; ++b) {
                            float& s = sum[which * VECTORS + b];
                            s = fmaf(even, vectors.at[b][i][2 * j], s);
                            s = fmaf(odd, vectors.at[b][i][2 * j + 1], s);
                        }
                    }
                }
            }
        }
    }

    // A summing warp's part.
    __device__ __forceinline__ void sum(const Vectors& vectors) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        // A use of a value that was loaded, so that this is behind the load.
        if (threadIdx.x == 0) shared.hurry = __float_as_int(vectors.at[0][0][0]) | 1;
        int stage = 0, phase = 0;
#pragma unroll 1
        for (int at = 0; at < count; ++at) {
            barrier_wait(&shared.full[stage], phase);
            float sum[SUMS];
            add_up(shared.ring[stage], vectors, sum);
            __syncwarp();
            if (lane == 0) barrier_arrive(&shared.empty[stage]);
            const float total = sum_over_lanes(sum);
            const int bench = at % BENCHES;
            if (at >= BENCHES) barrier_wait(&shared.finished[bench], (at / BENCHES - 1) % 2);
            if (lane % (32 / SUMS) == 0) {
                shared.sums[bench][lane / (32 / SUMS)][warp] = total;
                barrier_arrive(&shared.summed[bench]);
            }
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
    }

    // The finisher's part. Only behind wait_for_previous. A lane has every so many pairs of a
    // vector, and loads what the next of them needs as soon as it is done with one.
    __device__ __forceinline__ void finish(int batch) {
        constexpr int APART = 32 / VECTORS;
        const int lane = threadIdx.x % 32, b = lane % VECTORS;
        const int begin = first * UNIT, end = min(begin + count * UNIT, work.pairs);
        int mine = b < batch ? begin + lane / VECTORS : end;
        if (mine < end) work.early(mine, b);
#pragma unroll 1
        for (int at = 0; at < count; ++at) {
            const int bench = at % BENCHES, here = begin + at * UNIT;
            barrier_wait(&shared.summed[bench], at / BENCHES % 2);
            const bool now = mine < min(here + UNIT, end);
            float low = 0.0f, high = 0.0f;
            if (now) {
                const int which = (mine - here) * 2 * VECTORS + b;
                low = sum_of_summers(shared.sums[bench][which]);
                high = sum_of_summers(shared.sums[bench][which + VECTORS]);
            }
            barrier_arrive(&shared.finished[bench]);
            if (now) {
                work.finish(shared, mine, b, low, high);
                mine += APART;
                if (mine < end) work.early(mine, b);
            }
        }
    }
};

// What a block does, from the first instruction on: `vectors` is float32 [batch, K], and `gain` of
// the norm ahead float32 [K], or null where there is no norm.
template <bool NORMED, typename Work>
__device__ __forceinline__ void stream_rows(
    Work& work, const float* vectors, const float* gain, int batch) {
    extern __shared__ __align__(128) unsigned char memory[];
    let_next_start();
    Stream<Work> stream(memory, work);
    if (stream.is_fetcher()) {
        stream.fetch();
    } else if (stream.is_finisher()) {
        wait_for_previous();
        stream.finish(batch);
        work.end(batch);
    } else {
        Gain own_gain;
        if (NORMED) own_gain.load(gain);
        wait_for_previous();
        Vectors own;
        own.load(vectors, batch);
        if (NORMED) own_gain.apply(own, stream.shared);
        stream.sum(own);
    }
}
