//! One file over HTTP, resumed and checked while it comes.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use c2r_files::FileError;
use ureq::{Agent, Body, http::Response};

use crate::{
    Digests, Event, Expected, Fault, FetchError, Watch,
    hashes::Hashes,
    origin::{Origin, header, retry_after},
};

/// Larger than any archive of a dataset; a server that does not say how much it sends is cut off here.
const MOST_BYTES: u64 = 8 << 30;
/// A try that brought this much was worth its while and does not count as failed.
const GAIN: u64 = 1 << 20;
/// Longest chain of redirects that is followed.
pub const MOST_REDIRECTS: u32 = 8;
/// How often a thread looks whether to stop.
const POLL: Duration = Duration::from_millis(30);

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Without a byte for this long, a connection is given up.
    pub stall: Duration,
    /// A connection that brings fewer bytes a second than this is given up, too.
    pub slowest: u64,
    /// The time over which its speed is taken.
    pub window: Duration,
    /// Tries in a row that bring less than a MiB before giving up.
    pub tries: u32,
    /// Before the second try; doubled before each further one.
    pub pause: Duration,
    /// The longest wait between tries, also where the server asks for one.
    pub longest_pause: Duration,
}

/// Downloads `url` into `part`, continuing where an earlier call stopped.
///
/// Returns what the whole file is, which need not be what was `expected`: that is the caller's to judge. The file may have
/// been put together from answers to several requests; if it is not what was expected, it has been fetched whole once more.
///
/// # Errors
/// [`FetchError`], as [`FetchError::Unfinished`] if something is kept in `part`.
pub fn download(
    url: &str,
    part: &Path,
    expected: &Expected,
    patience: &Patience,
    watch: &mut Watch<'_>,
) -> Result<Digests, FetchError> {
    let file = File::options().create(true).truncate(false).read(true).write(true).open(part);
    let mut file = file.map_err(FileError::io("write", part))?;
    let hashes = Hashes::of(&mut file, part, watch)?;
    let resumed = hashes.bytes > 0;
    let origin = Origin::read(part, url).filter(|_| resumed);
    let mut transfer = Transfer { url, part, expected, patience, file, hashes, resumed, origin };
    if expected.matches(&transfer.hashes.digests()) {
        Origin::keep(None, part)?;
        return Ok(transfer.hashes.digests());
    }
    if resumed {
        (watch.on_event)(Event::Resuming { bytes: transfer.hashes.bytes, part });
    }
    let result = transfer.whole(watch);
    let bytes = transfer.hashes.bytes;
    drop(transfer);
    if result.is_ok() || bytes == 0 {
        Origin::keep(None, part)?;
    }
    result.map_err(|error| {
        if bytes == 0 {
            let _ = fs::remove_file(part);
            return error;
        }
        FetchError::Unfinished { part: part.to_owned(), bytes, of: expected.bytes, cause: Box::new(error) }
    })
}

struct Transfer<'a> {
    url: &'a str,
    part: &'a Path,
    expected: &'a Expected,
    patience: &'a Patience,
    file: File,
    /// Of what is in `file`.
    hashes: Hashes,
    /// Whether `file` comes from more than one answer.
    resumed: bool,
    /// Which version of the server's file `file` is the beginning of, where that is known.
    origin: Option<Origin>,
}

/// What the thread next to a request sees of it, and says about it.
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
    Final(FetchError),
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self::Final(error)
    }
}

impl Failure {
    fn passing(reason: impl ToString) -> Self {
        Self::Passing { reason: reason.to_string(), after: None }
    }
}

impl Transfer<'_> {
    /// To the end, and once more from the start if pieces do not fit together.
    fn whole(&mut self, watch: &mut Watch<'_>) -> Result<Digests, FetchError> {
        self.finish(watch)?;
        let found = self.hashes.digests();
        if !self.resumed || self.expected.matches(&found) {
            return Ok(found);
        }
        (watch.on_event)(Event::StartingOver);
        self.start_over()?;
        self.finish(watch)?;
        Ok(self.hashes.digests())
    }

    fn finish(&mut self, watch: &mut Watch<'_>) -> Result<(), FetchError> {
        let (mut failed, mut pause) = (0, self.patience.pause);
        loop {
            let before = self.hashes.bytes;
            let result = self.attempt(watch);
            if result.is_err() && (watch.interrupted)() {
                return Err(FetchError::Interrupted);
            }
            let (reason, after) = match result {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { reason, after }) => (reason, after),
            };
            if self.hashes.bytes >= before + GAIN {
                (failed, pause) = (0, self.patience.pause);
            }
            failed += 1;
            let tries = self.patience.tries;
            if failed >= tries {
                return Err(self.fault(Fault::Failing, format!("{reason}; gave up after {failed} tries")));
            }
            let wait = after.map_or(pause, |after| after.max(pause));
            if wait > self.patience.longest_pause {
                let seconds = wait.as_secs();
                let reason =
                    format!("{reason}, and asks to wait {seconds} s; run the same command again after that time");
                return Err(self.fault(Fault::Busy, reason));
            }
            pause = (pause * 2).min(self.patience.longest_pause);
            (watch.on_event)(Event::Retrying { reason: &reason, attempt: failed + 1, tries, wait });
            let start = Instant::now();
            while start.elapsed() < wait && !(watch.interrupted)() {
                thread::sleep(POLL.min(wait));
            }
        }
    }

    fn start_over(&mut self) -> Result<(), FetchError> {
        if self.hashes.bytes > 0 {
            self.file.set_len(0).map_err(FileError::io("write", self.part))?;
        }
        (self.hashes, self.resumed, self.origin) = (Hashes::default(), false, None);
        Origin::keep(None, self.part)
    }

    fn fault(&self, fault: Fault, reason: impl ToString) -> FetchError {
        FetchError::Server { url: self.url.to_owned(), reason: reason.to_string(), fault }
    }

    fn wrong(&self, reason: impl ToString) -> Failure {
        self.fault(Fault::Confused, reason).into()
    }

    /// One request. A thread next to it closes the connection when the user asks to stop, or the body comes too slowly:
    /// a server that trickles keeps every single read short.
    fn attempt(&mut self, watch: &mut Watch<'_>) -> Result<(), Failure> {
        let config = Agent::config_builder()
            .user_agent(concat!("c2r-fetch/", env!("CARGO_PKG_VERSION")))
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
                    thread::sleep(POLL);
                }
            });
            let result = self.request(&agent).and_then(|response| self.receive(response, &pulse, watch));
            pulse.done.store(true, Ordering::SeqCst);
            result
        });
        match result {
            Err(Failure::Passing { .. }) if pulse.slow.load(Ordering::SeqCst) => {
                let (slowest, window) = (patience.slowest, patience.window);
                Err(Failure::passing(format!("the server sent less than {slowest} bytes/s for {window:?}")))
            }
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
            other => self.wrong(other),
        })
    }

    fn silence(&self) -> Failure {
        Failure::passing(format!("nothing came for {:?}", self.patience.stall))
    }

    fn receive(&mut self, response: Response<Body>, pulse: &Pulse, watch: &mut Watch<'_>) -> Result<(), Failure> {
        let total = self.begin(&response)?;
        if let (Some(offered), Some(expected)) = (total, self.expected.bytes)
            && offered != expected
        {
            let content = header(response.headers(), "content-type");
            let content = content.map(|kind| format!(" ({kind})")).unwrap_or_default();
            return Err(FetchError::Length { url: self.url.to_owned(), offered, content, expected }.into());
        }
        pulse.begun.store(true, Ordering::SeqCst);
        self.append(response.into_body().into_reader(), pulse, watch)?;
        match total.or(self.expected.bytes) {
            Some(all) if self.hashes.bytes < all => {
                let there = self.hashes.bytes;
                Err(Failure::passing(format!("the connection ended after {there} of {all} bytes")))
            }
            _ => Ok(()),
        }
    }

    /// Makes the file ready for what the answer brings: all of it, or the rest. Returns the length of the whole, if the server
    /// gives it.
    fn begin(&mut self, response: &Response<Body>) -> Result<Option<u64>, Failure> {
        let headers = response.headers();
        let origin = Origin::of(self.url, headers);
        match response.status().as_u16() {
            200 => {
                self.start_over()?;
                Origin::keep(origin.as_ref(), self.part)?;
                self.origin = origin;
                Ok(header(headers, "content-length").and_then(|text| text.parse().ok()))
            }
            206 => {
                let range = header(headers, "content-range").unwrap_or_default();
                let (start, total) = content_range(&range).ok_or_else(|| {
                    self.wrong("the server sent a part of the file without its position (Content-Range)")
                })?;
                let asked = self.hashes.bytes;
                if start != asked {
                    return Err(self.wrong(format!("asked for byte {asked}, the answer begins at {start}")));
                }
                // Some servers ignore If-Range.
                if self.origin.is_some() && origin.is_some() && self.origin != origin {
                    self.start_over()?;
                    return Err(Failure::passing("the server's file has changed since; beginning again"));
                }
                self.resumed = true;
                Ok(total)
            }
            // What is there is as long as the server's file or longer, and its hash was wrong.
            416 if self.hashes.bytes > 0 => {
                self.start_over()?;
                Err(Failure::passing("the server has no more bytes than there are already"))
            }
            408 | 429 | 500 | 502..=504 => {
                let reason = format!("the server answers {}", response.status());
                Err(Failure::Passing { reason, after: retry_after(headers) })
            }
            _ => {
                let reason = format!("the server answers {}", response.status());
                Err(self.fault(Fault::Refusing, reason).into())
            }
        }
    }

    /// Writes what comes to the end of the file.
    fn append(&mut self, mut body: impl Read, pulse: &Pulse, watch: &mut Watch<'_>) -> Result<(), Failure> {
        let most = self.expected.bytes.unwrap_or(MOST_BYTES);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(error) if matches!(inner(&error), Some(ureq::Error::Timeout(_))) => return Err(self.silence()),
                Err(error) => return Err(Failure::passing(format!("the connection broke: {error}"))),
            };
            if self.hashes.bytes + n as u64 > most {
                self.start_over()?;
                return Err(self.wrong(format!("the server sent more than the expected {most} bytes")));
            }
            self.file
                .seek(SeekFrom::Start(self.hashes.bytes))
                .and_then(|_| self.file.write_all(&buffer[..n]))
                .map_err(|error| FetchError::from(FileError::io("write", self.part)(error)))?;
            self.hashes.update(&buffer[..n]);
            pulse.bytes.fetch_add(n as u64, Ordering::SeqCst);
            (watch.on_event)(Event::Progress(self.hashes.bytes));
            if (watch.interrupted)() {
                return Err(Failure::passing("interrupted"));
            }
        }
    }
}

/// What reading a body failed with.
fn inner(error: &io::Error) -> Option<&ureq::Error> {
    error.get_ref()?.downcast_ref()
}

/// First byte and total length of `bytes 100-199/500`; the total may be `*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end): (u64, u64) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
    let total = if total.trim() == "*" { None } else { Some(total.trim().parse().ok()?) };
    (start <= end).then_some((start, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_content_range() {
        assert_eq!(content_range("bytes 100-199/500"), Some((100, Some(500))));
        assert_eq!(content_range("bytes 0-0/*"), Some((0, None)));
        for wrong in ["", "bytes */500", "bytes 5-1/500", "bytes a-b/c", "items 1-2/3", "bytes 1-2"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file.zip", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 300000\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&[7; 300_000]));
        });
        let (folder, second) = (tempfile::tempdir().unwrap(), Duration::from_secs(1));
        let part = folder.path().join("part");
        // /dev/full reads as endless zeros, so what is there must not be hashed.
        std::os::unix::fs::symlink("/dev/full", &part).unwrap();
        let (stall, window, pause, longest_pause) = (second, second, second, second);
        let mut transfer = Transfer {
            url: &url,
            part: &part,
            expected: &Expected::default(),
            patience: &Patience { stall, slowest: 0, window, tries: 3, pause, longest_pause },
            file: File::options().write(true).open(&part).unwrap(),
            hashes: Hashes::default(),
            resumed: false,
            origin: None,
        };
        let result = transfer.whole(&mut Watch { interrupted: &|| false, on_event: &mut |_| {} });
        assert!(matches!(result, Err(FetchError::DiskFull { .. })), "{result:?}");
        server.join().unwrap();
    }
}
