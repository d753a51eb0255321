//! `cargo xtask download` as a person runs it, against folders and a server on the loopback interface.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

const ARCHIVE: &str = "cifar-10-binary.tar.gz";
const FOLDER: &str = "cifar-10-batches-bin";

/// An archive in the layout of CIFAR-10 with one image in each file, and its SHA-256.
fn archive(names: &[&str]) -> (Vec<u8>, String) {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for name in names {
        let mut header = tar::Header::new_gnu();
        let image: Vec<u8> = (0..3073u32).map(|at| if at == 0 { 7 } else { (at * 31) as u8 }).collect();
        header.set_size(image.len() as u64);
        header.set_mode(0o644);
        // `set_path` would refuse what an attack wants.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, image.as_slice()).unwrap();
    }
    let bytes = tar.into_inner().unwrap().finish().unwrap();
    let hash = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    (bytes, hash)
}

fn honest_archive() -> (Vec<u8>, String) {
    let names: Vec<String> = (1..=5)
        .map(|batch| format!("{FOLDER}/data_batch_{batch}.bin"))
        .chain([format!("{FOLDER}/test_batch.bin")])
        .collect();
    archive(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn download(words: &[&str], data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("download").args(words).arg("--data").arg(data).env_remove("C2R_DATA");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What it printed must have these parts, and it must end with this code.
fn check(output: &Output, code: i32, parts: &[&str]) {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{text}");
    parts.iter().for_each(|part| assert!(text.contains(part), "{text}\nlacks {part}"));
}

fn runs(words: &[&str], data: &Path, code: i32, parts: &[&str]) {
    check(&download(words, data).output().unwrap(), code, parts);
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != ".c2r-download.lock");
    names.sort();
    names
}

/// Serves `bytes` once per entry: at most so many of them, then silence until the client goes away.
fn serve(bytes: Vec<u8>, answers: Vec<usize>) -> (String, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        for most in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let lines: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let range =
                lines.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(String::from));
            let start: usize = range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
            let (status, left) = (if start > 0 { "206 Partial Content" } else { "200 OK" }, bytes.len() - start);
            let place = format!("Content-Range: bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            let head = format!("HTTP/1.1 {status}\r\n{place}\r\nContent-Length: {left}\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&bytes[start..bytes.len().min(start.saturating_add(most))]).unwrap();
            if most < left {
                let _ = stream.read(&mut [0]);
            }
        }
    });
    (address, server)
}

/// As on a network file system without its lock service: the kernel answers every `flock` with ENOLCK.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
const WITHOUT_LOCKS: &str = r#"
import ctypes, os, struct, sys
ERRNO, ALLOW, FLOCK, ENOLCK = 0x50000, 0x7FFF0000, 73, 37
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, FLOCK), (0x06, 0, 0, ERRNO | ENOLCK), (0x06, 0, 0, ALLOW)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
class Filter(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
call = ctypes.CDLL(None).prctl
assert call(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert call(22, 2, ctypes.byref(Filter(len(steps), ctypes.addressof(program))), 0, 0) == 0  # PR_SET_SECCOMP
os.execvp(sys.argv[1], sys.argv[1:])
"#;

#[test]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn a_file_system_without_locks_gets_a_note() {
    let (mirror, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (bytes, hash) = honest_archive();
    fs::write(mirror.path().join(ARCHIVE), bytes).unwrap();
    let mirror = mirror.path().to_str().unwrap();
    let download = download(&["cifar10", "--mirror", mirror, "--accept-sha256", &hash], data.path());
    let mut command = Command::new("python3");
    command.args(["-c", WITHOUT_LOCKS]).arg(download.get_program()).args(download.get_args()).env_remove("C2R_DATA");
    check(&command.output().unwrap(), 0, &["this file system has no locks", "6 files"]);
}

#[test]
fn from_a_folder_without_a_network() {
    let (mirror_folder, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let data = data.path();
    let (bytes, hash) = honest_archive();
    fs::write(mirror_folder.path().join(ARCHIVE), &bytes).unwrap();
    let mirror = format!("file://{}", mirror_folder.path().display());
    let words = ["cifar10", "--mirror", &mirror];

    let published = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd";
    let accept = format!("--accept-sha256 {hash}");
    let shorter = format!("{} bytes shorter than the published one", 170_052_171 - bytes.len());
    runs(
        &words,
        data,
        3,
        &["expected", published, "found", &hash, &accept, "170052171", &shorter, "stays where it is"],
    );
    assert_eq!(fs::read(mirror_folder.path().join(ARCHIVE)).unwrap(), bytes);
    assert!(names(data).is_empty(), "nothing is left of what was refused");

    let words = ["cifar10", "--mirror", &mirror, "--accept-sha256", &hash];
    // A folder with nothing in it is not the dataset.
    fs::create_dir(data.join(FOLDER)).unwrap();
    runs(&["cifar10", "--list"], data, 0, &["not found; it would be in"]);
    runs(&words, data, 0, &["6 files", "accepted by hand", "licence"]);
    assert_eq!(names(data), [FOLDER]);
    let folder = data.join(FOLDER);
    assert_eq!(fs::read(folder.join("test_batch.bin")).unwrap().len(), 3073);
    let record = fs::read_to_string(folder.join(".c2r-download.json")).unwrap();
    assert!(record.contains(&hash) && record.contains(&format!("\"accepted_instead_of\": \"sha256 {published}\"")));

    runs(&words, data, 0, &["exists already", ARCHIVE]);
    runs(&["cifar10", "--verify"], data, 0, &["unchanged since it was unpacked", "accepted by hand instead of"]);
    let by_hand = format!("from cifar-10-binary.tar.gz: SHA-256 {hash} accepted by hand instead of sha256 {published}");
    let listed = [FOLDER, &by_hand, "170.1 MB", "https://www.cs.toronto.edu", "licence", "none stated"];
    runs(&["cifar10", "--list"], data, 0, &listed);
    runs(&["--list"], data, 0, &["digits: UCI", "CC BY 4.0", "imagewoof2-160.tgz", "your copy of ILSVRC-2012"]);

    fs::write(folder.join("data_batch_2.bin"), b"changed").unwrap();
    fs::remove_file(folder.join("data_batch_3.bin")).unwrap();
    fs::write(folder.join("extra.bin"), b"").unwrap();
    let problems =
        ["data_batch_2.bin: changed", "data_batch_3.bin: gone", "extra.bin: not from the archive", "3 files differ"];
    runs(&["cifar10", "--verify"], data, 3, &problems);
}

#[test]
fn wrong_words() {
    let data = tempfile::tempdir().unwrap();
    runs(&["digits"], data.path(), 0, &["nothing to download", "hash verified", "c2r inspect digits"]);
    runs(&["cifar11"], data.path(), 2, &["`cifar11` is not a dataset; the datasets are digits, cifar10"]);
    runs(&["imagefruit"], data.path(), 2, &["your copy of ILSVRC-2012", "imagenet or ILSVRC2012"]);
    runs(&["imagenette", "--archive", "x.zip"], data.path(), 2, &["imagenette2-320.tgz, imagenette2-160.tgz"]);
    runs(&["cifar10", "--accept-sha256", "c4a3"], data.path(), 2, &["64 hexadecimal digits"]);
    runs(&["cifar10", "--mirror", "gopher://x"], data.path(), 2, &["gopher://x"]);
    runs(&["cifar10", "--mirror", &data.path().display().to_string()], data.path(), 3, &["cannot read", ARCHIVE]);
    runs(&["cifar10", "--verify"], data.path(), 3, &["this command downloaded nothing"]);
    let mut nowhere = Command::new(env!("CARGO_BIN_EXE_xtask"));
    check(&nowhere.args(["download", "cifar10"]).env_remove("C2R_DATA").output().unwrap(), 2, &["--data DIR"]);
    assert!(names(data.path()).is_empty());
}

#[test]
fn a_rejected_file_is_kept_and_can_be_accepted_without_another_download() {
    let data = tempfile::tempdir().unwrap();
    let data = data.path();
    // CIFAR-10 has a known length, which the server's answer breaks at once; ImageWoof has none.
    let (bytes, hash) = archive(&["imagewoof2-160/train/n02096294/a.JPEG"]);
    let (mirror, server) = serve(bytes, vec![usize::MAX]);
    let kept = "imagewoof2-160.tgz.rejected";
    let again = format!("--mirror {mirror} --archive imagewoof2-160.tgz --accept-sha256 {hash}");
    runs(&["imagewoof", "--mirror", &mirror], data, 3, &[kept, "663c22f6", &again]);
    server.join().unwrap();
    assert_eq!(names(data), [kept]);
    runs(&["imagewoof", "--list"], data, 0, &[kept, "with a wrong hash"]);
    // The server is gone.
    runs(&["imagewoof", "--mirror", &mirror, "--accept-sha256", &hash], data, 0, &["1 file,", "accepted by hand"]);
    assert_eq!(names(data), ["imagewoof2-160"]);
}

#[test]
fn an_attack_is_not_unpacked_even_if_its_hash_is_accepted() {
    let (mirror, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (bytes, hash) = archive(&["cifar-10-batches-bin/data_batch_1.bin", "../escaped"]);
    fs::write(mirror.path().join(ARCHIVE), bytes).unwrap();
    // What a killed unpacking left is swept on the way.
    fs::create_dir_all(data.path().join(".c2r-unpacking-dead/half")).unwrap();
    let words = ["cifar10", "--mirror", mirror.path().to_str().unwrap(), "--accept-sha256", &hash];
    runs(&words, data.path(), 3, &["`../escaped`", "leads out of its folder", "removing", ".c2r-unpacking-dead"]);
    assert!(names(data.path()).is_empty());
    assert!(!data.path().with_file_name("escaped").exists());
}

/// Waits until `part` has `bytes` bytes.
fn wait_for(part: &Path, bytes: u64) {
    let start = Instant::now();
    while part.metadata().map_or(0, |data| data.len()) < bytes {
        assert!(start.elapsed() < Duration::from_secs(60), "{} never came", part.display());
        thread::sleep(Duration::from_millis(10));
    }
}

fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn ctrl_c_keeps_the_part_and_a_second_download_waits() {
    let data = tempfile::tempdir().unwrap();
    let data = data.path();
    let (bytes, hash) = honest_archive();
    let part = data.join(format!("{ARCHIVE}.part"));
    // Stalls at byte 100, is taken up at 100 and stalls at 200, is taken up and brings the rest.
    let (mirror, server) = serve(bytes, vec![100, 100, usize::MAX]);
    let words = ["cifar10", "--mirror", &mirror, "--accept-sha256", &hash, "--timeout", "60"];

    let first = download(&words, data).spawn().unwrap();
    wait_for(&part, 100);
    interrupt(&first);
    check(&first.wait_with_output().unwrap(), 130, &["interrupted", "100 bytes", "are kept in", "resumes there"]);
    assert_eq!(names(data), [format!("{ARCHIVE}.part")]);
    runs(&["cifar10", "--list"], data, 0, &["unfinished"]);

    let first = download(&words, data).spawn().unwrap();
    wait_for(&part, 200);
    let mut second = download(&words, data).spawn().unwrap();
    let mut told = String::new();
    let mut lines = BufReader::new(second.stderr.take().unwrap());
    lines.read_line(&mut told).unwrap();
    assert!(told.contains("another download into this folder is running; waiting for it"), "{told}");
    interrupt(&first);
    check(&first.wait_with_output().unwrap(), 130, &["resuming after 100 bytes", "200 bytes"]);
    // The one that waited finishes the job.
    lines.read_to_string(&mut told).unwrap();
    assert!(second.wait().unwrap().success() && told.contains("6 files"), "{told}");
    assert_eq!(names(data), [FOLDER]);
    server.join().unwrap();
}
