// The C floor of bench/rebind.py: other buffers for a captured graph, without Python.
//
// A shared library, loaded by ctypes into the benchmark's own process. Every function times `count`
// samples, writes their nanoseconds, and returns the first status that is not 0. In sample `i` the
// nodes get buffer `i & 1`.
//
// nvcc -arch=sm_90 -O3 -shared -Xcompiler -fPIC -cudart static rebind.cu -o floor.so

#include <cuda_runtime.h>

#include <chrono>
#include <cstdint>

using Clock = std::chrono::steady_clock;

static int64_t nanoseconds(Clock::time_point start, Clock::time_point stop) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(stop - start).count();
}

#define CHECK(call)                       \
  do {                                    \
    cudaError_t status_ = (call);         \
    if (status_ != cudaSuccess) {         \
      return static_cast<int>(status_);   \
    }                                     \
  } while (0)

// The kernel of all contenders (rebind_setting.py has it for NVRTC).
__global__ void touch(const int* x, int* seen, int n, int step) {
  if (step) {
    seen[0] += step * (x[0] + x[n - 1]);
  }
}

// What one node of a line is given, and the struct over it.
struct Touch {
  const int* x;
  int* seen;
  int n;
  int step;
  void* arguments[4];
  cudaKernelNodeParams params;

  Touch(const int* x, int* seen, int n, int step) : x(x), seen(seen), n(n), step(step), params() {
    arguments[0] = &this->x;
    arguments[1] = &this->seen;
    arguments[2] = &this->n;
    arguments[3] = &this->step;
    params.func = reinterpret_cast<void*>(touch);
    params.gridDim = dim3(1);
    params.blockDim = dim3(1);
    params.kernelParams = arguments;
  }
};

static cudaError_t set_nodes(cudaGraphExec_t exec, cudaGraphNode_t* nodes, int node_count,
                             Touch* touch, const int* x) {
  touch->x = x;
  cudaError_t first = cudaSuccess;
  for (int k = 0; k < node_count; ++k) {
    cudaError_t status = cudaGraphExecKernelNodeSetParams(exec, nodes[k], &touch->params);
    if (status != cudaSuccess) first = status;
  }
  return first;
}

// What is done around a sample.
enum Mode { kEnqueue = 0, kDrained = 1, kWaited = 2 };

// Times the statements that set `status`, drained before and waited for as `mode` says.
#define SAMPLE(mode, stream, slot, ...)                                   \
  do {                                                                    \
    if ((mode) != kEnqueue) CHECK(cudaStreamSynchronize(stream));         \
    cudaError_t status = cudaSuccess;                                     \
    auto start_ = Clock::now();                                           \
    __VA_ARGS__                                                           \
    if ((mode) == kWaited) cudaStreamSynchronize(stream);                 \
    auto stop_ = Clock::now();                                            \
    (slot) = nanoseconds(start_, stop_);                                  \
    CHECK(status);                                                        \
  } while (0)

extern "C" {

// What two readings of the clock cost with nothing between them.
int floor_clock(int count, int64_t* ns) {
  for (int r = 0; r < count; ++r) {
    auto start = Clock::now();
    auto stop = Clock::now();
    ns[r] = nanoseconds(start, stop);
  }
  return 0;
}

// A line of kernel nodes, each after the one before; the caller destroys the graph.
int floor_line(const int* x, int* seen, int n, int step, int node_count, cudaGraphNode_t* nodes,
               cudaGraph_t* graph) {
  Touch touch(x, seen, n, step);
  CHECK(cudaGraphCreate(graph, 0));
  for (int k = 0; k < node_count; ++k) {
    CHECK(cudaGraphAddKernelNode(&nodes[k], *graph, k ? &nodes[k - 1] : nullptr, k ? 1 : 0,
                                 &touch.params));
  }
  return 0;
}

// cudaGraphExecKernelNodeSetParams for every node.
int floor_rebind(cudaGraphExec_t exec, cudaGraphNode_t* nodes, int node_count, const int* const* xs,
                 int* seen, int n, int step, int first, int count, int64_t* ns) {
  Touch touch(xs[0], seen, n, step);
  for (int r = 0; r < count; ++r) {
    const int* x = xs[(first + r) & 1];
    SAMPLE(kEnqueue, nullptr, ns[r], status = set_nodes(exec, nodes, node_count, &touch, x););
  }
  return 0;
}

// The same, and cudaGraphLaunch.
int floor_rebind_launch(cudaGraphExec_t exec, cudaGraphNode_t* nodes, int node_count,
                        const int* const* xs, int* seen, int n, int step, cudaStream_t stream,
                        int mode, int first, int count, int64_t* ns) {
  Touch touch(xs[0], seen, n, step);
  for (int r = 0; r < count; ++r) {
    const int* x = xs[(first + r) & 1];
    SAMPLE(mode, stream, ns[r], status = set_nodes(exec, nodes, node_count, &touch, x);
           cudaError_t launched = cudaGraphLaunch(exec, stream);
           if (launched != cudaSuccess) status = launched;);
  }
  return 0;
}

// cudaMemcpyAsync to the buffer that the graph was captured with, and cudaGraphLaunch.
int floor_copy_launch(cudaGraphExec_t exec, int* target, const int* const* xs, size_t bytes,
                      cudaStream_t stream, int mode, int first, int count, int64_t* ns) {
  for (int r = 0; r < count; ++r) {
    const int* x = xs[(first + r) & 1];
    SAMPLE(mode, stream, ns[r],
           status = cudaMemcpyAsync(target, x, bytes, cudaMemcpyDeviceToDevice, stream);
           cudaError_t launched = cudaGraphLaunch(exec, stream);
           if (launched != cudaSuccess) status = launched;);
  }
  return 0;
}

}  // extern "C"
