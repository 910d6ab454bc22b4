// larger: the order in which an argmax looks for the largest: by value, and of equals the one that
// stands first. A NaN is less than anything.

#define NOTHING __int_as_float(0xff800000)  // minus infinity: no math.h under NVRTC
constexpr int NOWHERE = 0x7fffffff;  // where nothing stands yet: behind everything

__device__ __forceinline__ bool larger(float value, int index, float than, int than_index) {
    return value > than || (value == than && index < than_index);
}

__device__ __forceinline__ float comparable(float value) {
    return value != value ? NOTHING : value;
}
