//! The only place that prints: tables and JSON on standard output, errors, remarks and progress on standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use types::{ByteSize, Timestamp};

use crate::cli::Format;
use crate::error::{Error, Result};
use crate::view::{File, Time};

/// Something that is a line of a table.
pub trait Row: Serialize {
    /// The heads of the columns.
    const HEADS: &'static [&'static str];
    /// One text for each column.
    fn cells(&self, now: Timestamp) -> Vec<String>;
}

/// Something that is shown by itself, a field on each line.
pub trait Fields: Serialize {
    /// Names and texts, in order.
    fn fields(&self, now: Timestamp) -> Vec<(&'static str, String)>;
}

/// Where a command's words go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
    quiet: bool,
}

impl Output {
    /// Makes one that prints in `format`.
    pub fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet }
    }

    /// Prints a list: a table, or a JSON array.
    ///
    /// # Errors
    /// Standard output does not take it.
    pub fn list<T: Row>(&self, rows: &[T]) -> Result<()> {
        match self.format {
            Format::Json => self.json(&rows),
            Format::Table => {
                let now = now();
                let mut table = Table::new();
                table.load_style(presets::NOTHING).set_header(T::HEADS.iter().copied());
                for row in rows {
                    table.add_row(row.cells(now).iter().map(|cell| printable(cell)));
                }
                self.text(&trimmed(table))
            }
        }
    }

    /// Prints one thing: a field on each line, or a JSON object.
    ///
    /// # Errors
    /// Standard output does not take it.
    pub fn one<T: Fields>(&self, value: &T) -> Result<()> {
        match self.format {
            Format::Json => self.json(value),
            Format::Table => {
                let mut table = Table::new();
                table.load_style(presets::NOTHING);
                for (name, text) in value.fields(now()) {
                    table.add_row([name.to_owned(), printable(&text)]);
                }
                self.text(&trimmed(table))
            }
        }
    }

    /// Prints a directory and all below it, drawn as a tree; or a JSON array. `depth` is how deep the directory is.
    ///
    /// # Errors
    /// Standard output does not take it.
    pub fn tree(&self, top: &str, depth: usize, files: &[File]) -> Result<()> {
        if self.format == Format::Json {
            return self.json(&files);
        }
        let mut text = format!("{}\n", printable(top));
        for file in files {
            let level = file.path.split('/').count().saturating_sub(depth + 1);
            let name = file.path.rsplit('/').next().unwrap_or_default();
            let slash = if file.kind == "directory" { "/" } else { "" };
            let link = file.target.as_ref().map_or_else(String::new, |target| format!(" -> {target}"));
            text.push_str(&format!(
                "{}{}\n",
                "  ".repeat(level + 1),
                printable(&format!("{name}{slash}{link}"))
            ));
        }
        self.text(text.trim_end())
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    /// Standard output does not take them.
    pub fn bytes(&self, bytes: &[u8]) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(broken)
    }

    /// Says something beside the answer, to a person.
    pub fn remark(&self, text: &str) {
        if !self.quiet && self.format == Format::Table {
            say(text);
        }
    }

    /// Says what went wrong and what to do, and returns the exit code.
    pub fn failure(&self, error: &Error) -> ExitCode {
        if let Error::Local { source, what, .. } = error
            && source.kind() == io::ErrorKind::BrokenPipe
            && what == STDOUT
        {
            // The reader has what it wanted, as in `| head`.
            return ExitCode::SUCCESS;
        }
        say(&format!("error: {}", printable(&error.to_string())));
        say(&format!("what to do: {}", printable(&error.remedy())));
        error.exit_code()
    }

    /// Begins a bar that counts bytes; hidden where nobody watches.
    pub fn progress(&self, title: &str, bytes: u64) -> ProgressBar {
        if self.quiet || self.format == Format::Json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = "{msg:.bold} {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}";
        let bar = ProgressBar::new(bytes);
        bar.set_style(ProgressStyle::with_template(style).expect("the template above is well formed"));
        bar.set_message(title.to_owned());
        bar
    }

    /// Begins a spinner for work whose size is not known; hidden where nobody watches.
    pub fn spinner(&self, title: &str) -> ProgressBar {
        if self.quiet || self.format == Format::Json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new_spinner();
        bar.set_message(title.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    fn json<T: Serialize + ?Sized>(&self, value: &T) -> Result<()> {
        let mut text = serde_json::to_string_pretty(value).expect("maps with text keys serialise");
        text.push('\n');
        self.bytes(text.as_bytes())
    }

    fn text(&self, text: &str) -> Result<()> {
        self.bytes(format!("{text}\n").as_bytes())
    }
}

/// Prints what clap found wrong, in our form and no longer than a person reads; or the help that was asked for.
pub fn usage(error: &clap::Error) -> ExitCode {
    const LONGEST_WORD: usize = 120;
    if !error.use_stderr() {
        // A reader that has gone does not want the rest.
        drop(error.print());
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let lines = text.lines().take_while(|line| !line.starts_with("For more information"));
    let clip = |word: &str| match word.char_indices().nth(LONGEST_WORD) {
        Some((end, _)) => format!("{}…", &word[..end]),
        None => word.to_owned(),
    };
    let clipped = lines.map(|line| line.split(' ').map(clip).collect::<Vec<_>>().join(" "));
    let text = clipped.collect::<Vec<_>>().join("\n");
    say(&format!("error: {}", printable(text.trim_end())));
    say("what to do: `sailctl help COMMAND` shows what it takes");
    ExitCode::from(2)
}

const STDOUT: &str = "standard output";

fn broken(source: io::Error) -> Error {
    Error::local("write to", STDOUT, source)
}

#[expect(clippy::print_stderr, reason = "the one place that does")]
fn say(text: &str) {
    eprintln!("{text}");
}

fn now() -> Timestamp {
    use types::Clock as _;
    types::SystemClock.now()
}

/// Columns stand two blanks apart, the first at the margin.
fn trimmed(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Names of files and volumes come from tenants: what would steer a terminal is shown escaped.
pub fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if c.is_control() && c != '\n' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        out
    })
}

/// Writes how long ago something was: `12s`, `5m`, `3h`, `2d`; `-` for never.
pub fn ago(time: Option<Time>, now: Timestamp) -> String {
    let Some(Time(time)) = time else { return "-".to_owned() };
    match now.since(time).as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7_200 => format!("{}m", seconds / 60),
        seconds @ 7_200..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Writes a number of bytes for people.
pub fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// Writes a dash for nothing.
pub fn dash(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_file_name_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\tü"), "a\\u{1b}[2Jb\\tü");
    }

    #[test]
    fn ages_have_one_unit() {
        let now = Timestamp(1_000_000 * 1_000_000_000);
        for (seconds, text) in [(0, "0s"), (119, "119s"), (120, "2m"), (7_200, "2h"), (172_800, "2d")] {
            let then = Timestamp((1_000_000 - seconds) * 1_000_000_000);
            assert_eq!(ago(Some(Time(then)), now), text);
        }
        assert_eq!(ago(None, now), "-");
    }
}
