#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "core/error.h"

namespace metallic {

std::vector<DeviceInfo> list_devices() {
    return {cpu::device_info()};
}

std::unique_ptr<Backend> create_backend(const BackendOptions& options) {
    if (options.device == "auto" || options.device == "cpu") return cpu::create_backend(options.threads);
    std::string names = "auto";
    for (const DeviceInfo& device : list_devices()) names += ", " + device.backend;
    throw RequestError("there is no device '" + options.device + "' here; the devices are: " + names);
}

}  // namespace metallic
