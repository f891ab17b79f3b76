//! What fails: a request, a run, a model, memory, a GPU; and who notices.

use super::*;
use crate::model::Form;

#[test]
fn the_poisonous_requests_fail_alone_and_cost_few_runs() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let gate = Arc::new(Gate::default());
    let passing = Arc::clone(&gate);
    let model = candidate("double", move |inputs| {
        passing.pass();
        counted.fetch_add(1, Ordering::Relaxed);
        double(inputs)
    });
    let engine = Engine::start(vec![model]);
    let mut client = engine.connect();
    client.index();
    gate.shut();
    client.infer(1, ask(1.0));
    gate.await_held(1);
    let poisonous = |id| id == 9 || id == 15;
    client.infer_all((2..=17).map(|id| (id, ask(if poisonous(id) { -1.0 } else { id as f32 }))));
    client.barrier();
    runs.store(0, Ordering::Relaxed);
    gate.open();
    for answer in client.replies(17).into_iter().skip(1) {
        assert_eq!(answer.reply.timing.as_ref().unwrap().closed(), Closed::Divided);
        if poisonous(answer.id) {
            assert_eq!((answer.status(), &answer.reply.message[..]), (Status::ModelFailed, "negative input"));
        } else {
            assert_eq!(answer.fp32("y"), [2.0 * answer.id as f32, 1.0]);
        }
    }
    let runs = runs.load(Ordering::Relaxed);
    assert!(runs <= 1 + 2 * (1 + 2 * 4), "{runs} runs for two of sixteen");
}

#[test]
fn who_makes_batches_fail_again_and_again_runs_alone() {
    let (_engine, mut client, gate) = engine_with_held_lane(|_| {});
    let mut id = 1;
    let mut round = |client: &mut Client, gate: &Gate, held: bool| {
        if !held {
            gate.shut();
            id += 1;
            client.infer(id, ask(1.0));
            gate.await_held(1);
        }
        let first = id + 1;
        id += 4;
        client.infer_all(
            (first..=id).map(|id| (id, ask(if id == first { -1.0 } else { 1.0 }).caller(id - first + 1))),
        );
        client.barrier();
        gate.open();
        let answers = client.replies(5);
        answers[2].reply.timing.as_ref().unwrap().batch_requests
    };
    assert!(round(&mut client, &gate, true) < 3, "it was divided");
    assert!(round(&mut client, &gate, false) < 3, "again");
    assert_eq!(round(&mut client, &gate, false), 3, "the others are undisturbed");
}

#[test]
fn a_panic_fails_the_request_and_not_the_lane() {
    let engine = Engine::start(vec![candidate("double", double)]);
    let mut client = engine.connect();
    client.index();
    client.infer(1, ask(f32::INFINITY));
    let answer = client.reply().unwrap();
    assert_eq!((answer.status(), answer.reply.message.as_str()), (Status::Internal, "panic: unlucky"));
    client.infer(2, ask(2.0));
    assert_eq!(client.reply().unwrap().status(), Status::Ok);
}

#[test]
fn an_output_with_another_number_of_rows_reaches_nobody() {
    let model = candidate("double", |inputs| {
        let mut outputs = double(inputs)?;
        if fp32(&inputs[0]).contains(&99.0) {
            outputs = vec![output_fp32("y", &[1, 2], &[0.0, 0.0])];
        }
        Ok(outputs)
    });
    let engine = Engine::start(vec![model]);
    let mut client = engine.connect();
    assert_eq!(client.index()[0].max_batch, 16, "the trial could not know");
    client.infer(1, Asked::of("double").fp32("x", &[2, 2], &[99.0, 0.0, 0.0, 0.0]));
    let answer = client.reply().unwrap();
    assert_eq!(answer.status(), Status::ModelFailed);
    assert_eq!(answer.reply.message, "output `y` has 1 row, 2 went in");
}

/// Whoever asks for them must not make the version fail for everybody.
#[test]
fn outputs_that_are_too_large_to_send_are_the_fault_of_who_asks_for_many_rows() {
    let load: Load = Box::new(|| {
        let mut spec = rows_spec(&[("x", 2)], &[("y", 1)], 2);
        for slot in &mut spec.outputs {
            slot.form =
                Some(Form { datatype: Datatype::Uint8, shape: vec![Dimension::Free, Dimension::Free] });
        }
        let script = |inputs: &[Gathered<'_>]| {
            let rows = inputs[0].shape[0];
            let width = if fp32(&inputs[0]).contains(&99.0) { 150 << 20 } else { 1 };
            let bytes = Bytes::from(vec![0; (rows * width) as usize]);
            Ok(vec![Output { name: "y".into(), datatype: Datatype::Uint8, shape: vec![rows, width], bytes }])
        };
        let model = Box::new(Scripted::new(spec, script));
        Ok(Loaded { model, golden: None, preprocess: None, files: None })
    });
    let engine = Engine::start(vec![to_load("double", 1, load)]);
    let mut client = engine.connect();
    client.index();
    client.infer(1, Asked::of("double").fp32("x", &[2, 2], &[99.0, 0.0, 99.0, 0.0]));
    let answer = client.reply().unwrap();
    assert_eq!(answer.status(), Status::OutputsTooLarge);
    assert_eq!(answer.reply.message, "outputs of 314572800 bytes are too large to send");
}

#[test]
fn memory_that_runs_out_divides_the_batch_until_it_fits() {
    let short = Arc::new(AtomicBool::new(false));
    let is_short = Arc::clone(&short);
    let model = candidate("double", move |inputs| {
        if is_short.load(Ordering::Relaxed) && inputs[0].shape[0] > 3 {
            return Err(ModelError { out_of_memory: true, ..ModelError::new("out of memory") });
        }
        double(inputs)
    });
    let engine = Engine::start(vec![model]);
    let mut client = engine.connect();
    client.index();
    short.store(true, Ordering::Relaxed);
    let values: Vec<f32> = (0..32).map(|value| value as f32).collect();
    for id in 1..4 {
        client.infer(id, Asked::of("double").fp32("x", &[16, 2], &values));
        assert_eq!(client.reply().unwrap().fp32("y")[31], 62.0);
    }
}

#[test]
fn a_row_that_wants_more_memory_than_there_is_costs_nobody_else_their_batches() {
    let (gate, largest) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    let (passing, seen) = (Arc::clone(&gate), Arc::clone(&largest));
    let model = candidate("double", move |inputs| {
        passing.pass();
        if fp32(&inputs[0]).contains(&99.0) {
            return Err(ModelError { out_of_memory: true, ..ModelError::new("out of memory") });
        }
        seen.fetch_max(inputs[0].shape[0] as usize, Ordering::Relaxed);
        double(inputs)
    });
    let engine = Engine::start(vec![model]);
    let mut client = engine.connect();
    client.index();
    gate.shut();
    client.infer(1, ask(1.0));
    gate.await_held(1);
    client.infer_all((2..=9).map(|id| (id, ask(if id == 5 { 99.0 } else { 1.0 }))));
    client.barrier();
    gate.open();
    let statuses: Vec<_> = client.replies(9).iter().map(|answer| answer.status() == Status::Ok).collect();
    assert_eq!(statuses.iter().filter(|is_ok| !**is_ok).count(), 1, "{statuses:?}");
    largest.store(0, Ordering::Relaxed);
    client.infer(10, Asked::of("double").fp32("x", &[16, 2], &[1.0; 32]));
    assert_eq!(client.reply().unwrap().status(), Status::Ok);
    assert_eq!(largest.load(Ordering::Relaxed), 16, "as many rows as ever");
}

#[test]
fn a_model_that_hangs_ends_the_engine_by_its_name() {
    let gate = Arc::new(Gate::default());
    let passing = Arc::clone(&gate);
    let model = candidate("stuck", move |inputs| {
        passing.pass();
        double(inputs)
    });
    let mut engine = Engine::start_with(vec![model], |settings| settings.run_max = Duration::from_millis(50));
    let mut client = engine.connect();
    client.index();
    gate.shut();
    client.infer(1, Asked::of("stuck").fp32("x", &[1, 2], &[1.0, 0.5]));
    let ended = engine.thread.take().unwrap().join().unwrap().unwrap_err().to_string();
    assert!(ended.starts_with("model `stuck` version 1 has not come back for"), "{ended}");
    gate.open();
}

#[test]
fn a_gpu_that_has_failed_for_good_ends_the_engine_which_says_why() {
    let broken = Arc::new(AtomicBool::new(false));
    let is_broken = Arc::clone(&broken);
    // Stands for libtorch on a GPU after a device-side assertion.
    let model = candidate("double", move |inputs| {
        if is_broken.load(Ordering::Relaxed) {
            let error = ModelError::new("cuda:0 works no more: device-side assert triggered");
            return Err(ModelError { device_lost: true, ..error });
        }
        double(inputs)
    });
    let mut engine = Engine::start(vec![model]);
    let mut client = engine.connect();
    client.index();
    broken.store(true, Ordering::Relaxed);
    client.infer(1, Asked::of("double").fp32("x", &[1, 2], &[1.0, 0.5]));
    let ended = engine.thread.take().unwrap().join().unwrap().unwrap_err().to_string();
    assert_eq!(ended, "cuda:0 works no more: device-side assert triggered; the engine has to be replaced");
}

#[test]
fn a_gpu_that_fails_while_a_model_is_loaded_ends_the_engine_too() {
    let fails = Candidate {
        load: Box::new(|| Err("model.pt: device-side assert triggered".into())),
        ..candidate("m", double)
    };
    let mut engine =
        Engine::start_with(vec![fails], |settings| settings.device_memory = Some(Arc::new(|| None)));
    let ended = engine.thread.take().unwrap().join().unwrap().unwrap_err().to_string();
    assert!(ended.starts_with("the GPU works no more: model.pt: device-side assert"), "{ended}");
}

#[test]
fn the_memory_of_a_gpu_is_told() {
    let memory = DeviceMemory { held_bytes: 1, free_bytes: 2, total_bytes: 4 };
    let engine = Engine::start_with(vec![candidate("double", double)], |settings| {
        settings.device_memory = Some(Arc::new(move || Some(memory)));
    });
    let mut client = engine.connect();
    client.send(Kind::Ping, 7, &Hello::default(), Bytes::new());
    loop {
        let frame = client.frame().expect("the engine lives");
        if frame.kind == Kind::Pong {
            match Health::decode(frame.metadata).unwrap().device {
                // It has been asked, and the engine waits for nobody.
                None => client.send(Kind::Ping, 7, &Hello::default(), Bytes::new()),
                told => return assert_eq!(told, Some(memory)),
            }
        }
    }
}

#[test]
fn what_is_cancelled_while_it_runs_does_not_run_again_when_its_batch_is_divided() {
    let runs = Arc::new(Mutex::new(Vec::new()));
    let (one, several) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
    let (noted, passing) = (Arc::clone(&runs), (Arc::clone(&one), Arc::clone(&several)));
    let model = candidate("double", move |inputs| {
        noted.lock().unwrap().push(fp32(&inputs[0]));
        if inputs[0].shape[0] == 1 {
            passing.0.pass()
        } else {
            passing.1.pass()
        }
        double(inputs)
    });
    let engine = Engine::start(vec![model]);
    let mut client = engine.connect();
    client.index();
    one.shut();
    several.shut();
    client.infer(1, ask(1.0));
    one.await_held(1);
    client.infer_all([(2, ask(2.0)), (3, ask(-3.0)), (4, ask(4.0)), (5, ask(5.0))]);
    client.barrier();
    one.open();
    assert_eq!(client.reply().unwrap().id, 1);
    several.await_held(1);
    for id in [2, 4] {
        client.send(Kind::Cancel, id, &Infer::default(), Bytes::new());
    }
    client.barrier();
    runs.lock().unwrap().clear();
    several.open();
    let answers = client.replies(2);
    assert_eq!((answers[0].id, answers[0].status()), (3, Status::ModelFailed));
    assert_eq!((answers[1].id, answers[1].fp32("y")), (5, vec![10.0, 1.0]));
    let again = runs.lock().unwrap().concat();
    assert!(!again.contains(&2.0) && !again.contains(&4.0), "{again:?}");
    assert!(client.barrier().is_empty(), "who has cancelled is told nothing");
}

#[test]
fn a_row_whose_output_must_be_finite_and_is_not_fails_alone() {
    let gate = Arc::new(Gate::default());
    let passing = Arc::clone(&gate);
    let mut spec = rows_spec(&[("x", 2)], &[("y", 2)], 16);
    spec.outputs[0].finite = true;
    let model = Scripted::new(spec, move |inputs| {
        passing.pass();
        double(inputs)
    });
    let load: Load =
        Box::new(|| Ok(Loaded { model: Box::new(model), golden: None, preprocess: None, files: None }));
    let engine = Engine::start(vec![to_load("double", 1, load)]);
    let mut client = engine.connect();
    client.index();
    gate.shut();
    client.infer(1, ask(1.0));
    gate.await_held(1);
    client.infer_all([(2, ask(2.0)), (3, ask(f32::MAX)), (4, ask(4.0))]);
    client.barrier();
    gate.open();
    let replies = client.replies(4);
    let statuses: Vec<_> = replies.iter().map(Answer::status).collect();
    assert_eq!(statuses, [Status::Ok, Status::Ok, Status::ModelFailed, Status::Ok]);
    assert_eq!(replies[2].reply.message, "output `y` is not finite");
    for (reply, y) in [(&replies[1], 4.0), (&replies[3], 8.0)] {
        assert_eq!(reply.fp32("y"), [y, 1.0]);
        assert_eq!(reply.reply.timing.as_ref().unwrap().batch_requests, 3, "they ran together, once");
    }
}

#[test]
fn a_row_beyond_the_declared_bounds_is_refused_and_those_that_ran_with_it_are_answered() {
    let gate = Arc::new(Gate::default());
    let (seen, passing) = (Arc::new(Mutex::new(Vec::new())), Arc::clone(&gate));
    let noted = Arc::clone(&seen);
    let mut spec = rows_spec(&[("ids", 1)], &[("y", 1)], 4);
    let form = spec.inputs[0].form.as_mut().unwrap();
    form.datatype = Datatype::Int64;
    spec.inputs[0].bounds = Some((0, 9));
    let model = Scripted::new(spec, move |inputs| {
        passing.pass();
        let bytes = inputs[0].parts.concat();
        let ids: Vec<i64> =
            bytes.chunks_exact(8).map(|id| i64::from_le_bytes(id.try_into().unwrap())).collect();
        noted.lock().unwrap().extend(&ids);
        let y: Vec<f32> = ids.iter().map(|id| *id as f32).collect();
        Ok(vec![output_fp32("y", &inputs[0].shape, &y)])
    });
    let load: Load =
        Box::new(|| Ok(Loaded { model: Box::new(model), golden: None, preprocess: None, files: None }));
    let engine = Engine::start(vec![to_load("ids", 1, load)]);
    let mut client = engine.connect();
    client.index();
    let ask = |ids: &[i64]| {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        Asked::of("ids").input("ids", Datatype::Int64, &[ids.len() as u64, 1], &bytes)
    };
    gate.shut();
    client.infer(1, ask(&[1]));
    gate.await_held(1);
    seen.lock().unwrap().clear();
    // The fourth runs in pieces, and its second one is bad.
    client.infer_all([
        (2, ask(&[2])),
        (3, ask(&[10])),
        (4, ask(&[4])),
        (5, ask(&[1, 1, 1, 1, 1, 1, 1, 1, -1])),
    ]);
    assert!(client.barrier().is_empty(), "what waits has been read by nobody");
    gate.open();
    let replies = client.replies(5);
    let refused = |id: usize, got: i64| {
        let (status, message) = (replies[id - 1].status(), &replies[id - 1].reply.message);
        let says = format!("input `ids`: {got} is not within 0 to 9");
        assert_eq!((status, message), (Status::InvalidArgument, &says));
    };
    refused(3, 10);
    refused(5, -1);
    for (id, y) in [(1, 1.0), (2, 2.0), (4, 4.0)] {
        assert_eq!(replies[id - 1].fp32("y"), [y]);
    }
    let seen = seen.lock().unwrap();
    assert!(!seen.contains(&10) && !seen.contains(&-1), "{seen:?}");
    assert_eq!(client.barrier().len(), 0);
}
