//! How long jobs will take here, and which of them are wrong. `c2r estimate` reads the options and the configuration of each
//! command, counts what it sends through its network and times each network once; nothing that the commands need has to exist.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::Write,
};

use anyhow::Context;
use c2r_run::{exit, process, terminal};
use serde::Deserialize;

use crate::{Job, Stage, Workplace, lease};

/// A line of `c2r estimate`.
#[derive(Debug, Deserialize)]
struct Answer {
    seconds: Option<f64>,
    /// Names the network and the one whose speed was scaled, unless the network itself was measured.
    scaled: Option<String>,
    /// What the command will do otherwise than it says.
    note: Option<String>,
    error: Option<String>,
    /// The exit code of the command, beside `error`.
    code: Option<u8>,
}

/// Expected seconds of each job, or why they are not known.
pub(crate) type Times = Vec<Result<f64, String>>;

/// The most mistakes that a message shows.
const MOST_SHOWN: usize = 10;

/// Asks `c2r`, which must be built, for the times of `jobs`, which must hold what each one needs. Measured speeds of
/// networks are kept in the results folder for the next time.
pub(crate) fn times(jobs: &[Job], place: &Workplace) -> anyhow::Result<Times> {
    let mut options = Vec::new();
    if let Some(measured) = &place.estimate_for {
        options.extend(["--measured".to_owned(), measured.display().to_string()]);
    } else {
        let speeds = place.jobs().join(format!("speed-{}.json", lease::host_name()));
        options.extend(["--speeds".to_owned(), speeds.display().to_string()]);
        for option in ["--threads", "--device"] {
            let how = jobs.first().map_or(&[][..], |job| &job.how);
            if let Some(position) = how.iter().position(|word| word == option) {
                options.extend_from_slice(&how[position..position + 2]);
            }
        }
    }
    let (answers, answered_by) = ask(jobs, options, place)?;
    for scaled in answers.iter().filter_map(|answer| answer.scaled.as_ref()).collect::<BTreeSet<_>>() {
        terminal::note(format!("  not measured {}; scaled by multiplications: {scaled}", there(place)));
    }
    for note in answers.iter().filter_map(|answer| answer.note.as_ref()).collect::<BTreeSet<_>>() {
        terminal::note(format!("  note: {note}"));
    }
    let answer = |position: usize| match &answers[position] {
        Answer { seconds: Some(seconds), .. } => Ok(*seconds),
        Answer { error, .. } => Err(error.clone().unwrap_or_else(|| "c2r gave no reason".to_owned())),
    };
    Ok(answered_by.into_iter().map(answer).collect())
}

/// Checks the options and configurations of the jobs that are not finished, before any of them runs: a mistake in an attack
/// would otherwise be found after all distillations.
///
/// # Errors
/// What `c2r`, which must be built, says about each mistake.
pub(crate) fn check(jobs: &[Job], finished: &[bool], place: &Workplace) -> anyhow::Result<()> {
    let (answers, answered_by) = ask(jobs, ["--check", "--device", "cpu"].map(String::from).to_vec(), place)?;
    let mut mistakes: Vec<(&str, String, usize)> = Vec::new();
    for ((job, &position), _) in jobs.iter().zip(&answered_by).zip(finished).filter(|(_, done)| !**done) {
        // What reads the output of a wrong command is not wrong itself.
        let needs_wrong = job.needs.is_some_and(|needed| answers[answered_by[needed]].error.is_some());
        let Answer { error: Some(reason), code: Some(exit::USAGE), .. } = &answers[position] else { continue };
        if needs_wrong {
            continue;
        }
        match mistakes.iter_mut().find(|(other, ..)| other == reason) {
            Some((.., n)) => *n += 1,
            None => mistakes.push((reason, job.name(), 1)),
        }
    }
    if mistakes.is_empty() {
        return Ok(());
    }
    let line = |(reason, name, n): &(&str, String, usize)| match n - 1 {
        0 => format!("  {name}: {reason}"),
        more => format!("  {name} and {more} more: {reason}"),
    };
    let mut lines: Vec<String> = mistakes.iter().take(MOST_SHOWN).map(line).collect();
    if mistakes.len() > MOST_SHOWN {
        lines.push(format!("  and {}", terminal::counted(mistakes.len() - MOST_SHOWN, "more mistake")));
    }
    let wrong = terminal::counted(mistakes.iter().map(|(.., n)| n).sum(), "command");
    Err(exit::usage(format!("nothing was run, because c2r would refuse {wrong}:\n{}", lines.join("\n"))))
}

/// Asks `c2r estimate` about one job of each kind, with the jobs it needs; seeds change no answer. Returns the answers, and which of
/// them is each job's.
fn ask(jobs: &[Job], options: Vec<String>, place: &Workplace) -> anyhow::Result<(Vec<Answer>, Vec<usize>)> {
    let mut questions: HashMap<String, usize> = HashMap::new();
    let mut lines = Vec::new();
    let mut answered_by: Vec<usize> = Vec::with_capacity(jobs.len());
    for job in jobs {
        let key = kind(job, job.needs.map(|needed| answered_by[needed]));
        let position = *questions.entry(key).or_insert_with(|| {
            let words: Vec<&String> = job.args().collect();
            lines.push(serde_json::to_string(&words).expect("texts are JSON"));
            lines.len() - 1
        });
        answered_by.push(position);
    }
    let mut file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    lines.iter().try_for_each(|line| writeln!(file, "{line}")).context("cannot write a temporary file")?;
    let words = ["estimate".to_owned(), file.path().display().to_string()].into_iter().chain(options);
    let output = process::output(&mut place.command(words))?.context("c2r is not built")?;
    process::check_interrupt()?;
    let reason = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "`c2r estimate` failed: {}", reason.trim());
    let answers = String::from_utf8(output.stdout).context("`c2r estimate` printed no text")?;
    let answers: Vec<Answer> =
        answers.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("reading `c2r estimate`")?;
    let (n, n_asked) = (answers.len(), lines.len());
    anyhow::ensure!(n == n_asked, "`c2r estimate` answered {n} of {n_asked} questions");
    Ok((answers, answered_by))
}

/// What is known to be wrong with the estimates for another machine of the jobs that are not finished, for each attack: its file of
/// speeds says that.
pub(crate) fn caveats(jobs: &[Job], finished: &[bool], place: &Workplace) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Measured {
        #[serde(default)]
        caveats: BTreeMap<String, String>,
    }
    let Some(file) = &place.estimate_for else { return Ok(Vec::new()) };
    let Measured { caveats } = c2r_files::read_json(file)?;
    let open = || jobs.iter().zip(finished).filter(|(_, done)| !**done).map(|(job, _)| job);
    let of = |(name, caveat): (&String, &String)| {
        let n = open().filter(|job| matches!(&job.stage, Stage::Attack { attack, .. } if attack == name)).count();
        (n > 0).then(|| format!("{} with {name}: the estimate is {caveat}", terminal::counted(n, "attack")))
    };
    Ok(caveats.iter().filter_map(of).collect())
}

/// Where the times are meant for, as a sentence says it: `here`, or `on h200`.
pub(crate) fn there(place: &Workplace) -> String {
    let name = place.estimate_for.as_ref().and_then(|path| path.file_stem());
    name.map_or_else(|| "here".to_owned(), |name| format!("on {}", name.to_string_lossy()))
}

/// Jobs of one kind take the same time: they differ in their seed, and in what they read and write.
fn kind(job: &Job, needs: Option<usize>) -> String {
    let seed = job.what.iter().position(|word| word == "--seed").map(|position| position + 1);
    let words = job.what.iter().enumerate().filter(|(position, _)| Some(*position) != seed);
    format!("{needs:?} {}", words.map(|(_, word)| word.as_str()).collect::<Vec<_>>().join(" "))
}

/// Prints the time of what is not finished, by kind of job, and the sum.
pub(crate) fn print(jobs: &[Job], finished: &[bool], times: &Times, n_at_once: usize, place: &Workplace) {
    let mut groups: Vec<(String, usize, f64)> = Vec::new();
    let (mut total, mut unknown) = (0.0, Vec::new());
    for ((job, _), time) in jobs.iter().zip(finished).zip(times).filter(|((_, done), _)| !**done) {
        match time {
            Ok(seconds) => {
                let name = group(job);
                match groups.iter_mut().find(|(other, ..)| *other == name) {
                    Some((_, n, sum)) => (*n, *sum) = (*n + 1, *sum + seconds),
                    None => groups.push((name, 1, *seconds)),
                }
                total += seconds;
            }
            Err(reason) => unknown.push(format!("{}: {reason}", job.name())),
        }
    }
    for (name, n, sum) in &groups {
        let each = terminal::seconds(sum / *n as f64);
        terminal::note(format!("  {name}: {n} x {each} = {}", terminal::seconds(*sum)));
    }
    if let Some(first) = unknown.first() {
        let n = terminal::counted(unknown.len(), "command");
        terminal::note(format!("  no estimate for {n}; the first: {first}"));
    }
    if groups.is_empty() && !unknown.is_empty() {
        return;
    }
    let about = if unknown.is_empty() { "about" } else { "at least" };
    terminal::note(format!(
        "{about} {} {} with {n_at_once} at once, if nothing else runs; Ctrl-C stops it, and the same command{} resumes",
        terminal::seconds((total / n_at_once.max(1) as f64).max(longest_chain(jobs, finished, times))),
        there(place),
        if place.force { " without --force" } else { "" }
    ));
}

/// Seconds of what is not finished along the longest way from a distillation to an attack: however many jobs run at once, a
/// job waits for the one it needs.
fn longest_chain(jobs: &[Job], finished: &[bool], times: &Times) -> f64 {
    let mut until = Vec::with_capacity(jobs.len());
    for (position, job) in jobs.iter().enumerate() {
        let own = if finished[position] { 0.0 } else { *times[position].as_ref().unwrap_or(&0.0) };
        until.push(own + job.needs.map_or(0.0, |needed| until[needed]));
    }
    until.into_iter().fold(0.0, f64::max)
}

/// How jobs are listed.
fn group(job: &Job) -> String {
    let size = job.cell.ipc.map_or_else(|| "all images".to_owned(), |ipc| format!("ipc {ipc}"));
    let dataset = &job.cell.dataset;
    match &job.stage {
        Stage::Distill => format!("distill {dataset}, {size}, {}", job.cell.method),
        Stage::Train(network) => format!("train {dataset}, {size}, {}", network.protocol),
        Stage::Attack { attack, .. } => format!("attack {dataset}, {attack}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::Example;

    #[test]
    fn kinds_differ_in_more_than_the_seed() {
        let example = Example::new();
        let of = |only: &str| kind(&example.jobs(only)[0], None);
        assert_eq!(of("dataset=digits,ipc=1,method=c2r,seed=0"), of("dataset=digits,ipc=1,method=c2r,seed=2"));
        assert_ne!(of("dataset=digits,ipc=1,method=c2r,seed=0"), of("dataset=digits,ipc=10,method=c2r,seed=0"));
        let train = &example.jobs("dataset=digits,ipc=1,method=c2r,seed=0")[1];
        assert_ne!(kind(train, Some(0)), kind(train, Some(1)), "the same command on another set");
    }

    /// A `c2r` that answers every question with its number.
    #[cfg(unix)]
    #[test]
    fn one_of_each_kind_is_asked_for() {
        let example = Example::new();
        let script =
            "#!/bin/sh\nn=0\nwhile read -r line; do n=$((n + 1)); echo \"{\\\"seconds\\\": $n}\"; done < \"$2\"\n";
        example.program(script);
        let jobs = example.jobs("dataset=digits,ipc=1,method=c2r");
        let times = times(&jobs, &example.place).unwrap();
        assert_eq!(jobs.len(), 3 * 7);
        let seconds: Vec<f64> = times.into_iter().map(Result::unwrap).collect();
        assert_eq!(seconds[..7], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(seconds[7..14], seconds[..7], "another seed takes the same time");
    }

    /// Without the device and the threads of this machine.
    #[cfg(unix)]
    #[test]
    fn the_speeds_of_another_machine_are_passed_on() {
        let mut example = Example::new();
        let script = "#!/bin/sh\n[ \"$# $3 $4\" = \"4 --measured there.json\" ] || exit 1\n\
                      while read -r line; do echo '{\"seconds\": 3}'; done < \"$2\"\n";
        example.program(script);
        let jobs = example.jobs("dataset=digits,ipc=1,method=c2r,seed=0");
        assert!(times(&jobs, &example.place).is_err());
        example.place.estimate_for = Some("there.json".into());
        assert_eq!(there(&example.place), "on there");
        assert!(times(&jobs, &example.place).unwrap().iter().all(|time| *time == Ok(3.0)));
    }

    #[test]
    fn what_is_wrong_with_an_estimate_is_said_where_it_matters() {
        let mut example = Example::new();
        let jobs = example.jobs("dataset=digits,ipc=1,method=c2r,seed=0");
        let (open, mut done) = ([false; 7], [false; 7]);
        assert!(caveats(&jobs, &open, &example.place).unwrap().is_empty());
        let file = example.place.root.join("there.json");
        std::fs::write(&file, r#"{"about": "x", "caveats": {"pgd": "too low", "deepfool": "too high"}}"#).unwrap();
        example.place.estimate_for = Some(file);
        let said = |finished: &[bool]| caveats(&jobs, finished, &example.place).unwrap();
        assert_eq!(said(&open), ["2 attacks with pgd: the estimate is too low"]);
        done[3] = true;
        assert_eq!(said(&done), ["1 attack with pgd: the estimate is too low"]);
        assert!(said(&[true; 7]).is_empty());
    }

    /// A `c2r` that refuses attacks with PGD, and everything with `wrong` in it, and what reads the output of that.
    #[cfg(unix)]
    #[test]
    fn mistakes_are_found_before_anything_is_run() {
        let example = Example::new();
        example.program(
            "#!/bin/sh\n[ \"$1 $3\" = 'estimate --check' ] || exit 1\nwhile read -r line; do case $line in\n\
             *'\"pgd\"'*) echo '{\"error\": \"no such attack\", \"code\": 2}' ;;\n\
             *pgd-at*) echo '{\"error\": \"no such file\", \"code\": 3}' ;;\n\
             *class-mean*) echo '{\"error\": \"no such key\", \"code\": 2}' ;;\n\
             *) echo '{}' ;; esac; done < \"$2\"\n",
        );
        let jobs = example.jobs("dataset=digits,ipc=1,method=c2r");
        let mut finished = vec![false; jobs.len()];
        let error = check(&jobs, &finished, &example.place).unwrap_err();
        assert_eq!(exit::code_of(&error), exit::USAGE);
        // The network of the other protocol is not trained yet, so its attacks wait for it; this is not an error.
        assert_eq!(
            error.to_string(),
            "nothing was run, because c2r would refuse 3 commands:\n  digits/ipc1/c2r/seed0 attack natural-pgd-0.1 and 2 more: no \
             such attack"
        );
        for (job, finished) in jobs.iter().zip(&mut finished) {
            *finished = matches!(&job.stage, Stage::Attack { attack, .. } if attack == "pgd");
        }
        check(&jobs, &finished, &example.place).unwrap();
        let jobs = example.jobs("dataset=digits,ipc=1,method=class-mean,seed=0,attack=fgsm");
        let error = check(&jobs, &[false; 5], &example.place).unwrap_err().to_string();
        assert!(error.contains("refuse 1 command:") && error.contains("seed0 distill: no such key"), "{error}");
    }

    #[test]
    fn many_at_once_still_wait_for_one_another() {
        let jobs = Example::new().jobs("dataset=digits,ipc=1,method=c2r,seed=0");
        let times: Times = (1..=7).map(|seconds| Ok(f64::from(seconds))).collect();
        // Distil 1, train 2, attack 3 and 4, train 5, attack 6 and 7.
        assert_eq!(longest_chain(&jobs, &[false; 7], &times), 1.0 + 5.0 + 7.0);
        let mut finished = [false; 7];
        finished[0] = true;
        assert_eq!(longest_chain(&jobs, &finished, &times), 5.0 + 7.0);
    }
}
