//! The ledger by hand: limits, breakers and rollouts as requests meet them.

mod breakers;
mod ended;
mod limits;
mod rollouts;
mod shares;

use std::time::Duration;

use super::*;
use crate::canary::{Command, Phase, Sight};
use crate::parse;
use crate::plan::tests::All;

const ANA: [(&str, &str); 1] = [("user", "ana")];
const EVERYTHING: fn(&str, Version) -> bool = |_, _| true;

fn policies(text: &str) -> Snapshot {
    parse(text, "policies.yaml").unwrap()
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
