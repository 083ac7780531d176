// Sees every memory access of kernels that were compiled with -fsanitize=thread.
#pragma once

namespace cuda_emulation {

// Whether such kernels are in this process.
bool observes_accesses();

}  // namespace cuda_emulation
