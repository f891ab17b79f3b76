//! The files that ship with the project are what they say: the examples compile, the schema is current.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use policies::{Attributes, Ledger, Snapshot, Version};

/// Headers and cookies, among them `path`.
struct Caller(&'static [(&'static str, &'static str)]);

impl Attributes for Caller {
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| Cow::Borrowed(*value))
    }

    fn cookie(&self, name: &str) -> Option<Cow<'_, str>> {
        self.header(name)
    }

    fn query(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn path(&self) -> Cow<'_, str> {
        self.header("path").unwrap_or("/v2/models/digits/infer".into())
    }
}

fn config(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn example(name: &str) -> Snapshot {
    policies::parse(&config(name), name).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn the_canary_example_sends_the_beta_cohort_to_the_canary_and_who_has_not_migrated_to_what_they_know() {
    let snapshot = example("policies/canary.yaml");
    let pick =
        |caller, draw| Ledger::new().pick(&snapshot, "digits", &Caller(caller), draw, |_| true).unwrap();
    assert_eq!(pick(&[("x-cohort", "beta")], 0).version, Version(2));
    assert_eq!(pick(&[], 0).version, Version(1));
    assert_eq!(pick(&[], u64::MAX).version, Version(2));
    assert_eq!(pick(&[("path", "/predictions/digits")], u64::MAX).version, Version(1));
}

#[test]
fn the_sticky_example_keeps_a_user_on_one_side() {
    let snapshot = example("policies/sticky.yaml");
    let pick =
        |caller, draw| Ledger::new().pick(&snapshot, "digits", &Caller(caller), draw, |_| true).unwrap();
    let sides: Vec<_> = (0..100).map(|draw| pick(&[("uid", "ana")], draw << 57)).collect();
    assert!(sides.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(pick(&[], u64::MAX).label.as_deref(), Some("stable"));
}

#[test]
fn the_limits_example_covers_what_its_comments_say() {
    let snapshot = example("policies/limits.yaml");
    let covering = |model| -> Vec<&str> {
        snapshot.limits().iter().filter(|limit| limit.covers(model)).map(|limit| &*limit.name).collect()
    };
    assert_eq!(covering("digits"), ["everyone", "per-user", "rows-per-user"]);
    assert_eq!(covering("transcribe"), ["everyone", "long-jobs", "rows-per-user"]);
}

/// After a change of `schema.rs`: `PENSTOCK_BLESS=1 cargo test -p penstock-policies --test configs`.
#[test]
fn the_schema_file_is_current() {
    if std::env::var_os("PENSTOCK_BLESS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/policies.schema.json");
        fs::write(path, policies::schema()).unwrap();
    }
    // As values: the order of keys depends on features that other packages switch on in serde_json.
    let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert!(
        parsed(&config("policies.schema.json")) == parsed(&policies::schema()),
        "configs/policies.schema.json is out of date; see the comment on this test"
    );
}
