#pragma once
#include <torch/csrc/stable/accelerator.h>

#include "binding.h"

// What the bindings of _C_cuda share. No header of CUDA's is needed, nor a torch that was built with CUDA.
namespace lcs::binding {

// The cudaStream_t on which torch runs at present on this device.
void* current_stream(int32_t device);

inline void check_cuda(int error, const char* op, const char* (*text)(int)) {
  STD_TORCH_CHECK(error == 0, op, ": CUDA error ", error, ": ", text(error));
}

// Raises unless `t` is on the device of `like`.
inline void check_device(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(
      t.is_cuda() && t.get_device() == like.get_device(), op, ": ", name, " must be on CUDA device ", like.get_device(),
      " like the weights, got ",
      t.is_cuda() ? "CUDA device " + std::to_string(t.get_device()) : std::string("another kind of device"));
}

// The address of a 0-d tensor on the device of `like`, whose value the device alone reads.
template <class T>
const T* scalar_on(const Tensor& t, ScalarType type, const Tensor& like, const char* op, const char* name) {
  check_device(op, name, t, like);
  STD_TORCH_CHECK(t.dim() == 0 && t.scalar_type() == type, op, ": ", name,
                  " must be a 0-d tensor of the schema's dtype, got shape ", shape_of(t));
  return static_cast<const T*>(t.const_data_ptr());
}

inline Tensor empty_like(const Tensor& like, ScalarType type) {
  return torch::stable::new_empty(like, sizes_of(like), type);
}

}  // namespace lcs::binding
