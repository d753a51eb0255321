use std::path::{Path, PathBuf};

use c2r_data::{DataError, PixelValues, SetLabels, SyntheticSet};
use c2r_files::write_atomically;
use c2r_models::checkpoint;
use c2r_run::{
    exit::{self, OrExit},
    terminal::{self as ui, Ui},
};
use tch::Device;

use crate::data;

/// Write a distilled set for other programs, or a trained network as TorchScript
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  # For PyTorch, in the layout of DC, DSA and DM, normalized as theirs
  c2r export runs/first --to pt first.pt --normalized

  # For NumPy
  c2r export runs/first/synthetic.safetensors --to npz first.npz

  # As pictures; --quantize allows rounding to 8 bits
  c2r export runs/first --to png first/ --quantize

  # The network of a run folder of `c2r train`, as TorchScript
  c2r export runs/first/pgd-at --to torchscript network.pt

On every dataset but the digits, C2R's profiles, its backbone, `rome` and `random-real-mosaic` store mosaics: each stored \
image holds 2x2 training images. Export cuts them apart and enlarges them, as `c2r train` does, so that other programs train on the same images. --stored writes \
the mosaics as they are.

npz, pt and safetensors are lossless. PNG has 8 bits per channel: pixels that are not multiples of 1/255 must be \
rounded, which needs --quantize. docs/formats.md shows how to read each format in Python.")]
pub(crate) struct Args {
    /// Distilled set (safetensors, npz, PNG folder, or the run folder of `c2r distill`), or a network for torchscript
    ///
    /// A network is model.safetensors or the run folder of `c2r train`.
    #[arg(value_name = "SET|MODEL")]
    what: PathBuf,

    /// Format to write
    #[arg(long, value_enum)]
    to: Format,

    /// File to write (a folder for png)
    #[arg(value_name = "OUT")]
    output: PathBuf,

    /// Write mosaics as they are stored, not decoded
    #[arg(long)]
    stored: bool,

    /// For pt: normalize the pixels as DC, DSA, DM and MTT do
    ///
    /// Values become (pixel - mean) / std: with these projects' mean and std for CIFAR-10, and with those stored in the
    /// set for other datasets.
    #[arg(long)]
    normalized: bool,

    /// For png: allow rounding to 8 bits
    #[arg(long)]
    quantize: bool,

    /// Replace an existing output file; a folder is never replaced
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Format {
    /// A set for NumPy
    Npz,
    /// A set as a folder of 8-bit images
    Png,
    /// A set in c2r's own format
    Safetensors,
    /// A set for PyTorch: {"data": [[images, labels]]}
    Pt,
    /// A network for PyTorch, RobustBench and AutoAttack: torch.jit.load reads it
    Torchscript,
}

pub(crate) fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let output = args.output.display();
    if args.output.exists() && (!args.force || args.to == Format::Png) {
        let advice = if args.to == Format::Png { "move it away first" } else { "--force replaces it" };
        return exit::fail(exit::USAGE, format!("{output} exists already; {advice}"));
    }
    if args.quantize && args.to != Format::Png {
        return exit::fail(exit::USAGE, "--quantize is only for --to png; the other formats are lossless");
    }
    if args.normalized && args.to != Format::Pt {
        return exit::fail(exit::USAGE, "--normalized is only for --to pt; the other formats have pixels in [0, 1]");
    }
    if args.to == Format::Torchscript {
        return network(&args, ui);
    }
    let set = SyntheticSet::load(&set_file(&args.what)?).or_exit(exit::DATA)?;
    let set = if args.stored { set } else { decoded(set, ui) };
    if set.formation > 1 {
        let f = set.formation;
        ui.note(format!("note: the images are {f}x{f} mosaics; cut them apart before training (docs/formats.md)"));
    }
    if set.header.origin().is_ok_and(|origin| origin.labels == SetLabels::Teacher) {
        ui.note("note: a teacher labels this set while a network is trained on it; only the classes are exported");
    }
    match args.to {
        Format::Npz => set.save_npz(&args.output).or_exit(exit::DATA)?,
        Format::Safetensors => set.save(&args.output).or_exit(exit::DATA)?,
        Format::Pt => pt(&set, &args, ui)?,
        Format::Png => png(&set, &args, ui)?,
        Format::Torchscript => unreachable!("written above"),
    }
    let (channels, height, width) = (set.images.dim().1, set.images.dim().2, set.images.dim().3);
    let n = ui::counted(set.labels.len(), "image");
    ui.out(format!("{output}: {n} of {}, {channels}x{height}x{width}", set.header.dataset));
    Ok(())
}

/// The set in a file or run folder that was named.
fn set_file(named: &Path) -> anyhow::Result<PathBuf> {
    if named.join(data::NETWORK_FILE).is_file() && !named.join(data::SET_FILE).is_file() {
        let named = named.display();
        return exit::fail(exit::USAGE, format!("{named} has a network, not a set; use --to torchscript"));
    }
    data::set_file(named)
}

/// The images that networks are trained on.
fn decoded(set: SyntheticSet, ui: &Ui) -> SyntheticSet {
    if set.formation == 1 {
        return set;
    }
    let (f, stored) = (set.formation, set.header.images_per_class);
    let set = set.decoded();
    let n = set.header.images_per_class;
    ui.note(format!("each {f}x{f} mosaic is decoded: {stored} stored images per class become {n}"));
    set
}

fn pt(set: &SyntheticSet, args: &Args, ui: &Ui) -> anyhow::Result<()> {
    let (mean, std) = match PixelValues::normalized("cifar10-dd").or_exit(exit::USAGE)? {
        PixelValues::Normalized { mean, std } if set.header.dataset == "cifar10" => (mean, std),
        _ => (set.header.mean.clone(), set.header.std.clone()),
    };
    let normalized = args.normalized.then_some((&mean[..], &std[..]));
    set.save_pt(&args.output, normalized).or_exit(exit::DATA)?;
    ui.note(match normalized {
        Some((mean, std)) => format!("images are (pixel - mean) / std, with mean {mean:?} and std {std:?}"),
        None => "images are pixels in [0, 1]; --normalized writes what DC, DSA, DM and MTT save".to_owned(),
    });
    Ok(())
}

fn png(set: &SyntheticSet, args: &Args, ui: &Ui) -> anyhow::Result<()> {
    let n_rounded = set.save_png(&args.output, args.quantize).map_err(|error| match error {
        DataError::Rounds { .. } => exit::coded(exit::DATA, anyhow::anyhow!("{error}; --quantize allows rounding")),
        other => exit::coded(exit::DATA, other),
    })?;
    if n_rounded > 0 {
        let [rounded, total] = [n_rounded, set.images.len()].map(|n| ui::count(n as f64));
        ui.note(format!("note: {rounded} of {total} pixel values were rounded to multiples of 1/255"));
    }
    Ok(())
}

fn network(args: &Args, ui: &Ui) -> anyhow::Result<()> {
    if args.stored {
        return exit::fail(exit::USAGE, "--stored is only for sets, and --to torchscript writes a network");
    }
    let file = data::network_file(&args.what)?;
    let (model, _) = checkpoint::load(&file, Device::Cpu).or_exit(exit::DATA)?;
    write_atomically(&args.output, &model.to_torchscript()?)?;
    let input = model.input();
    ui.out(format!(
        "{}: {} as TorchScript, from pixels in [0, 1] [N, {}, {}, {}] to {} logits",
        args.output.display(),
        model.spec(),
        input.channels,
        input.height,
        input.width,
        input.n_classes
    ));
    Ok(())
}
