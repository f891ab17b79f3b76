// What tch lacks, for torch.rs alone: the signature of a model, a forward pass under InferenceMode that leaks
// nothing when it fails, memory that the next run finds, and CUDA that is looked for at run time. Nothing is decided here.

#pragma once

#include "rust/cxx.h"

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/api/module.h>

namespace rust::behavior {

// cxx would let what is no std::exception end the process, and would show a C++ backtrace.
template <typename Try, typename Fail>
void trycatch(Try&& body, Fail&& fail) noexcept {
  try {
    body();
  } catch (const c10::Error& error) {
    fail(error.what_without_backtrace());
  } catch (const std::exception& error) {
    fail(error.what());
  } catch (...) {
    fail("an exception of unknown type");
  }
}

}  // namespace rust::behavior

namespace penstock {

struct Attribute;
struct Code;
struct DeviceMemory;
struct Given;
struct Parameter;

// Owns what a forward pass gave until it is taken.
class Outputs {
 public:
  void add(std::string name, at::Tensor tensor);
  // Makes floats of half as wide ones.
  void widen();
  size_t len() const;
  // Empty where the model does not name its outputs.
  rust::Str name(size_t position) const;
  // The caller owns the result; each position may be taken once.
  at::Tensor* take(size_t position);

 private:
  std::vector<std::string> names_;
  std::vector<at::Tensor> tensors_;
};

// A TorchScript module on its device. Running it does not change this object, but may change the module's own
// buffers: whether that matters is for the trial to find out.
class Module {
 public:
  // How inputs are brought into the form that the module wants.
  struct Wants {
    bool channels_last = false;
    bool bfloat16 = false;
  };

  Module(torch::jit::Module module, c10::Device device);
  Module(torch::jit::Module module, c10::Device device, Wants wants);
  // The same model in other forms. This object stays as it is.
  std::unique_ptr<Module> frozen() const;
  std::unique_ptr<Module> optimised_for_inference() const;
  std::unique_ptr<Module> channels_last() const;
  // Answers in the kinds of the original.
  std::unique_ptr<Module> bfloat16() const;
  // The arguments of forward after self.
  rust::Vec<Parameter> parameters() const;
  // What can be told from the code, as it is left when it is frozen in eval mode.
  Code code() const;
  // How often the tensors that it keeps have been written to, in all. Cheap, and may be asked while it runs.
  uint64_t writes() const;
  // How many tensors forward returns, 0 where its type does not tell. Throws if no value of its type could be answered.
  size_t returns() const;
  // An input to be filled, in memory of the CPU from which the device reads fastest. The caller owns the result.
  at::Tensor* staging(c10::ScalarType type, rust::Slice<const int64_t> shape) const;
  // Borrows the inputs. Arguments that are not given take their defaults. On a GPU each thread has a stream of its
  // own, so that what one copies overlaps what another computes; when this returns the outputs have arrived.
  std::unique_ptr<Outputs> forward(rust::Slice<const Given> inputs) const;
  // Throws if the device does nothing any more: some errors of CUDA are for the rest of the process.
  void probe() const;

 private:
  torch::jit::Module module_;
  torch::jit::Method forward_;
  c10::Device device_;
  Wants wants_;
  // Nothing where they could not be found.
  std::optional<std::vector<at::Tensor>> kept_;
};

// Loads in eval mode. `device` is `cpu` or `cuda:N`.
std::unique_ptr<Module> load(rust::Str path, rust::Str device);

// Of its elements. The name is for messages.
c10::ScalarType scalar_type(const at::Tensor& tensor);
rust::Str scalar_type_name(const at::Tensor& tensor);

// Writes a module that has these attributes, each the value of an expression, and these methods.
void define(rust::Str path, rust::Slice<const Attribute> attributes, rust::Str methods);

// GPUs that can be used. Loads libtorch_cuda.so if it lies beside libtorch_cpu.so; throws if that fails.
size_t cuda_devices();

// Of a GPU, not of the process.
DeviceMemory device_memory(size_t number);

// From now on an exception that nobody can catch is told in one line, and what tensors of the CPU lie in is kept for the next ones
// until it is given back.
void prepare(int32_t forked);

// What is kept, whichever thread has used it.
void give_back() noexcept;

// On a GPU, makes what libtorch makes for each thread and its stream when that multiplies matrices for the first time: some ten
// milliseconds that would be a part of somebody's answer.
void warm_up(rust::Str device);

// Ends the process without destructors or exit handlers.
[[noreturn]] void leave(int32_t code) noexcept;

}  // namespace penstock
