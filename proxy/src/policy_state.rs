//! Since when the policy is in force, and what is wrong with the file that was to replace it; for those who look.

use crate::refused::unix_ms;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Shared by who reads the file and who shows it.
#[derive(Debug)]
pub struct PolicyState(Mutex<(u64, Option<Rejected>)>);

/// A policy file that is not in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// When it was read.
    pub unix_ms: u64,
    /// What is wrong with it, with places.
    pub error: String,
}

impl PolicyState {
    /// In force from now on.
    pub fn new(now: SystemTime) -> Self {
        Self(Mutex::new((unix_ms(now), None)))
    }

    /// Another policy is in force.
    pub fn changed(&self, now: SystemTime) {
        self.lock().0 = unix_ms(now);
    }

    /// The file says what is in force.
    pub fn accept(&self) {
        self.lock().1 = None;
    }

    /// The file is no good.
    pub fn reject(&self, error: &str, now: SystemTime) {
        self.lock().1 = Some(Rejected { unix_ms: unix_ms(now), error: error.to_owned() });
    }

    /// Since when the policy is in force, ms since 1970, and the file that is not, if it still stands there.
    pub fn read(&self) -> (u64, Option<Rejected>) {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Option<Rejected>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
