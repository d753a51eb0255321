//! Networks that were trained again, sets that were distilled again, and one network under two names.

use c2r_base::Epsilon;
use c2r_eval::{EvalError, Source, Table, TableOptions};
use serde_json::json;

use crate::table::{source, sources, table};

/// A report of `c2r` at a radius, of the network with this hash.
fn report(seed: u64, network: &str, radius: f64) -> Source {
    let mut source = source("c2r", "natural", seed, 42, 25, 24);
    source.path = format!("seed{seed}/eps{radius}/attack.json");
    source.record.model_sha256 = Some(network.to_owned());
    source.record.attacks.iter_mut().for_each(|entry| entry.epsilon = Epsilon::of_255(radius));
    source
}

fn build(sources: &[Source]) -> Result<Table, EvalError> {
    Table::build(sources, &TableOptions::default())
}

/// After `c2r train --force` the report at 8/255 is of the earlier network.
#[test]
fn one_run_has_one_network_at_every_radius() {
    assert_eq!(build(&[report(0, "01", 8.0), report(0, "01", 16.0)]).unwrap().sections.len(), 2);
    // Other runs have networks of their own, and a file may not say which it is of.
    let mut silent = report(1, "", 16.0);
    silent.record.model_sha256 = None;
    assert!(build(&[report(0, "01", 8.0), report(1, "02", 8.0), silent]).is_ok());
    let mut natural = report(0, "02", 16.0);
    natural.record.subject.protocol = "pgd-at".into();
    assert!(build(&[report(0, "01", 8.0), natural]).is_ok());

    let error = build(&[report(0, "01", 8.0), report(0, "02", 16.0)]).unwrap_err();
    let EvalError::OtherNetwork { report: of, measured, other, now } = error else { panic!("{error}") };
    let paths = [of, other].map(|path| path.display().to_string());
    assert_eq!(paths, ["seed0/eps16/attack.json", "seed0/eps8/attack.json"]);
    assert_eq!([measured, now], ["02", "01"]);
    // Two imported sets of one name: a name of its own for each is the way out.
    let mut two = [report(0, "01", 8.0), report(0, "02", 16.0)];
    for (source, images) in two.iter_mut().zip(["12", "34"]) {
        source.training.as_mut().unwrap().config["images_sha256"] = json!(images);
    }
    assert!(matches!(build(&two).unwrap_err(), EvalError::OneName { .. }));
}

/// The same file attacked twice, once with `--train-seed 1`.
#[test]
fn one_network_is_not_two_runs() {
    let error = build(&[report(0, "01", 2.0), report(1, "01", 2.0)]).unwrap_err();
    let EvalError::OneNetwork { sha256, seeds, a, b } = error else { panic!("{error}") };
    assert_eq!(
        (sha256.as_str(), a.to_str(), b.to_str()),
        ("01", Some("seed0/eps2/attack.json"), Some("seed1/eps2/attack.json"))
    );
    assert_eq!(seeds, "distillation seed 0, training seed 0; distillation seed 1, training seed 1");
    // Also where each file has attacks of its own, and where nothing was distilled.
    let mut parts = [report(0, "01", 2.0), report(1, "01", 2.0)];
    parts[0].record.attacks.truncate(1);
    parts[1].record.attacks.remove(0);
    parts.iter_mut().for_each(|source| source.record.subject.distill_seed = None);
    let error = build(&parts).unwrap_err();
    assert!(
        matches!(&error, EvalError::OneNetwork { seeds, .. } if seeds == "training seed 0; training seed 1"),
        "{error}"
    );
    // Under two names it is two rows, and no run is counted twice.
    let mut other = report(1, "01", 2.0);
    other.record.subject.method = "mine".into();
    assert!(build(&[report(0, "01", 2.0), other]).is_ok());
}

/// The settings of the new set are not those of the old network.
#[test]
fn a_set_that_was_distilled_again_is_said() {
    let mut sources = sources();
    sources[7].distillation = None;
    sources[7].replaced = Some("cifar10/ipc10/c2r/seed1/run.json".into());
    let made = table(&sources, "quick");
    let row = &made.sections[0].rows[2];
    let note = "REPLACED: its set was distilled again after the network was trained (cifar10/ipc10/c2r/seed1/run.json), so \
                settings and images of the distillation are left out; train and attack again (1 of 3 runs)";
    assert!(row.notes.iter().any(|found| found == note), "{:?}", row.notes);
    let known: Vec<bool> = row.runs.iter().map(|run| run.distill_config.is_some()).collect();
    assert_eq!((known, row.runs[1].distill_argv.len()), (vec![true, false, true], 0));
    assert!(!row.notes.iter().any(|note| note.contains("DIFFERENT")), "{:?}", row.notes);
    for text in [made.markdown(), made.latex(), made.html(&[]), made.csv().unwrap()] {
        assert!(text.contains("REPLACED"), "{text}");
    }
}
