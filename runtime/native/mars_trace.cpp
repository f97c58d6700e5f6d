#include "mars_trace.h"

#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/core/event_tracer.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

namespace {

using executorch::aten::ArrayRef;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::BufferDataLoader;
using executorch::extension::MallocMemoryAllocator;
using namespace executorch::runtime;

constexpr size_t kAlignment = 64;
// XNNPACK may read this far beyond an array (XNN_EXTRA_BYTES in xnnpack.h).
constexpr size_t kReadAhead = 128;

thread_local std::string last_error;
thread_local std::string told;

int fail(const std::string& doing, Error error) {
  last_error = doing + ": " + to_string(error);
  return 1;
}

struct FreeDeleter {
  void operator()(uint8_t* data) const {
    std::free(data);
  }
};
using AlignedBytes = std::unique_ptr<uint8_t, FreeDeleter>;

AlignedBytes allocate_padded(size_t size_bytes) {
  size_t padded = (size_bytes + kReadAhead + kAlignment - 1) / kAlignment * kAlignment;
  auto* data = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, padded));
  if (data == nullptr) {
    throw std::bad_alloc();
  }
  return AlignedBytes(data);
}

// Writes a line per finished event; names may hold anything, so tabs and line ends in them become spaces.
class LineTracer final : public EventTracer {
 public:
  bool watching = false;
  int32_t run = 0;
  std::string lines;

  void create_event_block(const char*) override {}

  EventTracerEntry start_profiling(const char* name, ChainID, DebugHandle debug_handle) override {
    DebugHandle instruction = debug_handle == kUnsetDebugHandle ? debug_handle_ : debug_handle;
    return begin(name, instruction);
  }

  EventTracerEntry start_profiling_delegate(const char* name, DelegateDebugIntId id) override {
    EventTracerEntry entry = begin(name ? name : std::to_string(id).c_str(), debug_handle_);
    entry.delegate_event_id_type = DelegateDebugIdType::kStr;
    return entry;
  }

  void end_profiling(EventTracerEntry entry) override {
    end(entry, "runtime");
  }

  void end_profiling_delegate(EventTracerEntry entry, const void*, size_t) override {
    end(entry, "delegate");
  }

  void log_profiling_delegate(const char* name, DelegateDebugIntId id, et_timestamp_t start, et_timestamp_t stop,
                              const void*, size_t) override {
    write("delegate", name ? name : std::to_string(id), debug_handle_, start, stop);
  }

  void track_allocation(AllocatorID, size_t) override {}
  AllocatorID track_allocator(const char*) override {
    return 0;
  }
  Result<bool> log_evalue(const EValue&, LoggedEValueType) override {
    return false;
  }
  Result<bool> log_intermediate_output_delegate(const char*, DelegateDebugIntId, const Tensor&) override {
    return false;
  }
  Result<bool> log_intermediate_output_delegate(const char*, DelegateDebugIntId, const ArrayRef<Tensor>) override {
    return false;
  }
  Result<bool> log_intermediate_output_delegate(const char*, DelegateDebugIntId, const int&) override {
    return false;
  }
  Result<bool> log_intermediate_output_delegate(const char*, DelegateDebugIntId, const bool&) override {
    return false;
  }
  Result<bool> log_intermediate_output_delegate(const char*, DelegateDebugIntId, const double&) override {
    return false;
  }
  void set_delegation_intermediate_output_filter(EventTracerFilterBase*) override {}

 private:
  std::vector<std::string> names_;

  EventTracerEntry begin(const char* name, DebugHandle instruction) {
    EventTracerEntry entry{};
    entry.event_id = static_cast<int64_t>(names_.size());
    entry.debug_handle = instruction;
    names_.emplace_back(name ? name : "");
    entry.start_time = et_pal_current_ticks();
    return entry;
  }

  void end(const EventTracerEntry& entry, const char* kind) {
    et_timestamp_t stop = et_pal_current_ticks();
    if (entry.event_id >= 0 && entry.event_id < static_cast<int64_t>(names_.size())) {
      write(kind, names_[entry.event_id], entry.debug_handle, entry.start_time, stop);
    }
  }

  void write(const char* kind, std::string name, DebugHandle instruction, et_timestamp_t start, et_timestamp_t stop) {
    if (!watching) {
      return;
    }
    for (char& c : name) {
      c = (c == '\t' || c == '\n' || c == '\r') ? ' ' : c;
    }
    et_tick_ratio_t ratio = et_pal_ticks_to_ns_multiplier();
    uint64_t ticks = stop > start ? stop - start : 0;
    lines += std::to_string(run) + '\t' + kind + '\t' + name + '\t' + std::to_string(instruction) + '\t' +
             std::to_string(ticks * ratio.numerator / ratio.denominator) + '\n';
  }

 public:
  void forget_names() {
    names_.clear();
  }
};

struct Input {
  AlignedBytes bytes;
  std::vector<TensorImpl::SizesType> sizes;
  std::vector<TensorImpl::DimOrderType> order;
  std::vector<TensorImpl::StridesType> strides;
  std::unique_ptr<TensorImpl> impl;
};

int fill(Input& input, const TensorInfo& info, const void* data) {
  input.bytes = allocate_padded(info.nbytes());
  std::memcpy(input.bytes.get(), data, info.nbytes());
  input.sizes.assign(info.sizes().begin(), info.sizes().end());
  size_t rank = input.sizes.size();
  input.order.resize(rank);
  input.strides.resize(rank);
  TensorImpl::StridesType stride = 1;
  for (size_t axis = rank; axis-- > 0;) {
    input.order[axis] = static_cast<TensorImpl::DimOrderType>(axis);
    input.strides[axis] = stride;
    stride *= input.sizes[axis] > 0 ? input.sizes[axis] : 1;
  }
  input.impl = std::make_unique<TensorImpl>(info.scalar_type(), static_cast<ssize_t>(rank), input.sizes.data(),
                                            input.bytes.get(), input.order.data(), input.strides.data());
  return 0;
}

// Where the program leaves an output's memory to the caller.
int bind_outputs(Method& method, const MethodMeta& meta, std::vector<AlignedBytes>& kept) {
  for (size_t index = 0; index < method.outputs_size(); ++index) {
    const EValue& value = method.get_output(index);
    if (!value.isTensor() || value.toTensor().const_data_ptr() != nullptr) {
      continue;
    }
    Result<TensorInfo> info = meta.output_tensor_meta(index);
    if (!info.ok()) {
      return fail("an output cannot be read", info.error());
    }
    kept.push_back(allocate_padded(info->nbytes()));
    Error error = method.set_output_data_ptr(kept.back().get(), info->nbytes(), index);
    if (error != Error::Ok) {
      return fail("an output cannot be set", error);
    }
  }
  return 0;
}

int set_inputs(Method& method, const MethodMeta& meta, const void* const* data, std::vector<Input>& inputs) {
  for (size_t index = 0; index < inputs.size(); ++index) {
    if (inputs[index].impl == nullptr) {
      Result<TensorInfo> info = meta.input_tensor_meta(index);
      if (!info.ok()) {
        return fail("an input is not a tensor", info.error());
      }
      fill(inputs[index], *info, data[index]);
    }
    Error error = method.set_input(EValue(Tensor(inputs[index].impl.get())), index);
    if (error != Error::Ok) {
      return fail("an input cannot be set", error);
    }
  }
  return 0;
}

int trace(const void* data, size_t size_bytes, const char* name, const void* const* given, int32_t input_count,
          int32_t warmup, int32_t runs) {
  AlignedBytes bytes = allocate_padded(size_bytes);
  std::memcpy(bytes.get(), data, size_bytes);
  BufferDataLoader loader(bytes.get(), size_bytes);
  Result<Program> program = Program::load(&loader, Program::Verification::InternalConsistency);
  if (!program.ok()) {
    return fail("the program cannot be loaded", program.error());
  }
  Result<MethodMeta> meta = program->method_meta(name);
  if (!meta.ok()) {
    return fail(std::string("no method '") + name + "' in the program", meta.error());
  }
  if (static_cast<size_t>(input_count) != meta->num_inputs()) {
    last_error = std::string("method '") + name + "' takes " + std::to_string(meta->num_inputs()) + " inputs, given " +
                 std::to_string(input_count);
    return 1;
  }
  std::vector<AlignedBytes> arenas;
  std::vector<Span<uint8_t>> spans;
  for (size_t index = 0; index < meta->num_memory_planned_buffers(); ++index) {
    Result<int64_t> size = meta->memory_planned_buffer_size(index);
    if (!size.ok()) {
      return fail("the program's memory plan cannot be read", size.error());
    }
    arenas.push_back(allocate_padded(*size));
    std::memset(arenas.back().get(), 0, *size);
    spans.emplace_back(arenas.back().get(), static_cast<size_t>(*size));
  }
  MallocMemoryAllocator allocator, temporary;
  HierarchicalAllocator planned(Span<Span<uint8_t>>(spans.data(), spans.size()));
  MemoryManager memory(&allocator, &planned, &temporary);
  LineTracer tracer;
  std::vector<Input> inputs(input_count);
  std::vector<AlignedBytes> outputs;
  Result<Method> method = program->load_method(name, &memory, &tracer);
  if (!method.ok()) {
    return fail(std::string("method '") + name + "' cannot be loaded", method.error());
  }
  if (bind_outputs(*method, *meta, outputs)) {
    return 1;
  }
  for (int32_t run = -warmup; run < runs; ++run) {
    tracer.watching = run >= 0;
    tracer.run = run;
    tracer.forget_names();
    if (set_inputs(*method, *meta, given, inputs)) {
      return 1;
    }
    Error error = method->execute();
    if (error != Error::Ok) {
      return fail(std::string("method '") + name + "' failed", error);
    }
  }
  told = std::move(tracer.lines);
  return 0;
}

}  // namespace

extern "C" {

int32_t mars_trace_abi(void) {
  return MARS_TRACE_ABI;
}

const char* mars_trace_error(void) {
  return last_error.c_str();
}

int mars_trace(const void* program, size_t size_bytes, const char* method, const void* const* inputs,
               int32_t input_count, int32_t warmup, int32_t runs, const char** events) {
  runtime_init();
  try {
    if (int failed = trace(program, size_bytes, method, inputs, input_count, warmup, runs)) {
      return failed;
    }
    *events = told.c_str();
    return 0;
  } catch (const std::exception& error) {
    last_error = std::string("out of memory or internal error: ") + error.what();
    return 1;
  }
}

}  // extern "C"
