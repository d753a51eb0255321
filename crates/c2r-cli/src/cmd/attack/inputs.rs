//! The images that are attacked.

use anyhow::Context;
use c2r_base::LabelledImages;
use c2r_experiment::Subset;
use c2r_files::{path_to_text, sha256_of_file};
use c2r_run::{
    exit::{self, OrExit},
    terminal::{self as ui, Ui},
};
use tch::{Kind, Tensor};

use super::args::{Args, CLEAN};
use crate::data;

/// What `--save` calls its files.
pub(super) const ADVERSARIAL: &str = "c2r-adversarial";

/// Images with their labels, and where they are from.
pub(super) struct Inputs {
    pub(super) images: LabelledImages,
    /// The dataset's name or the path of the file.
    pub(super) name: String,
    /// Hash of the whole split or of the file.
    pub(super) sha256: String,
    /// Names of the classes, where the images are a dataset's.
    pub(super) classes: Option<Vec<String>>,
    /// Training images of the dataset, where that is known.
    pub(super) n_train: Option<usize>,
    /// Whether they come from `--save`.
    pub(super) are_attacked: bool,
    pub(super) notes: Vec<String>,
    /// Which of the images these are, where they are not all.
    pub(super) subset: Option<(Subset, Vec<usize>)>,
}

impl Inputs {
    pub(super) fn load(args: &Args, ui: &Ui) -> anyhow::Result<Self> {
        let inputs = if args.dataset.is_some() { Self::of_dataset(args, ui) } else { Self::of_file(args) }?;
        if let Some(note) = too_many(args, inputs.images.len()) {
            ui.note(format!("note: {note}"));
        }
        Ok(inputs)
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
                (rest, "held-out training images")
            }
            None => (dataset.test, "test images"),
        };
        let sha256 = split.sha256();
        let subset = subset_of(split.labels().to_vec(), args);
        let chosen = match &subset {
            Some((chosen, positions)) => {
                notes.push(format!("{name}: {}", chosen.describe(called)));
                split.select(positions)
            }
            None => split,
        };
        let (classes, n_train) = (Some(dataset.spec.classes.clone()), dataset.spec.n_train);
        let (images, name) = (chosen.to_labelled(), name.clone());
        Ok(Self { images, name, sha256, classes, n_train, are_attacked: false, notes, subset })
    }

    fn of_file(args: &Args) -> anyhow::Result<Self> {
        let path = args.inputs.as_ref().expect("clap requires it here");
        let name = path_to_text(path).into_owned();
        let file = c2r_data::read_tensors(path)
            .context(
                "--inputs takes a file of safetensors, NumPy (.npz) or torch.save with `images` and `labels` (for folders of \
                 images, use --dataset folder:DIR)",
            )
            .or_exit(exit::DATA)?;
        let take = |wanted: &str| match file.tensors.get(wanted) {
            Some(tensor) => Ok(tensor.shallow_clone()),
            None => exit::fail::<Tensor>(exit::DATA, format!("{name}: {}", file.instead_of(wanted))),
        };
        let (images, labels) = (take("images")?, take("labels")?);
        // Tensors that do not belong together are not chosen from; the check names what is wrong with them.
        let fit = labels.kind() == Kind::Int64 && labels.dim() == 1 && images.size().first() == labels.size().first();
        let subset = if fit { subset_of(Vec::try_from(&labels)?, args) } else { None };
        let checked = match &subset {
            Some((_, positions)) => {
                let at = Tensor::from_slice(&positions.iter().map(|&position| position as i64).collect::<Vec<_>>());
                LabelledImages::new(images.index_select(0, &at), labels.index_select(0, &at))
                    // The same check of the whole file names a sample by its place in the file.
                    .or_else(|_| LabelledImages::new(images, labels))
            }
            None => LabelledImages::new(images, labels),
        };
        let images = checked.with_context(|| name.clone()).or_exit(exit::DATA)?;
        let sha256 = sha256_of_file(path).or_exit(exit::DATA)?;
        let mut notes: Vec<String> = subset.iter().map(|(chosen, _)| chosen.describe("images of the file")).collect();
        let are_attacked = file.header.get("format").is_some_and(|format| format == ADVERSARIAL);
        if are_attacked {
            let by = file.header.get("attack").map(|attack| attack.trim_matches('"')).unwrap_or_default();
            notes.push(format!("{name} has images that {by} attacked: `{CLEAN}` is the accuracy on these"));
        }
        let rounded = images.n_clamped();
        if rounded > 0 {
            let n = ui::counted(rounded, "value");
            notes.push(format!("{name}: {n} outside [0, 1] by less than 1e-6 (rounding) were clipped"));
        }
        Ok(Self { images, name, sha256, classes: None, n_train: None, are_attacked, notes, subset })
    }
}

/// A note where `--n-test` asks for more images than there are.
pub(super) fn too_many(args: &Args, there: usize) -> Option<String> {
    let n = args.n_test.filter(|&n| n > there as u64)?;
    Some(format!("--n-test {n} is more than there are; {} will be attacked", ui::counted(there, "image")))
}

/// Which of the images that have these labels `--n-test` takes.
fn subset_of(labels: Vec<i64>, args: &Args) -> Option<(Subset, Vec<usize>)> {
    c2r_data::subset(&labels, usize::try_from(args.n_test?).unwrap_or(usize::MAX), args.subset)
}
