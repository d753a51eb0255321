//! Against a server on the loopback interface that does everything a server can do wrong.

use std::{
    fs,
    io::{self, BufRead, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use c2r_fetch::{
    Digests, Event, Expected, Fault, FetchError, MOST_REDIRECTS, Patience, Source, Watch, digests_of_file, download,
};

/// What the server does with one request; it is given the request's lines.
type Answer = Box<dyn FnOnce(&[String], &mut TcpStream) + Send>;

/// One thread that answers one request per entry, then goes away. Returns its address, and the requests when joined.
fn serve(answers: Vec<Answer>) -> (String, thread::JoinHandle<Vec<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/file.zip", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = io::BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let lines: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            answer(&lines, &mut stream);
            requests.push(lines);
        }
        requests
    });
    (address, server)
}

fn contents() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn expected() -> Expected {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("contents");
    fs::write(&path, contents()).unwrap();
    let mut watch = Watch { interrupted: &|| false, on_event: &mut |_| {} };
    let Digests { bytes, md5, sha256 } = digests_of_file(&path, &mut watch).unwrap();
    Expected { bytes: Some(bytes), md5: Some(md5), sha256: Some(sha256) }
}

/// Status line, headers, and the body as far as `body` goes.
fn say(head: &str, body: Vec<u8>) -> Answer {
    let head = head.replace('\n', "\r\n");
    Box::new(move |_, stream| {
        let _ = stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes());
        let _ = stream.write_all(&body);
    })
}

/// A well-behaved server that closes the connection after `most` bytes.
fn honest(most: usize) -> Answer {
    Box::new(move |request, stream| {
        let range = request.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(String::from));
        let start: usize = range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
        let all = contents();
        let head = match start {
            0 => "200 OK".to_owned(),
            _ => format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{}", all.len() - 1, all.len()),
        };
        let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", all.len() - start);
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&all[start..all.len().min(start.saturating_add(most))]);
    })
}

/// A server that sends something and then nothing, without closing, for as long as the client waits.
fn stalls(after: usize) -> Answer {
    Box::new(move |request, stream| {
        honest(after)(request, stream);
        let _ = stream.read(&mut [0]);
    })
}

struct Client {
    folder: tempfile::TempDir,
    patience: Patience,
    expected: Expected,
}

impl Client {
    fn new() -> Self {
        let patience = Patience {
            stall: Duration::from_millis(300),
            slowest: 0,
            window: Duration::from_secs(60),
            tries: 3,
            pause: Duration::from_millis(1),
            longest_pause: Duration::from_secs(2),
        };
        Self { folder: tempfile::tempdir().unwrap(), patience, expected: expected() }
    }

    fn part(&self) -> PathBuf {
        self.folder.path().join("file.zip.part")
    }

    fn get(&self, url: &str) -> Result<Digests, FetchError> {
        let mut watch = Watch { interrupted: &|| false, on_event: &mut |_| {} };
        download(url, &self.part(), &self.expected, &self.patience, &mut watch)
    }

    /// The download must succeed; returns the requests.
    fn gets(&self, answers: Vec<Answer>) -> Vec<Vec<String>> {
        let (url, server) = serve(answers);
        let found = self.get(&url).unwrap();
        assert!(self.expected.matches(&found), "{found:?}");
        assert_eq!(fs::read(self.part()).unwrap(), contents());
        server.join().unwrap()
    }

    /// The download must fail for this reason; returns the number of requests.
    fn fails(&self, is_reason: impl Fn(&FetchError) -> bool, parts: &[&str], answers: Vec<Answer>) -> usize {
        let (url, server) = serve(answers);
        let error = self.get(&url).unwrap_err();
        let (reason, kept) = match &error {
            FetchError::Unfinished { cause, bytes, part, .. } => {
                assert_eq!((part, *bytes), (&self.part(), self.part().metadata().unwrap().len()));
                (&**cause, true)
            }
            other => (other, false),
        };
        assert!(is_reason(reason), "{error:?}");
        assert_eq!(kept, self.part().exists());
        parts.iter().for_each(|part| assert!(error.to_string().contains(part), "{error} lacks {part}"));
        server.join().unwrap().len()
    }
}

fn is(fault: Fault) -> impl Fn(&FetchError) -> bool {
    move |error| matches!(error, FetchError::Server { fault: found, .. } if *found == fault)
}

fn ranges(requests: &[Vec<String>]) -> Vec<Option<String>> {
    let range = |lines: &Vec<String>| {
        lines.iter().find_map(|line| line.to_lowercase().strip_prefix("range: ").map(String::from))
    };
    requests.iter().map(range).collect()
}

#[test]
fn a_whole_file() {
    let requests = Client::new().gets(vec![honest(usize::MAX)]);
    assert_eq!(ranges(&requests), [None]);
    assert!(requests[0][0].starts_with("GET /file.zip HTTP/1.1"), "{requests:?}");
}

#[test]
fn a_cut_connection_is_taken_up_where_it_broke() {
    let requests = Client::new().gets(vec![honest(100_000), honest(50_000), honest(usize::MAX)]);
    assert_eq!(ranges(&requests), [None, Some("bytes=100000-".into()), Some("bytes=150000-".into())]);
}

#[test]
fn a_later_call_goes_on_and_gains_reset_the_count() {
    let client = Client::new();
    let there = vec![honest(70_000), honest(0), honest(0)];
    client.fails(is(Fault::Failing), &["gave up after 3 tries", "70000 bytes are kept in", "file.zip.part"], there);
    let requests = client.gets(vec![honest(usize::MAX)]);
    assert_eq!(ranges(&requests), [Some("bytes=70000-".into())]);
    // And a whole part needs no server at all.
    client.get("http://127.0.0.1:1/file.zip").unwrap();
}

#[test]
fn a_part_of_another_file_is_noticed() {
    let client = Client::new();
    fs::write(client.part(), vec![1; 1000]).unwrap();
    let requests = client.gets(vec![honest(usize::MAX), honest(usize::MAX)]);
    assert_eq!(ranges(&requests), [Some("bytes=1000-".into()), None]);
    // One that is longer than the file: the server says so.
    fs::write(client.part(), vec![1; 400_000]).unwrap();
    let too_far = say("416 Range Not Satisfiable\nContent-Range: bytes */300000\nContent-Length: 0", vec![]);
    let requests = client.gets(vec![too_far, honest(usize::MAX)]);
    assert_eq!(ranges(&requests), [Some("bytes=400000-".into()), None]);
}

#[test]
fn a_server_that_ignores_ranges_sends_everything_again() {
    let client = Client::new();
    let whole = say("200 OK\nContent-Length: 300000", contents());
    let requests = client.gets(vec![honest(1234), whole]);
    assert_eq!(ranges(&requests), [None, Some("bytes=1234-".into())]);
}

#[test]
fn a_range_that_was_not_asked_for() {
    for (head, reason) in [
        ("206 Partial Content\nContent-Range: bytes 5-299999/300000", "asked for byte 1234, the answer begins at 5"),
        ("206 Partial Content\nContent-Range: pages 1-2", "without its position"),
        ("206 Partial Content", "without its position"),
    ] {
        let client = Client::new();
        fs::write(client.part(), &contents()[..1234]).unwrap();
        assert_eq!(client.fails(is(Fault::Confused), &[reason, "1234 bytes"], vec![say(head, vec![])]), 1);
    }
}

#[test]
fn a_stalled_connection_is_given_up() {
    let start = Instant::now();
    let requests = Client::new().gets(vec![stalls(100_000), honest(usize::MAX)]);
    assert_eq!(ranges(&requests), [None, Some("bytes=100000-".into())]);
    let stalled = || vec![stalls(1000), stalls(1000), stalls(1000)];
    Client::new().fails(is(Fault::Failing), &["nothing came for 300ms", "gave up after 3 tries"], stalled());
    // Before the headers, too, and not for ever.
    let silent = || -> Answer { Box::new(|_, stream| drop(stream.read(&mut [0]))) };
    let client = Client::new();
    client.fails(is(Fault::Failing), &["nothing came", "gave up after 3 tries"], vec![silent(), silent(), silent()]);
    assert!(!client.part().exists(), "nothing came, so nothing is kept");
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// A server that sends a byte at a time until the client goes away, with headers that are none of the file's bytes.
fn trickles(head: &'static str, byte: &'static [u8]) -> Answer {
    Box::new(move |_, stream| {
        let _ = stream.write_all(head.replace('\n', "\r\n").as_bytes());
        while stream.write_all(byte).is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    })
}

#[test]
fn a_trickle_is_given_up() {
    let mut client = Client::new();
    // No read is short of a byte for long; 10 ms a byte are never 100,000 bytes/s, however slow this machine is.
    client.patience.stall = Duration::from_secs(30);
    client.patience.slowest = 100_000;
    client.patience.window = Duration::from_millis(100);
    let plain = || trickles("HTTP/1.1 200 OK\nContent-Length: 300000\n\n", b"x");
    let reasons = ["less than 100000 bytes/s for 100ms", "gave up after 3 tries", "kept in"];
    client.fails(is(Fault::Failing), &reasons, vec![plain(), plain(), plain()]);
    // Bytes that are not the file's keep nobody waiting, either: the extension of a chunk that never begins.
    let chunk = || trickles("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5;", b"x");
    let mut client = Client { folder: tempfile::tempdir().unwrap(), ..client };
    client.patience.tries = 1;
    client.fails(is(Fault::Failing), &["less than 100000 bytes/s"], vec![chunk()]);
}

#[test]
fn slow_is_not_too_slow() {
    let mut client = Client::new();
    client.patience.stall = Duration::from_secs(30);
    client.patience.slowest = 1;
    client.patience.window = Duration::from_millis(40);
    let steady: Answer = Box::new(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n");
        for part in contents().chunks(20_000) {
            let _ = stream.write_all(part);
            thread::sleep(Duration::from_millis(10));
        }
    });
    assert_eq!(client.gets(vec![steady]).len(), 1);
}

fn condition(request: &[String]) -> Option<String> {
    request.iter().find_map(|line| Some(line.to_lowercase().strip_prefix("if-range: ")?.to_owned()))
}

/// The file was replaced between two calls: the old beginning is not continued, however the server says so.
#[test]
fn a_changed_file_is_begun_anew() {
    let old = || say("200 OK\nETag: \"old\"\nContent-Length: 300000", vec![7; 1000]);
    let gone = || -> Answer { Box::new(|_, _| {}) };
    let whole = || say("200 OK\nETag: \"new\"\nContent-Length: 300000", contents());
    // One that ignores the condition, but tells the tag.
    let unconditional =
        say("206 Partial Content\nETag: \"new\"\nContent-Range: bytes 1000-299999/300000", contents()[1000..].to_vec());
    for answers in [vec![whole()], vec![unconditional, whole()]] {
        let n = answers.len();
        let (url, server) = serve([old(), gone(), gone()].into_iter().chain(answers).collect());
        let client = Client::new();
        let error = client.get(&url).unwrap_err();
        assert!(matches!(error, FetchError::Unfinished { bytes: 1000, of: Some(300_000), .. }), "{error:?}");
        assert!(client.part().with_file_name("file.zip.part.origin").is_file());
        assert!(client.expected.matches(&client.get(&url).unwrap()));
        let requests = server.join().unwrap();
        assert_eq!(condition(&requests[3]).as_deref(), Some("\"old\""));
        // The mixture was never put together, only to be refused by its hash.
        assert_eq!(requests.len(), 3 + n);
        assert_eq!(fs::read_dir(client.folder.path()).unwrap().count(), 1, "nothing but the file is left");
    }
}

/// The tag is about one server's file; another server may have the same bytes under another tag.
#[test]
fn another_server_is_not_asked_for_the_version_of_the_first() {
    let client = Client::new();
    let head = || say("200 OK\nETag: \"a\"\nContent-Length: 300000", contents()[..1000].to_vec());
    let gone = || -> Answer { Box::new(|_, _| {}) };
    client.fails(is(Fault::Failing), &["kept in"], vec![head(), gone(), gone()]);
    let requests = client.gets(vec![honest(usize::MAX)]);
    assert_eq!((ranges(&requests), condition(&requests[0])), (vec![Some("bytes=1000-".into())], None));
}

#[test]
fn lies_about_the_length() {
    let is_length = |error: &FetchError| matches!(error, FetchError::Length { expected: 300_000, .. });
    let refused = |length: usize, reasons: &[&str]| {
        let client = Client::new();
        let answer = say(&format!("200 OK\nContent-Type: text/html\nContent-Length: {length}"), contents());
        assert_eq!(client.fails(is_length, reasons, vec![answer]), 1);
        assert!(!client.part().exists());
    };
    let shorter = "100000 bytes shorter than the published one, so it is cut short or another file";
    refused(200_000, &["offers 200000 bytes (text/html)", "lists 300000", shorter]);
    refused(400_000, &["offers 400000 bytes", "lists 300000", "100000 bytes longer than the published one"]);

    // Where the length is not known beforehand: too short is a wrong hash, too long a connection that never brings the
    // rest.
    let mut client = Client::new();
    client.expected.bytes = None;
    let (url, server) = serve(vec![say("200 OK\nContent-Length: 200000", contents())]);
    let found = client.get(&url).unwrap();
    assert!(!client.expected.matches(&found) && found.bytes == 200_000);
    server.join().unwrap();
    let mut client = Client::new();
    client.expected.bytes = None;
    let long = say("200 OK\nContent-Length: 300001", contents());
    let nothing = || say("206 Partial Content\nContent-Range: bytes 300000-300000/300001\nContent-Length: 1", vec![]);
    client.fails(is(Fault::Failing), &["gave up after 3 tries", "kept in"], vec![long, nothing(), nothing()]);

    // No length at all: the end of the connection ends the file, and one that goes on is cut off.
    Client::new().gets(vec![say("200 OK", contents()[..1000].to_vec()), honest(usize::MAX)]);
    let client = Client::new();
    client.fails(
        is(Fault::Confused),
        &["more than the expected 300000 bytes"],
        vec![say("200 OK", [contents(), vec![0; 9]].concat())],
    );
    assert!(!client.part().exists());
}

#[test]
fn wrong_bytes_are_the_callers_to_judge() {
    let client = Client::new();
    let mut wrong = contents();
    wrong[7] ^= 1;
    let (url, server) = serve(vec![say("200 OK\nContent-Length: 300000", wrong)]);
    let found = client.get(&url).unwrap();
    assert!(!client.expected.matches(&found));
    assert_ne!(Some(&found.sha256), client.expected.sha256.as_ref());
    assert_eq!(server.join().unwrap().len(), 1);
}

#[test]
fn redirects_are_followed_and_loops_are_not() {
    let (target, server) = serve(vec![honest(usize::MAX)]);
    let client = Client::new();
    let (url, first) = serve(vec![say(&format!("302 Found\nLocation: {target}\nContent-Length: 0"), vec![])]);
    assert!(client.expected.matches(&client.get(&url).unwrap()));
    assert_eq!((first.join().unwrap().len(), server.join().unwrap().len()), (1, 1));

    let client = Client::new();
    let back = || say("302 Found\nLocation: /file.zip\nContent-Length: 0", vec![]);
    let requests = 1 + MOST_REDIRECTS as usize;
    let n = client.fails(is(Fault::Confused), &["too many redirects"], (0..requests).map(|_| back()).collect());
    assert_eq!(n, requests);
    let elsewhere = say("302 Found\nLocation: file:///etc/passwd\nContent-Length: 0", vec![]);
    // The disk is never read: it is one more request to the same server.
    let answers = vec![elsewhere, say("404 Not Found\nContent-Length: 0", vec![])];
    assert_eq!(Client::new().fails(is(Fault::Refusing), &["404"], answers), 2);
}

#[test]
fn refusals_and_requests_to_wait() {
    let status = |head: &str| say(&format!("{head}\nContent-Length: 0"), vec![]);
    assert_eq!(Client::new().fails(is(Fault::Refusing), &["404", "file.zip"], vec![status("404 Not Found")]), 1);
    assert_eq!(Client::new().fails(is(Fault::Refusing), &["403"], vec![status("403 Forbidden")]), 1);
    Client::new().gets(vec![status("503 Service Unavailable"), status("500 Oops"), honest(usize::MAX)]);
    let three = || (0..3).map(|_| status("503 Service Unavailable")).collect();
    assert_eq!(Client::new().fails(is(Fault::Failing), &["503", "gave up after 3 tries"], three()), 3);
    // Retry-After is waited for, but not for longer than we wait for anyone.
    let start = Instant::now();
    Client::new().gets(vec![status("429 Too Many Requests\nRetry-After: 1"), honest(usize::MAX)]);
    assert!(start.elapsed() >= Duration::from_secs(1));
    let late = vec![status("429 Too Many Requests\nRetry-After: 3600")];
    assert_eq!(Client::new().fails(is(Fault::Busy), &["429", "wait 3600 s"], late), 1);
    let date = "429 Too Many Requests\nDate: Sun, 06 Nov 1994 08:00:00 GMT\nRetry-After: Sun, 06 Nov 1994 09:00:00 GMT";
    assert_eq!(Client::new().fails(is(Fault::Busy), &["429", "3600 s"], vec![status(date)]), 1);
    Client::new().gets(vec![status(&date.replace("09:00:00", "07:00:00")), honest(usize::MAX)]);
    // Nonsense is not a time.
    Client::new().gets(vec![status("429 Too Many Requests\nRetry-After: soon"), honest(usize::MAX)]);
}

#[test]
fn nobody_listens_or_answers_nonsense() {
    let client = Client::new();
    let error = client.get("http://127.0.0.1:1/file.zip").unwrap_err();
    assert!(is(Fault::Failing)(&error), "{error:?}");
    let nonsense = || -> Answer { Box::new(|_, stream| drop(stream.write_all(b"SSH-2.0-OpenSSH\r\n\r\n"))) };
    client.fails(is(Fault::Confused), &["file.zip"], vec![nonsense()]);
    assert!(!client.part().exists());
}

#[test]
fn an_interrupt_ends_a_silent_connection_and_keeps_what_came() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let mut client = Client::new();
    client.patience.stall = Duration::from_secs(60);
    let (url, server) = serve(vec![stalls(100_000)]);
    let mut on_event = |event: Event<'_>| {
        if let Event::Progress(bytes) = event {
            STOP.store(bytes >= 100_000, Ordering::SeqCst);
        }
    };
    let mut watch = Watch { interrupted: &|| STOP.load(Ordering::SeqCst), on_event: &mut on_event };
    let start = Instant::now();
    let error = download(&url, &client.part(), &client.expected, &client.patience, &mut watch).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(30), "the server is silent for 60 s");
    let FetchError::Unfinished { bytes: 100_000, cause, .. } = error else { panic!("{error:?}") };
    assert!(matches!(*cause, FetchError::Interrupted), "{cause:?}");
    assert_eq!(fs::read(client.part()).unwrap(), &contents()[..100_000]);
    server.join().unwrap();
}

#[test]
fn mirrors() {
    let url = |mirror: &str| Source::on_mirror(mirror, "a.zip").unwrap();
    assert_eq!(url("https://host/path/"), Source::Url("https://host/path/a.zip".into()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    assert_eq!(url(&path), Source::File(folder.path().join("a.zip")));
    assert_eq!(url(&format!("file://{path}")), Source::File(folder.path().join("a.zip")));
    for wrong in ["ftp://host", "file:///no/such/folder", "host"] {
        assert_eq!(Source::on_mirror(wrong, "a.zip"), None, "{wrong}");
    }
}
