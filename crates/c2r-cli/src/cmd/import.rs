use std::path::{Path, PathBuf};

use anyhow::Context;
use c2r_base::artifact::{self, TensorFile};
use c2r_data::{ClassFolders, ClassOrder, DataError, DatasetSpec, ImportOptions, PixelValues, SyntheticSet};
use c2r_run::arguments;
use serde_json::json;

use crate::{
    data,
    exit::{self, OrExit},
    ui::{self, Ui},
};

/// Convert another project's distilled set to a synthetic set
///
/// Reads safetensors, .npz, .npy, files of torch.save (torch 1.6 or later) and folders CLASS/*.{png,jpg}. Files are read as data:
/// nothing in them is run. A set of c2r needs no options but --output; --method gives it another name in tables.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  # A set of DC, DSA or DM: normalized images that may leave the range of pixels
  c2r import res_DM_CIFAR10_ConvNet_10ipc.pt --dataset cifar10 --normalized cifar10-dd --clamp \\
      -o dm.safetensors

  # A set made by MTT: images and labels in separate files
  c2r import images_best.pt --labels-from labels_best.pt --dataset cifar100 \\
      --normalized cifar100 --clamp -o mtt.safetensors

  # Tensors of other names, channels last
  c2r import set.npz --dataset digits --images x --labels y --nhwc -o other.safetensors

  # A folder of images for each class
  c2r import d4m/ --dataset imagenette --method d4m -o d4m.safetensors

Tensors: `images` and `labels`, or `data[0][0]` and `data[0][1]` as DC, DSA and DM save them, are found automatically. \
`c2r inspect FILE` lists what a file has.

Labels: [N] holds classes; [N, K] holds probabilities, one-hot rows, or logits (--logits). If a file has classes and probabilities, the two must agree. \
Every class needs the same number of images.

Folders: they are matched with the classes by name, WordNet id or number from 0. Other names are refused unless you give \
--sorted. Broken links, nested folders, and images other than PNG or JPEG are refused.

Values: a value that is outside [0, 1] after all options have been applied is an error. So is an option that the values \
contradict, such as --of-255 if no value is above 1. The set records \
that --clamp was used; tables have a note if it changed more than 1 % of the values.")]
pub(crate) struct Args {
    /// File or folder to read
    #[arg(value_name = "FILE|DIR")]
    file: PathBuf,

    /// File to write (safetensors)
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Dataset that was distilled: digits, cifar10, ..., folder:PATH (leave it out for an npz, PNG folder or safetensors file of c2r)
    #[arg(long, value_name = "NAME", value_parser = arguments::any_text())]
    dataset: Option<String>,

    /// Name of the tensor with the images
    #[arg(long, requires = "dataset", value_name = "TENSOR")]
    images: Option<String>,

    /// Name of the tensor with the labels
    #[arg(long, requires = "dataset", value_name = "TENSOR")]
    labels: Option<String>,

    /// File with the labels, if they are in another file
    #[arg(long, requires = "dataset", value_name = "FILE")]
    labels_from: Option<PathBuf>,

    /// Derive the labels from the order of the images, which are grouped by class, with the same number in each
    #[arg(long, requires = "dataset")]
    grouped: bool,

    /// Assign classes to the folders in sorted order, whatever their names (numeric names are sorted by value)
    #[arg(long, requires = "dataset")]
    sorted: bool,

    /// The labels are logits; apply softmax
    #[arg(long, requires = "dataset")]
    logits: bool,

    /// Undo a normalization: cifar10-dd (DC, DSA, DM, MTT), a dataset's name, or MEAN/STD
    ///
    /// The values are (pixel - mean) / std. MEAN and STD have a number per channel, as in 0.5,0.5,0.5/0.25,0.25,0.25.
    #[arg(long, requires = "dataset", value_name = "WHAT", value_parser = parse_normalized, conflicts_with = "of_255")]
    normalized: Option<PixelValues>,

    /// Values are floats from 0 to 255
    #[arg(long, requires = "dataset")]
    of_255: bool,

    /// Channels come last: [N, H, W, C]
    #[arg(long, requires = "dataset")]
    nhwc: bool,

    /// Channels are blue, green, red
    #[arg(long, requires = "dataset")]
    bgr: bool,

    /// Clip values to [0, 1]. More than 10 % of values outside are an error, unless you give --normalized, too
    #[arg(long, requires = "dataset")]
    clamp: bool,

    /// Each image is a mosaic of N x N images
    #[arg(long, requires = "dataset", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=2))]
    formation: i64,

    /// Method name shown in tables [default: imported, or the name that a set of c2r has]
    #[arg(long, value_name = "NAME", value_parser = arguments::name)]
    method: Option<String>,

    /// Distillation seed of the set, to give sets of the same method different seeds in tables [default: 0]
    ///
    /// Sets that c2r distilled keep the seed that they were made with.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Replace an existing output file
    #[arg(long)]
    force: bool,
}

fn parse_normalized(text: &str) -> Result<PixelValues, String> {
    PixelValues::normalized(text).map_err(|error| error.to_string())
}

pub(crate) fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    if args.output.exists() && !args.force {
        return exit::fail(exit::USAGE, format!("{} exists already; --force replaces it", args.output.display()));
    }
    let set = match &args.dataset {
        Some(name) => foreign(&args, &data::spec(name)?, ui)?,
        None => ours(&args)?,
    };
    set.save(&args.output).or_exit(exit::DATA)?;
    let header = &set.header;
    ui.out(format!(
        "{}: {} per class of {}, method {}",
        args.output.display(),
        ui::counted(header.images_per_class, "image"),
        header.dataset,
        header.method
    ));
    ui.note(format!("look at the images: c2r inspect {} --grid set.png", args.output.display()));
    Ok(())
}

/// A set of c2r says everything about itself; only its name in tables may change.
fn ours(args: &Args) -> anyhow::Result<SyntheticSet> {
    let file = args.file.as_path();
    let is_ours = if file.is_dir() {
        SyntheticSet::is_png_folder(file)
    } else {
        SyntheticSet::is_header(&c2r_data::read_tensors(file).or_exit(exit::DATA)?.header)
    };
    if !is_ours {
        return exit::fail(
            exit::USAGE,
            format!(
                "{} does not say which dataset was distilled: give --dataset NAME (npz files and PNG folders of `c2r export` do \
                 say it, .pt files do not)",
                file.display()
            ),
        );
    }
    let mut set = SyntheticSet::load(file).or_exit(exit::DATA)?;
    if let Some(seed) = args.seed.filter(|seed| *seed != set.header.seed) {
        if set.header.origin().or_exit(exit::DATA)?.imported.is_none() {
            let message = format!(
                "--seed {seed}: {} was distilled by c2r with seed {}, and keeps it; leave --seed out",
                file.display(),
                set.header.seed
            );
            return exit::fail(exit::USAGE, message);
        }
        set.header.seed = seed;
    }
    if let Some(method) = &args.method {
        set.header.method.clone_from(method);
    }
    Ok(set)
}

/// The error with options as the command calls them.
fn flags(error: DataError) -> DataError {
    let flags = |reason: String| reason.replace("option `", "`--");
    match error {
        DataError::Import(reason) => DataError::Import(flags(reason)),
        DataError::ClassNames { path, reason } => DataError::ClassNames { path, reason: flags(reason) },
        other => other,
    }
}

/// Which class has which number, so that a reader can see whether the maker of the folders counted in the same way.
fn numbered(spec: &DatasetSpec) -> String {
    const LISTED: usize = 10;
    let pairs = spec.classes.iter().take(LISTED).enumerate().map(|(number, class)| format!("{number} = {class}"));
    let more = if spec.classes.len() > LISTED { ", ..." } else { "" };
    let pairs = pairs.collect::<Vec<_>>().join(", ");
    let other = if spec.wnids.is_sorted() {
        ""
    } else {
        ". This is not the sorted order of the WordNet ids, in which torchvision's ImageFolder numbers classes: if your folders are \
         numbered in that order, rename each to its WordNet id"
    };
    format!("the folders are numbered; the classes of {} are {pairs}{more}{other}", spec.name)
}

fn foreign(args: &Args, spec: &DatasetSpec, ui: &Ui) -> anyhow::Result<SyntheticSet> {
    let says_all_itself = |is_ours: bool| {
        if is_ours {
            let file = args.file.display();
            let reason = format!(
                "{file} is a set of c2r and has everything in its header: leave --dataset out (--method renames it)"
            );
            return exit::fail(exit::USAGE, reason);
        }
        Ok(())
    };
    let file = if args.file.is_dir() {
        says_all_itself(SyntheticSet::is_png_folder(&args.file))?;
        let ClassFolders { file, order, notes } =
            c2r_data::read_class_folders(&args.file, spec, args.sorted).map_err(flags).or_exit(exit::DATA)?;
        ui.note(match order {
            ClassOrder::Names => format!("the folders have the names of the classes of {}", spec.name),
            ClassOrder::Wnids => format!("the folders have the WordNet ids of the classes of {}", spec.name),
            ClassOrder::Numbers => numbered(spec),
            ClassOrder::Sorted => format!("the folders are taken in sorted order as the classes of {}", spec.name),
        });
        notes.iter().for_each(|note| ui.note(format!("note: {note}")));
        file
    } else {
        if args.sorted {
            return exit::fail(exit::USAGE, "--sorted is for folders of images, and this is a file; leave it out");
        }
        let file = c2r_data::read_tensors(&args.file).or_exit(exit::DATA)?;
        says_all_itself(SyntheticSet::is_header(&file.header))?;
        file
    };
    let labels: Option<TensorFile> =
        args.labels_from.as_deref().map(c2r_data::read_tensors).transpose().or_exit(exit::DATA)?;
    let values = match &args.normalized {
        Some(normalized) => normalized.clone(),
        None if args.of_255 => PixelValues::Bytes,
        None => PixelValues::Unit,
    };
    let options = ImportOptions {
        images: args.images.clone(),
        labels: args.labels.clone(),
        grouped: args.grouped,
        logits: args.logits,
        values,
        nhwc: args.nhwc,
        bgr: args.bgr,
        clamp: args.clamp,
        formation: args.formation,
        method: args.method.clone().unwrap_or_else(|| "imported".to_owned()),
        seed: args.seed.unwrap_or(0),
    };
    let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let sha256 = if args.file.is_file() { Some(artifact::sha256_of_file(&args.file)?) } else { None };
    let origin = json!({
        "file": name(&args.file),
        "sha256": sha256,
        "labels_file": args.labels_from.as_deref().map(name),
    });
    let (set, notes) = c2r_data::import(&file, labels.as_ref(), spec, &options, origin)
        .map_err(flags)
        .with_context(|| args.file.display().to_string())
        .or_exit(exit::DATA)?;
    notes.iter().for_each(|note| ui.note(note));
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_folders_are_told_apart_from_sorted_wordnet_ids() {
        let said = |name: &str| numbered(&c2r_data::spec(name).unwrap());
        let cifar = said("cifar10");
        assert!(cifar.ends_with("0 = airplane, 1 = automobile, 2 = bird, 3 = cat, 4 = deer, 5 = dog, 6 = frog, 7 = horse, 8 = ship, 9 = truck"), "{cifar}");
        assert!(said("cifar100").ends_with(", ..."), "one hundred are too many to list");
        let subsets = c2r_data::registry().iter().filter(|spec| !spec.wnids.is_empty());
        let (sorted, other): (Vec<_>, Vec<_>) = subsets.partition(|spec| spec.wnids.is_sorted());
        assert!(!sorted.is_empty() && !other.is_empty());
        assert!(sorted.iter().all(|spec| !numbered(spec).contains("WordNet")));
        assert!(other.iter().all(|spec| numbered(spec).contains("rename each to its WordNet id")));
    }
}
