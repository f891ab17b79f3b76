//! The policy of a thousand models with three versions each, as the benchmarks swap it: 200 kB.

/// So many of them.
pub(crate) const MODELS: usize = 1_000;

/// Their entries under `models`. Another number of failures makes it another policy, in each of them.
pub(crate) fn models(failures: usize) -> String {
    let model = |at| {
        format!(
            "  model-{at}:\n    labels: {{stable: 1, next: 2, trial: 3}}\n    split:\n      weights: {{stable: 80, next: 15, trial: 5}}\n      \
             sticky: {{header: x-user-id}}\n    deadline: 2s\n    breaker: {{failures: {failures}, failing: 50}}\n"
        )
    };
    (0..MODELS).map(model).collect()
}
