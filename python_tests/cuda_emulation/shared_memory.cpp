#include "shared_memory.h"

#include <link.h>

namespace cuda_emulation {
namespace {

struct Search {
  ElfW(Addr) code;
  SharedSegment found;
};

int visit_module(dl_phdr_info* module, size_t, void* p) {
  auto* search = static_cast<Search*>(p);
  const ElfW(Phdr)* tls = nullptr;
  bool holds_code = false;
  for (int i = 0; i < module->dlpi_phnum; ++i) {
    const ElfW(Phdr) & header = module->dlpi_phdr[i];
    const ElfW(Addr) begin = module->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD && search->code >= begin && search->code < begin + header.p_memsz) holds_code = true;
    if (header.p_type == PT_TLS) tls = &header;
  }
  if (!holds_code) return 0;
  if (tls && module->dlpi_tls_data) {
    search->found.begin = static_cast<unsigned char*>(module->dlpi_tls_data) + tls->p_filesz;
    search->found.bytes = tls->p_memsz - tls->p_filesz;
  }
  return 1;
}

// A byte loop: memcpy would be intercepted by the sanitizers, and the segment has gaps between variables.
__attribute__((no_sanitize("address", "undefined"))) void copy_bytes(volatile unsigned char* to,
                                                                     const volatile unsigned char* from, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) to[i] = from[i];
}

}  // namespace

SharedSegment SharedSegment::of_module(const void* code) {
  Search search{reinterpret_cast<ElfW(Addr)>(code), {}};
  dl_iterate_phdr(visit_module, &search);
  return search.found;
}

void SharedSegment::save(std::vector<unsigned char>& contents) const { copy_bytes(contents.data(), begin, bytes); }
void SharedSegment::restore(const std::vector<unsigned char>& contents) const {
  copy_bytes(begin, contents.data(), bytes);
}

}  // namespace cuda_emulation
