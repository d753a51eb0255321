//! Exit codes, a contract with scripts (docs/cli.md), and errors that carry one.

use std::{error::Error, fmt};

/// Done.
pub const SUCCESS: u8 = 0;
/// Unexpected failure.
pub const UNEXPECTED: u8 = 1;
/// Wrong arguments, configuration or machine set-up.
pub const USAGE: u8 = 2;
/// Data missing, or not what its hash promises.
pub const DATA: u8 = 3;
/// Finished, but numbers are outside the stated tolerance.
pub const OUTSIDE_TOLERANCE: u8 = 4;
/// The time limit is over; the same command resumes. As GNU `timeout` has it.
pub const TIME_LIMIT: u8 = 124;
/// Interrupted; the same command resumes.
pub const INTERRUPTED: u8 = 130;

/// An error with the exit code it asks for; prints as the error itself.
#[derive(Debug)]
struct Coded {
    code: u8,
    error: anyhow::Error,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Coded {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// The exit code that an error asks for.
pub fn code_of(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|cause| cause.downcast_ref::<Coded>()).map_or(UNEXPECTED, |coded| coded.code)
}

/// `error` with the exit code it asks for.
pub fn coded(code: u8, error: impl Into<anyhow::Error>) -> anyhow::Error {
    anyhow::Error::new(Coded { code, error: error.into() })
}

/// An error of `message` that ends the program with `code`.
pub fn error(code: u8, message: impl fmt::Display) -> anyhow::Error {
    coded(code, anyhow::Error::msg(message.to_string()))
}

/// An error about wrong arguments, configuration or machine set-up.
pub fn usage(message: impl fmt::Display) -> anyhow::Error {
    error(USAGE, message)
}

/// [`error`] as a result.
///
/// # Errors
/// Always.
pub fn fail<T>(code: u8, message: impl fmt::Display) -> anyhow::Result<T> {
    Err(error(code, message))
}

/// Puts an exit code on the error of a result.
pub trait OrExit<T> {
    /// Keeps the message, sets the exit code.
    ///
    /// # Errors
    /// That of the result.
    fn or_exit(self, code: u8) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, code: u8) -> anyhow::Result<T> {
        self.map_err(|error| coded(code, error))
    }
}

/// `text` without the stack that libtorch writes into its errors, at their end.
pub fn without_stack(text: &str) -> &str {
    let stack = ["Exception raised from", "frame #0:"].iter().filter_map(|start| text.find(start)).min();
    &text[..stack.unwrap_or(text.len())]
}

/// An error with its causes, each on a line of its own, as a program prints it before it ends, without libtorch's stack. Further
/// lines of a cause are indented: what comes from a file cannot look like a line of ours.
pub fn message(error: &anyhow::Error) -> String {
    let indented = |line: &str| if line.starts_with(' ') { line.to_owned() } else { format!("    {line}") };
    let cause = |cause: &(dyn Error + 'static)| {
        let text = cause.to_string();
        let text = without_stack(&text).trim_end();
        let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
        std::iter::once(first.to_owned()).chain(rest.lines().map(indented)).collect::<Vec<_>>().join("\n")
    };
    error.chain().map(cause).collect::<Vec<_>>().join("\n  because: ")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_code_survives_more_context_and_is_not_printed() {
        let error = fail::<()>(DATA, "no folder").context("cannot load digits").unwrap_err();
        assert_eq!(code_of(&error), DATA);
        assert_eq!(message(&error), "cannot load digits\n  because: no folder");
        assert_eq!(code_of(&anyhow::anyhow!("boom")), UNEXPECTED);
        let forged = anyhow::anyhow!("x\nlooks wrong: y\n").context("a");
        assert_eq!(message(&forged), "a\n  because: x\n    looks wrong: y");
        assert_eq!(message(&anyhow::anyhow!("two:\n  one\n  two")), "two:\n  one\n  two");
        let stack =
            "no memory\nException raised from malloc at a.cpp:1 (most recent call first):\nframe #0: c10::Error";
        assert_eq!(message(&anyhow::anyhow!(stack).context("a")), "a\n  because: no memory");
    }
}
