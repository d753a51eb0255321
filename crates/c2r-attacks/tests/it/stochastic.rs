//! Robust accuracy of attacks with noise, over the reference's seeds, and the table of
//! docs/attacks/conformance.md.

use std::io::Write;

use c2r_attacks::{AttackConfig, AttackReport, EvaluateOptions, Mode, Outcome};
use c2r_base::{Norm, Seed};
use c2r_testkit::goldens::Goldens;
use serde_json::Value;

use crate::support::{MODELS, Script, config, first, run, threat};

/// One line of the comparison.
struct Line {
    what: String,
    ours: Vec<f64>,
    reference: Vec<f64>,
    /// Reference without images that the attack made right; its lower end.
    reference_from_correct: f64,
    tolerance: f64,
}

impl Line {
    fn mean(&self) -> f64 {
        self.ours.iter().sum::<f64>() / self.ours.len() as f64
    }

    /// Never more robust than the reference's worst seed by more than the tolerance, nor less than its best.
    fn verdict(&self) -> Result<(), String> {
        let worst = self.reference.iter().copied().fold(f64::MIN, f64::max);
        let best = self.reference.iter().copied().fold(self.reference_from_correct, f64::min);
        let mean = self.mean();
        if mean > worst + self.tolerance + 1e-9 {
            return Err(format!("{}: {mean} robust, the reference at most {worst}", self.what));
        }
        if mean < best - self.tolerance - 1e-9 {
            return Err(format!("{}: {mean} robust, the reference at least {best}", self.what));
        }
        Ok(())
    }

    fn markdown(&self) -> String {
        let percents = |values: &[f64]| {
            let mut texts: Vec<String> = values.iter().map(|value| format!("{:.0}", 100.0 * value)).collect();
            texts.dedup();
            texts.join(" ")
        };
        format!(
            "| {} | {} | {} | {:.0} |",
            self.what,
            percents(&self.ours),
            percents(&self.reference),
            100.0 * self.tolerance
        )
    }
}

fn norm_of(entry: &Value) -> Norm {
    match entry["norm"].as_str() {
        Some("L2") => Norm::L2,
        Some("L1") => Norm::L1,
        _ => Norm::Linf,
    }
}

/// Ours for a stochastic golden.
fn ours(entry: &Value) -> AttackConfig {
    let step = entry["alpha"].as_f64().map(|alpha| format!("{alpha:?}")).unwrap_or_default();
    let stepped = |name: &str, more: &[(&str, &str)]| {
        let mut options = vec![("steps", "10"), ("step-size", step.as_str())];
        options.extend(more);
        config(name, &options)
    };
    match entry["attack"].as_str().unwrap() {
        "PGD" => stepped("pgd", &[]),
        "CW_Linf" => stepped("cw-linf", &[]),
        "TPGD" => stepped("tpgd", &[]),
        "Jitter" => stepped("jitter", &[]),
        "VMIFGSM" => stepped("vmi-fgsm", &[("neighbours", "5")]),
        "VNIFGSM" => stepped("vni-fgsm", &[("neighbours", "5")]),
        "EOTPGD" => stepped("eot-pgd", &[]),
        "APGD-CE" => config("apgd-ce", &[]),
        "APGD-DLR" => config("apgd-dlr", &[]),
        "APGD-T" => config("apgd-t", &[]),
        "FAB" => config("fab", &[("minimize", "false")]),
        "FAB-T" => config("fab-t", &[("minimize", "false")]),
        "Square" => config("square", &[("queries", &entry["n_queries"].to_string())]),
        other => panic!("no such golden: {other}"),
    }
}

/// Images of `n` that may differ.
fn tolerance(entry: &Value) -> f64 {
    let n = entry["n"].as_f64().unwrap();
    let images = match entry["attack"].as_str().unwrap() {
        "TPGD" if n >= 100.0 => 6.0,
        "TPGD" => 4.0,
        "Jitter" | "VMIFGSM" | "VNIFGSM" | "Square" | "FAB" | "FAB-T" => 3.0,
        _ => 2.0,
    };
    images / n
}

fn attacked(goldens: &Goldens, model: &str, entry: &Value, attack: &AttackConfig, seed: u64) -> AttackReport {
    let data = first(goldens, entry["n"].as_i64().unwrap());
    let options = EvaluateOptions {
        seed: Seed::new(seed),
        batch_size: 100,
        mode: Mode::Each,
        self_check: false,
        ..Default::default()
    };
    let threat = threat(norm_of(entry), entry["eps"].as_f64().unwrap());
    run(&Script::load(goldens, model), &data, &[attack.build().unwrap()], &threat, &options)
}

fn compare(goldens: &Goldens, wanted: impl Fn(&str, &Value) -> bool) -> Vec<Line> {
    let mut lines = Vec::new();
    for block in goldens.value("/stochastic").as_array().unwrap() {
        let model = block["model"].as_str().unwrap();
        for entry in block["results"].as_array().unwrap() {
            if !wanted(model, entry) {
                continue;
            }
            let attack = ours(entry);
            let seeds = if entry["deterministic"] == true { 1 } else { 3 };
            let ours: Vec<f64> =
                (0..seeds).map(|seed| attacked(goldens, model, entry, &attack, seed).robust_accuracy()).collect();
            let list = entry["robust_accuracy_per_seed"].as_array().unwrap();
            let reference: Vec<f64> = list.iter().map(|value| value.as_f64().unwrap()).collect();
            let least = reference.iter().copied().fold(f64::MAX, f64::min);
            let queries = entry["n_queries"].as_u64().map(|n| format!(" {n} queries")).unwrap_or_default();
            let line = Line {
                what: format!(
                    "{model} | {} {} {}{queries}, n {}",
                    attack.name(),
                    norm_of(entry),
                    entry["config"].as_str().unwrap(),
                    entry["n"]
                ),
                ours,
                reference,
                reference_from_correct: entry["mean_robust_and_clean_correct"].as_f64().unwrap_or(least),
                tolerance: tolerance(entry),
            };
            say(&line.markdown());
            lines.push(line);
        }
    }
    lines
}

/// Past the harness, which keeps the output of tests that pass.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn check(lines: &[Line]) {
    assert!(!lines.is_empty(), "nothing was compared");
    let failures: Vec<String> = lines.iter().filter_map(|line| line.verdict().err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_few_at_the_protocols_radius() {
    let Some(goldens) = Goldens::find() else { return };
    check(&compare(&goldens, |model, entry| {
        model == "convnet_nat"
            && match entry["attack"].as_str().unwrap() {
                "PGD" | "CW_Linf" | "Jitter" => entry["config"] == "dd_eps2",
                "Square" => entry["n_queries"] == 100,
                _ => false,
            }
    }));
}

#[test]
#[ignore = "slow: every stochastic golden, about ten minutes"]
fn conformance_table() {
    let Some(goldens) = Goldens::find() else { return };
    say("| model | attack | robust accuracy, ours | reference | tolerance |\n|---|---|---|---|---|");
    check(&compare(&goldens, |_, _| true));
}

/// The reference's AutoAttack on the same images.
fn autoattack(goldens: &Goldens, wanted: impl Fn(&str, &Value) -> bool) -> Vec<String> {
    let mut failures = Vec::new();
    for entry in goldens.value("/autoattack").as_array().unwrap() {
        let model = entry["model"].as_str().unwrap();
        if entry["impl"] != "fra31" || entry["seed"] != 0 || !MODELS.contains(&model) || !wanted(model, entry) {
            continue;
        }
        let n = entry["n"].as_f64().unwrap();
        let report = attacked(goldens, model, entry, &config("autoattack-standard", &[]), 0);
        let what =
            format!("{model} | autoattack-standard {} {}, n {n}", norm_of(entry), entry["config"].as_str().unwrap());
        let reference = entry["robust_accuracy"].as_f64().unwrap();
        let ours = report.robust_accuracy();
        let counts = report.counts();
        let expected: Vec<bool> = entry["flags"].as_array().unwrap().iter().map(|flag| flag == 1).collect();
        let samples = &report.attacks[0].samples;
        let got: Vec<bool> = samples.iter().map(|sample| sample.outcome == Outcome::Survived).collect();
        let different = crate::support::n_different(&got, &expected);
        say(&format!(
            "| {what} | {:.0} | {:.0} | flags of {different} differ; forward {} of {}, backward {} of {} images |",
            100.0 * ours,
            100.0 * reference,
            counts.forward_images,
            entry["passes"]["fwd_images"],
            counts.backward_images,
            entry["passes"]["bwd_images"],
        ));
        if (ours - reference).abs() > 1.0 / n + 1e-9 {
            failures.push(format!("{what}: {ours} instead of {reference}"));
        }
        if different > 2 {
            failures.push(format!("{what}: {different} flags differ"));
        }
        let correct = report.clean_correct().filter(|correct| *correct).count() as f64;
        let mut left = correct;
        for stage in &report.attacks[0].stages {
            left -= (stage.attacked - stage.survivors) as f64;
            let theirs = entry["stages"].as_array().unwrap();
            let theirs = theirs.iter().find(|theirs| theirs["stage"].as_str().unwrap().to_lowercase() == stage.attack);
            if let Some(theirs) = theirs.and_then(|theirs| theirs["robust_accuracy"].as_f64())
                && (left / n - theirs).abs() > 2.0 / n + 1e-9
            {
                failures.push(format!("{what}: {} after {} instead of {theirs}", left / n, stage.attack));
            }
        }
    }
    failures
}

#[test]
#[ignore = "slow: AutoAttack on every golden, about ten minutes"]
fn conformance_table_autoattack() {
    let Some(goldens) = Goldens::find() else { return };
    let failures = autoattack(&goldens, |_, _| true);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn autoattack_where_it_is_short() {
    let Some(goldens) = Goldens::find() else { return };
    let failures = autoattack(&goldens, |model, entry| model == "convnet_nat" && entry["config"] == "eps8");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
#[ignore = "slow: the smallest distance of 40 images over nine targets"]
fn fab_distances() {
    let Some(goldens) = Goldens::find() else { return };
    for model in MODELS {
        let file = goldens.tensors(&format!("fab_norms_{model}.safetensors")).tensors;
        let data = first(&goldens, 40);
        let ids: Vec<u64> = (0..40).collect();
        let batch = c2r_attacks::AttackBatch { images: data.images(), labels: data.labels(), ids: &ids, targets: None };
        let script = Script::load(&goldens, model);
        let correct = file["clean"].nonzero().squeeze_dim(1);
        for (name, golden) in [("fab", "FAB/min_linf_norm"), ("fab-t", "FAB-T/min_linf_norm")] {
            let attack = config(name, &[]).build().unwrap();
            let found = attack.perturb(&script, &batch, &threat(Norm::Linf, 1.0), Seed::new(0)).unwrap();
            let got = Norm::Linf.distance(&found.images, data.images()).index_select(0, &correct);
            let expected = file[golden].index_select(0, &correct);
            let above = (&got - &expected) / &expected;
            let share = above.le(0.01).to_kind(tch::Kind::Float).mean(tch::Kind::Float).double_value(&[]);
            let worst = above.max().double_value(&[]);
            assert!(
                share >= 0.875 && worst <= 0.03,
                "{model} {name}: {share} within 1 %, worst {worst}: {got} {expected}"
            );
        }
    }
}
