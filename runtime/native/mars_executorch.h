// A C interface to the ExecuTorch runtime: no Python, no PyTorch, no exceptions cross it.
//
// Every function that returns int returns 0 on success. On failure it returns another value and
// mars_last_error() holds one line for the calling thread.
//
// An engine is a number, not a pointer: a closed or invented one is refused instead of followed.
#ifndef MARS_EXECUTORCH_H
#define MARS_EXECUTORCH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define MARS_ABI 3
#define MARS_MAX_RANK 8

// dtype: the ScalarType numbers of PyTorch (0 uint8, 1 int8, 4 int64, 6 float32, ...).
typedef struct {
  int32_t dtype;
  int32_t rank;
  int32_t shape[MARS_MAX_RANK];
  int64_t size_bytes;
  int32_t is_planned;  // 1: the runtime copies this tensor to or from its own arena
} mars_tensor_info;

// A C-contiguous array owned by the caller for the length of the call.
typedef struct {
  void* data;
  int32_t dtype;
  int32_t rank;
  int32_t shape[MARS_MAX_RANK];
} mars_array;

// A model's methods and the forms of its tensors; `data` of every array here is ignored. All tensors are float32.
typedef struct {
  int32_t modalities;
  const char* const* encoders;  // a method per modality
  const mars_array* samples;
  const mars_array* features;
  const char* const* experts;  // a method per entry of router_logits
  const char* shared_expert;   // null where there is none
  int32_t active_experts;
  mars_array z;
  mars_array router_logits;
  mars_array combined;
  mars_array logits;
} mars_plan;

typedef struct {
  int32_t expert;
  float gate;
} mars_chosen_expert;

typedef struct {
  int64_t program_bytes;
  int64_t arena_bytes;
  int64_t method_bytes;  // runtime structures of the loaded methods, without the delegate's own
  int32_t methods_loaded;
} mars_memory;

int32_t mars_abi(void);
const char* mars_last_error(void);

// Copies the program, so `data` may be freed after the call.
int mars_open(const void* data, size_t size_bytes, uint64_t* engine);
int mars_close(uint64_t engine);

int mars_method_count(uint64_t engine, int32_t* count);
// `name` lives as long as the engine.
int mars_method_name(uint64_t engine, int32_t index, const char** name);
int mars_method_arity(uint64_t engine, const char* method, int32_t* inputs, int32_t* outputs);
int mars_tensor(uint64_t engine, const char* method, int32_t is_output, int32_t index, mars_tensor_info* info);

// Loads the method on first use. Outputs are written into the caller's arrays.
int mars_execute(uint64_t engine, const char* method, const mars_array* inputs, int32_t input_count,
                 const mars_array* outputs, int32_t output_count);

// One inference: the encoders of the modalities with a sample, "route", the chosen experts, "head".
//   samples   per modality the new sample, or null: its encoder does not run
//   features  per modality its feature: written where there is a sample; given otherwise, zeros where it is missing
//   chosen    receives active_experts entries, largest gate first
//   stage_ms  receives modalities + 3 times: each encoder (negative: it did not run), route, experts, head
// Fails where router logits or logits are not finite.
int mars_infer(uint64_t engine, const mars_plan* plan, const float* const* samples, float* const* features,
               float* logits, mars_chosen_expert* chosen, double* stage_ms);

// The thread pool belongs to the process: it can only change while no engine has loaded a method.
int mars_set_threads(int32_t threads);
// The same for an engine whose methods may be loaded, where no other engine has loaded one; else nothing changes.
int mars_prefer_threads(uint64_t engine, int32_t threads);
int32_t mars_threads(void);

int mars_memory_use(uint64_t engine, mars_memory* use);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
