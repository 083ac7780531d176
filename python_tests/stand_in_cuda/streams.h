// Streams, events and captures: who has waited for whom, and what belongs to a graph.
#pragma once

#include <cuda_runtime_api.h>

#include <map>

namespace stand_in {

struct Capture;

// How much work of each stream, by id, is known to be done before what comes next.
using Clock = std::map<int, long>;

struct Stream {
  int id;
  int device;
  Capture* capture = nullptr;
  Clock clock;
};

// The stream behind a handle; for the default streams, that of the current device.
Stream& stream_of(cudaStream_t handle);

// One more piece of work on a stream, and a node of the graph that is captured there.
void advance(Stream& stream);

// Whether this call is refused because a capture is going on that it would disturb; the capture is then invalid.
bool refuses_in_capture(const char* call);

// Makes the capture on a stream invalid and records why.
void invalidate(Stream& stream, const char* why);

// Whether the stream belongs to another device than the current one, which launches and events refuse.
bool is_on_other_device(const Stream& stream, const char* call);

}  // namespace stand_in
