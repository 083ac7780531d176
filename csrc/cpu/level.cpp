#include <cstdlib>
#include <cstring>

#include "leaf.h"

namespace semckd {
namespace {

const Leaves& choose() {
  const char* wanted = std::getenv("SEMCKD_CPU_LEVEL");
  // a level above the wanted one is passed over; an unknown name is refused in Python, where it can be explained
  [[maybe_unused]] auto allowed = [wanted](const char* level) { return !wanted || !std::strcmp(wanted, level); };
#ifdef SEMCKD_X86_LEVELS
  __builtin_cpu_init();
  if (allowed(kLeavesAvx512.level) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return kLeavesAvx512;
  if (allowed(kLeavesAvx2.level) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return kLeavesAvx2;
#endif
  return kLeavesBase;
}

}  // namespace

const Leaves& leaves() {
  static const Leaves& chosen = choose();
  return chosen;
}

}  // namespace semckd
