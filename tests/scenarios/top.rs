//! `penstock top` on a terminal: it draws, follows the size, and gives the terminal back however it ends.

use harness::{Behaviour, Screen, ScriptedEngine, Stack, Terminal, binary, eventually, infer_body};
use rustix::process::Signal;

fn stack(engine: &ScriptedEngine) -> Stack {
    let stack = Stack::builder().external_engine(engine.socket()).start();
    assert_eq!(stack.client().infer("m", &[], &infer_body("x", [1, 1], &[0.0])).status, 200);
    stack
}

fn engine() -> ScriptedEngine {
    ScriptedEngine::start(&[("m", 1, Behaviour::Answer)])
}

/// Once it fills so many columns and rows with what the process says.
fn drawn(stack: &Stack, (columns, rows): (u16, u16)) -> (Terminal, Screen) {
    let address = stack.monitor.to_string();
    let terminal = Terminal::start(&binary("penstock"), &["top", "--address", &address], (columns, rows));
    let screen = fills(&terminal, (columns, rows));
    assert!(screen.is_alternate && !screen.has_cursor, "{screen:?}");
    assert!(!terminal.edits_lines(), "it reads keys");
    (terminal, screen)
}

fn fills(terminal: &Terminal, (columns, rows): (u16, u16)) -> Screen {
    // Where there is less room it says how it is, and not who.
    let begins = if columns < 40 { "ready" } else { "penstock ready  " };
    eventually("a screen of that size", || {
        let screen = terminal.screen();
        let lines = screen.lines();
        let is_whole = lines.len() == usize::from(rows)
            && screen.line(0).starts_with(begins)
            && lines.iter().any(|line| line.starts_with("m 1"))
            && screen.line(usize::from(rows) - 1).starts_with("q quits");
        (is_whole && screen.columns() <= usize::from(columns)).then_some(screen)
    })
}

/// As a shell wants it back.
fn is_restored(terminal: &Terminal) {
    let screen = terminal.screen();
    assert!(!screen.is_alternate && screen.has_cursor, "{screen:?}");
    assert!(terminal.edits_lines(), "lines are edited again");
}

#[test]
fn it_draws_on_wide_and_narrow_terminals_and_ends_with_a_key() {
    let engine = engine();
    let stack = stack(&engine);
    for (size, key) in [((80, 24), "q"), ((20, 24), "q"), ((20, 8), "\u{3}")] {
        let (mut terminal, screen) = drawn(&stack, size);
        if size.0 == 80 {
            assert!(screen.line(0).contains(" in flight"), "{screen:?}");
        }
        terminal.press(key);
        assert_eq!(terminal.wait().code(), Some(0), "{key:?}");
        is_restored(&terminal);
    }
}

#[test]
fn whatever_signal_ends_it_the_terminal_is_as_it_was() {
    let engine = engine();
    let stack = stack(&engine);
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let (mut terminal, _) = drawn(&stack, (80, 24));
        terminal.signal(signal);
        assert_eq!(terminal.wait().code(), Some(0), "{signal:?}");
        is_restored(&terminal);
    }
}

#[test]
fn another_size_of_the_terminal_is_followed() {
    let engine = engine();
    let stack = stack(&engine);
    let (mut terminal, wide) = drawn(&stack, (80, 24));
    assert!(wide.columns() > 20);
    for size in [(20, 8), (80, 24), (40, 12)] {
        terminal.resize(size.0, size.1);
        fills(&terminal, size);
    }
    terminal.press("q");
    assert_eq!(terminal.wait().code(), Some(0));
}
