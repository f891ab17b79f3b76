//! The policy file changes while requests go on: none fails, each sees one policy, and a mistake changes nothing.

use harness::{Behaviour, Client, ScriptedEngine, Stack, binary, eventually, infer_body, raw_exchange};
use rustix::process::Signal;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn all_to(version: u32) -> String {
    format!("models:\n  m:\n    split:\n      weights: {{{version}: 1}}\n")
}

/// The same, and whatever else a request shows of its policy is that version's own: its deadline and its tenant, which the
/// engine is told, and the limit that its answer names.
fn all_of(version: u32) -> String {
    let (deadline, limit, tenant) =
        if version == 1 { ("10s", "first", "x-one") } else { ("10m", "second", "x-two") };
    format!(
        "models: {{m: {{deadline: {deadline}, split: {{weights: {{{version}: 1}}}}}}}}\nlimits: [{{name: {limit}, key: {{header: x-one}}, rate: 1000000/s, burst: 1000000}}]\noverload: {{tenant: {{header: {tenant}}}}}\n"
    )
}

/// What the engine was told of each version's requests is that version's policy.
fn assert_unmixed(engine: &ScriptedEngine) {
    let tenant_of = |version| engine.told().into_iter().rev().find(|told| told.version == version);
    let tenants = [1, 2].map(|version| tenant_of(version).expect("it was asked").tenant);
    assert_ne!(tenants[0], tenants[1]);
    for told in engine.told() {
        let is_of_first = (told.tenant == tenants[0], told.budget_us <= 10_000_000);
        assert_eq!(is_of_first, (told.version == 1, told.version == 1), "{told:?}");
    }
}

fn start() -> (ScriptedEngine, Stack) {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let stack = Stack::builder().policies(&all_to(1)).external_engine(engine.socket()).start();
    (engine, stack)
}

fn ask(stack: &Stack) -> (String, String) {
    let answer = stack.client().infer("m", &[], &infer_body("x", [1, 1], &[0.0]));
    assert_eq!(answer.status, 200, "{}", answer.text());
    (answer.header("x-penstock-version").to_owned(), answer.header("x-penstock-generation").to_owned())
}

fn wait_for(stack: &Stack, version: &str) {
    eventually("the new policy to be in force", || (ask(stack).0 == version).then_some(()));
}

/// Through the admin port: each takes as long as it takes, and no file has to settle.
#[test]
fn a_thousand_swaps_under_load_fail_no_request_and_mix_no_generations() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let stack = Stack::builder().policies(&all_of(1)).external_engine(engine.socket()).start();
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| ask_until(&stack, &stop, &asked));
        scope.spawn(|| ask_until(&stack, &stop, &asked));
        let admin = Client::new(stack.admin);
        for swap in 0..1_000 {
            let tag = admin.get("/policy").header("etag").to_owned();
            let text = all_of(if swap % 2 == 0 { 2 } else { 1 });
            let put = admin.put("/policy", &[("if-match", &tag)], text.as_bytes());
            assert_eq!(put.status, 200, "swap {swap}: {}", put.text());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(asked.load(Ordering::Relaxed) > 1_000);
    assert_unmixed(&engine);
    assert_eq!(ask(&stack).1, "1001");
}

/// Odd generations are all of version 1, even ones of version 2.
fn ask_until(stack: &Stack, stop: &AtomicBool, asked: &AtomicUsize) {
    let client = stack.client();
    while !stop.load(Ordering::Relaxed) {
        let (body, headers) = (infer_body("x", [1, 1], &[0.0]), [("x-one", "a"), ("x-two", "b")]);
        let answer = client.infer("m", &headers, &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let generation: u32 = answer.header("x-penstock-generation").parse().expect("a number");
        let (version, limit) = if generation % 2 == 1 { ("1", "\"first\";") } else { ("2", "\"second\";") };
        assert_eq!(answer.header("x-penstock-version"), version);
        assert!(answer.header("ratelimit-policy").starts_with(limit), "{generation}: {:?}", answer.headers);
        asked.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn edits_under_load_fail_no_request_and_mix_no_generations() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let stack = Stack::builder().policies(&all_of(1)).external_engine(engine.socket()).start();
    let stop = AtomicBool::new(false);
    let asked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| ask_until(&stack, &stop, &asked));
        }
        for edit in 0..10 {
            let version = if edit % 2 == 0 { 2 } else { 1 };
            std::fs::write(&stack.policies, all_of(version)).expect("the file can be written");
            stack.wait_for_metric("penstock_policy_generation", f64::from(edit + 2));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(asked.load(Ordering::Relaxed) > 10);
    assert_unmixed(&engine);
    assert_eq!(ask(&stack).1, "11");
}

#[test]
fn a_mistake_changes_nothing_and_is_told_with_its_line() {
    let (_engine, stack) = start();
    std::fs::write(&stack.policies, "models:\n  m:\n    split:\n      weights: {2: -1}\n")
        .expect("the file can be written");
    eventually("the mistake to be counted", || {
        (stack.metric("penstock_policy_rejected_total") >= 1.0).then_some(())
    });
    assert_eq!(ask(&stack), ("1".into(), "1".into()));
    let log = stack.log();
    assert!(log.contains("policies.yaml:4:") && log.contains("weight"), "{log}");
    std::fs::write(&stack.policies, all_to(2)).expect("the file can be written");
    wait_for(&stack, "2");
}

/// Twelve megabytes of lines that are in order each.
#[test]
fn a_policy_that_is_too_large_is_refused_and_changes_nothing() {
    let (_engine, stack) = start();
    let lines = (0..350_000).map(|at| format!("  model-{at:06}: {{deadline: 2s}}\n")).collect::<String>();
    let large = format!("models:\n{lines}");
    assert!(large.len() > 10 << 20);
    std::fs::write(&stack.policies, &large).expect("the file can be written");
    stack.wait_for_metric("penstock_policy_rejected_total", 1.0);
    let log = stack.log();
    assert!(log.contains("it is too long, a policy has at most 1048576 bytes"), "{log}");
    assert_eq!(ask(&stack), ("1".into(), "1".into()));
    std::fs::write(&stack.policies, all_to(2)).expect("the file can be written");
    wait_for(&stack, "2");
}

#[test]
fn editors_that_save_by_renaming_are_followed() {
    let (_engine, stack) = start();
    for version in [2, 1, 2] {
        let beside = stack.folder().join(".policies.yaml.swp");
        std::fs::write(&beside, all_to(version)).expect("a file beside it");
        std::fs::rename(&beside, &stack.policies).expect("a rename");
        wait_for(&stack, &version.to_string());
    }
}

#[test]
fn a_config_maps_symlinks_are_followed() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let volume = tempfile::tempdir().expect("a temporary folder");
    let publish = |name: &str, version| {
        // As the kubelet does it: a dated folder, and `..data` swapped to it by a rename.
        std::fs::create_dir(volume.path().join(name)).expect("a folder");
        std::fs::write(volume.path().join(name).join("policies.yaml"), all_to(version)).expect("a file");
        std::os::unix::fs::symlink(name, volume.path().join("..data_tmp")).expect("a link");
        std::fs::rename(volume.path().join("..data_tmp"), volume.path().join("..data")).expect("a rename");
    };
    publish("..2026_01_01", 1);
    std::os::unix::fs::symlink(Path::new("..data/policies.yaml"), volume.path().join("policies.yaml"))
        .expect("a link");
    let stack = Stack::builder()
        .policy_file(&volume.path().join("policies.yaml"))
        .external_engine(engine.socket())
        .start();
    wait_for(&stack, "1");
    publish("..2026_01_02", 2);
    wait_for(&stack, "2");
}

#[test]
fn hangup_reads_the_file_again() {
    let (_engine, stack) = start();
    std::fs::write(&stack.policies, "models: [").expect("the file can be written");
    eventually("the mistake to be counted", || {
        (stack.metric("penstock_policy_rejected_total") >= 1.0).then_some(())
    });
    let before = stack.metric("penstock_policy_rejected_total");
    stack.signal(Signal::HUP);
    eventually("the mistake to be told again", || {
        (stack.metric("penstock_policy_rejected_total") > before).then_some(())
    });
    assert_eq!(ask(&stack), ("1".into(), "1".into()));
}

#[test]
fn a_file_that_vanishes_or_is_emptied_changes_nothing() {
    let (_engine, stack) = start();
    std::fs::write(&stack.policies, "").expect("the file can be written");
    eventually("the empty file to be counted", || {
        (stack.metric("penstock_policy_rejected_total") >= 1.0).then_some(())
    });
    std::fs::remove_file(&stack.policies).expect("it can be removed");
    eventually("the loss to be counted", || {
        (stack.metric("penstock_policy_rejected_total") >= 2.0).then_some(())
    });
    assert_eq!(ask(&stack), ("1".into(), "1".into()));
    std::fs::write(&stack.policies, all_to(2)).expect("the file can be written");
    wait_for(&stack, "2");
}

/// A folder, a pipe to which nobody writes, a device without an end, a link to itself: each is told, and what comes after it counts.
#[test]
fn what_is_no_file_changes_nothing_and_holds_up_nothing_that_comes_after_it() {
    let (_engine, stack) = start();
    let odd = stack.folder().join("odd");
    let link = |to: &Path| std::os::unix::fs::symlink(to, &odd).expect("a link");
    let pipe = || assert!(Command::new("mkfifo").arg(&odd).status().expect("coreutils are there").success());
    let makes: [&dyn Fn(); 4] =
        [&|| std::fs::create_dir(&odd).expect("a folder"), &pipe, &|| link(Path::new("/dev/zero")), &|| {
            link(&stack.policies)
        }];
    for (at, make) in makes.iter().enumerate() {
        make();
        std::fs::remove_file(&stack.policies).expect("it is there");
        std::fs::rename(&odd, &stack.policies).expect("a rename");
        stack.wait_for_metric("penstock_policy_rejected_total", (1 + at) as f64);
        let version = 1 + (1 + at as u32) % 2;
        if std::fs::remove_file(&stack.policies).is_err() {
            std::fs::remove_dir(&stack.policies).expect("it is a folder");
        }
        std::fs::write(&odd, all_to(version)).expect("a file");
        std::fs::rename(&odd, &stack.policies).expect("a rename");
        wait_for(&stack, &version.to_string());
    }
}

/// A third version takes a tenth from the first: nobody else moves, and a restart moves nobody at all.
#[test]
fn users_move_only_if_they_must_and_not_for_a_restart() {
    let versions = [("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer), ("m", 3, Behaviour::Answer)];
    let engine = ScriptedEngine::start(&versions);
    let policy = |weights: &str| {
        format!("models: {{m: {{split: {{weights: {weights}, sticky: {{header: x-user-id}}}}}}}}\n")
    };
    let mut stack = Stack::builder()
        .policies(&policy("{1: 90, 2: 10}"))
        .external_engine(engine.socket())
        .config("state: state.json")
        .start();
    let of = |stack: &Stack| -> Vec<String> {
        let client = stack.client();
        let ask = |user: usize| {
            let user = format!("user-{user}");
            let answer = client.infer("m", &[("x-user-id", &user)], &infer_body("x", [1, 1], &[0.0]));
            answer.header("x-penstock-version").to_owned()
        };
        (0..500).map(ask).collect()
    };
    let before = of(&stack);
    std::fs::write(&stack.policies, policy("{1: 80, 2: 10, 3: 10}")).unwrap();
    stack.wait_for_metric("penstock_policy_generation", 2.0);
    let after = of(&stack);
    let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    assert!(moved.iter().all(|(before, after)| (before.as_str(), after.as_str()) == ("1", "3")), "{moved:?}");
    assert!((20..=85).contains(&moved.len()), "{} of 500 have moved", moved.len());
    eventually("the rings to be saved", || {
        let saved = std::fs::read_to_string(stack.folder().join("state.json")).ok()?;
        let saved: serde_json::Value = serde_json::from_str(&saved).ok()?;
        let parts = saved["rings"]["m"].as_array()?.clone();
        parts.iter().any(|part| part[1] == 3).then_some(())
    });
    stack.restart();
    assert_eq!(of(&stack), after);
}

/// A second replica starts with the policy to which the first has come on the way over another one.
#[test]
fn replicas_agree_once_one_has_the_others_rings_and_stay_so() {
    let versions = [("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer), ("m", 3, Behaviour::Answer)];
    let engine = ScriptedEngine::start(&versions);
    let policy = |weights: &str| {
        format!("models: {{m: {{split: {{weights: {weights}, sticky: {{header: x-user-id}}}}}}}}\n")
    };
    let start = |weights: &str| {
        Stack::builder()
            .policies(&policy(weights))
            .external_engine(engine.socket())
            .config("state: state.json")
            .start()
    };
    let of = |stack: &Stack| -> Vec<String> {
        let client = stack.client();
        let ask = |user: usize| {
            let user = format!("user-{user}");
            let answer = client.infer("m", &[("x-user-id", &user)], &infer_body("x", [1, 1], &[0.0]));
            answer.header("x-penstock-version").to_owned()
        };
        (0..300).map(ask).collect()
    };
    let change = |stack: &Stack, weights: &str, generation: f64| {
        std::fs::write(&stack.policies, policy(weights)).unwrap();
        stack.wait_for_metric("penstock_policy_generation", generation);
    };
    let first = start("{1: 90, 2: 10}");
    change(&first, "{1: 50, 2: 10, 3: 40}", 2.0);
    let mut second = start("{1: 50, 2: 10, 3: 40}");
    assert_ne!(of(&first), of(&second), "each has its history");
    let rings = first.folder().join("rings.json");
    let penstock = |stack: &Stack, arguments: &[&str]| {
        let admin = stack.admin.to_string();
        let output =
            Command::new(binary("penstock")).arg("rings").args(arguments).args(["--admin", &admin]).output();
        let output = output.expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    std::fs::write(&rings, penstock(&first, &[])).unwrap();
    let adopted = penstock(&second, &[rings.to_str().unwrap()]);
    assert!(adopted.starts_with("m: as there; "), "{adopted}");
    assert_eq!(of(&first), of(&second));
    assert_eq!(second.metric("penstock_policy_generation"), 1.0, "the policy is the same");
    change(&first, "{1: 20, 2: 40, 3: 40}", 3.0);
    change(&second, "{1: 20, 2: 40, 3: 40}", 2.0);
    assert_eq!(of(&first), of(&second), "a change is the same for both");
    let before = of(&second);
    second.signal(rustix::process::Signal::TERM);
    assert!(second.wait().success());
    second.restart();
    assert_eq!(of(&second), before);
}

/// A thousand models, each with as many parts as there may be, are more than any policy is long.
#[test]
fn rings_of_a_long_history_are_taken_and_longer_ones_refused() {
    let (_engine, stack) = start();
    let admin = Client::new(stack.admin);
    let parts: Vec<_> = (0..1024_u64).map(|at| (at << 54, 1 + at % 3)).collect();
    let mut rings = serde_json::Map::new();
    rings.extend((0..1000).map(|at| (format!("model-{at}"), serde_json::json!(parts))));
    rings.insert("m".into(), serde_json::json!([[0, 2], [1_u64 << 63, 1]]));
    let text = serde_json::json!(rings).to_string();
    assert!(text.len() > 20 << 20, "{} bytes", text.len());
    let adopted = admin.put("/rings", &[], text.as_bytes());
    assert_eq!(adopted.status, 200, "{}", adopted.text());
    assert!(adopted.json()["m"].is_object() && adopted.json()["model-0"].is_null(), "{}", adopted.text());
    for unsound in [r#"{"m":[[5,1]]}"#, r#"{"m":[]}"#, r#"{"m":[[0,1],[9,2],[9,1]]}"#] {
        let refused = admin.put("/rings", &[], unsound.as_bytes());
        assert_eq!((refused.status, refused.error().contains("the ring of `m`")), (422, true), "{unsound}");
    }
    let longer = "PUT /rings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 33554433\r\n\r\n";
    let refused = raw_exchange(stack.admin, longer.as_bytes(), false);
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
}

/// A folder in its place keeps the file from being replaced, whoever asks for it.
#[test]
fn a_policy_that_the_disk_does_not_take_is_told_and_is_there_for_the_next_start_as_soon_as_it_does() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer), ("m", 2, Behaviour::Answer)]);
    let mut stack = Stack::builder()
        .policies(&all_to(1))
        .config("state: state.json")
        .external_engine(engine.socket())
        .start();
    let kept = stack.folder().join("state.policy.yaml");
    eventually("the first policy to be kept", || kept.exists().then_some(()));
    for (version, at_the_end) in [(2, false), (1, true)] {
        std::fs::remove_file(&kept).expect("it was kept");
        std::fs::create_dir(&kept).expect("its name is free");
        std::fs::write(kept.join("in the way"), "").expect("a file");
        std::fs::write(&stack.policies, all_to(version)).expect("a file");
        stack.wait_for_metric("penstock_state_saved", 0.0);
        assert_eq!(ask(&stack).0, version.to_string(), "it is in force all the same");
        std::fs::remove_dir_all(&kept).expect("a folder");
        if at_the_end {
            stack.signal(Signal::TERM);
            stack.wait();
        } else {
            stack.wait_for_metric("penstock_state_saved", 1.0);
        }
        assert_eq!(std::fs::read_to_string(&kept).expect("it is kept"), all_to(version));
    }
    let log = stack.log();
    let told = log.lines().filter(|line| line.contains("is not kept for the next start yet"));
    // That a disk takes its time may be told as well.
    let of_the_folder = told.filter(|line| line.contains("directory"));
    assert_eq!(of_the_folder.count(), 2, "{log}");
}
