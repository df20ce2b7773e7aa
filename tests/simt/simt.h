// CUDA kernels on the CPU. A plain C++ compiler builds the unchanged .cu files against this header in place of CUDA's:
// the threads of a block are fibers, which change at barriers and warp collectives, in random order; the blocks of a
// cooperative grid change at its barrier, those of another run one after another, in random order.
//
// Built with -fsanitize=thread, and linked without it, every access to memory calls back: two accesses of a block to
// one word of shared memory, one of them a plain write, must have a barrier between them, or the launch fails with a
// report. A barrier that not all threads reach, or lanes that meet in different collectives, fail it too.
//
// The kernels see the first half. One file defines SIMT_RUNTIME, which adds the second half, and is not instrumented.
#pragma once
#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

#define __global__ static
#define __device__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("lcs_shared")))

namespace simt {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// What the running thread is.
struct Here {
  Index thread, block, threads, blocks;
};
extern Here here;

struct Settings {
  uint64_t seed = 0;   // of the order of threads and blocks
  int resident = 3;    // blocks that the device holds at once
  std::string report;  // what was wrong with the launches so far
};
extern Settings settings;

void block_barrier();
void grid_barrier();

// The values that the lanes of `mask` brought to the same collective; lanes outside hold nothing of meaning.
const uint64_t* collect(unsigned mask, uint64_t value, const char* collective);
void warp_barrier(unsigned mask);

void atomic_access(const void* word, size_t size);
int run(const std::function<void()>& kernel, int blocks, int threads, bool cooperative);

template <class T>
uint64_t packed(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T unpacked(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned lane() { return here.thread.x % 32; }

// The value of lane `from`, or one's own where that lane does not take part.
template <class T>
T shuffled(unsigned mask, T value, unsigned from, const char* collective) {
  const uint64_t* values = collect(mask, packed(value), collective);
  return from < 32 && mask >> from & 1 ? unpacked<T>(values[from]) : value;
}

template <class T, class Operation>
T reduced(unsigned mask, T value, const char* collective, Operation operation) {
  const uint64_t* values = collect(mask, packed(value), collective);
  bool first = true;
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) {
      value = first ? unpacked<T>(values[i]) : operation(value, unpacked<T>(values[i]));
      first = false;
    }
  return value;
}

template <class T, class Operation>
__attribute__((noinline, no_sanitize("thread"))) T atomic(T* word, Operation operation) {
  atomic_access(word, sizeof(T));
  const T before = *word;
  *word = operation(before);
  return before;
}

}  // namespace simt

#define threadIdx (simt::here.thread)
#define blockIdx (simt::here.block)
#define blockDim (simt::here.threads)
#define gridDim (simt::here.blocks)

inline void __syncthreads() { simt::block_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { simt::warp_barrier(mask); }
template <class T>
T __shfl_sync(unsigned mask, T value, unsigned from) {
  return simt::shuffled(mask, value, from % 32, "__shfl_sync");
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  return simt::shuffled(mask, value, simt::lane() - by, "__shfl_up_sync");
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  return simt::shuffled(mask, value, simt::lane() + by, "__shfl_down_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned with) {
  return simt::shuffled(mask, value, simt::lane() ^ with, "__shfl_xor_sync");
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return simt::reduced(mask, predicate ? 1u << simt::lane() : 0u, "__ballot_sync",
                       [](unsigned a, unsigned b) { return a | b; });
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  const uint64_t* values = simt::collect(mask, simt::packed(value), "__match_any_sync");
  unsigned same = 0;
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1 && values[i] == simt::packed(value)) same |= 1u << i;
  return same;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value) {
  return simt::reduced(mask, value, "__reduce_add_sync", [](T a, T b) { return T(a + b); });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value) {
  return simt::reduced(mask, value, "__reduce_max_sync", [](T a, T b) { return std::max(a, b); });
}

template <class T>
T atomicAdd(T* word, std::type_identity_t<T> value) {
  return simt::atomic(word, [&](T before) { return T(before + value); });
}
template <class T>
T atomicOr(T* word, std::type_identity_t<T> value) {
  return simt::atomic(word, [&](T before) { return T(before | value); });
}
template <class T>
T atomicCAS(T* word, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return simt::atomic(word, [&](T before) { return before == expected ? value : before; });
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline uint32_t __float_as_uint(float x) { return simt::unpacked<uint32_t>(simt::packed(x)); }
inline float __uint_as_float(uint32_t bits) { return simt::unpacked<float>(bits); }
inline float __fmul_rn(float a, float b) { return a * b; }  // built with -ffp-contract=off
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }

using cudaError_t = int;
inline const char* cudaGetErrorString(cudaError_t error) { return error ? simt::settings.report.c_str() : "success"; }

// The twins of what csrc/cuda/device.cuh has for nvcc.
namespace lcs::cuda {

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int blocks, int threads, Grid grid, void*,
                   const Arguments&... arguments) {
  return simt::run([&] { kernel(Parameters(arguments)...); }, blocks, threads, grid == Grid::cooperative);
}

template <class... Parameters>
cudaError_t resident_blocks(void (*)(Parameters...), int, int* blocks) {
  *blocks = simt::settings.resident;
  return 0;
}

inline void grid_sync() { simt::grid_barrier(); }

inline Words4 stream16(const void* from) { return *static_cast<const Words4*>(from); }
inline Words2 stream8(const void* from) { return *static_cast<const Words2*>(from); }
inline void put16(void* to, const Words4& from) { *static_cast<Words4*>(to) = from; }
inline void put8(void* to, const Words2& from) { *static_cast<Words2*>(to) = from; }

inline uint16_t half_of(float x) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7fff);
  if (size >= 0x47800000) return uint16_t(sign | 0x7c00);  // 2^16 and above
  if (size < 0x38800000) {                                 // below 2^-14: in units of 2^-24
    const float units = __uint_as_float(size) * 0x1p24f;
    return uint16_t(sign | uint32_t(nearbyintf(units)));
  }
  return uint16_t(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}
inline float float_of_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, size = half & 0x7fff;
  if (size >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (size & 0x3ff) << 13);
  return __uint_as_float(
      sign | __float_as_uint(size < 0x400 ? float(size) * 0x1p-24f : __uint_as_float((size << 13) + 0x38000000)));
}

}  // namespace lcs::cuda

#ifdef SIMT_RUNTIME
#include <sys/mman.h>
#include <ucontext.h>

#include <map>
#include <memory>
#include <random>
#include <vector>

extern "C" char __start_lcs_shared[], __stop_lcs_shared[];
// The section exists, and its bounds with it, whether or not a kernel has shared memory.
__attribute__((section("lcs_shared"), used)) static char simt_shared[64];

namespace simt {

Here here;
Settings settings;

constexpr size_t kStack = 256 << 10;
enum class State { ready, at_warp, at_block, at_grid, done };

struct Thread {
  ucontext_t context;
  Here here;
  unsigned index;
  State state;
  unsigned block_epoch, warp_epoch;  // barriers passed
  const char* waits_in;
};

// Lanes of one mask that meet: two rounds in turn, as the first lanes may come to the next before the last have read.
struct Meeting {
  unsigned arrived = 0, round = 0;
  const char* collective = nullptr;
  uint64_t values[2][32];
};

struct Access {
  unsigned thread, warp_epoch;
  bool write, atomic;
};
struct Word {
  unsigned epoch = ~0u;
  std::vector<Access> accesses;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<unsigned> ready;
  std::vector<std::map<unsigned, Meeting>> warps;
  std::vector<char> shared;
  std::vector<Word> words;
  unsigned alive, at_block = 0, at_grid = 0;
};

static struct Machine {
  ucontext_t scheduler;
  Block* block = nullptr;
  Thread* thread = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::mt19937_64 random;
  bool cooperative = false, failed = false;
  std::vector<char*> stacks;
} machine;

static void fail(const std::string& what) {
  if (!machine.failed) settings.report += what + "\n";
  machine.failed = true;
}

static std::string name_of(const Thread& thread) {
  return "thread " + std::to_string(thread.index) + " of block " + std::to_string(thread.here.block.x);
}

// Leaves the running thread until it is ready again; for ever once the launch has failed.
static void leave(State state, const char* waits_in) {
  Thread* const thread = machine.thread;
  thread->state = state;
  thread->waits_in = waits_in;
  swapcontext(&thread->context, &machine.scheduler);
}

static void wake(Thread& thread) {
  thread.state = State::ready;
  machine.block->ready.push_back(thread.index);
}

static void pass_block_barrier(Block& block) {
  block.at_block = 0;
  for (Thread& thread : block.threads)
    if (thread.state == State::at_block) {
      ++thread.block_epoch;
      wake(thread);
    }
}

void block_barrier() {
  ++machine.block->at_block;
  leave(State::at_block, "__syncthreads");
}

void grid_barrier() {
  if (!machine.cooperative) fail("grid_sync in a grid that was not launched as cooperative");
  ++machine.block->at_grid;
  leave(State::at_grid, "grid_sync");
}

const uint64_t* collect(unsigned mask, uint64_t value, const char* collective) {
  Block& block = *machine.block;
  Thread& own = *machine.thread;
  const unsigned first = own.index / 32 * 32, lane = own.index % 32;
  if (!(mask >> lane & 1)) fail(name_of(own) + " calls " + collective + " with a mask that leaves it out");
  Meeting& meeting = block.warps[own.index / 32][mask];
  if (meeting.arrived && std::strcmp(meeting.collective, collective))
    fail(name_of(own) + " comes to " + collective + " where its warp waits in " + meeting.collective);
  meeting.collective = collective;
  meeting.arrived |= 1u << lane;
  uint64_t* const values = meeting.values[meeting.round % 2];
  values[lane] = value;
  if (meeting.arrived != mask) {
    leave(State::at_warp, collective);
    return values;
  }
  meeting.arrived = 0;
  ++meeting.round;
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1 && i != lane) wake(block.threads[first + i]);
  return values;
}

void warp_barrier(unsigned mask) {
  collect(mask, 0, "__syncwarp");
  if (mask == ~0u) ++machine.thread->warp_epoch;  // part of a warp is not taken for ordered
}

// Notes an access to shared memory, and reports an earlier one that no barrier orders before it.
static void note(const void* address, size_t size, bool write, bool atomic) {
  const char* const at = static_cast<const char*>(address);
  if (!machine.thread || at < __start_lcs_shared || at >= __stop_lcs_shared) return;
  const Thread& own = *machine.thread;
  for (size_t word = (at - __start_lcs_shared) / 4; word <= size_t(at - __start_lcs_shared + size - 1) / 4; ++word) {
    Word& noted = machine.block->words[word];
    if (noted.epoch != own.block_epoch) {
      noted.epoch = own.block_epoch;
      noted.accesses.clear();
    }
    bool known = false;
    for (const Access& other : noted.accesses) {
      if (other.thread == own.index) {
        known |= other.warp_epoch == own.warp_epoch && other.write == write && other.atomic == atomic;
        continue;
      }
      const bool ordered = other.thread / 32 == own.index / 32 && other.warp_epoch < own.warp_epoch;
      if (ordered || !(write || other.write) || (atomic && other.atomic)) continue;
      return fail("race: " + name_of(own) + (write ? " writes" : " reads") + " word " + std::to_string(word) +
                  " of shared memory, which thread " + std::to_string(other.thread) +
                  (other.write ? " has written" : " has read") + " with no barrier between");
    }
    if (!known) noted.accesses.push_back({own.index, own.warp_epoch, write, atomic});
  }
}

void atomic_access(const void* word, size_t size) { note(word, size, true, true); }

static void begin_thread() {
  (*machine.kernel)();
  --machine.block->alive;
  leave(State::done, "its end");
}

static char* stack_of(size_t i) {
  while (machine.stacks.size() <= i) {
    void* const memory =
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    machine.stacks.push_back(static_cast<char*>(memory));
  }
  return machine.stacks[i];
}

static std::unique_ptr<Block> new_block(const Here& grid, unsigned index, size_t first_stack) {
  auto block = std::make_unique<Block>();
  block->alive = grid.threads.x;
  block->threads.resize(block->alive);
  block->warps.resize((block->alive + 31) / 32);
  block->shared.assign(__stop_lcs_shared - __start_lcs_shared, char(0xff));  // holds nothing of meaning at first
  block->words.resize(block->shared.size() / 4 + 1);
  for (unsigned i = 0; i < block->alive; ++i) {
    Thread& thread = block->threads[i];
    thread.here = grid;
    thread.here.thread.x = thread.index = i;
    thread.here.block.x = index;
    thread.block_epoch = thread.warp_epoch = 0;
    thread.state = State::ready;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = stack_of(first_stack + i);
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, begin_thread, 0);
    block->ready.push_back(i);
  }
  return block;
}

// Runs a block until all its threads are at the grid's barrier, or done.
static void run_block(Block& block) {
  machine.block = &block;
  std::memcpy(__start_lcs_shared, block.shared.data(), block.shared.size());
  while (!machine.failed) {
    if (block.ready.empty() && block.alive && block.at_block == block.alive) pass_block_barrier(block);
    if (block.ready.empty()) break;
    std::swap(block.ready[machine.random() % block.ready.size()], block.ready.back());
    machine.thread = &block.threads[block.ready.back()];
    block.ready.pop_back();
    here = machine.thread->here;
    swapcontext(&machine.scheduler, &machine.thread->context);
    machine.thread = nullptr;
  }
  std::memcpy(block.shared.data(), __start_lcs_shared, block.shared.size());
  if (block.at_grid == block.alive || machine.failed) return;
  for (const Thread& thread : block.threads)
    if (thread.state == State::at_warp || (thread.state == State::at_block && block.at_grid))
      return fail("deadlock: " + name_of(thread) + " waits for ever in " + thread.waits_in);
  fail("deadlock: not all threads of block " + std::to_string(block.threads[0].here.block.x) + " reach a barrier");
}

static void run_together(std::vector<std::unique_ptr<Block>>& blocks) {
  while (!machine.failed) {
    std::shuffle(blocks.begin(), blocks.end(), machine.random);
    size_t waiting = 0;
    for (auto& block : blocks) {
      run_block(*block);
      waiting += block->alive != 0;
      if (machine.failed) return;
    }
    if (waiting == 0) return;
    if (waiting < blocks.size()) return fail("deadlock: some blocks wait in grid_sync where others have ended");
    for (auto& block : blocks) {
      machine.block = block.get();
      block->at_grid = 0;
      for (Thread& thread : block->threads) {
        if (thread.state == State::done) continue;
        ++thread.block_epoch;
        wake(thread);
      }
    }
  }
}

int run(const std::function<void()>& kernel, int blocks, int threads, bool cooperative) {
  if (blocks < 1 || threads < 1 || threads > 1024 || (cooperative && blocks > settings.resident)) {
    settings.report += "invalid launch of " + std::to_string(blocks) + " blocks of " + std::to_string(threads) + "\n";
    return 1;
  }
  machine.random.seed(++settings.seed);
  machine.kernel = &kernel;
  machine.cooperative = cooperative;
  machine.failed = false;
  Here grid;
  grid.blocks = {unsigned(blocks), 1, 1};
  grid.threads = {unsigned(threads), 1, 1};
  std::vector<unsigned> order(blocks);
  for (int i = 0; i < blocks; ++i) order[i] = unsigned(i);
  std::shuffle(order.begin(), order.end(), machine.random);
  std::vector<std::unique_ptr<Block>> all;
  for (unsigned i : order) {
    all.push_back(new_block(grid, i, cooperative ? all.size() * threads : 0));
    if (cooperative) continue;
    run_block(*all[0]);
    all.clear();
  }
  if (cooperative) run_together(all);
  return machine.failed ? 1 : 0;
}

}  // namespace simt
// What an instrumented kernel calls.
#define SIMT_ACCESS(size)                                                                       \
  extern "C" void __tsan_read##size(void* at) { simt::note(at, size, false, false); }           \
  extern "C" void __tsan_write##size(void* at) { simt::note(at, size, true, false); }           \
  extern "C" void __tsan_unaligned_read##size(void* at) { simt::note(at, size, false, false); } \
  extern "C" void __tsan_unaligned_write##size(void* at) { simt::note(at, size, true, false); }
SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)
extern "C" void __tsan_read_range(void* at, size_t size) { simt::note(at, size, false, false); }
extern "C" void __tsan_write_range(void* at, size_t size) { simt::note(at, size, true, false); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
#endif
