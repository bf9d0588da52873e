#include <pthread.h>

#include "bindings/bindings.h"

NB_MODULE(_native, m) {
    m.doc() = "The native core of metallic_native. Not a public interface.";
    metallic::bind_errors(m);
    metallic::bind_gguf(m);
    metallic::bind_kernels(m);
    metallic::bind_memory(m);
    metallic::bind_sampling(m);
    metallic::bind_builder(m);
    metallic::bind_model(m);
    metallic::bind_placement(m);
    // A forked child keeps its parent's models on purpose.
    pthread_atfork(nullptr, nullptr, [] { nanobind::set_leak_warnings(false); });
}
