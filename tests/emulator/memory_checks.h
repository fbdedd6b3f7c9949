// Checks of every access that a kernel makes to memory outside of its own stack, while it runs in the emulator: that it
// lies in a known buffer, and that no other thread touches the same bytes without a barrier between (one of the two
// writing). A shuffle is no barrier: what was written before it need not be seen after it. It only keeps a write after it
// from overtaking a read before it, since all lanes are then past that read.
//
// A source compiled with -fsanitize=thread -DSEQ2EXP_CHECK_MEMORY calls the functions of ThreadSanitizer at each access;
// memory_checks.cpp, compiled without, defines them. What runs in the emulator itself is not watched.
#pragma once
#include <cstddef>

namespace seq2exp {
namespace emulator {
namespace checks {

#ifdef SEQ2EXP_CHECK_MEMORY
#define S2E_UNWATCHED __attribute__((no_sanitize_thread))
extern bool watching;  // a kernel runs
void begin_launch(const void* arguments, size_t bytes);
void begin_block(const char* shared, size_t bytes, const char* statics, size_t static_bytes);
void block_barrier();
void warp_operation(int warp, bool barrier);  // that all lanes of the warp take part in
#else
#define S2E_UNWATCHED
struct Ignore {
  void operator=(bool) const {}
};
constexpr Ignore watching;
inline void begin_launch(const void*, size_t) {}
inline void begin_block(const char*, size_t, const char*, size_t) {}
inline void block_barrier() {}
inline void warp_operation(int, bool) {}
#endif

}  // namespace checks
}  // namespace emulator
}  // namespace seq2exp
