// encode -> route -> chosen experts -> head, one method call each, as mars_runtime/engines/staged.py.
#ifndef MARS_STAGED_MODEL_H
#define MARS_STAGED_MODEL_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "manifest.h"
#include "mars_model.h"

namespace mars {

// One opened program of our C interface to ExecuTorch.
class Program {
 public:
  Program(const uint8_t* data, size_t size_bytes, int32_t threads);
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program();

  uint64_t id() const { return id_; }
  // Where no other model of the process has the thread pool; else it stays as it is.
  void prefer_threads(int32_t threads) const;
  std::string manifest_document() const;
  std::vector<std::string> methods() const;
  // Throws Error(MARS_BAD_MODEL) where `method` takes or gives anything but float32 tensors of these shapes.
  void check(const std::string& method, const std::vector<Shape>& inputs, const std::vector<Shape>& outputs) const;
  // Shape of the first input of `method`, without the batch axis.
  Shape first_input(const std::string& method) const;

 private:
  uint64_t id_ = 0;
};

// Not for two threads at once; the C interface in front of it sees to that.
class Model {
 public:
  // Throws Error: the bytes are damaged, not ours, disagree with their manifest, or fail their self-test.
  Model(const uint8_t* data, size_t size_bytes, const std::string& name, int32_t threads);

  const Manifest& manifest() const { return manifest_; }
  const std::string& digest() const { return digest_; }

  // `inputs` has one entry per modality; see mars_input and mars_result.
  void infer(const mars_input* inputs, const mars_result& result);

 private:
  void check_methods() const;
  void make_plan();
  void self_test();
  void check_request(const mars_input* inputs) const;

  std::string digest_;
  Program program_;
  Manifest manifest_;
  Shape combined_shape_;
  std::vector<std::string> names_;  // of the methods, which the plan points to
  std::vector<const char*> encoders_;
  std::vector<const char*> experts_;
  std::vector<mars_array> sample_forms_;
  std::vector<mars_array> feature_forms_;
  mars_plan plan_{};
  std::vector<std::vector<float>> features_;  // by modality: exact zeros where it is missing
};

}  // namespace mars

#endif
