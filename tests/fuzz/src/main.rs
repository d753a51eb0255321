//! The program that libFuzzer drives. `C2R_FUZZ_TARGET` names the reader; the arguments are libFuzzer's.

#![no_main]

use std::cell::OnceCell;

use c2r_fuzz::{Harness, Target};

thread_local! {
    static HARNESS: OnceCell<Harness> = const { OnceCell::new() };
}

fn harness() -> Harness {
    let name = std::env::var("C2R_FUZZ_TARGET").unwrap_or_default();
    let known: Vec<&str> = c2r_fuzz::TARGETS.iter().map(|target| target.name).collect();
    Harness::new(Target::named(&name).unwrap_or_else(|| panic!("C2R_FUZZ_TARGET=`{name}`; there are {known:?}")))
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    HARNESS.with(|cell| cell.get_or_init(harness).run(bytes));
});
