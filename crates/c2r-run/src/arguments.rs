//! Command lines, read as a program reads its own.

use std::{env, ffi::OsString, io::ErrorKind, time::Duration};

use c2r_files::path_to_text;
use clap::{
    Command, CommandFactory, FromArgMatches,
    builder::{OsStringValueParser, TypedValueParser},
    error::ErrorKind as Refusal,
};

use crate::{exit, terminal};

/// The command line of this process. Help and errors are printed; the program then ends with the exit code.
///
/// # Errors
/// The exit code.
pub fn parse<C: CommandFactory + FromArgMatches>() -> Result<C, u8> {
    let error = match parse_from(env::args_os()) {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error,
    };
    if error.use_stderr() {
        terminal::notes(error.render().to_string().trim_end());
        return Err(exit::USAGE);
    }
    // Help and version are ours from the first letter to the last, so clap may colour them.
    match error.print() {
        Err(failed) if failed.kind() != ErrorKind::BrokenPipe => {
            terminal::note(format!("error: cannot write to stdout: {failed}"));
            Err(exit::UNEXPECTED)
        }
        _ if error.kind() == Refusal::DisplayHelpOnMissingArgumentOrSubcommand => Err(exit::USAGE),
        _ => Err(exit::SUCCESS),
    }
}

/// A command line; its first word is the name of the program. An environment variable that is empty is one that is not set.
///
/// # Errors
/// What is wrong with it.
pub fn parse_from<C: CommandFactory + FromArgMatches>(
    words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<C, clap::Error> {
    let mut command = without_empty_variables(C::command());
    let matches = command.try_get_matches_from_mut(words)?;
    C::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Reads a word that may be or contain a path, such as `folder:PATH`, as [`path_to_text`] writes paths.
pub fn any_text() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().map(|word| path_to_text(&word).into_owned())
}

/// Reads a name that tables show.
///
/// # Errors
/// What is wrong with it.
pub fn name(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("a name needs at least one character; leave the option out for its default".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads a time as people write it: `90s`, `9m`, `1h30m`.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than 0 s".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write a number and a unit, e.g. 90s, 9m, 1h30m")),
    }
}

fn without_empty_variables(command: Command) -> Command {
    command.mut_subcommands(without_empty_variables).mut_args(|argument| {
        let is_empty = argument.get_env().is_some_and(|name| env::var_os(name).is_some_and(|value| value.is_empty()));
        if is_empty { argument.env(None::<&'static str>) } else { argument }
    })
}
