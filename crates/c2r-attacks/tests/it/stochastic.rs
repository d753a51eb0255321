//! Robust accuracy of attacks with noise, over the reference's seeds, and the table of
//! docs/attacks/conformance.md.

use c2r_attacks::{AttackConfig, AttackReport, EvaluateOptions, Mode, Outcome};
use c2r_base::{Norm, Seed};
use c2r_testkit::goldens::Goldens;
use serde_json::Value;

use crate::support::{Script, config, first, n_different, percents, run, say, threat};

/// The reference's accuracies went through f32.
const ROUNDING: f64 = 1e-6;

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
    /// No seed is more robust than the reference's worst one by more than the tolerance, and the mean is not less robust
    /// than the reference's best one by more than that.
    fn verdict(&self) -> Result<(), String> {
        let worst = self.reference.iter().copied().fold(f64::MIN, f64::max);
        let best = self.reference.iter().copied().fold(self.reference_from_correct, f64::min);
        let most = self.ours.iter().copied().fold(f64::MIN, f64::max);
        if most > worst + self.tolerance + ROUNDING {
            return Err(format!("{}: {most} robust, the reference at most {worst}", self.what));
        }
        let mean = self.ours.iter().sum::<f64>() / self.ours.len() as f64;
        if mean < best - self.tolerance - ROUNDING {
            return Err(format!("{}: {mean} robust, the reference at least {best}", self.what));
        }
        Ok(())
    }

    fn markdown(&self) -> String {
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

/// Norm and configuration, such as `linf eps2` or `l2 0.25`.
fn radius_of(entry: &Value) -> String {
    format!("{} {}", norm_of(entry), entry["config"].as_str().unwrap().trim_start_matches("l2_"))
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
                what: format!("{model} | {} {}{queries}, n {}", attack.name(), radius_of(entry), entry["n"]),
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
    say("\n| model | attack | ours | reference | tolerance |\n|---|---|---|---|---|");
    check(&compare(&goldens, |_, _| true));
}

/// The reference's AutoAttack on the same images: one entry per model, norm and radius, with all its seeds.
fn autoattack(goldens: &Goldens, wanted: impl Fn(&str, &Value) -> bool) -> Vec<String> {
    let mut failures = Vec::new();
    let entries = goldens.value("/autoattack").as_array().unwrap();
    let theirs: Vec<&Value> = entries.iter().filter(|entry| entry["impl"] == "fra31").collect();
    for entry in theirs.iter().filter(|entry| entry["seed"] == 0) {
        let model = entry["model"].as_str().unwrap();
        if !wanted(model, entry) {
            continue;
        }
        let same = |other: &&&Value| ["model", "norm", "config"].iter().all(|key| other[*key] == entry[*key]);
        let seeds: Vec<&Value> = theirs.iter().filter(same).copied().collect();
        let n = entry["n"].as_f64().unwrap();
        let attack = config("autoattack-standard", &[]);
        let reports: Vec<AttackReport> =
            (0..seeds.len() as u64).map(|seed| attacked(goldens, model, entry, &attack, seed)).collect();
        let what = format!("{model} | autoattack-standard {}, n {n}", radius_of(entry));
        let line = Line {
            what: what.clone(),
            ours: reports.iter().map(AttackReport::robust_accuracy).collect(),
            reference: seeds.iter().map(|seed| seed["robust_accuracy"].as_f64().unwrap()).collect(),
            reference_from_correct: f64::MAX,
            tolerance: 1.0 / n,
        };
        failures.extend(line.verdict().err());

        // After each attack and image by image, for the first seed.
        let report = &reports[0];
        let mut left = report.clean_accuracy();
        let mut after = Vec::new();
        for stage in &report.attacks[0].stages {
            left -= (stage.attacked - stage.survivors) as f64 / n;
            let reference = entry["stages"].as_array().unwrap().iter();
            let reference = reference
                .filter(|theirs| theirs["stage"].as_str().unwrap().to_lowercase() == stage.attack)
                .find_map(|theirs| theirs["robust_accuracy"].as_f64());
            after.push((left, reference));
            if reference.is_some_and(|reference| (left - reference).abs() > 2.0 / n + ROUNDING) {
                failures.push(format!("{what}: {left} after {} instead of {reference:?}", stage.attack));
            }
        }
        let expected: Vec<bool> = entry["flags"].as_array().unwrap().iter().map(|flag| flag == 1).collect();
        let got: Vec<bool> =
            report.attacks[0].samples.iter().map(|sample| sample.outcome == Outcome::Survived).collect();
        let different = n_different(&got, &expected);
        if different > 2 {
            failures.push(format!("{what}: {different} flags differ"));
        }
        let each = |values: Vec<f64>| values.iter().map(|value| percents(&[*value])).collect::<Vec<_>>().join(" ");
        let counts = report.counts();
        say(&format!(
            "| {what} | {} | {} | {} | {} | {different} | {} of {} | {} of {} |",
            percents(&line.ours),
            percents(&line.reference),
            each(after.iter().map(|(ours, _)| *ours).collect()),
            each(after.iter().filter_map(|(_, reference)| *reference).collect()),
            counts.forward_images,
            entry["passes"]["fwd_images"],
            counts.backward_images,
            entry["passes"]["bwd_images"],
        ));
    }
    failures
}

#[test]
#[ignore = "slow: AutoAttack on every golden, about five minutes"]
fn conformance_table_autoattack() {
    let Some(goldens) = Goldens::find() else { return };
    say(
        "\n| model | attack | ours | reference | ours after each | reference | flags that differ | forward | backward |",
    );
    say("|---|---|---|---|---|---|---|---|---|");
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
    for model in crate::support::MODELS {
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
