//! `penstock-engine` as a process: how it starts, what it says when it cannot, and how it ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/demo/models");

fn engine(socket: &Path, models: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-engine"));
    command.arg("--socket").arg(socket).arg("--models").arg(models);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs an engine that cannot start; its one line.
fn refusal(socket: &Path, models: &Path) -> String {
    let Output { status, stderr, .. } = engine(socket, models).output().expect("the binary is built");
    assert_eq!(status.code(), Some(1));
    let text = String::from_utf8(stderr).expect("text");
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim().to_owned()
}

/// An engine that listens and has loaded everything.
fn started(folder: &TempDir, arguments: &[&str]) -> Child {
    let mut child = engine(&folder.path().join("engine.sock"), Path::new(DEMO))
        .args(arguments)
        .spawn()
        .expect("the binary is built");
    let mut log = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("version=2") {
        line.clear();
        assert!(log.read_line(&mut line).expect("text") > 0, "the engine must live");
    }
    child.stderr = Some(log.into_inner());
    child
}

fn assert_ends_well(mut child: Child, folder: &TempDir) {
    assert_eq!(child.wait().expect("a child").code(), Some(0));
    assert!(!folder.path().join("engine.sock").exists(), "the socket file goes with it");
}

#[test]
fn what_hinders_a_start_is_said_in_one_line_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let models = folder.path().join("models");
    assert!(
        refusal(&socket, &models).ends_with("give the folder that holds NAME/VERSION/model.pt with --models")
    );
    assert!(
        refusal(&folder.path().join("no/socket"), Path::new(DEMO)).ends_with("does not exist; create it")
    );
    let long = folder.path().join("x".repeat(120));
    assert!(refusal(&long, Path::new(DEMO)).ends_with("at most 107 work; give a shorter one with --socket"));
}

#[test]
fn it_ends_when_its_supervisor_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = started(&folder, &["--supervised"]);
    drop(child.stdin.take());
    assert_ends_well(child, &folder);
}

#[test]
fn it_ends_when_it_is_told_to_and_a_second_one_may_follow() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let child = started(&folder, &["--lanes", "1", "--device", "cpu"]);
        let socket = folder.path().join("engine.sock");
        assert!(
            refusal(&socket, Path::new(DEMO))
                .starts_with("penstock-engine: an engine is already listening on ")
        );
        let told = Command::new("kill").arg(child.id().to_string()).status().unwrap();
        assert!(told.success());
        assert_ends_well(child, &folder);
    }
}

#[test]
fn killed_it_leaves_a_socket_that_the_next_one_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let mut killed = started(&folder, &[]);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(folder.path().join("engine.sock").exists());
    let mut next = started(&folder, &["--supervised"]);
    drop(next.stdin.take());
    let mut rest = String::new();
    next.stderr.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_ends_well(next, &folder);
}

/// A model `x: [-1, 1] → y: [-1, 1]` that does this and returns `x`.
fn define(version: &Path, body: &str) {
    std::fs::create_dir_all(version).expect("a folder");
    let text = format!("def forward(self, x):\n    {body}\n    return x\n");
    engine::torch::define(&version.join("model.pt"), &[], &text).expect("TorchScript");
    let manifest = "inputs: [{name: x, datatype: FP32, shape: [-1, 1]}]\noutputs: [{name: 'y', datatype: FP32, shape: [-1, 1]}]";
    std::fs::write(version.join("model.yaml"), manifest).expect("a file");
}

#[test]
fn neither_a_file_that_is_never_read_to_its_end_nor_a_warm_up_that_never_ends_holds_up_other_models() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    std::fs::create_dir_all(models.join("a-pipe/1")).unwrap();
    assert!(Command::new("mkfifo").arg(models.join("a-pipe/1/model.pt")).status().unwrap().success());
    define(&models.join("b-endless/1"), "while bool((x * 0 == 0).any()):\n        x = x * 0");
    define(&models.join("c-sound/1"), "x = x * 2");
    let mut child = engine(&folder.path().join("engine.sock"), &models)
        .args(["--run-seconds-max", "1"])
        .spawn()
        .expect("the binary is built");
    let log = BufReader::new(child.stderr.take().expect("piped"));
    let mut set_aside = Vec::new();
    for line in log.lines() {
        let line = line.expect("text");
        if line.contains("no run of its trial has ended for 1 s") {
            set_aside.push(line);
        } else if line.contains("ready, ") {
            assert!(line.contains("c-sound"), "{line}");
            break;
        }
    }
    assert_eq!(set_aside.len(), 2, "{set_aside:?}");
    assert!(set_aside[0].contains("a-pipe") && set_aside[1].contains("b-endless"), "{set_aside:?}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_model_that_hangs_ends_the_engine_which_names_it() {
    let folder = tempfile::tempdir().unwrap();
    define(&folder.path().join("models/endless/1"), "while bool((x > 100).any()):\n        x = x + 1");
    let socket = folder.path().join("engine.sock");
    let mut child = engine(&socket, &folder.path().join("models"))
        .args(["--run-seconds-max", "1"])
        .spawn()
        .expect("the binary is built");
    let mut log = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert!(log.read_line(&mut line).expect("text") > 0, "the engine must live");
    }
    let mut outbox = wire::Outbox::new();
    let x = wire::TensorMeta {
        name: "x".into(),
        datatype: wire::Datatype::Fp32 as u32,
        shape: vec![1, 1],
        offset: 0,
        bytes: 0,
    };
    let infer =
        wire::Infer { model: "endless".into(), version: 1, inputs: vec![x], ..wire::Infer::default() };
    outbox.push(wire::Kind::Infer, 1, &infer, 1000f32.to_le_bytes().to_vec().into());
    let mut connection = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    connection.write_all(&outbox.take().concat()).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut said = Vec::new();
    connection.read_to_end(&mut said).expect("the engine ends within its time");
    assert_eq!(child.wait().expect("a child").code(), Some(1));
    let mut rest = String::new();
    log.read_to_string(&mut rest).expect("text");
    assert!(rest.contains("model `endless` version 1 has not come back for 1 s"), "{rest}");
}

#[test]
fn a_version_whose_trial_kills_the_engine_twice_does_not_get_a_third_engine() {
    let folder = tempfile::tempdir().unwrap();
    let (models, socket) = (folder.path().join("models"), folder.path().join("engine.sock"));
    let version = models.join("hangs/1");
    std::fs::create_dir_all(&version).unwrap();
    // Reading it never ends, so that the engine can be killed in the middle, as a crash of libtorch would.
    assert!(Command::new("mkfifo").arg(version.join("model.pt")).status().unwrap().success());
    for time in 1..=2 {
        let mut child = engine(&socket, &models).spawn().expect("the binary is built");
        let begun = format!("\"times\":{time}");
        while !std::fs::read_to_string(folder.path().join("engine.sock.trial"))
            .is_ok_and(|text| text.contains(&begun))
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut child = engine(&socket, &models).spawn().expect("the binary is built");
    let mut log = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("unavailable: ") {
        line.clear();
        assert!(log.read_line(&mut line).expect("text") > 0, "the engine must live");
    }
    assert!(line.contains("its trial has ended the engine 2 times; it is tried again in 5 min"), "{line}");
    child.kill().unwrap();
    child.wait().unwrap();
}
