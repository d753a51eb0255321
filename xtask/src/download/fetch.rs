//! One file from the network or a folder, checked while it comes.

mod origin;

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use md5::Md5;
use sha2::{Digest, Sha256};
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response},
};

use crate::{exit, process, ui};
use origin::{Origin, retry_after};

/// Larger than any archive of a dataset; a server that does not say how much it sends is cut off here.
const MOST_BYTES: u64 = 8 << 30;
/// A try that brought this much was worth its while and does not count as failed.
const GAIN: u64 = 1 << 20;
const MOST_REDIRECTS: u32 = 8;
/// What to do where an address does not give the file.
const ELSEWHERE: &str = "\n  take it from another server with `--mirror URL`, or bring the file from elsewhere and take it \
                         with `--mirror file:///FOLDER`";

/// What a file must be.
#[derive(Debug, Clone, Default)]
pub(super) struct Promise {
    /// Its length, where known.
    pub(super) bytes: Option<u64>,
    /// MD5, hexadecimal, where known.
    pub(super) md5: Option<String>,
    /// SHA-256, hexadecimal, where known.
    pub(super) sha256: Option<String>,
}

impl Promise {
    /// Whether `found` is what was promised. Something must be promised.
    pub(super) fn is_kept_by(&self, found: &Found) -> bool {
        let agrees = |promised: &Option<String>, found: &str| promised.as_ref().is_none_or(|hash| hash == found);
        (self.md5.is_some() || self.sha256.is_some())
            && self.bytes.is_none_or(|bytes| bytes == found.bytes)
            && agrees(&self.md5, &found.md5)
            && agrees(&self.sha256, &found.sha256)
    }
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) bytes: u64,
    pub(super) md5: String,
    pub(super) sha256: String,
}

/// Where a file comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// `http://` or `https://`.
    Url(String),
    /// A file of this machine.
    File(PathBuf),
}

impl Source {
    /// The file `name` of a mirror: `http(s)://HOST/PATH`, `file:///FOLDER` or a folder.
    ///
    /// # Errors
    /// If it is none of these.
    pub(super) fn on_mirror(mirror: &str, name: &str) -> anyhow::Result<Self> {
        if mirror.starts_with("http://") || mirror.starts_with("https://") {
            return Ok(Self::Url(format!("{}/{name}", mirror.trim_end_matches('/'))));
        }
        let folder = Path::new(mirror.strip_prefix("file://").unwrap_or(mirror));
        if folder.is_dir() {
            return Ok(Self::File(folder.join(name)));
        }
        Err(exit::usage(format!(
            "--mirror {mirror}: neither http://, https://, file:///FOLDER nor a folder that exists"
        )))
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Without a byte for this long, a connection is given up.
    pub(super) stall: Duration,
    /// A connection that brings fewer bytes a second than this is given up, too.
    pub(super) slowest: u64,
    /// The time over which its speed is taken.
    pub(super) window: Duration,
    /// Tries in a row that bring less than [`GAIN`] before giving up.
    pub(super) tries: u32,
    /// Before the second try; doubled before each further one.
    pub(super) pause: Duration,
    /// The longest wait between tries, also where the server asks for one.
    pub(super) longest_pause: Duration,
}

/// What to do while a file comes.
pub(super) struct Watch<'a> {
    /// Whether the user asked to stop.
    pub(super) interrupted: &'a (dyn Fn() -> bool + Sync),
    /// Is told how many bytes are there.
    pub(super) progress: &'a mut dyn FnMut(u64),
}

/// The hashes of what has come so far.
#[derive(Default)]
struct Hashes {
    md5: Md5,
    sha256: Sha256,
    bytes: u64,
}

impl Hashes {
    fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        self.sha256.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn found(&self) -> Found {
        Found {
            bytes: self.bytes,
            md5: hex(&self.md5.clone().finalize()),
            sha256: hex(&self.sha256.clone().finalize()),
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Length and hashes of a file of this machine.
///
/// # Errors
/// If it cannot be read, or the user interrupted us.
pub(super) fn inspect(path: &Path, watch: &mut Watch<'_>) -> anyhow::Result<Found> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hash(&mut file, path, watch)?.found())
}

fn hash(file: &mut File, path: &Path, watch: &mut Watch<'_>) -> anyhow::Result<Hashes> {
    let (mut hashes, mut buffer) = (Hashes::default(), vec![0; 1 << 20]);
    loop {
        if (watch.interrupted)() {
            return Err(exit::error(exit::INTERRUPTED, "interrupted; run the same command again to go on"));
        }
        match file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))? {
            0 => return Ok(hashes),
            n => hashes.update(&buffer[..n]),
        }
        (watch.progress)(hashes.bytes);
    }
}

/// Downloads `url` into `part`, going on where an earlier call stopped.
///
/// Returns what the whole file is, which need not be what `promise` says: that is the caller's to judge. The file may
/// have been put together from answers to several requests; if it is not what was promised, it has been fetched whole
/// once more.
///
/// # Errors
/// If the server's answer cannot become the file, it failed too often, the disk is full, or the user interrupted us. The
/// message says what is kept in `part`.
pub(super) fn download(
    url: &str,
    part: &Path,
    promise: &Promise,
    patience: &Patience,
    watch: &mut Watch<'_>,
) -> anyhow::Result<Found> {
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(part)?;
    let hashes = hash(&mut file, part, watch)?;
    let resumed = hashes.bytes > 0;
    let origin = Origin::read(part, url).filter(|_| resumed);
    let mut transfer = Transfer { url, part, promise, patience, file, hashes, resumed, origin };
    if transfer.promise.is_kept_by(&transfer.hashes.found()) {
        Origin::keep(None, part)?;
        return Ok(transfer.hashes.found());
    }
    if resumed {
        ui::note(format!("going on after the {} in {}", size(transfer.hashes.bytes), part.display()));
    }
    let result = transfer.whole(watch);
    let kept = transfer.hashes.bytes;
    drop(transfer);
    if result.is_ok() || kept == 0 {
        Origin::keep(None, part)?;
    }
    result.map_err(|error| {
        if kept == 0 {
            let _ = fs::remove_file(part);
            return error;
        }
        let code = exit::code_of(&error);
        let (total, part) =
            (promise.bytes.map(|bytes| format!(" of {}", size(bytes))).unwrap_or_default(), part.display());
        exit::error(
            code,
            format!(
                "{}\n  {}{total} are kept in {part}; the same command goes on from there",
                exit::message(&error),
                size(kept)
            ),
        )
    })
}

/// What a file of `found` bytes is instead of the published one of `published`, in words.
pub(super) fn other_length(found: u64, published: u64) -> String {
    let (difference, word) = (found.abs_diff(published), if found < published { "shorter" } else { "longer" });
    format!("{difference} bytes {word} than the published one, so it is cut short or another file")
}

/// `34.5 MB`, or bytes where that would be 0.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..100_000 => format!("{bytes} bytes"),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

struct Transfer<'a> {
    url: &'a str,
    part: &'a Path,
    promise: &'a Promise,
    patience: &'a Patience,
    file: File,
    /// Of what is in `file`.
    hashes: Hashes,
    /// Whether `file` comes from more than one answer.
    resumed: bool,
    /// Which version of the server's file `file` is the beginning of, where that is known.
    origin: Option<Origin>,
}

/// What the thread beside a request sees of it, and says about it.
#[derive(Default)]
struct Pulse {
    /// The body is coming.
    begun: AtomicBool,
    /// Bytes of it so far.
    bytes: AtomicU64,
    /// The request is over.
    done: AtomicBool,
    /// It was ended, because the body came too slowly.
    slow: AtomicBool,
}

/// Why a try failed.
enum Failure {
    /// Another try may go better, after the time the server asked for.
    Passing { reason: String, after: Option<Duration> },
    /// It would not.
    Final(anyhow::Error),
}

impl Failure {
    fn passing(reason: impl ToString) -> Self {
        Self::Passing { reason: reason.to_string(), after: None }
    }

    fn wrong(message: String) -> Self {
        Self::Final(exit::error(exit::DATA, message))
    }
}

impl Transfer<'_> {
    /// To the end, and once more from the start if pieces do not fit together.
    fn whole(&mut self, watch: &mut Watch<'_>) -> anyhow::Result<Found> {
        self.finish(watch)?;
        let found = self.hashes.found();
        if !self.resumed || self.promise.is_kept_by(&found) {
            return Ok(found);
        }
        ui::note("what was there before and what came now are not one file: fetching it whole");
        self.start_over()?;
        self.finish(watch)?;
        Ok(self.hashes.found())
    }

    fn finish(&mut self, watch: &mut Watch<'_>) -> anyhow::Result<()> {
        let (mut failed, mut pause) = (0, self.patience.pause);
        loop {
            let before = self.hashes.bytes;
            let failure = match self.attempt(watch) {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if (watch.interrupted)() {
                return Err(exit::error(exit::INTERRUPTED, "interrupted"));
            }
            let (reason, after) = match failure {
                Failure::Final(error) => return Err(error),
                Failure::Passing { reason, after } => (reason, after),
            };
            if self.hashes.bytes >= before + GAIN {
                (failed, pause) = (0, self.patience.pause);
            }
            failed += 1;
            if failed >= self.patience.tries {
                return Err(exit::error(
                    exit::DATA,
                    format!("{}: {reason}; gave up after {failed} tries{ELSEWHERE}", self.url),
                ));
            }
            let wait = after.map_or(pause, |after| after.max(pause));
            if wait > self.patience.longest_pause {
                return Err(exit::error(
                    exit::DATA,
                    format!("{}: {reason}, and asks to come back in {}; do so", self.url, ui::duration(wait)),
                ));
            }
            pause = (pause * 2).min(self.patience.longest_pause);
            ui::note(format!("{reason}; try {} of {} in {}", failed + 1, self.patience.tries, ui::duration(wait)));
            let start = Instant::now();
            while start.elapsed() < wait && !(watch.interrupted)() {
                thread::sleep(process::POLL.min(wait));
            }
        }
    }

    fn start_over(&mut self) -> anyhow::Result<()> {
        if self.hashes.bytes > 0 {
            self.file.set_len(0).with_context(|| self.cannot_write())?;
        }
        (self.hashes, self.resumed, self.origin) = (Hashes::default(), false, None);
        Origin::keep(None, self.part)
    }

    fn cannot_write(&self) -> String {
        format!("cannot write {}", self.part.display())
    }

    /// One request. A thread beside it closes the connection when the user asks to stop, or the body comes too slowly:
    /// a server that trickles keeps every single read short.
    fn attempt(&mut self, watch: &mut Watch<'_>) -> Result<(), Failure> {
        let config = Agent::config_builder()
            .user_agent(concat!("c2r-xtask/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .https_only(self.url.starts_with("https://"))
            .max_redirects(MOST_REDIRECTS)
            .timeout_resolve(Some(self.patience.stall))
            .timeout_connect(Some(self.patience.stall))
            .timeout_per_read(Some(self.patience.stall))
            // Headers may trickle in, too.
            .timeout_recv_response(Some(self.patience.stall * 2))
            .build();
        let agent = Agent::new_with_config(config);
        let (pulse, interrupted, patience) = (Pulse::default(), watch.interrupted, self.patience);
        let result = thread::scope(|scope| {
            let handle = agent.clone();
            scope.spawn(|| {
                let (mut start, mut before) = (None, 0);
                while !pulse.done.load(Ordering::SeqCst) {
                    let too_slow = pulse.begun.load(Ordering::SeqCst) && {
                        let now = pulse.bytes.load(Ordering::SeqCst);
                        let seconds = start.get_or_insert_with(Instant::now).elapsed();
                        let is_due = seconds >= patience.window;
                        let slow = ((now - before) as f64) < patience.slowest as f64 * seconds.as_secs_f64();
                        if is_due {
                            (start, before) = (None, now);
                        }
                        is_due && slow
                    };
                    if interrupted() || too_slow {
                        pulse.slow.store(too_slow, Ordering::SeqCst);
                        return handle.shutdown();
                    }
                    thread::sleep(process::POLL);
                }
            });
            let result = self.request(&agent).and_then(|response| self.receive(response, &pulse, watch));
            pulse.done.store(true, Ordering::SeqCst);
            result
        });
        match result {
            Err(Failure::Passing { .. }) if pulse.slow.load(Ordering::SeqCst) => Err(Failure::passing(format!(
                "the server sent less than {} bytes/s for {} (--min-speed, --timeout)",
                patience.slowest,
                ui::duration(patience.window)
            ))),
            other => other,
        }
    }

    fn request(&self, agent: &Agent) -> Result<Response<Body>, Failure> {
        let mut request = agent.get(self.url).header("Accept-Encoding", "identity");
        if self.hashes.bytes > 0 {
            request = request.header("Range", format!("bytes={}-", self.hashes.bytes));
            if let Some(origin) = &self.origin {
                request = request.header("If-Range", origin.version());
            }
        }
        request.call().map_err(|error| match error {
            ureq::Error::Timeout(_) => self.silence(),
            ureq::Error::Io(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => Failure::passing(error),
            // A wrong address, certificate, redirection or proxy is the same the next time.
            other => Failure::wrong(format!("{}: {other}", self.url)),
        })
    }

    fn silence(&self) -> Failure {
        Failure::passing(format!("nothing came for {} (--timeout)", ui::duration(self.patience.stall)))
    }

    fn receive(&mut self, response: Response<Body>, pulse: &Pulse, watch: &mut Watch<'_>) -> Result<(), Failure> {
        let header = |name: &str| header(response.headers(), name);
        let origin = Origin::of(self.url, response.headers());
        let status = response.status().as_u16();
        let length = header("content-length").and_then(|text| text.parse::<u64>().ok());
        let total = match status {
            200 => {
                self.start_over().map_err(Failure::Final)?;
                Origin::keep(origin.as_ref(), self.part).map_err(Failure::Final)?;
                self.origin = origin;
                length
            }
            206 => {
                let range = header("content-range").unwrap_or_default();
                let (start, total) = content_range(&range)
                    .ok_or_else(|| Failure::wrong(format!("{}: a part of a file without its place", self.url)))?;
                if start != self.hashes.bytes {
                    let (url, asked) = (self.url, self.hashes.bytes);
                    return Err(Failure::wrong(format!("{url}: asked for byte {asked}, the answer begins at {start}")));
                }
                // Some servers ignore If-Range.
                if self.origin.is_some() && origin.is_some() && self.origin != origin {
                    self.start_over().map_err(Failure::Final)?;
                    return Err(Failure::passing("the server's file has changed since; beginning again"));
                }
                self.resumed = true;
                total
            }
            // What is there is as long as the server's file or longer, and its hash was wrong.
            416 if self.hashes.bytes > 0 => {
                self.start_over().map_err(Failure::Final)?;
                return Err(Failure::passing("the server has no more bytes than there are already"));
            }
            408 | 429 | 500 | 502..=504 => {
                let reason = format!("the server answers {}", response.status());
                return Err(Failure::Passing { reason, after: retry_after(response.headers()) });
            }
            _ => {
                let (url, answer) = (self.url, response.status());
                return Err(Failure::wrong(format!("{url}: the server answers {answer}{ELSEWHERE}")));
            }
        };
        if let (Some(total), Some(promised)) = (total, self.promise.bytes)
            && total != promised
        {
            let kind = header("content-type").map(|kind| format!(" ({kind})")).unwrap_or_default();
            return Err(Failure::wrong(format!(
                "{}: the server offers {total} bytes{kind}, data/datasets.toml promises {promised}: {}\n  nothing was \
                 fetched, so no hash is known. If you have reason to trust it, and its SHA-256 (64 digits) from \
                 somebody you trust, add\n    --accept-sha256 HEX\n  to the same command; that takes a file of any \
                 length",
                self.url,
                other_length(total, promised)
            )));
        }
        let most = self.promise.bytes.unwrap_or(MOST_BYTES);
        pulse.begun.store(true, Ordering::SeqCst);
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if matches!(inner(&error), Some(ureq::Error::Timeout(_))) => return Err(self.silence()),
                Err(error) => return Err(Failure::passing(format!("the connection broke: {error}"))),
            };
            if self.hashes.bytes + n as u64 > most {
                let url = self.url;
                self.start_over().map_err(Failure::Final)?;
                return Err(Failure::wrong(format!("{url}: more bytes than the {most} there should be")));
            }
            self.file
                .seek(SeekFrom::Start(self.hashes.bytes))
                .and_then(|_| self.file.write_all(&buffer[..n]))
                .map_err(|error| Failure::Final(disk(error).context(self.cannot_write())))?;
            self.hashes.update(&buffer[..n]);
            pulse.bytes.fetch_add(n as u64, Ordering::SeqCst);
            (watch.progress)(self.hashes.bytes);
            if (watch.interrupted)() {
                return Err(Failure::passing("interrupted"));
            }
        }
        match total.or(self.promise.bytes) {
            Some(all) if self.hashes.bytes < all => {
                let there = self.hashes.bytes;
                Err(Failure::passing(format!("the connection ended after {there} of {all} bytes")))
            }
            _ => Ok(()),
        }
    }
}

/// What reading a body failed with.
fn inner(error: &io::Error) -> Option<&ureq::Error> {
    error.get_ref()?.downcast_ref()
}

/// A header of an answer, if it is there and is text.
fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// First byte and total length of `bytes 100-199/500`; the total may be `*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end): (u64, u64) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
    let total = if total.trim() == "*" { None } else { Some(total.trim().parse().ok()?) };
    (start <= end).then_some((start, total))
}

/// An error from writing; a full disk is not a bug of ours.
pub(super) fn disk(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            exit::error(exit::USAGE, "the disk is full; free some space and run the same command again")
        }
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests;
