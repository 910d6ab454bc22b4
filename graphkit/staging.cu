// copy_padded: up to COPIES strided copies of one launch, each cut or padded to the target's shape
//
// The units (16 bytes where shape, strides and addresses allow it) of each target are dealt out to
// a share of the blocks. A thread has UNROLL loads under way before it stores the first: many
// threads with one load each serve a small array soonest, few threads with several keep the memory
// busy for a large one. An index is taken apart only where axes could not be merged into one,
// by multiplications while it fits 31 bits. Any grid works, and any block of up to 256 threads.

#ifndef COPIES
#define COPIES 16
#endif

constexpr int AXES = 4;
constexpr int UNROLL = 4;

struct Entry {
    unsigned long long src;
    unsigned long long dst;
    unsigned long long fill[2];        // one unit, repeated over 16 bytes
    unsigned long long count;          // units of the target
    unsigned long long extents[AXES];  // of the target, the innermost axis first, 1 behind the last
    unsigned long long valid[AXES];    // what of it is read from the source; the rest is filled
    long long src_strides[AXES];       // in units
    long long dst_strides[AXES];
    // n / extents[a] = (mulhi(n, magic[a]) + n) >> shift[a] for n < 2^31; 0 on the outermost axis
    unsigned int magic[AXES];
    unsigned int shift[AXES];
    unsigned int axes;
    unsigned int unit;  // bytes moved at once: 1, 2, 4, 8, 16
    unsigned int first_block;
    unsigned int blocks;
};

struct Copies {
    unsigned int ends[COPIES];  // the first block that is not the entry's any more
    Entry entries[COPIES];
};

// staging.py packs it.
static_assert(sizeof(Entry) == 216 && sizeof(Copies) == COPIES * 220, "layout of Copies");

template <typename Unit>
__device__ __forceinline__ Unit fill_unit(const Entry& entry) {
    return (Unit)entry.fill[0];
}

template <>
__device__ __forceinline__ uint4 fill_unit<uint4>(const Entry& entry) {
    const unsigned long long low = entry.fill[0], high = entry.fill[1];
    return make_uint4(
        (unsigned int)low,
        (unsigned int)(low >> 32),
        (unsigned int)high,
        (unsigned int)(high >> 32));
}

// One axis: nothing to take apart.
template <typename Unit>
__device__ __forceinline__ void copy_line(const Entry& entry, unsigned int block) {
    const Unit* const src = reinterpret_cast<const Unit*>(entry.src);
    Unit* const dst = reinterpret_cast<Unit*>(entry.dst);
    const unsigned long long count = entry.count, valid = entry.valid[0];
    const long long src_stride = entry.src_strides[0], dst_stride = entry.dst_strides[0];
    const unsigned long long step = (unsigned long long)entry.blocks * blockDim.x;
    unsigned long long at = (unsigned long long)block * blockDim.x + threadIdx.x;
    if (src_stride == 1 && dst_stride == 1) {  // no gaps: the bulk of it without a condition
        const unsigned long long ahead = (UNROLL - 1) * step;
        for (; at + ahead < valid; at += UNROLL * step) {
            Unit units[UNROLL];
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) units[u] = src[at + u * step];
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) dst[at + u * step] = units[u];
        }
    }
    for (; at < count; at += UNROLL * step) {
        Unit units[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const unsigned long long i = at + u * step;
            units[u] = i < valid ? src[(long long)i * src_stride] : fill_unit<Unit>(entry);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const unsigned long long i = at + u * step;
            if (i < count) dst[(long long)i * dst_stride] = units[u];
        }
    }
}

// What takes an index apart along one axis.
template <typename Index>
struct Divisor;

template <>
struct Divisor<unsigned int> {
    unsigned int magic, shift;
    __device__ __forceinline__ Divisor(const Entry& entry, int axis)
        : magic(entry.magic[axis]), shift(entry.shift[axis]) {}
    __device__ __forceinline__ unsigned int divide(unsigned int n) const {
        return (__umulhi(n, magic) + n) >> shift;
    }
};

template <>
struct Divisor<unsigned long long> {
    unsigned long long extent;  // 0 on the outermost axis
    __device__ __forceinline__ Divisor(const Entry& entry, int axis)
        : extent(axis + 1 < entry.axes ? entry.extents[axis] : 0) {}
    __device__ __forceinline__ unsigned long long divide(unsigned long long n) const {
        return extent ? n / extent : 0;
    }
};

template <typename Unit, typename Index, int LOADS>
__device__ __forceinline__ void copy_axes(const Entry& entry, unsigned int block) {
    const Unit* const src = reinterpret_cast<const Unit*>(entry.src);
    Unit* const dst = reinterpret_cast<Unit*>(entry.dst);
    const int axes = entry.axes;
    const Index count = (Index)entry.count;
    const Index step = (Index)entry.blocks * blockDim.x;
    for (Index at = (Index)block * blockDim.x + threadIdx.x; at < count; at += LOADS * step) {
        Index rest[LOADS];
        bool inside[LOADS];
        long long from[LOADS], to[LOADS];
#pragma unroll
        for (int u = 0; u < LOADS; ++u) {
            rest[u] = at + u * step;
            inside[u] = rest[u] < count;
            from[u] = to[u] = 0;
        }
#pragma unroll
        for (int a = 0; a < AXES; ++a) {
            if (a < axes) {
                const Index valid = (Index)entry.valid[a], extent = (Index)entry.extents[a];
                const long long src_stride = entry.src_strides[a];
                const long long dst_stride = entry.dst_strides[a];
                const Divisor<Index> divisor(entry, a);
#pragma unroll
                for (int u = 0; u < LOADS; ++u) {
                    const Index outer = divisor.divide(rest[u]);
                    const Index i = rest[u] - outer * extent;
                    inside[u] = inside[u] && i < valid;
                    from[u] += (long long)i * src_stride;
                    to[u] += (long long)i * dst_stride;
                    rest[u] = outer;
                }
            }
        }
        Unit units[LOADS];
#pragma unroll
        for (int u = 0; u < LOADS; ++u)
            units[u] = inside[u] ? src[from[u]] : fill_unit<Unit>(entry);
#pragma unroll
        for (int u = 0; u < LOADS; ++u) {
            if (at + u * step < count) dst[to[u]] = units[u];
        }
    }
}

template <typename Unit>
__device__ __forceinline__ void copy(const Entry& entry, unsigned int block) {
    if (entry.axes == 1) {
        copy_line<Unit>(entry, block);
    } else if (entry.count < 1ull << 31) {
        copy_axes<Unit, unsigned int, UNROLL>(entry, block);
    } else {
        copy_axes<Unit, unsigned long long, 1>(entry, block);
    }
}

// Six blocks at once on a multiprocessor: 96 KiB of loads under way.
extern "C" __global__ void __launch_bounds__(256, 6)
    copy_padded(const __grid_constant__ Copies copies) {
    for (unsigned int block = blockIdx.x; block < copies.ends[COPIES - 1]; block += gridDim.x) {
        int index = 0;
#pragma unroll
        for (int i = 0; i < COPIES - 1; ++i) index += block >= copies.ends[i];
        const Entry& entry = copies.entries[index];
        const unsigned int share = block - entry.first_block;
        switch (entry.unit) {
            case 16: copy<uint4>(entry, share); break;
            case 8: copy<unsigned long long>(entry, share); break;
            case 4: copy<unsigned int>(entry, share); break;
            case 2: copy<unsigned short>(entry, share); break;
            default: copy<unsigned char>(entry, share); break;
        }
    }
}
