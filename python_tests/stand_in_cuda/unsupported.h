// Functions that nothing here needed so far: they fail, and the record says which was called.
#pragma once

#include "recorder.h"

// weak: a definition in another file takes its place
#define UNSUPPORTED(name)                                              \
  extern "C" __attribute__((weak, visibility("default"))) int name() { \
    stand_in::record(stand_in::kind::kUnsupported, #name);             \
    return 801; /* cudaErrorNotSupported, CUDA_ERROR_NOT_SUPPORTED */  \
  }
