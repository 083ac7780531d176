// Which addresses are device memory, and which are pinned memory of the host.
#pragma once

namespace stand_in {

bool is_device_memory(const void* address);
bool is_pinned_memory(const void* address);

}  // namespace stand_in
