// linear: y[m, n] = activation(sum over k of x[m, k] * weight[n, k] + bias[n])
//
// For batches of a few hundred at most, where one block a tile would leave most multiprocessors
// without work: a cluster of 8 blocks shares a tile of 32 x 32, each sums an eighth of k, and reads
// its part of the others' sums from their shared memory. Inside of a block, four groups of threads
// share the eighth, each thread with 4 x 4 sums in registers. float32 throughout, and the order of
// additions is the same every time. Before sm_90 there are no clusters: one block does a tile.

#if __CUDA_ARCH__ >= 900
#define CLUSTER __cluster_dims__(1, 1, 8)
constexpr int SPLIT = 8;
#else
#define CLUSTER
constexpr int SPLIT = 1;
#endif

constexpr int TILE = 32;          // rows and columns of y that a cluster sums
constexpr int THREADS = 256;
constexpr int GROUPS = 4;         // of threads; k is dealt to them by fours
constexpr int CHUNK = 128;        // of k in shared memory at once
constexpr int PITCH = CHUNK + 4;  // so that the fours of eight rows lie in different banks
constexpr int SUM_PITCH = TILE + 4;

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
__device__ __forceinline__ void load_rows(
    float (*rows)[PITCH], const float* from, int first, int extent, int k, int k0, int count,
    bool wide) {
    const int fours = (count + 3) / 4;
    for (int i = threadIdx.x; i < TILE * fours; i += THREADS) {
        const int row = i / fours, column = i % fours * 4;
        const bool there = first + row < extent;
        const float* source = from + (long long)(there ? first + row : 0) * k + k0 + column;
        if (wide) {
            fetch(&rows[row][column], source, there);
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j)
                rows[row][column + j] = there && column + j < count ? source[j] : 0.0f;
        }
    }
}

// Declared with its attribute first: what reads the definition looks for no attribute there.
extern "C" CLUSTER __global__ void linear_float32(
    const float* x, const float* weight, const float* bias, float* y, int batch, int n, int k,
    int relu);

extern "C" __global__ void linear_float32(
    const float* x, const float* weight, const float* bias, float* y, int batch, int n, int k,
    int relu) {
    __shared__ __align__(16) float rows[2][TILE][PITCH];
    __shared__ float sums[TILE * TILE];
    if (blockIdx.z >= SPLIT) return;
    const int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
    const int group = threadIdx.x / (THREADS / GROUPS);
    const int tm = threadIdx.x % 8, tn = threadIdx.x % (THREADS / GROUPS) / 8;
    const bool wide = k % 4 == 0 && ((unsigned long long)x | (unsigned long long)weight) % 16 == 0;
    const int share = (k + 4 * SPLIT - 1) / (4 * SPLIT) * 4;
    const int begin = blockIdx.z * share, end = min(k, begin + share);

    float sum[4][4] = {};
    for (int k0 = begin; k0 < end; k0 += CHUNK) {
        const int count = min(CHUNK, end - k0);
        load_rows(rows[0], x, m0, batch, k, k0, count, wide);
        load_rows(rows[1], weight, n0, n, k, k0, count, wide);
        fetched();
#pragma unroll 2
        for (int i = 4 * group; i < count; i += 4 * GROUPS) {
            float4 a[4], b[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                a[r] = *reinterpret_cast<const float4*>(&rows[0][tm + 8 * r][i]);
                b[r] = *reinterpret_cast<const float4*>(&rows[1][tn + 8 * r][i]);
            }
#pragma unroll
            for (int r = 0; r < 4; ++r) {
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    sum[r][c] = fmaf(a[r].x, b[c].x, sum[r][c]);
                    sum[r][c] = fmaf(a[r].y, b[c].y, sum[r][c]);
                    sum[r][c] = fmaf(a[r].z, b[c].z, sum[r][c]);
                    sum[r][c] = fmaf(a[r].w, b[c].w, sum[r][c]);
                }
            }
        }
        __syncthreads();
    }

    // The groups' sums, in the memory that held the operands, then the block's.
    float(*parts)[TILE][SUM_PITCH] = reinterpret_cast<float(*)[TILE][SUM_PITCH]>(&rows[0][0][0]);
    static_assert(GROUPS * TILE * SUM_PITCH <= 2 * TILE * PITCH, "the sums fit");
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) parts[group][tm + 8 * r][tn + 8 * c] = sum[r][c];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TILE * TILE; i += THREADS) {
        float total = 0.0f;
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) total += parts[g][i / TILE][i % TILE];
        sums[i] = total;
    }

    cluster_barrier();
    constexpr int SHARE = TILE * TILE / SPLIT;
    for (int i = threadIdx.x; i < SHARE; i += THREADS) {
        const int place = blockIdx.z * SHARE + i;
        const int row = m0 + place / TILE, column = n0 + place % TILE;
        float total = 0.0f;
#pragma unroll
        for (int block = 0; block < SPLIT; ++block) total += remote(&sums[place], block);
        if (row < batch && column < n) {
            if (bias) total += bias[column];
            if (relu && total < 0.0f) total = 0.0f;
            y[(long long)row * n + column] = total;
        }
    }
    // The others may still read from here.
    cluster_barrier();
}
