// What the CPU kernels take from torch (its threads), and what a process can ask of them. No maths here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "core/parallel.h"
#include "core/scratch.h"
#include "cpu/isa/isa.h"

namespace semckd {

namespace {

thread_local bool is_alone = false;

}  // namespace

void parallel_ranges(int64_t size, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  if (!is_alone)
    torch::stable::parallel_for(0, size, grain, [&](int64_t begin, int64_t end) { body(begin, end, context); });
  else if (size > 0)
    body(0, size, context);
}

int64_t parallel_threads() { return is_alone ? 1 : torch::stable::get_num_threads(); }

OnThisThread::OnThisThread(bool alone) : before_(is_alone) { is_alone = is_alone || alone; }
OnThisThread::~OnThisThread() { is_alone = before_; }

namespace {

std::string chosen_isa() { return isa_name(); }

void advise_huge_pages_under(torch::stable::Tensor buffer) {
  advise_huge_pages(buffer.mutable_data_ptr(), static_cast<size_t>(buffer.numel()) * buffer.element_size());
}

}  // namespace
}  // namespace semckd

STABLE_TORCH_LIBRARY_FRAGMENT(semckd_cpu, m) {
  // base, avx2, avx512 or avx512_bf16
  m.def("isa() -> str");
  m.def("advise_huge_pages(Tensor buffer) -> ()");
  m.def("release_scratch() -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(semckd_cpu, CPU, m) {
  m.impl("advise_huge_pages", TORCH_BOX(&semckd::advise_huge_pages_under));
}

STABLE_TORCH_LIBRARY_IMPL(semckd_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&semckd::chosen_isa));
  m.impl("release_scratch", TORCH_BOX(&semckd::release_scratch));
}
