// Devices that are not there: how many, which is current, and each thread's last error.
#pragma once

#include <cuda_runtime_api.h>

namespace stand_in {

int device_count();

// Of the calling thread, as in CUDA.
int current_device();

// Sets the thread's last error and returns it.
cudaError_t fail(cudaError_t error);

}  // namespace stand_in
