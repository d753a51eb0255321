use std::path::{Path, PathBuf};

use anyhow::Context;
use c2r_base::artifact::{self, TensorFile};
use c2r_data::{ClassFolders, ClassOrder, DataError, DatasetSpec, ImportOptions, PixelValues, SyntheticSet};
use serde_json::json;

use crate::{
    exit::{self, OrExit},
    ui::Ui,
};

/// Convert a distilled set of another project to a synthetic set.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  c2r import res_DM_CIFAR10_ConvNet_10ipc.pt --dataset cifar10 --normalized cifar10-dd --clamp -o dm.safetensors
  c2r import images_best.pt --labels-from labels_best.pt --dataset cifar100 --normalized cifar100 --clamp -o mtt.safetensors
  c2r import set.npz --dataset digits --images x --labels y --nhwc -o other.safetensors
  c2r import d4m/ --dataset imagenette --method d4m -o d4m.safetensors

FILE is safetensors, .npz, .npy, a file of torch.save (torch 1.6 or later; read as data, nothing in it is run), or a \
folder CLASS/*.{png,jpg}. What c2r export wrote needs no other option. Tensors are found automatically when \
unambiguous: `images` and `labels`; `data[0][0]` and `data[0][1]`, as DC, DSA and DM save; a file each, as MTT saves. \
`c2r inspect FILE` lists the tensors. Label rows [N, K] are probabilities or one-hot, or logits with --logits. Labels [N] next \
to rows say the class, and must agree with them. What is not used is listed.

Folders are matched with classes by name (CIFAR's car and plane, too), WordNet id or number from 0; anything else is refused \
unless --sorted says that their order is right. Other types of images, links to nothing and folders in folders are refused.

Declarations are checked: values outside [0, 1] afterwards are refused with their share and range, and so are options that \
the file contradicts. Optimized images may leave the range of pixels; --clamp clips them, which the set, `c2r inspect` and, \
above 1 %, tables record. Every class needs the same number of images.")]
pub(crate) struct Args {
    /// What to read
    #[arg(value_name = "FILE|DIR")]
    file: PathBuf,

    /// Where to write the set (safetensors)
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// The dataset that was distilled: digits, cifar10, ...; required unless c2r exported the file (then its
    /// header has everything)
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,

    /// Tensor with the images
    #[arg(long, requires = "dataset", value_name = "TENSOR")]
    images: Option<String>,

    /// Tensor with the labels
    #[arg(long, requires = "dataset", value_name = "TENSOR")]
    labels: Option<String>,

    /// Another file with the labels
    #[arg(long, requires = "dataset", value_name = "FILE")]
    labels_from: Option<PathBuf>,

    /// The file has no hard labels, and its images are grouped by class, equally many each: labels by position
    #[arg(long, requires = "dataset")]
    grouped: bool,

    /// The names of class folders say nothing: their sorted order is that of the classes (numbers count up)
    #[arg(long, requires = "dataset")]
    sorted: bool,

    /// Label rows are logits: take their softmax
    #[arg(long, requires = "dataset")]
    logits: bool,

    /// Values are (pixel - mean) / std: cifar10-dd (DC, DSA, DM, MTT), a dataset's name, or MEAN/STD
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

    /// Cut off what is outside [0, 1]: a tenth of the values at most, any part after --normalized
    #[arg(long, requires = "dataset")]
    clamp: bool,

    /// Each image is a mosaic of N x N images
    #[arg(long, requires = "dataset", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=2))]
    formation: i64,

    /// What made it, for tables
    #[arg(long, requires = "dataset", value_name = "NAME", default_value = "imported")]
    method: String,

    /// Seed of its distillation, for tables: sets of one method need different seeds
    #[arg(long, requires = "dataset", value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Replace the output if it is there
    #[arg(long)]
    force: bool,
}

fn parse_normalized(text: &str) -> Result<PixelValues, String> {
    PixelValues::normalized(text).map_err(|error| error.to_string())
}

pub(crate) fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    if args.output.exists() && !args.force {
        return exit::fail(
            exit::USAGE,
            format!("{} is there already; say --force to replace it", args.output.display()),
        );
    }
    let set = match &args.dataset {
        Some(name) => foreign(&args, &c2r_data::spec(name).or_exit(exit::USAGE)?, ui)?,
        None => ours(&args.file)?,
    };
    set.save(&args.output).or_exit(exit::DATA)?;
    let header = &set.header;
    ui.out(format!(
        "{}: {} images per class of {}, method {}",
        args.output.display(),
        header.images_per_class,
        header.dataset,
        header.method
    ));
    ui.note(format!("`c2r inspect {} --grid set.png` shows whether they look right", args.output.display()));
    Ok(())
}

/// A set that c2r exported says everything about itself.
fn ours(file: &Path) -> anyhow::Result<SyntheticSet> {
    let is_ours = if file.is_dir() {
        SyntheticSet::is_png_folder(file)
    } else {
        SyntheticSet::is_header(&c2r_data::read_tensors(file).or_exit(exit::DATA)?.header)
    };
    if !is_ours {
        return exit::fail(
            exit::USAGE,
            format!("{} was not written by `c2r export`: say what was distilled with --dataset NAME", file.display()),
        );
    }
    SyntheticSet::load(file).or_exit(exit::DATA)
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

fn foreign(args: &Args, spec: &DatasetSpec, ui: &Ui) -> anyhow::Result<SyntheticSet> {
    let says_all_itself = |is_ours: bool| {
        if is_ours {
            let file = args.file.display();
            let reason = format!("{file} was written by `c2r export` and says everything itself: leave --dataset out");
            return exit::fail(exit::USAGE, reason);
        }
        Ok(())
    };
    let file = if args.file.is_dir() {
        says_all_itself(SyntheticSet::is_png_folder(&args.file))?;
        let ClassFolders { file, order, notes } =
            c2r_data::read_class_folders(&args.file, spec, args.sorted).map_err(flags).or_exit(exit::DATA)?;
        ui.note(match order {
            ClassOrder::Names => format!("folders are called as the classes of {}", spec.name),
            ClassOrder::Wnids => format!("folders are called as the WordNet ids of {}", spec.name),
            ClassOrder::Numbers => "folders are called as the classes' numbers".to_owned(),
            ClassOrder::Sorted => format!("folders are taken in sorted order for the classes of {}", spec.name),
        });
        notes.iter().for_each(|note| ui.note(format!("note: {note}")));
        file
    } else {
        if args.sorted {
            return exit::fail(exit::USAGE, "--sorted is about folders of images; this is a file");
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
        method: args.method.clone(),
        seed: args.seed,
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
