#include "common/cpu.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cstdlib>

namespace seq2exp {
namespace {

constexpr const char* NAMES[] = {"portable", "avx2", "avx512"};
constexpr int UNSET = -1;
std::atomic<int> chosen{UNSET};

std::vector<std::string> detect() {
  std::vector<std::string> sets{NAMES[0]};
#ifdef SEQ2EXP_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) sets.emplace_back(NAMES[1]);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    sets.emplace_back(NAMES[2]);
#endif
  return sets;
}

int find(const std::string& name, const char* source) {
  const auto& sets = instruction_sets();
  std::string known;
  for (size_t i = 0; i < sets.size(); ++i) {
    if (sets[i] == name) return static_cast<int>(i);
    known += (i ? ", " : "") + sets[i];
  }
  STD_TORCH_CHECK(false, source, " asks for instruction set '", name, "'; this CPU and build have: ", known);
  return 0;
}

std::string name() { return NAMES[static_cast<int>(instruction_set())]; }
std::vector<std::string> names() { return instruction_sets(); }
void choose(std::string name) { chosen = find(name, "set_cpu_instruction_set"); }

}  // namespace

const std::vector<std::string>& instruction_sets() {
  static const std::vector<std::string> sets = detect();
  return sets;
}

InstructionSet instruction_set() {
  int set = chosen.load(std::memory_order_relaxed);
  if (set == UNSET) {
    const char* forced = std::getenv("SEQ2EXP_CPU_ISA");
    set = forced && *forced ? find(forced, "SEQ2EXP_CPU_ISA") : static_cast<int>(instruction_sets().size()) - 1;
    chosen = set;
  }
  return static_cast<InstructionSet>(set);
}

}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_sets", TORCH_BOX(&seq2exp::names));
  m.impl("cpu_instruction_set", TORCH_BOX(&seq2exp::name));
  m.impl("set_cpu_instruction_set", TORCH_BOX(&seq2exp::choose));
}
