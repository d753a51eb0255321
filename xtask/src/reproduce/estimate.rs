//! How long commands will take here. `c2r estimate` counts what each one sends through its network and times each
//! network once; nothing that the commands need has to exist.

use std::{path::Path, process::Command, time::Duration};

use anyhow::Context;
use serde::Deserialize;

use super::{
    lease,
    plan::{Stage, Step},
};
use crate::{
    checkout::{self, Checkout},
    process, ui,
};

/// A line of `c2r estimate`.
#[derive(Debug, Deserialize)]
struct Answer {
    seconds: Option<f64>,
    error: Option<String>,
}

/// Expected time of each command, or why it is not known.
pub(crate) type Times = Vec<Result<f64, String>>;

/// Asks `c2r`, which must be built, for the times of `steps`, which must hold what each one needs. Measured speeds of
/// networks are kept in `results` for the next time.
///
/// # Errors
/// If the user interrupted, or `c2r estimate` fails.
pub(crate) fn times(steps: &[Step], results: &Path, checkout: &Checkout) -> anyhow::Result<Times> {
    // Seeds change no time: one of each kind is asked for, with the commands it needs.
    let mut lines = Vec::new();
    let mut asked: Vec<(String, usize)> = Vec::new();
    let mut answers_at = Vec::with_capacity(steps.len());
    let mut representative: Vec<usize> = Vec::with_capacity(steps.len());
    for step in steps {
        let key = kind(step, step.needs.map(|needed| representative[needed]));
        let found = asked.iter().find(|(other, _)| *other == key).map(|(_, at)| *at);
        let at = found.unwrap_or_else(|| {
            let words: Vec<&String> = step.args().collect();
            lines.push(serde_json::to_string(&words).expect("texts are JSON"));
            asked.push((key, lines.len() - 1));
            lines.len() - 1
        });
        answers_at.push(at);
        representative.push(at);
    }
    let file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(file.path(), text).context("cannot write a temporary file")?;
    let mut command = Command::new(checkout.c2r());
    let speeds = results.join("jobs").join(format!("speed-{}.json", lease::host_name()));
    command.arg("estimate").arg(file.path()).arg("--speeds").arg(speeds).current_dir(checkout.root());
    for option in ["--threads", "--device"] {
        if let Some(value) = steps.first().and_then(|step| value_of(step, option)) {
            command.args([option, value]);
        }
    }
    checkout::with_libtorch(&mut command, &checkout.libtorch_link());
    let output = process::output(&mut command)?.context("c2r is not built")?;
    process::check_interrupt()?;
    anyhow::ensure!(
        output.status.success(),
        "`c2r estimate` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let answers = String::from_utf8(output.stdout).context("`c2r estimate` printed no text")?;
    let answers: Vec<Answer> =
        answers.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("reading `c2r estimate`")?;
    anyhow::ensure!(
        answers.len() == lines.len(),
        "`c2r estimate` answered {} of {} questions",
        answers.len(),
        lines.len()
    );
    let answer = |at: usize| match (&answers[at].seconds, &answers[at].error) {
        (Some(seconds), _) => Ok(*seconds),
        (None, error) => Err(error.clone().unwrap_or_else(|| "no reason given".to_owned())),
    };
    Ok(answers_at.into_iter().map(answer).collect())
}

fn value_of<'a>(step: &'a Step, option: &str) -> Option<&'a str> {
    let position = step.how.iter().position(|word| word == option)?;
    step.how.get(position + 1).map(String::as_str)
}

/// Commands of one kind take the same time: they differ in their seed, and in what they read and write.
fn kind(step: &Step, needs: Option<usize>) -> String {
    let mut words = step.what.iter();
    let mut kept = vec![format!("{needs:?}")];
    while let Some(word) = words.next() {
        if word == "--seed" {
            words.next();
        } else {
            kept.push(word.clone());
        }
    }
    kept.join(" ")
}

/// Prints the time of what is not finished, by kind of command, and the sum.
pub(crate) fn print(steps: &[Step], finished: &[bool], times: &Times, n_jobs: usize) {
    let mut groups: Vec<(String, usize, f64)> = Vec::new();
    let (mut total, mut unknown) = (0.0, Vec::new());
    for ((step, _), time) in steps.iter().zip(finished).zip(times).filter(|((_, done), _)| !**done) {
        match time {
            Ok(seconds) => {
                let name = group(step);
                match groups.iter_mut().find(|(other, ..)| *other == name) {
                    Some((_, n, sum)) => (*n, *sum) = (*n + 1, *sum + seconds),
                    None => groups.push((name, 1, *seconds)),
                }
                total += seconds;
            }
            Err(reason) => unknown.push(format!("{}: {reason}", step.name())),
        }
    }
    for (name, n, sum) in groups {
        ui::note(format!("  {name}: {n} x {} = {}", time(sum / n as f64), time(sum)));
    }
    if let Some(first) = unknown.first() {
        ui::note(format!("  {} commands of unknown length, the first: {first}", unknown.len()));
    }
    ui::note(format!(
        "about {} here, {n_jobs} at once, if nothing else runs; Ctrl-C stops it at any time, the same command goes on",
        time((total / n_jobs.max(1) as f64).max(longest_chain(steps, finished, times)))
    ));
}

/// Seconds of what is not finished along the longest way from a distillation to an attack: however many commands run at
/// once, a command waits for the one it needs.
fn longest_chain(steps: &[Step], finished: &[bool], times: &Times) -> f64 {
    let mut until = Vec::with_capacity(steps.len());
    for (position, step) in steps.iter().enumerate() {
        let own = if finished[position] { 0.0 } else { *times[position].as_ref().unwrap_or(&0.0) };
        until.push(own + step.needs.map_or(0.0, |needed| until[needed]));
    }
    until.into_iter().fold(0.0, f64::max)
}

/// How commands are listed.
fn group(step: &Step) -> String {
    let size = step.cell.ipc.map_or_else(|| "all images".to_owned(), |ipc| format!("ipc {ipc}"));
    let dataset = &step.cell.dataset;
    match &step.stage {
        Stage::Distill => format!("distill {dataset}, {size}, {}", step.cell.method),
        Stage::Train(network) => format!("train {dataset}, {size}, {}", network.protocol),
        Stage::Attack { attack, .. } => format!("attack {dataset}, {attack}"),
    }
}

/// Seconds for people.
pub(crate) fn time(seconds: f64) -> String {
    ui::duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::{super::plan::tests::Example, *};

    #[test]
    fn kinds_differ_in_more_than_the_seed() {
        let example = Example::new();
        let of = |only: &str| kind(&example.steps(only)[0], None);
        assert_eq!(of("dataset=digits,ipc=1,method=c2r,seed=0"), of("dataset=digits,ipc=1,method=c2r,seed=2"));
        assert_ne!(of("dataset=digits,ipc=1,method=c2r,seed=0"), of("dataset=digits,ipc=10,method=c2r,seed=0"));
        let train = &example.steps("dataset=digits,ipc=1,method=c2r,seed=0")[1];
        assert_ne!(kind(train, Some(0)), kind(train, Some(1)), "the same command on another set");
    }

    /// A `c2r` that answers every question with its number.
    #[cfg(unix)]
    #[test]
    fn one_of_each_kind_is_asked_for() {
        let example = Example::new();
        let folder = example.folder.path().join("target/release");
        std::fs::create_dir_all(&folder).unwrap();
        let script =
            "#!/bin/sh\nn=0\nwhile read -r line; do n=$((n + 1)); echo \"{\\\"seconds\\\": $n}\"; done < \"$2\"\n";
        std::fs::write(folder.join("script"), script).unwrap();
        let copy = "cp \"$0/script\" \"$0/c2r\" && chmod +x \"$0/c2r\"";
        assert!(Command::new("sh").args(["-c", copy]).arg(&folder).status().unwrap().success());
        let steps = example.steps("dataset=digits,ipc=1,method=c2r");
        let times = times(&steps, &example.place.results, &example.checkout()).unwrap();
        assert_eq!(steps.len(), 3 * 7);
        let seconds: Vec<f64> = times.into_iter().map(Result::unwrap).collect();
        assert_eq!(seconds[..7], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(seconds[7..14], seconds[..7], "another seed takes the same time");
    }

    #[test]
    fn many_at_once_still_wait_for_one_another() {
        let steps = Example::new().steps("dataset=digits,ipc=1,method=c2r,seed=0");
        let times: Times = (1..=7).map(|seconds| Ok(f64::from(seconds))).collect();
        // Distil 1, train 2, attack 3 and 4, train 5, attack 6 and 7.
        assert_eq!(longest_chain(&steps, &[false; 7], &times), 1.0 + 5.0 + 7.0);
        let mut finished = [false; 7];
        finished[0] = true;
        assert_eq!(longest_chain(&steps, &finished, &times), 5.0 + 7.0);
    }
}
