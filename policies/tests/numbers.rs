//! Every number of a policy file: the schema allows what the parser takes, and what the parser does not take is refused at its place with
//! what would do.

use std::collections::BTreeMap;

use serde_json::Value;

/// Where the schema has a number, and a file that is right but for what stands in place of `@`.
const FIELDS: [(&str, &str); 28] = [
    ("models.m.labels.a", "models: {m: {labels: {a: @}}}"),
    ("models.m.split.weights.1", "models: {m: {split: {weights: {1: @, 2: 1}}}}"),
    (
        "models.m.split.without_key",
        "models: {m: {split: {weights: {1: 1}, sticky: {header: u}, without_key: @}}}",
    ),
    ("models.m.canary.baseline", "models: {m: {canary: {baseline: @, candidate: 3}}}"),
    ("models.m.canary.candidate", "models: {m: {canary: {baseline: 3, candidate: @}}}"),
    ("models.m.canary.steps[0]", "models: {m: {canary: {baseline: 1, candidate: 2, steps: [@]}}}"),
    (
        "models.m.canary.without_key",
        "models: {m: {canary: {baseline: 1, candidate: 3, sticky: {header: u}, without_key: @}}}",
    ),
    (
        "models.m.canary.gates.errors.at_most",
        "models: {m: {canary: {baseline: 1, candidate: 2, gates: {errors: {at_most: @}}}}}",
    ),
    (
        "models.m.canary.gates.latency.at_most",
        "models: {m: {canary: {baseline: 1, candidate: 2, gates: {latency: {over: 1s, at_most: @}}}}}",
    ),
    (
        "models.m.canary.gates.faults.at_most",
        "models: {m: {canary: {baseline: 1, candidate: 2, gates: {faults: {at_most: @}}}}}",
    ),
    (
        "models.m.canary.gates.disagreement.at_most",
        "models: {m: {shadow: {version: 2}, canary: {baseline: 1, candidate: 2, gates: {disagreement: {at_most: @}}}}}",
    ),
    (
        "models.m.canary.gates.drift.at_most",
        "models: {m: {canary: {baseline: 1, candidate: 2, gates: {drift: {at_most: @}}}}}",
    ),
    ("models.m.shadow.version", "models: {m: {shadow: {version: @}}}"),
    ("models.m.shadow.percent", "models: {m: {shadow: {version: 2, percent: @}}}"),
    ("models.m.shadow.in_flight_max", "models: {m: {shadow: {version: 2, in_flight_max: @}}}"),
    ("models.m.shadow.compare.absolute", "models: {m: {shadow: {version: 2, compare: {absolute: @}}}}"),
    ("models.m.shadow.compare.relative", "models: {m: {shadow: {version: 2, compare: {relative: @}}}}"),
    (
        "models.m.shadow.compare.outputs.1.absolute",
        "models: {m: {shadow: {version: 2, compare: {outputs: {1: {absolute: @}}}}}}",
    ),
    (
        "models.m.shadow.compare.outputs.1.relative",
        "models: {m: {shadow: {version: 2, compare: {outputs: {1: {relative: @}}}}}}",
    ),
    ("models.m.rules[0].use", "models: {m: {rules: [{when: {header: u, present: true}, use: @}]}}"),
    ("models.m.breaker.failures", "models: {m: {breaker: {failures: @}}}"),
    ("models.m.breaker.failing", "models: {m: {breaker: {failing: @}}}"),
    ("models.m.breaker.slow.percent", "models: {m: {breaker: {slow: {over: 1s, percent: @}}}}"),
    ("models.m.breaker.of_at_least", "models: {m: {breaker: {of_at_least: @}}}"),
    ("models.m.breaker.probes", "models: {m: {breaker: {probes: @}}}"),
    ("models.m.breaker.fallback.version", "models: {m: {breaker: {fallback: {version: @}}}}"),
    (
        "models.m.breaker.fallback.in_flight_max",
        "models: {m: {breaker: {fallback: {version: 2, in_flight_max: @}}}}",
    ),
    ("limits[0].in_flight_max", "limits: [{name: a, in_flight_max: @}]"),
];

/// Of limits of rates.
const OF_RATES: [(&str, &str); 2] = [
    ("limits[0].burst", "limits: [{name: a, rate: 1000000/s, burst: @}]"),
    ("limits[0].max_keys", "limits: [{name: a, rate: 1/s, max_keys: @}]"),
];

/// What the schema says of each of its numbers, by where they are.
fn numbers_of_the_schema() -> BTreeMap<String, Value> {
    let schema: Value = serde_json::from_str(&policies::schema()).expect("the schema is JSON");
    let mut found = BTreeMap::new();
    walk(&schema, &schema, String::new(), &mut found);
    found
}

fn walk(schema: &Value, node: &Value, path: String, found: &mut BTreeMap<String, Value>) {
    if let Some(name) = node["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
        walk(schema, &schema["$defs"][name], path.clone(), found);
    }
    for one in ["anyOf", "oneOf", "allOf"].iter().filter_map(|all| node[all].as_array()).flatten() {
        walk(schema, one, path.clone(), found);
    }
    if is_of(node, "integer") || is_of(node, "number") {
        found.insert(path.clone(), node.clone());
    }
    let dotted = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for (name, property) in node["properties"].as_object().into_iter().flatten() {
        walk(schema, property, dotted(name), found);
    }
    if node["additionalProperties"].is_object() {
        let name = match path.as_str() {
            "models" => "m",
            labels if labels.ends_with(".labels") => "a",
            _ => "1",
        };
        walk(schema, &node["additionalProperties"], dotted(name), found);
    }
    if node["items"].is_object() {
        walk(schema, &node["items"], format!("{path}[0]"), found);
    }
}

/// Whether a value of this type may stand there.
fn is_of(node: &Value, of_type: &str) -> bool {
    match &node["type"] {
        Value::Array(types) => types.iter().any(|one| one == of_type),
        one => one == of_type,
    }
}

/// What may stand in place of a number: how it is written, and what that is.
enum Written {
    Whole(i128),
    Fraction(f64),
    No(&'static str, &'static str),
}

impl Written {
    fn text(&self) -> String {
        match self {
            Self::Whole(number) => number.to_string(),
            Self::Fraction(number) => number.to_string(),
            Self::No(text, _) => (*text).to_owned(),
        }
    }

    /// Whether the schema allows it.
    fn is_allowed(&self, node: &Value) -> bool {
        let bound = |name: &str| node.get(name).map(|bound| (whole(bound), float(bound)));
        let (least, most) = (bound("minimum"), bound("maximum"));
        match self {
            Self::Whole(number) => {
                let is_least = least.is_none_or(|(least, float)| match least {
                    Some(least) => *number >= least,
                    None => *number as f64 >= float,
                });
                let is_most = most.is_none_or(|(most, float)| match most {
                    Some(most) => *number <= most,
                    None => *number as f64 <= float,
                });
                is_least && is_most
            }
            Self::Fraction(number) => {
                is_of(node, "number")
                    && least.is_none_or(|(_, least)| *number >= least)
                    && most.is_none_or(|(_, most)| *number <= most)
            }
            Self::No(_, of_type) => is_of(node, of_type),
        }
    }
}

fn float(bound: &Value) -> f64 {
    bound.as_f64().expect("a bound is a number")
}

/// Exactly, if it is whole.
fn whole(bound: &Value) -> Option<i128> {
    let number = Some(float(bound)).filter(|number| number.fract() == 0.0);
    bound.as_u64().map(i128::from).or(number.map(|number| number as i128))
}

fn plus(bound: &Value, more: i128) -> Written {
    match whole(bound) {
        Some(number) => Written::Whole(number + more),
        // As it would be written.
        None => Written::Fraction(((float(bound) + more as f64) * 1e6).round() / 1e6),
    }
}

fn probes(node: &Value) -> Vec<Written> {
    let bounds = ["minimum", "maximum"].into_iter().filter_map(|name| node.get(name));
    let around = bounds.flat_map(|bound| [-1, 0, 1].map(|more| plus(bound, more)));
    let others = [
        Written::Fraction(1.5),
        Written::No("'5'", "string"),
        Written::No("null", "null"),
        Written::No("true", "boolean"),
        Written::No("[1]", "array"),
        Written::No("{a: 1}", "object"),
    ];
    around.chain(others).collect()
}

#[test]
fn the_schema_allows_what_the_parser_takes_and_every_other_number_is_refused_with_what_would_do() {
    let numbers = numbers_of_the_schema();
    let files: BTreeMap<_, _> = FIELDS.into_iter().chain(OF_RATES).collect();
    assert!(numbers.keys().eq(files.keys()), "a number without a file: {:?}", numbers.keys());
    for (path, node) in &numbers {
        let file = files[path.as_str()];
        let column = file.find('@').unwrap() as u64 + 1;
        let by_label = is_of(node, "string");
        assert!(node.get("minimum").is_some(), "{path}: {node}");
        let beyond = [".nan", ".inf", "-.inf", "1e400", "-1e400"].map(|text| Written::No(text, "none"));
        for written in probes(node).into_iter().chain(beyond) {
            let text = written.text();
            let parsed = policies::parse(&file.replace('@', &text), "p");
            assert_eq!(parsed.is_ok(), written.is_allowed(node), "{path}: {text}: {parsed:?} {node}");
            let Err(errors) = parsed else { continue };
            let [error] = &errors.iter().collect::<Vec<_>>()[..] else { panic!("{path}: {text}: {errors}") };
            assert_eq!((error.line, error.column, error.path.as_str()), (1, column, path.as_str()), "{text}");
            // Where it need not be there, the key is to be left out.
            if error.message.starts_with("expected a value") {
                assert_eq!(text, "null", "{path}");
                continue;
            }
            // What is no label is told which are known.
            let range: Vec<String> = ["minimum", "maximum"]
                .iter()
                .filter_map(|bound| node.get(bound).filter(|_| !by_label))
                .map(|bound| whole(bound).map_or_else(|| bound.to_string(), |whole| whole.to_string()))
                .collect();
            let message = &error.message;
            let tells = |what: &String| message.split([' ', ',']).any(|word| word == what);
            assert!(range.iter().all(tells), "{path}: {text}: {message}");
            let is_plain = message.starts_with("expected ") && (by_label || message.contains(", got "));
            assert!(is_plain, "{path}: {text}: {message}");
        }
    }
}
