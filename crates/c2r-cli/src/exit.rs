//! Exit codes, a contract with scripts (docs/cli.md).

use std::{error::Error, fmt};

/// Unexpected failure.
pub(crate) const UNEXPECTED: u8 = 1;
/// Wrong arguments or configuration.
pub(crate) const USAGE: u8 = 2;
/// Data missing, or not what its hash promises.
pub(crate) const DATA: u8 = 3;
/// Finished, but numbers are outside the stated tolerance.
pub(crate) const OUTSIDE_TOLERANCE: u8 = 4;
/// Interrupted; the state was saved.
pub(crate) const INTERRUPTED: u8 = 130;

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
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|cause| cause.downcast_ref::<Coded>()).map_or(UNEXPECTED, |coded| coded.code)
}

/// An error of `message` that ends the program with `code`.
pub(crate) fn fail<T>(code: u8, message: impl fmt::Display) -> anyhow::Result<T> {
    Err(anyhow::Error::new(Coded { code, error: anyhow::Error::msg(message.to_string()) }))
}

/// `error` with the exit code it asks for.
pub(crate) fn coded(code: u8, error: impl Into<anyhow::Error>) -> anyhow::Error {
    anyhow::Error::new(Coded { code, error: error.into() })
}

/// Puts an exit code on the error of a result.
pub(crate) trait OrExit<T> {
    /// Keeps the message, sets the exit code.
    fn or_exit(self, code: u8) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, code: u8) -> anyhow::Result<T> {
        self.map_err(|error| coded(code, error))
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_code_survives_more_context_and_is_not_printed() {
        let error = fail::<()>(DATA, "no folder").context("cannot load digits").unwrap_err();
        assert_eq!(code_of(&error), DATA);
        let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
        assert_eq!(chain, ["cannot load digits", "no folder"]);
        assert_eq!(code_of(&anyhow::anyhow!("boom")), UNEXPECTED);
    }
}
