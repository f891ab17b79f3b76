//! Orders to the loader on their way there, and answers on their way back. Decides how many may wait; carries out none.

use crate::mailbox::Mailbox;
use crate::split;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use wire::{Control, Status};

/// Orders that may wait to be answered.
const ORDERS_MAX: usize = 64;

/// Why an order was not carried out.
pub(crate) type Failure = (Status, String);

/// Takes orders for the loader's thread.
#[derive(Clone)]
pub(crate) struct Orders {
    told: mpsc::Sender<Told>,
    waiting: Arc<AtomicUsize>,
}

/// What the loader is told.
pub(crate) enum Told {
    Order {
        control: Control,
        answer: Arc<Answer>,
    },
    /// No request needs the version of this key any more.
    Retired(u32),
    /// An attempt has ended.
    Tried,
    /// Something else is known now of a version that is ready.
    Changed,
    Stop,
}

impl Orders {
    pub(crate) fn new(told: mpsc::Sender<Told>) -> Self {
        Self { told, waiting: Arc::default() }
    }

    /// Hands an order in; its answer comes when it has been carried out, or refused.
    pub(crate) fn give(&self, control: Control, mailbox: &Arc<Mailbox>, id: u64) {
        let others = self.waiting.fetch_add(1, Ordering::Relaxed);
        let answer = Arc::new(Answer {
            mailbox: Arc::clone(mailbox),
            id,
            result: Mutex::default(),
            _waiting: Waiting(Arc::clone(&self.waiting)),
        });
        if others >= ORDERS_MAX {
            let why = format!("{ORDERS_MAX} orders wait already");
            return answer.tell(Some((Status::Overloaded, why)), 0);
        }
        let _ = self.told.send(Told::Order { control, answer });
    }
}

/// An order's place among those that wait.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What an order is answered, once nobody holds it any more.
pub(crate) struct Answer {
    mailbox: Arc<Mailbox>,
    id: u64,
    result: Mutex<Outcome>,
    _waiting: Waiting,
}

/// What came of an order.
#[derive(Default)]
struct Outcome {
    is_told: bool,
    failure: Option<Failure>,
    /// Of the catalog that shows it.
    revision: u64,
}

impl Answer {
    /// What came of the order, or of a part of it that took longer.
    pub(crate) fn tell(&self, failure: Option<Failure>, revision: u64) {
        let mut outcome = self.result.lock().expect("no panic while it is told");
        (outcome.is_told, outcome.revision) = (true, revision);
        match (&mut outcome.failure, failure) {
            (Some((_, why)), Some((_, more))) => *why = format!("{why}; {more}"),
            (before @ None, failure) => *before = failure,
            (Some(_), None) => {}
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let outcome = std::mem::take(self.result.get_mut().expect("no panic while it was told"));
        let nobody = || Some((Status::Internal, ENDED.into()));
        let failure = if outcome.is_told { outcome.failure } else { nobody() };
        split::answer_order(&self.mailbox, self.id, failure, outcome.revision);
    }
}

/// Why an order has failed that nobody has carried out.
pub(crate) const ENDED: &str = "the loader has ended";

/// Tells the loader when it is dropped, which is after the last request that used its version.
pub(crate) struct Retirement(Option<(u32, mpsc::Sender<Told>)>);

impl Retirement {
    /// Of the version of this key.
    pub(crate) fn new(key: u32, told: mpsc::Sender<Told>) -> Self {
        Self(Some((key, told)))
    }

    /// Something else is known of the version now, which proxies are to be told.
    pub(crate) fn changed(&self) {
        if let Some((_, told)) = &self.0 {
            let _ = told.send(Told::Changed); // nobody hears it when the engine stops
        }
    }

    /// Of a version that no loader knows of.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> Self {
        Self(None)
    }
}

impl Drop for Retirement {
    fn drop(&mut self) {
        if let Some((key, told)) = self.0.take() {
            let _ = told.send(Told::Retired(key));
        }
    }
}
