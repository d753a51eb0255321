//! Small experiments whose numbers are committed, run again and compared (`cargo xtask test --regression`).

use std::{collections::BTreeMap, env, fs, path::Path, process::Command};

use anyhow::Context;
use c2r_experiment::{Experiment, results};
use c2r_run::{exit, process, terminal as ui};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Datasets, Grid, Job, Stage, Workplace};

/// Where the experiments and the accepted numbers are.
const FOLDER: &str = "data/regression";

/// The grid of each of the experiments.
const SCALE: &str = "regression";

const CHANGELOG: &str = "CHANGELOG.md";

/// How to accept numbers, for the files that say where they are from.
const ACCEPT: &str = "cargo xtask test --regression --accept";

const SCHEMA_VERSION: u32 = 1;

/// No mean is held to less than this, percentage points: between six and seven of the digits' 438 held-out images.
const FLOOR: f64 = 1.5;

/// Stands in every file of accepted numbers.
const WHY: &str = "A mean may move by its standard error over the seeds (deviation / sqrt(runs)), or by 1.5 points (between \
six and seven of the digits' 438 held-out images), whichever is larger. Both sides run the same seeds, so initial images, networks and order \
are the same and only float rounding differs between machines: less than what another seed would change.";

/// Accepted numbers: `data/regression/NAME.json`, written by `--accept` alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Accepted {
    schema_version: u32,
    /// Where the numbers are from.
    command: String,
    date: String,
    machine: String,
    /// What the tolerances are made of.
    tolerance: String,
    /// Versions of distill, train and attack (`c2r_experiment::results`).
    results_versions: [u32; 3],
    /// SHA-256 of the images that were attacked.
    test_sha256: String,
    numbers: Vec<Number>,
}

impl Accepted {
    fn of_now(measured: &Measured) -> anyhow::Result<Self> {
        Ok(Self {
            schema_version: SCHEMA_VERSION,
            command: ACCEPT.to_owned(),
            date: today()?,
            machine: machine(),
            tolerance: WHY.to_owned(),
            results_versions: versions(),
            test_sha256: measured.test_sha256.clone(),
            numbers: measured.numbers.clone(),
        })
    }
}

/// A mean over seeds, percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Number {
    /// `ipc 1, c2r, natural, pgd`.
    name: String,
    mean: f64,
    /// Sample standard deviation over the seeds.
    deviation: f64,
    /// How far another run's mean may be from this one.
    tolerance: f64,
    /// One for each seed.
    runs: Vec<f64>,
}

impl Number {
    fn of(name: String, runs: Vec<f64>) -> Self {
        let n = runs.len() as f64;
        let mean = runs.iter().sum::<f64>() / n;
        let squares: f64 = runs.iter().map(|run| (run - mean).powi(2)).sum();
        let deviation = if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        let tolerance = (deviation / n.sqrt()).max(FLOOR);
        let round = |x: f64| (x * 1000.0).round() / 1000.0;
        let runs = runs.into_iter().map(round).collect();
        Self { name, mean: round(mean), deviation: round(deviation), tolerance: round(tolerance), runs }
    }
}

/// What was measured.
struct Measured {
    test_sha256: String,
    numbers: Vec<Number>,
}

/// Runs every experiment whose data is here in a results folder of its own, and compares. `strict` makes missing data a failure.
///
/// # Errors
/// Exit code 4 if a number has moved and is not accepted.
pub fn regression(accept: bool, strict: bool, place: &Workplace) -> anyhow::Result<()> {
    // Results of other code prove nothing.
    if place.results.exists() {
        fs::remove_dir_all(&place.results).with_context(|| format!("cannot remove {}", place.results.display()))?;
    }
    let (mut moved, mut changes) = (Vec::new(), Vec::new());
    for name in ["digits", "cifar10"] {
        let path = place.root.join(FOLDER).join(name);
        let experiment = Experiment::read(&path.with_extension("toml")).map_err(exit::usage)?;
        let scale = experiment.scale(SCALE).map_err(exit::usage)?;
        let place = Workplace { threads: scale.threads, ..place.clone() };
        let datasets = Datasets::read(&place, &scale.datasets)?;
        let absent = datasets.missing(&scale.datasets);
        if !absent.is_empty() {
            let text = format!(
                "SKIPPED: the regression on {name}, whose data is missing; name its folder with --data DIR or C2R_DATA"
            );
            if strict {
                return Err(exit::error(exit::DATA, text));
            }
            ui::note(text);
            continue;
        }
        ui::note(format!("{name}: {}", scale.about));
        let jobs = Grid { experiment: &experiment, scale, place: &place, datasets: &datasets }.whole()?.jobs;
        crate::built_in::check(&jobs, &place)?;
        let n_jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let summary = crate::run(&jobs, &vec![false; jobs.len()], n_jobs, &place)?;
        if let Some(failure) = summary.failures.first() {
            return Err(exit::error(failure.failed.code, &failure.failed.report));
        }
        let measured = measured(&jobs)?;
        let file = path.with_extension("json");
        let accepted = read(&file)?;
        let differences = compare(accepted.as_ref(), &measured, &file)?;
        differences.iter().for_each(|difference| ui::out(format!("{name}: {difference}")));
        let beyond: Vec<&Difference> = differences.iter().filter(|difference| difference.is_beyond()).collect();
        ui::note(format!("{name}: {} numbers, {} outside their tolerance", measured.numbers.len(), beyond.len()));
        if accept {
            may_accept(accepted.as_ref().map(|accepted| accepted.results_versions), &beyond)?;
            // Numbers within their tolerance stay, so that they cannot drift from one acceptance to the next; but a version that is new
            // is noted, so that the next change does not pass as its.
            let new_version = accepted.filter(|accepted| accepted.results_versions != versions());
            let written = match (beyond.is_empty(), new_version) {
                (false, _) => Some(Accepted::of_now(&measured)?),
                (true, Some(old)) => Some(Accepted { results_versions: versions(), ..old }),
                (true, None) => None,
            };
            if let Some(written) = written {
                c2r_files::write_json(&file, &written)?;
                ui::note(format!("accepted: {}", place.show(&file)));
            }
            if !beyond.is_empty() {
                changes.push(format!("- Regression on {name} (`{ACCEPT}`, {}): {}.", today()?, in_words(&beyond)));
            }
        } else {
            moved.extend(beyond.iter().map(|difference| format!("{name}: {difference}")));
        }
    }
    if !changes.is_empty() {
        let path = place.root.join(CHANGELOG);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        c2r_files::write_atomically(&path, with_results(&text, &changes)?.as_bytes())?;
        let n = ui::counted(changes.len(), "line");
        ui::note(format!("{CHANGELOG}: added {n} under Results; explain there why the numbers changed"));
    }
    if moved.is_empty() {
        return Ok(());
    }
    Err(exit::error(
        exit::OUTSIDE_TOLERANCE,
        format!(
            "{} numbers have changed. If that is intended, raise the version of the stage that changed them \
             (crates/c2r-experiment/src/results.rs), then `{ACCEPT}`",
            moved.len()
        ),
    ))
}

/// The numbers of finished commands.
fn measured(jobs: &[Job]) -> anyhow::Result<Measured> {
    let mut runs: BTreeMap<String, BTreeMap<u64, f64>> = BTreeMap::new();
    let mut test_sha256 = String::new();
    for job in jobs {
        let Stage::Attack { network, attack, .. } = &job.stage else { continue };
        let path = job.output();
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let report: Value = serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
        let percent = |value: &Value| {
            value.as_f64().map(|part| 100.0 * part).with_context(|| format!("{}: a number is missing", path.display()))
        };
        let ipc = job.cell.ipc.map_or_else(|| "all".to_owned(), |ipc| ipc.to_string());
        let row = format!("ipc {ipc}, {}, {}", job.cell.method, network.protocol);
        let mut add = |column: &str, value: f64| {
            runs.entry(format!("{row}, {column}")).or_default().insert(job.cell.seed, value);
        };
        add("clean", percent(&report["clean_accuracy"])?);
        add(attack, percent(&report["attacks"][0]["robust_accuracy"])?);
        test_sha256 = report["test_sha256"].as_str().unwrap_or_default().to_owned();
    }
    let numbers = runs.into_iter().map(|(name, runs)| Number::of(name, runs.into_values().collect())).collect();
    Ok(Measured { test_sha256, numbers })
}

/// A number that is not what was accepted.
#[derive(Debug, PartialEq)]
enum Difference {
    Moved { name: String, before: f64, after: f64, tolerance: f64 },
    New { name: String, after: f64 },
    Gone { name: String, before: f64 },
}

impl Difference {
    fn is_beyond(&self) -> bool {
        match self {
            Self::Moved { before, after, tolerance, .. } => (after - before).abs() > *tolerance,
            Self::New { .. } | Self::Gone { .. } => true,
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Moved { name, before, after, tolerance } => {
                write!(f, "{name} {before:.1} -> {after:.1} (tolerance {tolerance:.1})")
            }
            Self::New { name, after } => write!(f, "{name} new: {after:.1}"),
            Self::Gone { name, before } => write!(f, "{name} gone: {before:.1}"),
        }
    }
}

/// What differs, also within the tolerance.
fn compare(accepted: Option<&Accepted>, measured: &Measured, file: &Path) -> anyhow::Result<Vec<Difference>> {
    let none = Vec::new();
    if let Some(accepted) = accepted
        && accepted.test_sha256 != measured.test_sha256
    {
        return Err(exit::error(
            exit::DATA,
            format!("{}: its numbers are for other images ({})", file.display(), accepted.test_sha256),
        ));
    }
    let before = accepted.map_or(&none, |accepted| &accepted.numbers);
    let mut differences = Vec::new();
    for number in &measured.numbers {
        let name = number.name.clone();
        match before.iter().find(|other| other.name == name) {
            None => differences.push(Difference::New { name, after: number.mean }),
            Some(other) if other.runs != number.runs => differences.push(Difference::Moved {
                name,
                before: other.mean,
                after: number.mean,
                tolerance: other.tolerance,
            }),
            Some(_) => {}
        }
    }
    let gone = before.iter().filter(|other| measured.numbers.iter().all(|number| number.name != other.name));
    differences.extend(gone.map(|other| Difference::Gone { name: other.name.clone(), before: other.mean }));
    Ok(differences)
}

/// Numbers that moved or went, one by one; numbers that are new stand in the file.
fn in_words(beyond: &[&Difference]) -> String {
    let (new, old): (Vec<&Difference>, Vec<&Difference>) =
        beyond.iter().partition(|difference| matches!(difference, Difference::New { .. }));
    let mut parts: Vec<String> = old.iter().map(ToString::to_string).collect();
    if !new.is_empty() {
        parts.push(format!("{} new numbers in {FOLDER}", new.len()));
    }
    parts.join("; ")
}

fn versions() -> [u32; 3] {
    [results::DISTILL, results::TRAIN, results::ATTACK]
}

/// A number that moved under an unchanged version would leave results of both kinds in one folder. Attacks do not change what
/// networks make of clean images.
fn may_accept(accepted: Option<[u32; 3]>, beyond: &[&Difference]) -> anyhow::Result<()> {
    let Some([distill, train, attack]) = accepted else { return Ok(()) };
    let moved = |clean: bool| {
        let is_meant = |name: &str| !clean || name.ends_with(", clean");
        beyond.iter().any(|difference| matches!(difference, Difference::Moved { name, .. } if is_meant(name)))
    };
    let networks_are_new = [distill, train] != [results::DISTILL, results::TRAIN];
    let (what, stages) = if moved(true) && !networks_are_new {
        ("clean accuracies changed, but neither distill nor train", "one of the two")
    } else if moved(false) && !networks_are_new && attack == results::ATTACK {
        ("numbers changed, but no stage", "that of the stage that changed them")
    } else {
        return Ok(());
    };
    Err(exit::usage(format!(
        "not accepted: {what} has a new version; finished results of the old numbers would be taken for new ones. Raise \
         {stages} in crates/c2r-experiment/src/results.rs",
    )))
}

fn read(file: &Path) -> anyhow::Result<Option<Accepted>> {
    if !file.exists() {
        return Ok(None);
    }
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let accepted: Accepted =
        serde_json::from_slice(&text).map_err(|error| exit::usage(format!("{}: {error}", file.display())))?;
    if accepted.schema_version != SCHEMA_VERSION {
        let version = accepted.schema_version;
        return Err(exit::usage(format!("{}: schema_version is {version}, not {SCHEMA_VERSION}", file.display())));
    }
    Ok(Some(accepted))
}

/// `2026-11-24`.
fn today() -> anyhow::Result<String> {
    let output = process::output(Command::new("date").args(["-u", "+%F"]))?.context("there is no `date`")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `AMD EPYC 7B13, 2 cores`.
fn machine() -> String {
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    format!("{}, {n_cores} cores", model.unwrap_or(env::consts::ARCH))
}

/// The change log with lines at the top of the first `### Results`, which belongs to what is not released yet.
fn with_results(text: &str, lines: &[String]) -> anyhow::Result<String> {
    const HEADING: &str = "### Results\n\n";
    let unreleased = text.find("## Unreleased").context("CHANGELOG.md has no `## Unreleased`")?;
    let end = text[unreleased + 3..].find("\n## ").map_or(text.len(), |at| unreleased + 3 + at);
    let at = text[unreleased..end].find(HEADING).context("CHANGELOG.md has no `### Results` under Unreleased")?;
    let at = unreleased + at + HEADING.len();
    Ok(format!("{}{}\n{}", &text[..at], lines.join("\n"), &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(runs: &[(&str, &[f64])]) -> Measured {
        let numbers = runs.iter().map(|(name, runs)| Number::of((*name).into(), runs.to_vec())).collect();
        Measured { test_sha256: "ab".into(), numbers }
    }

    fn accepted(runs: &[(&str, &[f64])], results_versions: [u32; 3]) -> Accepted {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.json");
        c2r_files::write_json(&file, &Accepted::of_now(&measured(runs)).unwrap()).unwrap();
        Accepted { results_versions, ..read(&file).unwrap().unwrap() }
    }

    #[test]
    fn the_tolerance_is_the_standard_error_or_the_floor() {
        let number = Number::of("x".into(), vec![10.0, 20.0, 30.0, 40.0]);
        assert_eq!((number.mean, number.deviation, number.tolerance), (25.0, 12.91, 6.455));
        assert_eq!(Number::of("x".into(), vec![10.0, 10.5, 10.0, 10.5]).tolerance, FLOOR);
    }

    #[test]
    fn what_moved_is_found_and_only_what_moved_far_fails() {
        let before = accepted(&[("a", &[20.0, 21.0]), ("b", &[40.0, 41.0]), ("c", &[1.0, 2.0])], versions());
        let file = Path::new("x.json");
        let check = |now: &Measured| compare(Some(&before), now, file).unwrap();
        assert!(check(&measured(&[("a", &[20.0, 21.0]), ("b", &[40.0, 41.0]), ("c", &[1.0, 2.0])])).is_empty());
        let differences = check(&measured(&[("a", &[21.0, 21.0]), ("b", &[44.0, 45.0]), ("d", &[5.0, 5.0])]));
        let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["a 20.5 -> 21.0 (tolerance 1.5)", "b 40.5 -> 44.5 (tolerance 1.5)", "d new: 5.0", "c gone: 1.5"]
        );
        let beyond: Vec<bool> = differences.iter().map(Difference::is_beyond).collect();
        assert_eq!(beyond, [false, true, true, true]);
        let beyond: Vec<&Difference> = differences.iter().filter(|difference| difference.is_beyond()).collect();
        let words = "b 40.5 -> 44.5 (tolerance 1.5); c gone: 1.5; 1 new numbers in data/regression";
        assert_eq!(in_words(&beyond), words);
        let other = Measured { test_sha256: "cd".into(), numbers: vec![] };
        assert!(exit::message(&compare(Some(&before), &other, file).unwrap_err()).contains("other images"));
    }

    #[test]
    fn a_moved_number_needs_another_version() {
        let moved = Difference::Moved { name: "a".into(), before: 1.0, after: 9.0, tolerance: 1.5 };
        let new = Difference::New { name: "b".into(), after: 9.0 };
        let refusal =
            |versions, beyond: &[&Difference]| exit::message(&may_accept(Some(versions), beyond).unwrap_err());
        assert!(refusal(versions(), &[&moved]).contains("no stage has a new version"));
        assert!(may_accept(Some(versions()), &[&new]).is_ok() && may_accept(None, &[&new]).is_ok());
        // Another version of the attacks explains no other clean accuracy.
        let clean = Difference::Moved { name: "x, clean".into(), before: 1.0, after: 9.0, tolerance: 1.5 };
        let [distill, train, attack] = versions();
        let other_attacks = [distill, train, attack - 1];
        assert!(may_accept(Some(other_attacks), &[&moved]).is_ok());
        assert!(refusal(other_attacks, &[&moved, &clean]).contains("neither distill nor train"));
        assert!(may_accept(Some([distill - 1, train, attack]), &[&moved, &clean]).is_ok());
    }

    #[test]
    fn the_change_log_gets_lines_under_results_of_what_is_not_released() {
        let text = "# Changes\n\n## Unreleased\n\n### Added\n\n- x\n\n### Results\n\n- old\n\n## 0.1\n\n### Results\n\n- older\n";
        let changed = with_results(text, &["- new".into(), "- newer".into()]).unwrap();
        assert!(changed.contains("### Results\n\n- new\n- newer\n- old\n\n## 0.1"), "{changed}");
        assert_eq!(changed.len(), text.len() + "- new\n- newer\n".len());
        assert!(with_results("## Unreleased\n\n## 0.1\n\n### Results\n\n", &[]).is_err());
    }

    #[test]
    fn the_files_of_the_repository_are_read_and_have_every_number() {
        for name in ["digits", "cifar10"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(FOLDER).join(name);
            let experiment = Experiment::read(&path.with_extension("toml")).unwrap();
            let scale = experiment.scale(SCALE).unwrap();
            let accepted = read(&path.with_extension("json")).unwrap().expect("numbers are committed");
            let n_rows = scale.methods.len() * scale.ipcs.len() * scale.protocols.len();
            assert_eq!(accepted.numbers.len(), n_rows * (1 + scale.attacks.len()), "{name}");
            assert!(accepted.numbers.iter().all(|number| number.runs.len() == scale.seeds.len()));
        }
    }
}
