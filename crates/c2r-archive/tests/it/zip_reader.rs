//! Members of a zip read by name: honest, damaged, and lying about their size.

use c2r_archive::{ArchiveError, Limits, ZipReader};
use proptest::prelude::*;

use super::zip;

const LIMITS: Limits = Limits { entries: 4, bytes: 10_000, ratio: 1032 };
/// Where a field of a directory entry starts, from its signature.
const METHOD: usize = 10;
const SIZE: usize = 24;

fn example() -> Vec<u8> {
    zip(&[("b.npy", b"second", None), ("a.npy", &[7; 3000], None), ("c", b"", None)])
}

fn open(bytes: Vec<u8>) -> Result<ZipReader, ArchiveError> {
    ZipReader::from_bytes(bytes, LIMITS)
}

/// The example with other bytes in the directory's entry of `b.npy`.
fn changed(field: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = example();
    let entry = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    bytes[entry + field..][..value.len()].copy_from_slice(value);
    bytes
}

fn refused(result: Result<Vec<u8>, ArchiveError>, reason: &str) {
    match result {
        Err(ArchiveError::Refused { entry, reason: found }) => {
            assert!(!entry.is_empty() && found.contains(reason), "{entry}: {found}");
        }
        other => panic!("{other:?} instead of {reason}"),
    }
}

#[test]
fn members_are_read_by_name_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npz");
    std::fs::write(&path, example()).unwrap();
    for mut reader in [open(example()).unwrap(), ZipReader::open(&path, LIMITS).unwrap()] {
        assert_eq!(reader.names().collect::<Vec<_>>(), ["a.npy", "b.npy", "c"]);
        assert!(reader.contains("a.npy") && !reader.contains("d"));
        assert_eq!(reader.read("a.npy", Some(3000)).unwrap(), [7; 3000]);
        assert_eq!(reader.read("b.npy", None).unwrap(), b"second");
        assert_eq!(reader.read("c", None).unwrap(), b"");
        assert_eq!(reader.read("b.npy", None).unwrap(), b"second");
        refused(reader.read("b.npy", Some(5)), "has 6 bytes where 5 were expected");
        refused(reader.read("d", None), "is not in the archive");
    }
    assert!(matches!(
        ZipReader::open(folder.path(), LIMITS),
        Err(ArchiveError::File(_) | ArchiveError::Damaged { .. })
    ));
    assert!(matches!(ZipReader::open(&folder.path().join("y"), LIMITS), Err(ArchiveError::File(_))));
}

#[test]
fn all_members_together_are_bounded() {
    let mut reader = open(example()).unwrap();
    for _ in 0..3 {
        reader.read("a.npy", None).unwrap();
    }
    refused(reader.read("a.npy", None), "at most 10000 from an archive");
    reader.read("b.npy", None).unwrap();
    let too_many = ["1", "2", "3", "4", "5"].map(|name| (name, b"".as_slice(), None));
    assert!(matches!(open(zip(&too_many)), Err(ArchiveError::Limit(_))));
}

#[test]
fn what_a_member_says_about_itself_is_not_trusted() {
    let read = |bytes: Vec<u8>| open(bytes).and_then(|mut reader| reader.read("b.npy", None));
    refused(read(changed(SIZE, &9_000u32.to_le_bytes())), "cannot be read");
    refused(read(changed(SIZE, &5u32.to_le_bytes())), "cannot be read");
    refused(read(changed(SIZE, &u32::MAX.wrapping_sub(1).to_le_bytes())), "cannot unpack from");
    refused(read(changed(METHOD, &[12])), "c2r reads stored and deflated");
    let twice = zip(&[("b.npy", b"1", None), ("b.npy", b"2", None)]);
    refused(read(twice), "is in the archive twice");
    refused(read(changed(46, b"\xff")), "not UTF-8");
    let mut other_contents = example();
    other_contents[40] ^= 1;
    refused(read(other_contents), "cannot be read");
    let whole = example();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        assert!(matches!(open(whole[..length].to_vec()), Err(ArchiveError::Damaged { .. })), "{length}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    /// Damage anywhere: an error or members within the limits, never a panic.
    #[test]
    fn damage_never_panics(at in 0.0f64..1.0, value in any::<u8>()) {
        let mut bytes = example();
        let at = (at * bytes.len() as f64) as usize;
        bytes[at] = value;
        if let Ok(mut reader) = open(bytes) {
            let names: Vec<String> = reader.names().map(String::from).collect();
            let total: usize = names.iter().map(|name| reader.read(name, None).map_or(0, |bytes| bytes.len())).sum();
            prop_assert!(total as u64 <= LIMITS.bytes);
        }
    }
}
