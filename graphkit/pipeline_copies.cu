// Copies between device memory and pinned host memory whose addresses stand in pinned memory, too:
// the host moves a request to other arrays by a store, without a call of CUDA's.
//
// To read such a word takes a trip over the bus, a microsecond and more, and trips to one place seem
// to be made one after the other. So one thread a block makes one, blocks are large and few, and the
// first block of a request brings the words of its results along into device memory, where
// fetch_result finds them.
//
// The last block of fetch_result to finish tells the host so by a store as well: of how many launches
// there were, counted on the device, since to read a word of the host's takes microseconds. Every
// block orders what it wrote before its arrival, and the last one orders all arrivals before the
// signal, both at system scope: who reads the signal on the host finds the result behind it.

typedef unsigned long long word;

template <typename Unit>
__device__ __forceinline__ void copy_units(const unsigned char* from, unsigned char* to, word nbytes) {
    const Unit* __restrict__ source = reinterpret_cast<const Unit*>(from);
    Unit* __restrict__ target = reinterpret_cast<Unit*>(to);
    const word count = nbytes / sizeof(Unit), step = (word)gridDim.x * blockDim.x;
    word i = (word)blockIdx.x * blockDim.x + threadIdx.x;
    // Several loads under way a thread: one from the host's memory takes a microsecond and more.
    for (; i + 3 * step < count; i += 4 * step) {
        const Unit a = source[i], b = source[i + step];
        const Unit c = source[i + 2 * step], d = source[i + 3 * step];
        target[i] = a;
        target[i + step] = b;
        target[i + 2 * step] = c;
        target[i + 3 * step] = d;
    }
    for (; i < count; i += step) target[i] = source[i];
}

__device__ __forceinline__ void copy(const unsigned char* from, unsigned char* to, word nbytes) {
    const word bits = (word)from | (word)to | nbytes;
    if (bits % 16 == 0) {
        copy_units<uint4>(from, to, nbytes);
    } else if (bits % 4 == 0) {
        copy_units<unsigned int>(from, to, nbytes);
    } else {
        copy_units<unsigned char>(from, to, nbytes);
    }
}

// volatile: the host changes it between two launches.
__device__ __forceinline__ word host_word(const word* from) {
    return *reinterpret_cast<const volatile word*>(from);
}

// One read for the whole block. Every thread must call it.
__device__ __forceinline__ unsigned char* block_address(const word* from) {
    __shared__ word address;
    if (threadIdx.x == 0) address = host_word(from);
    __syncthreads();
    return reinterpret_cast<unsigned char*>(address);
}

extern "C" __global__ void send_input(
    const word* source, unsigned char* to, word nbytes, const word* targets, word* kept,
    unsigned int count) {
    // Not by the first warp, which would wait for this before it asks for the source.
    if (blockIdx.x == 0 && threadIdx.x >= 32)
        for (unsigned int i = threadIdx.x - 32; i < count; i += blockDim.x - 32)
            kept[i] = host_word(targets + i);
    copy(block_address(source), to, nbytes);
}

extern "C" __global__ void fetch_result(
    const unsigned char* from_, const word* target, word nbytes, word* number, word* signal,
    unsigned int* arrived) {
    if (nbytes) copy(from_, block_address(target), nbytes);
    if (!signal) return;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence_system();
        if (atomicAdd(arrived, 1u) == gridDim.x - 1) {
            *arrived = 0;  // for the next launch, which does not begin before this one has ended
            const word next = *number + 1;
            *number = next;
            __threadfence_system();
            *reinterpret_cast<volatile word*>(signal) = next;
        }
    }
}
