#include "backend/cpu/isa/select.h"

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

#if defined(METALLIC_X86_KERNELS)
#include <cpuid.h>
#endif

namespace metallic::cpu {
namespace {

#if defined(METALLIC_X86_KERNELS)
// Older compilers' __builtin_cpu_supports does not know this one.
bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

std::vector<Isa> detect() {
    std::vector<Isa> isas{{"portable", &matmul_portable(), &vector_portable()}};
#if defined(METALLIC_X86_KERNELS)
    // GCC's and clang's run-time support also asks XGETBV whether the system saves the wide registers.
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && has_f16c();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx2) isas.push_back({"avx2", &matmul_avx2(), &vector_avx2()});
    if (avx512) isas.push_back({"avx512", &matmul_avx512(), &vector_avx512()});
#endif
    return isas;
}

}  // namespace

std::span<const Isa> supported_isas() {
    static const std::vector<Isa> isas = detect();
    return isas;
}

const Isa& select_isa() {
    const std::span<const Isa> isas = supported_isas();
    const char* wanted = std::getenv("METALLIC_CPU_ISA");
    if (!wanted || !*wanted) return isas.back();
    std::string names;
    for (const Isa& isa : isas) {
        if (std::string_view(wanted) == isa.name) return isa;
        names += (names.empty() ? "" : ", ") + std::string(isa.name);
    }
    throw RequestError("METALLIC_CPU_ISA is '" + std::string(wanted) + "'; this machine supports: " + names);
}

}  // namespace metallic::cpu
