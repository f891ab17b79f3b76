//! What is read plainly is what serde-saphyr reads: of policies as people write them, and of texts that nobody would write.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;

use crate::schema::File;

fn by_saphyr<'de, T: Deserialize<'de>>(text: &'de str) -> Option<T> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).ok()
}

/// Whether it was read plainly.
#[track_caller]
fn is_plain(text: &str) -> bool {
    let plain = super::read::<File>(text).map(|file| format!("{file:?}"));
    let any = by_saphyr::<File>(text).map(|file| format!("{file:?}"));
    assert!(plain.is_none() || plain == any, "{text:?}: {plain:?}, but {any:?}");
    plain.is_some()
}

#[test]
fn a_policy_with_everything_is_plain() {
    let text = "
# Who answers whom.
models:
  digits:
    labels: {stable: 1, 'canary': 2}
    remote: {3: {url: \"http://triton:8000/v2\", ca: /etc/ca.pem}}
    split:
      weights: {stable: 90, canary: 9.5, 3: 0.5}
      sticky: {parameter: user_id}
      without_key: random
    rules:
      - when: {header: x-cohort, equals: beta}
        use: canary
      - {when: {query: debug, present: true}, use: 3}
    shadow: {version: 2, percent: 10, compare: {argmax: [probabilities]}}
    deadline: 2s
    breaker:
      failures: 5
      slow: {over: 1s, percent: 80}
      fallback: {version: stable, in_flight_max: 4}
limits:
- {name: per-user, key: {header: x-user-id}, rate: 1000/s, cost: rows}
overload:
  tenant: {header: x-tenant}
  criticality: [{when: {cookie: a, present: false}, is: critical}]
";
    assert!(is_plain(text));
}

#[test]
fn what_is_not_plain_is_left_to_others() {
    for text in [
        "",
        "# nothing",
        "models:",
        "models: ~",
        "models: null",
        "models: {a: {}, a: {}}",
        "models: {1: {}, 0x1: {}}",
        "models: {1: {}, 01: {}}",
        "models: {<<: {}}",
        "models: &all {a: {}}",
        "models: {a: &a {}, b: *a}",
        "models: !!map {a: {}}",
        "models: {a: {deadline: |\n 2s\n}}",
        "models: {a: {deadline: null}}",
        "models: {a: {labels: {x: 0x10}}}",
        "models: {a: {labels: {x: 010}}}",
        "models: {a: {labels: {x: '1'}}}",
        "models: {a: {labels: {x: 1_0}}}",
        "models: {a: {labels: {x: 1.0}}}",
        "models: {a: {labels: {x: -1}}}",
        "models: {a: {split: {weights: {1: 1e3}}}}",
        "models: {a: {split: {weights: {1: .5}}}}",
        "models: {a: {split: {weights: {1: 5.}}}}",
        "models: {a: {split: {weights: {1: .inf}}}}",
        "models: {a: {rules: [{when: {header: a, present: yes}, use: 1}]}}",
        "limits: [{name: a, rate: 1/s, key: {header: a, cookie: b}}]",
        "limits: [{name: a, rate: 1/s, name: b}]",
        "limits: [{name: a, rates: 1/s}]",
        "models: {}\n---\nmodels: {}",
        "%YAML 1.1\n---\nmodels: {}",
        "models: [",
        "models: {a: {}",
        "[]",
        "5",
    ] {
        assert!(!is_plain(text), "{text:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn texts_that_nobody_would_write_are_read_alike_or_not_at_all(
        text in "([ \\-]{0,3}(a|b|1|01|0x1|~|null|true|no|1\\.5|1e2|\"a\"|'b'|<<|&a|\\*a|!t)?(:|,|\\{|\\}|\\[|\\]|\\||#|\\?)?[ \n]?){0,12}"
    ) {
        let texts = (super::read::<BTreeMap<String, String>>(&text), by_saphyr(&text));
        prop_assert!(texts.0.is_none() || texts.0 == texts.1, "{:?}: {:?}", text, texts);
        let lists = (super::read::<BTreeMap<String, Vec<Option<f64>>>>(&text), by_saphyr(&text));
        prop_assert!(lists.0.is_none() || lists.0 == lists.1, "{:?}: {:?}", text, lists);
        let maps = (super::read::<Vec<BTreeMap<String, bool>>>(&text), by_saphyr(&text));
        prop_assert!(maps.0.is_none() || maps.0 == maps.1, "{:?}: {:?}", text, maps);
        let whole = (super::read::<BTreeMap<String, Option<u64>>>(&text), by_saphyr(&text));
        prop_assert!(whole.0.is_none() || whole.0 == whole.1, "{:?}: {:?}", text, whole);
    }
}
