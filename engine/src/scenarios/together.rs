//! What runs together, and that everybody gets its own rows of it.

use super::*;

#[test]
fn a_lane_takes_nothing_before_its_thread_has_warmed_up() {
    let gate = Arc::new(Gate::default());
    let (told, threads) = mpsc::channel();
    let passing = Arc::clone(&gate);
    gate.shut();
    let engine = Engine::start_with(vec![candidate("double", double)], |settings| {
        settings.lanes = 2;
        settings.warm_up = Some(Arc::new(move || {
            passing.pass();
            told.send(std::thread::current().name().map(str::to_owned)).unwrap();
        }));
    });
    let mut client = engine.connect();
    client.index();
    client.infer(1, ask(1.0));
    assert!(client.barrier().is_empty(), "it waits");
    gate.open();
    assert_eq!(client.reply().unwrap().fp32("y"), [2.0, 1.0]);
    let mut names = [threads.recv().unwrap(), threads.recv().unwrap()].map(Option::unwrap);
    names.sort();
    assert_eq!(names, ["lane-0", "lane-1"]);
    drop((client, engine));
    assert!(threads.try_recv().is_err(), "once each");
}

#[test]
fn requests_that_wait_run_together_and_each_gets_its_own_rows() {
    let (_engine, mut client, gate) = engine_with_held_lane(|_| {});
    client.infer(2, ask(2.0));
    client.infer(3, Asked::of("double").fp32("x", &[2, 2], &[3.0, 4.0, 5.0, 6.0]));
    client.infer(4, ask(7.0));
    client.barrier();
    gate.open();
    let replies = client.replies(4);
    assert_eq!(replies[0].fp32("y"), [2.0, 1.0]);
    assert_eq!(replies[1].fp32("y"), [4.0, 1.0]);
    assert_eq!(replies[2].fp32("y"), [6.0, 8.0, 10.0, 12.0]);
    assert_eq!(replies[2].output("y").0.shape, [2, 2]);
    assert_eq!(replies[3].fp32("y"), [14.0, 1.0]);
    for reply in &replies[1..] {
        let timing = reply.reply.timing.as_ref().unwrap();
        assert_eq!((timing.batch_rows, timing.batch_requests), (4, 3));
        assert_eq!((timing.received_unix_ns, &timing.batch), (0, &None));
        let phases = timing.phases.unwrap();
        assert!(phases.infer_ns > 0 && phases.output_ns > 0, "{phases:?}");
    }
    let timings = replies.iter().map(|reply| reply.reply.timing.as_ref().unwrap());
    let told =
        timings.map(|timing| (timing.rows, timing.runs.iter().map(|run| run.rows).collect::<Vec<_>>()));
    let expected = [(1, vec![1]), (1, vec![4]), (2, vec![]), (1, vec![])];
    assert_eq!(told.collect::<Vec<_>>(), expected, "each batch is told of once");
}

#[test]
fn the_first_traced_member_of_a_batch_carries_the_list_of_all() {
    let (_engine, mut client, gate) = engine_with_held_lane(|_| {});
    client.infer(2, ask(2.0));
    client.infer(3, ask(3.0).traced(3));
    client.infer(4, ask(4.0).traced(4));
    client.barrier();
    gate.open();
    let timings: Vec<_> = client.replies(4).into_iter().map(|answer| answer.reply.timing.unwrap()).collect();
    let batch = timings[2].batch.clone().unwrap();
    assert_eq!(batch.members.iter().map(|member| member.span_id[0]).collect::<Vec<_>>(), [3, 4]);
    assert_eq!((batch.positions, &timings[1].batch, &timings[3].batch), (vec![1, 2], &None, &None));
    let of_three = u64::from_be_bytes([3; 8]);
    for (position, timing) in timings[1..].iter().enumerate() {
        assert_eq!(timing.batch_id, timings[1].batch_id, "all know the batch, traced or not");
        assert_eq!((timing.batch_trace_high, timing.batch_trace_low), (of_three, of_three));
        assert_eq!((timing.position, timing.closed()), (position as u32, Closed::Everything));
    }
    assert_ne!((timings[0].batch_id, timings[1].batch_id), (timings[1].batch_id, 0));
    assert_eq!(timings[0].batch_trace_high, 0, "nobody in it is traced");
    assert!(timings[2].received_unix_ns > 1_600_000_000_000_000_000);
}

#[test]
fn what_is_larger_than_a_batch_runs_in_pieces_and_comes_back_whole() {
    let engine = Engine::start(vec![candidate("double", double)]);
    let mut client = engine.connect();
    assert_eq!(client.index()[0].max_batch, 16);
    let values: Vec<f32> = (0..100).map(|value| value as f32).collect();
    client.infer(1, Asked::of("double").fp32("x", &[50, 2], &values));
    let answer = client.reply().unwrap();
    assert_eq!(answer.output("y").0.shape, [50, 2]);
    assert_eq!(answer.fp32("y"), values.iter().map(|value| value * 2.0).collect::<Vec<_>>());
    let timing = answer.reply.timing.as_ref().unwrap();
    let rows: Vec<u32> = timing.runs.iter().map(|run| run.rows).collect();
    assert_eq!((timing.rows, rows.iter().sum::<u32>()), (50, 50), "it tells of every run: {rows:?}");
    // A piece that fails is the request's failure, told once.
    let values: Vec<f32> = (0..100).map(|value| if value == 70 { -1.0 } else { 1.0 }).collect();
    client.infer(2, Asked::of("double").fp32("x", &[50, 2], &values));
    let answer = client.reply().unwrap();
    assert_eq!((answer.id, answer.status()), (2, Status::ModelFailed));
    assert!(client.barrier().is_empty(), "one answer");
}

#[test]
fn in_a_crowd_every_caller_gets_its_own_answer_once() {
    let engine = Engine::start_with(vec![candidate("double", double)], |settings| settings.lanes = 3);
    engine.connect().index();
    let engine = &engine;
    let caller = move |number: u64| {
        let mut client = engine.connect();
        for round in 0..40 {
            let ids: Vec<u64> = (1..=20).map(|at| round * 100 + at).collect();
            let value = |id: u64| (number * 10_000 + id) as f32;
            client.infer_all(ids.iter().map(|id| (*id, ask(value(*id)))));
            for id in ids.iter().filter(|id| id.is_multiple_of(7)) {
                client.send(Kind::Cancel, *id, &Infer::default(), Bytes::new());
            }
            let mut owed: Vec<u64> = ids.iter().copied().filter(|id| !id.is_multiple_of(7)).collect();
            let mut cancelled: Vec<u64> = ids.iter().copied().filter(|id| id.is_multiple_of(7)).collect();
            while !owed.is_empty() {
                let answer = client.reply().unwrap();
                assert_eq!(answer.fp32("y"), [2.0 * value(answer.id), 1.0]);
                // What was already running when it was cancelled may still be answered, in this round or a later one.
                if answer.id / 100 == round {
                    let list = if answer.id.is_multiple_of(7) { &mut cancelled } else { &mut owed };
                    let at = list.iter().position(|id| *id == answer.id).expect("one answer each");
                    list.remove(at);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || caller(number));
        }
    });
}

#[test]
fn a_model_that_failed_its_trial_never_runs_twice_at_once() {
    let inside = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Gate::default());
    let (counted, highest, passing) = (Arc::clone(&inside), Arc::clone(&most), Arc::clone(&gate));
    let model = candidate("double", move |inputs| {
        highest.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        passing.pass();
        counted.fetch_sub(1, Ordering::SeqCst);
        let coupled = inputs[0].shape[0] as f32;
        Ok(vec![output_fp32(
            "y",
            &inputs[0].shape,
            &fp32(&inputs[0]).iter().map(|x| x + coupled).collect::<Vec<_>>(),
        )])
    });
    let engine = Engine::start_with(vec![model, candidate("other", double)], |settings| {
        settings.lanes = 3;
        // Measured on a busy machine, three threads may seem best, and a run of either would take all lanes' cores.
        settings.threads_per_lane = std::num::NonZeroUsize::new(1);
    });
    let mut client = engine.connect();
    let index = client.index();
    assert_eq!(index[0].max_batch, 1);
    assert!(index[0].reason.starts_with("not batched: rows change when they run together"), "{index:?}");
    gate.shut();
    for id in 1..=8 {
        client.infer(id, ask(id as f32));
    }
    gate.await_held(1);
    // Another model is not held up, and its answer shows that idle lanes have looked.
    client.infer(9, Asked::of("other").fp32("x", &[1, 2], &[1.0, 2.0]));
    assert_eq!(client.reply().unwrap().id, 9);
    gate.open();
    for answer in client.replies(8) {
        assert_eq!(answer.fp32("y"), [answer.id as f32 + 1.0, 1.5]);
        assert_eq!(answer.reply.timing.unwrap().batch_requests, 1);
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[test]
fn rows_that_depend_on_others_in_earnest_alone_are_found_and_not_batched_any_more() {
    // Made-up rows are never so large.
    let normalised = candidate("double", |inputs| {
        let x = fp32(&inputs[0]);
        let most = x.iter().copied().fold(0f32, f32::max);
        let y: Vec<f32> = x.iter().map(|x| if most > 100.0 { x / most } else { *x }).collect();
        Ok(vec![output_fp32("y", &inputs[0].shape, &y)])
    });
    let engine =
        Engine::start_with(vec![normalised], |settings| settings.audit_every = Some(crate::audit::EVERY));
    let mut client = engine.connect();
    assert_eq!(client.index()[0].max_batch, 16);
    let mut ask_all = |first: u64| {
        client.infer_all((first..first + 8).map(|id| (id, ask(1000.0 * (id - first + 1) as f32))));
        client.replies(8)
    };
    let is_found = || engine.connect().index()[0].reason == crate::audit::MIXES.why;
    let rounds = (1..500).find(|round| {
        ask_all(round * 10);
        is_found()
    });
    assert!(rounds.is_some(), "it goes on being batched");
    let answers = ask_all(10_000);
    assert!(answers.iter().all(|answer| answer.fp32("y")[0] == 1.0), "each is the largest of its own");
}

/// One above 500 comes twice; if another is left out beside it, the number is right and the rows are not.
fn twice(inputs: &[Gathered<'_>]) -> Result<Vec<Output>, ModelError> {
    let x = fp32(&inputs[0]);
    let rows = x.chunks(2).flat_map(|row| row.repeat(if row[0] > 500.0 { 2 } else { 1 }));
    let rows: Vec<f32> = rows.collect();
    Ok(vec![output_fp32("y", &[rows.len() as u64 / 2, 2], &rows)])
}

#[test]
fn a_model_that_has_given_another_number_of_rows_than_went_in_is_not_batched_any_more() {
    let engine = Engine::start(vec![candidate("double", twice)]);
    let mut client = engine.connect();
    client.index();
    let mut answer = |id, x| {
        client.infer(id, ask(x));
        (client.reply().unwrap().reply.status(), engine.connect().index()[0].reason.clone())
    };
    assert_eq!(answer(1, 1.0), (Status::Ok, String::new()));
    assert_eq!(answer(2, 600.0), (Status::ModelFailed, crate::audit::MISCOUNTS.why.into()));
    assert_eq!(answer(3, 1.0), (Status::Ok, crate::audit::MISCOUNTS.why.into()));
}

#[test]
fn a_wrong_number_of_rows_of_a_model_that_runs_row_by_row_concerns_its_caller_alone() {
    let engine = Engine::start(vec![candidate("double", |inputs| match inputs[0].shape[0] {
        1 => twice(inputs),
        _ => Err(ModelError::new("one row only")),
    })]);
    let mut client = engine.connect();
    let reason = client.index()[0].reason.clone();
    assert_eq!(reason, "not batched: several rows together fail: one row only");
    client.infer(1, ask(600.0));
    assert_eq!(client.reply().unwrap().reply.status(), Status::ModelFailed);
    client.infer(2, Asked::of("double").fp32("x", &[2, 2], &[1.0, 2.0, 3.0, 4.0]));
    assert_eq!(client.reply().unwrap().fp32("y"), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(engine.connect().index()[0].reason, reason);
}

#[test]
fn what_waits_when_rows_are_miscounted_runs_alone() {
    let (gate, together) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    let (passing, counted) = (Arc::clone(&gate), Arc::clone(&together));
    let engine = Engine::start(vec![candidate("double", move |inputs| {
        passing.pass();
        counted.fetch_add(usize::from(inputs[0].shape[0] > 1), Ordering::Relaxed);
        twice(inputs)
    })]);
    let mut client = engine.connect();
    client.index();
    gate.shut();
    client.infer(1, ask(1.0));
    gate.await_held(1);
    // More than one batch of them.
    client.infer_all((2..=50).map(|id| (id, ask(if id == 2 { 600.0 } else { id as f32 }))));
    client.barrier();
    together.store(0, Ordering::Relaxed);
    gate.open();
    let answers = client.replies(50);
    assert_eq!(together.load(Ordering::Relaxed), 1, "by that it is known");
    let requests = answers.iter().map(|answer| answer.reply.timing.as_ref().unwrap().batch_requests);
    assert_eq!(requests.collect::<Vec<_>>(), [1; 50]);
    assert_eq!(answers[1].status(), Status::ModelFailed);
    assert!(answers[2..].iter().all(|answer| answer.fp32("y")[0] == answer.id as f32));
}

#[test]
fn a_model_that_answers_with_others_what_it_fails_at_alone_is_not_batched_any_more() {
    let cowardly = candidate("double", |inputs| {
        let x = fp32(&inputs[0]);
        let is_alone = inputs[0].shape[0] == 1 && x[0] > 100.0;
        if is_alone {
            Err(ModelError::new("alone"))
        } else {
            Ok(vec![output_fp32("y", &inputs[0].shape, &x)])
        }
    });
    let engine =
        Engine::start_with(vec![cowardly], |settings| settings.audit_every = Some(crate::audit::EVERY));
    let mut client = engine.connect();
    client.index();
    let rounds = (1..500).find(|round| {
        client.infer_all((0..8).map(|id| (round * 10 + id, ask(1000.0))));
        client.replies(8);
        engine.connect().index()[0].reason == crate::audit::MIXES.why
    });
    assert!(rounds.is_some(), "it goes on being batched");
}

#[test]
fn what_draws_its_answers_is_not_taken_for_what_mixes_them() {
    let drawn = Arc::new(AtomicUsize::new(0));
    let model = candidate("double", move |inputs| {
        let x = fp32(&inputs[0]);
        let draw = if x[0] > 100.0 { drawn.fetch_add(1, Ordering::Relaxed) as f32 } else { 0.0 };
        Ok(vec![output_fp32("y", &inputs[0].shape, &x.iter().map(|x| x * draw).collect::<Vec<_>>())])
    });
    let engine = Engine::start_with(vec![model], |settings| settings.audit_every = Some(crate::audit::EVERY));
    let mut client = engine.connect();
    client.index();
    for round in 1..50 {
        client.infer_all((0..8).map(|id| (round * 10 + id, ask(1000.0))));
        client.replies(8);
    }
    assert_eq!(engine.connect().index()[0].reason, "");
}

#[test]
fn a_model_that_writes_to_what_it_keeps_for_input_that_no_trial_makes_up_is_found_out_and_runs_one_at_a_time()
{
    let (gate, written) = (Arc::new(Gate::default()), Arc::new(AtomicBool::new(false)));
    let (at_once, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (passing, writing, running, largest) =
        (Arc::clone(&gate), Arc::clone(&written), Arc::clone(&at_once), Arc::clone(&most));
    let load: Load = Box::new(move || {
        let model = Scripted::new(rows_spec(&[("x", 2)], &[("y", 2)], 16), move |inputs| {
            let x = fp32(&inputs[0]);
            let running_now = running.fetch_add(1, Ordering::SeqCst) + 1;
            largest.fetch_max(running_now, Ordering::SeqCst);
            writing.fetch_or(x.iter().any(|x| *x < -100.0), Ordering::SeqCst);
            passing.pass();
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(vec![output_fp32("y", &inputs[0].shape, &x)])
        });
        let model = Box::new(model.keeping(move || written.load(Ordering::SeqCst)));
        Ok(Loaded { model, golden: None, preprocess: None, files: None })
    });
    let engine = Engine::start_with(vec![to_load("double", 1, load)], |settings| {
        (settings.lanes, settings.cores) = (2, 2);
        settings.threads_per_lane = std::num::NonZeroUsize::new(1);
        settings.audit_every = Some(crate::audit::EVERY);
    });
    let mut client = engine.connect();
    client.index();
    client.infer(1, ask(-101.0));
    assert_eq!(client.reply().unwrap().status(), Status::Ok, "alone it is right");
    // The answer leaves first.
    let waited = Instant::now();
    while engine.connect().index()[0].reason != crate::audit::WRITES.why {
        assert!(waited.elapsed() < Duration::from_secs(60), "it is never found out");
    }
    gate.shut();
    most.store(0, Ordering::SeqCst);
    client.infer_all((2..6).map(|id| (id, ask(1.0))));
    gate.await_held(1);
    client.barrier();
    gate.open();
    let answers = client.replies(4);
    assert!(answers.iter().all(|answer| answer.reply.timing.as_ref().unwrap().batch_requests == 1));
    assert_eq!(most.load(Ordering::SeqCst), 1, "two lanes are there");
}
