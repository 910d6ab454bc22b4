// Tiles of products with a batch: sum[n, b] = sum over k of weight[n, k] * input[b, k]
//
// For batches of 8 to 64, where a matrix is read once and memory is what costs. A tile is ROWS rows
// of the weights by the whole batch. The weights are the left operand of mma.sync (16 rows by 16 of
// k), the batch is the right one (8 columns).
//
// Weights go from memory straight to the registers that are multiplied. The sum doesn't ask for the
// order of k, as long as both operands have the same: of every 32 of k a lane has 8 neighbours, 16
// bytes, which make its share of two products. AHEAD times 32 of k are on their way to each warp,
// and no warp waits for another one's; the first of them set out before the kernel ahead has ended.
// Weights are bfloat16 in memory and become float16, which the inputs are: it has three bits more.
// Of a block one warp alone has a weight, so that is done once.
//
// Inputs are the whole block's: CHUNK of k at a time go by cp.async to BUFFERS in shared memory.
// Where those hold all of this block's k, a chunk is there once and for all.
//
// Where there are fewer tiles than multiprocessors, a cluster of SPLIT blocks shares a tile, each
// with a part of k; within a block, WARP_SPLIT groups of warps share a chunk. All parts are written
// to shared memory and added up in the same order every time, each block for its part of the batch.

#include "bfloat16.cuh"
#include "half.cuh"

constexpr int ROW_WARPS = ROWS / WARP_ROWS;
constexpr int THREADS = 32 * ROW_WARPS * WARP_SPLIT;
constexpr int DOWN = WARP_ROWS / 16, ACROSS = BATCH / 8;  // products of a warp
constexpr int STEP = 32, ROUND = AHEAD * STEP;            // of k, of a warp
constexpr int ROUNDS = CHUNK / WARP_SPLIT / ROUND;        // of a warp in a chunk
constexpr int PITCH = ROWS + 4;                           // so that a warp's sums lie in 32 banks
// Of a row of inputs in bytes: two neighbouring rows have the same 64 bytes in all banks.
constexpr int INPUT_PITCH = CHUNK * 2 + 64;
// Of the batch, what a block finishes; a macro, since not every kernel has use for it.
#define SHARE (BATCH / SPLIT)

static_assert(BATCH % 8 == 0 && BATCH <= 64, "whole products across");
static_assert(WARP_ROWS % 16 == 0 && ROWS % WARP_ROWS == 0, "whole products down");
static_assert(CHUNK % (WARP_SPLIT * ROUND) == 0, "a group of warps has whole rounds of a chunk");
static_assert(CHUNK % 64 == 0, "the pitch of inputs is for these");
static_assert(SPLIT >= 1 && SPLIT <= 8 && BATCH % SPLIT == 0, "a cluster fits on any device");
static_assert(THREADS <= 1024, "a block's threads");

extern __shared__ __align__(1024) unsigned char shared[];

__device__ __forceinline__ unsigned int shared_address(const void* pointer) {
    return (unsigned int)__cvta_generic_to_shared(pointer);
}

// --- the order of kernels ------------------------------------------------------------------------

// Without a programmatic edge both do nothing.
__device__ __forceinline__ void let_next_start() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// What the kernels ahead wrote is there behind this. Every block must come here, whatever it needs:
// the next kernel waits for this one, and so for those ahead of it.
__device__ __forceinline__ void wait_for_previous() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

// --- a block's part ------------------------------------------------------------------------------

__device__ __forceinline__ int tile_of_block() { return blockIdx.x / SPLIT; }
__device__ __forceinline__ int rank_of_block() { return blockIdx.x % SPLIT; }

// This block's part of the chunks of K.
template <int K>
struct Part {
    static constexpr int CHUNKS = (K + CHUNK - 1) / CHUNK, MOST = (CHUNKS + SPLIT - 1) / SPLIT;
    static constexpr bool EVEN = K % (CHUNK * SPLIT) == 0;  // no part ends before another

    __device__ __forceinline__ static int first() { return rank_of_block() * MOST; }
    __device__ __forceinline__ static int count() {
        return EVEN ? MOST : max(0, min(MOST, CHUNKS - first()));
    }
};

// --- weights -------------------------------------------------------------------------------------

// Weights are read once a step: they shall not push out what is read again.
__device__ __forceinline__ unsigned long long evict_first() {
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// Sixteen bytes on their way; where `there` is false, `to` stays.
__device__ __forceinline__ void load_weights(
    unsigned int (&to)[4], const __nv_bfloat16* from, bool there, unsigned long long policy) {
    asm volatile(
        "{\n"
        ".reg .pred there;\n"
        "setp.ne.s32 there, %5, 0;\n"
        "@there ld.global.L1::no_allocate.L2::cache_hint.L2::128B.v4.u32 "
        "{%0, %1, %2, %3}, [%4], %6;\n"
        "}"
        : "+r"(to[0]), "+r"(to[1]), "+r"(to[2]), "+r"(to[3])
        : "l"(from), "r"((int)there), "l"(policy));
}

// The next round of weights of this warp, on their way. Where says where they are: row(r) is row r
// of the tile, of K elements; beyond the last row there is one as good, whose sums nobody reads.
// Where the same DOWN_STEP is between any rows of a warp that are 16 apart, or HALF_STEP between
// the halves of 16, one address is enough for both; otherwise they are 0.
template <int K, typename Where>
struct Weights {
    static constexpr bool EVEN = Part<K>::EVEN;
    static constexpr int EACH = Where::DOWN_STEP != 0 ? 1 : DOWN;  // addresses; of the halves
    static constexpr int HALVES = Where::HALF_STEP != 0 ? 1 : 2;

    unsigned int words[AHEAD][DOWN][2][4];
    const __nv_bfloat16* from[EACH][HALVES];  // this lane's of the round's first step
    int k;
    unsigned long long policy;

    // Start at this warp's part of the block's first chunk. A lane has rows lane / 4 and
    // lane / 4 + 8 of every 16.
    __device__ __forceinline__ void aim(const Where& where) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        k = Part<K>::first() * CHUNK + warp / ROW_WARPS * (CHUNK / WARP_SPLIT) + lane % 4 * 8;
#pragma unroll
        for (int m = 0; m < EACH; ++m) {
#pragma unroll
            for (int half = 0; half < HALVES; ++half) {
                const int row = warp % ROW_WARPS * WARP_ROWS + m * 16 + half * 8 + lane / 4;
                from[m][half] = where.row(row) + k;
            }
        }
    }

    __device__ __forceinline__ void move(int by) {
        k += by;
#pragma unroll
        for (int m = 0; m < EACH; ++m) {
#pragma unroll
            for (int half = 0; half < HALVES; ++half) from[m][half] += by;
        }
    }

    __device__ __forceinline__ void load(int step, bool wanted) {
        const bool there = wanted && (EVEN || k + step * STEP < K);
#pragma unroll
        for (int m = 0; m < DOWN; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                unsigned int(&to)[4] = words[step][m][half];
                if (!EVEN) to[0] = to[1] = to[2] = to[3] = 0;  // nothing times no input is nothing
                load_weights(to,
                             from[m % EACH][half % HALVES] + m * Where::DOWN_STEP +
                                 half * Where::HALF_STEP + step * STEP,
                             there, policy);
            }
        }
    }

    // Before wait_for_previous: nobody writes weights.
    __device__ __forceinline__ void begin(const Where& where) {
        policy = evict_first();
        aim(where);
#pragma unroll
        for (int step = 0; step < AHEAD; ++step) {
#pragma unroll
            for (int m = 0; m < DOWN; ++m) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) words[step][m][half][i] = 0;
                }
            }
            load(step, true);
        }
    }

    // The left operand of one of a step's two products.
    __device__ __forceinline__ void operand(unsigned int (&a)[4], int step, int m, int second) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            a[i] = to_half_pair(words[step][m][i % 2][second * 2 + i / 2]);
    }
};

// Where the rows of a matrix [N, K] are, in their order.
template <int N, int K>
struct Matrix {
    static constexpr bool WHOLE = N % ROWS == 0;
    static constexpr int HALF_STEP = WHOLE ? 8 * K : 0, DOWN_STEP = 2 * HALF_STEP;

    const __nv_bfloat16* weight;
    int tile;

    __device__ __forceinline__ const __nv_bfloat16* row(int row) const {
        int n = tile * ROWS + row;
        if (!WHOLE) n = min(n, N - 1);
        return weight + (long long)n * K;
    }
};

// --- inputs --------------------------------------------------------------------------------------

// Sixteen bytes on their way; zeros where `there` is false.
__device__ __forceinline__ void fetch_input(unsigned int to, const __half* from, bool there) {
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

// The chunks of a block's inputs, for one tile after the other.
template <int K>
struct Inputs {
    static constexpr int MOST = Part<K>::MOST;
    static constexpr bool ONCE = MOST <= BUFFERS;  // there is room for all of them
    static constexpr int HELD = ONCE ? MOST : BUFFERS;
    static_assert(ONCE || HELD >= 2, "one is multiplied while another one is on its way");

    const __half* input;  // [BATCH, K]
    int rows;             // of it that are no padding
    int tiles;            // that this block does
    int taken;            // chunks so far

    // A warp copies whole rows. What is not there is not read, its address is good all the same.
    __device__ __forceinline__ void send(int number) {
        const int count = ONCE ? Part<K>::count() : tiles * Part<K>::count();
        if (number < count) {
            int thread = threadIdx.x;
            // Worked out anew for each chunk: kept, all the addresses would fill the registers.
            asm volatile("" : "+r"(thread));
            const int row = thread / 32, i = thread % 32 * 8;
            const int k = (Part<K>::first() + number % MOST) * CHUNK + i;
            const __half* from = input + (long long)row * K + k;
            const unsigned int to = shared_address(shared) +
                                    number % HELD * (BATCH * INPUT_PITCH) + row * INPUT_PITCH +
                                    i * 2;
#pragma unroll
            for (int j = 0; j < BATCH; j += THREADS / 32) {
                if (BATCH % (THREADS / 32) != 0 && row + j >= BATCH) break;
#pragma unroll
                for (int l = 0; l < CHUNK; l += 256) {
                    if (CHUNK % 256 != 0 && i + l >= CHUNK) break;
                    const bool in_row = K % CHUNK == 0 || k + l < K;
                    fetch_input(to + j * INPUT_PITCH + l * 2, in_row ? from + j * K + l : input,
                                in_row && row + j < rows);
                }
            }
        }
        commit();
    }

    __device__ __forceinline__ void begin() {
        taken = 0;
#pragma unroll 1
        for (int number = 0; number < HELD; ++number) send(number);
    }

    // Wait for the next chunk, send another one to where the one before it was, and return where it
    // is: the right operand's first row.
    __device__ __forceinline__ const unsigned char* next() {
        if (!ONCE || taken < MOST) {
            if (taken == 0) {
                arrived<HELD - 1>();
                __syncthreads();
            } else {
                arrived<(HELD > 1 ? HELD - 2 : 0)>();
                __syncthreads();  // and the chunk before this one is no longer read
                if (ONCE)
                    commit();  // the same number of groups
                else
                    send(taken - 1 + HELD);
            }
        }
        return shared + taken++ % HELD * (BATCH * INPUT_PITCH);
    }
};

// --- products ------------------------------------------------------------------------------------

// c += a * b, of 16 x 16 and 16 x 8.
__device__ __forceinline__ void multiply(
    float (&c)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
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

    // Add up a round, and send for the next one where there is one. A lane's inputs are at `from`:
    // row lane / 4 of every 8, and the k of its weights.
    template <int K, typename Where>
    __device__ __forceinline__ void add(
        Weights<K, Where>& weights, const unsigned char* from, bool more) {
#pragma unroll
        for (int step = 0; step < AHEAD; ++step) {
            unsigned int a[DOWN][2][4];
#pragma unroll
            for (int m = 0; m < DOWN; ++m) {
                weights.operand(a[m][0], step, m, 0);
                weights.operand(a[m][1], step, m, 1);
            }
            weights.load(step, more);
#pragma unroll
            for (int n = 0; n < ACROSS; ++n) {
                const uint4 b = *reinterpret_cast<const uint4*>(
                    from + n * 8 * INPUT_PITCH + step * (STEP * 2));
#pragma unroll
                for (int m = 0; m < DOWN; ++m) multiply(of[m][n], a[m][0], b.x, b.y);
#pragma unroll
                for (int m = 0; m < DOWN; ++m) multiply(of[m][n], a[m][1], b.z, b.w);
            }
            __syncwarp();  // or the compiler mixes the steps, and has no registers left
        }
    }

    // Add up this block's part of a tile. Behind the last of its weights follow those of `next`,
    // where there is another tile.
    template <int K, typename Where>
    __device__ __forceinline__ void add_tile(
        Weights<K, Where>& weights, Inputs<K>& inputs, bool another, const Where& next) {
        const int lane = threadIdx.x % 32, group = threadIdx.x / 32 / ROW_WARPS;
        const int own = lane / 4 * INPUT_PITCH + lane % 4 * 16 + group * (CHUNK / WARP_SPLIT * 2);
        const unsigned char* from = nullptr;
        clear();
#pragma unroll 1
        for (int left = Part<K>::count() * ROUNDS; left > 0; --left, from += ROUND * 2) {
            if (left % ROUNDS == 0) from = inputs.next() + own;
            if (left > 1)
                weights.move(left % ROUNDS == 1 % ROUNDS ? CHUNK - (ROUNDS - 1) * ROUND : ROUND);
            else if (another)
                weights.aim(next);
            add(weights, from, left > 1 || another);
        }
    }
};

// --- a tile that a cluster shares ----------------------------------------------------------------

__device__ __forceinline__ void cluster_arrive() {
    if (SPLIT > 1) asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
    if (SPLIT > 1) asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Write this warp's sums where all blocks of the cluster find them. The block must have met since
// it read its last chunk: the sums lie where the inputs were.
__device__ __forceinline__ void publish(const Sums& sums) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* partial = reinterpret_cast<float*>(shared) + warp / ROW_WARPS * BATCH * PITCH +
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
        shared_address(reinterpret_cast<const float*>(shared) + b * PITCH + row);
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
