//! Which version of a server's file an unfinished one is from, kept next to it, so that a file that has changed since is
//! fetched from its start and not glued to its old beginning.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use c2r_files::{FileError, remove_if_present};
use serde::{Deserialize, Serialize};
use ureq::http::HeaderMap;

use crate::FetchError;

/// Where bytes came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    url: String,
    /// What `If-Range` takes: an entity tag, or the date of the last change.
    version: String,
}

impl Origin {
    /// What an answer from `url` says about its version; `None` if nothing that names one version only (RFC 9110, 8.8:
    /// a weak tag does not, nor does a date less than a second before the answer's own).
    pub(crate) fn of(url: &str, headers: &HeaderMap) -> Option<Self> {
        let tag = header(headers, "etag").filter(|tag| tag.starts_with('"'));
        let version = tag.or_else(|| {
            let changed = header(headers, "last-modified")?;
            let age = date(&header(headers, "date")?)?.duration_since(date(&changed)?).ok()?;
            (age >= Duration::from_secs(1)).then_some(changed)
        })?;
        Some(Self { url: url.to_owned(), version })
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Where the origin of `part` is kept.
    pub(crate) fn path(part: &Path) -> PathBuf {
        let mut name = part.as_os_str().to_owned();
        name.push(".origin");
        name.into()
    }

    /// The origin of `part`, if it is known and is `url`: what another server calls its version says nothing.
    pub(crate) fn read(part: &Path, url: &str) -> Option<Self> {
        let origin: Self = serde_json::from_slice(&fs::read(Self::path(part)).ok()?).ok()?;
        (origin.url == url).then_some(origin)
    }

    /// Keeps `origin` next to `part`, or forgets what was kept.
    pub(crate) fn keep(origin: Option<&Self>, part: &Path) -> Result<(), FetchError> {
        let path = Self::path(part);
        let Some(origin) = origin else { return Ok(remove_if_present(&path)?) };
        let text = serde_json::to_vec(origin).expect("two texts are JSON");
        Ok(fs::write(&path, text).map_err(FileError::io("write", &path))?)
    }
}

/// A header of an answer, if it is there and is text.
pub(crate) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// A date of HTTP.
fn date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text.trim()).ok()
}

/// How long `Retry-After` asks to wait: seconds, or until a date, by the server's own clock where it tells the time.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = header(headers, "retry-after")?;
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = date(&text)?;
    let now = header(headers, "date").and_then(|text| date(&text)).unwrap_or_else(SystemTime::now);
    Some(then.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_what_names_one_version_is_one() {
        let of = |lines: &[(&'static str, &str)]| Origin::of("u", &headers(lines)).map(|origin| origin.version);
        let changed = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
        let (now, later) = (("date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("date", "Sun, 06 Nov 1994 08:49:38 GMT"));
        assert_eq!(of(&[("etag", "\"a\""), changed, later]), Some("\"a\"".into()));
        assert_eq!(of(&[("etag", "W/\"a\""), changed, later]), Some(changed.1.into()));
        assert_eq!(of(&[("etag", "W/\"a\"")]), None);
        assert_eq!(of(&[changed, now]), None);
        assert_eq!(of(&[changed]), None);
        assert_eq!(of(&[("last-modified", "yesterday"), later]), None);
    }

    #[test]
    fn an_origin_is_kept_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let part = folder.path().join("a.part");
        let origin = Origin { url: "u".into(), version: "\"v\"".into() };
        Origin::keep(None, &part).unwrap();
        assert_eq!(Origin::read(&part, "u"), None);
        Origin::keep(Some(&origin), &part).unwrap();
        assert_eq!((Origin::read(&part, "u").as_ref(), Origin::read(&part, "other")), (Some(&origin), None));
        fs::write(Origin::path(&part), "{\"url\": \"u\"").unwrap();
        assert_eq!(Origin::read(&part, "u"), None, "damaged: it is not known");
        Origin::keep(None, &part).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn times_to_come_back() {
        let after = |lines: &[(&'static str, &str)]| retry_after(&headers(lines)).map(|wait| wait.as_secs());
        let then = ("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT");
        assert_eq!(after(&[("retry-after", " 7 ")]), Some(7));
        assert_eq!(after(&[then, ("date", "Sun, 06 Nov 1994 08:49:37 GMT")]), Some(60));
        assert_eq!(after(&[then, ("date", "Sun, 06 Nov 1994 08:51:37 GMT")]), Some(0));
        assert_eq!(after(&[then]), Some(0), "long past by our clock");
        assert!(after(&[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")]) > Some(1 << 32));
        for nonsense in ["soon", "-1", "", "1.5", "99999999999999999999"] {
            assert_eq!(after(&[("retry-after", nonsense)]), None, "{nonsense}");
        }
        assert_eq!(after(&[]), None);
    }
}
