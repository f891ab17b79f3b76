//! A terminal: a program that runs on it, and what a person would see. Knows those control sequences (ECMA-48, and the private
//! modes of xterm) that a program needs which draws all of its screen; whether that fits is the program's business.

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A program on a terminal of its own. Is killed when dropped.
pub struct Terminal {
    process: Child,
    /// The side on which a person sits.
    person: File,
    screen: Arc<Mutex<Screen>>,
    reader: Option<JoinHandle<()>>,
}

/// What is seen.
#[derive(Clone, Debug)]
pub struct Screen {
    lines: Vec<Vec<char>>,
    /// Where the cursor is: row and column.
    at: (usize, usize),
    /// Of a control sequence, what has come.
    sequence: Option<String>,
    /// Whether it is the second screen, behind which the first one waits.
    pub is_alternate: bool,
    /// Whether the cursor is shown.
    pub has_cursor: bool,
}

impl Terminal {
    /// Starts a program on one of so many columns and rows.
    pub fn start(program: &Path, arguments: &[&str], (columns, rows): (u16, u16)) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let person = openpt(flags).expect("a free terminal");
        grantpt(&person).expect("it is ours");
        unlockpt(&person).expect("it is ours");
        tcsetwinsize(&person, size(columns, rows)).expect("a size");
        let other = || ioctl_tiocgptpeer(&person, flags).expect("the side of the program");
        // Without a session of its own it would be told of no other size, and might find the terminal of whoever runs the tests.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program).args(arguments).env("TERM", "xterm-256color");
        command.stdin(other()).stdout(other()).stderr(other());
        let process = command.spawn().expect("setsid is there");
        drop(command); // it has the program's side open as well
        let person = File::from(person);
        let screen = Arc::new(Mutex::new(Screen::new()));
        let (kept, shared) = (screen.clone(), person.try_clone().expect("a file can be shared"));
        let reader = Some(std::thread::spawn(move || show(shared, &kept)));
        Self { process, person, screen, reader }
    }

    /// What is seen now.
    pub fn screen(&self) -> Screen {
        self.screen.lock().expect("unpoisoned").clone()
    }

    /// Whether lines are edited and shown as they are typed, as a shell has it.
    pub fn edits_lines(&self) -> bool {
        let modes = tcgetattr(&self.person).expect("it is a terminal").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.person.write_all(keys.as_bytes()).expect("it is there");
    }

    /// Gives the window another size.
    pub fn resize(&self, columns: u16, rows: u16) {
        tcsetwinsize(&self.person, size(columns, rows)).expect("a size");
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("it runs");
    }

    /// Waits for its end; all that it has written is seen then.
    pub fn wait(&mut self) -> ExitStatus {
        let ended = || self.process.try_wait().expect("it is our child");
        let status = crate::eventually("the program to end", ended);
        self.reader.take().into_iter().for_each(|reader| reader.join().expect("it does not panic"));
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- terminal ---\n{}", self.screen().lines().join("\n"));
        }
        let _ = self.process.kill(); // it may have ended
        let _ = self.process.wait();
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Shows what the program writes, until it has left the terminal.
fn show(mut terminal: File, screen: &Mutex<Screen>) {
    let (mut chunk, mut bytes) = ([0; 4096], Vec::new());
    while let Ok(read @ 1..) = terminal.read(&mut chunk) {
        bytes.extend_from_slice(&chunk[..read]);
        let whole = std::str::from_utf8(&bytes).map_or_else(|error| error.valid_up_to(), str::len);
        let text = String::from_utf8(bytes.drain(..whole).collect()).expect("it is text so far");
        let answers: String =
            text.chars().filter_map(|letter| screen.lock().expect("unpoisoned").take(letter)).collect();
        if terminal.write_all(answers.as_bytes()).is_err() {
            return;
        }
    }
}

impl Screen {
    fn new() -> Self {
        Self { lines: Vec::new(), at: (0, 0), sequence: None, is_alternate: false, has_cursor: true }
    }

    /// Its lines, without the spaces at their ends.
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned()).collect()
    }

    /// One of them; empty where there is none.
    pub fn line(&self, row: usize) -> String {
        self.lines().get(row).cloned().unwrap_or_default()
    }

    /// How many columns the longest line has.
    pub fn columns(&self) -> usize {
        self.lines.iter().map(Vec::len).max().unwrap_or_default()
    }

    /// Takes what the program writes; gives what a terminal answers, if it was asked something.
    fn take(&mut self, letter: char) -> Option<String> {
        match (self.sequence.take(), letter) {
            (None, '\u{1b}') => self.sequence = Some(String::new()),
            (None, '\r') => self.at.1 = 0,
            (None, '\n') => self.at.0 += 1,
            (None, letter) => self.put(letter),
            (Some(begun), '[') if begun.is_empty() => self.sequence = Some("[".into()),
            (Some(begun), ' '..='?') => self.sequence = Some(begun + &letter.to_string()),
            (Some(whole), last) => return self.obey(whole.strip_prefix('[')?, last),
        }
        None
    }

    fn obey(&mut self, parameters: &str, last: char) -> Option<String> {
        match (parameters, last) {
            (_, 'H') => {
                let mut numbers = parameters.split(';').map(|number| number.parse().unwrap_or(1));
                let mut next = || numbers.next().unwrap_or(1_usize).saturating_sub(1);
                self.at = (next(), next());
            }
            ("2", 'J') => self.lines.clear(),
            ("?1049", 'h' | 'l') => self.is_alternate = last == 'h',
            ("?25", 'h' | 'l') => self.has_cursor = last == 'h',
            ("6", 'n') => return Some(format!("\u{1b}[{};{}R", self.at.0 + 1, self.at.1 + 1)),
            _ => {} // colours, and what does not change what is seen
        }
        None
    }

    fn put(&mut self, letter: char) {
        let (row, column) = self.at;
        if self.lines.len() <= row {
            self.lines.resize(row + 1, Vec::new());
        }
        let line = &mut self.lines[row];
        if line.len() <= column {
            line.resize(column + 1, ' ');
        }
        line[column] = letter;
        self.at.1 += 1;
    }
}
