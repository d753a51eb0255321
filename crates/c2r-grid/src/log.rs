//! What a command printed, as far as a person wants to see it again.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

/// Lines of a log that are shown after a failure.
const SHOWN: usize = 12;

/// No more than this is read, from the end.
const BYTES: u64 = 16 << 10;

/// The last lines of a log that say something; a progress bar's carriage returns count as line ends.
pub(crate) fn tail(path: &Path, n_lines: usize) -> Vec<String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        file.read_to_end(&mut bytes)
    });
    if read.is_err() {
        return vec![];
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> =
        text.split(['\n', '\r']).map(str::trim_end).filter(|line| !line.is_empty()).map(String::from).collect();
    lines.drain(..lines.len().saturating_sub(n_lines));
    lines
}

/// The last line, empty where there is none.
pub(crate) fn last_line(path: &Path) -> String {
    tail(path, 1).pop().unwrap_or_default()
}

/// `what`, then the end of the log, indented; `nothing` if there is none.
pub(crate) fn with_end_of(path: &Path, what: &str, nothing: &str) -> String {
    let tail = tail(path, SHOWN);
    if tail.is_empty() {
        return format!("{what}\n  {nothing}");
    }
    format!("{what}\n  the end of {}:\n    {}", path.display(), tail.join("\n    "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        assert!(tail(&log, 3).is_empty());
        std::fs::write(&log, "one\ntwo\n\nthree 10%\rthree 20%  \n").unwrap();
        assert_eq!(tail(&log, 2), ["three 10%", "three 20%"]);
        assert_eq!(tail(&log, 9).len(), 4);
        std::fs::write(&log, "x".repeat(100_000) + "\nlast\n").unwrap();
        assert_eq!(tail(&log, 1), ["last"]);
    }
}
