// Marks that tell bench/sass.py how often a piece of a kernel runs. They cost nothing: normally they expand to nothing,
// and with SEQ2EXP_MARKERS each becomes one PMTRIG instruction, which is not counted.
//   S2E_MARK(id)         first in a loop's body: a thread passes it as often as bench/scan_trips.py says
//   S2E_MARK_BRANCH(id)  first in a conditional block: the same, for whatever runs only after it
// An id is a constant from 1 to 255, unique within a kernel.
#pragma once

#if defined(SEQ2EXP_MARKERS) && defined(__CUDA_ARCH__)
#define S2E_MARK(id) asm volatile("pmevent.mask %0;" ::"n"(0x100 | (id)))
#define S2E_MARK_BRANCH(id) asm volatile("pmevent.mask %0;" ::"n"(0x200 | (id)))
#else
#define S2E_MARK(id)
#define S2E_MARK_BRANCH(id)
#endif
