// Times of the operators inside one method of an ExecuTorch program, from the runtime's own event tracer.
//
// A library of its own: it loads the program a second time, so that nothing of it is in the way of a decision.
#ifndef MARS_TRACE_H
#define MARS_TRACE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define MARS_TRACE_ABI 1

int32_t mars_trace_abi(void);
const char* mars_trace_error(void);

// Loads `method`, runs it `warmup` times unseen and `runs` times watched, and frees it again. `inputs` holds the address
// of each input's C-ordered data. `events` gets a line per event, valid until this thread's next call:
//   RUN TAB KIND TAB NAME TAB INSTRUCTION TAB NANOSECONDS
// KIND is "runtime" for what the runtime times itself (the method, each instruction, each kernel) and "delegate" for
// what a delegate reports from its inside. Returns 0, or another value with one line in mars_trace_error().
int mars_trace(const void* program, size_t size_bytes, const char* method, const void* const* inputs,
               int32_t input_count, int32_t warmup, int32_t runs, const char** events);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
