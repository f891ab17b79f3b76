#include "penstock-engine/src/shim.h"
#include "penstock-engine/src/torch.rs.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <limits>
#include <optional>
#include <unordered_map>
#include <utility>

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/jit/frontend/resolver.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/inline_fork_wait.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/serialization/import.h>

#include <mimalloc.h>

namespace penstock {

namespace {

const std::vector<c10::Argument>& arguments_of(const torch::jit::Method& method) {
  return method.function().getSchema().arguments();
}

// What a method of a module that is written here may name.
struct Names : torch::jit::NativeResolver {
  std::unordered_map<std::string, c10::IValue> constants;

  std::shared_ptr<torch::jit::SugaredValue> resolveValue(
      const std::string& name, torch::jit::GraphFunction& method, const torch::jit::SourceRange& at) override {
    if (name == "fork") {
      return torch::jit::SpecialFormValue::create(c10::prim::fork);
    }
    if (name == "prim") {
      return std::make_shared<torch::jit::BuiltinModule>("prim");
    }
    if (const auto constant = constants.find(name); constant != constants.end()) {
      return std::make_shared<torch::jit::SimpleValue>(
          torch::jit::insertConstant(*method.graph(), constant->second, at));
    }
    return NativeResolver::resolveValue(name, method, at);
  }
};

// Of an expression, with the type that it has.
std::pair<c10::IValue, c10::TypePtr> value_of(const std::string& expression) {
  torch::jit::CompilationUnit unit;
  unit.define(std::nullopt, "def value():\n  return " + expression + "\n", torch::jit::nativeResolver(), nullptr);
  auto& function = unit.get_function("value");
  return {function({}), function.getSchema().returns()[0].type()};
}

bool is_number(const c10::TypePtr& type) {
  return type->kind() == c10::TypeKind::IntType || type->kind() == c10::TypeKind::FloatType ||
      type->kind() == c10::TypeKind::BoolType;
}

// The one element of a tensor, as what the model takes.
c10::IValue number(const at::Tensor& tensor, const c10::Argument& argument) {
  TORCH_CHECK(tensor.numel() == 1, "`", argument.name(), "` is one number, ", tensor.numel(), " were given");
  switch (argument.type()->kind()) {
    case c10::TypeKind::IntType:
      return tensor.item<int64_t>();
    case c10::TypeKind::FloatType:
      return tensor.item<double>();
    default:
      return tensor.item<bool>();
  }
}

bool is_tensor(const c10::TypePtr& type) {
  if (type->kind() == c10::TypeKind::OptionalType) {
    return is_tensor(type->expectRef<c10::OptionalType>().getElementType());
  }
  return type->kind() == c10::TypeKind::TensorType;
}

bool may_be_tensor(const c10::TypePtr& type) {
  return is_tensor(type) || c10::TensorType::get()->isSubtypeOf(*type);
}

// Whether there are values of this type that collect takes.
bool may_be_answer(const c10::TypePtr& type) {
  if (may_be_tensor(type)) {
    return true;
  }
  auto contained = type->containedTypes();
  switch (type->kind()) {
    case c10::TypeKind::TupleType:
      return !contained.empty() && std::all_of(contained.begin(), contained.end(), may_be_tensor);
    case c10::TypeKind::ListType:
      return contained.at(0)->kind() == c10::TypeKind::TensorType;
    case c10::TypeKind::DictType:
      return contained.at(0)->kind() == c10::TypeKind::StringType && may_be_tensor(contained.at(1));
    case c10::TypeKind::OptionalType:
    case c10::TypeKind::UnionType:
      return std::any_of(contained.begin(), contained.end(), may_be_answer);
    default:
      return false;
  }
}

// Answers are read from the CPU, element after element. From a GPU they are still on their way.
at::Tensor readable(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.defined(), "forward returned an undefined tensor");
  TORCH_CHECK(tensor.layout() == at::kStrided, "forward returned a tensor that is not dense");
  at::Tensor dense = tensor.detach().contiguous().resolve_conj().resolve_neg();
  return dense.to(at::kCPU, /*non_blocking=*/true);
}

// The calling thread's stream, for as long as it lives; there is one device in a process. Streams come from
// libtorch's pool, which has 32.
c10::Stream own_stream(const c10::impl::VirtualGuardImpl& gpu, c10::Device device) {
  thread_local std::optional<c10::Stream> stream;
  if (!stream) {
    gpu.setDevice(device);
    stream = gpu.getStreamFromGlobalPool(device);
    gpu.exchangeStream(*stream);
  }
  return *stream;
}

// Whether there is anything with four dimensions.
bool to_channels_last(const torch::jit::Module& module) {
  bool has_images = false;
  for (at::Tensor parameter : module.parameters()) {
    if (parameter.dim() == 4) {
      parameter.set_data(parameter.contiguous(at::MemoryFormat::ChannelsLast));
      has_images = true;
    }
  }
  return has_images;
}

void prepare_gpu() {
  // Fused kernels are compiled for any number of rows: those for one number would be compiled again for the next.
  torch::jit::FusionStrategy dynamic{{torch::jit::FusionBehavior::DYNAMIC, 2}};
  torch::jit::setFusionStrategy(dynamic);
}

// An exception that nobody can catch, as one out of a destructor when a GPU has failed: says why, in a line.
[[noreturn]] void give_up() noexcept {
  std::string why = "libtorch cannot go on";
  try {
    if (auto exception = std::current_exception()) {
      std::rethrow_exception(exception);
    }
  } catch (const c10::Error& error) {
    why = error.what_without_backtrace();
  } catch (const std::exception& error) {
    why = error.what();
  } catch (...) {
  }
  std::cerr << "penstock-engine: " << why.substr(0, why.find('\n')) << "; the engine has to be replaced" << std::endl;
  std::_Exit(1);
}

// Memory of tensors, up to 2 GiB each. The C library would have the kernel map each block of more than 32 MiB anew.
class Kept final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes == 0 ? nullptr : mi_malloc_aligned(bytes, c10::gAlignment);
    TORCH_CHECK(data != nullptr || bytes == 0, "can't allocate memory: ", bytes, " bytes are wanted");
    return {data, data, &mi_free, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &mi_free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

void collect(const c10::IValue& value, Outputs& into) {
  if (value.isTensor()) {
    into.add("", readable(value.toTensor()));
  } else if (value.isTuple()) {
    for (const auto& element : value.toTupleRef().elements()) {
      TORCH_CHECK(element.isTensor(), "forward returned a tuple that holds ", element.tagKind());
      into.add("", readable(element.toTensor()));
    }
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) {
      into.add("", readable(tensor));
    }
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      TORCH_CHECK(
          entry.key().isString() && entry.value().isTensor(),
          "forward returned a dict that is not Dict[str, Tensor]");
      into.add(entry.key().toStringRef(), readable(entry.value().toTensor()));
    }
  } else {
    TORCH_CHECK(false, "forward returned ", value.tagKind(), ", which is no tensor and holds none");
  }
}

}  // namespace

void Outputs::add(std::string name, at::Tensor tensor) {
  names_.push_back(std::move(name));
  tensors_.push_back(std::move(tensor));
}

void Outputs::widen() {
  for (at::Tensor& tensor : tensors_) {
    if (tensor.scalar_type() == at::kBFloat16) {
      tensor = tensor.to(at::kFloat);
    }
  }
}

size_t Outputs::len() const { return tensors_.size(); }

rust::Str Outputs::name(size_t position) const { return names_.at(position); }

at::Tensor* Outputs::take(size_t position) { return new at::Tensor(std::move(tensors_.at(position))); }

Module::Module(torch::jit::Module module, c10::Device device) : Module(std::move(module), device, Wants{}) {}

std::unique_ptr<Module> Module::frozen() const {
  return std::make_unique<Module>(torch::jit::freeze(module_.deepcopy()), device_);
}

namespace {

using torch::jit::AliasDb;
using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

// Whether something of this type can be written to, or holds what can be.
bool may_change(const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
    case c10::TypeKind::ListType:
    case c10::TypeKind::DictType:
    case c10::TypeKind::AnyType:
      return true;
    default: {
      auto contained = type->containedTypes();
      return std::any_of(contained.begin(), contained.end(), may_change);
    }
  }
}

// Whether there is such a node, in whatever branch.
template <typename Is>
bool any_node(Block& block, const Is& is) {
  for (Node* node : block.nodes()) {
    auto blocks = node->blocks();
    if (is(*node) || std::any_of(blocks.begin(), blocks.end(), [&is](Block* inner) { return any_node(*inner, is); })) {
      return true;
    }
  }
  return false;
}

bool is_mutable(const Node& node) {
  const c10::FunctionSchema* schema = node.maybeSchema();
  return schema != nullptr && schema->is_mutable();
}

// The same graph after a pass that makes it easier to see through, unless the pass cannot.
template <typename Pass>
std::shared_ptr<Graph> after(const Pass& pass, const std::shared_ptr<Graph>& graph) {
  try {
    std::shared_ptr<Graph> copy = graph->copy();
    pass(copy);
    return copy;
  } catch (const std::exception&) {
    return graph;
  }
}

// What is given to a run is that run's own, but AliasDb would take it for what anybody may hold.
void make_inputs_fresh(Graph& graph) {
  torch::jit::WithInsertPoint first(*graph.block()->nodes().begin());
  for (Value* input : graph.inputs()) {
    if (input->type()->kind() != c10::TypeKind::ClassType) {
      input->replaceAllUsesWith(graph.insertNode(graph.createUninitialized(input->type()))->output());
    }
  }
}

// Of what lies in lists and the like AliasDb knows only of which type it is. An input of that type stands for all of it.
void add_contained(Graph& graph, const c10::TypePtr& type, std::vector<Value*>& into) {
  for (const c10::TypePtr& contained : type->containedTypes()) {
    if (may_change(contained)) {
      into.push_back(graph.addInput()->setType(contained));
      add_contained(graph, contained, into);
    }
  }
}

// Whether what it computes is drawn. Attention draws only where it drops something out.
bool draws(const Node& node) {
  if (!node.isNondeterministic()) {
    return false;
  }
  auto share = node.schema().argumentIndexWithName("dropout_p");
  auto value = share ? torch::jit::toIValue(node.input(*share)) : std::nullopt;
  return !(value && value->isDouble() && value->toDouble() == 0);
}

// Whether it sets where the numbers begin that are drawn next, by whatever run.
bool seeds(const Node& node) {
  static const auto manual_seed = c10::Symbol::fromQualString("aten::manual_seed");
  return node.kind() == manual_seed;
}

enum class Inputs { kOfTheRun, kOfAnybody };

// Whether a frozen graph may write to what outlives a run of it. Freezing has made a constant of every attribute but of those
// that it takes to be written to, in whatever branch is left in eval mode; what is called is in the graph.
bool may_write_to_own(const std::shared_ptr<Graph>& frozen, Inputs inputs) {
  // Of what is forked AliasDb knows nothing, and of a value that was in a tuple not which one it is.
  auto graph = after([](auto& copy) { torch::jit::InlineForkWait(copy); }, frozen);
  graph = after([](auto& copy) { torch::jit::LowerAllTuples(copy); }, graph)->copy();
  if (inputs == Inputs::kOfTheRun) {
    make_inputs_fresh(*graph);
  }
  std::vector<Value*> own;
  any_node(*graph->block(), [&own](Node& node) {
    bool is_own = node.kind() == c10::prim::Constant || node.kind() == c10::prim::GetAttr;
    // What an object holds is asked of its own GetAttr.
    if (is_own && node.output()->type()->kind() != c10::TypeKind::ClassType && may_change(node.output()->type())) {
      own.push_back(node.output());
    }
    return false;
  });
  for (size_t at = 0, count = own.size(); at < count; ++at) {
    add_contained(*graph, own[at]->type(), own);
  }
  // Not as a frozen one: that would trust a batch norm in training mode.
  AliasDb aliases(graph);
  auto is_written = [&](Value* value) {
    // What a part gives out, whoever has forked it may write to.
    bool is_given_out = inputs == Inputs::kOfAnybody && aliases.mayContainAlias(value, graph->outputs());
    return is_given_out || aliases.hasWriters(value);
  };
  return std::any_of(own.begin(), own.end(), is_written) || any_node(*graph->block(), [](Node& node) {
    switch (node.kind()) {
      case c10::prim::SetAttr:
      case c10::prim::CallMethod:
      case c10::prim::CallFunction:
        return true;
      default:
        break;
    }
    if (!node.hasAttribute(torch::jit::attr::Subgraph)) {
      return false;
    }
    // What it is given may be a constant of ours, which it may write to.
    std::shared_ptr<Graph> part = node.g(torch::jit::attr::Subgraph);
    return any_node(*part->block(), is_mutable) || may_write_to_own(part, Inputs::kOfAnybody);
  });
}

}  // namespace

Code Module::code() const {
  torch::jit::Module frozen = torch::jit::freeze(module_.deepcopy(), std::nullopt, /*optimize_numerics=*/false);
  auto graph = frozen.get_method("forward").graph();
  auto whole = after([](auto& copy) { torch::jit::InlineForkWait(copy); }, graph);
  return Code{
      may_write_to_own(graph, Inputs::kOfTheRun),
      any_node(*whole->block(), draws),
      any_node(*whole->block(), seeds),
  };
}

namespace {

// Uses each constant of a graph, also of what it calls and forks.
template <typename Use>
void each_constant(Graph& graph, const Use& use) {
  auto whole = graph.copy();
  torch::jit::Inline(*whole);
  any_node(*whole->block(), [&use](Node& node) {
    if (node.kind() == c10::prim::Constant) {
      if (auto constant = torch::jit::toIValue(node.output())) {
        use(*constant);
      }
    }
    if (node.hasAttribute(torch::jit::attr::Subgraph)) {
      each_constant(*node.g(torch::jit::attr::Subgraph), use);
    }
    return false;
  });
}

// The tensors that a module keeps from one run to the next: those of its attributes, and constants of its code.
std::vector<at::Tensor> kept_by(const torch::jit::Module& module, const torch::jit::Method& forward) {
  std::vector<at::Tensor> kept;
  auto add = [&kept](const c10::IValue& value) {
    if (value.isTensor() && value.toTensor().defined() && !value.toTensor().is_inference()) {
      kept.push_back(value.toTensor());
    }
    return false;
  };
  c10::IValue(module._ivalue()).visit(add);
  each_constant(*forward.graph(), [&add](const c10::IValue& constant) { constant.visit(add); });
  return kept;
}

}  // namespace

Module::Module(torch::jit::Module module, c10::Device device, Wants wants)
    : module_(std::move(module)), forward_(module_.get_method("forward")), device_(device), wants_(wants) {
  try {
    kept_ = kept_by(module_, forward_);
  } catch (const std::exception&) {
    // Then nobody knows whether it writes to them.
  }
}

// What an operator hands out without saying that it is what it was given, as type_as may, counts here as well: it shares the counter.
uint64_t Module::writes() const {
  TORCH_CHECK(kept_.has_value(), "the tensors that the module keeps cannot be found");
  uint64_t sum = 0;
  for (const at::Tensor& tensor : *kept_) {
    sum += tensor._version();
  }
  return sum;
}

std::unique_ptr<Module> Module::optimised_for_inference() const {
  torch::jit::Module copy = module_.deepcopy();
  return std::make_unique<Module>(torch::jit::optimize_for_inference(copy), device_);
}

std::unique_ptr<Module> Module::channels_last() const {
  torch::jit::Module copy = module_.deepcopy();
  TORCH_CHECK(to_channels_last(copy), "no parameter has four dimensions");
  return std::make_unique<Module>(torch::jit::freeze(copy), device_, Wants{.channels_last = true});
}

std::unique_ptr<Module> Module::bfloat16() const {
  torch::jit::Module copy = module_.deepcopy();
  // Module::to would change integers as well.
  auto narrow = [](at::Tensor tensor) {
    if (tensor.is_floating_point()) {
      tensor.set_data(tensor.to(at::kBFloat16));
    }
  };
  for (at::Tensor parameter : copy.parameters()) {
    narrow(parameter);
  }
  for (at::Tensor buffer : copy.buffers()) {
    narrow(buffer);
  }
  // Units that multiply such floats want the channels of a pixel side by side.
  bool has_images = to_channels_last(copy);
  return std::make_unique<Module>(
      torch::jit::freeze(copy), device_, Wants{.channels_last = has_images, .bfloat16 = true});
}

rust::Vec<Parameter> Module::parameters() const {
  rust::Vec<Parameter> parameters;
  const auto& arguments = arguments_of(forward_);
  for (size_t at = 1; at < arguments.size(); ++at) {
    const c10::Argument& argument = arguments[at];
    parameters.push_back(Parameter{
        rust::String::lossy(argument.name()),
        rust::String::lossy(argument.type()->annotation_str()),
        is_tensor(argument.type()) || is_number(argument.type()),
        argument.default_value().has_value(),
    });
  }
  return parameters;
}

size_t Module::returns() const {
  const auto& type = forward_.function().getSchema().returns().at(0).type();
  TORCH_CHECK(may_be_answer(type), "forward returns ", type->annotation_str(), ", which is no tensor and holds none");
  if (is_tensor(type)) {
    return 1;
  }
  if (type->kind() != c10::TypeKind::TupleType) {
    return 0;
  }
  const auto& elements = type->expectRef<c10::TupleType>().elements();
  for (const auto& element : elements) {
    if (!is_tensor(element)) {
      return 0;
    }
  }
  return elements.size();
}

at::Tensor* Module::staging(c10::ScalarType type, rust::Slice<const int64_t> shape) const {
  auto options = at::TensorOptions(type).pinned_memory(!device_.is_cpu());
  return new at::Tensor(at::empty(at::IntArrayRef(shape.data(), shape.size()), options));
}

std::unique_ptr<Outputs> Module::forward(rust::Slice<const Given> inputs) const {
  c10::InferenceMode guard;
  std::optional<c10::impl::VirtualGuardImpl> gpu;
  std::optional<c10::Stream> stream;
  if (!device_.is_cpu()) {
    stream = own_stream(gpu.emplace(device_.type()), device_);
  }
  const auto& arguments = arguments_of(forward_);
  std::vector<c10::IValue> stack(arguments.size() - 1);
  for (size_t at = 1; at < arguments.size(); ++at) {
    if (const auto& value = arguments[at].default_value()) {
      stack[at - 1] = *value;
    }
  }
  for (const Given& given : inputs) {
    const c10::Argument& argument = arguments.at(given.position + 1);
    if (is_number(argument.type())) {
      stack.at(given.position) = number(*given.tensor, argument);
      continue;
    }
    at::Tensor tensor = given.tensor->to(device_, /*non_blocking=*/true);
    if (wants_.channels_last && tensor.dim() == 4) {
      tensor = tensor.contiguous(at::MemoryFormat::ChannelsLast);
    }
    if (wants_.bfloat16 && tensor.scalar_type() == at::kFloat) {
      tensor = tensor.to(at::kBFloat16);
    }
    stack.at(given.position) = std::move(tensor);
  }
  auto outputs = std::make_unique<Outputs>();
  collect(forward_(std::move(stack)), *outputs);
  if (stream) {
    // What arrives is read at once, and an error of this batch is told now, not by the next one.
    try {
      gpu->synchronizeStream(*stream);
    } catch (...) {
      static_cast<void>(outputs.release());  // libtorch cannot even free what a lost device may still write to
      throw;
    }
  }
  if (wants_.bfloat16) {
    outputs->widen();
  }
  return outputs;
}

void Module::probe() const {
  if (device_.is_cpu()) {
    return;
  }
  c10::impl::VirtualGuardImpl gpu(device_.type());
  gpu.synchronizeDevice(device_.index());
  TORCH_CHECK(at::ones({1}, at::TensorOptions(device_)).item<float>() == 1.0f, "it computes nonsense");
}

std::unique_ptr<Module> load(rust::Str path, rust::Str device) {
  c10::Device on(static_cast<std::string>(device));
  if (!on.is_cpu()) {
    prepare_gpu();
  }
  torch::jit::Module module = torch::jit::load(static_cast<std::string>(path), on);
  module.eval();
  TORCH_CHECK(module.find_method("forward").has_value(), "the module has no method forward");
  return std::make_unique<Module>(std::move(module), on);
}

c10::ScalarType scalar_type(const at::Tensor& tensor) {
  return tensor.scalar_type();
}

rust::Str scalar_type_name(const at::Tensor& tensor) {
  return c10::toString(tensor.scalar_type());
}

void define(rust::Str path, rust::Slice<const Attribute> attributes, rust::Str methods) {
  torch::jit::Module module("Defined");
  auto names = std::make_shared<Names>();
  for (const auto& attribute : attributes) {
    const auto name = static_cast<std::string>(attribute.name);
    TORCH_CHECK(name != "torch" && name != "fork" && name != "prim", "no attribute may be called `", name, "`");
    auto [value, type] = value_of(static_cast<std::string>(attribute.value));
    module.register_attribute(name, type, value, false, value.isTensor());
    names->constants.emplace(name, std::move(value));
  }
  module.define(static_cast<std::string>(methods) + "\n", names);
  module.save(static_cast<std::string>(path));
}

size_t cuda_devices() {
  Dl_info libtorch_cpu;
  TORCH_CHECK(
      dladdr(reinterpret_cast<void*>(&at::globalContext), &libtorch_cpu) != 0,
      "libtorch_cpu.so cannot be found in memory");
  auto library = std::filesystem::path(libtorch_cpu.dli_fname).replace_filename("libtorch_cuda.so");
  // Global and never closed: its kernels register themselves.
  TORCH_CHECK(
      !std::filesystem::exists(library) || dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr, dlerror());
  if (!at::hasCUDA()) {
    return 0;
  }
  auto accelerator = at::getAccelerator(/*checked=*/false);
  return accelerator == at::kCUDA ? static_cast<size_t>(at::accelerator::deviceCount()) : 0;
}

DeviceMemory device_memory(size_t number) {
  auto device = static_cast<c10::DeviceIndex>(number);
  auto [free, total] = at::accelerator::getMemoryInfo(device);
  auto held = at::accelerator::getDeviceStats(device).reserved_bytes.at(0).current;
  return DeviceMemory{static_cast<uint64_t>(held), free, total};
}

void prepare(int32_t forked) {
  std::set_terminate(give_up);
  // In milliseconds: once such a time is over, all that is free is given back, by whoever happens to want memory next. Without one
  // nothing could be given back.
  mi_option_set(mi_option_purge_delay, std::numeric_limits<int32_t>::max());
  // Threads that outlive main may still want memory.
  static auto* kept = new Kept;
  c10::SetCPUAllocator(kept, /*priority=*/1);
  at::set_num_interop_threads(forked);
  at::launch([] {});
}

void give_back() noexcept {
  mi_thread_init();  // a thread that has never wanted memory can give none back
  mi_collect(/*force=*/true);
}

void warm_up(rust::Str device) {
  c10::Device on(static_cast<std::string>(device));
  if (on.is_cpu()) {
    return;
  }
  c10::InferenceMode guard;
  c10::impl::VirtualGuardImpl gpu(on.type());
  c10::Stream stream = own_stream(gpu, on);
  at::Tensor one = at::ones({1, 1}, at::TensorOptions(on));
  at::mm(one, one);
  gpu.synchronizeStream(stream);
}

void leave(int32_t code) noexcept { std::_Exit(code); }

}  // namespace penstock
