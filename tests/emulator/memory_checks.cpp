// See memory_checks.h.
#define SEQ2EXP_CHECK_MEMORY
#include <array>
#include <cstdio>
#include <unordered_map>

#include "cuda_emulator.h"

extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start, _end;  // of this library, from the linker

namespace seq2exp {
namespace emulator {
namespace checks {

bool watching = false;

namespace {

#ifndef SEQ2EXP_GRAIN
#define SEQ2EXP_GRAIN 2
#endif
constexpr int GRAIN = SEQ2EXP_GRAIN;  // bytes; the smallest type that the kernels store

// One access, as far as its order to others matters. Numbers count from 1 and never repeat.
struct Access {
  uint32_t block = 0;      // run of a block
  uint32_t interval = 0;   // between block barriers
  uint32_t warp = 0;       // between barriers of a warp
  uint32_t operation = 0;  // between operations of a warp
  int thread = 0;
};

struct Grain {
  Access write;
  Access reads[4];  // the latest, and the latest before it of: the same warp, the same block, another block
};

constexpr int PAGE = 128;  // grains

struct Buffer {
  std::string name;
  uintptr_t begin, end;
  bool shared;  // each block has its own
  std::unordered_map<uintptr_t, std::array<Grain, PAGE>> pages;  // those touched

  Grain& grain(uintptr_t i) { return pages[i / PAGE][i % PAGE]; }
};

std::vector<Buffer> buffers;   // of the launches to come
Buffer shared_memory{"shared memory", 0, 0, true, {}};
Buffer static_memory{"static shared memory", 0, 0, true, {}};
Buffer variables{"a global variable", 0, 0, false, {}};
uintptr_t arguments_begin, arguments_end;
const void* code;  // of the running access
uint32_t launch_began, runs, intervals, warp_intervals[MAX_THREADS / WARP], operations[MAX_THREADS / WARP];

void fault(const std::string& what) {
  char place[32];
  snprintf(place, sizeof(place), " (code %#zx)", size_t(static_cast<const char*>(code) - &__ehdr_start - 1));
  block.fault = "thread " + std::to_string(block.current) + " " + what + place;
  block.n_lanes = block.next_lane;  // back to the scheduler, for good
  suspend(Wait::exited);
}

// Whether an earlier access happens before this one, at whatever speed the threads run. `shared`: each block has its own.
bool ordered(const Access& before, const Access& now, bool shared, bool write_after_read) {
  if (before.block < launch_began) return true;
  if (before.block != now.block) return shared;
  if (before.thread == now.thread || before.interval != now.interval) return true;
  if (before.thread / WARP != now.thread / WARP) return false;
  return write_after_read ? before.operation != now.operation : before.warp != now.warp;
}

void remember_read(Grain& grain, const Access& now) {
  const Access last = grain.reads[0];
  if (last.block != now.block) {
    grain.reads[3] = last;
  } else if (last.thread / WARP != now.thread / WARP) {
    grain.reads[2] = last;
  } else if (last.thread != now.thread) {
    grain.reads[1] = last;
  }
  grain.reads[0] = now;
}

void touch(Buffer& buffer, uintptr_t address, size_t bytes, bool writes) {
  const int warp = block.current / WARP;
  const Access now{runs, intervals, warp_intervals[warp], operations[warp], block.current};
  for (size_t i = (address - buffer.begin) / GRAIN; i <= (address + bytes - 1 - buffer.begin) / GRAIN; ++i) {
    Grain& grain = buffer.grain(i);
    const auto place = [&] { return buffer.name + " + " + std::to_string(i * GRAIN); };
    if (!ordered(grain.write, now, buffer.shared, false))
      return fault((writes ? "writes " : "reads ") + place() + ", which thread " + std::to_string(grain.write.thread) +
                   " writes, without a barrier between");
    if (!writes) {
      remember_read(grain, now);
      continue;
    }
    for (const Access& read : grain.reads)
      if (!ordered(read, now, buffer.shared, true))
        return fault("writes " + place() + ", which thread " + std::to_string(read.thread) +
                     " reads, without a barrier between");
    grain.write = now;
  }
}

void access(const void* pointer, size_t bytes, bool writes, const void* return_address) {
  if (!watching) return;
  watching = false;
  code = return_address;
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  const auto within = [=](uintptr_t from, uintptr_t to) { return from <= begin && begin < to && bytes <= to - begin; };
  const auto stack = reinterpret_cast<uintptr_t>(block.stacks) + block.current * STACK;
  if (!within(stack, stack + STACK) && !(within(arguments_begin, arguments_end) && !writes)) {
    Buffer* found = nullptr;
    for (Buffer* buffer : {&shared_memory, &static_memory, &variables})
      if (within(buffer->begin, buffer->end)) found = buffer;
    for (size_t i = 0; i < buffers.size() && !found; ++i)
      if (within(buffers[i].begin, buffers[i].end)) found = &buffers[i];
    if (found) {
      touch(*found, begin, bytes, writes);
    } else {
      fault(std::string(writes ? "writes " : "reads ") + std::to_string(bytes) + " bytes outside of every buffer");
    }
  }
  watching = true;
}

}  // namespace

void begin_launch(const void* arguments, size_t bytes) {
  launch_began = runs + 1;
  arguments_begin = reinterpret_cast<uintptr_t>(arguments);
  arguments_end = arguments_begin + bytes;
  variables.begin = reinterpret_cast<uintptr_t>(&__ehdr_start);
  variables.end = reinterpret_cast<uintptr_t>(&_end);
}

void begin_block(const char* shared, size_t bytes, const char* statics, size_t static_bytes) {
  ++runs;
  shared_memory.begin = reinterpret_cast<uintptr_t>(shared);
  shared_memory.end = shared_memory.begin + bytes;
  static_memory.begin = reinterpret_cast<uintptr_t>(statics);
  static_memory.end = static_memory.begin + static_bytes;
  block_barrier();
}

void block_barrier() { ++intervals; }

void warp_operation(int warp, bool barrier) {
  ++operations[warp];
  warp_intervals[warp] += barrier;
}

}  // namespace checks
}  // namespace emulator
}  // namespace seq2exp

// Memory that kernels may touch from now on.
extern "C" void checks_add_buffer(const char* name, const void* data, int64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  seq2exp::emulator::checks::buffers.push_back({name, begin, begin + size_t(bytes), false, {}});
}

extern "C" void checks_forget_buffers() { seq2exp::emulator::checks::buffers.clear(); }

#define HOOK(name, writes, n) \
  extern "C" void __tsan_##name(void* p) { seq2exp::emulator::checks::access(p, n, writes, __builtin_return_address(0)); }
#define HOOKS(n) \
  HOOK(read##n, false, n) HOOK(write##n, true, n) HOOK(unaligned_read##n, false, n) HOOK(unaligned_write##n, true, n)
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)

extern "C" void __tsan_read_range(void* p, size_t n) {
  seq2exp::emulator::checks::access(p, n, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* p, size_t n) {
  seq2exp::emulator::checks::access(p, n, true, __builtin_return_address(0));
}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
