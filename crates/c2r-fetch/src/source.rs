use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Where an archive comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `http://` or `https://`.
    Url(String),
    /// A file of this machine.
    File(PathBuf),
}

impl Source {
    /// The file `name` of a mirror: `http(s)://HOST/PATH`, `file:///FOLDER` or a folder that exists; `None` for anything
    /// else.
    pub fn on_mirror(mirror: &str, name: &str) -> Option<Self> {
        if mirror.starts_with("http://") || mirror.starts_with("https://") {
            return Some(Self::Url(format!("{}/{name}", mirror.trim_end_matches('/'))));
        }
        let folder = Path::new(mirror.strip_prefix("file://").unwrap_or(mirror));
        folder.is_dir().then(|| Self::File(folder.join(name)))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::File(path) => path.display().fmt(f),
        }
    }
}
