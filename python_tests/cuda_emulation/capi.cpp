// C entry points for ctypes: the emulation's own. The product's launchers are exported by kernels_capi.cpp.
#include "device_memory.h"
#include "observer.h"
#include "runtime.h"

using namespace cuda_emulation;

extern "C" {

void emulation_configure(const Options* wanted) { options() = *wanted; }
size_t emulation_options_bytes() { return sizeof(Options); }
const char* emulation_error() { return last_error(); }
int emulation_observes_accesses() { return observes_accesses(); }

void* emulation_allocate(size_t bytes, size_t misalignment) { return allocate(bytes, misalignment); }
int emulation_release(void* p) { return release(p); }
// To be called when the host has written the whole of a buffer.
void emulation_mark_written(void* p) {
  if (Allocation* allocation = find_allocation(p)) allocation->mark_written(0, allocation->bytes());
}

void emulation_reset_traffic() { reset_all_traffic(); }
void emulation_traffic(const void* p, Traffic* traffic) {
  const Allocation* allocation = find_allocation(p);
  *traffic = allocation ? allocation->traffic() : Traffic{};
}

size_t emulation_launch_count() { return launch_records().size(); }
void emulation_launch(size_t i, LaunchRecord* record) { *record = launch_records()[i]; }
void emulation_forget_launches() { launch_records().clear(); }

}  // extern "C"
