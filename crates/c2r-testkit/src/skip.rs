//! Tests that lack what they need.

use std::{collections::BTreeSet, io::Write, sync::Mutex};

/// Set by `cargo xtask test --slow`: nothing may be skipped.
const STRICT: &str = "C2R_TEST_STRICT";

/// Says on stderr which tests do not run and why (`what: reason`), once in each test program.
///
/// # Panics
/// If the variable `C2R_TEST_STRICT` is set, as `cargo xtask test --slow` does: then nothing may be skipped.
pub fn skipped(what: &str) {
    say(what, std::env::var_os(STRICT).is_some_and(|value| !value.is_empty()));
}

fn say(what: &str, is_strict: bool) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    assert!(!is_strict, "with --slow nothing may be skipped: {what}");
    if SAID.lock().is_ok_and(|mut said| said.insert(what.to_owned())) {
        // Not `eprintln!`: the test harness would hide it, and a test that did not run must be seen.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    #[should_panic(expected = "nothing may be skipped: a test: no data")]
    fn the_strict_mode_skips_nothing() {
        super::say("a test: no data", true);
    }
}
