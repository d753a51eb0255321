use std::{
    borrow::Cow,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

/// A path as text for a record, which loses nothing: a path that is not UTF-8 has `\xE9` for a byte of it that is not, and
/// `\x5C` for a backslash.
pub fn path_to_text(path: &(impl AsRef<OsStr> + ?Sized)) -> Cow<'_, str> {
    let path = path.as_ref();
    if let Some(text) = path.to_str() {
        return Cow::Borrowed(text);
    }
    let mut text = String::new();
    for chunk in path.as_encoded_bytes().utf8_chunks() {
        text += &chunk.valid().replace('\\', r"\x5C");
        text.extend(chunk.invalid().iter().map(|byte| format!(r"\x{byte:02X}")));
    }
    Cow::Owned(text)
}

/// The path that [`path_to_text`] wrote; a text that names a file as it is stands for that file.
pub fn text_to_path(text: &str) -> PathBuf {
    let literal = Path::new(text);
    if !text.contains(r"\x") || literal.symlink_metadata().is_ok() {
        return literal.to_owned();
    }
    bytes_of(text).map_or_else(|| literal.to_owned(), PathBuf::from)
}

/// A command as one would type it, for people to copy.
pub fn shell_line<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
    let quoted = words.into_iter().map(|word| match word.as_ref() {
        word if !word.is_empty() && word.chars().all(plain) => word.to_owned(),
        word => format!("'{}'", word.replace('\'', r"'\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// The path with its escapes resolved, if it is one that had to be escaped.
#[cfg(unix)]
fn bytes_of(text: &str) -> Option<OsString> {
    let mut parts = text.split(r"\x");
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend(rest.as_bytes());
    }
    let is_escaped = std::str::from_utf8(&bytes).is_err();
    is_escaped.then(|| std::os::unix::ffi::OsStringExt::from_vec(bytes))
}

#[cfg(not(unix))]
fn bytes_of(_text: &str) -> Option<OsString> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn shell_lines_are_quoted_where_needed() {
        assert_eq!(shell_line(["c2r", "--eps", "2/255", "--set", "a=1"]), "c2r --eps 2/255 --set a=1");
        assert_eq!(shell_line(["a b", "it's", ""]), r"'a b' 'it'\''s' ''");
    }

    #[test]
    fn a_path_in_latin_1_comes_back_from_its_text() {
        let path = Path::new(OsStr::from_bytes(b"r\xe9sultats\\a/\xff.json"));
        let text = path_to_text(path);
        assert_eq!(text, r"r\xE9sultats\x5Ca/\xFF.json");
        assert_eq!(text_to_path(&text), path);
        for plain in ["r\u{e9}sultats", r"C:\xylophone", r"\xE", r"a\x41"] {
            assert_eq!(path_to_text(Path::new(plain)), plain);
            assert_eq!(text_to_path(plain), Path::new(plain), "nothing in it had to be escaped");
        }
        let folder = tempfile::tempdir().unwrap();
        let literal = folder.path().join(r"r\xE9sultats");
        std::fs::write(&literal, "").unwrap();
        assert_eq!(text_to_path(literal.to_str().unwrap()), literal, "a file of that very name");
    }
}
