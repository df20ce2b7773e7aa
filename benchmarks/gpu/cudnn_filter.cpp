// One bfloat16 convolution by cuDNN's graph interface, whose filter may be a part of a wider one: what torch does not
// ask cuDNN for, as it copies such a filter first.
#include <cudnn.h>
#include <cudnn_backend.h>

#include <cstdint>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void check(cudnnStatus_t status, const char* what) {
  if (status != CUDNN_STATUS_SUCCESS) throw std::runtime_error(std::string(what) + ": " + cudnnGetErrorString(status));
}

class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type) {
    check(cudnnBackendCreateDescriptor(type, &descriptor_), "create a descriptor");
  }
  Descriptor(const Descriptor&) = delete;  // and none is destroyed: a plan may look at what it was made from

  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const std::vector<T>& values) {
    check(cudnnBackendSetAttribute(descriptor_, name, type, int64_t(values.size()), values.data()),
          ("set attribute " + std::to_string(int(name))).c_str());
    return *this;
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& other) {
    return set<cudnnBackendDescriptor_t>(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, {other.get()});
  }
  cudnnStatus_t finalize() { return cudnnBackendFinalize(descriptor_); }
  cudnnBackendDescriptor_t get() const { return descriptor_; }

 private:
  cudnnBackendDescriptor_t descriptor_{};
};

Descriptor& made(cudnnBackendDescriptorType_t type) {
  static std::deque<Descriptor> all;
  return all.emplace_back(type);
}

const Descriptor& tensor(int64_t id, const std::vector<int64_t>& dims, const std::vector<int64_t>& strides) {
  Descriptor& t = made(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  t.set<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, {CUDNN_DATA_BFLOAT16})
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, dims)
      .set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, strides)
      .set<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, {id})
      .set<int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, {16});
  check(t.finalize(), "finalize a tensor");
  return t;
}

std::vector<int64_t> channels_last(const std::vector<int64_t>& d) { return {d[1] * d[2] * d[3], 1, d[3] * d[1], d[1]}; }

struct Plan {
  cudnnHandle_t handle{};
  const Descriptor* plan = nullptr;
  int64_t workspace = 0;
};

const Descriptor& operation_of(const std::vector<int64_t>& x, const std::vector<int64_t>& w,
                               const std::vector<int64_t>& w_strides, int64_t padding) {
  const std::vector<int64_t> y{x[0], w[0], x[2] + 2 * padding - w[2] + 1, x[3] + 2 * padding - w[3] + 1}, ones{1, 1};
  Descriptor& convolution = made(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  convolution.set<int64_t>(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, {2})
      .set<cudnnDataType_t>(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, {CUDNN_DATA_FLOAT})
      .set<cudnnConvolutionMode_t>(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE,
                                   {CUDNN_CROSS_CORRELATION})
      .set<int64_t>(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, {padding, padding})
      .set<int64_t>(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, {padding, padding})
      .set(CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, ones)
      .set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, ones);
  check(convolution.finalize(), "finalize the convolution");
  Descriptor& operation = made(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, tensor('x', x, channels_last(x)))
      .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, tensor('w', w, w_strides))
      .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, tensor('y', y, channels_last(y)))
      .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, convolution)
      .set<float>(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, {1.0f})
      .set<float>(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, {0.0f});
  check(operation.finalize(), "finalize the operation");
  return operation;
}

// The first of the heuristic's engines that takes the operation.
void choose(Plan& plan, const Descriptor& operation) {
  Descriptor &graph = made(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR),
             &heuristic = made(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, operation)
      .set<cudnnHandle_t>(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, {plan.handle});
  check(graph.finalize(), "finalize the graph");
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
      .set<cudnnBackendHeurMode_t>(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, {CUDNN_HEUR_MODE_A});
  check(heuristic.finalize(), "finalize the heuristic");
  std::vector<const Descriptor*> configurations;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int i = 0; i < 16; ++i) {
    configurations.push_back(&made(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
    raw.push_back(configurations.back()->get());
  }
  int64_t count = 0;
  check(cudnnBackendGetAttribute(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                 int64_t(raw.size()), &count, raw.data()),
        "ask the heuristic");
  for (int64_t i = 0; i < count && i < int64_t(raw.size()); ++i) {
    Descriptor& candidate = made(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    candidate.set<cudnnHandle_t>(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, {plan.handle})
        .set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, *configurations[i]);
    if (candidate.finalize() != CUDNN_STATUS_SUCCESS) continue;
    int64_t got = 0;
    check(cudnnBackendGetAttribute(candidate.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &got,
                                   &plan.workspace),
          "ask for the workspace");
    plan.plan = &candidate;
    return;
  }
  throw std::runtime_error("none of " + std::to_string(count) + " engines takes this filter");
}

std::string error;

}  // namespace

extern "C" {

// x: (n, c, h, w), channels last; w: (k, c, r, s) of these strides. Null where cuDNN refuses; then `convolve_error`.
void* convolve_plan(const int64_t* x, const int64_t* w, const int64_t* w_strides, int64_t padding) {
  try {
    static std::deque<Plan> plans;
    Plan& plan = plans.emplace_back();
    check(cudnnCreate(&plan.handle), "create a handle");
    choose(plan, operation_of({x, x + 4}, {w, w + 4}, {w_strides, w_strides + 4}, padding));
    return &plan;
  } catch (const std::exception& e) {
    error = e.what();
    return nullptr;
  }
}

const char* convolve_error() { return error.c_str(); }

int64_t convolve_workspace(void* plan) { return static_cast<Plan*>(plan)->workspace; }

int convolve_run(void* opaque, void* x, void* w, void* y, void* workspace, void* stream) {
  try {
    Plan& plan = *static_cast<Plan*>(opaque);
    check(cudnnSetStream(plan.handle, static_cast<cudaStream_t>(stream)), "set the stream");
    Descriptor& pack = made(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    pack.set<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, {'x', 'w', 'y'})
        .set<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, {x, w, y})
        .set<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, {workspace});
    check(pack.finalize(), "finalize the pointers");
    check(cudnnBackendExecute(plan.handle, plan.plan->get(), pack.get()), "run");
    return 0;
  } catch (const std::exception& e) {
    error = e.what();
    return 1;
  }
}

}  // extern "C"
