/// What a file must be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Its length, where known.
    pub bytes: Option<u64>,
    /// MD5, hexadecimal, where known.
    pub md5: Option<String>,
    /// SHA-256, hexadecimal, where known.
    pub sha256: Option<String>,
}

impl Expected {
    /// Whether a file is what was expected; if no hash was, none is.
    pub fn matches(&self, found: &Digests) -> bool {
        let agrees = |expected: &Option<String>, found: &str| expected.as_ref().is_none_or(|hash| hash == found);
        (self.md5.is_some() || self.sha256.is_some())
            && self.bytes.is_none_or(|bytes| bytes == found.bytes)
            && agrees(&self.md5, &found.md5)
            && agrees(&self.sha256, &found.sha256)
    }

    /// If the length is known and another, how it differs.
    pub fn length_difference(&self, found: &Digests) -> Option<String> {
        self.bytes.filter(|&bytes| bytes != found.bytes).map(|bytes| other_length(found.bytes, bytes))
    }
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// Its length.
    pub bytes: u64,
    /// MD5, hexadecimal.
    pub md5: String,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// What a file of `found` bytes is instead of the published one, in words.
pub(crate) fn other_length(found: u64, published: u64) -> String {
    let (difference, word) = (found.abs_diff(published), if found < published { "shorter" } else { "longer" });
    format!("{difference} bytes {word} than the published one, so it is cut short or another file")
}
