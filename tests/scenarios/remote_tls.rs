//! Versions that another server answers over TLS. That server is a few lines here: it shows a certificate of our making, and
//! answers everybody the same.

use harness::{Behaviour, ScriptedEngine, Stack, eventually, infer_body};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate")
}

/// Serves over TLS as whoever is called `name`; where.
fn serve(authority: &Authority, name: &str) -> SocketAddr {
    serve_whom(authority, name, Arc::new(NoClientAuth))
}

/// The same for those whom `verifier` knows.
fn serve_whom(authority: &Authority, name: &str, verifier: Arc<dyn ClientCertVerifier>) -> SocketAddr {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocol versions of the provider")
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        )
        .expect("they belong together");
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = Arc::clone(&config);
            std::thread::spawn(move || answer(stream, config));
        }
    });
    address
}

/// Each request of a connection, until it ends or breaks: a client that does not trust us is none of our concern.
fn answer(stream: TcpStream, config: Arc<ServerConfig>) {
    let connection = ServerConnection::new(config).expect("a sound configuration");
    let mut stream = StreamOwned::new(connection, stream);
    let mut seen = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let Ok(read @ 1..) = stream.read(&mut chunk) else { return };
        seen.extend_from_slice(&chunk[..read]);
        if seen.ends_with(b"]}]}") {
            let body = r#"{"model_name":"m","outputs":[]}"#;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            if stream.write_all((head + body).as_bytes()).is_err() {
                return;
            }
            seen.clear();
        }
    }
}

/// A stack whose version 2 is at `there`, and is the one that answers.
fn stack(engine: &ScriptedEngine, there: SocketAddr, ca: &str) -> Stack {
    let policy = format!(
        "models: {{m: {{remote: {{2: {{url: 'https://localhost:{}/v2/models/m/infer'{ca}}}}}, split: {{weights: {{2: 1}}}}, \
         breaker: {{failures: 2}}}}}}\n",
        there.port()
    );
    Stack::builder().policies(&policy).external_engine(engine.socket()).start()
}

fn body() -> Vec<u8> {
    infer_body("x", [1, 1], &[0.0])
}

#[test]
fn a_server_is_trusted_by_the_certificates_of_a_file_which_may_change() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let there = serve(&ours, "localhost");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, ours.pem()).expect("a file");
    let stack = stack(&engine, there, &format!(", ca: '{}'", file.display()));
    let client = stack.client();
    for _ in 0..5 {
        let answer = client.infer("m", &[], &body());
        assert_eq!(
            (answer.status, answer.json()["model_name"].as_str()),
            (200, Some("m")),
            "{}",
            answer.text()
        );
        assert_eq!(answer.header("x-penstock-version"), "2");
    }
    std::fs::write(&file, theirs.pem()).expect("a file");
    let refused = eventually("the other certificates to be read", || {
        let answer = client.infer("m", &[], &body());
        (answer.status == 502).then(|| answer.error())
    });
    assert!(refused.contains("UnknownIssuer"), "{refused}");
}

#[test]
fn a_certificate_that_is_not_theirs_is_a_502_with_a_reason_and_counts_against_the_version() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let ours = authority("ours");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, ours.pem()).expect("a file");
    let vouched = format!(", ca: '{}'", file.display());
    for (name, ca, says) in [
        ("other.example", vouched.as_str(), "certificate not valid for name \"localhost\""),
        ("localhost", "", "UnknownIssuer"), // the system does not know it
        ("localhost", ", ca: /nowhere/ca.pem", "/nowhere/ca.pem: No such file or directory"),
    ] {
        let stack = stack(&engine, serve(&ours, name), ca);
        let client = stack.client();
        for _ in 0..2 {
            let refused = client.infer("m", &[], &body());
            assert_eq!(refused.status, 502, "{}", refused.text());
            assert!(refused.error().contains(says), "{}", refused.error());
        }
        let refused = client.infer("m", &[], &body());
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!(refused.error().contains("keeps failing"), "{}", refused.error());
        let at_start = "model m: version 2 cannot be asked: /nowhere/ca.pem: ";
        assert_eq!(stack.log().contains(at_start), ca.contains("nowhere"), "{}", stack.log());
    }
}

#[test]
fn a_server_that_wants_to_know_who_asks_is_shown_the_certificate_of_a_file() {
    let engine = ScriptedEngine::start(&[("m", 1, Behaviour::Answer)]);
    let (servers, clients) = (authority("servers"), authority("clients"));
    let mut known = RootCertStore::empty();
    known.add(clients.der().clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(known.into(), provider).build().expect("a root");
    let there = serve_whom(&servers, "localhost", verifier);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: String| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).expect("a file");
        file.display().to_string()
    };
    let ca = write("ca.pem", servers.pem());
    let stranger = stack(&engine, there, &format!(", ca: '{ca}'"));
    let refused = stranger.client().infer("m", &[], &body());
    assert_eq!(refused.status, 502, "{}", refused.text());
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["us".to_owned()]).expect("a name");
    let cert = write("cert.pem", params.signed_by(&key, &clients).expect("a certificate").pem());
    let key = write("key.pem", key.serialize_pem());
    let stack = stack(&engine, there, &format!(", ca: '{ca}', cert: '{cert}', key: '{key}'"));
    for _ in 0..3 {
        let answer = stack.client().infer("m", &[], &body());
        assert_eq!((answer.status, answer.header("x-penstock-version")), (200, "2"), "{}", answer.text());
    }
}
