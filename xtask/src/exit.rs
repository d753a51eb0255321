//! Exit codes, the same contract as the `c2r` command's (docs/install.md).

use std::fmt;

/// Unexpected failure.
pub(crate) const UNEXPECTED: u8 = 1;
/// Wrong arguments, configuration or machine set-up.
pub(crate) const USAGE: u8 = 2;
/// Data is missing or not what its hash promises.
pub(crate) const DATA: u8 = 3;
/// Reproduction finished, but numbers are outside the tolerance of the experiment file.
pub(crate) const OUTSIDE_TOLERANCE: u8 = 4;
/// Interrupted; the same command goes on where it stopped.
pub(crate) const INTERRUPTED: u8 = 130;

/// A message with an exit code.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The exit code an error asks for.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map_or(UNEXPECTED, |failure| failure.code)
}

/// An error with a message and an exit code.
pub(crate) fn error(code: u8, message: impl fmt::Display) -> anyhow::Error {
    Failure { code, message: message.to_string() }.into()
}

/// An error about wrong arguments, configuration or machine set-up.
pub(crate) fn usage(message: impl fmt::Display) -> anyhow::Error {
    error(USAGE, message)
}

/// An error with its causes, one per line.
pub(crate) fn message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join("\n  because: ")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn code_survives_context() {
        let error = Err::<(), _>(usage("no such scale")).context("reading table2").unwrap_err();
        assert_eq!(code_of(&error), USAGE);
        assert_eq!(message(&error), "reading table2\n  because: no such scale");
        assert_eq!(code_of(&anyhow::anyhow!("boom")), UNEXPECTED);
    }
}
