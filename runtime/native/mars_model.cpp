#include "mars_model.h"

#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#include "decision.h"
#include "error.h"
#include "model.h"

namespace {

using mars::Model;

struct Entry {
  std::mutex mutex;
  Model model;

  Entry(const uint8_t* data, size_t size_bytes, const char* name, int32_t threads)
      : model(data, size_bytes, name, threads) {}
};

thread_local std::string last_error;
// What the thread's last mars_decision points to.
thread_local mars::Decision last_decision;
thread_local std::string last_subset;

std::mutex models_mutex;
// Never destroyed: at exit the interface below is gone before an open model could be closed.
auto& models = *new std::map<uint64_t, std::shared_ptr<Entry>>;
uint64_t next_model = 1;

std::shared_ptr<Entry> find(uint64_t id) {
  std::lock_guard<std::mutex> lock(models_mutex);
  const auto found = models.find(id);
  if (found == models.end()) {
    throw mars::engine_error("the model is closed");
  }
  return found->second;
}

// No C++ exception may leave a C function.
template <typename Body>
int guarded(Body body) {
  try {
    body();
    return MARS_OK;
  } catch (const mars::Error& error) {
    last_error = error.what();
    return error.code;
  } catch (const std::exception& error) {
    last_error = std::string("out of memory or internal error: ") + error.what();
    return MARS_ENGINE;
  }
}

template <typename Body>
int with_model(uint64_t id, Body body) {
  return guarded([&] {
    const std::shared_ptr<Entry> entry = find(id);
    std::lock_guard<std::mutex> lock(entry->mutex);
    body(entry->model);
  });
}

void need_all(const Model& model, int32_t given) {
  const size_t expected = model.manifest().modalities.size();
  if (given < 0 || static_cast<size_t>(given) != expected) {
    throw mars::engine_error(std::to_string(given) + " modalities are given, the model has " +
                             std::to_string(expected));
  }
}

const char* text_or_null(const std::optional<std::string>& text) {
  return text ? text->c_str() : nullptr;
}

}  // namespace

extern "C" {

const char* mars_model_error(void) {
  return last_error.c_str();
}

int mars_model_open(const void* data, size_t size_bytes, const char* name, int32_t threads, uint64_t* model) {
  return guarded([&] {
    auto entry = std::make_shared<Entry>(static_cast<const uint8_t*>(data), size_bytes, name, threads);
    std::lock_guard<std::mutex> lock(models_mutex);
    *model = next_model++;
    models.emplace(*model, std::move(entry));
  });
}

int mars_model_close(uint64_t model) {
  return guarded([&] {
    std::shared_ptr<Entry> entry;  // freed outside the lock, and after a call in another thread has ended
    std::lock_guard<std::mutex> lock(models_mutex);
    const auto found = models.find(model);
    if (found != models.end()) {
      entry = std::move(found->second);
      models.erase(found);
    }
  });
}

int mars_model_describe(uint64_t id, mars_model_info* info) {
  return with_model(id, [&](const Model& model) {
    const mars::Manifest& manifest = model.manifest();
    *info = {static_cast<int32_t>(manifest.modalities.size()), manifest.experts, manifest.active_experts,
             static_cast<int64_t>(mars::count(manifest.logits_shape))};
  });
}

int mars_model_modality(uint64_t id, int32_t index, mars_modality* found) {
  return with_model(id, [&](const Model& model) {
    const auto& modalities = model.manifest().modalities;
    if (index < 0 || static_cast<size_t>(index) >= modalities.size()) {
      throw mars::engine_error("no modality number " + std::to_string(index));
    }
    const mars::Modality& modality = modalities[index];
    *found = {modality.name.c_str(), modality.kind.c_str(), static_cast<int32_t>(modality.shape.size()), {},
              static_cast<int64_t>(mars::count(modality.shape)), static_cast<int64_t>(mars::count(modality.feature))};
    std::copy(modality.shape.begin(), modality.shape.end(), found->shape);
  });
}

int mars_model_texts(uint64_t id, const char** manifest, const char** digest) {
  return with_model(id, [&](const Model& model) {
    *manifest = model.manifest().document.c_str();
    *digest = model.digest().c_str();
  });
}

int mars_model_infer(uint64_t id, const mars_input* inputs, int32_t count, mars_result* result) {
  return with_model(id, [&](Model& model) {
    need_all(model, count);
    model.infer(inputs, *result);
  });
}

int mars_model_decide(uint64_t id, const uint8_t* present, int32_t count, const float* logits,
                      mars_decision* decision) {
  return with_model(id, [&](const Model& model) {
    need_all(model, count);
    const std::vector<bool> flags(present, present + count);
    const double none = std::numeric_limits<double>::quiet_NaN();
    last_decision = mars::decide(model.manifest(), flags, logits);
    last_subset = model.manifest().subset(flags);
    *decision = {last_decision.verdict.c_str(),
                 text_or_null(last_decision.label),
                 last_subset.c_str(),
                 last_decision.score.value_or(none),
                 last_decision.threshold.value_or(none),
                 text_or_null(last_decision.reason)};
  });
}

}  // extern "C"
