// larger: the order in which an argmax looks for the largest: by value, and of equals the one that
// stands first. A NaN is less than anything, minus infinity too; the same as in argmax.cu.
//
// A NaN is held as minus infinity whose place is behind all that are none.

#define NOTHING __int_as_float(0xff800000)  // minus infinity: no math.h under NVRTC
constexpr unsigned int NOWHERE = ~0u;       // where nothing stands yet: behind everything
constexpr unsigned int IS_NAN = 1u << 31;   // of a place

__device__ __forceinline__ bool larger(
    float value, unsigned int place, float than, unsigned int than_place) {
    return value > than || (value == than && place < than_place);
}

// Takes over what stands at an index, where it is larger.
__device__ __forceinline__ void take_larger(
    float value, int index, float& largest, unsigned int& place) {
    unsigned int here = index;
    if (value != value) value = NOTHING, here |= IS_NAN;
    if (larger(value, here, largest, place)) largest = value, place = here;
}

// The largest of all lanes whose numbers agree below bit `least`, left in each of them.
__device__ __forceinline__ void largest_of_lanes(
    float& largest, unsigned int& place, int least = 1) {
#pragma unroll
    for (int lanes = 16; lanes >= least; lanes /= 2) {
        const float other = __shfl_xor_sync(~0u, largest, lanes);
        const unsigned int there = __shfl_xor_sync(~0u, place, lanes);
        if (larger(other, there, largest, place)) largest = other, place = there;
    }
}

__device__ __forceinline__ int index_of(unsigned int place) { return place & ~IS_NAN; }

// The value as it was, NaN among them.
__device__ __forceinline__ float value_at(float value, unsigned int place) {
    return place & IS_NAN ? __int_as_float(0x7fc00000) : value;
}
