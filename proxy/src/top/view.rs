//! What `penstock top` shows: a function of what is known, and of the room that there is. Columns go, the least important
//! first, until the rest fits; what does not fit below can be scrolled to.

use super::Watched;
use super::words::{bytes, clean, lasting, percent, rate, time};
use crate::status::{Canary, Moved, Status, Version};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use std::time::Instant;

const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const FAIR: Style = Style::new().fg(Color::Yellow);
const GOOD: Style = Style::new().fg(Color::Green);
const QUIET: Style = Style::new().add_modifier(Modifier::DIM);
const TITLE: Style = Style::new().add_modifier(Modifier::BOLD);

/// Everything, and the keys in the last line. Gives how many lines are scrolled away: nobody scrolls beyond the end.
pub(super) fn draw(frame: &mut Frame<'_>, watched: &Watched, now: Instant) -> usize {
    let Rect { width, height, .. } = frame.area();
    let rows = height.saturating_sub(1);
    let lines = lines(watched, usize::from(width), now);
    let scrolled = watched.scrolled.min(lines.len().saturating_sub(usize::from(rows)));
    let below = lines.len().saturating_sub(scrolled + usize::from(rows));
    let keys = match below {
        0 => "q quits".to_owned(),
        below => format!("q quits ↓{below}"),
    };
    let shown: Vec<_> = lines.into_iter().skip(scrolled).take(rows.into()).collect();
    frame.render_widget(Paragraph::new(shown), Rect { height: rows, ..frame.area() });
    let last = Rect { y: rows, height: height.min(1), ..frame.area() };
    frame.render_widget(Paragraph::new(Line::styled(keys, QUIET)), last);
    scrolled
}

/// The same in as many lines as it takes.
pub(super) fn lines(watched: &Watched, width: usize, now: Instant) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some((why, since)) = &watched.away {
        let since = lasting((now - *since).as_millis() as u64);
        let says = if watched.latest().is_some() { "; shown is what it said last" } else { "" };
        wrap(&mut lines, &format!("no answer for {since}, trying again: {why}{says}"), width, BAD);
    }
    let Some(status) = watched.latest() else {
        if watched.away.is_none() {
            wrap(&mut lines, &format!("asking {}", watched.address), width, QUIET);
        }
        return lines;
    };
    let versions = watched.fared();
    head(&mut lines, watched, status, &versions, width);
    attention(&mut lines, status, width);
    lines.push(Line::default());
    table(&mut lines, status, &versions, watched.seconds(), width);
    for (model, canary) in &status.canaries {
        lines.push(Line::default());
        rollout(&mut lines, model, canary, width);
    }
    limits(&mut lines, status, width);
    refusals(&mut lines, status, width);
    lines
}

/// On fewer columns it says how it is, and not who.
const NAMED: usize = 40;

fn head(
    lines: &mut Vec<Line<'static>>,
    watched: &Watched,
    status: &Status,
    versions: &[Version],
    width: usize,
) {
    let requests: u64 = versions.iter().map(|version| version.outcomes.sum()).sum();
    let (is, style) = if status.not_ready.is_some() { ("not ready", BAD) } else { ("ready", GOOD) };
    let engine = &status.engine;
    let facts = [
        rate(requests as f64 / watched.seconds()),
        format!("{} refused", rate(watched.refused() as f64 / watched.seconds())),
        format!("{} in flight", status.traffic.in_flight),
        format!("engine {}", if engine.connected { bytes(engine.resident_bytes) } else { "away".into() }),
        format!("policy {}", status.policy.generation),
        format!("up {}", lasting(status.uptime_ms)),
        format!("{} in the engine", engine.under_way),
        clean(&engine.device),
        watched.address.clone(),
    ];
    let mut line = Line::default();
    if width >= NAMED {
        line.push_span(Span::styled("penstock ", TITLE));
    }
    line.push_span(Span::styled(is, style));
    for fact in facts.into_iter().filter(|fact| !fact.is_empty()) {
        let fact = format!("  {fact}");
        if line.width() + fact.chars().count() > width {
            break; // nothing less important in its place
        }
        line.push_span(fact);
    }
    lines.push(line);
}

/// Things that are wrong; more are counted.
const ATTENTION_MAX: usize = 12;

/// What is wrong.
fn attention(lines: &mut Vec<Line<'static>>, status: &Status, width: usize) {
    if let Some(reason) = &status.not_ready {
        wrap(lines, &format!("! not ready: {reason}"), width, BAD);
    }
    if let Some(rejected) = &status.policy.rejected {
        let (generation, error) = (status.policy.generation, &rejected.error);
        wrap(
            lines,
            &format!("! the policy file is not in force, generation {generation} goes on: {error}"),
            width,
            BAD,
        );
    }
    if let Some(words) = status.at_restart.in_words() {
        wrap(lines, &format!("! {words}"), width, FAIR);
    }
    for (model, split) in status.splits.as_object().into_iter().flatten() {
        if let Some(why) = split["mismatch"]["why"].as_str() {
            wrap(lines, &format!("! {model}: the shares are not as declared: {why}"), width, FAIR);
        }
    }
    let mut wrong: Vec<_> = status.versions.iter().filter(|version| is_wrong(version)).collect();
    wrong.sort_by_key(|version| answers(version));
    let more = wrong.len().saturating_sub(ATTENTION_MAX);
    for version in wrong.into_iter().take(ATTENTION_MAX) {
        let Version { model, version: number, state, reason, breaker, .. } = version;
        if version.is_lacking() {
            wrap(lines, &format!("! {model} {number} is {state}: {reason}"), width, BAD);
        }
        if let Some(breaker) = breaker.as_ref().filter(|breaker| breaker.state == "tripped") {
            let next = match breaker.retry_after_ms.unwrap_or_default() {
                0 => "with the next request".into(),
                left => format!("in {}", lasting(left)),
            };
            let text = format!("! {model} {number} keeps failing: its breaker is open, next try {next}");
            let server = if state == "remote" { format!("; {reason}") } else { String::new() };
            wrap(lines, &format!("{text}{server}"), width, BAD);
        }
        moved(lines, version, width);
    }
    if more > 0 {
        let versions = if more == 1 { "version is not as it" } else { "versions are not as they" };
        wrap(lines, &format!("! and {more} more {versions} should be"), width, BAD);
    }
}

/// Bits beyond which it is told that something has moved, as the alert has it.
const DRIFTED: f64 = 0.05;

fn is_wrong(version: &Version) -> bool {
    let mut tensors = version.drift.iter().flat_map(|drift| &drift.tensors);
    !answers(version) || tensors.any(|tensor| tensor.least > DRIFTED)
}

fn answers(version: &Version) -> bool {
    let has_tripped = version.breaker.as_ref().is_some_and(|breaker| breaker.state == "tripped");
    !version.is_lacking() && !has_tripped
}

/// What is not as it was when a version was new.
fn moved(lines: &mut Vec<Line<'static>>, version: &Version, width: usize) {
    let tensors = version.drift.iter().flat_map(|drift| &drift.tensors);
    for Moved { side, name, column, least, .. } in tensors.filter(|tensor| tensor.least > DRIFTED) {
        let Version { model, version, .. } = version;
        let what = match column {
            _ if side == "confidence" => side.clone(),
            None => format!("{side} {name}"),
            Some(column) => format!("{side} {name}, column {column},"),
        };
        let text =
            format!("! {model} {version}: {what} has moved by {least:.2} bits since the version was new");
        wrap(lines, &text, width, FAIR);
    }
}

/// A column of the versions' table.
struct Column {
    title: &'static str,
    width: usize,
    /// Those of a small number stay longest.
    rank: u8,
    cell: fn(&Row<'_>) -> String,
}

/// What a line of it is about.
struct Row<'a> {
    version: &'a Version,
    declared: Option<f64>,
    /// Of all requests for the model.
    share: Option<f64>,
    seconds: f64,
}

const COLUMNS: [Column; 12] = [
    Column { title: "STATE", width: 12, rank: 4, cell: |row| state(row.version).0 },
    Column { title: "SHARE", width: 6, rank: 0, cell: |row| row.share.map_or("-".into(), percent) },
    Column { title: "OF", width: 6, rank: 3, cell: |row| row.declared.map_or("-".into(), percent) },
    Column {
        title: "RATE",
        width: 8,
        rank: 1,
        cell: |row| rate(row.version.outcomes.sum() as f64 / row.seconds),
    },
    Column { title: "FAILED", width: 7, rank: 5, cell: failed },
    Column { title: "P50", width: 6, rank: 6, cell: |row| time(row.version.times.whole.quantile(0.5)) },
    Column { title: "P99", width: 6, rank: 2, cell: |row| time(row.version.times.whole.quantile(0.99)) },
    Column { title: "PROXY", width: 6, rank: 9, cell: |row| time(row.version.times.proxy.mean()) },
    Column { title: "QUEUE", width: 6, rank: 7, cell: |row| time(row.version.times.queue.mean()) },
    Column { title: "RUN", width: 6, rank: 8, cell: |row| time(row.version.times.run.mean()) },
    Column {
        title: "ROWS",
        width: 5,
        rank: 10,
        cell: |row| row.version.batch_rows.mean().map_or("-".into(), |rows| format!("{rows:.1}")),
    },
    Column { title: "DRIFT", width: 5, rank: 11, cell: drift },
];

/// The name's column has at least so much.
const NAME_LEAST: usize = 10;
/// And what the longest name takes, if that is no more: columns of a larger rank than this give way to it.
const NAME_MOST: usize = 64;
const RANK_BEFORE_NAMES: u8 = 5;

/// By how many bits the tensor has moved that has moved most.
fn drift(row: &Row<'_>) -> String {
    let tensors = row.version.drift.iter().flat_map(|drift| &drift.tensors);
    tensors.map(|tensor| tensor.bits).reduce(f64::max).map_or("-".into(), |bits| format!("{bits:.2}"))
}

fn failed(row: &Row<'_>) -> String {
    match row.version.outcomes.sum() {
        0 => "-".into(),
        all => percent(100.0 * row.version.outcomes.failed as f64 / all as f64),
    }
}

fn state(version: &Version) -> (String, Style) {
    match version.breaker.as_ref().map(|breaker| breaker.state.as_str()) {
        Some("tripped") => return ("breaker".into(), BAD),
        Some("probing") => return ("probing".into(), FAIR),
        _ => {}
    }
    let style = match version.state.as_str() {
        "ready" | "remote" => GOOD,
        "loading" | "away" => FAIR,
        _ if version.is_lacking() => BAD,
        _ => QUIET,
    };
    (if version.unloaded { "unloaded".into() } else { version.state.clone() }, style)
}

fn table(lines: &mut Vec<Line<'static>>, status: &Status, versions: &[Version], seconds: f64, width: usize) {
    if versions.is_empty() {
        wrap(lines, "no models: put one into the models folder and load it", width, QUIET);
        return;
    }
    let mut ranked: Vec<usize> = (0..COLUMNS.len()).collect();
    ranked.sort_by_key(|at| COLUMNS[*at].rank);
    let longest =
        versions.iter().map(|version| name_of(&version.model, version.version).chars().count()).max();
    let wanted = longest.unwrap_or_default().clamp(NAME_LEAST, NAME_MOST);
    let mut left = width.saturating_sub(NAME_LEAST);
    ranked.retain(|at| {
        let spare = if COLUMNS[*at].rank > RANK_BEFORE_NAMES { wanted - NAME_LEAST } else { 0 };
        let fits = COLUMNS[*at].width + spare < left;
        // Nothing less important in its place: a table that changes its mind with each column is hard to read.
        left = if fits { left - COLUMNS[*at].width - 1 } else { 0 };
        fits
    });
    ranked.sort_unstable();
    let taken: usize = ranked.iter().map(|at| COLUMNS[*at].width + 1).sum();
    let name = width.saturating_sub(taken).clamp(1, wanted);
    let mut title = fit("VERSION", name);
    ranked.iter().for_each(|at| title.push_str(&aligned(COLUMNS[*at].title, COLUMNS[*at].width)));
    lines.push(Line::styled(title, QUIET));
    for version in versions {
        let of_model = versions.iter().filter(|other| other.model == version.model);
        let all: u64 = of_model.map(|other| other.outcomes.sum()).sum();
        let shares =
            status.models.get(&version.model).map(|model| model.shares.as_slice()).unwrap_or_default();
        let own: Vec<f64> = shares
            .iter()
            .filter(|share| share.version == version.version)
            .map(|share| share.percent)
            .collect();
        let row = Row {
            version,
            declared: (!own.is_empty()).then(|| own.iter().sum()),
            share: (all > 0).then(|| 100.0 * version.outcomes.sum() as f64 / all as f64),
            seconds,
        };
        let mut line = Line::from(fit_name(&version.model, version.version, name));
        for at in &ranked {
            let Column { title, width, cell, .. } = &COLUMNS[*at];
            let style = if *title == "STATE" { state(version).1 } else { Style::new() };
            line.push_span(Span::styled(aligned(&cell(&row), *width), style));
        }
        lines.push(line);
    }
}

fn rollout(lines: &mut Vec<Line<'static>>, model: &str, canary: &Canary, width: usize) {
    let Canary { candidate, baseline, phase, step, steps, percent: share, .. } = canary;
    let (word, style) = match phase.as_str() {
        "rolled_back" => ("rolled back", BAD),
        "paused" => ("paused", FAIR),
        other => (other, GOOD),
    };
    let text = format!(
        "{model}: version {candidate} gets {}, version {baseline} the rest; {word}, step {step} of {steps}",
        percent(*share)
    );
    wrap(lines, &text, width, style);
    for gate in &canary.gates {
        let (worse, well) = (gate.worse / gate.roll_back_at, gate.rare / gate.pass_at);
        let what = format!("  {:<12} {} of {}", gate.gate, gate.events, gate.requests);
        let numbers = format!("worse {}, well {}", reached(worse), reached(well));
        let bar = width.saturating_sub(34 + numbers.len() + 2).min(40);
        if bar >= 10 {
            lines.push(Line::from(vec![
                Span::raw(fit(&what, 34)),
                Span::styled(gauge(worse, bar / 2), BAD),
                Span::raw(" "),
                Span::styled(gauge(well, bar / 2), GOOD),
                Span::raw(format!(" {numbers}")),
            ]));
        } else {
            wrap(lines, &format!("{what}: {numbers}"), width, Style::new());
        }
    }
    if let Some(why) = &canary.waits_for {
        wrap(lines, &format!("  waits: {why}"), width, QUIET);
    } else if let Some(last) = canary.verdicts.last() {
        wrap(lines, &format!("  {}: {}", last.verdict.replace('_', " "), last.why), width, QUIET);
    }
}

/// Evidence as a part of what it takes.
fn reached(part: f64) -> String {
    percent((part * 100.0).min(100.0))
}

/// Evidence multiplies, so its logarithm is what grows evenly: from a hundredth to all of what it takes.
fn gauge(part: f64, width: usize) -> String {
    let filled = ((1.0 + part.clamp(0.01, 1.0).log10() / 2.0) * width as f64).round() as usize;
    "█".repeat(filled.min(width)) + &"░".repeat(width - filled.min(width))
}

/// Those first of which the most is spent.
fn limits(lines: &mut Vec<Line<'static>>, status: &Status, width: usize) {
    if status.limits.is_empty() {
        return;
    }
    lines.push(Line::default());
    lines.push(Line::styled(fit("LIMITS, SPENT BY THE BUSIEST CALLER", width), QUIET));
    let mut limits: Vec<_> = status.limits.iter().collect();
    limits.sort_by(|(_, one), (_, other)| other.spent_percent().total_cmp(&one.spent_percent()));
    for (name, limit) in limits.into_iter().take(12) {
        let start = format!("{:>7} {}", percent(limit.spent_percent()), clean(name));
        let callers = match (limit.callers, limit.exhausted) {
            (0 | 1, _) => String::new(),
            (callers, 0) => format!("  {callers} callers"),
            (callers, exhausted) => format!("  {callers} callers, {exhausted} at the limit"),
        };
        let text = format!("{start}{callers}  {} refused  {}", limit.refused, clean(&limit.says));
        let style = if limit.exhausted > 0 { FAIR } else { Style::new() };
        lines.push(Line::styled(fit(if width < 60 { &start } else { &text }, width), style));
    }
}

fn refusals(lines: &mut Vec<Line<'static>>, status: &Status, width: usize) {
    if status.refusals.recent.is_empty() {
        return;
    }
    lines.push(Line::default());
    lines.push(Line::styled(fit("WITHOUT AN ANSWER", width), QUIET));
    for kind in status.refusals.recent.iter().take(12) {
        let ago = lasting(status.unix_ms.saturating_sub(kind.last_unix_ms));
        let whose = match (&kind.model, kind.version) {
            (Some(model), Some(version)) => format!("{model} {version}"),
            (Some(model), None) => model.clone(),
            (None, _) => "-".into(),
        };
        let start = format!("{:>7} {:<13}", kind.count, kind.reason);
        let text = if width < 60 {
            start
        } else {
            format!("{start} {ago:>7} ago  {}  {}", clean(&whose), clean(&kind.says))
        };
        lines.push(Line::from(fit(&text, width)));
    }
}

/// On as many lines as it takes, within reason: what is cut off stands in the log.
fn wrap(lines: &mut Vec<Line<'static>>, text: &str, width: usize, style: Style) {
    let (text, width, most) = (clean(text), width.max(1), if width < 40 { 2 } else { 4 });
    let indent: String = text.chars().take_while(|letter| *letter == ' ').collect();
    let mut rows = vec![indent];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let row = rows.last_mut().expect("there is one from the start");
            let gap = if row.trim().is_empty() { "" } else { " " };
            let room = width.saturating_sub(row.chars().count() + gap.len());
            if word.len() <= room {
                *row += gap;
                row.extend(word);
                break;
            }
            if word.len() > width && room > 0 {
                let rest = word.split_off(room);
                *row += gap;
                row.extend(word);
                word = rest;
            }
            rows.push(String::new()); // has room for something: a width is at least 1
        }
    }
    if rows.len() > most {
        rows.truncate(most);
        let last = rows.last_mut().expect("some are left");
        *last = last.chars().take(width - 1).chain(['…']).collect();
    }
    lines.extend(rows.into_iter().map(|row| Line::styled(row, style)));
}

fn name_of(model: &str, version: u64) -> String {
    format!("{} {version}", clean(model))
}

/// A model's name loses its end before its version goes.
fn fit_name(model: &str, version: u64, width: usize) -> String {
    let number = format!(" {version}");
    let room = width.saturating_sub(number.len());
    let name = fit(&clean(model), room);
    fit(&format!("{}{number}", name.trim_end()), width)
}

/// Cut off or filled up to a width.
fn fit(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return format!("{text}{}", " ".repeat(width - count));
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        cut.push('…');
    }
    cut
}

/// A cell with the space before it.
fn aligned(text: &str, width: usize) -> String {
    format!(" {:>width$}", fit(text, width).trim_end())
}

#[cfg(test)]
mod tests;
