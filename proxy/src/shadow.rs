//! Copies of answered requests for another version, whose answers are compared with what the client got and then
//! dropped. A copy is sent after the answer is known, after everybody else's requests, and only while few others are
//! under way: whatever becomes of it, the client does not notice. Either version may be another server's.

mod alike;

use crate::call::JSON_LEN;
use crate::deadline::{Deadline, header_number};
use crate::decode::answer;
use crate::directory::Models;
use crate::links::Links;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::remote::{Passed, Remotes};
use crate::slots::{Slot, Slots};
use alike::alike;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use policies::{Assignment, Ledger, Remote, Room, ShadowPolicy, Version};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use wire::{Infer, Reply, Status, TensorMeta, Timing};

/// In the engine's words: the first to be turned away.
const SHEDDABLE: u32 = 3;

/// What all copies hold together, which is beside what requests may hold: requests, what their clients got, and what is compared with that.
/// What another server has answered keeps its place among such answers as well.
const BYTES_MAX: usize = 128 << 20;

/// Answers that are larger are read and compared on another thread: on this one, clients wait.
pub(crate) const AT_ONCE_BYTES: usize = 64 << 10;

/// Says that nobody waits for the answer. Of what is a copy, no copy is made: two that copy for each other would never end.
pub(crate) const COPY: HeaderName = HeaderName::from_static("x-penstock-copy");

/// The copies that are under way.
#[derive(Debug)]
pub struct Shadows {
    links: Arc<Links>,
    remotes: Arc<Remotes>,
    metrics: Arc<Metrics>,
    ledger: Arc<Ledger>,
    /// By model.
    under_way: Arc<Mutex<HashMap<String, u32>>>,
    room: Arc<Slots>,
}

impl Shadows {
    /// None yet.
    pub fn new(links: Arc<Links>, remotes: Arc<Remotes>, metrics: Arc<Metrics>, ledger: Arc<Ledger>) -> Self {
        let room = Arc::new(Slots::new(usize::MAX, BYTES_MAX));
        Self { links, remotes, metrics, ledger, under_way: Arc::default(), room }
    }

    /// A copy of a request that is about to be sent, if there is room; to the engine, or to a server as it came. `assigned` is
    /// the side of a rollout whose answer its client gets.
    pub(crate) fn copy(
        &self,
        policy: &Arc<ShadowPolicy>,
        models: &Models,
        (infer, payload): (&Infer, &Bytes),
        server: Option<ToServer>,
        assigned: Option<Assignment>,
    ) -> Option<Copy> {
        let version = policy.version().0;
        let deadline = policy.deadline().unwrap_or(Duration::from_micros(infer.budget_us));
        let is_busy = || models.gate(&infer.model, version)?.check(deadline, Instant::now());
        let is_ready = server.is_some() || models.is_ready(&infer.model, version) && is_busy().is_none();
        let bytes = server.as_ref().map_or(payload.len(), |server| server.body.len());
        let place = || self.place(&infer.model, bytes, policy.in_flight_max());
        let place = if is_ready { place() } else { None };
        let Some(place) = place else {
            self.drop_one(&infer.model, version, assigned);
            return None;
        };
        let caller = (infer.caller != 0).then_some(infer.caller);
        let to = match server {
            Some(server) => To::Server(server),
            None => To::Engine(Box::new(copied(infer, version, deadline)), payload.clone()),
        };
        let (policy, model) = (Arc::clone(policy), infer.model.clone());
        Some(Copy { policy, model, version, to, deadline, caller, assigned, place })
    }

    /// Counts a copy that is not sent; a gate on disagreement has to hear of it, as of one that has no answer.
    pub(crate) fn drop_one(&self, model: &str, version: u64, assigned: Option<Assignment>) {
        if let Some(assigned) = assigned {
            self.ledger.compared(model, assigned, Version(version), None, None, Instant::now());
        }
        self.metrics.count_shadow(model, version, Outcome::Dropped);
    }

    /// Sends a copy, if there is room for both answers, and compares its own with the one that the client got; waits for nothing.
    pub(crate) fn send(&self, mut copy: Copy, answer: Answer) {
        let slot = &mut copy.place.slot;
        let bytes = answer.bytes();
        // And for one as long, which the other version will give: else it would run for nothing.
        if slot.reserve(bytes).and_then(|()| slot.reserve_ahead(bytes)).is_err() {
            return self.drop_one(&copy.model, copy.version, copy.assigned);
        }
        let (links, remotes) = (Arc::clone(&self.links), Arc::clone(&self.remotes));
        let (metrics, ledger) = (Arc::clone(&self.metrics), Arc::clone(&self.ledger));
        tokio::spawn(async move {
            let (model, version) = (copy.model.clone(), copy.version);
            let (caller, assigned) = (copy.caller, copy.assigned);
            let outcome = copy.compare(&links, &remotes, &metrics, answer).await;
            if let Some(assigned) = assigned {
                ledger.compared(&model, assigned, Version(version), caller, outcome.agrees(), Instant::now());
            }
            metrics.count_shadow(&model, version, outcome);
        });
    }

    fn place(&self, model: &str, bytes: usize, most: u32) -> Option<Place> {
        let mut slot = self.room.enter(Room::ALL).ok()?;
        slot.reserve(bytes).ok()?;
        let mut under_way = lock(&self.under_way);
        let count = match under_way.get_mut(model) {
            Some(count) => count,
            None => under_way.entry(model.to_owned()).or_default(),
        };
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { under_way: Arc::clone(&self.under_way), model: model.to_owned(), slot })
    }
}

/// A request's copy, not yet sent.
pub(crate) struct Copy {
    policy: Arc<ShadowPolicy>,
    model: String,
    version: u64,
    to: To,
    deadline: Duration,
    /// Who asked.
    caller: Option<u64>,
    assigned: Option<Assignment>,
    place: Place,
}

/// Who is to answer it.
enum To {
    Engine(Box<Infer>, Bytes),
    Server(ToServer),
}

/// A request as it came, for another server.
pub(crate) struct ToServer {
    remote: Arc<Remote>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
}

impl ToServer {
    pub(crate) fn new(remote: &Arc<Remote>, (method, mut headers): (Method, HeaderMap), body: Bytes) -> Self {
        // Its client may read what is compressed, and this one does not.
        headers.remove(header::ACCEPT_ENCODING);
        headers.insert(COPY, HeaderValue::from_static("1"));
        Self { remote: Arc::clone(remote), method, headers, body }
    }
}

/// What the client got.
pub(crate) enum Answer {
    Engine(Vec<TensorMeta>, Bytes),
    Server(Written),
}

/// What a server has written.
pub(crate) struct Written {
    body: Bytes,
    json_len: Option<usize>,
    is_plain: bool,
}

impl Written {
    pub(crate) fn of(passed: &Passed) -> Self {
        let json_len = header_number(&passed.headers, &JSON_LEN).unwrap_or(Some(usize::MAX));
        let is_plain = !passed.headers.contains_key(header::CONTENT_ENCODING);
        Self { body: passed.body.clone(), json_len, is_plain }
    }

    /// `None` if it is no answer of the Open Inference Protocol, or a compressed one.
    pub(crate) fn outputs(&self) -> Option<(Vec<TensorMeta>, Bytes)> {
        if self.is_plain { answer::outputs(&self.body, self.json_len) } else { None }
    }

    /// Why it is none that can be read here, although a client that it is passed on to may understand it.
    pub(crate) fn foreign(&self) -> Option<String> {
        if self.is_plain {
            answer::foreign(&self.body, self.json_len)
        } else {
            Some("it is compressed".into())
        }
    }
}

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Agreed,
    Disagreed,
    /// There is no answer to compare.
    Failed,
    /// There was no time or room for it.
    Dropped,
}

impl Outcome {
    pub(crate) const ALL: [Self; 4] = [Self::Agreed, Self::Disagreed, Self::Failed, Self::Dropped];

    /// The word for it in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Agreed => "agreed",
            Self::Disagreed => "disagreed",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }

    fn agrees(self) -> Option<bool> {
        match self {
            Self::Agreed => Some(true),
            Self::Disagreed => Some(false),
            Self::Failed | Self::Dropped => None,
        }
    }
}

impl Copy {
    async fn compare(self, links: &Links, remotes: &Remotes, metrics: &Metrics, answer: Answer) -> Outcome {
        let Self { policy, model, version, to, deadline, mut place, .. } = self;
        let shadow = match to {
            To::Engine(infer, payload) => {
                let asked = ask_engine(&infer, payload, links, deadline);
                match asked.await {
                    Ok((outputs, payload, served)) => {
                        // The model has run, whoever it was for.
                        let counters = metrics.version(&model, version);
                        let (statistics, timing) = (&counters.statistics, served.timing.as_ref());
                        statistics.served(served.took, timing, SystemTime::now());
                        timing.into_iter().for_each(|timing| statistics.ran(timing));
                        if place.slot.reserve(payload.len()).is_err() {
                            return Outcome::Dropped;
                        }
                        Answer::Engine(outputs, payload)
                    }
                    Err(outcome) => return outcome,
                }
            }
            To::Server(server) => {
                let (room, clients_bytes) = (place.slot.another(), answer.bytes());
                match ask_server(server, remotes, deadline, (room, clients_bytes)).await {
                    Ok(written) => Answer::Server(written),
                    Err(outcome) => return outcome,
                }
            }
        };
        let is_small = answer.bytes().max(shadow.bytes()) <= AT_ONCE_BYTES;
        let compare = move || {
            let alike =
                answer.outputs().zip(shadow.outputs()).map(|((one, payload), (other, other_payload))| {
                    alike(&policy, (&one, &payload), (&other, &other_payload))
                });
            drop(place);
            match alike {
                Some(true) => Outcome::Agreed,
                Some(false) => Outcome::Disagreed,
                // A server that speaks another protocol, or compresses unasked.
                None => Outcome::Failed,
            }
        };
        if is_small {
            compare()
        } else {
            tokio::task::spawn_blocking(compare).await.unwrap_or(Outcome::Failed)
        }
    }
}

impl Answer {
    fn bytes(&self) -> usize {
        match self {
            Self::Engine(_, payload) => payload.len(),
            Self::Server(written) => written.body.len(),
        }
    }

    fn outputs(self) -> Option<(Vec<TensorMeta>, Bytes)> {
        match self {
            Self::Engine(outputs, payload) => Some((outputs, payload)),
            Self::Server(written) => written.outputs(),
        }
    }
}

struct Served {
    took: Duration,
    timing: Option<Timing>,
}

/// Outputs and their bytes; else what became of the copy.
async fn ask_engine(
    infer: &Infer,
    payload: Bytes,
    links: &Links,
    deadline: Duration,
) -> Result<(Vec<TensorMeta>, Bytes, Served), Outcome> {
    let started = Instant::now();
    let asked = async {
        let pending = links.worker().await?.send(infer, payload);
        pending?.answer().await
    };
    let Ok(Ok(frame)) = tokio::time::timeout(deadline, asked).await else { return Err(Outcome::Failed) };
    let Ok(reply) = <Reply as prost::Message>::decode(frame.metadata) else { return Err(Outcome::Failed) };
    match reply.status() {
        Status::Ok => {
            let served = Served { took: started.elapsed(), timing: reply.timing };
            Ok((reply.outputs, frame.payload, served))
        }
        Status::Overloaded | Status::DeadlineExceeded => Err(Outcome::Dropped),
        _ => Err(Outcome::Failed),
    }
}

async fn ask_server(
    ToServer { remote, method, headers, body }: ToServer,
    remotes: &Remotes,
    deadline: Duration,
    (room, clients_bytes): (Slot, usize),
) -> Result<Written, Outcome> {
    let terms = (&Deadline::of(deadline, None, Instant::now()), deadline, None);
    // What is as JSON here may be binary there; what is much longer is no answer to the same.
    let bytes_max = AT_ONCE_BYTES + 16 * clients_bytes;
    let asked = remotes.ask(&remote, (&method, &headers), body, terms, (bytes_max, room), |_| false).await;
    let passed = asked.map_err(|refusal| match refusal {
        Refusal::Overloaded(_) => Outcome::Dropped, // there is no room here for its answer
        _ => Outcome::Failed,
    })?;
    match passed.refusal() {
        None => Ok(Written::of(&passed)),
        Some(Refusal::Overloaded(_)) => Err(Outcome::Dropped),
        Some(_) => Err(Outcome::Failed),
    }
}

/// A copy's place among those under way.
struct Place {
    under_way: Arc<Mutex<HashMap<String, u32>>>,
    model: String,
    slot: Slot,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = lock(&self.under_way);
        if let Some(count) = under_way.get_mut(&self.model) {
            *count -= 1;
        }
    }
}

fn lock(under_way: &Mutex<HashMap<String, u32>>) -> MutexGuard<'_, HashMap<String, u32>> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same for another version, in nobody's way.
fn copied(infer: &Infer, version: u64, deadline: Duration) -> Infer {
    let (budget_us, criticality) = (deadline.as_micros() as u64, SHEDDABLE);
    Infer { version, budget_us, is_copy: true, criticality, trace: None, caller: 0, ..infer.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_in_nobodys_way_however_critical_its_original_is() {
        let original =
            Infer { version: 1, priority: 1, criticality: 1, tenant: 7, caller: 9, ..Infer::default() };
        let copy = copied(&original, 2, Duration::from_millis(5));
        assert_eq!((copy.is_copy, copy.criticality, copy.tenant, copy.caller), (true, 3, 7, 0));
        assert_eq!((copy.version, copy.budget_us), (2, 5_000));
    }
}
