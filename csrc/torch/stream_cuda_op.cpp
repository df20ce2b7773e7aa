#include <dlfcn.h>

#include "cuda_binding.h"

namespace {

using Getter = AOTITorchError (*)(int32_t device, void** stream);

// Torch's shim declares this function, of its stable ABI, where torch was built with CUDA; it lives in libtorch_cuda,
// which is in the process by the time that an op runs on CUDA. Looked up, so that any torch will do to build with.
Getter find_getter() {
  void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* const found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  STD_TORCH_CHECK(found, "lcs_kernels: this torch has no libtorch_cuda.so with aoti_torch_get_current_cuda_stream; ",
                  "set LCS_CUDA_BACKEND=triton");
  return reinterpret_cast<Getter>(found);
}

}  // namespace

void* lcs::binding::current_stream(int32_t device) {
  static const Getter getter = find_getter();
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(getter(device, &stream));
  return stream;
}
