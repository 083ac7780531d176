// A capture in progress, and the graph that it becomes.
#pragma once

#include <cuda_runtime_api.h>
#include <pthread.h>

#include <cstddef>
#include <vector>

#include "streams.h"

namespace stand_in {

struct Capture {
  unsigned long long id;
  Stream* origin;
  cudaStreamCaptureMode mode;
  pthread_t thread;
  bool invalid = false;
  size_t nodes = 0;
};

const std::vector<Stream*>& all_streams();
void forget_capture(Capture* capture);

}  // namespace stand_in
