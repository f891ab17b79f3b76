//! Numbers with their units, short enough for a column; and names of others, safe for a terminal.

/// What is less than ten has one more digit.
fn short(value: f64) -> String {
    if value < 9.95 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// `640us`, `12ms`, `1.2s`; `-` of nothing.
pub(super) fn time(us: Option<f64>) -> String {
    match us {
        None => "-".into(),
        Some(us) if us < 999.5 => format!("{us:.0}us"),
        Some(us) if us < 999_500.0 => format!("{}ms", short(us / 1e3)),
        Some(us) => format!("{}s", short(us / 1e6)),
    }
}

/// Requests in a second.
pub(super) fn rate(per_second: f64) -> String {
    match per_second {
        0.0 => "0/s".into(),
        0.0..0.05 => "<0.1/s".into(),
        _ => format!("{}/s", short(per_second)),
    }
}

/// Of a hundred. Neither a little is nothing, nor is most of it all.
pub(super) fn percent(value: f64) -> String {
    match value {
        0.0 => "0%".into(),
        0.0..0.05 => "<0.1%".into(),
        99.5..100.0 => ">99%".into(),
        _ => format!("{}%", short(value)),
    }
}

/// `152 MB`.
pub(super) fn bytes(value: u64) -> String {
    match value {
        0..1_000_000 => format!("{} kB", value / 1000),
        1_000_000..1_000_000_000 => format!("{} MB", value / 1_000_000),
        _ => format!("{:.1} GB", value as f64 / 1e9),
    }
}

/// `12 s`, `3 min`.
pub(super) fn lasting(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// On one line, and nothing that a terminal would obey.
pub(super) fn clean(text: &str) -> String {
    let letters = text.chars().map(|letter| if letter.is_whitespace() { ' ' } else { letter });
    letters.filter(|letter| !letter.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_a_column_and_keep_their_units() {
        assert_eq!([time(None), time(Some(640.4)), time(Some(999.6))], ["-", "640us", "1.0ms"]);
        assert_eq!([time(Some(12_345.0)), time(Some(1_234_000.0))], ["12ms", "1.2s"]);
        assert_eq!([rate(0.0), rate(3.12), rate(1800.4)], ["0/s", "3.1/s", "1800/s"]);
        assert_eq!([percent(0.0), percent(9.96), percent(100.0)], ["0%", "10%", "100%"]);
        assert_eq!([rate(0.01), percent(0.02), percent(99.98)], ["<0.1/s", "<0.1%", ">99%"]);
        assert_eq!(
            [bytes(999_999), bytes(152_000_000), bytes(7_200_000_000)],
            ["999 kB", "152 MB", "7.2 GB"]
        );
        assert_eq!([lasting(119_999), lasting(120_000), lasting(7_200_000)], ["119 s", "2 min", "2 h"]);
    }

    #[test]
    fn a_name_can_not_tell_the_terminal_anything() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\u{9b}d"), "a[2Jb cd");
    }
}
