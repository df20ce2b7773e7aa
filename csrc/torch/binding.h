#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lcs/dtype.h"
#include "lcs/large_pages.h"
#include "lcs/parallel_region.h"

// What every binding shares: checks that name op, argument and value; torch's threads as an lcs::Parallel.
namespace lcs::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool forked();  // whether this process was forked from the one that loaded the library

inline thread_local const Parallel* loops_of_region = nullptr;  // that this thread leads

// Serial in a forked process: it has none of the threads that torch's pool would wait for.
inline void parallel(int64_t n, int64_t grain, const Range& range) {
  if (loops_of_region) return (*loops_of_region)(n, grain, range);
  if (forked()) return serial(n, grain, range);
  torch::stable::parallel_for(0, n, grain, range);
}

// `body` with one region for all that it calls `parallel` for; what torch runs in it is serial.
template <class Body>
void in_region(const Body& body) {
  parallel_region(parallel, [&](const Parallel& loops) {
    struct Leads {
      const Parallel* const outer;
      explicit Leads(const Parallel* loops) : outer(std::exchange(loops_of_region, loops)) {}
      ~Leads() { loops_of_region = outer; }
    } leads(&loops);
    body();
  });
}

inline std::vector<int64_t> sizes_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

inline std::string shape_of(const std::vector<int64_t>& sizes) {
  std::string text = "(";
  for (size_t d = 0; d < sizes.size(); ++d) text += (d ? ", " : "") + std::to_string(sizes[d]);
  return text + ")";
}
inline std::string shape_of(const Tensor& t) { return shape_of(sizes_of(t)); }

inline bool has_shape(const Tensor& a, const std::vector<int64_t>& shape) {
  if (a.dim() != int64_t(shape.size())) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != shape[size_t(d)]) return false;
  return true;
}
inline bool same_shape(const Tensor& a, const Tensor& b) { return has_shape(a, sizes_of(b)); }

inline DType dtype_of(ScalarType type, const char* op, const char* name) {
  switch (type) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    default:
      STD_TORCH_CHECK(false, op, ": ", name,
                      " must be float32, bfloat16 or float16 (float64 runs the reference), got dtype ", int(type));
  }
}

// Of a weight or of activations that are multiplied.
inline DType factor_dtype(ScalarType type, const char* op, const char* name) {
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, op, ": ", name,
                  " must be float32 or bfloat16, got dtype ", int(type));
  return dtype_of(type, op, name);
}

inline DType activation_dtype(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu(), op, ": x must be on the CPU");
  return factor_dtype(x.scalar_type(), op, "x");
}

// A contiguous float32 vector of `n`, or null.
inline const float* vector_of(const char* op, const char* name, const std::optional<Tensor>& vector, int64_t n) {
  if (!vector) return nullptr;
  STD_TORCH_CHECK(vector->is_cpu() && vector->scalar_type() == ScalarType::Float && vector->dim() == 1 &&
                      vector->size(0) == n && vector->is_contiguous(),
                  op, ": ", name, " must be a contiguous float32 vector of ", n, ", got shape ", shape_of(*vector));
  return static_cast<const float*>(vector->const_data_ptr());
}

template <class T>
T scalar_of(const Tensor& t, ScalarType type, const char* op, const char* name) {
  STD_TORCH_CHECK(t.dim() == 0 && t.scalar_type() == type && t.is_cpu(), op, ": ", name,
                  " must be a 0-d CPU tensor of the schema's dtype, got shape ", shape_of(t));
  return *static_cast<const T*>(t.const_data_ptr());
}

inline Tensor with_large_pages(Tensor made) {
  prefer_large_pages(made.mutable_data_ptr(), made.numel() * int64_t(made.element_size()));
  return made;
}

inline Tensor empty_as(const Tensor& like, ScalarType type) {
  return with_large_pages(torch::stable::empty(sizes_of(like), type));
}

// By torch's C interface, past the dispatcher. Large ones are of memory that is kept.
Tensor empty_strided(torch::headeronly::IntHeaderOnlyArrayRef size, torch::headeronly::IntHeaderOnlyArrayRef stride,
                     int32_t dtype);

// 0-d float32: the nearest value, infinity beyond the largest.
inline Tensor scalar_tensor(double value) {
  Tensor made = torch::stable::empty({}, ScalarType::Float);
  *static_cast<float*>(made.mutable_data_ptr()) = float(value);
  return made;
}

// A vector of other strides, or of one value in all places, becomes a copy.
inline void make_contiguous(std::optional<Tensor>& t) {
  if (t && !t->is_contiguous()) t = torch::stable::contiguous(*t);
}

inline Tensor empty_laid_out_as(const Tensor& like) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return empty_strided(like.sizes(), like.strides(), dtype);
}

}  // namespace lcs::binding
