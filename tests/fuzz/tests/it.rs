//! Broken files: the committed ones, and changes of valid ones that any medium or attacker could make.

use std::{fs, panic::AssertUnwindSafe};

use c2r_fuzz::{Harness, TARGETS, Target};
use proptest::{prelude::*, test_runner::RngSeed};

/// Numbers that sizes are checked against.
const EXTREMES: [u64; 6] = [0, 1 << 31, u32::MAX as u64, 1 << 40, i64::MAX as u64, u64::MAX];

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(target.corpus()).unwrap_or_else(|error| panic!("{}: {error}", target.name));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.display().to_string(), fs::read(&path).unwrap())).collect()
}

/// Which file made a reader panic is the first thing to know.
fn run(harness: &Harness, name: &str, bytes: &[u8]) -> Result<(), String> {
    std::panic::catch_unwind(AssertUnwindSafe(|| harness.run(bytes))).map_err(|_| format!("{name} made a reader panic"))
}

#[test]
fn every_committed_file_is_read_or_refused() {
    let mut total = 0;
    for target in TARGETS {
        let harness = Harness::new(target);
        let files = corpus(target);
        assert!(files.len() > target.seeds().len(), "{} has no broken file", target.name);
        for (name, bytes) in files {
            run(&harness, &name, &bytes).unwrap();
            total += bytes.len();
        }
    }
    assert!(total < 250_000, "{total} bytes of committed files: keep them small");
}

/// The seeds are what this version writes, so what is fuzzed is the format of today.
#[test]
fn valid_files_are_committed() {
    for target in TARGETS {
        for (name, bytes) in target.seeds() {
            let path = target.corpus().join(name);
            let found = fs::read(&path).unwrap_or_default();
            assert!(
                found == bytes,
                "{} is not what is written today: cargo run --release -p c2r-fuzz --example seeds",
                path.display()
            );
        }
    }
}

#[test]
fn no_file_at_all_and_no_bytes() {
    for target in TARGETS {
        let harness = Harness::new(target);
        for bytes in [&b""[..], b"\0", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\n\n\n", "\u{feff}é".as_bytes()] {
            run(&harness, target.name, bytes).unwrap();
        }
    }
}

/// What happens to a file on its way.
#[derive(Clone, Debug)]
enum Damage {
    Cut(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    Number { at: prop::sample::Index, value: u64, width: usize, big_endian: bool },
    Digits(prop::sample::Index, u64),
    Repeat(prop::sample::Index, prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    use any as a;
    let index = || a::<prop::sample::Index>();
    prop_oneof![
        index().prop_map(Damage::Cut),
        (index(), a::<u8>()).prop_map(|(at, bit)| Damage::Flip(at, bit % 8)),
        (index(), prop::sample::select(EXTREMES.to_vec()), prop::sample::select(vec![2usize, 4, 8]), a::<bool>())
            .prop_map(|(at, value, width, big_endian)| Damage::Number { at, value, width, big_endian }),
        (index(), prop::sample::select(EXTREMES.to_vec())).prop_map(|(at, value)| Damage::Digits(at, value)),
        (index(), index()).prop_map(|(from, to)| Damage::Repeat(from, to)),
        (index(), index()).prop_map(|(from, to)| Damage::Swap(from, to)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let n = bytes.len();
    match damage {
        Damage::Cut(at) => bytes.truncate(at.index(n)),
        Damage::Flip(at, bit) => bytes[at.index(n)] ^= 1 << bit,
        Damage::Number { at, value, width, big_endian } => {
            let all = if *big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
            let part = if *big_endian { &all[8 - width..] } else { &all[..*width] };
            let at = at.index(n);
            let end = n.min(at + width);
            bytes[at..end].copy_from_slice(&part[..end - at]);
        }
        // A number in a text.
        Damage::Digits(at, value) => {
            let digits: Vec<usize> = (0..n).filter(|&at| bytes[at].is_ascii_digit()).collect();
            if !digits.is_empty() {
                let at = digits[at.index(digits.len())];
                bytes.splice(at..=at, value.to_string().into_bytes());
            }
        }
        Damage::Repeat(from, to) => {
            let (from, to) = (from.index(n), to.index(n));
            let part = bytes[from.min(to)..from.max(to)].to_vec();
            bytes.splice(from..from, part);
        }
        Damage::Swap(a, b) => bytes.swap(a.index(n), b.index(n)),
    }
}

/// Damages every seed of `target` in `cases` ways, the same ones in every run.
fn survives_damage(target: &'static Target, cases: u32) {
    let harness = Harness::new(target);
    for (name, seed) in target.seeds() {
        let config = ProptestConfig {
            cases,
            failure_persistence: None,
            rng_seed: RngSeed::Fixed(6),
            ..ProptestConfig::default()
        };
        proptest!(config, |(damages in prop::collection::vec(damage(), 1..4))| {
            let mut bytes = seed.clone();
            damages.iter().for_each(|damage| apply(&mut bytes, damage));
            prop_assert!(run(&harness, name, &bytes).is_ok(), "{}/{name} with {damages:?}", target.name);
        });
    }
}

#[test]
fn damaged_files_are_read_or_refused() {
    for target in TARGETS {
        survives_damage(target, 128);
    }
}
