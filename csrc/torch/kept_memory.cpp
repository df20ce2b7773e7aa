#include "kept_memory.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "binding.h"
#include "lcs/large_pages.h"

// Of torch 2.11 and later; null before that.
extern "C" AOTITorchError torch_from_blob(void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t,
                                          int32_t, AtenTensorHandle*, int32_t, const uint8_t*, int64_t,
                                          void (*deleter)(void* data, void* context), void* context)
    __attribute__((weak));

namespace lcs::binding {
namespace {

constexpr int64_t kLargePage = int64_t{2} << 20, kPiece = int64_t{64} << 10;

// What blocks of so many bytes are whole numbers of, and begin at.
int64_t piece_of(int64_t bytes) { return bytes < 2 * kLargePage ? kPiece : kLargePage; }
int64_t whole_pieces(int64_t bytes) {
  const int64_t piece = piece_of(bytes);
  return (bytes + piece - 1) / piece * piece;
}

// Blocks of which no tensor holds any, the last freed last.
struct Kept {
  struct Block {
    void* data;
    int64_t bytes;
  };
  std::mutex mutex;
  std::vector<Block> blocks;
  int64_t bytes = 0;

  // The last one freed of that very size, or null.
  void* take(int64_t size) {
    const auto found = std::find_if(blocks.rbegin(), blocks.rend(), [&](const Block& b) { return b.bytes == size; });
    if (found == blocks.rend()) return nullptr;
    void* const data = found->data;
    blocks.erase(std::next(found).base());
    bytes -= size;
    return data;
  }

  void give(const Block& block) {
    blocks.push_back(block);
    bytes += block.bytes;
    shrink(kMostKept);
  }

  // To at most so many bytes. Returns how many were freed.
  int64_t shrink(int64_t most) {
    const int64_t before = bytes;
    auto block = blocks.begin();
    for (; bytes > most; bytes -= block++->bytes) std::free(block->data);
    blocks.erase(blocks.begin(), block);
    return before - bytes;
  }
};

// Never destroyed, as tensors may be freed after all else.
Kept& kept() {
  static Kept& kept = *new Kept;
  return kept;
}

// 0 where there are no elements, or of another dtype than results of layers have.
int64_t result_bytes(torch::headeronly::IntHeaderOnlyArrayRef size, torch::headeronly::IntHeaderOnlyArrayRef stride,
                     int32_t dtype) {
  int64_t elements = 1;
  for (size_t d = 0; d < size.size(); ++d) {
    if (size[d] == 0) return 0;
    elements += (size[d] - 1) * stride[d];
  }
  if (dtype == aoti_torch_dtype_float32()) return 4 * elements;
  if (dtype == aoti_torch_dtype_bfloat16() || dtype == aoti_torch_dtype_float16()) return 2 * elements;
  return dtype == aoti_torch_dtype_int8() ? elements : 0;
}

// What another thread holds, perhaps one that a fork left behind, is not waited for.
std::unique_lock<std::mutex> lock() {
  return forked() ? std::unique_lock<std::mutex>(kept().mutex, std::defer_lock)
                  : std::unique_lock<std::mutex>(kept().mutex, std::try_to_lock);
}

}  // namespace

void* take_memory(int64_t bytes) {
  const int64_t size = whole_pieces(bytes);
  if (const auto held = lock())
    if (void* const data = kept().take(size)) return data;
  void* const data = std::aligned_alloc(size_t(piece_of(bytes)), size_t(size));
  if (data) prefer_large_pages(data, size);
  return data;
}

void give_memory(void* data, int64_t bytes) {
  if (const auto held = lock())
    kept().give({data, whole_pieces(bytes)});
  else
    std::free(data);
}

int64_t release_memory() {
  if (forked()) return 0;  // which keeps none
  const std::lock_guard held(kept().mutex);
  return kept().shrink(0);
}

Tensor empty_strided(torch::headeronly::IntHeaderOnlyArrayRef size, torch::headeronly::IntHeaderOnlyArrayRef stride,
                     int32_t dtype) {
  AtenTensorHandle made;
  const int64_t bytes = result_bytes(size, stride, dtype);
  void* const data = bytes >= kLeastKept && torch_from_blob ? take_memory(bytes) : nullptr;
  if (!data) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(size.size()), size.data(), stride.data(), dtype,
                                                    aoti_torch_device_type_cpu(), 0, &made));
    return with_large_pages(Tensor(made));
  }
  const auto give = [](void* data, void* bytes) { give_memory(data, reinterpret_cast<int64_t>(bytes)); };
  const AOTITorchError error =
      torch_from_blob(data, int64_t(size.size()), size.data(), stride.data(), 0, dtype, aoti_torch_device_type_cpu(),
                      -1, &made, aoti_torch_layout_strided(), nullptr, 0, give, reinterpret_cast<void*>(bytes));
  if (error) give_memory(data, bytes);
  TORCH_ERROR_CODE_CHECK(error);
  return Tensor(made);
}

}  // namespace lcs::binding
