// A whole mars-edge model behind a C interface: what an app calls, from C++, Kotlin (JNI) or Swift.
//
// Files are verified, a missing modality is not encoded, only the chosen experts run. Every function that returns
// int returns MARS_OK or the reason, and mars_model_error() then holds one line for the calling thread. A model is
// a number: a closed or invented one is refused. Calls may come from any thread; those of one model take turns.
#ifndef MARS_MODEL_H
#define MARS_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "mars_executorch.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

// The exit codes of mars_edge/errors.py.
enum { MARS_OK = 0, MARS_ENGINE = 1, MARS_USAGE = 2, MARS_BAD_MODEL = 4 };

typedef struct {
  int32_t modalities;
  int32_t experts;         // in the file
  int32_t active_experts;  // that run per decision
  int64_t logit_count;     // labels, times the pixels of a segmentation
} mars_model_info;

// Strings live as long as the model.
typedef struct {
  const char* name;
  const char* kind;  // image, audio, sequence, vector or text
  int32_t rank;
  int32_t shape[MARS_MAX_RANK];  // of one preprocessed sample, without a batch axis
  int64_t sample_count;             // floats in a sample: the product of its shape
  int64_t feature_count;            // floats in its encoder's output
} mars_modality;

// One modality of one decision. Both pointers null: it is missing.
typedef struct {
  const float* sample;   // new: preprocessed as its modality says, C order, finite
  const float* feature;  // or what `encoded` held after an earlier call: the encoder does not run again
  float* encoded;        // receives the feature that was used (`feature_count` floats); may be null
} mars_input;

// The caller's arrays.
typedef struct {
  float* logits;                // logit_count
  mars_chosen_expert* experts;  // active_experts, largest gate first
  double* stage_ms;             // modalities + 3: encoders (negative: did not run), route, experts, head
} mars_result;

typedef struct {
  const char* verdict;  // accept, reject or abstain, the label where there is no positive one, or map
  const char* label;    // null when abstaining and for a segmentation
  const char* subset;   // who was present, for example rgb+ir
  double score;         // NaN when abstaining
  double threshold;     // NaN where none applies
  const char* reason;   // why it abstains, else null
} mars_decision;

const char* mars_model_error(void);

// Verifies the bytes of a .pte (called `name` in messages), reads the manifest and runs its self-test.
// The bytes may be freed after the call. `threads` is the size of the process's pool; 0 chooses by the size of the
// network, from 1 to the number of cores, unless another model uses the pool: it then stays as it is. mars_threads()
// tells.
int mars_model_open(const void* data, size_t size_bytes, const char* name, int32_t threads, uint64_t* model);
int mars_model_close(uint64_t model);

int mars_model_describe(uint64_t model, mars_model_info* info);
int mars_model_modality(uint64_t model, int32_t index, mars_modality* modality);
// Texts that live as long as the model: the manifest document and the digest of the file.
int mars_model_texts(uint64_t model, const char** manifest, const char** digest);

// `inputs` holds one entry per modality, in the order of mars_model_modality.
int mars_model_infer(uint64_t model, const mars_input* inputs, int32_t count, mars_result* result);

// What the model's policy makes of `logits` (null: abstains) given who is present (one byte per modality, 0 or 1).
// Texts of the decision live until the thread's next call of this function, and as long as the model.
int mars_model_decide(uint64_t model, const uint8_t* present, int32_t count, const float* logits,
                      mars_decision* decision);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
