//! The small models under `tests/data/models` that tests load, each with one peculiarity that an engine must notice, refuse or survive.
//! They are written here, through libtorch itself; what is on disk is shown to be that, byte for byte, and to have its peculiarity as it is
//! and frozen, as an engine may run it. `model.yaml` beside each is written by hand. Never does: train anything, depend on chance, or
//! stand for a useful model (those are in `configs/demo`).
//!
//! `PENSTOCK_WRITE_MODELS=1 cargo test -p penstock-engine --test small_models` writes what has changed.

use engine::config::Device;
use engine::manifest::Manifest;
use engine::model::{Gathered, Model, ModelError, Optimisation, Output};
use std::path::{Path, PathBuf};
use wire::Datatype;

/// Name, attributes, methods.
type SmallModel = (&'static str, &'static [(&'static str, &'static str)], &'static str);

/// Memory of a model's own.
const MEMORY: (&str, &str) = ("scratch", "torch.zeros([64, 4])");

const MODELS: [SmallModel; 22] = [
    // Each row's answer depends on the other rows of the batch.
    ("coupled", &[], "def forward(self, pixels):\n  return pixels - pixels.mean([0], True)"),
    // Each call's answer depends on the calls before it: the number of this one is added, counted from 1.
    (
        "stateful",
        &[("calls", "torch.zeros([1])")],
        "def forward(self, x):\n  self.calls.add_(1.0)\n  return x + self.calls",
    ),
    // Gives out the very memory in which it sums up the calls before it, one row at a time.
    ("buffer", &[("sum", "torch.zeros([1, 4])")], "def forward(self, x):\n  return self.sum.add_(x)"),
    // Gives out a view of memory of its own, right as long as no other call comes in between.
    ("scratch", &[MEMORY], SCRATCH),
    // The same, with the memory in a list.
    (
        "listed",
        &[("scratch", "[torch.zeros([64, 4])]")],
        "def forward(self, x):\n  mine = self.scratch[0][:x.size(0)]\n  mine.copy_(x)\n  return mine",
    ),
    // The same, in a part that runs by fork.
    (
        "forked",
        &[MEMORY],
        "def part(self, x):\n  mine = self.scratch[:x.size(0)]\n  mine.copy_(x)\n  return mine\n\
         def forward(self, x):\n  return torch.wait(fork(self.part, x))",
    ),
    // The same, with memory that is a constant, as a trace makes it.
    (
        "traced",
        &[MEMORY],
        "def forward(self, x):\n  mine = scratch[:x.size(0)]\n  mine.copy_(x)\n  return mine",
    ),
    // The same, with the memory in a list in a dict.
    (
        "noted",
        &[("scratch", "{'x': [torch.zeros([64, 4])]}")],
        "def forward(self, x):\n  mine = self.scratch['x'][0][:x.size(0)]\n  mine.copy_(x)\n  return mine",
    ),
    // The same, with the memory given out by an operation that does not say so.
    (
        "typed",
        &[MEMORY],
        "def forward(self, x):\n  mine = self.scratch.type_as(x)[:x.size(0)]\n  mine.copy_(x)\n  return mine",
    ),
    // The same, where its input is far below zero only, of which its trial knows nothing.
    (
        "rarely",
        &[MEMORY],
        "def forward(self, x):\n  if bool((x < -100).any()):\n    mine = self.scratch.type_as(x)[:x.size(0)]\n    \
         mine.copy_(x)\n    return mine\n  return x * 1",
    ),
    // Adds up means of its batches in a list, which no operation's name or signature tells. The rows are normed by their own mean
    // and variance; the sums are written and never read.
    (
        "normed",
        &[("sums", "[torch.zeros([64]), torch.ones([64])]")],
        "def forward(self, x):\n  rows = x.size(0)\n  sums = [self.sums[0][:rows], self.sums[1][:rows]]\n  return \
         torch.batch_norm(x.unsqueeze(0), None, None, sums[0], sums[1], True, 0.1, 1e-5, True)[0]",
    ),
    ("recurrent", RECURRENT.0, RECURRENT.1),
    ("attentive", ATTENTIVE.0, ATTENTIVE.1),
    // Raises when any value of the batch is below zero.
    (
        "picky",
        &[],
        "def forward(self, x):\n  if bool((x < 0).any()):\n    \
         prim.RaiseException('negative input', 'builtins.ValueError')\n  return x * 2",
    ),
    // Two inputs and two outputs of different datatypes and widths.
    ("two", &[], "def forward(self, a, b):\n  return a.sum([1]), b.sum([1])"),
    // One input per datatype, given back unchanged.
    (
        "kinds",
        &[],
        "def forward(self, b, u8, u16, u32, u64, i8, i16, i32, i64, f16, bf16, f32, f64):\n  \
         return b, u8, u16, u32, u64, i8, i16, i32, i64, f16, bf16, f32, f64",
    ),
    // Has no model.yaml.
    ("bare", &[], "def forward(self, x):\n  return x * 2"),
    // Burns about 50 ms of one CPU core per call, whatever the number of rows, for a unit matrix times itself. The matrix is made from
    // the input and its zero corner added to the answer, so that no pass over the graph may run the loop ahead of time or drop it.
    (
        "slow",
        &[],
        "def forward(self, x):\n  unit = x.new_zeros([256, 256]).fill_diagonal_(1.0)\n  product = unit\n  \
         for _ in range(150):\n    product = product @ unit\n  return x + product[0, 1]",
    ),
    // Gives back one row, however many it got.
    ("short", &[], "def forward(self, x):\n  return x[:1]"),
    // Keeps 8 MB more for every call with a value above 100. Made of the input, or all would be one constant.
    (
        "leaky",
        &[("kept", "[]")],
        "def forward(self, x):\n  if bool((x > 100).any()):\n    self.kept.append(x.new_ones([2097152]))\n  return x * 2",
    ),
    // Does not come back from a call with a value above 100.
    ("stuck", &[], "def forward(self, x):\n  while bool((x > 100).any()):\n    x = x + 1\n  return x * 2"),
    // The mean of each colour of an image, and its model.yaml has image files decoded.
    ("channels", &[], "def forward(self, x):\n  return x.mean([2, 3])"),
];

const SCRATCH: &str =
    "def forward(self, x):\n  self.scratch[:x.size(0)].copy_(x)\n  return self.scratch[:x.size(0)]";

/// Keeps its weights in a list, as recurrent layers do, and writes to what it has computed. All numbers are multiples of a power of
/// two, which no processor rounds.
const RECURRENT: (&[(&str, &str)], &str) = (
    &[
        ("weight", "(torch.arange(16.0) / 16 - 0.5).reshape([4, 4])"),
        ("bias", "(0.5 - torch.arange(4.0) / 4)"),
        (
            "flat",
            "[(torch.arange(16.0) / 16 - 0.5).reshape([16, 1]), (0.5 - torch.arange(64.0) / 64).reshape([16, 4]), \
             (torch.arange(16.0) / 16 - 0.5), (0.5 - torch.arange(16.0) / 16)]",
        ),
    ],
    "def forward(self, x):
  steps = torch.relu_(torch.linear(x, self.weight, self.bias)).unsqueeze(2)
  first = torch.zeros([1, x.size(0), 4])
  steps, _, _ = torch.lstm(steps, [first, first], self.flat, True, 1, 0.0, False, False, True)
  return torch.relu_(steps[:, -1])",
);

/// Keeps its weights where it reads them in branches, as attention does, and writes to what it was given.
const ATTENTIVE: (&[(&str, &str)], &str) = (
    &[
        ("is_packed", "True"),
        ("packed", "(torch.arange(48.0) / 64 - 0.5).reshape([12, 4])"),
        ("apart", "[torch.ones([4, 4]), torch.ones([4, 4]), torch.ones([4, 4])]"),
        ("bias", "(0.5 - torch.arange(12.0) / 16)"),
        ("last", "(0.5 - torch.arange(16.0) / 16).reshape([4, 4])"),
        ("last_bias", "(torch.arange(4.0) / 4 - 0.5)"),
    ],
    "def project(self, words):
  if self.is_packed:
    weight = self.packed
  else:
    weight = torch.cat(self.apart)
  return torch.linear(words, weight, self.bias)
def forward(self, x):
  words = x.mul_(2).unsqueeze(1) + 1
  q, k, v = self.project(words).reshape([-1, 2, 1, 6]).chunk(3, -1)
  weights = torch.softmax(torch.matmul(q, k.transpose(-2, -1)) / 1.5, -1)
  words = torch.matmul(weights, v).reshape([-1, 1, 4])
  return torch.linear(words, self.last, self.last_bias).squeeze(1)",
);

fn on_disk(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models").join(name).join("1/model.pt")
}

#[test]
fn what_tests_load_is_what_is_written_here() {
    let folder = tempfile::tempdir().expect("a folder");
    let writes = std::env::var_os("PENSTOCK_WRITE_MODELS").is_some();
    let mut others = Vec::new();
    for (name, attributes, methods) in MODELS {
        let made = folder.path().join("model.pt");
        engine::torch::define(&made, attributes, methods).unwrap_or_else(|why| panic!("{name}: {why}"));
        let made = std::fs::read(made).expect("it was just written");
        if std::fs::read(on_disk(name)).ok().as_ref() == Some(&made) {
            continue;
        }
        others.push(name);
        if writes {
            std::fs::write(on_disk(name), made).expect("the checkout takes files");
        }
    }
    assert!(writes || others.is_empty(), "{others:?} are others on disk: see the head of this file");
}

#[test]
fn every_model_on_disk_is_written_here_or_is_none() {
    let folder = on_disk("");
    let folder = folder.ancestors().nth(2).expect("the folder of all");
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    // A text file, which is no model.
    let mut here: Vec<_> = MODELS.iter().map(|(name, ..)| *name).chain(["broken"]).collect();
    here.sort_unstable();
    assert_eq!(names, here);
}

fn load(name: &str) -> Result<Box<dyn Model>, String> {
    let declaration = std::fs::read_to_string(on_disk(name).with_file_name("model.yaml")).ok();
    let manifest = declaration.map(|text| Manifest::parse(&text).expect("a declaration"));
    engine::torch::load(&on_disk(name), manifest, Device::Cpu)
}

/// As it is, and frozen.
fn both(name: &str) -> [Box<dyn Model>; 2] {
    let load = || load(name).unwrap_or_else(|why| panic!("{name}: {why}"));
    let frozen = load().optimised(Optimisation::Freeze).unwrap_or_else(|why| panic!("{name}: {why}"));
    [load(), frozen]
}

fn outputs_of(model: &dyn Model, inputs: &[(Datatype, &[u64], Vec<u8>)]) -> Result<Vec<Output>, ModelError> {
    let gathered = inputs.iter().enumerate().map(|(slot, (datatype, shape, bytes))| Gathered {
        slot,
        datatype: *datatype,
        shape: shape.to_vec(),
        parts: vec![bytes],
    });
    model.run(&gathered.collect::<Vec<_>>())
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(output: &Output) -> Vec<f32> {
    let values = output.bytes.chunks_exact(4);
    values.map(|value| f32::from_le_bytes(value.try_into().expect("four bytes"))).collect()
}

/// To rows of four numbers.
fn answer(model: &dyn Model, rows: &[f32]) -> Result<Vec<f32>, String> {
    let shape = [rows.len() as u64 / 4, 4];
    let outputs = outputs_of(model, &[(Datatype::Fp32, &shape, bytes(rows))]);
    outputs.map(|outputs| floats(&outputs[0])).map_err(|error| error.message)
}

const ROWS: [f32; 12] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0];

fn plus(value: f32) -> Vec<f32> {
    ROWS.map(|element| element + value).to_vec()
}

fn doubled(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| value * 2.0).collect()
}

#[test]
fn what_is_written_to_memory_of_its_own_is_answered_right_by_one_call_and_can_be_told() {
    for name in ["scratch", "listed", "forked", "traced", "noted", "typed"] {
        for model in both(name) {
            for value in [0.0, 1.0, 2.0] {
                assert_eq!(answer(&*model, &plus(value)), Ok(plus(value)), "{name}");
            }
        }
        let [model, _] = both(name);
        assert_eq!(model.code().writes, name != "typed", "{name}");
        assert!(!model.has_written(), "{name}");
        answer(&*model, &ROWS).expect("an answer");
        assert!(model.has_written(), "{name}");
    }
    for model in both("rarely") {
        assert_eq!(answer(&*model, &ROWS), Ok(plus(0.0)));
        assert!(!model.has_written());
        assert_eq!(answer(&*model, &plus(-200.0)), Ok(plus(-200.0)));
        assert!(model.has_written());
    }
    for model in both("stateful") {
        for call in [1.0, 2.0, 3.0] {
            assert_eq!(answer(&*model, &ROWS), Ok(plus(call)));
        }
    }
    for model in both("buffer") {
        assert_eq!(answer(&*model, &ROWS[4..8]), Ok(ROWS[4..8].to_vec()));
        assert_eq!(answer(&*model, &ROWS[4..8]), Ok(doubled(&ROWS[4..8])));
    }
    assert!(load("normed").expect("a model").code().writes);
    for model in both("normed") {
        let first = answer(&*model, &ROWS).expect("an answer");
        assert_eq!(answer(&*model, &ROWS), Ok(first), "what it has added up is not read");
    }
}

#[test]
fn what_only_reads_its_weights_answers_each_row_as_if_it_were_alone_and_has_not_written() {
    for name in ["recurrent", "attentive"] {
        assert!(!load(name).expect("a model").code().writes, "{name}");
        for model in both(name) {
            let together = answer(&*model, &ROWS).expect("an answer");
            let rows = ROWS.chunks(4).flat_map(|row| answer(&*model, row).expect("an answer"));
            let apart = together.iter().zip(rows).map(|(one, other)| (one - other).abs());
            assert!(apart.fold(0.0, f32::max) < 1e-5, "{name}");
            assert!(together[..4] != together[8..], "{name} answers other rows otherwise: {together:?}");
            assert!(!model.has_written(), "{name}");
        }
    }
}

#[test]
fn every_other_model_does_what_it_is_there_for() {
    for model in both("coupled") {
        let together = answer(&*model, &ROWS).expect("an answer");
        assert_ne!(together[..4], answer(&*model, &ROWS[..4]).expect("an answer"));
    }
    for model in both("picky") {
        assert_eq!(answer(&*model, &ROWS), Ok(doubled(&ROWS)));
        // The interpreter's first calls run another plan than later ones.
        for _ in 0..3 {
            assert_eq!(answer(&*model, &plus(-1.0)), Err("ValueError: negative input".into()));
        }
    }
    for (name, given, expected) in [
        ("bare", plus(0.0), doubled(&ROWS)),
        ("slow", plus(0.0), plus(0.0)),
        ("leaky", plus(100.0), doubled(&plus(100.0))),
        ("stuck", plus(0.0), doubled(&ROWS)),
    ] {
        for model in both(name) {
            assert_eq!(answer(&*model, &given).as_ref(), Ok(&expected), "{name}");
        }
    }
    for model in both("short") {
        assert_eq!(answer(&*model, &ROWS), Ok(ROWS[..4].to_vec()));
    }
    for model in both("channels") {
        let colours: Vec<f32> = (0..6 * 1600).map(|at| (at / 1600 % 3) as f32).collect();
        let image = (Datatype::Fp32, &[2, 3, 40, 40][..], bytes(&colours));
        let outputs = outputs_of(&*model, &[image]).expect("an answer");
        assert_eq!(floats(&outputs[0]), [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]);
    }
    for model in both("two") {
        let b: Vec<u8> = [0_i64, 1, 4, 5].iter().flat_map(|value| value.to_le_bytes()).collect();
        let a = (Datatype::Fp32, &[2, 3][..], bytes(&[0.0, 1.0, 2.0, 4.0, 5.0, 6.0]));
        let outputs = outputs_of(&*model, &[a, (Datatype::Int64, &[2, 2], b)]).expect("answers");
        assert_eq!((outputs[0].datatype, floats(&outputs[0])), (Datatype::Fp32, vec![3.0, 15.0]));
        let sums = [1_i64, 9].map(i64::to_le_bytes).concat();
        assert_eq!((outputs[1].datatype, &outputs[1].bytes[..]), (Datatype::Int64, &sums[..]));
    }
    for model in both("kinds") {
        let datatypes: Vec<_> =
            Datatype::ALL.into_iter().filter(|datatype| datatype.size().is_some()).collect();
        let ones = |datatype: Datatype| vec![1; 2 * datatype.size().expect("a number")];
        let inputs: Vec<_> =
            datatypes.iter().map(|datatype| (*datatype, &[1, 2][..], ones(*datatype))).collect();
        let outputs = outputs_of(&*model, &inputs).expect("answers");
        let outputs: Vec<_> = outputs.iter().map(|output| (output.datatype, output.bytes.to_vec())).collect();
        let expected: Vec<_> = datatypes.iter().map(|datatype| (*datatype, ones(*datatype))).collect();
        assert_eq!(outputs, expected);
    }
    let Err(why) = load("broken") else { panic!("it is none") };
    assert!(why.starts_with("model.pt: "), "{why}");
}
