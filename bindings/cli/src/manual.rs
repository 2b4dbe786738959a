//! `man` and `completions`: made from the very definitions that `args` parses with, so that they cannot differ from them.

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use ipcmutex::{Error, ErrorKind, Result};

use crate::args::Args;
use crate::show;

/// What the definitions do not say.
const MORE: &str = include_str!("manual.roff");

pub(crate) fn page() -> Result<i32> {
    let page = render().map_err(|error| {
        Error::new(ErrorKind::Io, "man", format!("the page cannot be made: {error}")).with_source(error)
    })?;
    show::print(&page)
}

pub(crate) fn completions(shell: Shell) -> Result<i32> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "ipcmutex", &mut script);
    show::print(&String::from_utf8_lossy(&script))
}

/// One page for all: each subcommand a section with its usage and its options.
fn render() -> std::io::Result<String> {
    let mut command = Args::command().mut_subcommands(without_help).about("run commands under a lock of any reach");
    command.build();
    let mut page = Vec::new();
    let whole = Man::new(command.clone()).source(concat!("ipcmutex ", env!("CARGO_PKG_VERSION"))).manual("ipcmutex");
    whole.render_title(&mut page)?;
    whole.render_name_section(&mut page)?;
    page.extend_from_slice(b".SH SYNOPSIS\n");
    for part in command.get_subcommands() {
        page.extend_from_slice(format!(".br\n{}\n", synopsis(part)).as_bytes());
    }
    page.extend_from_slice(b".SH COMMANDS\n");
    for part in command.get_subcommands() {
        let mut about = Vec::new();
        man(part).render_description_section(&mut about)?;
        page.extend(under(&about, &format!(".SS {}", part.get_name())));
        let mut options = Vec::new();
        man(part).render_options_section(&mut options)?;
        page.extend(under(&options, ".PP"));
    }
    page.extend_from_slice(MORE.as_bytes());
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// A line for the head of the page, with what each option is given.
fn synopsis(part: &Command) -> String {
    let mut line = format!("\\fBipcmutex {}\\fR", part.get_name());
    for argument in part.get_arguments() {
        let value =
            argument.get_value_names().and_then(|names| names.first()).filter(|_| argument.get_action().takes_values());
        let value = value.map(|name| format!("\\fI{name}\\fR")).unwrap_or_default();
        let short = argument.get_short().map(|letter| format!("\\-{letter}"));
        let flag = short.or_else(|| argument.get_long().map(|word| format!("\\-\\-{}", word.replace('-', "\\-"))));
        line += &match flag {
            Some(flag) => format!(" [\\fB{flag}\\fR{}{value}]", if value.is_empty() { "" } else { " " }),
            None => format!(" {value}{}", if argument.get_id() == "command" { "..." } else { "" }),
        };
    }
    line
}

fn man(part: &Command) -> Man {
    let name = format!("ipcmutex {}", part.get_name());
    Man::new(part.clone().bin_name(name.clone()).display_name(name))
}

/// Each has `--help`, and the page is that.
fn without_help(part: Command) -> Command {
    part.disable_help_flag(true)
}

/// A section of clap_mangen's under another head; nothing if it is empty.
fn under(section: &[u8], head: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(section);
    let body: Vec<&str> = text.lines().filter(|line| !line.starts_with(".SH ")).collect();
    // The definitions of roff's own strings are needed once, and the title has them.
    let body: Vec<&str> =
        body.into_iter().filter(|line| !line.starts_with(".ie") && !line.starts_with(".el")).collect();
    if body.is_empty() { Vec::new() } else { format!("{head}\n{}\n", body.join("\n")).into_bytes() }
}
