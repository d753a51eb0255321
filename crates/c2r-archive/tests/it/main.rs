//! Archives built to attack, and honest ones.

mod zip_reader;

use std::{
    fs,
    io::{self, Cursor, Write},
    path::Path,
};

use c2r_archive::{ArchiveError, ArchiveFormat, Entry, Limits, Unpacked, WORKSHOP, unpack, walk};
use c2r_files::FileError;
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use tar::{EntryType, Header};

const LIMITS: Limits = Limits { entries: 20, bytes: 4 << 20, ratio: 20 };

/// Header and contents of one tar entry; the name is taken as it is.
fn tar_entry(name: &[u8], kind: EntryType, contents: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(contents.len() as u64);
    header.set_mode(0o7777);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    if matches!(kind, EntryType::Link | EntryType::Symlink) {
        header.set_link_name("/etc/passwd").unwrap();
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(contents);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn tar_gz(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    entries.iter().for_each(|entry| gz.write_all(entry).unwrap());
    gz.write_all(&[0; 1024]).unwrap();
    gz.finish().unwrap()
}

fn file(name: &str, contents: &[u8]) -> Vec<u8> {
    tar_entry(name.as_bytes(), EntryType::Regular, contents)
}

/// A zip of deflated files; a mode may be given.
fn zip(files: &[(&str, &[u8], Option<u32>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut archive = rawzip::ZipArchiveWriter::new(&mut bytes);
    for (name, contents, mode) in files {
        if name.ends_with('/') {
            archive.new_dir(name).create().unwrap();
            continue;
        }
        let builder = archive.new_file(name).compression_method(rawzip::CompressionMethod::Deflate);
        let builder = if let Some(mode) = mode { builder.unix_permissions(*mode) } else { builder };
        let (mut entry, config) = builder.start().unwrap();
        let mut writer = config.wrap(flate2::write::DeflateEncoder::new(&mut entry, Compression::default()));
        writer.write_all(contents).unwrap();
        let (_, descriptor) = writer.finish().unwrap();
        entry.finish(descriptor).unwrap();
    }
    archive.finish().unwrap();
    bytes
}

/// The name of a file in a zip is replaced where the writer would not take it.
fn zip_named(name: &str) -> Vec<u8> {
    let stand_in = "x".repeat(name.len());
    let mut bytes = zip(&[("top/honest", b"1", None), (&stand_in, b"2", None)]);
    let places: Vec<usize> =
        bytes.windows(name.len()).enumerate().filter(|(_, w)| *w == stand_in.as_bytes()).map(|(at, _)| at).collect();
    assert_eq!(places.len(), 2, "in the local header and in the directory");
    places.iter().for_each(|&at| bytes[at..at + name.len()].copy_from_slice(name.as_bytes()));
    bytes
}

fn unpack_bytes(format: ArchiveFormat, bytes: &[u8], folder: &Path) -> Result<Unpacked, ArchiveError> {
    let archive = folder.join("archive");
    fs::write(&archive, bytes).unwrap();
    unpack(format, &archive, "top", &folder.join("out"), &LIMITS, |_, _| Ok(()), &mut |_| true)
}

/// What unpacking must say.
#[derive(Debug, Clone, Copy)]
enum Reason<'a> {
    /// This entry, and a part of the reason.
    Refused(&'a str, &'a str),
    Damaged,
    Limit,
    File,
}

/// Unpacking must fail for this reason and leave nothing.
fn refused(format: ArchiveFormat, bytes: &[u8], expected: Reason<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let error = unpack_bytes(format, bytes, folder.path()).expect_err("this must be refused");
    let is_expected = match (&error, expected) {
        (ArchiveError::Refused { entry, reason }, Reason::Refused(name, part)) => {
            entry == name && reason.contains(part)
        }
        (ArchiveError::Damaged { format: found, .. }, Reason::Damaged) => {
            *found == if format == ArchiveFormat::Zip { "zip" } else { "tar.gz" }
        }
        (ArchiveError::Limit(_), Reason::Limit) | (ArchiveError::File(_), Reason::File) => true,
        _ => false,
    };
    assert!(is_expected, "{error:?} instead of {expected:?}");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["archive"], "{error}");
}

fn check_honest(format: ArchiveFormat, bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let unpacked = unpack_bytes(format, bytes, folder.path()).unwrap();
    let out = folder.path().join("out");
    assert_eq!(fs::read(out.join("a/one")).unwrap(), b"first");
    assert_eq!(fs::read(out.join("two")).unwrap(), b"");
    assert!(out.join("empty").is_dir());
    assert_eq!(unpacked.bytes(), 5);
    let names: Vec<_> = unpacked.files.iter().map(|file| file.path.to_str().unwrap()).collect();
    assert_eq!(names, ["a/one", "two"]);
    // sha256sum of `first`.
    let hash: String = unpacked.files[0].sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hash, "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&out.join("a/one")) & 0o7111, 0, "no setuid, no execution");
    }
}

#[test]
fn honest_archives() {
    let folders = [b"top/", b"./top/empty/".as_slice()].map(|name| tar_entry(name, EntryType::Directory, b""));
    let [top, empty] = folders;
    check_honest(ArchiveFormat::TarGz, &tar_gz(&[top, file("top/a/one", b"first"), file("top/two", b""), empty]));
    let files: &[(&str, &[u8], Option<u32>)] = &[
        ("top/", b"", None),
        ("top/a/one", b"first", Some(0o4755)),
        ("top/two", b"", None),
        ("top/empty/", b"", None),
    ];
    check_honest(ArchiveFormat::Zip, &zip(files));
}

#[test]
fn long_names_of_both_kinds_are_read() {
    let long = format!("top/{}/file", "n".repeat(150));
    let pax = format!("path={long}\n");
    let pax = format!("{} {pax}", pax.len() + 4);
    for extension in [
        tar_entry(b"././@LongLink", EntryType::GNULongName, format!("{long}\0").as_bytes()),
        tar_entry(b"PaxHeader", EntryType::XHeader, pax.as_bytes()),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let bytes = tar_gz(&[extension, file("cut short", b"contents"), file("top/next", b"")]);
        unpack_bytes(ArchiveFormat::TarGz, &bytes, folder.path()).unwrap();
        let out = folder.path().join("out");
        assert_eq!(fs::read(out.join(long.strip_prefix("top/").unwrap())).unwrap(), b"contents");
        assert!(out.join("next").is_file());
    }
}

#[test]
fn names_that_lead_elsewhere() {
    for (name, reason) in [
        ("/tmp/c2r-attack", "absolute"),
        ("../c2r-attack", "leads out"),
        ("top/../../c2r-attack", "leads out"),
        ("other/file", "outside the folder `top`"),
        ("top/a\\..\\b", "character"),
        ("top", "in place of the top folder"),
    ] {
        let shown = name.replace('\\', r"\\");
        let expected = Reason::Refused(&shown, reason);
        refused(ArchiveFormat::TarGz, &tar_gz(&[file("top/honest", b"1"), file(name, b"2")]), expected);
        refused(ArchiveFormat::Zip, &zip_named(name), expected);
    }
    let through_long_name = tar_entry(b"././@LongLink", EntryType::GNULongName, b"top/../../up\0");
    refused(
        ArchiveFormat::TarGz,
        &tar_gz(&[through_long_name, file("top/x", b"2")]),
        Reason::Refused("top/../../up", "leads out"),
    );
    let through_pax = tar_entry(b"PaxHeader", EntryType::XHeader, b"15 path=/etc/x\n");
    refused(ArchiveFormat::TarGz, &tar_gz(&[through_pax, file("top/x", b"2")]), Reason::Refused("/etc/x", "absolute"));
}

#[test]
fn what_is_neither_file_nor_folder() {
    for (kind, reason) in [
        (EntryType::Symlink, "is a link"),
        (EntryType::Link, "hard link"),
        (EntryType::Char, "device"),
        (EntryType::Block, "device"),
        (EntryType::Fifo, "pipe"),
        (EntryType::GNUSparse, "sparse"),
        (EntryType::new(b'Z'), "type Z"),
    ] {
        let bytes = tar_gz(&[file("top/honest", b"1"), tar_entry(b"top/evil", kind, b"")]);
        refused(ArchiveFormat::TarGz, &bytes, Reason::Refused("top/evil", reason));
    }
    for (mode, reason) in [(0o120_777, "is a link"), (0o020_666, "device"), (0o010_666, "pipe")] {
        let bytes = zip(&[("top/honest", b"1", None), ("top/evil", b"/etc/passwd", Some(mode))]);
        refused(ArchiveFormat::Zip, &bytes, Reason::Refused("top/evil", reason));
    }
    // A link, and then a file through it: already the link is refused.
    let through = [tar_entry(b"top/dir", EntryType::Symlink, b""), file("top/dir/passwd", b"")];
    refused(ArchiveFormat::TarGz, &tar_gz(&through), Reason::Refused("top/dir", "is a link"));
}

#[test]
fn bombs() {
    let zeros = vec![0; 3 << 20];
    refused(ArchiveFormat::TarGz, &tar_gz(&[file("top/zeros", &zeros)]), Reason::Limit);
    refused(ArchiveFormat::Zip, &zip(&[("top/zeros", &zeros, None)]), Reason::Limit);
    let many: Vec<String> = (0..21).map(|index| format!("top/{index}")).collect();
    refused(ArchiveFormat::TarGz, &tar_gz(&many.iter().map(|name| file(name, b"")).collect::<Vec<_>>()), Reason::Limit);
    let files: Vec<(&str, &[u8], Option<u32>)> =
        many.iter().map(|name| (name.as_str(), b"".as_slice(), None)).collect();
    refused(ArchiveFormat::Zip, &zip(&files), Reason::Limit);
    // A header that says the largest size there is, with nothing behind it.
    let mut header = Header::new_gnu();
    header.set_size(u64::MAX >> 1);
    header.as_mut_bytes()[..5].copy_from_slice(b"top/x");
    header.set_cksum();
    refused(ArchiveFormat::TarGz, &tar_gz(&[header.as_bytes().to_vec()]), Reason::Limit);
    // An extended header that would fill the memory, and one that changes the size of the next file.
    let long_name = tar_entry(b"././@LongLink", EntryType::GNULongName, &vec![b'a'; 70_000]);
    refused(
        ArchiveFormat::TarGz,
        &tar_gz(&[long_name]),
        Reason::Refused("././@LongLink", "extended header of 70000 bytes"),
    );
    let size = tar_entry(b"PaxHeader", EntryType::XHeader, b"12 size=999\n");
    refused(
        ArchiveFormat::TarGz,
        &tar_gz(&[size, file("top/x", b"1")]),
        Reason::Refused("PaxHeader", "changes the size"),
    );
    // Bytes behind the end of the tar, where no entry is counted.
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(&file("top/x", b"1")).unwrap();
    gz.write_all(&vec![0; 8 << 20]).unwrap();
    refused(ArchiveFormat::TarGz, &gz.finish().unwrap(), Reason::Limit);
}

#[test]
fn one_name_twice() {
    refused(
        ArchiveFormat::TarGz,
        &tar_gz(&[file("top/a", b"1"), file("top/./a", b"2")]),
        Reason::Refused("a", "twice"),
    );
    refused(ArchiveFormat::Zip, &zip(&[("top/a", b"1", None), ("top/a", b"2", None)]), Reason::Refused("a", "twice"));
    refused(ArchiveFormat::TarGz, &tar_gz(&[file("top/a", b"1"), file("top/a/b", b"2")]), Reason::File);
}

#[test]
fn damaged_archives() {
    let whole = tar_gz(&[file("top/a", &[7; 5000]), file("top/b", &[8; 5000])]);
    for length in [0, 1, 10, whole.len() / 2, whole.len() - 9, whole.len() - 1] {
        refused(ArchiveFormat::TarGz, &whole[..length], Reason::Damaged);
    }
    let mut wrong_checksum = whole.clone();
    let at = whole.len() - 8;
    wrong_checksum[at] ^= 1;
    refused(ArchiveFormat::TarGz, &wrong_checksum, Reason::Damaged);
    // What the parser quotes of the archive cannot reach a terminal as it is.
    let mut header = file("top/a", b"");
    header[148..156].copy_from_slice(b"\x1b[31m!\x07\0");
    let error =
        unpack_bytes(ArchiveFormat::TarGz, &tar_gz(&[header]), tempfile::tempdir().unwrap().path()).unwrap_err();
    let is_escaped = |reason: &str| reason.contains(r"\u{1b}[31m!\u{7}");
    assert!(matches!(&error, ArchiveError::Damaged { reason, .. } if is_escaped(reason)), "{error:?}");
    let noise: Vec<u8> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let whole = zip(&[("top/a", &noise, None)]);
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        refused(ArchiveFormat::Zip, &whole[..length], Reason::Damaged);
    }
    let mut wrong_contents = whole.clone();
    wrong_contents[800] ^= 1;
    refused(ArchiveFormat::Zip, &wrong_contents, Reason::Damaged);
    refused(ArchiveFormat::TarGz, b"<html>404</html>", Reason::Damaged);
    refused(ArchiveFormat::Zip, &zip(&[("top/", b"", None)]), Reason::Damaged);
    refused(ArchiveFormat::TarGz, &tar_gz(&[tar_entry(b"top/", EntryType::Directory, b"")]), Reason::Damaged);
}

#[test]
fn a_caller_can_stop_and_add_files() {
    let folder = tempfile::tempdir().unwrap();
    let (archive, out) = (folder.path().join("a.tar.gz"), folder.path().join("out"));
    fs::write(&archive, tar_gz(&[file("top/a", b"12"), file("top/b", b"345"), file("top/c", b"")])).unwrap();
    let stopped = unpack(ArchiveFormat::TarGz, &archive, "top", &out, &LIMITS, |_, _| Ok(()), &mut |bytes| bytes < 5);
    assert!(matches!(stopped, Err(ArchiveError::Stopped)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    // Nobody sees the folder before the last file is in it.
    let finish = |hidden: &Path, unpacked: &Unpacked| -> io::Result<()> {
        assert!(!out.exists() && unpacked.files.len() == 3);
        let name = hidden.parent().unwrap().file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(WORKSHOP) && name.starts_with('.'));
        fs::write(hidden.join("record"), "r")
    };
    unpack(ArchiveFormat::TarGz, &archive, "top", &out, &LIMITS, finish, &mut |_| true).unwrap();
    assert!(out.join("record").is_file());
    // What is there stays.
    let again = unpack(ArchiveFormat::TarGz, &archive, "top", &out, &LIMITS, |_, _| Ok(()), &mut |_| true).unwrap_err();
    assert!(matches!(&again, ArchiveError::File(FileError::Io { path, .. }) if *path == out), "{again:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    assert!(out.join("record").is_file());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    /// Damage anywhere: an error or entries inside the folder, never a panic and never more than the limits.
    #[test]
    fn damage_never_panics(at in 0.0f64..1.0, value in any::<u8>(), cut in 0.0f64..1.0) {
        let entries = [tar_entry(b"top/", EntryType::Directory, b""), file("top/a", &[7; 700]), file("top/b", b"x")];
        let plain: Vec<u8> = entries.concat();
        let mut damaged = plain.clone();
        damaged[(at * plain.len() as f64) as usize] = value;
        let zipped = zip(&[("top/", b"", None), ("top/a", &[7; 700], None), ("top/b", b"x", None)]);
        let mut damaged_zip = zipped.clone();
        damaged_zip[(at * zipped.len() as f64) as usize] = value;
        let kept = |length: usize| (cut * length as f64) as usize;
        for (format, bytes) in [
            (ArchiveFormat::TarGz, tar_gz(&[damaged])),
            (ArchiveFormat::TarGz, tar_gz(&[plain[..kept(plain.len())].to_vec()])),
            (ArchiveFormat::Zip, damaged_zip.clone()),
            (ArchiveFormat::Zip, damaged_zip[..kept(zipped.len())].to_vec()),
        ] {
            let mut total = 0;
            let _ = walk(format, Cursor::new(&bytes), "top", &LIMITS, &mut |entry| {
                match entry {
                    Entry::Folder(path) => assert!(path.as_os_str().is_empty() || path.starts_with("top")),
                    Entry::File(path, contents) => {
                        assert!(path.starts_with("top"));
                        total += io::copy(contents, &mut io::sink()).unwrap_or(0);
                    }
                }
                Ok(())
            });
            prop_assert!(total <= LIMITS.bytes);
        }
    }
}
