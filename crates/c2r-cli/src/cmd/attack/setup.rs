//! What an evaluation needs before it starts.

use std::path::Path;

use c2r_attacks::{Attack, AttackConfig, Mode, needs_gradient};
use c2r_base::{Epsilon, Goal, ThreatModel};
use c2r_eval::doubts;
use c2r_experiment::SubsetOrder;
use c2r_files::sha256_of_file;
use c2r_kernels::FloatFormat;
use c2r_run::{
    exit::{self, OrExit},
    terminal::Ui,
};
use serde_json::{Value, json};
use tch::Device;

use super::{
    args::{Args, CLEAN},
    choice,
    inputs::Inputs,
    target::Target,
};

/// What is attacked, and with what.
pub(super) struct Setup {
    pub(super) args: Args,
    pub(super) device: Device,
    pub(super) attacks: Attacks,
    pub(super) threat: ThreatModel,
    pub(super) mode: Mode,
    pub(super) inputs: Inputs,
    pub(super) target: Target,
    /// Hash of the classifier's file.
    pub(super) model_sha256: String,
}

/// The attacks that the command line names, checked.
pub(super) struct Attacks {
    pub(super) configs: Vec<AttackConfig>,
    pub(super) built: Vec<Box<dyn Attack>>,
}

impl Attacks {
    pub(super) fn new(args: &Args) -> anyhow::Result<Self> {
        let configs = choice::configs(args).or_exit(exit::USAGE)?;
        let built = configs.iter().map(AttackConfig::build).collect::<Result<_, _>>().or_exit(exit::USAGE)?;
        if args.eps.is_none() && configs.iter().any(|config| config.name() != CLEAN) {
            let message =
                "--eps is missing: the radius in pixel units, such as 8/255 (only `--attack clean` needs none)";
            return exit::fail(exit::USAGE, message);
        }
        Ok(Self { configs, built })
    }

    /// Whether one of them asks for a gradient.
    pub(super) fn need_gradient(&self) -> bool {
        self.built.iter().any(|attack| needs_gradient(attack.as_ref()))
    }
}

impl Setup {
    /// Reads images and classifier, and checks that all fits together.
    pub(super) fn load(args: Args, attacks: Attacks, device: Device, ui: &Ui) -> anyhow::Result<Self> {
        let model_sha256 = sha256_of_file(args.classifier()).or_exit(exit::DATA)?;
        let threat = threat(&args);
        let mut inputs = Inputs::load(&args, ui)?;
        let shape = inputs.images.image_shape();
        check_units(&args, shape)?;
        inputs.notes.extend(doubts::reaches_grey(&threat, shape));
        let target = Target::load(&args, &mut inputs, &model_sha256, attacks.need_gradient(), device)?;
        inputs.notes.extend(choice::changed_suites(&args, &attacks.configs));
        let mode = if args.each { Mode::Each } else { Mode::Suite };
        let setup = Self { args, device, attacks, threat, mode, inputs, target, model_sha256 };
        if setup.args.output.is_some() && setup.args.dataset.is_some() && !setup.is_cell() {
            let missing = if setup.target.subject.is_none() {
                "--ipc, the number of images per class that the network was trained on"
            } else {
                "--each, so that every attack is judged by itself"
            };
            ui.note(format!("note: `c2r table` cannot read this report; for a table, add {missing}"));
        }
        Ok(setup)
    }

    /// Whether the report is a cell of a table.
    pub(super) fn is_cell(&self) -> bool {
        let apart = self.mode == Mode::Each || self.attacks.configs.len() == 1;
        self.args.dataset.is_some() && self.target.subject.is_some() && apart
    }

    /// The file of the classifier.
    pub(super) fn model(&self) -> &Path {
        self.args.classifier()
    }

    /// What the results depend on. A run with another key is another evaluation.
    pub(super) fn key(&self) -> Value {
        let Self { args, inputs, target, .. } = self;
        let mut key = json!({
            "model": self.model_sha256,
            "inputs": inputs.sha256,
            "n": inputs.images.len(),
            "threat": self.threat,
            "mode": self.mode,
            "seed": args.seed,
            "attacks": self.attacks.configs,
            "save": args.save.is_some(),
            "as_is": args.as_is,
        });
        if let Some(architecture) = args.foreign.arch {
            key["state_dict"] = json!([architecture.to_string(), args.foreign.expects()]);
        }
        if let Some(format) = FloatFormat::unusual(self.device) {
            key["precision"] = json!(format.to_string());
        }
        // What only a table reads changes the report, too.
        if let Some(row) = target.subject.as_ref().filter(|_| target.is_described) {
            key["row"] = json!(row);
        }
        // Results of the first images are kept as those of earlier versions, which knew no other.
        if let Some((chosen, _)) = inputs.subset.as_ref().filter(|(chosen, _)| chosen.order != SubsetOrder::First) {
            key["subset"] = json!(chosen);
        }
        key
    }
}

/// What the attacker may do and wants.
pub(super) fn threat(args: &Args) -> ThreatModel {
    let epsilon = args.eps.unwrap_or(Epsilon::ZERO);
    ThreatModel { norm: args.norm, epsilon, goal: args.targets.map_or(Goal::Untargeted, Goal::Targeted) }
}

/// Refuses 2 where 2/255 is meant: a radius or step that reaches every image of this `shape` from every other.
pub(super) fn check_units(args: &Args, shape: [i64; 3]) -> anyhow::Result<()> {
    let step_size = args.step_size.as_ref().and_then(|step| step.parse().ok());
    for (flag, size) in [("--eps", args.eps), ("--step-size", step_size)] {
        let Some(Err(error)) = size.map(|size| args.norm.check_length(size, shape)) else { continue };
        let size = error.length;
        let advice = if error.counts_255ths {
            format!("write {size}/255 if you mean steps of 8-bit pixels")
        } else {
            "choose a smaller one".to_owned()
        };
        return exit::fail(exit::USAGE, format!("{flag} {size} is too large: {error}; {advice}"));
    }
    Ok(())
}
