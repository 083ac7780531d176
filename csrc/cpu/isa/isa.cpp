#include "cpu/isa/isa.h"

#include <cstdlib>
#include <cstring>

namespace semckd {
namespace {

constexpr const char* kNames[] = {"base", "avx2", "avx512", "avx512_bf16"};

[[maybe_unused]] bool processor_has(Isa isa) {
#ifdef SEMCKD_X86_ISAS
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kAvx512Bf16:
      return processor_has(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAvx512:
      return processor_has(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::kBase:
      break;
  }
#endif
  return isa == Isa::kBase;
}

Isa choose() {
  int highest = static_cast<int>(Isa::kAvx512Bf16);
  if (const char* cap = std::getenv("SEMCKD_CPU_LEVEL")) {
    // an unknown name is refused in Python, where it can be explained; here it allows nothing but base
    while (highest > 0 && std::strcmp(cap, kNames[highest]) != 0) --highest;
  }
  while (!processor_has(static_cast<Isa>(highest))) --highest;
  return static_cast<Isa>(highest);
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name() { return kNames[static_cast<int>(isa())]; }

}  // namespace semckd
