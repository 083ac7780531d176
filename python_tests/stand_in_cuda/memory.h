// Device memory and pinned memory: both are host memory whose addresses are known.
#pragma once

namespace stand_in {

bool is_device_memory(const void* address);
bool is_pinned_memory(const void* address);

}  // namespace stand_in
