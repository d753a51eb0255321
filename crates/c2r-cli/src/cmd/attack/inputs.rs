//! The images that are attacked.

use anyhow::Context;
use c2r_base::{LabelledImages, artifact::TensorFile};
use c2r_files::sha256_of_file;
use c2r_run::{
    exit::{self, OrExit},
    terminal::Ui,
};
use tch::Tensor;

use super::args::Args;
use crate::data;

/// Images with their labels, and where they are from.
pub(super) struct Inputs {
    pub(super) images: LabelledImages,
    /// The dataset's name or the path of the file.
    pub(super) name: String,
    /// Hash of the whole split or of the file.
    pub(super) sha256: String,
    /// Names of the classes, where the images are a dataset's.
    pub(super) classes: Option<Vec<String>>,
    pub(super) notes: Vec<String>,
}

impl Inputs {
    pub(super) fn load(args: &Args, ui: &Ui) -> anyhow::Result<Self> {
        if args.dataset.is_some() { Self::of_dataset(args, ui) } else { Self::of_file(args) }
    }

    fn of_dataset(args: &Args, ui: &Ui) -> anyhow::Result<Self> {
        let name = args.dataset.as_ref().expect("clap requires it here");
        let dataset = data::load(name, args.data.as_deref(), ui)?;
        let mut notes = Vec::new();
        let (split, called) = match args.held_out_after {
            Some(n) => {
                let rest = dataset.train.rest_per_class(n.get());
                if rest.is_empty() {
                    let message = format!("--held-out-after {n}: no class of {name} has more than {n} training images");
                    return exit::fail(exit::USAGE, message);
                }
                notes.push(format!(
                    "judged on the training images after the first {n} of each class, not on test images"
                ));
                (rest, "training, held out")
            }
            None => (dataset.test, "test"),
        };
        let sha256 = split.sha256();
        let chosen = match args.n_test {
            Some(n) if (n as usize) < split.len() => {
                notes.push(format!("{name} {called}: the first {n} of {} images", split.len()));
                split.first(n as usize)
            }
            _ => split,
        };
        let classes = Some(dataset.spec.classes.clone());
        Ok(Self { images: chosen.to_labelled(), name: name.clone(), sha256, classes, notes })
    }

    fn of_file(args: &Args) -> anyhow::Result<Self> {
        let path = args.inputs.as_ref().expect("clap requires it here");
        let name = path.display().to_string();
        let mut file = TensorFile::read(path)
            .context(
                "--inputs takes a safetensors file with `images` and `labels` (folders of images: --dataset folder:DIR)",
            )
            .or_exit(exit::DATA)?;
        let names = file.tensors.keys().cloned().collect::<Vec<_>>().join(", ");
        let mut take = |wanted: &str| match (file.tensors.remove(wanted), args.n_test) {
            (Some(tensor), Some(n)) if tensor.dim() > 0 => Ok(tensor.narrow(0, 0, tensor.size()[0].min(n as i64))),
            (Some(tensor), _) => Ok(tensor),
            (None, _) => exit::fail::<Tensor>(exit::DATA, format!("{name} has no tensor `{wanted}`; it has: {names}")),
        };
        let images =
            LabelledImages::new(take("images")?, take("labels")?).with_context(|| name.clone()).or_exit(exit::DATA)?;
        let sha256 = sha256_of_file(path).or_exit(exit::DATA)?;
        Ok(Self { images, name, sha256, classes: None, notes: Vec::new() })
    }
}
