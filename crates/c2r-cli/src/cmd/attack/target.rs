//! The classifier that is attacked.

use std::path::Path;

use anyhow::{Context, ensure};
use c2r_base::Classifier;
use c2r_data::FileKind;
use c2r_experiment::{Selection, Subject};
use c2r_files::path_to_text;
use c2r_models::{Frozen, ModelError, TorchScript, checkpoint};
use c2r_run::exit::{self, OrExit};
use tch::Device;

use super::{
    args::{Args, Ipc},
    elsewhere,
    inputs::Inputs,
};
use crate::state_dict::UNNORMALIZED;

/// A classifier that takes the images it will be attacked with.
pub(super) struct Target {
    pub(super) classifier: Box<dyn Classifier>,
    /// What a network that c2r trained says about itself, or the user of another one.
    pub(super) subject: Option<Subject>,
    /// Whether the subject is not that of the network's file: the user said it, or the network is attacked on another dataset.
    pub(super) is_described: bool,
    /// Operators of a TorchScript model that were replaced by faster equivalents.
    pub(super) n_tuned: usize,
}

impl Target {
    /// Loads the classifier that the command line names.
    ///
    /// * `sha256`: hash of its file.
    /// * `needs_gradient`: whether an attack asks for one.
    pub(super) fn load(
        args: &Args,
        inputs: &mut Inputs,
        sha256: &str,
        needs_gradient: bool,
        device: Device,
    ) -> anyhow::Result<Self> {
        match (&args.model, &args.checkpoint) {
            (Some(path), _) => Self::script(path, args, inputs, sha256, needs_gradient, device),
            (None, Some(path)) => Self::network(path, args, inputs, device),
            (None, None) => Self::state_dict(args, inputs, sha256, device),
        }
    }

    /// Loads a TorchScript model; without `as_is`, some of its operators are replaced by faster equivalents.
    fn script(
        path: &Path,
        args: &Args,
        inputs: &Inputs,
        sha256: &str,
        needs_gradient: bool,
        device: Device,
    ) -> anyhow::Result<Self> {
        let name = path.display();
        let script = TorchScript::load(path, device);
        if script.is_err() && checkpoint::load(path, device).is_ok() {
            return exit::fail(exit::USAGE, format!("{name} is a network that c2r trained: use --checkpoint {name}"));
        }
        if let (Err(error), Ok(FileKind::Torch)) = (&script, FileKind::of(path)) {
            let other = "if it is a state_dict of an architecture that c2r has, use --state-dict and --arch";
            return exit::fail(exit::DATA, format!("{error}; {other}"));
        }
        let script = script.or_exit(exit::DATA)?;
        let shape = inputs.images.image_shape();
        let probed = script.probe(shape).or_else(|error| match error {
            ModelError::TorchScript { reason, .. } => {
                exit::fail(exit::DATA, format!("{name} does not take {}: {reason}", described(inputs)))
            }
            other => Err(other).or_exit(exit::DATA),
        })?;
        if let (true, Some(reason)) = (needs_gradient, &probed.no_gradient) {
            let message = format!(
                "{name} has no gradient to attack with: {reason}; use attacks that need none (square, noise), or export it \
                 without no_grad, detach, argmax and round"
            );
            return exit::fail(exit::DATA, message);
        }
        check_classes(path, probed.n_classes, inputs).or_exit(exit::DATA)?;
        let tuned = if args.as_is { None } else { script.tuned(shape).or_exit(exit::DATA)? };
        let (script, n_tuned) = tuned.unwrap_or((script, 0));
        let model = args.row.model_name.clone().unwrap_or_else(|| "TorchScript".to_owned());
        let subject = subject_of(args, model, UNNORMALIZED, sha256, inputs);
        let is_described = subject.is_some();
        Ok(Self { classifier: Box::new(script), subject, is_described, n_tuned })
    }

    /// Loads a network that c2r trained.
    fn network(path: &Path, args: &Args, inputs: &mut Inputs, device: Device) -> anyhow::Result<Self> {
        let name = path.display();
        let loaded = checkpoint::load(path, device);
        if loaded.is_err() && TorchScript::load(path, device).is_ok() {
            return exit::fail(exit::USAGE, format!("{name} is a TorchScript model: use --model {name}"));
        }
        let (model, header) = loaded.or_exit(exit::DATA)?;
        let subject = header.get("subject").map(|text| serde_json::from_str::<Subject>(text)).transpose();
        let mut subject = subject.with_context(|| format!("the subject in {name}")).or_exit(exit::DATA)?;
        let expected = model.input().image_shape();
        if expected != inputs.images.image_shape() {
            let not = described(inputs);
            return exit::fail(exit::DATA, format!("{name} takes images of shape {expected:?}, not {not}"));
        }
        check_classes(path, model.input().n_classes, inputs).or_exit(exit::DATA)?;
        let is_described = match &mut subject {
            Some(subject) => elsewhere::judged_on(subject, path, inputs)?,
            None => false,
        };
        if let (Some(n), Some(subject), false) = (args.held_out_after, &subject, is_described) {
            inputs.notes.extend(perhaps_seen(subject, n.get()));
        }
        Ok(Self { classifier: Box::new(Frozen::new(model)), subject, is_described, n_tuned: 0 })
    }

    /// Loads a network that PyTorch saved as a `state_dict`.
    fn state_dict(args: &Args, inputs: &mut Inputs, sha256: &str, device: Device) -> anyhow::Result<Self> {
        let n_classes = inputs.classes.as_ref().map(Vec::len);
        let (network, notes) = args.foreign.load(inputs.images.image_shape(), n_classes, device)?;
        let (model, takes) = (network.architecture().to_string(), args.foreign.expects());
        inputs.notes.extend(notes);
        inputs.notes.push(format!("the {model} takes {takes}"));
        let subject = subject_of(args, model, &takes, sha256, inputs);
        let is_described = subject.is_some();
        Ok(Self { classifier: Box::new(network), subject, is_described, n_tuned: 0 })
    }
}

/// A note on a network that was made from more than the first `n` training images of each class: those after them are not
/// held out.
fn perhaps_seen(subject: &Subject, n: usize) -> Option<String> {
    if subject.n_train_per_class().is_some_and(|first| first <= n) {
        return None;
    }
    Some(if subject.data_sha256.is_empty() {
        "perhaps NOT held out: the real images behind this network's training set are not known".to_owned()
    } else {
        format!(
            "NOT held out: the real images that this network, or its training set, was made from are more than the first {n} \
             of each class (--train-per-class {n})"
        )
    })
}

/// What a table says of a network that c2r did not train; `None` where the user does not say how many images it was trained on.
fn subject_of(args: &Args, model: String, takes: &str, sha256: &str, inputs: &Inputs) -> Option<Subject> {
    let images_per_class = match args.row.ipc? {
        Ipc::All => None,
        Ipc::Some(n) => Some(n),
    };
    let (dataset, classes) = (args.dataset.clone()?, inputs.classes.as_ref()?);
    let n_images = images_per_class.map(|n| n * classes.len());
    let name = path_to_text(Path::new(args.classifier().file_name().unwrap_or_default()));
    Some(Subject {
        method: args.row.method.clone().unwrap_or_else(|| format!("{name}@{}", &sha256[..8])),
        profile: String::new(),
        images_per_class,
        distill_seed: None,
        train_seed: args.row.train_seed,
        protocol: args.row.protocol.clone(),
        selection: Selection::Last,
        model,
        n_images: n_images.or(inputs.n_train).unwrap_or_default(),
        extra_storage: String::new(),
        data_sha256: String::new(),
        notes: vec![format!("not trained by c2r: {name}, SHA-256 {}..., takes {takes}", &sha256[..12])],
        dataset,
    })
}

/// The inputs in words, for an error about their shape.
fn described(inputs: &Inputs) -> String {
    let [channels, height, width] = inputs.images.image_shape();
    let last = if width <= 4 && channels > 4 { "; are the channels last? They come first: [N, C, H, W]" } else { "" };
    format!("images of {channels} channels and {height}x{width} pixels ({}){last}", inputs.name)
}

/// A dataset's labels mean nothing to a model of other classes.
fn check_classes(path: &Path, n_classes: i64, inputs: &Inputs) -> anyhow::Result<()> {
    let Some(classes) = &inputs.classes else { return Ok(()) };
    let (name, n) = (path.display(), classes.len());
    ensure!(
        n_classes == n as i64,
        "{name} returns {n_classes} logits, but {} has {n} classes: {}",
        inputs.name,
        classes.join(", ")
    );
    Ok(())
}
