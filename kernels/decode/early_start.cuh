// early_start: the order of kernels with programmatic edges; without one both do nothing

__device__ __forceinline__ void let_next_start() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// What the kernels ahead wrote is there behind this. A kernel comes here whatever it needs: the
// next one waits for this one, and so for those ahead of it.
__device__ __forceinline__ void wait_for_previous() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
