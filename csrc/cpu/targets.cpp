#include "cpu/targets.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <string_view>

// The build names the targets that it compiled, best first: FUSEDSTEP_TARGETS(X) is X(avx512) X(avx2) X(baseline).
#include "fusedstep_targets.hpp"

#define FUSEDSTEP_DECLARE(target)            \
  namespace fusedstep::target {              \
  extern const fusedstep::Rule* const rules; \
  extern const int rule_count;               \
  extern const CompiledNorm norms[];         \
  }
FUSEDSTEP_TARGETS(FUSEDSTEP_DECLARE)

namespace fusedstep {
namespace {

#if defined(__x86_64__)
// (Clang's builtin has no name for it.)
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

bool cpu_runs(std::string_view target) {
#if defined(__x86_64__)
  // What the flags in CMakeLists.txt let the compiler use. The builtin asks the operating system too.
  __builtin_cpu_init();
  if (target == "avx2") return __builtin_cpu_supports("avx2") && has_f16c();
  if (target == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && has_f16c();
  }
#endif
  return target == "baseline";
}

#define FUSEDSTEP_ENTRY(target) {#target, target::rules, target::rule_count, target::norms, cpu_runs(#target)},

const Target* current = nullptr;

}  // namespace

std::span<const Target> targets() {
  static const Target all[] = {FUSEDSTEP_TARGETS(FUSEDSTEP_ENTRY)};
  return all;
}

const Target& current_target() {
  if (current == nullptr) current = &*std::ranges::find_if(targets(), &Target::supported);
  return *current;
}

void select_target(const Target& target) {
  current = &target;
}

}  // namespace fusedstep
