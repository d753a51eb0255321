use c2r_files::FileError;

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// A file or folder cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The archive ends early, a checksum is wrong, or it is not an archive at all.
    #[error("not a whole {format} archive: {reason}")]
    Damaged {
        /// `tar.gz` or `zip`.
        format: &'static str,
        /// The parser's message, escaped and shortened: it may quote the archive.
        reason: String,
    },
    /// An entry that cannot be read, or that no data archive needs and an attack does.
    #[error("entry `{entry}` {reason}")]
    Refused {
        /// The entry's name, escaped and shortened.
        entry: String,
        /// What is wrong with it, after its name.
        reason: String,
    },
    /// More than [`crate::Limits`] allow.
    #[error("{0}")]
    Limit(String),
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

impl ArchiveError {
    pub(crate) fn refused(entry: &[u8], reason: impl Into<String>) -> Self {
        Self::Refused { entry: shown(entry), reason: reason.into() }
    }
}

/// A text as it can be printed: a hostile one may hold escape sequences or be endless.
pub(crate) fn shown(text: &[u8]) -> String {
    const LONGEST: usize = 120;
    let text = String::from_utf8_lossy(&text[..text.len().min(4 * LONGEST)]);
    let printable = |c: char| if matches!(c, '\'' | '"') { c.to_string() } else { c.escape_debug().to_string() };
    let text: String = text.chars().map(printable).collect();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
