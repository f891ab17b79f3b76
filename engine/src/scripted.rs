//! A model for tests whose answers are a closure's, and requests for it.

use crate::audit::Audit;
use crate::batcher::{Criticality, Grouping, Priority};
use crate::calibrate::Way;
use crate::catalog::{Catalog, State};
use crate::drift::Drift;
use crate::job::{Request, Terms};
use crate::model::{
    Dimension, Form, Gathered, Model, ModelError, Optimisation, Output, OutputBytes, Rows, Slot, Spec,
    Tolerance, Version,
};
use crate::orders::Retirement;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{Datatype, TensorMeta};

/// Makes another form of a scripted model.
type Other = dyn Fn() -> Result<Scripted, String> + Send + Sync;

type Script = dyn Fn(&[Gathered<'_>]) -> Result<Vec<Output>, ModelError> + Send + Sync;

pub(crate) struct Scripted {
    spec: Spec,
    script: Box<Script>,
    has_written: Box<dyn Fn() -> bool + Send + Sync>,
    forms: Vec<(Optimisation, Box<Other>)>,
}

impl Scripted {
    pub(crate) fn new<S>(spec: Spec, script: S) -> Self
    where
        S: Fn(&[Gathered<'_>]) -> Result<Vec<Output>, ModelError> + Send + Sync + 'static,
    {
        Self { spec, script: Box::new(script), has_written: Box::new(|| false), forms: Vec::new() }
    }

    /// One that keeps something, and says whether it has changed it.
    pub(crate) fn keeping(mut self, has_written: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.has_written = Box::new(has_written);
        self
    }

    pub(crate) fn with_form(
        mut self,
        optimisation: Optimisation,
        make: impl Fn() -> Result<Self, String> + Send + Sync + 'static,
    ) -> Self {
        self.forms.push((optimisation, Box::new(make)));
        self
    }
}

impl Model for Scripted {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn run(&self, inputs: &[Gathered<'_>]) -> Result<Vec<Output>, ModelError> {
        (self.script)(inputs)
    }

    fn has_written(&self) -> bool {
        (self.has_written)()
    }

    fn use_threads(&self, _threads: usize) {}

    fn optimised(&self, optimisation: Optimisation) -> Result<Box<dyn Model>, String> {
        let form = self.forms.iter().find(|(other, _)| *other == optimisation);
        let (_, make) = form.ok_or("there is no such form")?;
        make().map(|model| Box::new(model) as Box<dyn Model>)
    }
}

/// A spec of FP32 tensors `[-1, width]`.
pub(crate) fn rows_spec(inputs: &[(&str, u64)], outputs: &[(&str, u64)], max_rows: u32) -> Spec {
    let slots = |tensors: &[(&str, u64)]| {
        let slot = |(name, width): &(&str, u64)| Slot {
            name: (*name).into(),
            form: Some(Form {
                datatype: Datatype::Fp32,
                shape: vec![Dimension::Free, Dimension::Fixed(*width)],
            }),
            labels: Vec::new(),
            optional: false,
            finite: false,
            bounds: None,
            pad: 0.0,
            mask: false,
        };
        tensors.iter().map(slot).collect()
    };
    Spec {
        inputs: slots(inputs),
        outputs: slots(outputs),
        rows: Rows::UpTo(max_rows),
        tolerance: Tolerance::Summation,
        rounding: Tolerance::Summation,
        bfloat16: false,
        stateful: false,
        dimensions: Vec::new(),
        postprocess: None,
    }
}

/// The elements of an FP32 input.
pub(crate) fn fp32(input: &Gathered<'_>) -> Vec<f32> {
    let bytes = input.parts.concat();
    bytes.chunks_exact(4).map(|element| f32::from_le_bytes(element.try_into().unwrap())).collect()
}

pub(crate) fn output_fp32(name: &str, shape: &[u64], values: &[f32]) -> Output {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(wire::element_count(shape), Some(values.len()), "the shape says how many");
    Output { name: name.into(), datatype: Datatype::Fp32, shape: shape.into(), bytes: Bytes::from(bytes) }
}

/// A catalog in which one model is ready.
pub(crate) fn catalog_of(name: &str, number: u64, model: Scripted) -> Catalog {
    let grouping = Grouping::Together { max_rows: 4 };
    let drift = Arc::new(Drift::of(model.spec(), Vec::new(), &[], Instant::now()));
    let (model, why_alone) = (Arc::new(model), String::new());
    let version = Version {
        key: 0,
        name: name.into(),
        number,
        model,
        grouping,
        way: Way { threads: 1, lanes: 1, at_once: usize::MAX },
        why_alone,
        outputs: OutputBytes::default(),
        preprocess: None,
        pads: true,
        form: String::new(),
        curve: Vec::new(),
        drift,
        content: None,
        files: 1,
        audit: Audit::default(),
        retirement: Retirement::of_nobody(),
    };
    let mut catalog = Catalog::default();
    catalog.set(name, number, State::Ready(Arc::new(version)));
    catalog
}

/// A request of one row for a model whose one input is `x`, FP32.
pub(crate) fn one_row(version: &Arc<Version>, x: &[f32]) -> Request {
    let meta = TensorMeta {
        name: "x".into(),
        datatype: Datatype::Fp32 as u32,
        shape: vec![1, x.len() as u64],
        offset: 0,
        bytes: 0,
    };
    let bytes: Vec<u8> = x.iter().flat_map(|value| value.to_le_bytes()).collect();
    Request::check_for(version, vec![meta], Vec::new(), bytes.into()).expect("it fits")
}

/// What a request says beside its tensors, if it asks for nothing special.
pub(crate) fn terms(id: u64) -> Terms {
    Terms {
        id,
        received: Instant::now(),
        prepared: Duration::ZERO,
        deadline: None,
        priority: Priority::Normal,
        criticality: Criticality::Normal,
        tenant: 0,
        caller: 0,
        trace: None,
        metadata_bytes: 10,
    }
}
