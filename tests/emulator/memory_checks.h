// Checks of every access that a kernel makes to memory outside of its own stack, while it runs in the emulator: that it
// lies in a known buffer, that what it reads has been written, and that no other thread touches the same bytes without a
// barrier between (one of the two writing). Shuffles exchange registers and order no memory, as in CUDA.
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
void begin_block(const char* shared, size_t bytes);
void begin_interval();          // between two block barriers
void begin_interval(int warp);  // between two barriers of a warp
#else
#define S2E_UNWATCHED
struct Ignore {
  void operator=(bool) const {}
};
constexpr Ignore watching;
inline void begin_launch(const void*, size_t) {}
inline void begin_block(const char*, size_t) {}
inline void begin_interval() {}
inline void begin_interval(int) {}
#endif

}  // namespace checks
}  // namespace emulator
}  // namespace seq2exp
