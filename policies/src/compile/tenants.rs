//! Rules that ask for a tenant: by what `overload` says that tells tenants apart, wherever it stands in the file.

use crate::overload::Criticality;
use crate::snapshot::Snapshot;
use crate::units::Version;
use crate::{Ledger, parse};

fn read(overload: &str) -> Result<Snapshot, String> {
    let text = format!(
        "models:
  m:
    rules:
      - when: {{tenant: acme}}
        use: 2
    split: {{weights: {{1: 1}}}}
{overload}"
    );
    parse(&text, "p.yaml").map_err(|errors| errors.to_string())
}

fn version(snapshot: &Snapshot, caller: [(&str, &str); 1]) -> Version {
    Ledger::new().pick(snapshot, "m", &caller, 0, |_| true).unwrap().version
}

#[test]
fn a_rule_holds_for_the_tenant_that_it_names_by_what_tells_tenants_apart() {
    let by_header = read("overload: {tenant: {header: X-Tenant}}").unwrap();
    assert_eq!(version(&by_header, [("x-tenant", "acme")]), Version(2));
    for other in [("x-tenant", "Acme"), ("x-tenant", ""), ("cookie:x-tenant", "acme"), ("path", "/acme")] {
        assert_eq!(version(&by_header, [other]), Version(1), "{other:?}");
    }
    let by_cookie = read("overload: {tenant: {cookie: org}}").unwrap();
    assert_eq!(version(&by_cookie, [("cookie:org", "acme")]), Version(2));
    assert_eq!(version(&by_cookie, [("x-tenant", "acme")]), Version(1));
    let told = by_header.explain();
    assert!(told.contains("header x-tenant is `acme`"), "{told}");
}

#[test]
fn how_critical_a_tenant_is_may_be_said_by_its_name() {
    let text = "
overload:
  criticality:
    - when: {tenant: nightly}
      is: sheddable
  tenant: {query: org}
";
    let snapshot = parse(text, "p.yaml").unwrap();
    let of = |org| snapshot.standing(&[("query:org", org)]).criticality;
    assert_eq!((of("nightly"), of("acme")), (Criticality::Sheddable, Criticality::Normal));
}

#[test]
fn where_nothing_tells_tenants_apart_the_rule_is_refused_with_its_line() {
    let fault = "p.yaml:4:24: models.m.rules[0].when.tenant: expected `tenant` under `overload`, such as {header: x-tenant}: nothing else tells tenants apart";
    for overload in ["", "overload: {criticality: [{when: {header: a, present: true}, is: critical}]}"] {
        assert_eq!(read(overload).unwrap_err(), fault, "{overload}");
    }
    let misspelt = read("overload: {tennant: {header: x-tenant}}").unwrap_err();
    assert!(misspelt.contains(":7:") && misspelt.ends_with("did you mean `tenant`?"), "{misspelt}");
    let unsound = read("overload: {tenant: {header: x tenant}}").unwrap_err();
    assert!(
        unsound.starts_with("p.yaml:7:") && !unsound.contains("rules"),
        "one fault is told once: {unsound}"
    );
}

#[test]
fn a_rule_that_asks_for_a_tenant_asks_for_nothing_else() {
    for (when, fault) in [
        (
            "tenant: acme, header: a",
            "expected exactly one of `header`, `cookie`, `query`, `path` and `tenant`",
        ),
        (
            "tenant: acme, present: true",
            "beside `tenant`, which has its own, expected neither `equals` nor `present`",
        ),
        ("tenant: ''", "must not be empty"),
    ] {
        let text = format!(
            "models: {{m: {{rules: [{{when: {{{when}}}, use: 1}}]}}}}\noverload: {{tenant: {{header: x-tenant}}}}"
        );
        let told = parse(&text, "p.yaml").unwrap_err().to_string();
        assert!(told.starts_with("p.yaml:1:") && told.contains(fault), "{when}: {told}");
    }
    let misspelt = "models: {m: {rules: [{when: {tenent: acme}, use: 1}]}}";
    let told = parse(misspelt, "p.yaml").unwrap_err().to_string();
    assert!(told.ends_with("did you mean `tenant`?"), "{told}");
}
