// Tiles of products with a batch: sum[n, b] = sum over k of weight[n, k] * input[b, k]
//
// For batches of 8 to 64, where a matrix is read once and memory is what costs. A tile is ROWS rows
// of the weights by the whole batch. The weights are the left operand of mma.sync (16 rows), the
// batch is the right one (8 columns). DEPTH of k at a time goes by cp.async through a ring of
// STAGES in shared memory, laid out so that neither the copies nor ldmatrix meet a bank twice.
//
// Inputs are float16, which has three bits more than bfloat16. Weights lie in memory as bfloat16
// and are converted in registers: of a block one warp alone has a weight, so that happens once.
//
// The first half of the threads copies weights, the second half inputs: a thread's copies finish in
// order, so the weights, which may set out before the kernel ahead has ended, hold up no input, and
// a stage is there once each thread waited for its own part and all met at a barrier.
//
// Where there are fewer tiles than multiprocessors, a cluster of SPLIT blocks shares a tile, each
// with a part of k; within a block, WARP_SPLIT groups of warps share a stage. All parts are written
// to shared memory and added up in the same order every time, each block for its part of the batch.

#include "bfloat16.cuh"
#include "early_start.cuh"
#include "half.cuh"
#include "shared_copies.cuh"

constexpr int ROW_WARPS = ROWS / WARP_ROWS;
constexpr int THREADS = 32 * ROW_WARPS * WARP_SPLIT;
constexpr int LOADERS = THREADS / 2;  // threads that copy weights, and as many that copy inputs
constexpr int CHUNKS = DEPTH / 8;     // of 16 bytes in a row of a stage
constexpr int WEIGHT_BYTES = ROWS * DEPTH * 2;
constexpr int STAGE_BYTES = (ROWS + BATCH) * DEPTH * 2;
constexpr int DOWN = WARP_ROWS / 16, ACROSS = BATCH / 8;  // products of a warp
constexpr int STEPS = DEPTH / 16 / WARP_SPLIT;            // of 16 of k, of a warp in a stage
constexpr int PITCH = ROWS + 4;                           // so that a warp's sums lie in 32 banks
// Of the batch, what a block finishes; a macro, since not every kernel has use for it.
#define SHARE (BATCH / SPLIT)

static_assert(BATCH == 8 || (BATCH % 16 == 0 && BATCH <= 64), "whole products across, by twos");
static_assert(WARP_ROWS % 16 == 0 && ROWS % WARP_ROWS == 0, "whole products down");
static_assert(DEPTH % (16 * WARP_SPLIT) == 0, "the groups of warps have equal parts of a stage");
static_assert(DEPTH == 32 || DEPTH % 64 == 0, "the layout of a stage is for these");
static_assert(SPLIT >= 1 && SPLIT <= 8 && BATCH % SPLIT == 0, "a cluster fits on any device");
static_assert(THREADS >= 64 && THREADS <= 1024, "two kinds of loaders");
static_assert(LOADERS % CHUNKS == 0, "whole rows of a stage at once");
static_assert(STAGES >= 2, "one stage is added up while others are on their way");

extern __shared__ __align__(1024) unsigned char ring[];

#define ONE_TILE (1 << 30)  // stages: more than any tile has

// --- stages on their way -------------------------------------------------------------------------

// Where a chunk of a row lies in a stage: any 8 neighbouring rows have the same chunk in all banks.
__device__ __forceinline__ int place(int row, int chunk) {
    const int turn = DEPTH == 32 ? row / 2 % 4 : row % 8;
    return row * (DEPTH * 2) + ((chunk ^ turn) << 4);
}

// Sixteen bytes on their way; zeros where `there` is false.
__device__ __forceinline__ void fetch_weight(
    unsigned int to, const void* from, bool there, unsigned long long policy) {
    asm volatile(
        "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to),
        "l"(from), "r"(there ? 16 : 0), "l"(policy)
        : "memory");
}

__device__ __forceinline__ void fetch_input(unsigned int to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until no more than PENDING of this thread's last groups are on their way.
template <int PENDING>
__device__ __forceinline__ void arrived() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Matrices of 8 x 8, whose rows of 16 bytes are where lanes 0 to 7, 8 to 15 and so on say.
__device__ __forceinline__ void load_four(unsigned int (&to)[4], unsigned int row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

__device__ __forceinline__ void load_two(unsigned int (&to)[2], unsigned int row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(row)
                 : "memory");
}

// c += a * b, of 16 x 16 and 16 x 8.
__device__ __forceinline__ void multiply(
    float (&c)[4], const unsigned int (&a)[4], const unsigned int* b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The sums of a tile that this warp has: DOWN x ACROSS products of 16 rows by 8 of the batch. A
// thread has rows lane / 4 and lane / 4 + 8, columns lane % 4 * 2 and the next, of each.
struct Sums {
    float of[DOWN][ACROSS][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < DOWN; ++m) {
#pragma unroll
            for (int n = 0; n < ACROSS; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) of[m][n][i] = 0.0f;
            }
        }
    }

    // Add up a stage: the products of its weights and its inputs.
    __device__ __forceinline__ void add(unsigned int stage) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int turn = DEPTH == 32 ? lane / 2 % 4 : lane % 8;  // as in place
        const int step0 = warp / ROW_WARPS * STEPS;
        const unsigned int weights =
            stage + (warp % ROW_WARPS * WARP_ROWS + lane % 16) * (DEPTH * 2);
        const int b_row = ACROSS == 1 ? lane % 8 : lane % 8 + lane / 16 * 8;
        const unsigned int inputs = stage + WEIGHT_BYTES + b_row * (DEPTH * 2);
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            const int chunk = (step0 + step) * 2;
            const int a_chunk = (chunk + lane / 16) ^ turn, b_chunk = (chunk + lane / 8 % 2) ^ turn;
            unsigned int a[DOWN][4];
#pragma unroll
            for (int m = 0; m < DOWN; ++m) {
                load_four(a[m], weights + a_chunk * 16 + m * (16 * DEPTH * 2));
#pragma unroll
                for (int i = 0; i < 4; ++i) a[m][i] = to_half_pair(a[m][i]);
            }
            if (ACROSS == 1) {
                unsigned int b[2];
                load_two(b, inputs + b_chunk * 16);
#pragma unroll
                for (int m = 0; m < DOWN; ++m) multiply(of[m][0], a[m], b);
            }
#pragma unroll
            for (int n = 0; n + 1 < ACROSS; n += 2) {
                unsigned int b[4];
                load_four(b, inputs + b_chunk * 16 + n * (8 * DEPTH * 2));
#pragma unroll
                for (int m = 0; m < DOWN; ++m) {
                    multiply(of[m][n], a[m], b);
                    multiply(of[m][n + 1], a[m], b + 2);
                }
            }
        }
    }
};

// A thread copies the same chunk of every AT_ONCEth row of a stage.
constexpr int AT_ONCE = LOADERS / CHUNKS;

// The way of `count` stages through the ring, as this thread goes it. Where says what the weights
// are: row(r) is row r of the tile, of K elements; has(r) whether there is one, as everywhere if
// WHOLE; STEP elements lie between rows that are AT_ONCE apart, or it is 0 where that differs.
// After every TURN stages there comes another tile: tile_after(n) is the one after n of them.
template <int K, typename Where>
struct Stages {
    Where where;
    const __half* input;  // [BATCH, K]
    int rows, count;      // rows of it that are no padding; stages
    int first;            // of k, in stages

    // Of what is sent next: the ring's place, and this thread's chunk of its first row there.
    unsigned int slot;
    const unsigned short* from;  // bfloat16 or float16: it is only copied
    int k, sent;                 // and how many stages were
    Where now;                   // the tile that it is of
    unsigned int read_slot;      // of what is added up next
    unsigned long long policy;

    __device__ __forceinline__ static bool loads_weights() { return threadIdx.x < LOADERS; }
    __device__ __forceinline__ static int own_row() { return threadIdx.x % LOADERS / CHUNKS; }
    __device__ __forceinline__ static int own_chunk() { return threadIdx.x % CHUNKS; }

    __device__ __forceinline__ void start() {
        slot = read_slot = shared_address(ring);
        policy = evict_first();
        sent = 0;
        start_tile();
    }

    __device__ __forceinline__ void start_tile() {
        now = where.tile_after(sent / Where::TURN);
        k = first * DEPTH + own_chunk() * 8;
        if (!loads_weights()) {
            from = reinterpret_cast<const unsigned short*>(input) + own_row() * K + k;
        } else if (Where::STEP != 0) {
            from = reinterpret_cast<const unsigned short*>(now.row(own_row())) + k;
        }
    }

    // To the row `row0 + own_row()` of the stage: neighbours of 8 rows keep their order of chunks.
    __device__ __forceinline__ static int place_of(int row0) {
        return AT_ONCE % 8 == 0 ? place(own_row(), own_chunk()) + row0 * (DEPTH * 2)
                                : place(row0 + own_row(), own_chunk());
    }

    // What is not there is not read, but its address is good all the same.
    __device__ __forceinline__ void send() {
        if (loads_weights()) {
#pragma unroll
            for (int row0 = 0; row0 < ROWS; row0 += AT_ONCE) {
                const int row = row0 + own_row();
                if (row0 + AT_ONCE > ROWS && row >= ROWS) break;
                const bool there = (Where::WHOLE || now.has(row)) && (K % DEPTH == 0 || k < K);
                const void* source = input;
                if (there && Where::STEP != 0)
                    source = from + (long long)(row0 / AT_ONCE) * Where::STEP;
                else if (there)
                    source = now.row(row) + k;
                fetch_weight(slot + place_of(row0), source, there, policy);
            }
        } else {
#pragma unroll
            for (int row0 = 0; row0 < BATCH; row0 += AT_ONCE) {
                const int row = row0 + own_row();
                if (row0 + AT_ONCE > BATCH && row >= BATCH) break;
                const bool there = row < rows && (K % DEPTH == 0 || k < K);
                const void* source = input;
                if (there) source = from + row0 * K;
                fetch_input(slot + WEIGHT_BYTES + place_of(row0), source, there);
            }
        }
        slot += STAGE_BYTES;
        if (slot == shared_address(ring) + STAGES * STAGE_BYTES) slot = shared_address(ring);
        from += DEPTH;
        k += DEPTH;
        if (++sent % Where::TURN == 0) start_tile();
    }

    // Before wait_for_previous: nobody writes weights.
    __device__ __forceinline__ void begin_weights() {
        if (!loads_weights()) return;
#pragma unroll 1
        for (int stage = 0; stage < STAGES; ++stage) {
            if (stage < count) send();
            commit();
        }
    }

    __device__ __forceinline__ void begin_inputs() {
        if (loads_weights()) return;
#pragma unroll 1
        for (int stage = 0; stage < STAGES; ++stage) {
            if (stage < count) send();
            commit();
        }
    }

    // Wait for a stage, and send another one to where the one before it was.
    __device__ __forceinline__ unsigned int next(int stage) {
        if (stage == 0) {
            arrived<STAGES - 1>();
            __syncthreads();
        } else {
            arrived<STAGES - 2>();
            __syncthreads();  // and the stage before this one is no longer read
            if (stage - 1 + STAGES < count) send();
            commit();
        }
        const unsigned int here = read_slot;
        read_slot += STAGE_BYTES;
        if (read_slot == shared_address(ring) + STAGES * STAGE_BYTES)
            read_slot = shared_address(ring);
        return here;
    }
};

// Where the rows of a matrix [N, K] are, in their order. A block has one tile; with EACH stages to
// a tile it has one after the other, gridDim.x apart.
template <int N, int K, int EACH = ONE_TILE>
struct Matrix {
    static constexpr bool WHOLE = N % ROWS == 0;
    static constexpr int TURN = EACH;
    static constexpr long long STEP = (long long)AT_ONCE * K;

    const __nv_bfloat16* weight;
    int tile;

    __device__ __forceinline__ bool has(int row) const { return tile * ROWS + row < N; }

    __device__ __forceinline__ const __nv_bfloat16* row(int row) const {
        return weight + ((long long)tile * ROWS + row) * K;
    }

    __device__ __forceinline__ Matrix tile_after(int turns) const {
        return {weight, TURN == ONE_TILE ? tile : tile + turns * (int)gridDim.x};
    }
};

// --- a tile that a cluster shares ----------------------------------------------------------------

__device__ __forceinline__ int tile_of_block() { return blockIdx.x / SPLIT; }
__device__ __forceinline__ int rank_of_block() { return blockIdx.x % SPLIT; }

// This block's part of the stages of K.
template <int K>
struct Part {
    static constexpr int STAGES_OF_K = (K + DEPTH - 1) / DEPTH;
    static constexpr int MOST = (STAGES_OF_K + SPLIT - 1) / SPLIT;

    __device__ __forceinline__ static int first() { return rank_of_block() * MOST; }
    __device__ __forceinline__ static int count() {
        return max(0, min(MOST, STAGES_OF_K - first()));
    }
};

__device__ __forceinline__ void cluster_arrive() {
    if (SPLIT > 1) asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
    if (SPLIT > 1) asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Write this warp's sums where all blocks of the cluster find them. The block must have met since
// it read its last stage: the sums lie where the stages were.
__device__ __forceinline__ void publish(const Sums& sums) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* partial = reinterpret_cast<float*>(ring) + warp / ROW_WARPS * BATCH * PITCH +
                     lane % 4 * 2 * PITCH + warp % ROW_WARPS * WARP_ROWS + lane / 4;
#pragma unroll
    for (int m = 0; m < DOWN; ++m) {
#pragma unroll
        for (int n = 0; n < ACROSS; ++n) {
            float* to = partial + n * 8 * PITCH + m * 16;
            to[0] = sums.of[m][n][0];
            to[PITCH] = sums.of[m][n][1];
            to[8] = sums.of[m][n][2];
            to[PITCH + 8] = sums.of[m][n][3];
        }
    }
    if (SPLIT > 1) {
        cluster_arrive();
        cluster_wait();
    } else {
        __syncthreads();
    }
}

// The same place in the shared memory of another block of the cluster.
__device__ __forceinline__ unsigned int peer(unsigned int local, int block) {
    unsigned int address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(local), "r"(block));
    return address;
}

__device__ __forceinline__ float4 load_sums(unsigned int from) {
    float4 sums;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(sums.x), "=f"(sums.y), "=f"(sums.z), "=f"(sums.w)
                 : "r"(from)
                 : "memory");
    return sums;
}

// Four neighbouring rows of the tile, of which the first is a multiple of 4, for b of the batch.
__device__ __forceinline__ float4 total(int b, int row) {
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
    const unsigned int local =
        shared_address(reinterpret_cast<const float*>(ring) + b * PITCH + row);
#pragma unroll
    for (int block = 0; block < SPLIT; ++block) {
        const unsigned int from = SPLIT > 1 ? peer(local, block) : local;
#pragma unroll
        for (int group = 0; group < WARP_SPLIT; ++group) {
            const float4 part = load_sums(from + group * (BATCH * PITCH * 4));
            sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
        }
    }
    return sum;
}

// --- the RMSNorm that was left out ---------------------------------------------------------------

// Add up the squares of each row of the batch, from all parts of the columns; and behind a barrier
// of the block make 1 / rms of them, which is there behind the next barrier.
struct Norm {
    static constexpr int SHARES = THREADS / BATCH < 1 ? 1 : THREADS / BATCH;

    float share[SHARES][BATCH], scale[BATCH];

    __device__ __forceinline__ void read(const float* squares, int parts) {
        for (int i = threadIdx.x; i < SHARES * BATCH; i += THREADS) {
            float sum = 0.0f;
#pragma unroll 4
            for (int part = i / BATCH; part < parts; part += SHARES)
                sum += __ldcg(squares + part * BATCH + i % BATCH);
            share[i / BATCH][i % BATCH] = sum;
        }
    }

    __device__ __forceinline__ void finish(int width, float eps) {
        for (int b = threadIdx.x; b < BATCH; b += THREADS) {
            float sum = 0.0f;
#pragma unroll 4
            for (int i = 0; i < SHARES; ++i) sum += share[i][b];
            scale[b] = rsqrtf(sum / (float)width + eps);
        }
    }
};
