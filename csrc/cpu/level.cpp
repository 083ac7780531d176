#include "level.h"

#include <cstdlib>
#include <cstring>

namespace semckd {
namespace {

constexpr const char* kNames[] = {"base", "avx2", "avx512", "avx512_bf16"};

[[maybe_unused]] bool processor_has(Level level) {
#ifdef SEMCKD_X86_LEVELS
  __builtin_cpu_init();
  switch (level) {
    case Level::kAvx512Bf16:
      return processor_has(Level::kAvx512) && __builtin_cpu_supports("avx512bf16");
    case Level::kAvx512:
      return processor_has(Level::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Level::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Level::kBase:
      break;
  }
#endif
  return level == Level::kBase;
}

Level choose() {
  int highest = static_cast<int>(Level::kAvx512Bf16);
  if (const char* cap = std::getenv("SEMCKD_CPU_LEVEL")) {
    // an unknown name is refused in Python, where it can be explained; here it allows nothing but base
    while (highest > 0 && std::strcmp(cap, kNames[highest]) != 0) --highest;
  }
  while (!processor_has(static_cast<Level>(highest))) --highest;
  return static_cast<Level>(highest);
}

}  // namespace

Level level() {
  static const Level chosen = choose();
  return chosen;
}

const char* level_name() { return kNames[static_cast<int>(level())]; }

}  // namespace semckd
