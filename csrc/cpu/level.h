// Instruction sets: the inner loops are compiled once for each (CMakeLists.txt, add_leaves) and chosen at run time.
#pragma once

namespace semckd {

enum class Level { kBase, kAvx2, kAvx512, kAvx512Bf16 };

// The best level that this processor has, up to the one that SEMCKD_CPU_LEVEL names.
Level level();

// As SEMCKD_CPU_LEVEL spells it: base, avx2, avx512, avx512_bf16.
const char* level_name();

// In a header: declares a table of functions, one for each level. In a leaf file, which CMakeLists.txt compiles once a
// level with SEMCKD_LEVEL set to it, `extern const Table SEMCKD_AT_LEVEL(name) = {...}` defines that level's.
#ifdef SEMCKD_X86_LEVELS
#define SEMCKD_DECLARE_LEVELS(Table, name)                                                             \
  extern const Table name##Base, name##Avx2, name##Avx512, name##Avx512Bf16;                           \
  inline const Table& name() {                                                                         \
    static const Table* const tables[] = {&name##Base, &name##Avx2, &name##Avx512, &name##Avx512Bf16}; \
    return *tables[static_cast<int>(level())];                                                         \
  }
#else
#define SEMCKD_DECLARE_LEVELS(Table, name) \
  extern const Table name##Base;           \
  inline const Table& name() { return name##Base; }
#endif

#define SEMCKD_CONCATENATE_(a, b) a##b
#define SEMCKD_CONCATENATE(a, b) SEMCKD_CONCATENATE_(a, b)
#define SEMCKD_AT_LEVEL(name) SEMCKD_CONCATENATE(name, SEMCKD_LEVEL)

}  // namespace semckd
