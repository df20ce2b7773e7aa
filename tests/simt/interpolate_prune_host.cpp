// interpolate_prune and its backward for tests: the device is the CPU, with a page that faults next to each array.
#define SIMT_RUNTIME
#include "device.cuh"

#include <deque>

#include "../cpp/guarded.h"
#include "lcs/interpolate_prune_cuda.h"

namespace {

using namespace lcs;

// Arrays that the device may touch, and what is copied back from them in the end.
class Device {
 public:
  explicit Device(uint64_t seed) : random_(seed) {}

  void* put(const void* from, int64_t bytes) {
    if (!from) return nullptr;
    Guarded& memory = memory_.emplace_back(bytes, random_() % 2 ? Guard::behind : Guard::before);
    std::memcpy(memory.as<char>(), from, bytes);
    return memory.as();
  }

  void* output(void* to, int64_t bytes) {
    if (!to) return nullptr;
    void* const memory = memory_.emplace_back(bytes, random_() % 2 ? Guard::behind : Guard::before).as();
    outputs_.push_back({to, memory, bytes});
    return memory;
  }

  void* workspace(int64_t bytes) { return memory_.emplace_back((bytes + 15) / 16 * 16, Guard::behind).as(); }

  void fetch() const {
    for (const Output& output : outputs_) std::memcpy(output.to, output.from, output.bytes);
  }

 private:
  struct Output {
    void* to;
    const void* from;
    int64_t bytes;
  };
  std::mt19937 random_;
  std::deque<Guarded> memory_;
  std::vector<Output> outputs_;
};

int64_t bytes_of_bits(int64_t n) { return (n + 31) / 32 * 4; }

void settle(uint64_t seed, int resident) {
  simt::settings.seed = seed;
  simt::settings.resident = resident;
  simt::settings.report.clear();
}

}  // namespace

// Each returns what was wrong with its launches, "" for nothing.
extern "C" const char* prune(int count, const int64_t* sizes, void** w0, void** w1, void** w, void** mask_bits,
                             const int64_t* keep, int together, float alpha, int in, int out, uint64_t seed,
                             int resident) {
  settle(seed, resident);
  Device device(seed);
  const DType from = DType(in), to = DType(out);
  std::vector<InterpolatePruneLayer> layers;
  for (int i = 0; i < count; ++i)
    layers.push_back({device.put(w0[i], sizes[i] * size_of(from)), device.put(w1[i], sizes[i] * size_of(from)),
                      device.output(w[i], sizes[i] * size_of(to)),
                      static_cast<uint32_t*>(device.output(mask_bits[i], bytes_of_bits(sizes[i]))), sizes[i]});
  const cuda::InterpolatePruneArgs args{
      layers,        static_cast<int64_t*>(device.put(keep, (together ? 1 : count) * 8)),
      together != 0, static_cast<float*>(device.put(&alpha, 4)),
      from,          to};
  cuda::interpolate_prune(args, device.workspace(cuda::interpolate_prune_workspace(args)), nullptr);
  device.fetch();
  return simt::settings.report.c_str();
}

extern "C" const char* prune_backward(int count, const int64_t* sizes, void** grad, void** w0, void** w1,
                                      void** mask_bits, void** grad_w0, void** grad_w1, float* grad_alpha, float alpha,
                                      int in, int out, uint64_t seed) {
  settle(seed, 1);
  Device device(seed);
  const DType own = DType(in), of_grad = DType(out);
  std::vector<InterpolatePruneBackwardLayer> layers;
  for (int i = 0; i < count; ++i) {
    const int64_t n = sizes[i], bytes = n * size_of(own);
    layers.push_back({device.put(grad[i], n * size_of(of_grad)), device.put(w0[i], bytes), device.put(w1[i], bytes),
                      static_cast<uint32_t*>(device.put(mask_bits[i], bytes_of_bits(n))),
                      device.output(grad_w0[i], bytes), device.output(grad_w1[i], bytes), n});
  }
  const cuda::InterpolatePruneBackwardArgs args{layers, static_cast<float*>(device.put(&alpha, 4)),
                                                static_cast<float*>(device.output(grad_alpha, 4)), own, of_grad};
  cuda::interpolate_prune_backward(args, device.workspace(cuda::interpolate_prune_backward_workspace(args)), nullptr);
  device.fetch();
  return simt::settings.report.c_str();
}
