//! `c2r attack`: attacks a classifier and reports its robust accuracy.

mod args;
mod choice;
mod elsewhere;
mod inputs;
mod journal;
mod output;
mod setup;
mod target;
mod watch;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
pub(crate) use args::Args;
use c2r_attacks::{AttackConfig, AttackReport, EvaluateOptions};
use c2r_base::{Seed, ThreatModel};
use c2r_distill::Work;
use c2r_eval::doubts;
use c2r_files::{follow_links, sha256_of_file};
use c2r_models::checkpoint;
use c2r_run::{
    Place, Status,
    exit::{self, OrExit},
    signals,
    terminal::Ui,
};
use inputs::Inputs;
use journal::Journal;
use output::Summary;
use serde::Deserialize;
use serde_json::Value;
use setup::{Attacks, Setup, check_units, threat};
use target::Target;
use tch::{Device, Kind};

use crate::{
    cmd::estimate::{self, Planned, Written},
    data,
    kernels::KernelNotes,
    run_dir, throughput,
};

/// Without a network to measure, an estimate assumes that this share of the test images is classified correctly and so
/// attacked. Networks that were trained on few images reach about that.
const ASSUMED_ACCURACY: f64 = 0.5;

pub(crate) fn run(mut args: Args, device: Device, ui: &Ui) -> anyhow::Result<()> {
    if args.row.ipc.is_some() && !args.each {
        if args.attack.len() > 1 {
            let reason = "--ipc makes a row of a table, where every attack is judged by itself: add --each";
            return exit::fail(exit::USAGE, reason);
        }
        args.each = true;
    }
    if let Some(named) = &mut args.checkpoint {
        *named = data::network_file(named)?;
    }
    let attacks = Attacks::new(&args)?;
    for note in choice::idle(&args, &attacks.configs, &threat(&args)) {
        ui.note(format!("note: {note}"));
    }
    if args.estimate {
        return estimate(&args, &attacks, device, ui);
    }
    let place = args.outputs().next().map(|(_, path)| Place::beside(path));
    check_outputs(&args, place.as_ref())?;
    let mut setup = Setup::load(args, attacks, device, ui)?;
    let key = setup.key();
    let mut journal = None;
    let mut resume = None;
    if let Some(place) = place {
        let (mut opened, status) = Journal::open(place, &setup, key.clone())?;
        if status == Status::Finished {
            ui.note(format!("{} is finished; nothing to do", opened.run.path().display()));
            return show(opened.run.summary(), &setup.args, ui).with_context(|| {
                let record = opened.run.record().display();
                format!("{record} has a summary that this c2r cannot show; --json prints it as it is")
            });
        }
        resume = opened.resume()?;
        let is_begun = |report: &AttackReport| {
            report.attacks.iter().flat_map(|entry| &entry.stages).any(|stage| stage.attacked > 0)
        };
        let is_resumed = resume.as_ref().is_some_and(is_begun);
        if is_resumed {
            ui.note(format!("resuming from {}", opened.run.record().display()));
        }
        run_dir::note_other_sessions(&mut opened.run, is_resumed, ui);
        journal = Some(opened);
    }
    let options = EvaluateOptions {
        seed: Seed::new(setup.args.seed),
        batch_size: setup.args.batch_size(device, setup.inputs.images.image_shape()),
        mode: setup.mode,
        self_check: true,
        resume,
        stop: signals::flag(),
        ..EvaluateOptions::default()
    };
    signals::will_save();
    let mut kernels = KernelNotes::default();
    let mut report = watch::evaluate(&setup, &options, journal.as_mut(), &mut kernels, ui)?;
    report.versions.extend(run_dir::versions());
    if !setup.inputs.are_attacked {
        setup.inputs.notes.extend(doubts::chance_level(&report));
    }
    setup.inputs.notes.extend(kernels.into_notes());
    let summary = serde_json::to_value(Summary::new(&report, &setup))?;
    // A kill while the files are written must leave a record that claims them.
    if let Some(journal) = &mut journal {
        journal.save(&report, true)?;
    }
    if let (Some(path), Some(images)) = (&setup.args.save, journal.as_ref().and_then(|journal| journal.images.as_ref()))
    {
        output::save(path, images, &setup, &summary, &key)?;
    }
    if let Some(path) = &setup.args.output {
        output::write_report(path, report, &setup)?;
    }
    if let Some(journal) = journal {
        journal.finish(summary.clone())?;
    }
    show(&summary, &setup.args, ui)
}

/// Prints a [`Summary`], which may come from the record of an earlier run.
fn show(summary: &Value, args: &Args, ui: &Ui) -> anyhow::Result<()> {
    if args.json {
        ui.out(summary.to_string());
    } else {
        Summary::deserialize(summary)?.print(ui);
    }
    Ok(())
}

/// One name for each file, whether it is there or not.
fn real(path: &Path) -> PathBuf {
    let path = follow_links(path);
    fs::canonicalize(&path).unwrap_or_else(|_| {
        let absolute = std::path::absolute(&path).unwrap_or(path);
        match (absolute.parent().map(fs::canonicalize), absolute.file_name()) {
            (Some(Ok(folder)), Some(name)) => folder.join(name),
            _ => absolute,
        }
    })
}

/// Refuses to overwrite what the command reads, and without `--force` what no earlier evaluation wrote.
fn check_outputs(args: &Args, place: Option<&Place>) -> anyhow::Result<()> {
    let inputs = [
        ("--model", &args.model),
        ("--checkpoint", &args.checkpoint),
        ("--state-dict", &args.foreign.state_dict),
        ("--inputs", &args.inputs),
    ];
    if let (Some(output), Some(save)) = (&args.output, &args.save)
        && real(output) == real(save)
    {
        return exit::fail(exit::USAGE, "--output and --save name the same file; choose two");
    }
    let named = || {
        let read = inputs.iter().filter_map(|(flag, path)| Some((*flag, path.as_deref()?)));
        read.chain(args.outputs())
    };
    for own in place.iter().flat_map(|place| [place.record().to_owned(), place.lock().to_owned(), journal::part(place)])
    {
        if let Some((flag, path)) = named().find(|(_, path)| real(path) == real(&own)) {
            let shown = path.display();
            let message = format!(
                "{flag} {shown} is a file in which c2r attack keeps its state; choose another name for the results"
            );
            return exit::fail(exit::USAGE, message);
        }
    }
    for (flag, path) in args.outputs() {
        let shown = path.display();
        for (read, other) in inputs.iter().filter_map(|(read, other)| Some((read, other.as_deref()?))) {
            if real(path) == real(other) {
                return exit::fail(
                    exit::USAGE,
                    format!("{flag} {shown} is also the file of {read}; choose another file"),
                );
            }
        }
        let Ok(data) = fs::metadata(path) else { continue };
        if !data.is_file() {
            return exit::fail(exit::USAGE, format!("{flag} {shown} is not a regular file; choose another name"));
        }
        let ours = place.is_some_and(|place| place.claims(path));
        if !ours && !args.force {
            return exit::fail(
                exit::USAGE,
                format!("{flag} {shown} exists, and c2r attack has no record of writing it; --force replaces it"),
            );
        }
    }
    Ok(())
}

/// What the command will send through its network.
pub(crate) fn planned(args: &Args, written: &Written) -> anyhow::Result<Planned> {
    let (Some(name), Some(checkpoint)) = (&args.dataset, &args.checkpoint) else {
        anyhow::bail!("attacks have an estimate only with --dataset and --checkpoint");
    };
    let Attacks { configs, .. } = Attacks::new(args)?;
    let dataset = data::spec(name)?;
    check_units(args, dataset.shape())?;
    let model = match written.networks.get(checkpoint) {
        Some(model) => *model,
        None => *checkpoint::load(checkpoint, Device::Cpu)?.0.spec(),
    };
    let there = match args.held_out_after {
        Some(n) => {
            let per_class = estimate::train_per_class(&dataset);
            let none = || format!("--held-out-after {n}: {name} has {per_class} training images of each class");
            (per_class.checked_sub(n.get()).filter(|&left| left > 0).with_context(none)?) * dataset.classes.len()
        }
        None => estimate::n_test(&dataset),
    };
    let note = inputs::too_many(args, there);
    let n = args.n_test.map_or(usize::MAX, |n| n as usize).min(there);
    let (forward, input_gradient) = images(&configs, &threat(args), n as f64, ASSUMED_ACCURACY, dataset.classes.len());
    Ok(Planned { dataset, model, work: Work { forward, input_gradient, training: 0.0 }, note })
}

/// Images forward, and backward to the pixels, for attacks on `n` test images of which a share of `accuracy` is classified
/// correctly.
fn images(configs: &[AttackConfig], threat: &ThreatModel, n: f64, accuracy: f64, classes: usize) -> (f64, f64) {
    let attacked = n * accuracy;
    let (mut forward, mut backward) = (n, 0.0);
    for config in configs {
        let one = config.passes(threat, classes as u64);
        forward += attacked * (one.forward_images + 1) as f64;
        backward += attacked * one.backward_images as f64;
    }
    (forward, backward)
}

fn estimate(args: &Args, attacks: &Attacks, device: Device, ui: &Ui) -> anyhow::Result<()> {
    let (path, configs, needs_gradient) = (args.classifier(), &attacks.configs, attacks.need_gradient());
    let (speed, (forward, backward)) = if args.checkpoint.is_some() && !path.exists() {
        // An estimate of a whole grid comes before its networks are trained.
        let Some(name) = &args.dataset else {
            return exit::fail(exit::USAGE, "--estimate of a network that is not there yet needs --dataset");
        };
        let (n, spec) = (Inputs::load(args, ui)?.images.len(), data::spec(name)?);
        let batch = args.batch_size(device, spec.shape()).min(n).max(1);
        let speed = throughput::measure(&spec.model.parse()?, &spec, batch, device)?;
        (speed, images(configs, &threat(args), n as f64, ASSUMED_ACCURACY, spec.classes.len()))
    } else {
        let mut inputs = Inputs::load(args, ui)?;
        let sha256 = sha256_of_file(path).or_exit(exit::DATA)?;
        let target = Target::load(args, &mut inputs, &sha256, needs_gradient, device)?;
        let n = inputs.images.len();
        let step = n.div_ceil(args.batch_size(device, inputs.images.image_shape()).min(n).max(1));
        let (some, labels) = inputs.images.select(&(0..n).step_by(step).collect::<Vec<_>>(), device);
        let logits = {
            let _no_grad = tch::no_grad_guard();
            target.classifier.logits(&some)?
        };
        let threat = threat(args);
        attacks.built.iter().try_for_each(|attack| attack.check(&threat, logits.size()[1])).or_exit(exit::USAGE)?;
        let accuracy = logits.argmax(1, false).eq_tensor(&labels).to_kind(Kind::Double).mean(None).double_value(&[]);
        let speed = throughput::of_classifier(target.classifier.as_ref(), &some, &labels, needs_gradient)?;
        (speed, images(configs, &threat, n as f64, accuracy, logits.size()[1] as usize))
    };
    let work = Work { forward, input_gradient: backward, training: 0.0 };
    estimate::answer(&work, &speed, device, args.json, ui);
    ui.note(estimate_counts(device));
    Ok(())
}

/// What an estimate counts, and so whether it is a bound.
fn estimate_counts(device: Device) -> &'static str {
    // Where batches are small, a GPU waits for the CPU: Square makes its 5,000 queries one after the other, and few images take as
    // long as many.
    if device.is_cuda() {
        "this counts every step for each image that is classified correctly, at the speed of whole batches. It leaves out the time \
         in which the GPU waits for the CPU: attacks of many small steps, such as AutoAttack on few images, take longer"
    } else {
        "at most: this counts every step for each image that is classified correctly; one that an attack breaks takes no further steps"
    }
}

#[cfg(test)]
mod tests {
    use c2r_attacks::{ATTACKS, AttackConfig, SUITES};
    use c2r_base::{Epsilon, TargetRule};
    use c2r_experiment::results;
    use clap::{CommandFactory, Parser};

    use super::{choice::configs, *};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(more: &[&str]) -> Args {
        let line = ["attack", "--model", "m.pt", "--inputs", "x", "--eps", "2/255"].iter().chain(more);
        Line::try_parse_from(line).unwrap_or_else(|error| panic!("{error}")).args
    }

    /// Where a member changes alone, so do the results of the suite.
    #[test]
    fn a_suite_has_the_results_version_of_its_members() {
        for name in SUITES {
            let AttackConfig::Suite(suite) = name.parse().unwrap() else { panic!("{name} is not a suite") };
            for member in &suite.attacks {
                assert_eq!(results::attack(member.name()), results::attack(name), "{name}: {}", member.name());
            }
        }
    }

    #[test]
    fn an_estimate_is_a_bound_only_where_passes_are_what_takes_time() {
        assert!(estimate_counts(Device::Cpu).starts_with("at most"));
        let gpu = estimate_counts(Device::Cuda(0));
        assert!(!gpu.contains("at most") && gpu.contains("waits for the CPU"), "{gpu}");
    }

    #[test]
    fn epsilon_is_another_name_for_eps() {
        let line = ["attack", "--model", "m.pt", "--inputs", "x", "--attack", "pgd", "--epsilon", "2/255"];
        assert_eq!(
            Line::try_parse_from(line).unwrap_or_else(|error| panic!("{error}")).args.eps,
            Some(Epsilon::of_255(2.0))
        );
    }

    #[test]
    fn options_reach_their_attack_and_strangers_are_errors() {
        let configs_of = |more: &[&str]| configs(&parse(more));
        let pgd = &configs_of(&["--attack", "pgd", "--steps", "7", "--step-size", "0.25/255"]).unwrap()[0];
        let AttackConfig::Pgd(pgd) = pgd else { panic!() };
        assert_eq!((pgd.steps, pgd.step_size), (7, Some(Epsilon::of_255(0.25))));
        let error = configs_of(&["--attack", "fgsm,pgd", "--steps", "7"]).unwrap_err().to_string();
        assert!(error.contains("`fgsm` has no option `steps`"), "{error}");
        let both = configs_of(&["--attack", "fgsm,pgd", "--set", "pgd.steps=7"]).unwrap();
        assert!(matches!(&both[1], AttackConfig::Pgd(pgd) if pgd.steps == 7));
        assert!(configs_of(&["--attack", "fgsm", "--set", "pgd.steps=7"]).is_err());
        assert!(configs_of(&["--attack", "fgsmm"]).unwrap_err().to_string().contains("apgd-ce"));
        for (name, meant) in [("PGD", "pgd"), ("mifgsm", "mi-fgsm"), ("autoattack", "autoattack-standard")] {
            let error = configs_of(&["--attack", name]).unwrap_err().to_string();
            let expected = format!("`{name}` is not an attack (did you mean `{meant}`?); known: ");
            assert!(error.starts_with(&expected), "{error}");
        }
        assert!(
            configs_of(&["--attack", "fgsmm"]).unwrap_err().to_string().starts_with("`fgsmm` is not an attack; known")
        );
        assert!(configs_of(&["--attack", "autoattack-standard", "--queries", "9"]).is_ok());
        let names = |more: &[&str]| -> Vec<String> {
            configs_of(more).unwrap().iter().map(|config| config.name().to_owned()).collect()
        };
        assert_eq!(names(&["--attack", "paper-six"]), ["paper-six"]);
        let six = ["fgsm", "pgd", "cw-linf", "vmi-fgsm", "jitter", "autoattack-standard"];
        assert_eq!(names(&["--attack", "paper-six", "--each"]), six, "one column each");
        assert!(configs_of(&["--attack", "pgd", "--random-start", "maybe"]).is_err());
    }

    #[test]
    fn target_rules_are_words() {
        assert_eq!(parse(&["--attack", "pgd", "--targets", "least-likely"]).targets, Some(TargetRule::LeastLikely));
    }

    #[test]
    fn the_help_names_every_attack() {
        let help = Line::command().render_long_help().to_string();
        let words: Vec<&str> = help.split_whitespace().collect();
        ATTACKS.iter().chain(&SUITES).for_each(|name| assert!(words.contains(name), "{name}"));
    }
}
