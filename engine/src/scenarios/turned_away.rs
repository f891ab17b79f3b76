//! What is not run, because nobody wants it, it would be late or there is no room.

use super::*;
use crate::model::{Form, Spec};

/// A model that doubles behind a gate; and how many rows it was asked for.
fn counted() -> (Candidate, Arc<Gate>, Arc<AtomicUsize>) {
    let (gate, rows) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    let (passing, counting) = (Arc::clone(&gate), Arc::clone(&rows));
    let model = candidate("double", move |inputs| {
        counting.fetch_add(inputs[0].shape[0] as usize, Ordering::SeqCst);
        passing.pass();
        double(inputs)
    });
    (model, gate, rows)
}

/// A model that doubles, single rows behind the first gate and several behind the second.
fn behind_two_gates() -> (Candidate, Arc<Gate>, Arc<Gate>) {
    let (one, several) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
    let passing = (Arc::clone(&one), Arc::clone(&several));
    let model = candidate("double", move |inputs| {
        if inputs[0].shape[0] == 1 {
            passing.0.pass()
        } else {
            passing.1.pass()
        }
        double(inputs)
    });
    (model, one, several)
}

#[test]
fn a_cancelled_request_is_not_run() {
    let (model, gate, rows) = counted();
    let engine = Engine::start(vec![model]);
    let mut client = engine.connect();
    client.index();
    gate.shut();
    rows.store(0, Ordering::SeqCst);
    client.infer(1, ask(1.0));
    gate.await_held(1);
    client.infer(2, ask(2.0));
    client.infer(3, ask(3.0));
    client.send(Kind::Cancel, 2, &Infer::default(), Bytes::new());
    client.barrier();
    gate.open();
    let replies = client.replies(2);
    assert_eq!((replies[0].id, replies[1].id), (1, 3));
    assert_eq!(replies[1].reply.timing.as_ref().unwrap().batch_requests, 1);
    assert!(client.barrier().is_empty());
    assert_eq!(rows.load(Ordering::SeqCst), 2);
}

#[test]
fn who_leaves_while_a_batch_runs_does_not_shift_the_answers_of_the_others() {
    let (model, one, several) = behind_two_gates();
    let engine = Engine::start(vec![model]);
    let (mut leaver, mut stayer) = (engine.connect(), engine.connect());
    leaver.index();
    stayer.index();
    one.shut();
    several.shut();
    leaver.infer(1, ask(1.0));
    one.await_held(1);
    leaver.infer(2, ask(2.0));
    leaver.barrier();
    stayer.infer(3, ask(3.0));
    stayer.barrier();
    one.open();
    several.await_held(1);
    drop(leaver);
    stayer.barrier();
    several.open();
    let answer = stayer.reply().unwrap();
    assert_eq!((answer.id, answer.fp32("y")), (3, vec![6.0, 1.0]));
}

#[test]
fn who_cancels_while_a_batch_runs_is_told_nothing_and_its_mates_are_answered() {
    let (model, one, several) = behind_two_gates();
    let engine = Engine::start(vec![model]);
    let (mut client, mut other) = (engine.connect(), engine.connect());
    client.index();
    other.index();
    one.shut();
    several.shut();
    client.infer(1, ask(1.0));
    one.await_held(1);
    client.infer_all((2..=4).map(|id| (id, ask(id as f32))));
    client.barrier();
    other.infer(3, ask(30.0));
    other.barrier();
    one.open();
    assert_eq!(client.reply().unwrap().id, 1);
    several.await_held(1);
    for id in [2, 3] {
        client.send(Kind::Cancel, id, &Infer::default(), Bytes::new());
    }
    client.barrier();
    several.open();
    let (answer, others) = (client.reply().unwrap(), other.reply().unwrap());
    assert_eq!((answer.id, answer.fp32("y")), (4, vec![8.0, 1.0]));
    assert_eq!((others.id, others.fp32("y")), (3, vec![60.0, 1.0]), "another's of the same id");
    assert_eq!(answer.reply.timing.as_ref().unwrap().batch_requests, 4, "they ran together");
    assert!(client.barrier().is_empty(), "who has cancelled is told nothing");
    nothing_is_held(&mut other);
}

#[test]
fn a_proxy_that_goes_with_a_thousand_waiting_requests_leaves_nothing_behind() {
    let (model, gate, rows) = counted();
    let engine = Engine::start_with(vec![model], |settings| settings.queue.rows = 1001);
    let (mut leaver, mut stayer) = (engine.connect(), engine.connect());
    leaver.index();
    stayer.index();
    gate.shut();
    rows.store(0, Ordering::SeqCst);
    leaver.infer(1, ask(1.0));
    gate.await_held(1);
    let one = stayer.health().request_bytes;
    leaver.infer_all((2..=1001).map(|id| (id, ask(2.0))));
    assert!(leaver.barrier().is_empty(), "all of them wait");
    stayer.infer(1, ask(3.0));
    stayer.barrier();
    let all = stayer.health();
    assert_eq!((all.under_way, all.running, all.given_up), (1002, 1, 0));
    drop(leaver);
    // The engine hears of it when it next looks at that socket.
    while stayer.health().under_way > 2 {}
    let left = stayer.health();
    assert_eq!((left.under_way, left.given_up), (2, 1), "what runs for nobody, and the other's");
    assert!((one + 1..2 * one).contains(&left.request_bytes), "the other's has no outputs yet: {left:?}");
    gate.open();
    let answer = stayer.reply().unwrap();
    assert_eq!((answer.id, answer.fp32("y")), (1, vec![6.0, 1.0]));
    assert_eq!(rows.load(Ordering::SeqCst), 2, "nothing was run for nobody");
    nothing_is_held(&mut stayer);
}

/// A lane answers first, and lets go then.
fn nothing_is_held(client: &mut Client) {
    let waited = Instant::now();
    while client.health().request_bytes > 0 || client.health().under_way > 0 {
        assert!(waited.elapsed() < Duration::from_secs(60), "something is never let go");
    }
}

#[test]
fn an_expired_request_is_told_so_and_not_run() {
    let (_engine, mut client, gate) = engine_with_held_lane(|_| {});
    let sent = Instant::now();
    client.infer(2, ask(-2.0).budget_us(30_000));
    client.infer(3, ask(3.0).budget_us(3_600_000_000));
    while sent.elapsed() < Duration::from_millis(30) {
        assert!(client.barrier().is_empty(), "it waits");
    }
    gate.open();
    let replies = client.replies(3);
    assert_eq!(replies[1].status(), Status::DeadlineExceeded);
    assert_eq!(replies[2].fp32("y"), [6.0, 1.0]);
}

#[test]
fn a_request_that_would_be_late_is_refused_at_once_and_told_whether_waiting_helps() {
    let gate = Arc::new(Gate::default());
    let passing = Arc::clone(&gate);
    let model = candidate("slow", move |inputs| {
        std::thread::sleep(Duration::from_millis(20));
        passing.pass();
        double(inputs)
    });
    let engine = Engine::start(vec![model]);
    let mut client = engine.connect();
    client.index();
    client.infer(0, Asked::of("slow").fp32("x", &[16, 2], &[1.0; 32]).budget_us(2_000_000));
    assert_eq!(client.reply().unwrap().status(), Status::Ok);
    // A lane answers first and tells the queue then: until it has, nothing is known.
    let answer = (100..200)
        .map(|id| {
            client.infer(id, Asked::of("slow").fp32("x", &[1, 2], &[1.0, 0.5]).budget_us(5_000));
            client.reply().unwrap()
        })
        .find(|answer| answer.reply.message.starts_with("too little is left"))
        .expect("it is known in the end");
    assert_eq!((answer.status(), answer.reply.retry_after_us), (Status::DeadlineExceeded, 0));
    gate.shut();
    client.infer(2, Asked::of("slow").fp32("x", &[1, 2], &[1.0, 0.5]).budget_us(2_000_000));
    gate.await_held(1);
    client.infer_all(
        (3..60).map(|id| (id, Asked::of("slow").fp32("x", &[16, 2], &[1.0; 32]).budget_us(500_000))),
    );
    let refused = client.barrier();
    gate.open();
    assert!(
        (25..50).contains(&refused.len()),
        "{} of 57 batches of 20 ms and a little do not fit",
        refused.len()
    );
    for answer in refused {
        assert_eq!(answer.status(), Status::Overloaded);
        assert!(answer.reply.message.starts_with("it would be late"), "{}", answer.reply.message);
        assert!(answer.reply.retry_after_us > 400_000, "{}", answer.reply.retry_after_us);
    }
}

#[test]
fn a_full_queue_refuses_and_a_lost_connection_frees_its_place() {
    let (engine, mut client, gate) = engine_with_held_lane(|settings| settings.queue.rows = 1);
    client.infer(2, ask(-2.0));
    client.infer(3, ask(3.0));
    let refused = client.reply().unwrap();
    assert_eq!((refused.id, refused.status()), (3, Status::Overloaded));
    drop(client);

    let mut other = engine.connect();
    let mut id = 10;
    while other.is_refused(id, ask(4.0)) {
        id += 1;
    }
    gate.open();
    let answer = other.reply().unwrap();
    assert_eq!((answer.id, answer.fp32("y")), (id, vec![8.0, 1.0]));
}

#[test]
fn a_full_queue_has_room_for_who_matters_more_and_for_another_tenant() {
    let gate = Arc::new(Gate::default());
    let passing = Arc::clone(&gate);
    let model = candidate("double", move |inputs| {
        passing.pass();
        double(inputs)
    });
    let engine = Engine::start_with(vec![model], |settings| settings.queue.rows = 4);
    let (mut many, mut few) = (engine.connect(), engine.connect());
    many.index();
    few.index();
    let ask = |tenant, criticality| {
        let mut asked = Asked::of("double").fp32("x", &[1, 2], &[1.0, 0.5]);
        (asked.infer.tenant, asked.infer.criticality) = (tenant, criticality);
        asked
    };
    gate.shut();
    many.infer(1, ask(7, 0));
    gate.await_held(1);
    many.infer_all((2..=5).map(|id| (id, ask(7, 0))));
    many.barrier();
    few.infer(1, ask(8, 0));
    few.infer(2, ask(9, 1));
    let gone = [many.reply().unwrap(), many.reply().unwrap()];
    for (answer, id) in gone.iter().zip([5, 4]) {
        assert_eq!((answer.id, answer.status()), (id, Status::Overloaded));
        assert!(answer.reply.message.starts_with("it made way for somebody"), "{}", answer.reply.message);
    }
    many.infer(6, ask(7, 3));
    let refused = many.reply().unwrap();
    assert_eq!((refused.id, refused.status()), (6, Status::Overloaded), "nobody matters less");
    gate.open();
    assert!(many.replies(3).iter().chain(&few.replies(2)).all(|answer| answer.status() == Status::Ok));
}

#[test]
fn half_of_the_bytes_is_for_what_waits_and_runs_and_who_has_more_than_there_may_be_is_told_so() {
    // As much as two requests of 16 rows and 8 bytes each, with what is said beside them.
    let room = 4 * (16 * 8 + 60);
    let (_engine, mut client, gate) =
        engine_with_held_lane(|settings| settings.queue = Limits::halving(1000, room));
    let ask = |rows: u64| Asked::of("double").fp32("x", &[rows, 2], &vec![0.5; 2 * rows as usize]);
    gate.open();
    assert_eq!(client.reply().unwrap().id, 1);
    gate.shut();
    client.infer(2, ask(16));
    gate.await_held(1);
    client.infer(3, ask(16));
    assert!(client.barrier().is_empty(), "it waits");
    client.infer_all([(4, ask(16)), (5, ask(40))]);
    let told: Vec<_> = client.barrier().iter().map(|answer| (answer.id, answer.status())).collect();
    assert_eq!(told, [(4, Status::Overloaded), (5, Status::InvalidArgument)]);
    let health = client.health();
    // Both, and a copy of what runs, and its outputs.
    assert!((4 * 128..room as u64).contains(&health.request_bytes), "{health:?}");
    assert_eq!(health.request_bytes_max, room as u64 * 3 / 2);
    gate.open();
    assert_eq!(client.replies(2).iter().map(|reply| reply.id).collect::<Vec<_>>(), [2, 3]);
    nothing_is_held(&mut client);
}

#[test]
fn large_answers_wait_in_the_model_until_those_before_them_are_read_and_cut_nobody_off() {
    const WIDE: usize = 100_000;
    let load: Load = Box::new(|| {
        let model = Scripted::new(rows_spec(&[("x", 1)], &[("y", WIDE as u64)], 16), |inputs| {
            let x = fp32(&inputs[0]);
            let y: Vec<f32> = x.iter().flat_map(|value| vec![*value; WIDE]).collect();
            Ok(vec![output_fp32("y", &[x.len() as u64, WIDE as u64], &y)])
        });
        Ok(Loaded { model: Box::new(model), golden: None, preprocess: None, files: None })
    });
    // There is room for two answers, and all together are ten times what may be left unread.
    let engine = Engine::start_with(vec![to_load("wide", 1, load)], |settings| {
        settings.queue = Limits { rows: 1000, bytes: 100_000, run_bytes: 2 * 4 * WIDE + 1000 };
        settings.unread_bytes_max = 4 * 4 * WIDE;
    });
    let mut client = engine.connect();
    client.index();
    client.infer_all((1..=40).map(|id| (id, Asked::of("wide").fp32("x", &[1, 1], &[id as f32]))));
    let mut other = engine.connect();
    let mut waits_for_room = || {
        let health = other.health();
        health.running == 0 && (1..40).contains(&health.under_way)
    };
    assert!((0..100_000).any(|_| waits_for_room()), "nothing more runs until something is read");
    let answers = client.replies(40);
    assert!(answers.iter().all(|answer| answer.fp32("y") == vec![answer.id as f32; WIDE]));
}

/// Of a model of which only a run tells how wide its output is.
fn of_any_width() -> Spec {
    let mut spec = rows_spec(&[("x", 1)], &[("y", 1)], 16);
    let form = Form { datatype: Datatype::Fp32, shape: vec![Dimension::Free, Dimension::Free] };
    spec.outputs[0].form = Some(form);
    spec
}

#[test]
fn where_one_batch_brings_more_than_may_wait_to_be_read_some_are_told_so_and_nobody_is_cut_off() {
    const WIDE: usize = 10_000;
    let gate = Arc::new(Gate::default());
    let passing = Arc::clone(&gate);
    let load: Load = Box::new(move || {
        let model = Scripted::new(of_any_width(), move |inputs| {
            passing.pass();
            let x = fp32(&inputs[0]);
            // As wide as no trial has seen it.
            let wide = if x[0] == 0.5 { WIDE } else { 1 };
            let y: Vec<f32> = x.iter().flat_map(|value| vec![*value; wide]).collect();
            Ok(vec![output_fp32("y", &[x.len() as u64, wide as u64], &y)])
        });
        Ok(Loaded { model: Box::new(model), golden: None, preprocess: None, files: None })
    });
    let engine = Engine::start_with(vec![to_load("wide", 1, load)], |settings| {
        settings.unread_bytes_max = 4 * 4 * WIDE;
    });
    let mut client = engine.connect();
    client.index();
    let ask = || Asked::of("wide").fp32("x", &[1, 1], &[0.5]);
    gate.shut();
    client.infer(0, ask());
    gate.await_held(1);
    client.infer_all((1..=8).map(|id| (id, ask())));
    client.barrier();
    gate.open();
    let answers = client.replies(9);
    let of = |status| answers.iter().filter(|answer| answer.status() == status).count();
    assert!(of(Status::Ok) >= 4 && of(Status::Ok) + of(Status::Overloaded) == 9, "{}", of(Status::Ok));
    client.infer(9, ask());
    assert_eq!(client.reply().unwrap().status(), Status::Ok, "the connection lives");
}

#[test]
fn many_who_wait_for_large_outputs_are_all_answered_and_a_small_model_beside_them_is_not_refused() {
    const WIDE: usize = 10_000;
    const MANY: u64 = 30;
    // Outputs of two rows fit, of a wide model of which only a run tells how wide it is.
    let run_bytes = 2 * 4 * WIDE + 1000;
    let (gate, most) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    let (passing, largest) = (Arc::clone(&gate), Arc::clone(&most));
    let load: Load = Box::new(move || {
        let model = Scripted::new(of_any_width(), move |inputs| {
            passing.pass();
            let x = fp32(&inputs[0]);
            largest.fetch_max(x.len(), Ordering::SeqCst);
            let y: Vec<f32> = x.iter().flat_map(|value| vec![*value; WIDE]).collect();
            Ok(vec![output_fp32("y", &[x.len() as u64, WIDE as u64], &y)])
        });
        Ok(Loaded { model: Box::new(model), golden: None, preprocess: None, files: None })
    });
    let models = vec![to_load("wide", 1, load), candidate("double", double)];
    let limits = Limits { rows: 1000, bytes: 100_000, run_bytes };
    let engine = Engine::start_with(models, |settings| settings.queue = limits);
    let (mut client, mut other) = (engine.connect(), engine.connect());
    client.index();
    other.index();
    let ask_wide = |rows: u64| Asked::of("wide").fp32("x", &[rows, 1], &vec![0.5; rows as usize]);
    gate.shut();
    most.store(0, Ordering::SeqCst);
    client.infer(0, ask_wide(1));
    gate.await_held(1);
    client.infer_all((1..=MANY).map(|id| (id, ask_wide(1))));
    // More than there is room for, and than may ever be held.
    client.infer_all([(MANY + 1, ask_wide(3)), (MANY + 2, ask_wide(6))]);
    let refused = client.barrier();
    let told: Vec<_> = refused.iter().map(|answer| (answer.id, answer.status())).collect();
    assert_eq!(told, [(MANY + 2, Status::InvalidArgument)], "{refused:?}");
    let message = &refused[0].reply.message;
    assert!(message.ends_with(&format!("at most {} are held at once", limits.all_bytes())), "{message}");
    other.infer(1, ask(4.0));
    assert!(other.barrier().is_empty(), "it waits");
    assert!(other.health().request_bytes < 4 * WIDE as u64 + 20_000, "of one run, and of inputs");
    gate.open();
    let answers = client.replies(MANY as usize + 2);
    assert!(answers.iter().all(|answer| answer.status() == Status::Ok));
    assert_eq!(answers[MANY as usize + 1].fp32("y").len(), 3 * WIDE);
    assert_eq!(other.reply().unwrap().fp32("y"), [8.0, 1.0]);
    assert_eq!(most.load(Ordering::SeqCst), 3, "two at a time, and the one that is larger alone");
    nothing_is_held(&mut other);
}
