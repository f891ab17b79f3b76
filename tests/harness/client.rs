//! HTTP clients: one that behaves, and one that writes whatever bytes it is given.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// A client with its own connections.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
}

/// An answer, read whole.
#[derive(Debug, Clone)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// By lower-case name.
    pub headers: HashMap<String, String>,
    /// All of it.
    pub body: Vec<u8>,
}

impl Client {
    /// Talks to one address.
    pub fn new(address: SocketAddr) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build();
        Self { agent: config.into(), base: format!("http://{address}") }
    }

    /// `None` if there is no answer at all.
    pub fn try_get(&self, path: &str) -> Option<Response> {
        read(self.agent.get(format!("{}{path}", self.base)).call()).ok()
    }

    /// GET.
    pub fn get(&self, path: &str) -> Response {
        read(self.agent.get(format!("{}{path}", self.base)).call()).expect("an answer")
    }

    /// HEAD.
    pub fn head(&self, path: &str) -> Response {
        read(self.agent.head(format!("{}{path}", self.base)).call()).expect("an answer")
    }

    /// POST.
    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.try_post(path, headers, body).expect("an answer")
    }

    /// POST; an error if the connection breaks.
    pub fn try_post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, ureq::Error> {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.send(body))
    }

    /// PUT.
    pub fn put(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let mut request = self.agent.put(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.send(body)).expect("an answer")
    }

    /// Infers on one row.
    pub fn infer(&self, model: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.post(&format!("/v2/models/{model}/infer"), headers, body)
    }
}

fn read(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Response, ureq::Error> {
    let mut response = result?;
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect();
    let body = response.body_mut().with_config().limit(u64::MAX).read_to_vec()?; // else 10 MB
    Ok(Response { status: response.status().as_u16(), headers, body })
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The text of `{"error": …}`.
    pub fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_else(|| panic!("no error in {}", self.text())).to_owned()
    }

    /// A header that must be there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
    }

    /// An output's data.
    pub fn output(&self, name: &str) -> serde_json::Value {
        assert_eq!(self.status, 200, "{}", self.text());
        let json = self.json();
        let outputs = json["outputs"].as_array().expect("outputs").clone();
        outputs.into_iter().find(|output| output["name"] == name).expect("the output is there")["data"]
            .clone()
    }
}

/// An infer body of one FP32 input, data flat.
pub fn infer_body(input: &str, shape: [usize; 2], data: &[f32]) -> Vec<u8> {
    serde_json::json!({"inputs": [{"name": input, "shape": shape, "datatype": "FP32", "data": data}]})
        .to_string()
        .into_bytes()
}

/// Writes raw bytes, closes the writing side if asked, and returns everything that comes until the server
/// closes or falls silent for two seconds.
pub fn raw_exchange(address: SocketAddr, bytes: &[u8], half_close: bool) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket takes a timeout");
    let _ = stream.write_all(bytes); // a server that refuses may stop reading; what it says is the point
    if half_close {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer); // silence and resets end it as well as a close
    String::from_utf8_lossy(&answer).into_owned()
}
