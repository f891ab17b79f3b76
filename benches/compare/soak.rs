//! A long run of everything at once: well-formed requests of several kinds, malformed ones, clients that leave, policies and
//! models that change. Prints what both processes hold in memory once a minute. It fails if a well-formed request is not
//! answered, a malformed one is not refused, a process is not the one that it was, or if one grows all the time.
//!
//! What came of 30 minutes (490,000 requests, 119 reloads, 9 swaps of a model, 11,900 malformed, 6,000 clients that left): the engine held
//! 155 MiB at the start, 160 after a minute, 163 after 12, 164 at the end; the proxy 44 at the start, 68 after a minute, 66 to 69 from
//! then on. Since tensors lie in memory that is kept, the engine held 155, 180, from the fifth minute to the ninth 199 to 209, from the tenth
//! on 186 to 193 and 186 at the end, the proxy 65 to 69, and 73 to 76 in the last eight minutes. In another run (470,000 requests) it was 183
//! after a minute, 187 to 209 from then on and 199 at the end, and 64 to 68.

use crate::server::Server;
use anyhow::{Context, ensure};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Connections that stay open, each with a request after each pause.
const STEADY: usize = 4;
const STEADY_EVERY: Duration = Duration::from_millis(13);

/// Requests of one of them; the proxy would close it after 100,000.
const OF_A_CONNECTION: u64 = 10_000;

/// Callers of limits and of what is sticky.
const USERS: u64 = 50_000;

const MALFORMED_EVERY: Duration = Duration::from_millis(150);
const LEAVING_EVERY: Duration = Duration::from_millis(300);
const RELOAD_EVERY: Duration = Duration::from_secs(15);
const SWAP_EVERY: Duration = Duration::from_secs(180);

/// What a process may hold at the end, times what it held after a sixth of the time, when all of it has happened a few times.
const GROWTH_MAX: f64 = 1.25;

/// What has happened so far.
#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    malformed: AtomicU64,
    left: AtomicU64,
    reloads: AtomicU64,
    swaps: AtomicU64,
}

/// Runs for so many minutes.
pub(crate) fn soak(server: &Server, minutes: u64) -> anyhow::Result<()> {
    let (tally, is_over) = (Tally::default(), AtomicBool::new(false));
    let (tally, is_over) = (&tally, &is_over);
    let pids = server.pids();
    ensure!(pids.len() == 2, "a proxy and its engine were expected, not {pids:?}");
    let cpu_before = server.cpu()?;
    std::thread::scope(|scope| {
        let mut all = Vec::new();
        for number in 0..STEADY as u64 {
            all.push(scope.spawn(move || steady(server.address, number, tally, is_over)));
        }
        all.push(scope.spawn(|| malformed(server.address, tally, is_over)));
        all.push(scope.spawn(|| leaving(server, tally, is_over)));
        all.push(scope.spawn(|| reloads(server, tally, is_over)));
        all.push(scope.spawn(|| swaps(server, tally, is_over)));
        let began = Instant::now();
        let watched = (|| {
            let mut settled = Vec::new();
            for minute in 0..=minutes {
                let held = held(&pids)?;
                report(minute, &held, tally);
                if minute == (minutes / 6).max(1) {
                    settled.clone_from(&held);
                }
                if minute == minutes {
                    for (now, then) in held.iter().zip(&settled) {
                        let growth = now.resident_mib / then.resident_mib;
                        ensure!(
                            growth <= GROWTH_MAX,
                            "a process has grown to {growth:.2} times what it held"
                        );
                    }
                }
                let until = began + Duration::from_secs(60 * (minute + 1));
                while minute < minutes && Instant::now() < until && !all.iter().any(|one| one.is_finished()) {
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
            ensure!(server.pids() == pids, "the processes were {pids:?}, and are {:?}", server.pids());
            let cores = (server.cpu()? - cpu_before).as_secs_f64() / began.elapsed().as_secs_f64();
            println!("both processes took {:.1} % of a core", 100.0 * cores);
            Ok(())
        })();
        is_over.store(true, Ordering::Relaxed);
        // The first that ended has the cause.
        for one in all {
            one.join().expect("no panic")?;
        }
        watched
    })
}

/// What a process holds.
#[derive(Clone)]
struct Held {
    resident_mib: f64,
    descriptors: usize,
    threads: usize,
}

fn held(pids: &[u32]) -> anyhow::Result<Vec<Held>> {
    let of = |pid: &u32| {
        let count = |what| std::fs::read_dir(format!("/proc/{pid}/{what}")).map(Iterator::count);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("Linux tells it")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        anyhow::Ok(Held { resident_mib: kib / 1024.0, descriptors: count("fd")?, threads: count("task")? })
    };
    pids.iter().map(|pid| of(pid).context("a process has ended")).collect()
}

fn report(minute: u64, held: &[Held], tally: &Tally) {
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let show = |held: &Held| {
        let Held { resident_mib, descriptors, threads } = held;
        format!("{resident_mib:6.1} MiB, {descriptors:3} descriptors, {threads:2} threads")
    };
    println!(
        "minute {minute:2}  proxy {}; engine {}; {} answered, {} malformed, {} left, {} reloads, {} swaps",
        show(&held[0]),
        show(&held[1]),
        of(&tally.answered),
        of(&tally.malformed),
        of(&tally.left),
        of(&tally.reloads),
        of(&tally.swaps),
    );
}

/// Requests of several kinds in turn, by many users.
fn steady(address: SocketAddr, number: u64, tally: &Tally, is_over: &AtomicBool) -> anyhow::Result<()> {
    let mut stream = connect(address)?;
    for at in 0.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        if at % OF_A_CONNECTION == 0 {
            stream = connect(address)?;
        }
        let user = format!("x-user-id: user-{}\r\n", (at * STEADY as u64 + number) * 7919 % USERS);
        let request = match at % 4 {
            0 => post(&user, digits(1).as_bytes()),
            1 => post(&format!("{user}x-request-timeout-ms: 1900\r\n"), digits(9).as_bytes()),
            2 => in_bytes(&user),
            _ => post("", digits(100).as_bytes()), // in pieces: more than run together
        };
        stream.write_all(&request)?;
        let status = answer(&mut stream)?;
        ensure!(status == Some(200), "a well-formed request was answered {status:?}");
        tally.answered.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(STEADY_EVERY);
    }
    Ok(())
}

/// What nobody should send. Refused, or let go of; each on a connection of its own.
fn malformed(address: SocketAddr, tally: &Tally, is_over: &AtomicBool) -> anyhow::Result<()> {
    let body = digits(1);
    let wrong = |from: &str, to: &str| {
        assert!(body.contains(from), "{from} is to be replaced");
        post("", body.replacen(from, to, 1).as_bytes())
    };
    let all = [
        wrong("{", "["),
        wrong("pixels", "voxels"),
        wrong("[1,64]", "[1,63]"),
        wrong("[1,64]", "[18446744073709551615,64]"),
        wrong("FP32", "FP8"),
        wrong("1.0", "1e999"),
        wrong("1.0", "null"),
        post("Inference-Header-Content-Length: 99999\r\n", body.as_bytes()),
        post("Content-Encoding: gzip\r\n", body.as_bytes()),
        post("x-request-timeout-ms: soon\r\n", body.as_bytes()),
        post("", b""),
        post("", &[0xff; 1000]),
        b"POST /v2/models/nobody/infer HTTP/1.1\r\nHost: soak\r\nContent-Length: 2\r\n\r\n{}".to_vec(),
        b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: soak\r\nContent-Length: 9999999999999\r\n\r\n"
            .to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
    ];
    for bytes in all.iter().cycle() {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let mut stream = connect(address)?;
        let _ = stream.write_all(bytes); // a server that refuses may stop reading
        let _ = stream.shutdown(Shutdown::Write);
        let status = answer(&mut stream).unwrap_or(None);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
        ensure!(status.is_none_or(|status| (400..500).contains(&status)), "answered {status:?}: {shown}");
        tally.malformed.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(MALFORMED_EVERY);
    }
    Ok(())
}

/// Clients that do not stay for the answer, and those that do not even send all of what they ask.
fn leaving(server: &Server, tally: &Tally, is_over: &AtomicBool) -> anyhow::Result<()> {
    let request = post("", digits(100).as_bytes());
    for at in 0u64.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let mut stream = connect(server.address)?;
        let sent = if at.is_multiple_of(2) { request.len() } else { request.len() / 2 };
        let _ = stream.write_all(&request[..sent]);
        drop(stream);
        tally.left.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(LEAVING_EVERY);
    }
    Ok(())
}

/// Other weights each time, and a shadow every other time.
fn reloads(server: &Server, tally: &Tally, is_over: &AtomicBool) -> anyhow::Result<()> {
    for at in 1u64.. {
        if !rest(RELOAD_EVERY, is_over) {
            break;
        }
        let weight = 1 + at % 50;
        let shadow = if at.is_multiple_of(2) { "    shadow: {version: 2, percent: 10}\n" } else { "" };
        let policies = format!(
            "models:\n  digits:\n    split:\n      weights: {{1: 90, 2: {weight}}}\n      sticky: {{header: x-user-id}}\n{shadow}    \
             deadline: 2s\n    breaker: {{failures: 5}}\nlimits:\n  - {{name: per-user, key: {{header: x-user-id}}, rate: 1000/s, burst: 1000}}\n"
        );
        let file = server.folder().join("policies.yaml");
        std::fs::write(file.with_extension("new"), policies)?;
        std::fs::rename(file.with_extension("new"), file)?;
        tally.reloads.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Another file of the same content, which is loaded in place of the one before.
fn swaps(server: &Server, tally: &Tally, is_over: &AtomicBool) -> anyhow::Result<()> {
    let model = server.folder().join("models/digits/2/model.pt");
    while rest(SWAP_EVERY, is_over) {
        std::fs::copy(&model, model.with_extension("new"))?;
        std::fs::rename(model.with_extension("new"), &model)?;
        let mut stream = connect(server.address)?;
        let load =
            "POST /v2/repository/models/digits/load HTTP/1.1\r\nHost: soak\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(load.as_bytes())?;
        let status = answer(&mut stream)?;
        ensure!(status == Some(200), "a swap was answered {status:?}");
        tally.swaps.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Whether there is still something to do after it.
fn rest(takes: Duration, is_over: &AtomicBool) -> bool {
    let until = Instant::now() + takes;
    while Instant::now() < until && !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
    }
    !is_over.load(Ordering::Relaxed)
}

fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).context("connecting")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

/// The status of the next answer, which is read whole; `None` if the connection is closed before one begins.
fn answer(stream: &mut TcpStream) -> anyhow::Result<Option<u16>> {
    let (mut buffer, mut chunk) = (Vec::new(), [0; 16 << 10]);
    loop {
        if let Some(head) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.map_or(Ok(0), |length| length.trim().parse())?;
            if buffer.len() >= head + 4 + length {
                return Ok(Some(text.split(' ').nth(1).context("a status")?.parse()?));
            }
        }
        match stream.read(&mut chunk)? {
            0 if buffer.is_empty() => return Ok(None),
            0 => anyhow::bail!("closed inside an answer"),
            read => buffer.extend_from_slice(&chunk[..read]),
        }
    }
}

/// So many digits, as JSON.
fn digits(rows: usize) -> String {
    let row = (0..64).map(|pixel| format!("{}.0", pixel % 17)).collect::<Vec<_>>().join(",");
    let data = vec![row; rows].join(",");
    format!(r#"{{"inputs":[{{"name":"pixels","shape":[{rows},64],"datatype":"FP32","data":[{data}]}}]}}"#)
}

/// Two digits, as Triton's binary extension has it.
fn in_bytes(headers: &str) -> Vec<u8> {
    let json = r#"{"inputs":[{"name":"pixels","shape":[2,64],"datatype":"FP32","parameters":{"binary_data_size":512}}]}"#;
    let headers = format!("{headers}Inference-Header-Content-Length: {}\r\n", json.len());
    post(&headers, &[json.as_bytes(), &[0; 512]].concat())
}

fn post(headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: soak\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}
