// The types of maps. Whatever differs by type is a table or a switch over DType; a table has a static_assert of
// kDTypes beside it, so that a new type does not compile before each of them has its row.
#pragma once

#include <cstdint>

namespace semckd {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16, kFloat64 };

constexpr int kDTypes = 4;
static_assert(static_cast<int>(DType::kFloat64) == kDTypes - 1, "kDTypes counts the types, the last one is fp64");

constexpr int64_t kItemSize[] = {4, 2, 2, 8};
static_assert(sizeof(kItemSize) / sizeof(kItemSize[0]) == kDTypes, "bytes of an element of each DType");

constexpr int index_of(DType dtype) { return static_cast<int>(dtype); }

// Sums, vectors and small matrices are fp64 for fp64 maps and fp32 for all others.
constexpr bool accumulates_in_double(DType dtype) { return dtype == DType::kFloat64; }

}  // namespace semckd
