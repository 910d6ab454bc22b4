// linear: y[m, n] = activation(sum over k of x[m, k] * weight[n, k] + bias[n])
//
// For batches of a few hundred at most, where one block a tile would leave most multiprocessors
// without work: a cluster of 8 blocks shares a tile of y, each sums an eighth of k, and reads its
// part of the others' sums from their shared memory. Inside of a block, groups of threads share the
// eighth, each thread with 4 x 4 or 8 x 4 sums in registers. float32 throughout, and the order of
// additions is the same every time. Before sm_90 there are no clusters: one block does a tile.

#if __CUDA_ARCH__ >= 900
#define CLUSTER __cluster_dims__(1, 1, 8)
constexpr int SPLIT = 8;
#else
#define CLUSTER
constexpr int SPLIT = 1;
#endif

constexpr int THREADS = 256;

__device__ __forceinline__ unsigned int shared_address(const void* pointer) {
    return (unsigned int)__cvta_generic_to_shared(pointer);
}

// Sixteen bytes on their way into shared memory; zeros where `there` is false.
__device__ __forceinline__ void fetch(float* to, const float* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void fetched() {
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
}

__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n\t"
        "barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

// What stands at the same place in the shared memory of another block of the cluster.
__device__ __forceinline__ float remote(const float* local, int block) {
#if __CUDA_ARCH__ >= 900
    unsigned int address;
    float value;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(address)
        : "r"(shared_address(local)), "r"(block));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
#else
    return *local;
#endif
}

// Rows of one operand from `first` on, and `count` of k from `k0` on, into shared memory.
template <int TILE, int PITCH>
__device__ __forceinline__ void load_rows(
    float* rows, const float* from, int first, int extent, int k, int k0, int count, bool wide) {
    const int fours = (count + 3) / 4;
    for (int i = threadIdx.x; i < TILE * fours; i += THREADS) {
        const int row = i / fours, column = i % fours * 4;
        const bool there = first + row < extent;
        const float* source = from + (long long)(there ? first + row : 0) * k + k0 + column;
        float* target = rows + row * PITCH + column;
        if (wide) {
            fetch(target, source, there);
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j)
                target[j] = there && column + j < count ? source[j] : 0.0f;
        }
    }
}

// TILE: rows and columns of y that a cluster sums. M, N: rows and columns of a thread. GROUPS: of
// threads; k is dealt to them by fours. CHUNK: of k in shared memory at once.
template <int TILE, int M, int N, int GROUPS, int CHUNK>
__device__ __forceinline__ void sum_tile(
    const float* x, const float* weight, const float* bias, float* y, int batch, int n, int k,
    int relu) {
    constexpr int MEMBERS = THREADS / GROUPS, DOWN = TILE / M, ACROSS = TILE / N;
    static_assert(DOWN * ACROSS == MEMBERS, "a group has a thread for each part of the tile");
    constexpr int PITCH = CHUNK + 4;  // so that the fours of eight rows lie in different banks
    constexpr int SUM_PITCH = TILE + 4;
    static_assert(GROUPS * SUM_PITCH <= 2 * PITCH, "the groups' sums fit where the operands were");

    __shared__ __align__(16) float memory[2 * TILE * PITCH];
    if (blockIdx.z >= SPLIT) return;
    const int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
    const int group = threadIdx.x / MEMBERS;
    const int tm = threadIdx.x % DOWN, tn = threadIdx.x % MEMBERS / DOWN;
    const bool wide = k % 4 == 0 && ((unsigned long long)x | (unsigned long long)weight) % 16 == 0;
    const int share = (k + 4 * SPLIT - 1) / (4 * SPLIT) * 4;
    const int begin = blockIdx.z * share, end = min(k, begin + share);
    const float* left = memory + tm * PITCH;
    const float* right = memory + (TILE + tn) * PITCH;

    float sum[M][N] = {};
    for (int k0 = begin; k0 < end; k0 += CHUNK) {
        const int count = min(CHUNK, end - k0);
        load_rows<TILE, PITCH>(memory, x, m0, batch, k, k0, count, wide);
        load_rows<TILE, PITCH>(memory + TILE * PITCH, weight, n0, n, k, k0, count, wide);
        fetched();
#pragma unroll 2
        for (int i = 4 * group; i < count; i += 4 * GROUPS) {
            float4 a[M], b[N];
#pragma unroll
            for (int r = 0; r < M; ++r)
                a[r] = *reinterpret_cast<const float4*>(left + r * DOWN * PITCH + i);
#pragma unroll
            for (int c = 0; c < N; ++c)
                b[c] = *reinterpret_cast<const float4*>(right + c * ACROSS * PITCH + i);
#pragma unroll
            for (int r = 0; r < M; ++r) {
#pragma unroll
                for (int c = 0; c < N; ++c) {
                    sum[r][c] = fmaf(a[r].x, b[c].x, sum[r][c]);
                    sum[r][c] = fmaf(a[r].y, b[c].y, sum[r][c]);
                    sum[r][c] = fmaf(a[r].z, b[c].z, sum[r][c]);
                    sum[r][c] = fmaf(a[r].w, b[c].w, sum[r][c]);
                }
            }
        }
        __syncthreads();
    }

    // The groups' sums one behind the other, and then the block's where the first group's were.
#pragma unroll
    for (int r = 0; r < M; ++r) {
#pragma unroll
        for (int c = 0; c < N; ++c) {
            const int row = group * TILE + tm + r * DOWN;
            memory[row * SUM_PITCH + tn + c * ACROSS] = sum[r][c];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TILE * TILE; i += THREADS) {
        float* place = memory + i / TILE * SUM_PITCH + i % TILE;
        float total = place[0];
#pragma unroll
        for (int g = 1; g < GROUPS; ++g) total += place[g * TILE * SUM_PITCH];
        place[0] = total;
    }

    cluster_barrier();
    constexpr int SHARE = TILE * TILE / SPLIT;
    for (int i = threadIdx.x; i < SHARE; i += THREADS) {
        const int place = blockIdx.z * SHARE + i;
        const int row = m0 + place / TILE, column = n0 + place % TILE;
        const float* local = memory + place / TILE * SUM_PITCH + place % TILE;
        float total = 0.0f;
#pragma unroll
        for (int block = 0; block < SPLIT; ++block) total += remote(local, block);
        if (row < batch && column < n) {
            if (bias) total += bias[column];
            if (relu && total < 0.0f) total = 0.0f;
            y[(long long)row * n + column] = total;
        }
    }
    // The others may still read from here.
    cluster_barrier();
}

// Declared with their attribute first: what reads a definition looks for no attribute there.
extern "C" CLUSTER __global__ void linear_float32(
    const float* x, const float* weight, const float* bias, float* y, int batch, int n, int k,
    int relu);
extern "C" CLUSTER __global__ void linear_float32_wide(
    const float* x, const float* weight, const float* bias, float* y, int batch, int n, int k,
    int relu);

extern "C" __global__ void linear_float32(
    const float* x, const float* weight, const float* bias, float* y, int batch, int n, int k,
    int relu) {
    sum_tile<32, 4, 4, 4, 128>(x, weight, bias, y, batch, n, k, relu);
}

// Larger tiles read each operand half as often.
extern "C" __global__ void linear_float32_wide(
    const float* x, const float* weight, const float* bias, float* y, int batch, int n, int k,
    int relu) {
    sum_tile<64, 8, 4, 2, 64>(x, weight, bias, y, batch, n, k, relu);
}
