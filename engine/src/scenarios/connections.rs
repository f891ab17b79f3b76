//! A connection from its first frame to its last, and the socket.

use super::*;

#[test]
fn a_connection_begins_with_who_the_engine_is_and_what_it_has() {
    let (let_load, may_load) = mpsc::channel::<()>();
    let load: Load = Box::new(move || {
        may_load.recv().unwrap();
        Err("not today".into())
    });
    let slow = to_load("slow", 7, load);
    let engine = Engine::start(vec![candidate("double", double), slow]);
    let mut client = engine.connect();

    let hello = client.frame().unwrap();
    assert_eq!(hello.kind, Kind::Hello);
    let hello = Hello::decode(hello.metadata).unwrap();
    assert_eq!(hello.pid, std::process::id());
    assert_eq!(hello.payload_bytes_max, 1 << 19, "no request and its copy may take more than all may");
    let mut index = Vec::new();
    while index.first().is_none_or(|entry: &ModelEntry| entry.state != ModelState::Ready as i32) {
        index = Index::decode(client.frame().unwrap().metadata).unwrap().models;
    }
    assert_eq!((index[0].name.as_str(), index[0].version, index[0].max_batch), ("double", 1, 16));
    assert_eq!(index[0].inputs[0].shape, [-1, 2]);
    assert_eq!(index[1].state(), ModelState::Loading);

    let ask_slow = Asked { infer: Infer { version: 7, ..Asked::of("slow").infer }, ..Asked::of("slow") };
    client.infer(1, ask_slow);
    let answer = client.reply().unwrap();
    assert_eq!(answer.status(), Status::NotFound);
    assert_eq!(answer.reply.message, "model `slow` version 7 is still loading; known versions are 7");

    let_load.send(()).unwrap();
    let index = client.index();
    assert_eq!((index[1].state(), index[1].reason.as_str()), (ModelState::Unavailable, "not today"));
}

#[test]
fn a_broken_stream_ends_its_own_connection_only() {
    let engine = Engine::start(vec![candidate("double", double)]);
    let (mut broken, mut sound) = (engine.connect(), engine.connect());
    sound.index();
    broken.socket.write_all(&[b'X'; 64]).unwrap();
    while broken.frame().is_some() {}
    let mut wrong_way = engine.connect();
    wrong_way.send(Kind::Reply, 1, &Reply::default(), Bytes::new());
    while wrong_way.frame().is_some() {}
    sound.infer(1, ask(1.0));
    assert_eq!(sound.reply().unwrap().status(), Status::Ok);
}

#[test]
fn memory_that_cannot_be_mapped_is_not_shared_and_what_should_lie_there_ends_its_own_connection() {
    let engine = Engine::start(vec![candidate("double", double)]);
    let (mut liar, mut sound) = (engine.connect(), engine.connect());
    let said = wire::Region { bytes: 1 << 20, block_bytes: 1 << 16 };
    liar.send(Kind::Region, 0, &said, Bytes::new()); // and no files beside it
    liar.index();
    liar.infer(1, ask(1.0));
    assert_eq!(liar.reply().unwrap().status(), Status::Ok);
    let placed = Some(wire::Placed { offset: 0, bytes: 8, credit: 0 });
    liar.send(Kind::Infer, 2, &Infer { placed, ..ask(1.0).infer }, Bytes::new());
    while let Some(frame) = liar.frame() {
        assert!(frame.kind != Kind::Reply && frame.kind != Kind::Region, "{frame:?}");
    }
    sound.index();
    sound.infer(1, ask(1.0));
    assert_eq!(sound.reply().unwrap().status(), Status::Ok);
}

#[test]
fn a_proxy_that_does_not_read_is_let_go() {
    let engine = Engine::start_with(vec![], |settings| settings.unread_bytes_max = 10_000);
    let mut deaf = engine.connect();
    let mut outbox = Outbox::new();
    outbox.push(Kind::Infer, 1, &Infer { model: "nobody".into(), ..Infer::default() }, Bytes::new());
    let frame = outbox.take().concat();
    while deaf.socket.write_all(&frame).is_ok() {}
    let mut other = engine.connect();
    other.barrier();
}

#[test]
fn when_told_to_stop_it_finishes_what_waits_and_takes_nothing_new() {
    let (mut engine, mut client, gate) = engine_with_held_lane(|_| {});
    client.infer(2, ask(2.0));
    client.barrier();
    engine.tell_to_stop();
    // The socket file goes when the listener does.
    while engine.socket.exists() {
        std::thread::yield_now();
    }
    let mut id = 3;
    while !client.is_refused(id, ask(3.0)) {
        client.send(Kind::Cancel, id, &Infer::default(), Bytes::new());
        id += 1;
    }
    gate.open();
    let answers: Vec<_> = std::iter::from_fn(|| client.reply()).filter(|answer| answer.id < 3).collect();
    assert_eq!(answers.iter().map(|answer| answer.status()).collect::<Vec<_>>(), [Status::Ok, Status::Ok]);
    engine.join();
}

/// The gate stays shut, and so the run stays where it is.
#[test]
fn when_told_to_stop_it_does_not_wait_for_a_run_that_nobody_waits_for() {
    let (mut engine, mut client, _gate) = engine_with_held_lane(|_| {});
    client.send(Kind::Cancel, 1, &Infer::default(), Bytes::new());
    client.barrier();
    let told = std::time::Instant::now();
    engine.tell_to_stop();
    engine.join();
    assert!(told.elapsed() < crate::listener::DRAIN, "it has waited for it");
}

#[test]
fn a_socket_is_taken_over_only_from_the_dead() {
    let engine = Engine::start(vec![]);
    let settings = |path: &PathBuf| Settings {
        socket: path.clone(),
        references: path.with_extension("references"),
        device: "cpu".into(),
        lanes: 1,
        cores: 1,
        threads_per_lane: None,
        run_max: Duration::from_secs(60),
        load_patience: Duration::from_secs(60),
        load_max: Duration::from_secs(60),
        audit_every: None,
        queue: Limits::halving(1, 1),
        memory: Memory { limit: u64::MAX, available: u64::MAX },
        device_memory: None,
        warm_up: None,
        unread_bytes_max: 1,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let refusal = |path: &PathBuf| Listener::bind(settings(path)).err().expect("must be refused").to_string();
    assert!(refusal(&engine.socket).starts_with("an engine is already listening on "));

    let folder = tempfile::tempdir().unwrap();
    let stale = folder.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(Listener::bind(settings(&stale)).is_ok());

    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(refusal(&file).ends_with("exists and is not a socket; remove it or give another --socket"));
    assert!(refusal(&folder.path().join("no/socket")).ends_with("does not exist; create it"));
    assert!(refusal(&folder.path().join("x".repeat(120))).starts_with("socket path has "));
}

#[test]
fn whoever_asks_how_much_is_held_is_told_it_without_what_the_allocator_keeps_once_that_is_given_back() {
    let engine = Engine::start_with(vec![candidate("double", double)], |settings| {
        settings.memory = Memory { limit: 1, available: 1 };
    });
    let (mut client, spare) = (engine.connect(), crate::memory::spare::Spare::new());
    let first = client.health();
    assert!(first.resident_bytes > 0);
    let told = || client.health().held_bytes;
    let held = first.held_bytes.or_else(|| std::iter::repeat_with(told).take(100_000).flatten().next());
    assert!(held.is_some_and(|bytes| bytes > 0) && spare.is_gone(), "{held:?}");
    assert_eq!(client.health().held_bytes, None, "it was told");
}
