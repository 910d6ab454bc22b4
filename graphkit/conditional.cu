// set_conditional: what a device integer holds becomes what a conditional node asks for
//
// One thread of one block. The declaration stands for cudadevrt's header, which NVRTC does not
// bring: the driver itself knows the function, so nothing has to be linked.

extern "C" __device__ __cudart_builtin__ void cudaGraphSetConditional(
    cudaGraphConditionalHandle handle, unsigned int value);

extern "C" __global__ void set_conditional(cudaGraphConditionalHandle handle, const void* flag) {
    cudaGraphSetConditional(handle, *static_cast<const unsigned int*>(flag));
}
