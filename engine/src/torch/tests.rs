//! Real TorchScript through a real libtorch: what loads, what runs together, and what is refused.

use super::*;
use crate::library::{Candidate, Library};
use crate::optimise::optimise;
use crate::pace::{Pace, world};
use crate::scenarios::{Answer, Asked, Client, Engine};
use std::iter;
use std::time::Duration;
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
    for name in ["scratch", "listed", "forked", "traced", "noted", "normed", "typed"] {
        let reason = refusal(name).reason;
        assert!(reason.contains("it may write to tensors of its own"), "{name}: {reason}");
    }
    let reason = refusal("stateful").reason;
    assert!(
        reason.contains("gives another answer the next time (output `y`, largest difference 1"),
        "{reason}"
    );
}

#[test]
fn a_branch_that_writes_to_the_models_own_tensors_is_found_out_once_somebody_gets_into_it() {
    let engine = Engine::start_with(candidates(FIXTURES, "rarely"), |settings| {
        settings.audit_every = Some(crate::audit::EVERY);
    });
    let mut client = engine.connect();
    let entry = client.index().remove(0);
    assert_eq!((entry.max_batch, entry.reason.as_str()), (64, ""), "no trial makes up such a row");
    let ask = |value: f32| Asked::of("rarely").fp32("x", &[1, 4], &[value, 1.0, 2.0, 3.0]);
    for (id, value) in [(1, 5.0), (2, -101.0)] {
        assert_eq!(engine.connect().index()[0].reason, "");
        client.infer(id, ask(value));
        assert_eq!(client.reply().unwrap().fp32("y"), [value, 1.0, 2.0, 3.0]);
    }
    // The answer leaves first.
    let waited = Instant::now();
    while engine.connect().index()[0].reason != crate::audit::WRITES.why {
        assert!(waited.elapsed() < Duration::from_secs(60), "it is never found out");
    }
}

/// Of such a branch no signature tells, and what its memory lies in must not hide it.
#[test]
fn memory_that_a_branch_alone_writes_to_is_watched_wherever_it_lies_and_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let manifest = "inputs: [{name: x, datatype: FP32, shape: [-1, 4]}]
outputs: [{name: 'y', datatype: FP32, shape: [-1, 4]}]";
    let branch = |memory: &str| {
        format!(
            "if bool((x < -100).any()):\n    mine = {memory}.type_as(x)[:x.size(0)]\n    mine.copy_(x)\n    return mine\n  return x * 1"
        )
    };
    let called = |memory: &str| format!("def forward(self, x):\n  {}", branch(memory));
    let forked = |memory: &str| {
        let part = format!("def part(self, x):\n  {}", branch(memory));
        format!("{part}\ndef forward(self, x):\n  return torch.wait(fork(self.part, x))")
    };
    let [one, list, dict] =
        ["torch.zeros([64, 4])", "[torch.zeros([64, 4])]", "{'x': [torch.zeros([64, 4])]}"];
    for (scratch, methods) in [
        (one, called("self.scratch")),
        (one, called("scratch")),
        (list, called("self.scratch[0]")),
        (dict, called("self.scratch['x'][0]")),
        (one, forked("self.scratch")),
        (one, forked("scratch")),
        (list, forked("self.scratch[0]")),
        (dict, forked("self.scratch['x'][0]")),
    ] {
        define(&path, &[("scratch", scratch)], &methods).unwrap();
        let load = || load(&path, Some(Manifest::parse(manifest).unwrap()), Device::Cpu).unwrap();
        let forms =
            [Optimisation::Freeze, Optimisation::Inference].map(|form| load().optimised(form).unwrap());
        for (at, model) in iter::once(load()).chain(forms).enumerate() {
            let run = |value: f32| {
                let x = [value; 4].map(f32::to_le_bytes).concat();
                let inputs =
                    [Gathered { slot: 0, datatype: Datatype::Fp32, shape: vec![1, 4], parts: vec![&x] }];
                assert_eq!(model.run(&inputs).unwrap()[0].bytes, x);
                model.has_written()
            };
            assert_eq!([5.0, -101.0].map(run), [false, true], "form {at} of {methods}");
        }
    }
}

#[test]
fn an_attribute_has_no_name_by_which_every_method_knows_something_else() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["torch", "fork", "prim"] {
        let written =
            define(&folder.path().join("model.pt"), &[(name, "1")], "def forward(self, x):\n  return x");
        let why = written.unwrap_err();
        assert!(why.starts_with(&format!("no attribute may be called `{name}`")), "{why}");
    }
}

#[test]
fn what_draws_random_numbers_or_says_where_they_begin_is_never_batched_and_says_so() {
    let noise = "torch.mul(torch.rand_like(x), 5)";
    let (_engine, _client, entry, _folder) = defined(&format!("return x + {noise}"), "[-1, 4]");
    assert!(
        entry.reason.starts_with("not batched: the same input gives another answer")
            && entry.reason.ends_with("; it draws random numbers"),
        "{}",
        entry.reason
    );
    // One after another, all of its answers are the same.
    let (_engine, _client, entry, _folder) =
        defined("torch.manual_seed(3)\n    return x + torch.rand([1, 4])", "[-1, 4]");
    assert!(entry.reason.contains("it sets where random numbers begin"), "{}", entry.reason);
    for body in [
        "return torch.dropout(x, 0.5, False)",
        "q = x.unsqueeze(1)\n    return torch.scaled_dot_product_attention(q, q, q).squeeze(1)",
    ] {
        let (_engine, _client, entry, _folder) = defined(body, "[-1, 4]");
        assert_eq!((entry.max_batch, entry.reason.as_str()), (32, ""), "{body}");
    }
}

#[test]
fn a_model_that_writes_to_what_it_computes_and_only_reads_its_own_weights_is_batched() {
    for name in ["recurrent", "attentive"] {
        let (_engine, _client, entry) = serve(name);
        assert_eq!((entry.max_batch, entry.reason.as_str()), (64, ""), "{name}");
    }
    for body in ["return x", "x.relu_()\n    y = [x, x * 2]\n    y[1].mul_(2)\n    return y[1]"] {
        let (_engine, _client, entry, _folder) = defined(body, "[-1, 4]");
        assert_eq!((entry.max_batch, entry.reason.as_str()), (32, ""), "{body}");
    }
}

#[test]
fn a_model_that_gives_out_the_memory_it_writes_to_is_found_out_though_it_runs_alone_anyway() {
    let reason = refusal("buffer").reason;
    assert!(
        reason.starts_with("not batched: the same input gives another answer the next time (output `sum`, "),
        "{reason}"
    );
}

#[test]
fn a_model_that_loses_rows_is_found_out_and_fails_closed() {
    let (_engine, mut client, entry) = serve("short");
    assert_eq!((entry.max_batch, entry.reason.as_str()), (1, "not batched: output `y` has 1 row, 5 went in"));
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
    assert!(client.replies(16).iter().any(|answer| answer.reply.timing.as_ref().unwrap().batch_requests > 1));

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
fn a_file_that_vanishes_while_it_is_loaded_is_told_and_costs_no_other_version() {
    for is_open in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        for version in ["vanishing/1", "vanishing/2"] {
            let version = folder.path().join(version);
            std::fs::create_dir_all(&version).unwrap();
            for file in ["model.pt", "model.yaml"] {
                std::fs::copy(Path::new(FIXTURES).join("picky/1").join(file), version.join(file)).unwrap();
            }
        }
        let vanish = |path: &Path| {
            if path.ends_with("1/model.pt") && path.exists() {
                std::fs::remove_file(path).unwrap();
            }
        };
        let load = move |path: &Path, manifest| {
            if !is_open {
                vanish(path);
            }
            let loaded = load(path, manifest, Device::Cpu);
            vanish(path);
            loaded
        };
        let engine = Engine::start_library(Library::folder(folder.path().into(), load), |_| {});
        let index = engine.connect().index();
        assert_eq!(
            (index[0].state(), index[0].reason.as_str()),
            (ModelState::Unavailable, "there is no model.pt")
        );
        assert_eq!((index[1].version, index[1].state()), (2, ModelState::Ready));
    }
}

#[test]
fn both_demo_models_read_held_out_digits() {
    let engine = Engine::start_with(candidates(DEMO, "digits"), |settings| settings.lanes = 2);
    let mut client = engine.connect();
    for entry in client.index() {
        assert_eq!((entry.state(), entry.max_batch, entry.reason.as_str()), (ModelState::Ready, 64, ""));
    }
    let csv =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/digits_held_out.csv"));
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

/// The demo's convolutional network, which all forms are made for.
#[test]
fn every_form_of_a_network_answers_as_the_network_that_was_loaded() {
    let version = Path::new(DEMO).join("digits/2");
    let manifest = std::fs::read_to_string(version.join("model.yaml")).unwrap();
    let manifest = Manifest::parse(&manifest).unwrap();
    let plain = load(&version.join("model.pt"), Some(manifest), Device::Cpu).unwrap();
    let pixels: Vec<u8> = (0..16 * 64).flat_map(|at| ((at * 37 % 17) as f32).to_le_bytes()).collect();
    let answers = |model: &dyn Model| {
        let shape = vec![16, 64];
        let inputs = [Gathered { slot: 0, datatype: Datatype::Fp32, shape, parts: vec![&pixels] }];
        // Of the first runs libtorch learns how to compile the later ones.
        let outputs = [(); 4].map(|()| model.run(&inputs).unwrap()).into_iter().next_back().unwrap();
        let bytes = outputs[1].bytes.chunks_exact(4);
        bytes.map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect::<Vec<_>>()
    };
    let expected = answers(&*plain);
    assert_eq!(expected.len(), 16 * 10);
    for optimisation in Optimisation::ALL {
        let other = plain.optimised(optimisation).unwrap_or_else(|why| panic!("{optimisation}: {why}"));
        let apart = expected.iter().zip(answers(&*other)).map(|(one, other)| (one - other).abs());
        let apart = apart.fold(0.0, f32::max);
        let expected = match optimisation {
            Optimisation::Freeze | Optimisation::Inference | Optimisation::ChannelsLast => 0.0..1e-4,
            Optimisation::Bfloat16 => 1e-6..0.1,
        };
        assert!(expected.contains(&apart), "{optimisation}: {apart}");
    }
}

/// A convolution and a batch norm `x: [-1, 64] → y: [-1, 256]`, whose forms fold the one into the other.
const CONVOLUTION: &str = "
def forward(self, x):
    w = torch.sin(torch.arange(36.0)).reshape([4, 1, 3, 3])
    y = torch.conv2d(x.reshape([-1, 1, 8, 8]), w, None, [1, 1], [1, 1])
    n = torch.arange(4.0)
    y = torch.batch_norm(y, n + 0.7, n / 3.0, n / 7.0, n + 1.3, False, 0.1, 1e-5, False)
    return torch.relu(y).flatten(1)
";

/// Takes as long as the test says: 10 ms as loaded, 5 ms in the form that is to be the fastest, 8 ms in any other.
struct Timed {
    model: Box<dyn Model>,
    fastest: Optimisation,
    takes: Duration,
}

impl Model for Timed {
    fn spec(&self) -> &Spec {
        self.model.spec()
    }

    fn run(&self, inputs: &[Gathered<'_>]) -> Result<Vec<Output>, ModelError> {
        world::advance(self.takes);
        self.model.run(inputs)
    }

    fn use_threads(&self, threads: usize) {
        self.model.use_threads(threads);
    }

    fn optimised(&self, optimisation: Optimisation) -> Result<Box<dyn Model>, String> {
        let takes = Duration::from_millis(if optimisation == self.fastest { 5 } else { 8 });
        Ok(Box::new(Self { model: self.model.optimised(optimisation)?, takes, ..*self }))
    }
}

#[test]
fn a_form_that_is_kept_answers_as_the_network_that_was_loaded_and_is_told_with_its_times_and_its_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    define(&path, &[], CONVOLUTION).unwrap();
    let manifest = "inputs: [{name: x, datatype: FP32, shape: [-1, 64]}]
outputs: [{name: 'y', datatype: FP32, shape: [-1, 256]}]";
    let x: Vec<u8> = (0..3 * 64).flat_map(|at| ((at * 31 % 23) as f32 / 7.0 - 1.0).to_le_bytes()).collect();
    let answers = |model: &dyn Model| {
        let inputs =
            [Gathered { slot: 0, datatype: Datatype::Fp32, shape: vec![3, 64], parts: vec![&x[..]] }];
        let bytes = model.run(&inputs).unwrap().remove(0).bytes;
        let values = bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap()));
        values.collect::<Vec<_>>()
    };
    for fastest in [Optimisation::Freeze, Optimisation::Inference] {
        let model = load(&path, Some(Manifest::parse(manifest).unwrap()), Device::Cpu).unwrap();
        let plain = Timed { model, fastest, takes: Duration::from_millis(10) };
        let (kept, report) = optimise(&plain, 8, &Pace::in_a_world(), &|_, _| true);
        let kept = kept.unwrap_or_else(|| panic!("{fastest} is not kept"));
        assert_eq!(report.kept, Some(fastest));
        assert_eq!(report.per_row, [(1, 10_000.0, 5_000.0), (8, 1_250.0, 625.0)]);
        assert!(report.error_max < 1e-4, "{report}");
        let told = format!(
            "{fastest}: 2.00x at 1 (10.000 to 5.000 ms per row), 2.00x at 8 (1.250 to 0.625 ms per row), largest difference {:.1e}",
            report.error_max
        );
        assert_eq!(report.to_string(), told);
        let (expected, got) = (answers(&plain), answers(&*kept));
        assert!(expected.len() == 3 * 256 && expected.iter().any(|value| *value > 1.0), "{expected:?}");
        let apart = expected.iter().zip(&got).map(|(one, other)| (one - other).abs());
        assert!(apart.fold(0.0, f32::max) < 1e-4, "{fastest}");
    }
}

/// An engine with a model `x: [-1, 4] → y: [-1, ..]` of this body.
fn defined(body: &str, output: &str) -> (Engine, Client, ModelEntry, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let version = folder.path().join("defined/1");
    std::fs::create_dir_all(&version).unwrap();
    define(&version.join("model.pt"), &[], &format!("def forward(self, x):\n    {body}\n")).unwrap();
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
fn what_shared_a_batch_with_a_bad_row_runs_again_as_it_was_sent_and_not_as_the_model_left_it() {
    let body = "x.mul_(2.0)\n    assert bool((x > -1000.0).all()), 'too low'\n    return x";
    let (_engine, mut client, entry, _folder) = defined(body, "[-1, 4]");
    assert_eq!((entry.max_batch, entry.reason.as_str()), (32, ""));
    let ask = |id: u64| {
        let value = if id == 9 { -4000.0 } else { id as f32 };
        Asked::of("defined").fp32("x", &[1, 4], &[value, 1.0, 2.0, 3.0])
    };
    client.infer_all((1..=16).map(|id| (id, ask(id))));
    let answers = client.replies(16);
    let is_divided =
        |answer: &Answer| answer.reply.timing.as_ref().unwrap().closed() == wire::Closed::Divided;
    assert!(answers.iter().any(is_divided), "it has run with others");
    for answer in answers {
        if answer.id == 9 {
            assert_eq!(answer.status(), Status::ModelFailed);
            assert!(answer.reply.message.ends_with("too low"), "{}", answer.reply.message);
        } else {
            assert_eq!(answer.fp32("y"), [2.0 * answer.id as f32, 2.0, 4.0, 6.0]);
        }
    }
}

#[test]
fn more_memory_than_there_is_for_all_rows_is_asked_for_fewer() {
    // 128 TiB for each row.
    let body = "if x.size(0) > 3 and bool((x > 100).any()):\n        x = x + torch.zeros([x.size(0), 1 << 45])[:, :1]\n    return x * 2";
    let (_engine, mut client, entry, _folder) = defined(body, "[-1, 4]");
    assert_eq!((entry.max_batch, entry.reason.as_str()), (32, ""));
    client.infer(1, Asked::of("defined").fp32("x", &[8, 4], &[1000.0; 32]));
    assert_eq!(client.reply().unwrap().fp32("y"), [2000.0; 32]);
}

/// Page faults of this thread that no disk was read for.
fn faults() -> i64 {
    // SAFETY: any bytes are one of these structures, and the kernel writes one, which lives.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: likewise.
    let told = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    assert_eq!(told, 0, "every thread has one");
    usage.ru_minflt
}

#[test]
fn what_a_large_tensor_lay_in_is_there_for_the_next_until_it_is_given_back() {
    // More than the C library ever keeps.
    const VALUES: i64 = (64 << 20) / 4;
    prepare(1);
    prepare_thread(1);
    let middle = || {
        let tensor = Tensor::ones([VALUES], (tch::Kind::Float, tch::Device::Cpu));
        tensor.data_ptr() as usize + VALUES as usize * 2
    };
    let faults_of_another = || {
        middle();
        let before = faults();
        middle();
        faults() - before
    };
    // Even huge pages would be 32. Other tests take memory meanwhile, and give it back.
    assert!((0..20).any(|_| faults_of_another() < 8));
    let is_given_back = || {
        let middle = middle();
        let is_kept = memory::spare::is_resident(middle);
        // As the loader does, on a thread that has made no tensor.
        std::thread::spawn(memory::give_back).join().unwrap();
        is_kept && !memory::spare::is_resident(middle)
    };
    assert!((0..20).any(|_| is_given_back()));
}

#[test]
fn the_words_of_allocators_and_libraries_for_memory_that_runs_out_are_known() {
    for words in [
        "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript (most recent call last):\nRuntimeError: [enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 140737488355328 bytes. Error code 12 (Cannot allocate memory)\n",
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which 17.31 GiB is free.",
        "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`. If you keep seeing this error, you may use",
        "cuFFT error: CUFFT_ALLOC_FAILED",
    ] {
        assert!(of_libtorch(words.into()).out_of_memory, "{words}");
    }
    for words in [
        "CUDA error: device-side assert triggered",
        "shape '[1, 4]' is invalid for input of size 8",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    ] {
        assert!(!of_libtorch(words.into()).out_of_memory, "{words}");
    }
}

#[test]
fn a_device_without_memory_works_and_one_that_has_failed_for_good_has_memory_enough() {
    let full =
        || of_libtorch("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`".into());
    let said = |now: &str| {
        let error = judged(full(), Err(now.into()), Device::Cuda(0));
        (error.out_of_memory, error.device_lost, error.message)
    };
    let error = judged(full(), Ok(()), Device::Cuda(0));
    assert_eq!((error.out_of_memory, error.device_lost), (true, false));
    let still_full = said("CUDA out of memory. Tried to allocate 2.00 MiB.");
    assert_eq!(still_full, (true, false, full().message));
    let lost = "cuda:0 works no more: CUDA error: device-side assert triggered".to_owned();
    assert_eq!(said("CUDA error: device-side assert triggered"), (false, true, lost));
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
    client.infer(1, Asked::of("defined").fp32("x", &[2, 4], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]));
    let reply = client.reply().unwrap();
    assert_eq!(reply.output("y").0.shape, [2, 4]);
    assert_eq!(reply.fp32("y"), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]);
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
