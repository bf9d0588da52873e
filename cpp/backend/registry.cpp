#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "core/error.h"
#ifdef METALLIC_METAL
#include "backend/metal/metal_backend.h"
#endif

namespace metallic {

std::vector<DeviceInfo> list_devices() {
    std::vector<DeviceInfo> devices;
#ifdef METALLIC_METAL
    if (const auto gpu = metal::device_info()) devices.push_back(*gpu);
#endif
    devices.push_back(cpu::device_info());
    return devices;
}

std::unique_ptr<Backend> create_host_backend(uint32_t threads) {
    return cpu::create_backend(threads);
}

std::unique_ptr<Backend> create_backend(const BackendOptions& options) {
#ifdef METALLIC_METAL
    if (options.device == "metal" || (options.device == "auto" && metal::device_info())) {
        return metal::create_backend();
    }
#endif
    if (options.device == "auto" || options.device == "cpu") return cpu::create_backend(options.threads);
    std::string names = "auto";
    for (const DeviceInfo& device : list_devices()) names += ", " + device.backend;
    throw RequestError("there is no device '" + options.device + "' here; the devices are: " + names);
}

}  // namespace metallic
