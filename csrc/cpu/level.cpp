#include <cstdlib>
#include <cstring>

#include "leaf.h"

namespace semckd {
namespace {

const Leaves& choose() {
  // an unknown name is refused in Python, where it can be explained; here it allows nothing but base
  const char* highest = std::getenv("SEMCKD_CPU_LEVEL");
  [[maybe_unused]] const auto is = [highest](const char* level) { return !std::strcmp(highest, level); };
  [[maybe_unused]] const bool avx512 = !highest || is("avx512"), avx2 = avx512 || is("avx2");
#ifdef SEMCKD_X86_LEVELS
  __builtin_cpu_init();
  if (avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return kLeavesAvx512;
  if (avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
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
