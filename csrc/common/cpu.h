// Run-time choice of the instruction set.
#pragma once
#include <string>
#include <vector>

namespace seq2exp {

enum class InstructionSet { portable, avx2, avx512 };

// Those this CPU can run, slowest first.
const std::vector<std::string>& instruction_sets();

// The best one, unless SEQ2EXP_CPU_ISA or set_instruction_set names another. Throws when this CPU lacks the one named.
InstructionSet instruction_set();

}  // namespace seq2exp
