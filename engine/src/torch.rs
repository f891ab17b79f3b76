//! libtorch as a [`Model`]: the only Rust file that names tch. Bytes in, bytes out; every length is checked
//! before memory is written, because tch's own constructors do not.
//!
//! tch makes and owns tensors. What it lacks or leaks in (InferenceMode, a model's signature, a forward pass that
//! may fail) is in `shim.cc`. Calls of tch that have a fallible form, `f_..`, are made in that form.

use crate::config::{Device, WarmUp};
use crate::manifest::{Argument, Bound, Manifest, Signature, output_name, undeclared};
use crate::memory;
use crate::model::{Code, Gathered, Model, ModelError, Optimisation, Output, Spec, Tolerance};
use crate::values::width;
use bytes::Bytes;
use cxx::UniquePtr;
use libmimalloc_sys as _; // what the shim calls
use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::Instant;
use tch::Tensor;
use wire::{Datatype, DeviceMemory};

// cxx makes its items pub, and knows no `expect`.
#[allow(unreachable_pub)]
#[cxx::bridge(namespace = "penstock")]
mod ffi {
    /// One argument of `forward`.
    struct Parameter {
        name: String,
        type_name: String,
        takes_tensor: bool,
        has_default: bool,
    }

    /// A tensor for the argument at `position`.
    struct Given {
        position: usize,
        tensor: *const Tensor,
    }

    /// What a run does, beside computing, as far as its code tells.
    #[derive(Clone, Copy)]
    struct Code {
        writes: bool,
        draws: bool,
        seeds: bool,
    }

    /// Of a model that is written here.
    struct Attribute<'a> {
        name: &'a str,
        value: &'a str,
    }

    /// Bytes of a GPU.
    struct DeviceMemory {
        held: u64,
        free: u64,
        total: u64,
    }

    /// Of the elements of a tensor: those that the protocol has a name for.
    #[derive(Debug)]
    #[namespace = "c10"]
    #[repr(i8)]
    enum ScalarType {
        Byte,
        Char,
        Short,
        Int,
        Long,
        Half,
        Float,
        Double,
        Bool = 11,
        BFloat16 = 15,
        UInt16 = 27,
        UInt32,
        UInt64,
    }

    unsafe extern "C++" {
        include!("penstock-engine/src/shim.h");

        #[namespace = "at"]
        type Tensor;
        #[namespace = "c10"]
        type ScalarType;
        type Module;
        type Outputs;

        fn load(path: &str, device: &str) -> Result<UniquePtr<Module>>;
        fn frozen(self: &Module) -> Result<UniquePtr<Module>>;
        fn optimised_for_inference(self: &Module) -> Result<UniquePtr<Module>>;
        fn channels_last(self: &Module) -> Result<UniquePtr<Module>>;
        fn bfloat16(self: &Module) -> Result<UniquePtr<Module>>;
        fn parameters(self: &Module) -> Result<Vec<Parameter>>;
        fn code(self: &Module) -> Result<Code>;
        fn writes(self: &Module) -> Result<u64>;
        fn returns(self: &Module) -> Result<usize>;
        fn staging(self: &Module, scalar: ScalarType, shape: &[i64]) -> Result<*mut Tensor>;
        fn probe(self: &Module) -> Result<()>;
        fn device_memory(number: usize) -> Result<DeviceMemory>;
        /// With so many threads for what models fork.
        fn prepare(forked: i32) -> Result<()>;
        fn give_back();
        fn warm_up(device: &str) -> Result<()>;
        fn leave(code: i32);
        /// Each tensor must live.
        unsafe fn forward(self: &Module, inputs: &[Given]) -> Result<UniquePtr<Outputs>>;
        fn len(self: &Outputs) -> usize;
        fn name(self: &Outputs, position: usize) -> Result<&str>;
        fn take(self: Pin<&mut Outputs>, position: usize) -> Result<*mut Tensor>;
        fn cuda_devices() -> Result<usize>;
        fn scalar_type(tensor: &Tensor) -> ScalarType;
        fn scalar_type_name(tensor: &Tensor) -> &str;
        fn define<'a>(path: &str, attributes: &[Attribute<'a>], methods: &str) -> Result<()>;
    }
}

// SAFETY: a loaded TorchScript module may be run and freed on any thread, and on several at once: its own code
// is immutable. Its buffers may not be, which is what a model's trial looks for and a serial grouping prevents.
unsafe impl Send for ffi::Module {}
// SAFETY: as above.
unsafe impl Sync for ffi::Module {}

/// The device that `auto` means here; an error says why another cannot be had.
pub fn resolve(device: Device) -> Result<Device, String> {
    let count = || ffi::cuda_devices().map_err(|error| last_line(error.what()));
    match device {
        Device::Cpu => Ok(Device::Cpu),
        Device::Auto => match count() {
            Ok(0) => Ok(Device::Cpu),
            Ok(_) => Ok(Device::Cuda(0)),
            Err(why) => {
                tracing::warn!("libtorch_cuda.so is there but cannot be used: {why}");
                Ok(Device::Cpu)
            }
        },
        Device::Cuda(number) => match count()? {
            count if number < count => Ok(device),
            count => Err(format!(
                "there is no cuda:{number}, {count} GPUs can be used; give --device cpu, or install libtorch with CUDA"
            )),
        },
    }
}

/// Loads a `model.pt`.
pub fn load(path: &Path, manifest: Option<Manifest>, device: Device) -> Result<Box<dyn Model>, String> {
    prepare(1);
    prepare_thread(1);
    if !path.exists() {
        return Err("there is no model.pt".into());
    }
    let path = path.to_str().ok_or("its path is not UTF-8")?;
    let failed = |error: cxx::Exception| {
        tracing::debug!(detail = error.what(), "loading {path}");
        format!("model.pt: {}", last_line(error.what()))
    };
    let module = ffi::load(path, &device.to_string()).map_err(failed)?;
    let arguments = module.parameters().map_err(failed)?.into_iter().map(|parameter| Argument {
        name: parameter.name,
        type_name: parameter.type_name,
        takes_tensor: parameter.takes_tensor,
        has_default: parameter.has_default,
    });
    let returns = module.returns().map_err(failed)?;
    let signature = Signature { arguments: arguments.collect(), returns: (returns > 0).then_some(returns) };
    let Bound { mut spec, positions } = match manifest {
        Some(manifest) => manifest.bind(&signature),
        None => undeclared(&signature),
    }
    .map_err(|error| error.to_string())?;
    if device != Device::Cpu {
        spec.round_as(Tolerance::ShortFactors);
    }
    let (written, threads) = (module.writes().unwrap_or_default(), AtomicUsize::new(1));
    Ok(Box::new(TorchModel { module, device, spec, positions, written, threads }))
}

/// Bytes of the memory of a GPU; nothing on the CPU.
pub fn device_memory(device: Device) -> Option<DeviceMemory> {
    let Device::Cuda(number) = device else { return None };
    match ffi::device_memory(number) {
        Ok(ffi::DeviceMemory { held, free, total }) => {
            Some(DeviceMemory { held_bytes: held, free_bytes: free, total_bytes: total })
        }
        Err(error) => {
            tracing::debug!(detail = error.what(), "memory of {device}");
            None
        }
    }
}

/// Writes a `model.pt` whose methods are this TorchScript: what tests and examples need, without Python. Attributes come with an
/// expression of TorchScript each, such as `torch.zeros([64, 4])`. A method has one as `self.name`, or, as a trace would keep it,
/// as a constant: `name`. Beside `torch` there is what Python has as `torch.jit.fork`, as `fork`, and the operators of `prim`.
pub fn define(path: &Path, attributes: &[(&str, &str)], methods: &str) -> Result<(), String> {
    let path = path.to_str().ok_or("its path is not UTF-8")?;
    let attributes: Vec<_> = attributes.iter().map(|(name, value)| ffi::Attribute { name, value }).collect();
    ffi::define(path, &attributes, methods).map_err(|error| error.what().to_owned())
}

/// Ends the process at once. An ordinary end would tear libtorch down under threads that still use it: a lane that
/// did not finish in time, or a version that is being loaded.
pub fn leave(code: u8) -> ! {
    ffi::leave(i32::from(code));
    unreachable!("the process has ended")
}

struct TorchModel {
    module: UniquePtr<ffi::Module>,
    device: Device,
    spec: Spec,
    /// For each input, its place among the arguments.
    positions: Vec<usize>,
    /// How often it had written to its tensors before it first ran.
    written: u64,
    threads: AtomicUsize,
}

impl Model for TorchModel {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn run(&self, inputs: &[Gathered<'_>]) -> Result<Vec<Output>, ModelError> {
        self.run_noting(inputs, &mut Instant::now())
    }

    fn run_noting(&self, inputs: &[Gathered<'_>], in_place: &mut Instant) -> Result<Vec<Output>, ModelError> {
        prepare_thread(self.threads.load(Ordering::Relaxed));
        let mut tensors = Vec::with_capacity(inputs.len());
        let outputs = self.forward(inputs, &mut tensors, in_place).map_err(|error| {
            let error = self.judge(error);
            if error.device_lost {
                // libtorch cannot even free what a lost device may still read.
                std::mem::forget(std::mem::take(&mut tensors));
            }
            error
        })?;
        self.read(outputs)
    }

    fn code(&self) -> Code {
        // Of what cannot be frozen nobody knows.
        let unknown = ffi::Code { writes: true, draws: false, seeds: false };
        let ffi::Code { writes, draws, seeds } = self.module.code().unwrap_or(unknown);
        Code { writes, draws, seeds }
    }

    fn has_written(&self) -> bool {
        self.module.writes().map_or(true, |writes| writes != self.written)
    }

    fn use_threads(&self, threads: usize) {
        self.threads.store(threads, Ordering::Relaxed);
    }

    fn optimised(&self, optimisation: Optimisation) -> Result<Box<dyn Model>, String> {
        let module = match optimisation {
            Optimisation::Freeze => self.module.frozen(),
            Optimisation::Inference => self.module.optimised_for_inference(),
            Optimisation::ChannelsLast => self.module.channels_last(),
            Optimisation::Bfloat16 => self.module.bfloat16(),
        };
        let module = module.map_err(|error| last_line(error.what()))?;
        let threads = AtomicUsize::new(self.threads.load(Ordering::Relaxed));
        let (spec, positions) = (self.spec.clone(), self.positions.clone());
        let (device, written) = (self.device, module.writes().unwrap_or_default());
        Ok(Box::new(Self { module, device, spec, positions, written, threads }))
    }
}

impl TorchModel {
    /// Runs on what it stages in `tensors`.
    fn forward(
        &self,
        inputs: &[Gathered<'_>],
        tensors: &mut Vec<Tensor>,
        in_place: &mut Instant,
    ) -> Result<UniquePtr<ffi::Outputs>, ModelError> {
        for input in inputs {
            tensors.push(self.stage(input)?);
        }
        *in_place = Instant::now();
        let given = inputs.iter().zip(&*tensors).map(|(input, tensor)| ffi::Given {
            position: self.positions[input.slot],
            tensor: tensor.as_ptr().cast(),
        });
        // SAFETY: `tensors` outlives the call, and a C_tensor is an at::Tensor.
        unsafe { self.module.forward(&given.collect::<Vec<_>>()) }.map_err(|error| explain(&error))
    }

    /// Copies the parts of an input, one after the other, into a new tensor. Never one that is used again: a model
    /// may change its input or return it. On a GPU, libtorch keeps the page-locked memory of those that are gone.
    fn stage(&self, input: &Gathered<'_>) -> Result<Tensor, ModelError> {
        let mut shape = [0; crate::model::RANK_MAX];
        let rank = input.shape.len();
        for (to, from) in shape.iter_mut().zip(&input.shape) {
            *to = i64::try_from(*from).map_err(|error| ModelError::new(error.to_string()))?;
        }
        let scalar = scalar_type(input.datatype).ok_or_else(|| ModelError::new("BYTES are no tensor"))?;
        let tensor = self.module.staging(scalar, &shape[..rank]).map_err(|error| explain(&error))?;
        // SAFETY: the shim gives a tensor of its own to each caller of staging.
        let tensor = unsafe { Tensor::from_ptr(tensor.cast()) };
        let bytes = input.shape.iter().product::<u64>() as usize * width(input.datatype);
        let given: usize = input.parts.iter().map(|part| part.len()).sum();
        assert_eq!(given, bytes, "job.rs has checked each part against its shape");
        let mut to = tensor.data_ptr().cast::<u8>();
        for part in &input.parts {
            // SAFETY: staging made a contiguous tensor of `bytes` bytes that nobody else knows; the parts add up to
            // exactly that.
            unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
                to = to.add(part.len());
            }
        }
        Ok(tensor)
    }

    /// Whether it was the model that failed, or the device for good.
    fn judge(&self, error: ModelError) -> ModelError {
        let now = self.module.probe().map_err(|now| now.what().to_owned());
        judged(error, now, self.device)
    }

    fn read(&self, mut outputs: UniquePtr<ffi::Outputs>) -> Result<Vec<Output>, ModelError> {
        let mut read = Vec::with_capacity(outputs.len());
        for position in 0..outputs.len() {
            let given_name = outputs.name(position).map_err(|error| explain(&error))?;
            let name = match self.spec.outputs.get(position) {
                Some(slot) => slot.name.clone(),
                None if given_name.is_empty() => output_name(position),
                None => given_name.to_owned(),
            };
            // A dict says itself which output is which.
            let from = if given_name.is_empty() || self.spec.outputs.is_empty() {
                position
            } else {
                self.position_of(&name, &outputs)?
            };
            let taken = outputs.pin_mut().take(from).map_err(|error| explain(&error))?;
            // SAFETY: the shim gives a tensor of its own to each caller of take.
            let tensor = unsafe { Tensor::from_ptr(taken.cast()) };
            read.push(unstage(name, tensor)?);
        }
        Ok(read)
    }

    fn position_of(&self, name: &str, outputs: &ffi::Outputs) -> Result<usize, ModelError> {
        (0..outputs.len())
            .find(|at| outputs.name(*at).is_ok_and(|given| given == name))
            .ok_or_else(|| ModelError::new(format!("the model's dict has no `{name}`")))
    }
}

/// Once per process, before anything runs and on a thread that is no less urgent than lanes: libtorch may not be asked
/// later, and those that run what a model forks are started here, and go on as urgent as this thread is.
pub fn prepare(lanes: usize) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        memory::keep();
        let forked = i32::try_from(lanes).unwrap_or(i32::MAX);
        if let Err(error) = ffi::prepare(forked) {
            tracing::warn!("threads for what models fork: {}", last_line(error.what()));
        }
    });
}

/// Has the memory of tensors that are gone given back to the system.
pub(crate) fn give_back() {
    ffi::give_back();
}

/// What each thread that runs models on a GPU does first; the CPU needs nothing.
pub fn warm_up(device: Device) -> Option<WarmUp> {
    let Device::Cuda(_) = device else { return None };
    let device = device.to_string();
    Some(Arc::new(move || {
        if let Err(error) = ffi::warm_up(&device) {
            // Should it last, the first model says so.
            tracing::debug!(detail = error.what(), "warming up on {device}");
        }
    }))
}

/// The number is the calling thread's own, and setting it costs caches.
fn prepare_thread(threads: usize) {
    thread_local!(static THREADS: Cell<usize> = const { Cell::new(0) });
    // A thread's first parallel region takes over what was last set anywhere, unless it has been asked before.
    if THREADS.get() == 0 {
        tch::get_num_threads();
    }
    if THREADS.replace(threads) != threads {
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    }
}

/// The bytes of an output, which keep its tensor alive.
fn unstage(name: String, tensor: Tensor) -> Result<Output, ModelError> {
    // SAFETY: a C_tensor is an at::Tensor, and `tensor` lives.
    let known = unsafe { &*tensor.as_ptr().cast::<ffi::Tensor>() };
    let scalar = ffi::scalar_type(known);
    let Some(datatype) = Datatype::ALL.into_iter().find(|datatype| scalar_type(*datatype) == Some(scalar))
    else {
        return Err(ModelError::new(format!(
            "output `{name}` is {}, which no datatype of the protocol is",
            ffi::scalar_type_name(known)
        )));
    };
    let shape: Vec<u64> = tensor.size().into_iter().map(i64::unsigned_abs).collect();
    let length = shape.iter().product::<u64>() as usize * width(datatype);
    Ok(Output { name, datatype, shape, bytes: Bytes::from_owner(TensorBytes { tensor, length }) })
}

struct TensorBytes {
    tensor: Tensor,
    length: usize,
}

impl AsRef<[u8]> for TensorBytes {
    fn as_ref(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: the shim made the tensor contiguous on the CPU, and `length` is its elements times their size. It may
        // be a buffer that the model writes to: such a model is found out in its trial, which copies what it keeps,
        // and is run by one thread at a time, which has split copy everything before it runs the model again.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast(), self.length) }
    }
}

/// `None` for what is no number.
fn scalar_type(datatype: Datatype) -> Option<ffi::ScalarType> {
    Some(match datatype {
        Datatype::Bool => ffi::ScalarType::Bool,
        Datatype::Uint8 => ffi::ScalarType::Byte,
        Datatype::Uint16 => ffi::ScalarType::UInt16,
        Datatype::Uint32 => ffi::ScalarType::UInt32,
        Datatype::Uint64 => ffi::ScalarType::UInt64,
        Datatype::Int8 => ffi::ScalarType::Char,
        Datatype::Int16 => ffi::ScalarType::Short,
        Datatype::Int32 => ffi::ScalarType::Int,
        Datatype::Int64 => ffi::ScalarType::Long,
        Datatype::Fp16 => ffi::ScalarType::Half,
        Datatype::Bf16 => ffi::ScalarType::BFloat16,
        Datatype::Fp32 => ffi::ScalarType::Float,
        Datatype::Fp64 => ffi::ScalarType::Double,
        Datatype::Bytes => return None,
    })
}

fn explain(error: &cxx::Exception) -> ModelError {
    of_libtorch(error.what().to_owned())
}

fn of_libtorch(detail: String) -> ModelError {
    let (message, out_of_memory) = (last_line(&detail), is_out_of_memory(&detail));
    ModelError { message, detail, out_of_memory, device_lost: false }
}

/// What an error of a run comes to, by what the device says when it is asked afterwards whether it works. To a library one that has
/// failed for good may look as if it had no memory left; one that has none left works.
fn judged(error: ModelError, now: Result<(), String>, device: Device) -> ModelError {
    match now {
        Err(now) if !is_out_of_memory(&now) => ModelError {
            message: format!("{device} works no more: {}", last_line(&now)),
            out_of_memory: false,
            device_lost: true,
            ..error
        },
        Ok(()) | Err(_) => error,
    }
}

/// Both allocators say so in words only; libraries that allocate for themselves, such as cuBLAS, by the name of a status: ALLOC_FAILED,
/// of cuDNN 9 DEVICE_ALLOCATION_FAILED. A status that may have other reasons, such as NOT_SUPPORTED, is not one.
fn is_out_of_memory(detail: &str) -> bool {
    let words = ["can't allocate memory", "out of memory", "_ALLOC_FAILED", "_ALLOCATION_FAILED"];
    words.iter().any(|words| detail.contains(words))
}

/// What a traceback comes down to: its last line that says something; or its first, where advice follows the reason, or
/// code that does not compile.
fn last_line(text: &str) -> String {
    const CUDA: &str = "CUDA error: ";
    let of_cuda = text.lines().find_map(|line| line.find(CUDA).map(|at| line[at..].trim_end()));
    let says_something = |line: &&str| {
        !line.is_empty() && !line.starts_with("frame #") && !line.starts_with("Exception raised from")
    };
    let mut lines = text.lines().map(str::trim).filter(says_something);
    let line = match of_cuda.or_else(|| lines.next_back()) {
        Some(quoted) if quoted.ends_with("<--- HERE") => lines.next().unwrap_or(quoted),
        Some(line) => line,
        None => "no reason given",
    };
    let line =
        ["RuntimeError: ", "builtins."].iter().find_map(|prefix| line.strip_prefix(prefix)).unwrap_or(line);
    crate::job::shortened_to(line, 400)
}

#[cfg(test)]
mod tests;
