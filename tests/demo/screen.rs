//! The live table: redrawn in place on a terminal, a line a second elsewhere.

use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

/// What is to be seen now.
pub(crate) struct Picture {
    /// For a terminal.
    pub(crate) lines: Vec<String>,
    /// For a log.
    pub(crate) brief: String,
}

/// Where it is shown.
pub(crate) struct Screen {
    title: String,
    lasting: f64,
    begun: Instant,
    shown: Option<Instant>,
    drawn: usize,
    terminal: bool,
}

impl Screen {
    /// A screen under this title, for a run of so many seconds.
    pub(crate) fn new(title: String, lasting: f64) -> Screen {
        let terminal = stdout().is_terminal();
        if !terminal {
            println!("{title}");
        }
        Screen { title, lasting, begun: Instant::now(), shown: None, drawn: 0, terminal }
    }

    /// Whether it is time for the next picture.
    pub(crate) fn is_due(&self) -> bool {
        let period = Duration::from_millis(if self.terminal { 100 } else { 1000 });
        self.shown.is_none_or(|shown| shown.elapsed() >= period)
    }

    /// Whether somebody watches.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Shows it.
    pub(crate) fn show(&mut self, picture: &Picture) {
        self.shown = Some(Instant::now());
        let time = self.begun.elapsed().as_secs_f64().min(self.lasting);
        if !self.terminal {
            println!("  {time:4.1} s  {}", picture.brief.trim_end());
            return;
        }
        // Lines that are too long are cut, not wrapped: the next picture must find its place.
        let mut text = "\x1b[?7l".to_owned();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        let title = format!("\x1b[1m{}\x1b[0m   {time:.1} s of {:.0}", self.title, self.lasting);
        for line in std::iter::once(&title).chain(&picture.lines) {
            text.push_str(&format!("\r\x1b[2K{line}\n"));
        }
        text.push_str("\x1b[?7h");
        self.drawn = picture.lines.len() + 1;
        // A terminal that is gone is no reason to stop.
        let _ = stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush());
    }

    /// Leaves the last picture as it stands.
    pub(crate) fn finish(&mut self) {
        self.drawn = 0;
        println!();
    }
}
