// Answers questions of the test vectors in contract/: one JSON request per line of stdin, one answer per line.
#include <iostream>
#include <string>

#include "artifact.h"
#include "decision.h"
#include "error.h"
#include "gates.h"
#include "json.h"
#include "sha256.h"

namespace {

using mars::Json;

const uint8_t* bytes(const std::string& text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

// {"hex": "..."} as bytes.
std::string content(const Json& request) {
  const std::string hex = request.at("hex");
  std::string data;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    data += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return data;
}

Json sha256(const Json& request) {
  const std::string data = content(request);
  return mars::hexadecimal(mars::sha256(bytes(data), data.size()));
}

Json artifact(const Json& request) {
  const std::string data = content(request);
  return mars::verify(bytes(data), data.size(), "model").digest;
}

Json manifest(const Json& request) {
  return mars::read_manifest(request.at("text").get<std::string>()).name;
}

Json shapes(const Json& request) {
  Json found = Json::array();
  for (const mars::Modality& modality : mars::read_manifest(request.at("text").get<std::string>()).modalities) {
    found.push_back(modality.shape);
  }
  return found;
}

Json gates(const Json& request) {
  Json found = Json::array();
  for (const mars::Choice& choice :
       mars::top_k_gates(request.at("logits").get<std::vector<float>>(), request.at("k").get<size_t>())) {
    found.push_back({choice.expert, choice.gate});
  }
  return found;
}

Json text_or_null(const std::optional<std::string>& text) {
  return text ? Json(*text) : Json(nullptr);
}

Json decision(const Json& request) {
  const mars::Manifest model = mars::read_manifest(request.at("text").get<std::string>());
  std::vector<bool> present(model.modalities.size());
  for (size_t i = 0; i < present.size(); ++i) {
    const Json& names = request.at("present");
    present[i] = std::find(names.begin(), names.end(), model.modalities[i].name) != names.end();
  }
  std::vector<float> logits;
  for (const Json& value : request.at("logits").is_null() ? Json::array() : request.at("logits")) {
    logits.push_back(value.is_null() ? NAN : value.get<float>());
  }
  const mars::Decision made = mars::decide(model, present, logits.empty() ? nullptr : logits.data());
  return {{"label", text_or_null(made.label)},
          {"score", made.score ? Json(*made.score) : Json(nullptr)},
          {"threshold", made.threshold ? Json(*made.threshold) : Json(nullptr)},
          {"verdict", made.verdict},
          {"reason", text_or_null(made.reason)}};
}

Json answer(const Json& request) {
  const std::string about = request.at("about");
  if (about == "sha256") return sha256(request);
  if (about == "artifact") return artifact(request);
  if (about == "manifest") return manifest(request);
  if (about == "shapes") return shapes(request);
  if (about == "gates") return gates(request);
  if (about == "decision") return decision(request);
  throw mars::usage_error("no check about '" + about + "'");
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    try {
      std::cout << Json({{"answer", answer(Json::parse(line))}}).dump() << std::endl;
    } catch (const mars::Error& error) {
      std::cout << Json({{"refused", error.what()}, {"code", error.code}})
                       .dump(-1, ' ', true, Json::error_handler_t::replace)
                << std::endl;
    }
  }
  return 0;
}
