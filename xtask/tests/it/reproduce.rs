use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use super::{Checkout, N_COMMANDS, ended, exists};

#[test]
fn a_grid_is_run_once_and_its_table_shown() {
    let checkout = Checkout::new();
    let output = checkout.reproduce(&[]).output().unwrap();
    let (code, said) = ended(&output);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "the table\n");
    assert!(said.ends_with("report: runs/example-quick/report.html\n"), "{said}");
    assert!(exists(&checkout.path("runs/example-quick/report.html")));
    assert_eq!(checkout.calls().len(), N_COMMANDS);
    assert!(exists(&checkout.path("runs/example-quick/digits/ipc1/one/seed0/natural-fgsm-0.1/attack.json")));
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert!(code == Some(0) && said.contains("all 30 commands were finished before"), "{said}");
    assert_eq!(checkout.calls().len(), N_COMMANDS);
}

/// Nothing is lost, and no command runs twice at once, not even beside one that outlived its parent.
#[test]
fn killed_at_any_moment_it_goes_on() {
    let checkout = Checkout::new();
    checkout.mark("slow");
    for round in 0..4 {
        let mut child = checkout.reproduce(&["--jobs", "2"]).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let before = checkout.calls().len();
        while checkout.calls().len() < before + 2 {
            assert!(start.elapsed() < Duration::from_secs(60), "nothing is started");
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(70 * round));
        // SIGKILL: there is no time to give anything back.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let before = checkout.n_finished();
    let (code, said) = ended(&checkout.reproduce(&["--jobs", "2"]).output().unwrap());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(checkout.n_finished(), N_COMMANDS);
    assert!(before < N_COMMANDS && checkout.calls().len() <= N_COMMANDS + 4 * 2 * 2, "{:#?}", checkout.calls());
}

#[test]
fn shards_and_others_share_a_results_folder() {
    let checkout = Checkout::new();
    checkout.mark("slow");
    let start = |more: &[&str]| checkout.reproduce(more).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let children = [
        start(&["--shard", "1/2", "--no-table"]),
        start(&["--shard", "2/2", "--no-table"]),
        start(&["--jobs", "2", "--no-table"]),
    ];
    for child in children {
        let (code, said) = ended(&child.wait_with_output().unwrap());
        assert_eq!(code, Some(0), "{said}");
    }
    assert_eq!(checkout.n_finished(), N_COMMANDS);
    assert_eq!(checkout.calls().len(), N_COMMANDS, "each command ran once");
}

#[test]
fn a_failure_is_said_once_with_its_code_and_its_cause() {
    let checkout = Checkout::new();
    checkout.mark("broken");
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("cannot read data_batch_1.bin") && said.contains("the same in 1 more"), "{said}");
    assert!(said.contains("2 commands failed, so 8 that need them did not run"), "{said}");
}

#[test]
fn numbers_outside_the_tolerance_are_code_4_and_a_page_that_cannot_be_made_is_code_1() {
    let checkout = Checkout::new();
    checkout.mark("outside");
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert!(code == Some(4) && said.contains("numbers are outside the tolerance"), "{said}");
    assert!(said.contains("report: runs/example-quick/report.html"), "{said}");
    checkout.mark("unreadable");
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert!(code == Some(1) && said.contains("`c2r report` failed (exit status: 3): error: cannot read it"), "{said}");
}

#[test]
fn missing_data_is_said_before_anything_runs() {
    let checkout = Checkout::new();
    std::fs::remove_file(checkout.path("data/digits/digits.csv")).unwrap();
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert!(code == Some(3) && said.contains("no data: digits"), "{said}");
    assert!(checkout.calls().is_empty());
    // What it would do is shown all the same.
    std::fs::remove_file(checkout.path("target/release/c2r")).unwrap();
    let output = checkout.reproduce(&["--dry-run"]).output().unwrap();
    let (code, said) = ended(&output);
    assert!(code == Some(0) && said.contains("30 commands, 30 of them to run"), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), N_COMMANDS + 2, "table and report too");
}
