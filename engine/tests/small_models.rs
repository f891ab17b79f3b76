//! The small models under `tests/data/models` that tests load, each with one peculiarity that an engine must notice, refuse or survive.
//! They are written here, through libtorch itself, and what is on disk is shown to be that, byte for byte; `model.yaml` beside each is
//! written by hand. Never does: train anything, depend on chance, or stand for a useful model (those are in `configs/demo`).
//!
//! `PENSTOCK_WRITE_MODELS=1 cargo test -p penstock-engine --test small_models` writes what has changed.

use std::path::{Path, PathBuf};

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
