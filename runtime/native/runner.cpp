// The smallest app: tensors from files in, one JSON line per decision out.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "error.h"
#include "json.h"
#include "mars_model.h"

namespace {

constexpr char kHelp[] =
    "usage: mars_runner --model FILE [--sample NAME=FILE ...] [--threads N] [--repeat N] [--memory | --manifest]\n"
    "\n"
    "Runs a mars-edge .pte on preprocessed samples: float32, little-endian, C order, as the modality's shape says.\n"
    "A file may hold several samples in a row; there is one decision and one JSON line on stdout for each.\n"
    "A modality without a file is missing: it is not encoded.\n"
    "\n"
    "  --threads N   size of the thread pool; default: chosen by the size of the network, from 1 to the number\n"
    "                of cores\n"
    "  --repeat N    run each decision N times and report the time of the median run; default 1\n"
    "  --memory      add `peak_kib`, the most memory that was ever resident (null where the system does not say)\n"
    "  --manifest    print the model's manifest instead\n"
    "\n"
    "Exit codes: 0 done, 1 the model failed or stdout cannot be written, 2 the request is wrong,\n"
    "4 the model file is damaged or not ours.\n"
    "\n"
    "example: mars_runner --model face_antispoof.pte --sample rgb=rgb.f32 --sample ir=ir.f32 --threads 1\n";

struct Options {
  std::string model;
  std::map<std::string, std::string> samples;
  int threads = 0;
  int repeat = 1;
  bool memory = false;
  bool manifest = false;
  bool help = false;
};

int whole(const std::string& flag, const std::string& text) {
  const bool digits = !text.empty() && text.size() < 8 && text.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || std::stoi(text) < 1) {
    throw mars::usage_error(flag + " is '" + text + "', expected a whole number from 1");
  }
  return std::stoi(text);
}

void add_sample(Options& options, const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) {
    throw mars::usage_error("--sample is '" + text + "', expected NAME=FILE");
  }
  if (!options.samples.emplace(text.substr(0, equals), text.substr(equals + 1)).second) {
    throw mars::usage_error("--sample " + text.substr(0, equals) + " is given twice");
  }
}

Options parse(const std::vector<std::string>& words) {
  Options options;
  for (size_t at = 0; at < words.size(); ++at) {
    const std::string& flag = words[at];
    if (flag == "--help" || flag == "--manifest" || flag == "--memory") {
      (flag == "--help" ? options.help : flag == "--memory" ? options.memory : options.manifest) = true;
      continue;
    }
    if (flag != "--model" && flag != "--sample" && flag != "--threads" && flag != "--repeat") {
      throw mars::usage_error("unknown argument '" + flag + "'; mars_runner --help lists what there is");
    }
    if (++at == words.size()) {
      throw mars::usage_error(flag + " needs a value");
    }
    if (flag == "--model") {
      options.model = words[at];
    } else if (flag == "--sample") {
      add_sample(options, words[at]);
    } else {
      (flag == "--threads" ? options.threads : options.repeat) = whole(flag, words[at]);
    }
  }
  if (options.model.empty() && !options.help) {
    throw mars::usage_error("no model is named; give --model FILE");
  }
  return options;
}

std::vector<char> read_file(const std::string& path, const std::string& what) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  // A folder opens, but claims a size that it cannot be read in.
  std::vector<char> data(size < 0 || size > (int64_t{1} << 40) ? 0 : static_cast<size_t>(size));
  if (size < 0 || !file.seekg(0) || (size > 0 && !file.read(data.data(), size))) {
    throw mars::usage_error("no " + what + " file " + path);
  }
  return data;
}

void need(int failed) {
  if (failed != MARS_OK) {
    throw mars::Error(failed, mars_model_error());
  }
}

struct Opened {
  uint64_t id = 0;
  mars_model_info info{};
  std::vector<mars_modality> modalities;

  explicit Opened(const Options& options) {
    const std::vector<char> data = read_file(options.model, "model");
    need(mars_model_open(data.data(), data.size(), options.model.c_str(), options.threads, &id));
    need(mars_model_describe(id, &info));
    modalities.resize(info.modalities);
    for (int32_t i = 0; i < info.modalities; ++i) {
      need(mars_model_modality(id, i, &modalities[i]));
    }
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  ~Opened() { mars_model_close(id); }
};

struct Samples {
  std::vector<std::vector<float>> values;  // by modality; empty where it is missing
  size_t frames = 0;
};

std::string sides(const mars_modality& modality) {
  return mars::shape_text(mars::Shape(modality.shape, modality.shape + modality.rank));
}

std::vector<float> read_samples(const mars_modality& modality, const std::string& path) {
  const std::vector<char> data = read_file(path, std::string("sample"));
  const size_t one = static_cast<size_t>(modality.sample_count) * sizeof(float);
  if (data.empty() || data.size() % one != 0) {
    throw mars::usage_error(path + " holds " + std::to_string(data.size()) + " bytes; a sample of " + modality.name +
                            " is float32 " + sides(modality) + ", " + std::to_string(one) + " bytes");
  }
  std::vector<float> values(data.size() / sizeof(float));
  std::memcpy(values.data(), data.data(), data.size());
  const auto bad = std::find_if_not(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
  if (bad != values.end()) {
    throw mars::usage_error(path + ": value " + std::to_string(bad - values.begin()) + " is not finite");
  }
  return values;
}

void check_names(const Opened& model, const std::map<std::string, std::string>& samples) {
  std::string order;
  std::map<std::string, std::string> unknown = samples;
  for (const mars_modality& modality : model.modalities) {
    order += (order.empty() ? "" : ", ") + std::string(modality.name);
    unknown.erase(modality.name);
  }
  if (!unknown.empty()) {
    throw mars::usage_error("--sample " + unknown.begin()->first + ": unknown modality; this model has: " + order);
  }
  if (samples.empty()) {
    throw mars::usage_error("no sample is given; this model has: " + order);
  }
}

Samples read_all(const Opened& model, const Options& options) {
  check_names(model, options.samples);
  Samples samples;
  for (const mars_modality& modality : model.modalities) {
    samples.values.emplace_back();
    const auto named = options.samples.find(modality.name);
    if (named == options.samples.end()) {
      continue;
    }
    samples.values.back() = read_samples(modality, named->second);
    const size_t frames = samples.values.back().size() / modality.sample_count;
    if (samples.frames != 0 && frames != samples.frames) {
      throw mars::usage_error(named->second + " holds " + std::to_string(frames) + " samples, another file " +
                              std::to_string(samples.frames));
    }
    samples.frames = frames;
  }
  return samples;
}

// The arrays that a result is written to.
struct Answer {
  std::vector<float> logits;
  std::vector<mars_chosen_expert> experts;
  std::vector<double> stage_ms;
  double total_ms = 0.0;
};

Answer infer(const Opened& model, const std::vector<mars_input>& inputs) {
  Answer answer{std::vector<float>(model.info.logit_count),
                std::vector<mars_chosen_expert>(model.info.active_experts),
                std::vector<double>(model.info.modalities + 3)};
  mars_result result{answer.logits.data(), answer.experts.data(), answer.stage_ms.data()};
  const auto begin = std::chrono::steady_clock::now();
  need(mars_model_infer(model.id, inputs.data(), model.info.modalities, &result));
  const std::chrono::duration<double, std::milli> passed = std::chrono::steady_clock::now() - begin;
  answer.total_ms = passed.count();
  return answer;
}

Answer median_of(const Opened& model, const std::vector<mars_input>& inputs, int repeat) {
  std::vector<Answer> answers;
  for (int i = 0; i < repeat; ++i) {
    answers.push_back(infer(model, inputs));
  }
  const auto middle = answers.begin() + repeat / 2;
  std::nth_element(answers.begin(), middle, answers.end(),
                   [](const Answer& a, const Answer& b) { return a.total_ms < b.total_ms; });
  return *middle;
}

mars::Json latency(const Opened& model, const Answer& answer) {
  mars::Json table = {{"total", answer.total_ms}};
  for (size_t i = 0; i < model.modalities.size(); ++i) {
    if (answer.stage_ms[i] >= 0.0) {
      table["encode." + std::string(model.modalities[i].name)] = answer.stage_ms[i];
    }
  }
  const auto* rest = answer.stage_ms.data() + model.modalities.size();
  table.update({{"fuse", rest[0]}, {"experts", rest[1]}, {"head", rest[2]}});
  return table;
}

mars::Json text_or_null(const char* text) {
  return text == nullptr ? mars::Json(nullptr) : mars::Json(text);
}

// Linux: VmHWM in proc_pid_status(5).
mars::Json peak_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    int64_t kib = 0;
    if (word == "VmHWM:" && status >> kib) {
      return kib;
    }
  }
  return nullptr;
}

// NaN, which JSON has no word for, becomes null.
mars::Json line_of(const Opened& model, size_t frame, const std::vector<uint8_t>& present, const Answer& answer) {
  mars_decision decision{};
  need(mars_model_decide(model.id, present.data(), model.info.modalities, answer.logits.data(), &decision));
  mars::Json experts = mars::Json::array();
  for (const mars_chosen_expert& chosen : answer.experts) {
    experts.push_back({{"id", chosen.expert}, {"gate", chosen.gate}});
  }
  return {{"frame", frame},
          {"subset", decision.subset},
          {"logits", answer.logits},
          {"experts", experts},
          {"label", text_or_null(decision.label)},
          {"score", decision.score},
          {"threshold", decision.threshold},
          {"verdict", decision.verdict},
          {"reason", text_or_null(decision.reason)},
          {"threads", mars_threads()},
          {"latency_ms", latency(model, answer)}};
}

void print(const std::string& text) {
  errno = 0;
  // A full disk is known only once the text is flushed.
  if (!(std::cout << text << std::flush)) {
    throw mars::engine_error(std::string("stdout: ") + (errno != 0 ? std::strerror(errno) : "cannot be written"));
  }
}

void run(const Opened& model, const Options& options) {
  const Samples samples = read_all(model, options);
  for (size_t frame = 0; frame < samples.frames; ++frame) {
    std::vector<mars_input> inputs(model.modalities.size());
    std::vector<uint8_t> present(model.modalities.size());
    for (size_t i = 0; i < inputs.size(); ++i) {
      present[i] = !samples.values[i].empty();
      inputs[i].sample = present[i] ? samples.values[i].data() + frame * model.modalities[i].sample_count : nullptr;
    }
    mars::Json line = line_of(model, frame, present, median_of(model, inputs, options.repeat));
    if (options.memory) {
      line["peak_kib"] = peak_kib();
    }
    print(line.dump() + "\n");
  }
}

void print_manifest(const Opened& model) {
  const char *manifest = nullptr, *digest = nullptr;
  need(mars_model_texts(model.id, &manifest, &digest));
  print(std::string(manifest) + "\n");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = parse(std::vector<std::string>(argv + 1, argv + argc));
    if (options.help) {
      print(kHelp);
      return 0;
    }
    const Opened model(options);
    options.manifest ? print_manifest(model) : run(model, options);
    return 0;
  } catch (const mars::Error& error) {
    std::cerr << "mars_runner: " << error.what() << std::endl;
    return error.code;
  } catch (const std::exception& error) {
    std::cerr << "mars_runner: out of memory or internal error: " << error.what() << std::endl;
    return MARS_ENGINE;
  }
}
