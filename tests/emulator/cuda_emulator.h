// Runs CUDA kernels on the CPU, unchanged, under g++: every CUDA thread of a block is a fiber, and fibers switch only where
// threads wait for each other. One block at a time on one OS thread, so a run is deterministic for a given order.
//
// What a GPU leaves open is chosen by emulator_set_order: the order of the blocks, of the warps between two block barriers
// and of the lanes between two warp operations. Correct kernels give the same bits in every order; one that lacks a barrier
// does not. Shared memory starts as NaN in every block. Reported by an exception of launch(), which names kernel and
// block: barriers and warp operations that not all their threads reach, shuffles that read a lane which takes no part,
// writes around the dynamic shared memory, and launches that no GPU would take.
#pragma once
#include <cxxabi.h>
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "memory_checks.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __shared__ static thread_local  // so that all of them are one piece of memory: see static_shared()
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define S2E_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(::seq2exp::emulator::block.shared)

using std::max;
using std::min;

typedef void* cudaStream_t;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace seq2exp {
namespace emulator {

constexpr int WARP = 32;
constexpr int MAX_THREADS = 1024;
constexpr size_t MAX_SHARED = 163 * 1024;  // of one block on sm_80
constexpr size_t GUARD = 1024;             // bytes watched on either side of the dynamic shared memory
constexpr size_t STACK = 256 * 1024;       // of a fiber; only touched pages take memory
constexpr unsigned char POISON = 0xff;     // four of them are a NaN; arithmetic never gives this one

enum class Wait : uint8_t { nothing, sync, shuffle, ballot, barrier, exited };

#ifdef __x86_64__
struct Context {
  void* stack_pointer;
};

// Keeps what a call must keep on the stack of `from` and goes on where `to` was left. swapcontext makes a system call here.
__attribute__((naked, noinline)) inline void go_on(Context* /*from*/, Context* /*to*/) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq (%rsi), %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n popq %rcx\n jmp *%rcx");
}

inline void prepare(Context* context, char* stack, size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + size) - 8;  // six registers, the entry, its return address
  top[6] = reinterpret_cast<void*>(entry);
  context->stack_pointer = top;
}
#else
typedef ucontext_t Context;

inline void go_on(Context* from, Context* to) { swapcontext(from, to); }

inline void prepare(Context* context, char* stack, size_t size, void (*entry)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = size;
  makecontext(context, entry, 0);
}
#endif

struct Fiber {
  Context context;
  Wait wait;
  uint8_t source;     // shuffle: the lane to read
  unsigned mask;      // warp operations: the lanes that take part
  uint64_t value;     // shuffle, ballot: what this lane gives, then what it gets
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;  // all ever needed; they outlive blocks and launches
  char* stacks = nullptr;     // MAX_THREADS of them
  Context scheduler;          // where a fiber without successor returns to
  int n = 0;                  // threads of this block
  int current = 0;            // the running fiber
  int lanes[WARP];            // fibers of the running warp that may run, in order
  int n_lanes = 0, next_lane = 0;
  void (*body)(void*) = nullptr;
  void* arguments = nullptr;
  std::vector<char> memory;   // guard, dynamic shared memory, guard
  char* shared = nullptr;
  std::string fault;          // what a thread did that it must not
  int order = 0;
  uint32_t random = 1;
};
inline Block block;

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error(what); }

inline uint32_t draw(uint32_t bound) {
  block.random = block.random * 1664525u + 1013904223u;
  return uint32_t(uint64_t(block.random >> 8) * bound >> 24);
}

// 0..n-1 in the chosen order: forward, reverse, or drawn anew by every call.
inline std::vector<int64_t> ordered(int64_t n) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  if (block.order == 1) std::reverse(order.begin(), order.end());
  if (block.order > 1)
    for (int64_t i = n; i > 1; --i) std::swap(order[i - 1], order[draw(uint32_t(i))]);
  return order;
}

// The running fiber stops; the next lane of its warp goes on, or the scheduler when there is none.
S2E_UNWATCHED inline void suspend(Wait why) {
  checks::watching = false;
  Fiber& self = *block.fibers[block.current];
  self.wait = why;
  if (block.next_lane == block.n_lanes) {
    go_on(&self.context, &block.scheduler);
  } else {
    block.current = block.lanes[block.next_lane++];
    threadIdx.x = unsigned(block.current);
    go_on(&self.context, &block.fibers[block.current]->context);
  }
  checks::watching = true;
}

S2E_UNWATCHED inline void fiber_main() {
  checks::watching = true;
  for (;;) {
    block.body(block.arguments);
    suspend(Wait::exited);
  }
}

inline void add_fiber() {
  if (!block.stacks) {
    void* memory = mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for the stacks of the fibers");
    block.stacks = static_cast<char*>(memory);
  }
  const size_t i = block.fibers.size();
  block.fibers.push_back(std::make_unique<Fiber>());
  // equal offsets in all stacks would compete for the same cache lines
  prepare(&block.fibers[i]->context, block.stacks + i * STACK, STACK - i % 61 * 320, fiber_main);
}

inline void run_lanes() {
  if (block.n_lanes == 0) return;
  block.current = block.lanes[0];
  block.next_lane = 1;
  threadIdx.x = unsigned(block.current);
  go_on(&block.scheduler, &block.fibers[block.current]->context);
  if (!block.fault.empty()) fail(std::exchange(block.fault, std::string()));
}

// Lists the lanes of a warp that may run. Random orders: any first lane, any odd step.
inline void list_lanes(int first, int end) {
  const uint32_t start = block.order > 1 ? draw(WARP) : 0, step = block.order > 1 ? 2 * draw(WARP / 2) + 1 : 1;
  block.n_lanes = 0;
  for (uint32_t i = 0; i < WARP; ++i) {
    const int lane = int((start + i * step) % WARP), at = first + (block.order == 1 ? WARP - 1 - lane : lane);
    if (at < end && block.fibers[at]->wait == Wait::nothing) block.lanes[block.n_lanes++] = at;
  }
}

struct Piece {
  char* data = nullptr;
  size_t bytes = 0;
};

inline thread_local char first_use;  // of thread-local storage: it is allocated late

// The static shared memory of all kernels of this library: its thread-local storage.
inline Piece static_shared() {
  static_cast<volatile char&>(first_use) = 0;
  Piece found;
  const auto visit = [](dl_phdr_info* info, size_t, void* result) {
    bool ours = false;
    size_t bytes = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const ElfW(Phdr)& part = info->dlpi_phdr[i];
      const uintptr_t begin = info->dlpi_addr + part.p_vaddr, own = reinterpret_cast<uintptr_t>(&block);
      if (part.p_type == PT_LOAD && own >= begin && own < begin + part.p_memsz) ours = true;
      if (part.p_type == PT_TLS) bytes = part.p_memsz;
    }
    if (ours) *static_cast<Piece*>(result) = {static_cast<char*>(info->dlpi_tls_data), bytes};
    return int(ours);
  };
  dl_iterate_phdr(visit, &found);
  return found;
}

inline std::string warp_name(int first) { return "warp " + std::to_string(first / WARP) + ": "; }

// All lanes of the mask wait for the same operation: hands over their values and lets them go on.
inline void exchange(int first, unsigned mask, Wait kind) {
  uint64_t given[WARP], votes = 0;
  for (int lane = 0; lane < WARP; ++lane)
    if (mask >> lane & 1) {
      given[lane] = block.fibers[first + lane]->value;
      votes |= uint64_t(given[lane] != 0) << lane;
    }
  for (int lane = 0; lane < WARP; ++lane)
    if (mask >> lane & 1) {
      Fiber& f = *block.fibers[first + lane];
      if (kind == Wait::shuffle && !(mask >> f.source & 1))
        fail(warp_name(first) + "lane " + std::to_string(lane) + " shuffles from lane " + std::to_string(f.source) +
             ", which takes no part");
      f.value = kind == Wait::shuffle ? given[f.source] : votes;
      f.wait = Wait::nothing;
    }
}

// Completes the warp operations that all their lanes have reached. False when no lane waits for one.
inline bool complete_warp_operations(int first, int end) {
  const unsigned exist = end - first >= WARP ? ~0u : (1u << (end - first)) - 1;
  bool waiting = false, completed = false;
  for (int at = first; at < end; ++at) {
    const Fiber& f = *block.fibers[at];
    const Wait kind = f.wait;
    if (kind == Wait::nothing || kind == Wait::barrier || kind == Wait::exited) continue;
    waiting = true;
    const unsigned mask = f.mask & exist;
    bool all = mask >> (at - first) & 1;
    for (int lane = 0; lane < WARP && all; ++lane)
      if (mask >> lane & 1) {
        const Fiber& other = *block.fibers[first + lane];
        all = other.wait == kind && (other.mask & exist) == mask;
      }
    if (!all) continue;
    exchange(first, mask, kind);
    completed = true;
    if (mask != exist) continue;
    checks::warp_operation(first / WARP, kind == Wait::sync);
    break;
  }
  if (waiting && !completed) fail(warp_name(first) + "divergent warp operation: not all lanes of its mask reach it");
  return completed;
}

inline void run_block() {
  while (int(block.fibers.size()) < block.n) add_fiber();
  for (int i = 0; i < block.n; ++i) block.fibers[i]->wait = Wait::nothing;
  const int n_warps = (block.n + WARP - 1) / WARP;
  for (;;) {  // each warp as far as its next block barrier
    for (int64_t warp : ordered(n_warps)) {
      const int first = int(warp) * WARP, end = std::min(first + WARP, block.n);
      do {
        list_lanes(first, end);
        run_lanes();
      } while (complete_warp_operations(first, end));
    }
    int exited = 0;
    for (int i = 0; i < block.n; ++i) exited += block.fibers[i]->wait == Wait::exited;
    if (exited == block.n) return;
    if (exited)
      fail("divergent __syncthreads: " + std::to_string(block.n - exited) + " threads wait, " +
           std::to_string(exited) + " have exited");
    for (int i = 0; i < block.n; ++i) block.fibers[i]->wait = Wait::nothing;
    checks::block_barrier();
  }
}

inline void check_guards(size_t shared_bytes) {
  for (size_t i = 0; i < GUARD; ++i) {
    if (static_cast<unsigned char>(block.shared[shared_bytes + i]) != POISON)
      fail("writes " + std::to_string(i) + " bytes past the " + std::to_string(shared_bytes) + " of its shared memory");
    if (static_cast<unsigned char>(block.shared[-1 - ptrdiff_t(i)]) != POISON)
      fail("writes " + std::to_string(i + 1) + " bytes before its shared memory");
  }
}

// Kernels of an anonymous namespace have no name at run time.
inline std::string kernel_name(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info) || !info.dli_sname) return "kernel";
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status), free);
  return status == 0 ? text.get() : info.dli_sname;
}

inline void run_grid(int64_t blocks, int threads, size_t shared_bytes, void (*body)(void*), void* arguments,
                     size_t argument_bytes) {
  if (blocks < 1 || blocks > INT32_MAX) fail("a grid of " + std::to_string(blocks) + " blocks");
  if (threads < 1 || threads > MAX_THREADS) fail("a block of " + std::to_string(threads) + " threads");
  if (shared_bytes > MAX_SHARED) fail(std::to_string(shared_bytes) + " bytes of shared memory; sm_80 has 166912");
  gridDim.x = unsigned(blocks);
  blockDim.x = unsigned(threads);
  block.n = threads;
  block.body = body;
  block.arguments = arguments;
  const Piece statics = static_shared();
  checks::begin_launch(arguments, argument_bytes);
  for (int64_t b : ordered(blocks)) {
    blockIdx.x = unsigned(b);
    block.memory.assign(shared_bytes + 2 * GUARD + 16, char(POISON));
    block.shared = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(block.memory.data()) + GUARD + 15) / 16 * 16);
    std::memset(statics.data, POISON, statics.bytes);
    checks::begin_block(block.shared, shared_bytes, statics.data, statics.bytes);
    run_block();
    check_guards(shared_bytes);
  }
}

S2E_UNWATCHED inline uint64_t warp_operation(Wait kind, unsigned mask, uint64_t value, int source) {
  checks::watching = false;
  Fiber& self = *block.fibers[block.current];
  self.mask = mask;
  self.value = value;
  self.source = uint8_t(source);
  suspend(kind);
  return self.value;
}

template <class T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_operation(Wait::shuffle, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline std::string message;

// For extern "C" entry points: the message of the exception that f throws, or null.
template <class F>
const char* message_of(F&& f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace emulator

// Name and signature of the launcher of the CUDA build.
template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, cudaStream_t, A... args) {
  auto arguments = std::make_pair(kernel, std::tuple<P...>(args...));
  const auto body = [](void* p) {
    const auto& [function, values] = *static_cast<decltype(arguments)*>(p);
    std::apply(function, values);
  };
  try {
    emulator::run_grid(blocks, threads, shared_bytes, body, &arguments, sizeof(arguments));
  } catch (const std::exception& error) {
    emulator::block.fibers.clear();  // those that wait for ever are abandoned
    const std::string name = emulator::kernel_name(reinterpret_cast<const void*>(kernel));
    emulator::fail(name + " (" + std::to_string(blocks) + " blocks of " + std::to_string(threads) + " threads), block " +
                   std::to_string(blockIdx.x) + ": " + error.what());
  }
}

}  // namespace seq2exp

// 0: forward, 1: reverse, above: random orders from this seed.
extern "C" __attribute__((used, visibility("default"))) inline void emulator_set_order(int order) {
  seq2exp::emulator::block.order = order;
  seq2exp::emulator::block.random = uint32_t(order);
}

inline void __syncthreads() { seq2exp::emulator::suspend(seq2exp::emulator::Wait::barrier); }

inline void __syncwarp(unsigned mask = ~0u) {
  seq2exp::emulator::warp_operation(seq2exp::emulator::Wait::sync, mask, 0, 0);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return unsigned(seq2exp::emulator::warp_operation(seq2exp::emulator::Wait::ballot, mask, predicate != 0, 0));
}

inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return seq2exp::emulator::shuffle(mask, value, source & 31);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  const int lane = threadIdx.x & 31;
  return seq2exp::emulator::shuffle(mask, value, lane >= int(delta) ? lane - int(delta) : lane);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const int lane = threadIdx.x & 31;
  return seq2exp::emulator::shuffle(mask, value, lane + int(delta) < 32 ? lane + int(delta) : lane);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return seq2exp::emulator::shuffle(mask, value, int((threadIdx.x & 31) ^ unsigned(lanes)) & 31);
}
