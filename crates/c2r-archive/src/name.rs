use std::path::PathBuf;

/// Longest name of one file or folder, bytes: what every common file system takes.
const LONGEST_PART: usize = 255;
/// Deepest path. The archives of the datasets have four parts.
const MOST_PARTS: usize = 16;

/// The path that an archive's entry may be written to, relative to the folder the archive is unpacked in.
///
/// * `name`: the entry's name in the archive.
/// * `top`: the archive's one top folder; every path begins with it.
///
/// `./` and a slash at the end are left out; `.` alone is the empty path.
///
/// # Errors
/// What is wrong, to be read after the name: it is absolute, has a part `..`, a backslash, a colon, a control
/// character, bytes that are not UTF-8, is too long, or is outside `top`.
pub fn entry_path(name: &[u8], top: &str) -> Result<PathBuf, String> {
    let name = std::str::from_utf8(name).map_err(|_| "has a name that is not UTF-8".to_owned())?;
    if name.is_empty() {
        return Err("has no name".into());
    }
    if name.starts_with('/') {
        return Err("is an absolute path".into());
    }
    // Separators and drive letters of other systems, and what can fake a line on a terminal.
    if let Some(odd) = name.chars().find(|&c| matches!(c, '\\' | ':') || c.is_control()) {
        return Err(format!("has the character {odd:?} in its name"));
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err("leads out of its folder (`..`)".into());
    }
    if parts.len() > MOST_PARTS || parts.iter().any(|part| part.len() > LONGEST_PART) {
        return Err(format!("is deeper than {MOST_PARTS} folders or has a name longer than {LONGEST_PART} bytes"));
    }
    if parts.first().is_some_and(|first| *first != top) {
        return Err(format!("is outside the folder `{top}` that the archive should hold"));
    }
    Ok(parts.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_what_is_wrong_with_them() {
        let good = |name: &str, path: &str| assert_eq!(entry_path(name.as_bytes(), "top"), Ok(PathBuf::from(path)));
        good("top/a/b.JPEG", "top/a/b.JPEG");
        good("./top//a/./b/", "top/a/b");
        good("top/..a/b..", "top/..a/b..");
        good("./", "");
        let long = format!("top/{}", "x".repeat(256));
        let deep = "top/".repeat(17);
        for (name, reason) in [
            (b"/etc/passwd".as_slice(), "absolute"),
            (b"//top/a", "absolute"),
            (b"../top/a", "leads out"),
            (b"top/../../a", "leads out"),
            (b"top/a/..", "leads out"),
            (b"a/b", "outside the folder `top`"),
            (b"topper/b", "outside"),
            (b"", "no name"),
            (b"top\\..\\a", r"'\\'"),
            (b"C:/top", "':'"),
            (b"top/a\0b", r"'\0'"),
            (b"top/\x1b[2J", r"'\u{1b}'"),
            (b"top/\xff", "UTF-8"),
            (long.as_bytes(), "longer than 255"),
            (deep.as_bytes(), "deeper than 16"),
        ] {
            let found = entry_path(name, "top").unwrap_err();
            assert!(found.contains(reason), "{}: {found}", name.escape_ascii());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Every path that comes out is below the folder it is joined to.
        #[test]
        fn no_name_leaves_its_folder(name in "([./\\\\a:]|top|\\.\\./){0,12}") {
            if let Ok(path) = entry_path(name.as_bytes(), "top") {
                let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
                prop_assert!(plain && (path.as_os_str().is_empty() || path.starts_with("top")), "{name:?}: {path:?}");
            }
        }
    }
}
