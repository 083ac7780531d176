// What the stand-in runtime saw: one record a call that matters, in order.
#pragma once

#include <cstddef>
#include <mutex>
#include <string>

// The whole interface of a CUDA library is visible; everything else of this library is not.
#define STAND_IN_API extern "C" __attribute__((visibility("default")))

namespace stand_in {

struct Stream;

// Kinds of records. Python reads the same words (records.py).
namespace kind {
// work on a stream
constexpr const char* kKernel = "kernel";    // of the CUDA runtime: torch's own, and ours in CUDA C++
constexpr const char* kTriton = "triton";    // of the driver: Triton's
constexpr const char* kCopy = "copy";        // name: from and to where, e.g. "H2D pinned"
constexpr const char* kFill = "fill";        // cudaMemset
constexpr const char* kGraph = "graph";      // a replay; bytes: its nodes
constexpr const char* kHost = "host";        // a host function on a stream
constexpr const char* kVendor = "vendor";    // cuBLAS and cuDNN, recorded by vendor.py
constexpr const char* kCapture = "capture";  // name: begin, ok, unjoined, invalid; bytes: nodes at the end
// of the host
constexpr const char* kSync = "sync";                // the host waits for the device
constexpr const char* kAllocate = "allocate";        // cudaMalloc; bytes
constexpr const char* kPin = "pin";                  // cudaHostAlloc; bytes
constexpr const char* kModule = "module";            // a compiled module is loaded
constexpr const char* kIllegal = "illegal";          // a call that a real runtime would refuse, or that kills a capture
constexpr const char* kUnsupported = "unsupported";  // a function that this library does not have
}  // namespace kind

// Guards all state of the library. Recursive, since calls are made of calls.
std::recursive_mutex& mutex();
using Lock = std::lock_guard<std::recursive_mutex>;

// Asks which stage of the program comes to launch. First thing in a launch, a copy, a fill or a wait for a
// stream, before the mutex is taken: Python answers, for which it takes its own lock.
void observe();

// Adds a record. Work on a stream moves its clock and becomes a node of the graph that is being captured there.
void record(const char* kind, const std::string& name, size_t bytes = 0, Stream* stream = nullptr);

// A record for a stream that is no work on it.
void note(const char* kind, const std::string& name, size_t bytes, const Stream& stream);

}  // namespace stand_in
