// The C floor of bench/launch_overhead.py: what the same calls cost without Python.
//
// A shared library, loaded by ctypes into the benchmark's own process, so that C and Python take
// turns on one stream. Every function times `count` single calls, writes their nanoseconds, and
// returns the first status that is not 0.
//
// nvcc -arch=sm_90 -O3 -shared -Xcompiler -fPIC -cudart static launch_overhead.cu -o floor.so

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

// Times one call; its status is looked at after the clock has stopped.
#define TIMED(slot, call)                      \
  do {                                         \
    auto start_ = Clock::now();                \
    cudaError_t timed_ = (call);               \
    auto stop_ = Clock::now();                 \
    (slot) = nanoseconds(start_, stop_);       \
    CHECK(timed_);                             \
  } while (0)

// The kernel of all contenders (launch_contenders.py has it for NVRTC). C users name their kernel by
// its host symbol; a CUfunction of the driver's is refused here with 400.
__global__ void visit(int* seen, int step) {
  if (step) {
    seen[0] += step;
  }
}

static cudaKernelNodeParams one_thread(void** arguments) {
  cudaKernelNodeParams params = {};
  params.func = reinterpret_cast<void*>(visit);
  params.gridDim = dim3(1);
  params.blockDim = dim3(1);
  params.kernelParams = arguments;
  return params;
}

// A line of `nodes` kernel nodes, each after the one before.
static cudaError_t add_line(cudaGraph_t graph, void* pointer, int step, int nodes,
                            cudaGraphNode_t* out) {
  void* arguments[] = {&pointer, &step};
  for (int i = 0; i < nodes; ++i) {
    cudaKernelNodeParams params = one_thread(arguments);
    cudaError_t status =
        cudaGraphAddKernelNode(&out[i], graph, i ? &out[i - 1] : nullptr, i ? 1 : 0, &params);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

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

// cudaGraphLaunch, `burst` times after a synchronization; a sample is the time of the whole burst.
int floor_launch(cudaGraphExec_t exec, cudaStream_t stream, int burst, int count, int64_t* ns) {
  for (int r = 0; r < count; ++r) {
    CHECK(cudaStreamSynchronize(stream));
    cudaError_t status = cudaSuccess;
    auto start = Clock::now();
    for (int b = 0; b < burst; ++b) {
      cudaError_t launched = cudaGraphLaunch(exec, stream);
      if (launched != cudaSuccess) status = launched;
    }
    auto stop = Clock::now();
    ns[r] = nanoseconds(start, stop);
    CHECK(status);
  }
  CHECK(cudaStreamSynchronize(stream));
  return 0;
}

// cudaGraphExecKernelNodeSetParams with another scalar each time.
int floor_set_scalar(cudaGraphExec_t exec, cudaGraphNode_t* nodes, int node_count, void* pointer,
                     int first, int count, int64_t* ns) {
  int step = 0;
  void* arguments[] = {&pointer, &step};
  cudaKernelNodeParams params = one_thread(arguments);
  for (int r = 0; r < count; ++r) {
    int i = first + r;
    cudaGraphNode_t node = nodes[i % node_count];
    auto start = Clock::now();
    step = i;
    cudaError_t status = cudaGraphExecKernelNodeSetParams(exec, node, &params);
    auto stop = Clock::now();
    ns[r] = nanoseconds(start, stop);
    CHECK(status);
  }
  return 0;
}

// cudaGraphExecKernelNodeSetParams with the other of two arrays each time.
int floor_set_array(cudaGraphExec_t exec, cudaGraphNode_t* nodes, int node_count,
                    void* const* arrays, int step, int first, int count, int64_t* ns) {
  void* pointer = nullptr;
  void* arguments[] = {&pointer, &step};
  cudaKernelNodeParams params = one_thread(arguments);
  for (int r = 0; r < count; ++r) {
    int i = first + r;
    cudaGraphNode_t node = nodes[i % node_count];
    auto start = Clock::now();
    pointer = arrays[i & 1];
    cudaError_t status = cudaGraphExecKernelNodeSetParams(exec, node, &params);
    auto stop = Clock::now();
    ns[r] = nanoseconds(start, stop);
    CHECK(status);
  }
  return 0;
}

// A graph for the functions below; the caller destroys it.
int floor_graph(void* pointer, int step, int node_count, cudaGraphNode_t* nodes,
                cudaGraph_t* graph) {
  CHECK(cudaGraphCreate(graph, 0));
  CHECK(add_line(*graph, pointer, step, node_count, nodes));
  return 0;
}

// cudaGraphAddKernelNode; a sample is the time of a whole line. The graphs go to `kept`, or are
// destroyed where that is null.
int floor_build(void* pointer, int step, int node_count, cudaGraphNode_t* nodes, int count,
                int64_t* ns, cudaGraph_t* kept) {
  for (int r = 0; r < count; ++r) {
    cudaGraph_t graph;
    CHECK(cudaGraphCreate(&graph, 0));
    TIMED(ns[r], add_line(graph, pointer, step, node_count, nodes));
    if (kept) {
      kept[r] = graph;
    } else {
      CHECK(cudaGraphDestroy(graph));
    }
  }
  return 0;
}

int floor_instantiate(cudaGraph_t graph, int count, int64_t* ns) {
  for (int r = 0; r < count; ++r) {
    cudaGraphExec_t exec;
    TIMED(ns[r], cudaGraphInstantiate(&exec, graph, 0));
    CHECK(cudaGraphExecDestroy(exec));
  }
  return 0;
}

// cudaGraphUpload of a fresh executable graph, which is launched once afterwards.
int floor_upload(cudaGraph_t graph, cudaStream_t stream, int count, int64_t* ns) {
  for (int r = 0; r < count; ++r) {
    cudaGraphExec_t exec;
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    TIMED(ns[r], cudaGraphUpload(exec, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaStreamSynchronize(stream));
    CHECK(cudaGraphExecDestroy(exec));
  }
  return 0;
}

// cudaGraphLaunch of a fresh executable graph that nobody uploaded.
int floor_first_launch(cudaGraph_t graph, cudaStream_t stream, int count, int64_t* ns) {
  for (int r = 0; r < count; ++r) {
    cudaGraphExec_t exec;
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    TIMED(ns[r], cudaGraphLaunch(exec, stream));
    CHECK(cudaStreamSynchronize(stream));
    CHECK(cudaGraphExecDestroy(exec));
  }
  return 0;
}

// cudaGraphExecUpdate with the other of two graphs each time.
int floor_update(cudaGraphExec_t exec, cudaGraph_t const* graphs, int first, int count,
                 int64_t* ns) {
  for (int r = 0; r < count; ++r) {
    cudaGraphExecUpdateResultInfo info;
    TIMED(ns[r], cudaGraphExecUpdate(exec, graphs[(first + r) & 1], &info));
  }
  return 0;
}

}  // extern "C"
