// What a model file says about itself; the document is described in mars_edge/manifest.py.
#ifndef MARS_MANIFEST_H
#define MARS_MANIFEST_H

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mars {

using Shape = std::vector<int32_t>;

// Floats in a tensor of this shape; Error(MARS_BAD_MODEL) beyond 2^31, which no model of ours comes near.
size_t count(const Shape& shape);

std::string shape_text(const Shape& shape);

// One input; `shape` is that of the preprocessed sample without a batch axis.
struct Modality {
  std::string name;
  std::string kind;
  Shape shape;
  Shape feature;
};

struct OperatingPoint {
  double threshold;
  double temperature;
  bool certified;
};

// One input and the logits that the file must give for it.
struct Golden {
  std::map<std::string, std::vector<float>> samples;   // at the full shape of the modality
  std::vector<std::pair<std::string, std::vector<float>>> logits;  // by subset, for example rgb+ir
  double tolerance;
  std::vector<std::pair<int32_t, int32_t>> pixels;  // of a segmentation: the ones that are compared
};

struct Manifest {
  std::string document;
  std::string name;
  std::string task;
  std::string precision;  // fp32, fp16 or int8
  std::vector<std::string> labels;
  std::optional<std::string> positive_label;
  std::vector<Modality> modalities;  // in fusion order
  int32_t experts;
  int32_t active_experts;
  bool shared_expert;
  Shape z_shape;
  Shape logits_shape;
  std::map<std::string, OperatingPoint> operating_points;
  std::vector<std::string> require;  // each entry needs one present member, for example depth|ir
  std::string on_missing;
  std::optional<Golden> golden;
  std::optional<double> macs;  // of a decision with everything present; not in files of earlier versions

  // One encoder per modality, route, the experts, head.
  std::vector<std::string> methods() const;
  // The canonical label of who is present: rgb+ir, or none.
  std::string subset(const std::vector<bool>& present) const;
  // The reverse of `subset`; Error(MARS_BAD_MODEL) for a label that is not canonical.
  std::vector<bool> present(const std::string& subset) const;
};

// Throws Error(MARS_BAD_MODEL): not JSON, another schema version, a key unknown, twice, missing or ill-typed.
Manifest read_manifest(const std::string& document);

}  // namespace mars

#endif
