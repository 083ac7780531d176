// Instruction sets: the inner loops are compiled once for each (CMakeLists.txt, add_leaves) and chosen at run time.
#pragma once

namespace semckd {

enum class Isa { kBase, kAvx2, kAvx512, kAvx512Bf16 };

// The best instruction set that this processor has, up to the one that SEMCKD_CPU_LEVEL names.
Isa isa();

// As SEMCKD_CPU_LEVEL spells it: base, avx2, avx512, avx512_bf16.
const char* isa_name();

// In a header: declares a table of functions, one for each instruction set. In a file *_kernels.cpp, which
// CMakeLists.txt compiles once an instruction set with SEMCKD_ISA set to it, `extern const Table SEMCKD_FOR_ISA(name) =
// {...}` defines its table.
#ifdef SEMCKD_X86_ISAS
#define SEMCKD_DECLARE_ISA_TABLES(Table, name)                                                         \
  extern const Table name##Base, name##Avx2, name##Avx512, name##Avx512Bf16;                           \
  inline const Table& name() {                                                                         \
    static const Table* const tables[] = {&name##Base, &name##Avx2, &name##Avx512, &name##Avx512Bf16}; \
    return *tables[static_cast<int>(isa())];                                                           \
  }
#else
#define SEMCKD_DECLARE_ISA_TABLES(Table, name) \
  extern const Table name##Base;               \
  inline const Table& name() { return name##Base; }
#endif

#define SEMCKD_CONCATENATE_(a, b) a##b
#define SEMCKD_CONCATENATE(a, b) SEMCKD_CONCATENATE_(a, b)
#define SEMCKD_FOR_ISA(name) SEMCKD_CONCATENATE(name, SEMCKD_ISA)

}  // namespace semckd
