//! libtorch as a [`Model`]: the only Rust file that names tch. Bytes in, bytes out; every length is checked
//! before memory is written, because tch's own constructors do not.
//!
//! tch makes and owns tensors. What it lacks or leaks in (InferenceMode, a model's signature, a forward pass that
//! may fail) is in `shim.cc`. Calls of tch that have a fallible form, `f_..`, are made in that form.

use crate::config::Device;
use crate::manifest::{Argument, Bound, Manifest, Signature, output_name, undeclared};
use crate::memory;
use crate::model::{Gathered, Model, ModelError, Optimisation, Output, Spec, Tolerance};
use crate::values::width;
use bytes::Bytes;
use cxx::UniquePtr;
use std::cell::Cell;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
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
        fn remembers(self: &Module) -> Result<bool>;
        fn returns(self: &Module) -> Result<usize>;
        fn staging(self: &Module, scalar: ScalarType, shape: &[i64]) -> Result<*mut Tensor>;
        fn probe(self: &Module) -> Result<()>;
        fn device_memory(number: usize) -> Result<DeviceMemory>;
        /// With so many threads for what models fork.
        fn prepare(forked: i32) -> Result<()>;
        fn leave(code: i32);
        /// Each tensor must live.
        unsafe fn forward(self: &Module, inputs: &[Given]) -> Result<UniquePtr<Outputs>>;
        fn len(self: &Outputs) -> usize;
        fn name(self: &Outputs, position: usize) -> Result<&str>;
        fn take(self: Pin<&mut Outputs>, position: usize) -> Result<*mut Tensor>;
        fn cuda_devices() -> Result<usize>;
        fn scalar_type(tensor: &Tensor) -> ScalarType;
        fn scalar_type_name(tensor: &Tensor) -> &str;
        fn define(path: &str, methods: &str) -> Result<()>;
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
    // Of what cannot be frozen nobody knows.
    let remembers = module.remembers().unwrap_or(true);
    Ok(Box::new(TorchModel { module, device, spec, positions, remembers, threads: AtomicUsize::new(1) }))
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

/// Writes a `model.pt` whose methods are this TorchScript, and that has no parameters: what tests and examples need,
/// without Python.
pub fn define(path: &Path, methods: &str) -> Result<(), String> {
    let path = path.to_str().ok_or("its path is not UTF-8")?;
    ffi::define(path, methods).map_err(|error| last_line(error.what()))
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
    remembers: bool,
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

    fn remembers(&self) -> bool {
        self.remembers
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
        let (device, remembers) = (self.device, self.remembers);
        Ok(Box::new(Self { module, device, spec, positions, remembers, threads }))
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
        if error.out_of_memory {
            return error;
        }
        match self.module.probe() {
            Ok(()) => error,
            Err(now) => ModelError {
                message: format!("{} works no more: {}", self.device, last_line(now.what())),
                device_lost: true,
                ..error
            },
        }
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

/// Both allocators say so in words only.
fn is_out_of_memory(detail: &str) -> bool {
    ["can't allocate memory", "out of memory"].iter().any(|words| detail.contains(words))
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
mod tests {
    use super::*;
    use crate::library::{Candidate, Library};
    use crate::scenarios::{Asked, Client, Engine};
    use wire::{ModelEntry, ModelState, Status};

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/models");
    const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/demo/models");

    fn candidates(folder: &str, name: &str) -> Vec<Candidate> {
        let load = |path: &Path, manifest| load(path, manifest, Device::Cpu);
        let mut found = Library::folder(folder.into(), load).find(None).unwrap();
        found.retain(|candidate| candidate.name == name);
        assert!(!found.is_empty(), "{folder} must hold {name}");
        found
    }

    /// An engine with one of the fixtures, as proxies are told of it.
    fn serve(name: &str) -> (Engine, Client, ModelEntry) {
        let engine = Engine::start(candidates(FIXTURES, name));
        let mut client = engine.connect();
        let entry = client.index().remove(0);
        (engine, client, entry)
    }

    fn refusal(name: &str) -> ModelEntry {
        let (_, _, entry) = serve(name);
        assert_eq!(entry.state(), ModelState::Ready);
        assert_eq!(entry.max_batch, 1);
        entry
    }

    #[test]
    fn rows_that_depend_on_each_other_or_on_the_past_are_never_batched() {
        let reason = refusal("coupled").reason;
        assert!(
            reason.starts_with("not batched: rows change when they run together (output `out`, "),
            "{reason}"
        );
        // One after another, all of its answers are right.
        for name in ["scratch", "listed", "forked", "traced"] {
            let reason = refusal(name).reason;
            assert!(reason.contains("it writes to tensors of its own"), "{name}: {reason}");
        }
        let reason = refusal("stateful").reason;
        assert!(
            reason.contains("gives another answer the next time (output `y`, largest difference 1"),
            "{reason}"
        );
    }

    #[test]
    fn a_model_that_gives_out_the_memory_it_writes_to_is_found_out_though_it_runs_alone_anyway() {
        let reason = refusal("buffer").reason;
        assert!(
            reason.starts_with(
                "not batched: the same input gives another answer the next time (output `sum`, "
            ),
            "{reason}"
        );
    }

    #[test]
    fn a_model_that_loses_rows_is_found_out_and_fails_closed() {
        let (_engine, mut client, entry) = serve("short");
        assert_eq!(
            (entry.max_batch, entry.reason.as_str()),
            (1, "not batched: output `y` has 1 row, 5 went in")
        );
        client.infer(1, Asked::of("short").fp32("x", &[2, 4], &[1.0; 8]));
        let answer = client.reply().unwrap();
        assert_eq!(answer.status(), Status::ModelFailed);
        assert_eq!(answer.reply.message, "output `y` has 1 row, 2 went in");
        client.infer(2, Asked::of("short").fp32("x", &[1, 4], &[1.0; 4]));
        assert_eq!(client.reply().unwrap().fp32("y"), [1.0; 4]);
    }

    #[test]
    fn fifteen_mates_of_a_bad_row_are_answered_right() {
        let (_engine, mut client, entry) = serve("picky");
        assert_eq!((entry.max_batch, entry.reason.as_str()), (64, ""));
        let ask = |value: f32| Asked::of("picky").fp32("x", &[1, 4], &[value, 1.0, 2.0, 3.0]);

        client.infer_all((1..=16).map(|id| (id, ask(id as f32))));
        assert!(
            client.replies(16).iter().any(|answer| answer.reply.timing.as_ref().unwrap().batch_requests > 1)
        );

        client.infer_all((1..=16).map(|id| (id, ask(if id == 5 { -1.0 } else { id as f32 }))));
        for answer in client.replies(16) {
            if answer.id == 5 {
                assert_eq!(answer.status(), Status::ModelFailed);
                assert_eq!(answer.reply.message, "ValueError: negative input");
            } else {
                assert_eq!(answer.fp32("y"), [2.0 * answer.id as f32, 2.0, 4.0, 6.0]);
            }
        }
    }

    #[test]
    fn two_inputs_and_two_outputs_of_different_kinds() {
        let (_engine, mut client, entry) = serve("two");
        assert_eq!(entry.max_batch, 64);
        let ask = |first: i64| {
            let b: Vec<u8> = [first, 1, 2, 3].iter().flat_map(|value| value.to_le_bytes()).collect();
            Asked::of("two").input("b", Datatype::Int64, &[2, 2], &b).fp32(
                "a",
                &[2, 3],
                &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            )
        };
        let mut only_b = ask(100);
        only_b.infer.outputs = vec!["sum_b".into()];
        client.infer_all([(1, ask(10)), (2, only_b)]);
        let answers = client.replies(2);
        assert_eq!(answers[0].fp32("sum_a"), [6.0, 15.0]);
        assert_eq!(answers[0].output("sum_b").1, [11i64.to_le_bytes(), 5i64.to_le_bytes()].concat());
        assert_eq!(answers[1].reply.outputs.len(), 1);
        assert_eq!(answers[1].output("sum_b").1, [101i64.to_le_bytes(), 5i64.to_le_bytes()].concat());
    }

    #[test]
    fn every_datatype_comes_back_as_it_went_in() {
        let (_engine, mut client, entry) = serve("kinds");
        assert_eq!(entry.max_batch, 64);
        let bytes = |datatype: Datatype, id: u64| -> Vec<u8> {
            let bytes = (0..4 * width(datatype) as u64).map(|at| (at * 37 + id * 11) as u8);
            bytes.map(|byte| if datatype == Datatype::Bool { byte % 2 } else { byte }).collect()
        };
        let inputs: Vec<_> = entry
            .inputs
            .iter()
            .map(|spec| (spec.name.clone(), Datatype::from_wire(spec.datatype).unwrap()))
            .collect();
        let numbers = Datatype::ALL.iter().filter(|datatype| datatype.size().is_some());
        assert_eq!(inputs.len(), numbers.count());
        client.infer_all((1..=3).map(|id| {
            let ask = |ask: Asked, (name, datatype): &(String, Datatype)| {
                ask.input(name, *datatype, &[2, 2], &bytes(*datatype, id))
            };
            (id, inputs.iter().fold(Asked::of("kinds"), ask))
        }));
        for answer in client.replies(3) {
            for (name, datatype) in &inputs {
                let (meta, got) = answer.output(&format!("{name}_out"));
                assert_eq!((meta.datatype, &meta.shape[..]), (*datatype as u32, &[2, 2][..]));
                assert_eq!(got, bytes(*datatype, answer.id), "{name}");
            }
        }
    }

    #[test]
    fn a_model_without_a_declaration_takes_any_shape_and_is_never_batched() {
        let (_engine, mut client, entry) = serve("bare");
        assert_eq!((entry.max_batch, entry.inputs[0].datatype), (0, 0));
        assert_eq!(entry.reason, "not batched: no model.yaml declares its shapes");
        client.infer(1, Asked::of("bare").fp32("x", &[1, 3, 1], &[1.0, 2.0, 3.0]));
        let answer = client.reply().unwrap();
        assert_eq!(answer.output("OUTPUT__0").0.shape, [1, 3, 1]);
        assert_eq!(answer.fp32("OUTPUT__0"), [2.0, 4.0, 6.0]);
    }

    #[test]
    fn a_broken_file_is_unavailable_with_a_reason() {
        let (_engine, mut client, entry) = serve("broken");
        assert_eq!(entry.state(), ModelState::Unavailable);
        assert!(entry.reason.starts_with("model.pt: "), "{}", entry.reason);
        client.infer(1, Asked::of("broken").fp32("x", &[1, 4], &[0.0; 4]));
        assert_eq!(client.reply().unwrap().status(), Status::NotFound);
    }

    #[test]
    fn both_demo_models_read_held_out_digits() {
        let engine = Engine::start_with(candidates(DEMO, "digits"), |settings| settings.lanes = 2);
        let mut client = engine.connect();
        for entry in client.index() {
            assert_eq!((entry.state(), entry.max_batch, entry.reason.as_str()), (ModelState::Ready, 64, ""));
        }
        let csv = std::fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/data/digits_held_out.csv"
        ));
        let csv = csv.unwrap();
        let rows: Vec<Vec<f32>> =
            csv.lines().map(|line| line.split(',').map(|value| value.parse().unwrap()).collect()).collect();
        for version in [1, 2] {
            let mut ids = 0..;
            client.infer_all(rows.iter().map(|row| {
                let mut ask = Asked::of("digits").fp32("pixels", &[1, 64], &row[1..]);
                ask.infer.version = version;
                (ids.next().unwrap(), ask)
            }));
            let answers = client.replies(rows.len());
            let right = answers.iter().zip(&rows).filter(|(answer, row)| {
                i64::from_le_bytes(answer.output("digit").1.try_into().unwrap()) == row[0] as i64
            });
            let right = right.count();
            assert!(right * 10 > rows.len() * 9, "version {version}: {right} of {} right", rows.len());
        }
    }

    /// An engine with a model `x: [-1, 4] → y: [-1, ..]` of this body.
    fn defined(body: &str, output: &str) -> (Engine, Client, ModelEntry, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let version = folder.path().join("defined/1");
        std::fs::create_dir_all(&version).unwrap();
        define(&version.join("model.pt"), &format!("def forward(self, x):\n    {body}\n")).unwrap();
        let manifest = format!(
            "inputs: [{{name: x, datatype: FP32, shape: [-1, 4]}}]\noutputs: [{{name: 'y', datatype: FP32, shape: {output}}}]"
        );
        std::fs::write(version.join("model.yaml"), manifest).unwrap();
        let engine = Engine::start(candidates(folder.path().to_str().unwrap(), "defined"));
        let mut client = engine.connect();
        let entry = client.index().remove(0);
        (engine, client, entry, folder)
    }

    fn answers(client: &mut Client) -> Vec<Vec<f32>> {
        let ask = |id: u64| Asked::of("defined").fp32("x", &[1, 4], &[id as f32, 1.0, 2.0, 3.0]);
        client.infer_all((1..=16).map(|id| (id, ask(id))));
        client.replies(16).iter().map(|answer| answer.fp32("y")).collect()
    }

    #[test]
    fn a_model_that_changes_its_input_changes_nobody_elses() {
        let (_engine, mut client, entry, _folder) = defined("x.mul_(2.0)\n    return x", "[-1, 4]");
        assert_eq!((entry.max_batch, entry.reason.as_str()), (32, ""));
        for _ in 0..2 {
            for (id, y) in (1..).zip(answers(&mut client)) {
                assert_eq!(y, [2.0 * id as f32, 2.0, 4.0, 6.0]);
            }
        }
    }

    #[test]
    fn a_view_of_the_input_is_answered_as_what_it_shows() {
        for (body, first) in [("return x[:, 1:].flip(1)", 3.0), ("return x.t()[1:].t()", 1.0)] {
            let (_engine, mut client, entry, _folder) = defined(body, "[-1, 3]");
            assert_eq!(entry.max_batch, 32, "{}", entry.reason);
            for y in answers(&mut client) {
                assert_eq!((y[0], y[1], y[2]), (first, 2.0, 4.0 - first));
            }
        }
    }

    #[test]
    fn a_model_whose_trace_froze_the_batch_size_runs_one_row_at_a_time() {
        let (_engine, mut client, entry, _folder) = defined("return x.reshape([1, 4]) * 2", "[-1, 4]");
        assert_eq!(entry.max_batch, 1);
        assert!(
            entry.reason.starts_with("not batched: several rows together fail: shape '[1, 4]' is invalid"),
            "{}",
            entry.reason
        );
        assert_eq!(answers(&mut client)[4], [10.0, 2.0, 4.0, 6.0]);
        client.infer(1, Asked::of("defined").fp32("x", &[2, 4], &[0.0; 8]));
        assert_eq!(client.reply().unwrap().status(), Status::ModelFailed);
    }

    #[test]
    fn a_row_that_is_not_finite_fails_where_model_yaml_says_so() {
        let (_engine, mut client, entry, _folder) = defined("return torch.exp(x)", "[-1, 4], finite: true");
        assert_eq!((entry.max_batch, entry.reason.as_str()), (32, ""));
        client.infer_all(
            [0.0, 1e6, 0.0]
                .into_iter()
                .zip(1..)
                .map(|(value, id)| (id, Asked::of("defined").fp32("x", &[1, 4], &[0.0, 0.0, 0.0, value]))),
        );
        let replies = client.replies(3);
        assert_eq!((replies[0].fp32("y"), replies[2].fp32("y")), (vec![1.0; 4], vec![1.0; 4]));
        assert_eq!(
            (replies[1].status(), replies[1].reply.message.as_str()),
            (Status::ModelFailed, "output `y` is not finite")
        );
    }

    #[test]
    fn what_is_no_tensor_is_no_output() {
        for (body, of_type) in [
            ("return [1, 2]", "List[int]"),
            ("return x.size(0)", "int"),
            ("return None", "NoneType"),
            ("return (x, 1)", "Tuple[Tensor, int]"),
            ("return {1: x}", "Dict[int, Tensor]"),
        ] {
            let (_engine, _client, entry, _folder) = defined(body, "[-1, 4]");
            let why = format!("model.pt: forward returns {of_type}, which is no tensor and holds none");
            assert_eq!((entry.state(), entry.reason), (ModelState::Unavailable, why));
        }
        let maybe = "y : Optional[Tensor] = None\n    return y";
        let (_engine, mut client, entry, _folder) = defined(maybe, "[-1, 4]");
        assert_eq!(entry.state(), ModelState::Ready, "it may have its reasons to fail on made-up input");
        client.infer(1, Asked::of("defined").fp32("x", &[1, 4], &[0.0; 4]));
        let answer = client.reply().unwrap();
        assert_eq!(
            (answer.status(), answer.reply.message.as_str()),
            (Status::ModelFailed, "forward returned None, which is no tensor and holds none")
        );
        let (_engine, mut client, entry, _folder) = defined("return torch.cat([x, x])", "[-1, 4]");
        assert_eq!(
            (entry.state(), entry.reason.as_str()),
            (ModelState::Unavailable, "output `y` has 2 rows, 1 went in")
        );
        client.infer(1, Asked::of("defined").fp32("x", &[1, 4], &[0.0; 4]));
        assert_eq!(client.reply().unwrap().status(), Status::NotFound);
    }

    #[test]
    fn a_traceback_comes_down_to_its_last_line() {
        let text = "The following operation failed.\nTraceback (most recent call last):\n  File \"a.py\", line 3\nRuntimeError: sizes differ\n\n";
        assert_eq!(last_line(text), "sizes differ");
        assert_eq!(
            last_line("real cause\nException raised from f at x.cpp:3\nframe #0: f() + 0x1\n"),
            "real cause"
        );
        let text = "\nUnknown builtin op: aten::nothing.\n:\n  File \"a.py\", line 3\n    return nothing(x)\n           ~~~~~~~ <--- HERE\n";
        assert_eq!(last_line(text), "Unknown builtin op: aten::nothing.");
        let text = "CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in the manual.\nCompile with `TORCH_USE_CUDA_DSA`.\n";
        assert_eq!(last_line(text), "CUDA error: device-side assert triggered");
        let wrapped = format!("The following operation failed.\nTraceback:\nRuntimeError: {text}");
        assert_eq!(last_line(&wrapped), "CUDA error: device-side assert triggered");
        assert_eq!(last_line(""), "no reason given");
    }

    #[test]
    fn a_gpu_that_is_not_there_is_refused_with_what_to_do() {
        let error = resolve(Device::Cuda(99)).unwrap_err();
        assert!(error.starts_with("there is no cuda:99, ") && error.contains("give --device cpu"), "{error}");
    }
}
