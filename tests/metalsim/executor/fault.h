#pragma once

namespace metalsim {

// Turns a processor's fault (SIGSEGV, SIGBUS) in a kernel into a report. Faults elsewhere go where they went before.
void install_fault_handler();
// The handler runs on a stack of its own, since a thread's may be what overflowed. Once per thread; cheap when done.
void prepare_thread_for_faults();

}  // namespace metalsim
