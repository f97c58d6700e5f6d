// One decision's inference in one call: encoders of new samples -> route -> the chosen experts -> head.
//
// Uses the public interface only. A language's own loop over the methods gives the same bits, but pays for every call.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <string>
#include <vector>

#include "gates.h"
#include "mars_executorch.h"

namespace mars {
int fail_inference(const std::string& message);  // mars_executorch.cpp
}

namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

size_t count_of(const mars_array& array) {
  size_t count = 1;
  for (int32_t axis = 0; axis < array.rank; ++axis) {
    count *= static_cast<size_t>(array.shape[axis]);
  }
  return count;
}

// An array that keeps its memory between the calls of one thread.
class Scratch {
 public:
  mars_array of(const mars_array& form) {
    values_.resize(count_of(form));
    mars_array array = form;
    array.data = values_.data();
    return array;
  }
  std::vector<float>& values() {
    return values_;
  }

 private:
  std::vector<float> values_;
};

int need_finite(const std::string& what, const float* values, size_t count) {
  bool infinite = false;
  for (size_t i = 0; i < count; ++i) {
    if (std::isnan(values[i])) {
      return mars::fail_inference(what + " holds NaN; every value must be finite");
    }
    infinite = infinite || std::isinf(values[i]);
  }
  return infinite ? mars::fail_inference(what + " holds an infinity; every value must be finite") : 0;
}

int encode(uint64_t engine, const mars_plan& plan, const float* const* samples, std::vector<mars_array>& features,
           double* stage_ms) {
  for (int32_t m = 0; m < plan.modalities; ++m) {
    stage_ms[m] = -1.0;
    if (samples[m] == nullptr) {
      continue;
    }
    mars_array sample = plan.samples[m];
    sample.data = const_cast<float*>(samples[m]);
    const Clock::time_point begin = Clock::now();
    if (mars_execute(engine, plan.encoders[m], &sample, 1, &features[m], 1)) {
      return 1;
    }
    stage_ms[m] = ms_since(begin);
  }
  return 0;
}

// The shared expert and the gated sum of the chosen ones, added in the order of their gates.
int combine(uint64_t engine, const mars_plan& plan, const mars_array& z, const std::vector<mars::Choice>& chosen,
            std::vector<float>& total) {
  static thread_local Scratch scratch;
  const mars_array one = scratch.of(plan.combined);
  bool empty = true;
  if (plan.shared_expert != nullptr) {
    if (mars_execute(engine, plan.shared_expert, &z, 1, &one, 1)) {
      return 1;
    }
    std::copy(scratch.values().begin(), scratch.values().end(), total.begin());
    empty = false;
  }
  for (const mars::Choice& choice : chosen) {
    if (mars_execute(engine, plan.experts[choice.expert], &z, 1, &one, 1)) {
      return 1;
    }
    for (size_t i = 0; i < total.size(); ++i) {
      const float weighted = choice.gate * scratch.values()[i];
      total[i] = empty ? weighted : total[i] + weighted;
    }
    empty = false;
  }
  return 0;
}

int infer(uint64_t engine, const mars_plan& plan, const float* const* samples, float* const* features, float* logits,
          mars_chosen_expert* chosen, double* stage_ms) {
  static thread_local Scratch z_scratch, router_scratch, total_scratch;
  std::vector<mars_array> fusion(plan.features, plan.features + plan.modalities);
  for (int32_t m = 0; m < plan.modalities; ++m) {
    fusion[m].data = features[m];
  }
  if (encode(engine, plan, samples, fusion, stage_ms)) {
    return 1;
  }
  Clock::time_point begin = Clock::now();
  const mars_array routed[] = {z_scratch.of(plan.z), router_scratch.of(plan.router_logits)};
  if (mars_execute(engine, "route", fusion.data(), plan.modalities, routed, 2)) {
    return 1;
  }
  stage_ms[plan.modalities] = ms_since(begin);
  const std::vector<float>& router = router_scratch.values();
  if (need_finite("router logits", router.data(), router.size())) {
    return 1;
  }
  const std::vector<mars::Choice> choices = mars::top_k_gates(router, static_cast<size_t>(plan.active_experts));
  begin = Clock::now();
  const mars_array total = total_scratch.of(plan.combined);
  if (combine(engine, plan, routed[0], choices, total_scratch.values())) {
    return 1;
  }
  stage_ms[plan.modalities + 1] = ms_since(begin);
  begin = Clock::now();
  mars_array answer = plan.logits;
  answer.data = logits;
  if (mars_execute(engine, "head", &total, 1, &answer, 1)) {
    return 1;
  }
  stage_ms[plan.modalities + 2] = ms_since(begin);
  for (size_t i = 0; i < choices.size(); ++i) {
    chosen[i] = {choices[i].expert, choices[i].gate};
  }
  return need_finite("logits", logits, count_of(plan.logits));
}

}  // namespace

extern "C" int mars_infer(uint64_t engine, const mars_plan* plan, const float* const* samples, float* const* features,
                          float* logits, mars_chosen_expert* chosen, double* stage_ms) {
  if (plan->active_experts < 1 || plan->active_experts > static_cast<int32_t>(count_of(plan->router_logits))) {
    return mars::fail_inference("active_experts is " + std::to_string(plan->active_experts) + ", allowed: 1 to " +
                                std::to_string(count_of(plan->router_logits)));
  }
  try {
    return infer(engine, *plan, samples, features, logits, chosen, stage_ms);
  } catch (const std::exception& error) {
    return mars::fail_inference(std::string("out of memory or internal error: ") + error.what());
  }
}
