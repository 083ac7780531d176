#include "recorder.h"

#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <vector>

#include "devices.h"
#include "streams.h"

namespace stand_in {
namespace {

struct Record {
  const char* kind;
  std::string name;
  size_t bytes;
  int device;
  int stream;
  bool captured;
  int stage;
};

struct Log {
  bool is_on = false;
  int (*stage)() = nullptr;
  std::vector<Record> records;
};

// of the work that the calling thread is about to record
thread_local int stage = 0;

// Never destroyed: torch calls into the library while the process ends.
Log& log() {
  static auto* log = new Log;
  return *log;
}

std::string demangled(const std::string& name) {
  int status = 0;
  std::unique_ptr<char, decltype(&std::free)> text(abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status),
                                                   std::free);
  std::string result = status == 0 && text ? text.get() : name;
  for (char& c : result) {
    if (c == '\t' || c == '\n') c = ' ';
  }
  return result;
}

void append(const char* kind, const std::string& name, size_t bytes, const Stream* stream) {
  if (!log().is_on) return;
  const int device = stream ? stream->device : current_device();
  log().records.push_back({kind, name, bytes, device, stream ? stream->id : -1, stream && stream->capture, stage});
  stage = 0;
}

}  // namespace

std::recursive_mutex& mutex() {
  static auto* mutex = new std::recursive_mutex;
  return *mutex;
}

void observe() {
  const auto ask = log().is_on ? log().stage : nullptr;
  stage = ask ? ask() : 0;
}

void record(const char* kind, const std::string& name, size_t bytes, Stream* stream) {
  const Lock lock(mutex());
  if (stream) advance(*stream);
  append(kind, name, bytes, stream);
}

void note(const char* kind, const std::string& name, size_t bytes, const Stream& stream) {
  const Lock lock(mutex());
  append(kind, name, bytes, &stream);
}

}  // namespace stand_in

// --- What Python calls --------------------------------------------------------------------------------------------

using namespace stand_in;

// Starts a new log. `stage` is asked, from whatever thread, which stage of the program a piece of work belongs to.
STAND_IN_API void stand_in_start(int (*stage)()) {
  const Lock lock(mutex());
  log().records.clear();
  log().stage = stage;
  log().is_on = true;
}

STAND_IN_API size_t stand_in_count() {
  const Lock lock(mutex());
  return log().records.size();
}

// A record of something that is replaced in Python, on a stream of the current device.
STAND_IN_API void stand_in_record(const char* kind, const char* name, size_t bytes, void* stream) {
  observe();
  const Lock lock(mutex());
  static auto* kinds = new std::set<std::string>;
  record(kinds->insert(kind).first->c_str(), name, bytes, &stream_of(static_cast<cudaStream_t>(stream)));
}

// Writes a line of tab-separated fields a record: kind, bytes, device, stream, captured, stage, name.
STAND_IN_API int stand_in_stop(const char* path) {
  const Lock lock(mutex());
  log().is_on = false;
  std::FILE* file = std::fopen(path, "w");
  if (!file) return 1;
  for (const Record& r : log().records) {
    std::fprintf(file, "%s\t%zu\t%d\t%d\t%d\t%d\t%s\n", r.kind, r.bytes, r.device, r.stream, r.captured ? 1 : 0,
                 r.stage, demangled(r.name).c_str());
  }
  return std::fclose(file);
}
