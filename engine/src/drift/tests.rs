//! Batches that are told to [`Drift`] as a lane tells them, at made-up times.

use super::*;
use crate::batcher::{Criticality, Priority};
use crate::catalog::Catalog;
use crate::job::{Request, Terms};
use crate::mailbox::Mailbox;
use crate::model::{Named, Slot, Version};
use crate::scripted::{Scripted, catalog_of, output_fp32, rows_spec};
use bytes::Bytes;
use socket::Socket;
use watch::{BINNED_ROWS, REFERENCE_ROWS, WINDOW_ROWS};
use wire::push_element;

/// A version, and when it is.
struct World {
    version: Arc<Version>,
    mailbox: Arc<Mailbox>,
    now: Instant,
    _runtime: tokio::runtime::Runtime,
    _theirs: tokio::net::UnixStream,
}

impl World {
    fn of(spec: Spec) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let (ours, theirs) = {
            let _entered = runtime.enter();
            tokio::net::UnixStream::pair().unwrap()
        };
        let mailbox = {
            let _entered = runtime.enter();
            Arc::new(Mailbox::new(1, 1 << 20, Arc::new(Socket::new(ours).unwrap())))
        };
        let catalog: Catalog = catalog_of("m", 1, Scripted::new(spec, |_| unreachable!("nothing runs")));
        let version = Arc::clone(catalog.find("m", 1).ok().unwrap());
        Self { version, mailbox, now: Instant::now(), _runtime: runtime, _theirs: theirs }
    }

    /// A request of these rows of `x`.
    fn request(&self, columns: usize, x: &[f32]) -> Piece<Arc<Job>> {
        let bytes: Vec<u8> = x.iter().flat_map(|value| value.to_le_bytes()).collect();
        let rows = x.len() / columns;
        let shape = vec![rows as u64, columns as u64];
        let meta =
            TensorMeta { name: "x".into(), datatype: Datatype::Fp32 as u32, shape, offset: 0, bytes: 0 };
        let request = Request::check_for(&self.version, vec![meta], Vec::new(), Bytes::from(bytes));
        let terms = Terms {
            id: 1,
            received: self.now,
            prepared: Duration::ZERO,
            deadline: None,
            priority: Priority::Normal,
            criticality: Criticality::Normal,
            tenant: 0,
            caller: 0,
            trace: None,
            metadata_bytes: 10,
        };
        let job = Arc::new(Job::new(request.ok().unwrap(), terms, Arc::clone(&self.mailbox)));
        Piece { job, first: 0, rows: rows as u32 }
    }

    /// Time in which a window of as many rows as it takes is whole.
    fn answer(&mut self, pieces: &[Piece<Arc<Job>>], outputs: &[Output]) {
        self.now += Duration::from_millis(10);
        self.version.drift.observe(pieces, outputs, self.now);
    }

    /// One row, and its answer.
    fn row(&mut self, x: &[f32], y: &[f32]) {
        let piece = self.request(x.len(), x);
        self.answer(&[piece], &[output_fp32("y", &[1, y.len() as u64], y)]);
    }

    fn values(&self, feature: usize) -> Vec<f64> {
        self.version.drift.rows.lock().watch.values(feature).to_vec()
    }

    fn told(&self) -> VersionDrift {
        self.version.drift.to_wire("m", 1, 1, self.now + Duration::from_secs(3))
    }
}

/// Evenly from 0 to 1.
fn even(at: u32) -> f32 {
    (at.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32
}

#[test]
fn the_column_that_has_moved_is_named_and_the_others_have_not() {
    let mut world = World::of(rows_spec(&[("x", 3)], &[("y", 1)], 8));
    for at in 0..BINNED_ROWS + REFERENCE_ROWS {
        world.row(&[even(at), even(at + 7), 5.0], &[even(at + 3)]);
    }
    assert_eq!((world.told().has_reference, world.told().tensors), (true, vec![]), "nothing is compared yet");
    for at in 0..WINDOW_ROWS {
        world.row(&[even(at), even(at + 7) + 0.5, 5.0], &[even(at + 3)]);
    }
    let told = world.told();
    assert_eq!((told.windows, told.seen), (1, u64::from(BINNED_ROWS + REFERENCE_ROWS + WINDOW_ROWS)));
    assert_eq!((told.ended_ms, told.lasted_ms), (3000, 5110), "511 rows after the first one");
    let [x, y] = &told.tensors[..] else { panic!("{told:?}") };
    assert_eq!((x.side(), x.name.as_str(), x.column), (DriftSide::Input, "x", Some(1)));
    assert!(x.least_millionths > 100_000 && x.most_millionths > x.bits_millionths, "{x:?}");
    assert_eq!((y.side(), y.column, y.least_millionths), (DriftSide::Output, None, 0));
    assert!(y.bits_millionths < 20_000 && y.most_millionths < 150_000, "{y:?}");
}

#[test]
fn each_row_of_a_batch_is_looked_at_with_its_own_answer() {
    let mut world = World::of(rows_spec(&[("x", 2)], &[("y", 2)], 8));
    let pieces = [
        world.request(2, &[0.0, 0.5]),
        world.request(2, &[1.0, 1.5, 2.0, 2.5, 3.0, 3.5]),
        world.request(2, &[4.0, 4.5]),
    ];
    // The second one runs in pieces: here its last two rows.
    let second = Piece { first: 1, rows: 2, ..pieces[1].clone() };
    let pieces = [pieces[0].clone(), second, pieces[2].clone()];
    let y = [0.0, 10.0, 2.0, 12.0, 3.0, 13.0, 4.0, 14.0];
    for _ in 0..200 {
        world.answer(&pieces, &[output_fp32("y", &[4, 2], &y)]);
    }
    let (rows, answers) = (world.values(0), world.values(2));
    assert_eq!(rows, answers, "the first column of both tells the row");
    assert_eq!(world.values(1), rows.iter().map(|row| row + 0.5).collect::<Vec<_>>());
    for row in [0.0, 2.0, 3.0, 4.0] {
        let times = rows.iter().filter(|other| **other == row).count();
        assert!((25..80).contains(&times), "row {row} was looked at {times} times of 200");
    }
}

#[test]
fn a_thousand_rows_in_a_second_are_looked_at_and_none_is_waited_for() {
    let world = World::of(rows_spec(&[("x", 1)], &[("y", 1)], 8));
    let (piece, y) = (world.request(1, &[1.0]), output_fp32("y", &[1, 1], &[1.0]));
    let drift = &world.version.drift;
    let observe = |micros| {
        let now = world.now + Duration::from_micros(micros);
        drift.observe(std::slice::from_ref(&piece), std::slice::from_ref(&y), now);
    };
    (0..50_000).for_each(|at| observe(20 * at));
    assert!((800..1200).contains(&drift.seen()), "{} of 50,000 in a second", drift.seen());
    let before = drift.seen();
    (1..=500).for_each(|at| observe(1_000_000 + 2000 * at));
    assert!(drift.seen() - before > 450, "of 500 in a second {} are", drift.seen() - before);
    let before = drift.seen();
    let held = drift.rows.lock();
    observe(3_000_000);
    drop(held);
    assert_eq!(drift.seen(), before);
}

/// Pairs of batches, of which the second comes soon after the first: slow ones, of which all are looked at, and fast ones.
#[test]
fn what_comes_second_is_looked_at_as_often_as_what_comes_first() {
    for gap in [5000, 300] {
        let world = World::of(rows_spec(&[("x", 1)], &[("y", 1)], 8));
        let y = output_fp32("y", &[1, 1], &[1.0]);
        let mut now = world.now;
        for second in (0..).map(|at| at % 2) {
            now += Duration::from_micros([gap, 40][second]);
            let piece = world.request(1, &[second as f32]);
            world.version.drift.observe(&[piece], std::slice::from_ref(&y), now);
            if world.version.drift.seen() == u64::from(BINNED_ROWS) - 1 {
                break;
            }
        }
        let seconds = world.values(0).iter().filter(|value| **value == 1.0).count();
        assert!((100..156).contains(&seconds), "{seconds} of 255, pairs every {gap} µs");
    }
}

#[test]
fn padding_is_not_looked_at() {
    let mut spec = rows_spec(&[("x", 1)], &[("y", 1)], 8);
    spec.dimensions = vec![Named { name: "tokens".into(), pad_to: vec![32], waste_max: 1.0, max: None }];
    let named = |slot: &mut Slot| slot.form.as_mut().unwrap().shape[1] = Dimension::Named(0);
    named(&mut spec.inputs[0]);
    named(&mut spec.outputs[0]);
    spec.inputs[0].pad = -1.0;
    let mut world = World::of(spec);
    for _ in 0..100 {
        let piece = world.request(3, &[1.0, 2.0, 3.0]);
        assert_eq!(piece.job.request.inputs[0].shape, [1, 32], "it is padded");
        let y: Vec<f32> = (0..32).map(|at| if at < 3 { 5.0 } else { -7.0 }).collect();
        world.answer(&[piece], &[output_fp32("y", &[1, 32], &y)]);
    }
    let seen = world.values(0);
    assert!(
        seen.iter().all(|value| *value > 0.0) && [1.0, 2.0, 3.0].iter().all(|value| seen.contains(value))
    );
    assert!(world.values(1).iter().all(|value| *value == 5.0));
}

#[test]
fn how_sure_a_version_is_is_counted_and_watched() {
    for softmax in [false, true] {
        let mut spec = rows_spec(&[("x", 1)], &[("classes", 20)], 8);
        spec.postprocess = Some(wire::Postprocess { output: "classes".into(), softmax, top_k: 5, form: 0 });
        let mut world = World::of(spec);
        let mut answer = |probability: f32| {
            let (value, other) = if softmax {
                ((probability / (1.0 - probability)).ln(), (1.0_f32 / 19.0).ln())
            } else {
                (probability, 0.0)
            };
            let classes: Vec<f32> = (0..20).map(|at| if at == 7 { value } else { other }).collect();
            let piece = world.request(1, &[1.0]);
            world.answer(&[piece], &[output_fp32("classes", &[1, 20], &classes)]);
            world.told()
        };
        (0..BINNED_ROWS + REFERENCE_ROWS).for_each(|at| drop(answer(0.91 + even(at) / 20.0)));
        (0..WINDOW_ROWS - 1).for_each(|at| drop(answer(0.51 + even(at) / 20.0)));
        let told = answer(f32::NAN);
        let confidence = told.confidence.clone().unwrap();
        let sure = u64::from(BINNED_ROWS + REFERENCE_ROWS);
        assert_eq!(
            (confidence.tenths[9], confidence.tenths[5]),
            (sure, u64::from(WINDOW_ROWS - 1)),
            "{softmax}"
        );
        let last = told.tensors.last().unwrap();
        assert_eq!((last.side(), last.name.as_str()), (DriftSide::Confidence, "confidence"));
        assert!(last.least_millionths > 500_000, "{last:?}");
    }
}

#[test]
fn of_what_comes_as_bytes_the_lengths_are_watched() {
    let drift = Drift::of(&rows_spec(&[("x", 1)], &[("y", 1)], 8), vec!["text".into()], &[], Instant::now());
    let mut now = Instant::now();
    let mut send = |lengths: &[usize]| {
        let mut payload = Vec::new();
        lengths.iter().for_each(|length| push_element(&mut payload, &vec![b'a'; *length]));
        let (shape, bytes) = (vec![lengths.len() as u64], payload.len() as u64);
        let meta =
            TensorMeta { name: "text".into(), datatype: Datatype::Bytes as u32, shape, offset: 0, bytes };
        now += Duration::from_millis(10);
        drift.observe_lengths(&[meta], &payload, now);
    };
    (0..BINNED_ROWS + REFERENCE_ROWS).for_each(|at| send(&[at as usize % 40, 3]));
    (0..WINDOW_ROWS).for_each(|at| send(&[200 + at as usize % 40]));
    let told = drift.to_wire("m", 1, 1, now);
    let [text] = &told.tensors[..] else { panic!("{told:?}") };
    assert_eq!((text.side(), text.name.as_str()), (DriftSide::Input, "text"));
    assert!(text.least_millionths > 700_000, "{text:?}");
}

#[test]
fn what_is_not_declared_is_not_watched_and_no_more_than_a_few_tensors_are() {
    let names: Vec<String> = (0..6).map(|at| format!("x{at}")).collect();
    let inputs: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 100)).collect();
    let mut spec = rows_spec(&inputs, &[("y", 1)], 8);
    spec.outputs[0].form = None;
    let drift = Drift::of(&spec, Vec::new(), &[], Instant::now());
    let names: Vec<_> = drift.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["x0", "x1", "x2", "x3"]);
    assert!(
        drift.tensors.iter().all(|tensor| tensor.features == 1),
        "a hundred places have no meaning of their own"
    );
}

/// A file says what a version was made for, sorted as such files often are.
#[test]
fn what_a_version_was_made_for_may_be_declared_and_is_what_it_is_compared_with() {
    let spec = rows_spec(&[("x", 1)], &[("y", 1)], 64);
    let model = Scripted::new(spec.clone(), |inputs| {
        let x = crate::scripted::fp32(&inputs[0]);
        Ok(vec![output_fp32("y", &[x.len() as u64, 1], &x)])
    });
    let case = |first: u32| {
        let x: Vec<f32> = (first..first + 50).map(|at| at as f32 / 1000.0).collect();
        format!(r#"{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": [50, 1], "data": {x:?}}}]}}"#)
    };
    let cases: Vec<String> = (0..20).map(|at| case(50 * at)).collect();
    let golden =
        crate::golden::Golden::parse(&format!(r#"{{"reference": [{}]}}"#, cases.join(", "))).unwrap();
    let reference = golden.reference(&model, &crate::pace::Pace::alone()).unwrap();
    for (moved, is_seen) in [(0.0, false), (0.5, true)] {
        let mut world = World::of(spec.clone());
        let drift = Drift::of(&spec, Vec::new(), &reference, world.now);
        assert!(drift.to_wire("m", 1, 1, world.now).has_reference && drift.seen() == 0);
        assert_eq!(drift.learned([1; 16]), None, "it is read again with the files");
        for at in 0..WINDOW_ROWS {
            world.now += Duration::from_millis(10);
            let (piece, y) =
                (world.request(1, &[even(at) + moved]), output_fp32("y", &[1, 1], &[even(at) + moved]));
            drift.observe(&[piece], &[y], world.now);
        }
        let told = drift.to_wire("m", 1, 1, world.now);
        assert_eq!((told.windows, told.seen, told.tensors.len()), (1, u64::from(WINDOW_ROWS), 2));
        assert!(told.tensors.iter().all(|tensor| (tensor.least_millionths > 100_000) == is_seen), "{told:?}");
    }
}

#[test]
fn another_engine_goes_on_with_what_was_learned_of_the_same_files() {
    let spec = || rows_spec(&[("x", 3)], &[("y", 1)], 8);
    let mut world = World::of(spec());
    let rows = |at| ([even(at), even(at + 7), 5.0], [even(at + 3)]);
    for at in 0..BINNED_ROWS + REFERENCE_ROWS {
        assert_eq!(world.version.drift.learned([1; 16]), None, "it is not whole");
        let (x, y) = rows(at);
        world.row(&x, &y);
    }
    let kept = world.version.drift.learned([1; 16]).unwrap();
    assert_eq!(world.version.drift.learned([1; 16]), None, "it is no news any more");

    let mut next = World::of(spec());
    next.version.drift.go_on(&kept);
    let told = next.told();
    assert_eq!((told.has_reference, told.seen, told.tensors.len()), (true, 0, 0));
    for at in 0..WINDOW_ROWS {
        let ([first, second, third], y) = rows(at);
        for world in [&mut world, &mut next] {
            world.row(&[first, second + 0.5, third], &y);
        }
    }
    assert_eq!(next.told().tensors, world.told().tensors, "they find the same");
    assert!(next.told().tensors[0].least_millionths > 100_000);
    assert_eq!(next.version.drift.learned([1; 16]), None, "and nothing is to be written again");

    let mut other = World::of(rows_spec(&[("x", 2)], &[("y", 1)], 8));
    other.version.drift.go_on(&kept);
    assert!(!other.told().has_reference, "what was learned of other tensors says nothing of these");
    other.row(&[0.0, 1.0], &[0.0]);
}

#[test]
fn lengths_are_learned_and_kept_by_themselves() {
    let spec = rows_spec(&[("x", 1)], &[("y", 1)], 8);
    let (mut now, of) = (Instant::now(), || Drift::of(&spec, vec!["text".into()], &[], Instant::now()));
    let mut send = |drift: &Drift, length: usize| {
        let mut payload = Vec::new();
        push_element(&mut payload, &vec![b'a'; length]);
        let bytes = payload.len() as u64;
        let meta = TensorMeta {
            name: "text".into(),
            datatype: Datatype::Bytes as u32,
            shape: vec![1],
            offset: 0,
            bytes,
        };
        now += Duration::from_millis(10);
        drift.observe_lengths(&[meta], &payload, now);
    };
    let drift = of();
    (0..BINNED_ROWS + REFERENCE_ROWS).for_each(|at| send(&drift, at as usize % 40));
    let kept = drift.learned([1; 16]).unwrap();
    let next = of();
    next.go_on(&kept);
    (0..WINDOW_ROWS).for_each(|at| send(&next, 200 + at as usize % 40));
    let told = next.to_wire("m", 1, 1, now);
    assert!(!told.has_reference && told.tensors[0].least_millionths > 700_000, "{told:?}");
}
