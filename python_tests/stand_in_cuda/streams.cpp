// Streams and events. A stream's clock says which work comes before its next piece: an event carries the clock on.
#include "streams.h"

#include <algorithm>
#include <string>
#include <vector>

#include "capture.h"
#include "devices.h"
#include "recorder.h"

namespace stand_in {
namespace {

struct Event {
  int device;
  Capture* capture = nullptr;
  Clock clock;
};

// Never freed: torch keeps streams for the life of the process.
std::vector<Stream*>& streams() {
  static auto* all = new std::vector<Stream*>;
  return *all;
}

Stream& new_stream(int device) {
  streams().push_back(new Stream{static_cast<int>(streams().size()), device, nullptr, {}});
  return *streams().back();
}

Stream& default_stream(int device) {
  static auto* defaults = new std::map<int, Stream*>;
  Stream*& stream = (*defaults)[device];
  if (!stream) stream = &new_stream(device);
  return *stream;
}

Event& event_of(cudaEvent_t handle) { return *reinterpret_cast<Event*>(handle); }

void join(Clock& clock, const Clock& other) {
  for (const auto& [stream, done] : other) clock[stream] = std::max(clock[stream], done);
}

cudaError_t create(cudaStream_t* handle) {
  const Lock lock(mutex());
  *handle = reinterpret_cast<cudaStream_t>(&new_stream(current_device()));
  return cudaSuccess;
}

cudaError_t record_event(cudaEvent_t handle, cudaStream_t stream_handle) {
  const Lock lock(mutex());
  Event& event = event_of(handle);
  const Stream& stream = stream_of(stream_handle);
  if (event.device != stream.device) {
    note(kind::kIllegal, "event of another device than its stream's", 0, stream);
    return fail(cudaErrorInvalidResourceHandle);
  }
  event.clock = stream.clock;
  event.capture = stream.capture;
  return cudaSuccess;
}

// Queries and waits; an event that was recorded in a capture has no state to ask for.
cudaError_t ask(cudaEvent_t handle, const char* call) {
  if (event_of(handle).capture || refuses_in_capture(call)) return fail(cudaErrorStreamCaptureUnsupported);
  return cudaSuccess;
}

}  // namespace

Stream& stream_of(cudaStream_t handle) {
  const Lock lock(mutex());
  // the legacy default stream, by its two names, and a thread's own
  const bool is_default = !handle || handle == cudaStreamLegacy || handle == cudaStreamPerThread;
  return is_default ? default_stream(current_device()) : *reinterpret_cast<Stream*>(handle);
}

void advance(Stream& stream) {
  const Lock lock(mutex());
  ++stream.clock[stream.id];
  if (stream.capture) ++stream.capture->nodes;
}

bool is_on_other_device(const Stream& stream, const char* call) {
  if (stream.device == current_device()) return false;
  note(kind::kIllegal, std::string(call) + " on a stream of another device than the current one", 0, stream);
  return true;
}

const std::vector<Stream*>& all_streams() { return streams(); }

void forget_capture(Capture* capture) {
  for (Stream* stream : streams()) {
    if (stream->capture == capture) stream->capture = nullptr;
  }
}

}  // namespace stand_in

using namespace stand_in;

STAND_IN_API cudaError_t cudaStreamCreate(cudaStream_t* s) { return create(s); }
STAND_IN_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return create(s); }
STAND_IN_API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) { return create(s); }
STAND_IN_API cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

STAND_IN_API cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaStreamGetDevice(cudaStream_t s, int* device) {
  *device = stream_of(s).device;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaStreamQuery(cudaStream_t) {
  return refuses_in_capture("cudaStreamQuery") ? fail(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

STAND_IN_API cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  observe();
  const Lock lock(mutex());
  Stream& stream = stream_of(s);
  if (stream.capture) {
    invalidate(stream, "cudaStreamSynchronize");
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  if (refuses_in_capture("cudaStreamSynchronize")) return fail(cudaErrorStreamCaptureUnsupported);
  note(kind::kSync, "stream", 0, stream);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t handle, unsigned) {
  const Lock lock(mutex());
  const Event& event = event_of(handle);
  Stream& stream = stream_of(s);
  if (event.capture && !stream.capture) {
    // the stream joins the capture
    stream.capture = event.capture;
  } else if (event.capture != stream.capture && !event.clock.empty()) {
    invalidate(stream, "wait for an event from outside the capture");
    return fail(cudaErrorStreamCaptureIsolation);
  }
  join(stream.clock, event.clock);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned) {
  *handle = reinterpret_cast<cudaEvent_t>(new Event{current_device(), nullptr, {}});
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaEventCreate(cudaEvent_t* handle) { return cudaEventCreateWithFlags(handle, 0); }

STAND_IN_API cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  delete &event_of(handle);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return record_event(e, s); }
STAND_IN_API cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned) {
  return record_event(e, s);
}

STAND_IN_API cudaError_t cudaEventQuery(cudaEvent_t e) { return ask(e, "cudaEventQuery"); }

STAND_IN_API cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  const cudaError_t error = ask(e, "cudaEventSynchronize");
  if (error == cudaSuccess) record(kind::kSync, "event");
  return error;
}

STAND_IN_API cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  if (event_of(from).capture || event_of(to).capture) return fail(cudaErrorInvalidValue);
  // nothing ran, so any time would do: one that is not zero
  *ms = 1.0f;
  return cudaSuccess;
}
