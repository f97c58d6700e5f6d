#include "mars_executorch.h"

#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <string>
#include <vector>

// The wheel ships this class in libexecutorch_threadpool.so but not its header (threadpool.h).
namespace executorch::extension::threadpool {
class ThreadPool final {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t new_thread_count);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::BufferDataLoader;
using executorch::extension::MallocMemoryAllocator;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::HierarchicalAllocator;
using executorch::runtime::MemoryManager;
using executorch::runtime::Method;
using executorch::runtime::MethodMeta;
using executorch::runtime::Program;
using executorch::runtime::Result;
using executorch::runtime::Span;
using executorch::runtime::Tag;
using executorch::runtime::TensorInfo;

constexpr size_t kAlignment = 64;
// XNNPACK may read this far beyond an array (XNN_EXTRA_BYTES in xnnpack.h).
constexpr size_t kReadAhead = 128;
constexpr uintptr_t kPage = 4096;

thread_local std::string last_error;
thread_local std::string runtime_log;

// The runtime's own account of an error, kept for the message instead of printed.
void keep_log(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message,
              size_t length) {
  if (level == kError || level == kFatal) {
    runtime_log.assign(message, length);
  }
  if (level == kFatal) {
    fprintf(stderr, "mars-edge: the ExecuTorch runtime stopped: %.*s\n", static_cast<int>(length), message);
  }
}

int fail(const std::string& message) {
  last_error = message;
  return 1;
}

int fail(const std::string& doing, Error error) {
  std::string message = doing + ": " + executorch::runtime::to_string(error);
  if (!runtime_log.empty()) {
    message += " (" + runtime_log + ")";
  }
  runtime_log.clear();
  return fail(message);
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

// Counts what the runtime asks for, so that memory use can be reported.
class CountingAllocator final : public MallocMemoryAllocator {
 public:
  void* allocate(size_t size, size_t alignment) override {
    total_bytes += size;
    return MallocMemoryAllocator::allocate(size, alignment);
  }
  size_t total_bytes = 0;
};

bool read_ahead_crosses_page(const void* data, size_t size_bytes) {
  auto last = reinterpret_cast<uintptr_t>(data) + size_bytes - 1;
  return size_bytes > 0 && last / kPage != (last + kReadAhead) / kPage;
}

// What a tensor's header points to; it must stay in place while the runtime holds the tensor.
struct InputTensor {
  mars_tensor_info info;
  std::vector<TensorImpl::DimOrderType> dim_order;
  std::vector<TensorImpl::StridesType> strides;
  AlignedBytes copy;
  std::unique_ptr<TensorImpl> impl;

  // Once: what follows from `info`. The tensor must not be moved afterwards.
  void prepare() {
    dim_order.resize(info.rank);
    strides.resize(info.rank);
    int32_t stride = 1;
    for (int32_t axis = info.rank - 1; axis >= 0; --axis) {
      dim_order[axis] = static_cast<TensorImpl::DimOrderType>(axis);
      strides[axis] = stride;
      stride *= std::max(info.shape[axis], 1);
    }
    impl = std::make_unique<TensorImpl>(static_cast<ScalarType>(info.dtype), info.rank, info.shape, nullptr,
                                        dim_order.data(), strides.data());
  }

  void bind(void* data) {
    if (!info.is_planned && read_ahead_crosses_page(data, info.size_bytes)) {
      // A delegate would read beyond the caller's array into a page that may not exist.
      if (copy == nullptr) {
        copy = allocate_padded(info.size_bytes);
      }
      std::memcpy(copy.get(), data, info.size_bytes);
      data = copy.get();
    }
    impl->set_data(data);
  }
};

// Members are destroyed from last to first: the method goes before what it points to.
struct LoadedMethod {
  CountingAllocator allocator;
  MallocMemoryAllocator temporary;
  std::unique_ptr<HierarchicalAllocator> planned;
  std::unique_ptr<MemoryManager> memory;
  std::vector<InputTensor> inputs;
  std::unique_ptr<Method> method;
  std::vector<mars_tensor_info> outputs;
  std::vector<bool> output_in_place;  // no memory of its own: the runtime writes into the caller's array

  // Must run before the first call: afterwards the tensors hold the last caller's address.
  void note_outputs() {
    for (size_t index = 0; index < method->outputs_size(); ++index) {
      const EValue& value = method->get_output(index);
      output_in_place.push_back(value.isTensor() && value.toTensor().const_data_ptr() == nullptr);
    }
  }
};

std::shared_mutex pool_mutex;  // shared: methods load and run; exclusive: the thread pool is replaced
std::mutex loaded_mutex;
size_t loaded_methods = 0;

class LoadedCount {
 public:
  LoadedCount() = default;
  LoadedCount(const LoadedCount&) = delete;
  LoadedCount& operator=(const LoadedCount&) = delete;
  ~LoadedCount() {
    clear();
  }
  void add() {
    std::lock_guard<std::mutex> lock(loaded_mutex);
    ++loaded_methods;
    ++count_;
  }
  void clear() {
    std::lock_guard<std::mutex> lock(loaded_mutex);
    loaded_methods -= count_;
    count_ = 0;
  }
  bool is_all() const {
    std::lock_guard<std::mutex> lock(loaded_mutex);
    return loaded_methods == count_;
  }

 private:
  size_t count_ = 0;
};

// The bytes outlive the loader, the loader the program, the program its methods.
struct Engine {
  std::mutex mutex;
  AlignedBytes bytes;
  size_t size_bytes = 0;
  std::unique_ptr<BufferDataLoader> loader;
  std::unique_ptr<Program> program;
  std::vector<std::string> names;
  std::vector<AlignedBytes> arenas;
  std::vector<Span<uint8_t>> arena_spans;
  LoadedCount loaded_count;
  std::map<std::string, std::unique_ptr<LoadedMethod>> methods;
};

std::mutex engines_mutex;
std::map<uint64_t, std::shared_ptr<Engine>> engines;
uint64_t next_engine = 1;

std::shared_ptr<Engine> find(uint64_t id) {
  std::lock_guard<std::mutex> lock(engines_mutex);
  auto found = engines.find(id);
  return found == engines.end() ? nullptr : found->second;
}

int fail_closed() {
  return fail("the engine is closed");
}

std::string shape_text(const int32_t* shape, int32_t rank) {
  std::string text = "(";
  for (int32_t axis = 0; axis < rank; ++axis) {
    text += (axis ? ", " : "") + std::to_string(shape[axis]);
  }
  return text + (rank == 1 ? ",)" : ")");
}

// One arena set serves all methods: outputs are copied out before the engine's lock is released.
Error plan_arenas(Engine& engine) {
  std::vector<size_t> sizes;
  for (const auto& name : engine.names) {
    Result<MethodMeta> meta = engine.program->method_meta(name.c_str());
    if (!meta.ok()) {
      return meta.error();
    }
    sizes.resize(std::max(sizes.size(), meta->num_memory_planned_buffers()));
    for (size_t index = 0; index < meta->num_memory_planned_buffers(); ++index) {
      Result<int64_t> size = meta->memory_planned_buffer_size(index);
      if (!size.ok()) {
        return size.error();
      }
      sizes[index] = std::max(sizes[index], static_cast<size_t>(*size));
    }
  }
  for (size_t size : sizes) {
    engine.arenas.push_back(allocate_padded(size));
    std::memset(engine.arenas.back().get(), 0, size);
    engine.arena_spans.emplace_back(engine.arenas.back().get(), size);
  }
  return Error::Ok;
}

int open_program(const void* data, size_t size_bytes, Engine& engine) {
  engine.bytes = allocate_padded(size_bytes);
  std::memcpy(engine.bytes.get(), data, size_bytes);
  engine.size_bytes = size_bytes;
  engine.loader = std::make_unique<BufferDataLoader>(engine.bytes.get(), size_bytes);
  Result<Program> program = Program::load(engine.loader.get(), Program::Verification::InternalConsistency);
  if (!program.ok()) {
    return fail("the program cannot be loaded", program.error());
  }
  engine.program = std::make_unique<Program>(std::move(*program));
  for (size_t index = 0; index < engine.program->num_methods(); ++index) {
    Result<const char*> name = engine.program->get_method_name(index);
    if (!name.ok()) {
      return fail("the program's method names cannot be read", name.error());
    }
    engine.names.emplace_back(*name);
  }
  Error error = plan_arenas(engine);
  return error == Error::Ok ? 0 : fail("the program's memory plan cannot be read", error);
}

Result<TensorInfo> tensor_meta(const MethodMeta& meta, bool is_output, size_t index) {
  return is_output ? meta.output_tensor_meta(index) : meta.input_tensor_meta(index);
}

int read_info(const MethodMeta& meta, const std::string& method, bool is_output, size_t index,
              mars_tensor_info* info) {
  const std::string what =
      "method '" + method + "' " + (is_output ? "output " : "input ") + std::to_string(index);
  Result<TensorInfo> tensor = tensor_meta(meta, is_output, index);
  if (!tensor.ok()) {
    return fail(what + " is not a tensor", tensor.error());
  }
  if (tensor->sizes().size() > MARS_MAX_RANK) {
    return fail(what + " has rank " + std::to_string(tensor->sizes().size()) + ", the limit is 8");
  }
  for (size_t axis = 0; axis < tensor->dim_order().size(); ++axis) {
    if (tensor->dim_order()[axis] != axis) {
      return fail(what + " is not in C order");
    }
  }
  info->dtype = static_cast<int32_t>(tensor->scalar_type());
  info->rank = static_cast<int32_t>(tensor->sizes().size());
  std::copy(tensor->sizes().begin(), tensor->sizes().end(), info->shape);
  info->size_bytes = static_cast<int64_t>(tensor->nbytes());
  info->is_planned = tensor->is_memory_planned() ? 1 : 0;
  return 0;
}

// Read once: every call needs it.
int prepare_tensors(LoadedMethod& loaded, const std::string& name) {
  MethodMeta meta = loaded.method->method_meta();
  loaded.inputs.resize(meta.num_inputs());
  loaded.outputs.resize(meta.num_outputs());
  for (size_t index = 0; index < loaded.inputs.size(); ++index) {
    if (read_info(meta, name, false, index, &loaded.inputs[index].info)) {
      return 1;
    }
    loaded.inputs[index].prepare();
  }
  for (size_t index = 0; index < loaded.outputs.size(); ++index) {
    if (read_info(meta, name, true, index, &loaded.outputs[index])) {
      return 1;
    }
  }
  return 0;
}

int load(Engine& engine, const std::string& name, LoadedMethod** method) {
  auto found = engine.methods.find(name);
  if (found != engine.methods.end()) {
    *method = found->second.get();
    return 0;
  }
  if (std::find(engine.names.begin(), engine.names.end(), name) == engine.names.end()) {
    return fail("no method '" + name + "' in the program");
  }
  auto loaded = std::make_unique<LoadedMethod>();
  loaded->planned = std::make_unique<HierarchicalAllocator>(
      Span<Span<uint8_t>>(engine.arena_spans.data(), engine.arena_spans.size()));
  loaded->memory = std::make_unique<MemoryManager>(&loaded->allocator, loaded->planned.get(), &loaded->temporary);
  Result<Method> result = engine.program->load_method(name.c_str(), loaded->memory.get());
  if (!result.ok()) {
    return fail("method '" + name + "' cannot be loaded", result.error());
  }
  loaded->method = std::make_unique<Method>(std::move(*result));
  loaded->note_outputs();
  if (prepare_tensors(*loaded, name)) {
    return 1;
  }
  *method = loaded.get();
  engine.methods.emplace(name, std::move(loaded));
  engine.loaded_count.add();
  return 0;
}

std::string tensor_text(const std::string& method, bool is_output, size_t index) {
  return "method '" + method + "' " + (is_output ? "output " : "input ") + std::to_string(index);
}

int check_array(const mars_array& array, const mars_tensor_info& info, const std::string& method, bool is_output,
                size_t index) {
  bool same = array.rank == info.rank && std::equal(info.shape, info.shape + info.rank, array.shape);
  if (!same) {
    bool known = array.rank >= 0 && array.rank <= MARS_MAX_RANK;
    return fail(tensor_text(method, is_output, index) + ": expected shape " + shape_text(info.shape, info.rank) +
                ", given " + (known ? shape_text(array.shape, array.rank) : "rank " + std::to_string(array.rank)));
  }
  if (array.dtype != info.dtype) {
    return fail(tensor_text(method, is_output, index) + ": expected dtype number " + std::to_string(info.dtype) +
                ", given " + std::to_string(array.dtype));
  }
  bool empty = array.data == nullptr && info.size_bytes > 0;
  return empty ? fail(tensor_text(method, is_output, index) + ": no data") : 0;
}

int set_inputs(LoadedMethod& loaded, const std::string& name, const mars_array* arrays) {
  for (size_t index = 0; index < loaded.inputs.size(); ++index) {
    InputTensor& tensor = loaded.inputs[index];
    if (check_array(arrays[index], tensor.info, name, false, index)) {
      return 1;
    }
    tensor.bind(arrays[index].data);
    Error error = loaded.method->set_input(EValue(Tensor(tensor.impl.get())), index);
    if (error != Error::Ok) {
      return fail(tensor_text(name, false, index), error);
    }
  }
  return 0;
}

int bind_outputs(LoadedMethod& loaded, const std::string& name, const mars_array* arrays) {
  for (size_t index = 0; index < loaded.outputs.size(); ++index) {
    const mars_tensor_info& info = loaded.outputs[index];
    if (check_array(arrays[index], info, name, true, index)) {
      return 1;
    }
    if (!loaded.output_in_place[index]) {
      continue;  // planned or constant: copied after the run
    }
    Error error = loaded.method->set_output_data_ptr(arrays[index].data, info.size_bytes, index);
    if (error != Error::Ok) {
      return fail(tensor_text(name, true, index), error);
    }
  }
  return 0;
}

int copy_outputs(LoadedMethod& loaded, const std::string& name, const mars_array* arrays) {
  for (size_t index = 0; index < loaded.outputs.size(); ++index) {
    const int64_t size_bytes = loaded.outputs[index].size_bytes;
    const EValue& value = loaded.method->get_output(index);
    if (!value.isTensor()) {
      return fail(tensor_text(name, true, index) + " is not a tensor");
    }
    Tensor tensor = value.toTensor();
    if (static_cast<int64_t>(tensor.nbytes()) != size_bytes) {
      return fail(tensor_text(name, true, index) + ": " + std::to_string(tensor.nbytes()) + " bytes came out, " +
                  std::to_string(size_bytes) + " were announced");
    }
    if (tensor.const_data_ptr() != arrays[index].data) {
      std::memcpy(arrays[index].data, tensor.const_data_ptr(), size_bytes);
    }
  }
  return 0;
}

int execute(Engine& engine, const std::string& name, const mars_array* inputs, int32_t input_count,
            const mars_array* outputs, int32_t output_count) {
  LoadedMethod* loaded = nullptr;
  if (load(engine, name, &loaded)) {
    return 1;
  }
  Method* method = loaded->method.get();
  if (input_count != static_cast<int32_t>(method->inputs_size()) ||
      output_count != static_cast<int32_t>(method->outputs_size())) {
    return fail("method '" + name + "': expected " + std::to_string(method->inputs_size()) + " inputs and " +
                std::to_string(method->outputs_size()) + " outputs, given " + std::to_string(input_count) + " and " +
                std::to_string(output_count));
  }
  // Outputs first: where an output is an input passed through, the input's address must win.
  if (bind_outputs(*loaded, name, outputs) || set_inputs(*loaded, name, inputs)) {
    return 1;
  }
  Error error = method->execute();
  if (error != Error::Ok) {
    return fail("method '" + name + "' failed", error);
  }
  return copy_outputs(*loaded, name, outputs);
}

// No C++ exception may leave a C function.
template <typename Body>
int guarded(Body body) {
  runtime_log.clear();
  try {
    return body();
  } catch (const std::exception& error) {
    return fail(std::string("out of memory or internal error: ") + error.what());
  }
}

template <typename Body>
int with_meta(uint64_t id, const char* method, Body body) {
  return guarded([&] {
    auto engine = find(id);
    if (!engine) {
      return fail_closed();
    }
    std::lock_guard<std::mutex> lock(engine->mutex);
    Result<MethodMeta> meta = engine->program->method_meta(method);
    return meta.ok() ? body(*meta) : fail(std::string("no method '") + method + "' in the program");
  });
}

int check_threads(int32_t threads) {
  return threads < 1 || threads > 256 ? fail("threads must be 1 to 256, not " + std::to_string(threads)) : 0;
}

const bool runtime_ready = [] {
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(keep_log, "mars_executorch.cpp"));
  executorch::runtime::runtime_init();
  return true;
}();

}  // namespace

namespace mars {
// The one place of this thread's error message, for the other parts of the library.
int fail_inference(const std::string& message) {
  return fail(message);
}
}  // namespace mars

extern "C" {

int32_t mars_abi(void) {
  return runtime_ready ? MARS_ABI : 0;
}

const char* mars_last_error(void) {
  return last_error.c_str();
}

int mars_open(const void* data, size_t size_bytes, uint64_t* id) {
  return guarded([&] {
    auto engine = std::make_shared<Engine>();
    if (int failed = open_program(data, size_bytes, *engine)) {
      return failed;
    }
    std::lock_guard<std::mutex> lock(engines_mutex);
    *id = next_engine++;
    engines.emplace(*id, std::move(engine));
    return 0;
  });
}

int mars_close(uint64_t id) {
  return guarded([&] {
    std::shared_ptr<Engine> engine;  // freed outside the lock, and after a run in another thread has ended
    std::lock_guard<std::mutex> lock(engines_mutex);
    auto found = engines.find(id);
    if (found != engines.end()) {
      engine = std::move(found->second);
      engines.erase(found);
    }
    return 0;
  });
}

int mars_method_count(uint64_t id, int32_t* count) {
  return guarded([&] {
    auto engine = find(id);
    if (!engine) {
      return fail_closed();
    }
    *count = static_cast<int32_t>(engine->names.size());
    return 0;
  });
}

int mars_method_name(uint64_t id, int32_t index, const char** name) {
  return guarded([&] {
    auto engine = find(id);
    if (!engine) {
      return fail_closed();
    }
    if (index < 0 || index >= static_cast<int32_t>(engine->names.size())) {
      return fail("no method number " + std::to_string(index));
    }
    *name = engine->names[index].c_str();
    return 0;
  });
}

int mars_method_arity(uint64_t id, const char* method, int32_t* inputs, int32_t* outputs) {
  return with_meta(id, method, [&](const MethodMeta& meta) {
    *inputs = static_cast<int32_t>(meta.num_inputs());
    *outputs = static_cast<int32_t>(meta.num_outputs());
    return 0;
  });
}

int mars_tensor(uint64_t id, const char* method, int32_t is_output, int32_t index, mars_tensor_info* info) {
  return with_meta(id, method, [&](const MethodMeta& meta) {
    auto count = static_cast<int32_t>(is_output ? meta.num_outputs() : meta.num_inputs());
    if (index < 0 || index >= count) {
      return fail(std::string("method '") + method + "' has no tensor number " + std::to_string(index));
    }
    return read_info(meta, method, is_output != 0, index, info);
  });
}

int mars_execute(uint64_t id, const char* method, const mars_array* inputs, int32_t input_count,
                 const mars_array* outputs, int32_t output_count) {
  return guarded([&] {
    auto engine = find(id);
    if (!engine) {
      return fail_closed();
    }
    std::shared_lock<std::shared_mutex> pool(pool_mutex);
    std::lock_guard<std::mutex> lock(engine->mutex);
    return execute(*engine, method, inputs, input_count, outputs, output_count);
  });
}

int mars_set_threads(int32_t threads) {
  return guarded([&] {
    if (check_threads(threads)) {
      return 1;
    }
    std::unique_lock<std::shared_mutex> pool(pool_mutex);
    auto* current = executorch::extension::threadpool::get_threadpool();
    if (current->get_thread_count() == static_cast<size_t>(threads)) {
      return 0;
    }
    // A loaded delegate keeps a pointer to the pool it was made with.
    std::lock_guard<std::mutex> lock(loaded_mutex);
    if (loaded_methods > 0) {
      return fail("the process already runs a model with " + std::to_string(current->get_thread_count()) +
                  " threads; close it before asking for " + std::to_string(threads));
    }
    return current->_unsafe_reset_threadpool(threads) ? 0 : fail("the thread pool cannot be replaced");
  });
}

int mars_prefer_threads(uint64_t id, int32_t threads) {
  return guarded([&] {
    auto engine = find(id);
    if (!engine) {
      return fail_closed();
    }
    if (check_threads(threads)) {
      return 1;
    }
    std::unique_lock<std::shared_mutex> pool(pool_mutex);
    std::lock_guard<std::mutex> lock(engine->mutex);
    auto* current = executorch::extension::threadpool::get_threadpool();
    if (current->get_thread_count() == static_cast<size_t>(threads) || !engine->loaded_count.is_all()) {
      return 0;
    }
    // Its own methods load again at their next call: a delegate keeps a pointer to the pool it was made with.
    engine->methods.clear();
    engine->loaded_count.clear();
    return current->_unsafe_reset_threadpool(threads) ? 0 : fail("the thread pool cannot be replaced");
  });
}

int32_t mars_threads(void) {
  std::shared_lock<std::shared_mutex> pool(pool_mutex);
  return static_cast<int32_t>(executorch::extension::threadpool::get_threadpool()->get_thread_count());
}

int mars_memory_use(uint64_t id, mars_memory* use) {
  return guarded([&] {
    auto engine = find(id);
    if (!engine) {
      return fail_closed();
    }
    std::lock_guard<std::mutex> lock(engine->mutex);
    *use = {static_cast<int64_t>(engine->size_bytes), 0, 0, static_cast<int32_t>(engine->methods.size())};
    for (const auto& span : engine->arena_spans) {
      use->arena_bytes += static_cast<int64_t>(span.size());
    }
    for (const auto& entry : engine->methods) {
      use->method_bytes += static_cast<int64_t>(entry.second->allocator.total_bytes);
    }
    return 0;
  });
}

}  // extern "C"
