#include "model.h"

#include <algorithm>
#include <cmath>

#include "artifact.h"
#include "error.h"
#include "golden.h"
#include "mars_executorch.h"
#include "threads.h"

namespace mars {
namespace {

constexpr int32_t kUint8 = 0;
constexpr int32_t kFloat32 = 6;
constexpr char kManifestMethod[] = "manifest";

void need(int failed, int code = MARS_ENGINE) {
  if (failed) {
    throw Error(code, mars_last_error());
  }
}

size_t program_bytes(const uint8_t* data, size_t size_bytes, const std::string& name, std::string& digest) {
  Seal seal = verify(data, size_bytes, name);
  digest = seal.digest;
  return seal.program_bytes;
}

Shape batched(const Shape& shape) {
  Shape found{1};
  found.insert(found.end(), shape.begin(), shape.end());
  return found;
}

// The form of a float32 tensor with a batch axis of 1.
mars_array form(const Shape& shape) {
  mars_array array{nullptr, kFloat32, static_cast<int32_t>(shape.size()) + 1, {1}};
  std::copy(shape.begin(), shape.end(), array.shape + 1);
  return array;
}

std::string tensor_text(int32_t dtype, const Shape& shape) {
  return (dtype == kFloat32 ? "float32 " : "ScalarType " + std::to_string(dtype) + " ") + shape_text(shape);
}

void check_finite(const std::string& what, const float* values, size_t size) {
  const bool is_finite = std::all_of(values, values + size, [](float value) { return std::isfinite(value); });
  if (!is_finite) {
    const bool is_nan = std::any_of(values, values + size, [](float value) { return std::isnan(value); });
    throw engine_error(what + " holds " + (is_nan ? "NaN" : "an infinity") + "; every value must be finite");
  }
}

}  // namespace

Program::Program(const uint8_t* data, size_t size_bytes, int32_t threads) {
  if (mars_abi() != MARS_ABI) {
    throw engine_error("the library has interface " + std::to_string(mars_abi()) + ", this code needs " +
                       std::to_string(MARS_ABI));
  }
  if (threads != 0) {
    need(mars_set_threads(threads), MARS_USAGE);
  }
  need(mars_open(data, size_bytes, &id_), MARS_BAD_MODEL);
}

Program::~Program() {
  mars_close(id_);
}

void Program::prefer_threads(int32_t threads) const {
  need(mars_prefer_threads(id_, threads));
}

std::vector<std::string> Program::methods() const {
  int32_t count = 0;
  need(mars_method_count(id_, &count));
  std::vector<std::string> names;
  for (int32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    need(mars_method_name(id_, i, &name));
    names.emplace_back(name);
  }
  return names;
}

std::string Program::manifest_document() const {
  const std::vector<std::string> names = methods();
  if (std::find(names.begin(), names.end(), kManifestMethod) == names.end()) {
    throw bad_model("the .pte program has no manifest method: not exported by mars-edge");
  }
  mars_tensor_info info{};
  need(mars_tensor(id_, kManifestMethod, 1, 0, &info), MARS_BAD_MODEL);
  if (info.dtype != kUint8 || info.rank != 1) {
    throw bad_model("the manifest method gives no text: not exported by mars-edge");
  }
  std::string document(static_cast<size_t>(info.size_bytes), '\0');
  const mars_array output{document.data(), kUint8, 1, {info.shape[0]}};
  need(mars_execute(id_, kManifestMethod, nullptr, 0, &output, 1), MARS_BAD_MODEL);
  return document;
}

Shape Program::first_input(const std::string& method) const {
  mars_tensor_info info{};
  need(mars_tensor(id_, method.c_str(), 0, 0, &info), MARS_BAD_MODEL);
  return info.rank < 2 ? Shape{} : Shape(info.shape + 1, info.shape + info.rank);
}

void Program::check(const std::string& method, const std::vector<Shape>& inputs,
                    const std::vector<Shape>& outputs) const {
  int32_t counts[2] = {};
  need(mars_method_arity(id_, method.c_str(), &counts[0], &counts[1]), MARS_BAD_MODEL);
  std::string given, wanted;
  for (const int32_t is_output : {0, 1}) {
    for (int32_t i = 0; i < counts[is_output]; ++i) {
      mars_tensor_info info{};
      need(mars_tensor(id_, method.c_str(), is_output, i, &info), MARS_BAD_MODEL);
      given += tensor_text(info.dtype, Shape(info.shape, info.shape + info.rank)) + " ";
    }
    for (const Shape& shape : is_output ? outputs : inputs) {
      wanted += tensor_text(kFloat32, batched(shape)) + " ";
    }
    given += is_output ? "" : "-> ";
    wanted += is_output ? "" : "-> ";
  }
  if (given != wanted) {
    throw bad_model("method '" + method + "' is " + given + "but its manifest promises " +
                    wanted.substr(0, wanted.size() - 1));
  }
}

Model::Model(const uint8_t* data, size_t size_bytes, const std::string& name, int32_t threads)
    : program_(data, program_bytes(data, size_bytes, name, digest_), threads),
      manifest_(read_manifest(program_.manifest_document())),
      combined_shape_(program_.first_input("head")) {
  check_methods();
  if (threads == 0) {
    program_.prefer_threads(default_threads(manifest_, usable_cores()));
  }
  make_plan();
  self_test();
}

void Model::check_methods() const {
  const std::vector<std::string> given = program_.methods();
  for (const std::string& method : manifest_.methods()) {
    if (std::find(given.begin(), given.end(), method) == given.end()) {
      throw bad_model("the .pte program lacks the method '" + method + "' its manifest promises");
    }
  }
  std::vector<Shape> features;
  for (const Modality& modality : manifest_.modalities) {
    program_.check("encode_" + modality.name, {modality.shape}, {modality.feature});
    features.push_back(modality.feature);
  }
  program_.check("route", features, {manifest_.z_shape, {manifest_.experts}});
  for (const std::string& method : manifest_.methods()) {
    if (method.rfind("expert_", 0) == 0) {
      program_.check(method, {manifest_.z_shape}, {combined_shape_});
    }
  }
  program_.check("head", {combined_shape_}, {manifest_.logits_shape});
}

void Model::make_plan() {
  names_ = manifest_.methods();
  for (size_t i = 0; i < manifest_.modalities.size(); ++i) {
    const Modality& modality = manifest_.modalities[i];
    encoders_.push_back(names_[i].c_str());
    sample_forms_.push_back(form(modality.shape));
    feature_forms_.push_back(form(modality.feature));
    features_.emplace_back(count(modality.feature));
  }
  for (int32_t i = 0; i < manifest_.experts; ++i) {
    experts_.push_back(names_[manifest_.modalities.size() + 1 + i].c_str());
  }
  plan_ = {static_cast<int32_t>(encoders_.size()),
           encoders_.data(),
           sample_forms_.data(),
           feature_forms_.data(),
           experts_.data(),
           manifest_.shared_expert ? "expert_shared" : nullptr,
           manifest_.active_experts,
           form(manifest_.z_shape),
           form({manifest_.experts}),
           form(combined_shape_),
           form(manifest_.logits_shape)};
}

void Model::self_test() {
  if (!manifest_.golden) {
    return;
  }
  const Golden& golden = *manifest_.golden;
  std::vector<float> logits(count(manifest_.logits_shape));
  std::vector<mars_chosen_expert> experts(manifest_.active_experts);
  std::vector<double> stage_ms(manifest_.modalities.size() + 3);
  const mars_result result{logits.data(), experts.data(), stage_ms.data()};
  for (const auto& [subset, expected] : golden.logits) {
    const std::vector<bool> present = manifest_.present(subset);
    std::vector<mars_input> inputs(present.size());
    for (size_t i = 0; i < present.size(); ++i) {
      inputs[i].sample = present[i] ? golden.samples.at(manifest_.modalities[i].name).data() : nullptr;
    }
    infer(inputs.data(), result);
    const std::vector<float> given = compared(golden, manifest_, logits);
    for (size_t i = 0; i < expected.size(); ++i) {
      const double difference = std::abs(static_cast<double>(given[i]) - expected[i]);
      if (!(difference <= golden.tolerance)) {
        throw engine_error("self-test failed: logits for " + subset + " are off by " + std::to_string(difference) +
                           ", allowed " + std::to_string(golden.tolerance) +
                           "; this device computes something else than the exporting one");
      }
    }
  }
}

void Model::infer(const mars_input* inputs, const mars_result& result) {
  check_request(inputs);
  std::vector<const float*> samples;
  std::vector<float*> features;
  for (size_t i = 0; i < features_.size(); ++i) {
    samples.push_back(inputs[i].sample);
    features.push_back(features_[i].data());
    if (inputs[i].feature != nullptr) {
      std::copy(inputs[i].feature, inputs[i].feature + features_[i].size(), features_[i].begin());
    } else {
      std::fill(features_[i].begin(), features_[i].end(), 0.0f);
    }
  }
  need(mars_infer(program_.id(), &plan_, samples.data(), features.data(), result.logits, result.experts,
                  result.stage_ms));
  for (size_t i = 0; i < features_.size(); ++i) {
    if (inputs[i].encoded != nullptr) {
      std::copy(features_[i].begin(), features_[i].end(), inputs[i].encoded);
    }
  }
}

void Model::check_request(const mars_input* inputs) const {
  bool any = false;
  for (size_t i = 0; i < manifest_.modalities.size(); ++i) {
    const Modality& modality = manifest_.modalities[i];
    const auto& [sample, feature, encoded] = inputs[i];
    if (sample != nullptr && feature != nullptr) {
      throw engine_error("modality '" + modality.name + "' is given as a new sample and as a cached feature; give one");
    }
    if (sample != nullptr) {
      check_finite("sample of '" + modality.name + "'", sample, count(modality.shape));
    }
    if (feature != nullptr) {
      check_finite("cached feature of '" + modality.name + "'", feature, count(modality.feature));
    }
    any = any || sample != nullptr || feature != nullptr;
  }
  if (!any) {
    throw engine_error("no modality is present; give at least one of: " +
                       manifest_.subset(std::vector<bool>(manifest_.modalities.size(), true)));
  }
}

}  // namespace mars
