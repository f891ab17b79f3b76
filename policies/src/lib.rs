//! The deciding core of Penstock: which version of a model answers, who may enter, and what counts as failing.
//!
//! ```text
//!  text ─parse─▶ Snapshot ─publish─▶ Live ─load─▶ Arc<Generation>      intent: immutable, comparable
//!                                                      │ read once per request
//!                  pick ◀── rules, split ──────────────┤
//!                 admit ◀── limits ────────────────────┤──▶ Ledger     progress: limiter levels, breaker states
//!          enter/settle ◀── breaker ───────────────────┘
//! ```
//!
//! Intent and progress never mix: a reload swaps the [`Snapshot`] and keeps in the [`Ledger`] whatever did not change.
//! Nothing here does I/O, reads a clock or throws dice. `now` and `draw` are arguments, so a day passes in a test in
//! microseconds and every decision can be replayed. One rule for callers: load the generation once per request and
//! pass it on, so that no request ever sees two of them.

// The text and what it means.
mod units;
mod number;
mod schema;
mod errors;
mod compile;
mod plain;
mod parse;

// Intent.
mod attribute;
mod ring;
mod pick;
mod place;
mod overload;
mod remote;
mod snapshot;
mod explain;
mod live;

// Progress.
mod prefetch;
mod evidence;
mod ratio;
mod canary;
mod share;
mod shadow;

mod outcome;
mod gate;
mod drift;
mod gcra;
mod limiter;
mod window;
mod breaker;
mod retry;
mod ended;
mod tally;
mod ledger;
mod missing;
mod plan;

pub use attribute::{Attribute, Attributes, Field};
pub use breaker::{BreakerPolicy, BreakerState, Tripped};
pub use canary::{
    Assignment, CanaryStatus, Command, GateStatus, Grounds, Phase, Progress, Record, Sight, UnderWay, Verdict,
};
pub use drift::DriftSight;
pub use ended::EndedRollouts;
pub use errors::{PolicyError, PolicyErrors};
pub use ledger::{
    Admitted, BreakerStatus, Charged, CommandError, CrowdPolicy, Crowded, Gone, Ledger, Pass, Places,
    Reserved, Spent, Usage,
};
pub use limiter::{Cost, LimitPolicy, Limited, Quota};
pub use live::{Adopted, Generation, Live, Prepared, Published};
pub use missing::{Known, Missing};
pub use outcome::Outcome;
pub use overload::{Criticality, Room, Standing};
pub use parse::parse;
pub use pick::{Pick, PickReason};
pub use plan::{Change, Plan};
pub use remote::{Remote, Tensors, Tls};
pub use retry::NotAgain;
pub use schema::schema;
pub use shadow::{ShadowPolicy, Tolerance};
pub use share::Share;
pub use snapshot::{ModelPolicy, Rings, Snapshot};
pub use tally::{Drawn, Instead, Mismatch, SplitStatus, VersionShare};
pub use units::{Label, Rate, UnitError, Version, duration as parse_duration};
