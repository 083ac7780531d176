// Captures by CUDA's rules: what invalidates one, which calls are refused meanwhile, whether every stream came back.
#include "capture.h"

#include <algorithm>
#include <list>

#include "devices.h"
#include "recorder.h"

namespace stand_in {
namespace {

// a finished graph is its capture, of which the number of nodes is read
std::list<Capture>& captures() {
  static auto* all = new std::list<Capture>;
  return *all;
}

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

bool is_active(const Capture& capture) { return capture.origin->capture == &capture; }

// https://docs.nvidia.com/cuda/cuda-runtime-api: cudaThreadExchangeStreamCaptureMode
bool prohibits(const Capture& capture) {
  if (!is_active(capture) || thread_mode == cudaStreamCaptureModeRelaxed) return false;
  if (pthread_equal(capture.thread, pthread_self())) return capture.mode != cudaStreamCaptureModeRelaxed;
  return thread_mode == cudaStreamCaptureModeGlobal && capture.mode == cudaStreamCaptureModeGlobal;
}

bool is_joined(const Capture& capture) {
  const auto& streams = all_streams();
  return std::all_of(streams.begin(), streams.end(), [&](const Stream* stream) {
    if (stream->capture != &capture || stream == capture.origin) return true;
    const Clock& known = capture.origin->clock;
    const auto own = stream->clock.find(stream->id);
    return own == stream->clock.end() || (known.count(stream->id) && known.at(stream->id) >= own->second);
  });
}

Capture& graph_of(void* handle) { return *static_cast<Capture*>(handle); }

}  // namespace

bool refuses_in_capture(const char* call) {
  const Lock lock(mutex());
  bool refuses = false;
  for (Capture& capture : captures()) {
    if (!prohibits(capture)) continue;
    capture.invalid = refuses = true;
    note(kind::kIllegal, std::string(call) + " during a capture", 0, *capture.origin);
  }
  return refuses;
}

void invalidate(Stream& stream, const char* why) {
  if (stream.capture) stream.capture->invalid = true;
  note(kind::kIllegal, std::string(why) + " in a capture", 0, stream);
}

}  // namespace stand_in

using namespace stand_in;

STAND_IN_API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  *status = stream_of(s).capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, cudaStreamCaptureStatus* status,
                                                  unsigned long long* id, cudaGraph_t* graph,
                                                  const cudaGraphNode_t** dependencies, const cudaGraphEdgeData** edges,
                                                  size_t* count) {
  Capture* capture = stream_of(s).capture;
  cudaStreamIsCapturing(s, status);
  if (id) *id = capture ? capture->id : 0;
  if (graph) *graph = reinterpret_cast<cudaGraph_t>(capture);
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
  const Lock lock(mutex());
  static unsigned long long next = 1;
  Stream& stream = stream_of(s);
  if (stream.capture) return fail(cudaErrorIllegalState);
  captures().push_back({next++, &stream, mode, pthread_self()});
  stream.capture = &captures().back();
  note(kind::kCapture, "begin", 0, stream);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t s, cudaGraph_t, const cudaGraphNode_t*,
                                                       const cudaGraphEdgeData*, size_t, cudaStreamCaptureMode mode) {
  return cudaStreamBeginCapture(s, mode);
}

STAND_IN_API cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  const Lock lock(mutex());
  Stream& stream = stream_of(s);
  Capture* capture = stream.capture;
  if (!capture) return fail(cudaErrorIllegalState);
  const bool joined = is_joined(*capture);
  note(kind::kCapture, !joined ? "unjoined" : capture->invalid ? "invalid" : "ok", capture->nodes, stream);
  forget_capture(capture);
  *graph = nullptr;
  if (!joined) return fail(cudaErrorStreamCaptureUnjoined);
  if (capture->invalid) return fail(cudaErrorStreamCaptureInvalidated);
  *graph = reinterpret_cast<cudaGraph_t>(capture);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = graph_of(graph).nodes;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* program, cudaGraph_t graph,
                                                       unsigned long long) {
  *program = reinterpret_cast<cudaGraphExec_t>(graph);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaGraphInstantiate(cudaGraphExec_t* program, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiateWithFlags(program, graph, flags);
}

STAND_IN_API cudaError_t cudaGraphLaunch(cudaGraphExec_t program, cudaStream_t s) {
  observe();
  record(kind::kGraph, "replay", graph_of(program).nodes, &stream_of(s));
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
STAND_IN_API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }

STAND_IN_API cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void*, cudaHostFn_t, unsigned, unsigned) {
  *object = reinterpret_cast<cudaUserObject_t>(1);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaUserObjectRelease(cudaUserObject_t, unsigned) { return cudaSuccess; }
STAND_IN_API cudaError_t cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t, unsigned, unsigned) {
  return cudaSuccess;
}
