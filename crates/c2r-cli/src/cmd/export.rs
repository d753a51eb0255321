use std::path::PathBuf;

use c2r_data::{DataError, SyntheticSet};

use crate::{
    data,
    exit::{self, OrExit},
    ui::Ui,
};

/// Write a synthetic set as npz, PNG folder or safetensors.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  c2r export runs/first/synthetic.safetensors --to npz first.npz
  c2r export runs/first/synthetic.safetensors --to png first/ --quantize
  c2r export runs/first --to npz first.npz               # the set in a run folder
  c2r export first.npz --to safetensors back.safetensors

npz and safetensors lose nothing, and neither does a PNG folder whose pixels are multiples of 1/255 (labels, soft labels \
and provenance are next to the images in set.json). Other pixels must be rounded for it, which --quantize allows. \
docs/formats.md shows the two lines of Python that read each.")]
pub(crate) struct Args {
    /// A synthetic set: safetensors, npz or PNG folder of c2r, or the run folder of `c2r distill`
    #[arg(value_name = "SET")]
    set: PathBuf,

    /// Format to write
    #[arg(long, value_enum)]
    to: SetFormat,

    /// File, or folder for png, to write
    #[arg(value_name = "OUT")]
    output: PathBuf,

    /// Allow rounding pixels to multiples of 1/255 for PNG
    #[arg(long)]
    quantize: bool,

    /// Replace an existing output file; a folder is never replaced
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum SetFormat {
    /// NumPy
    Npz,
    /// A folder of 8-bit images
    Png,
    /// c2r's own
    Safetensors,
}

pub(crate) fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let output = args.output.display();
    if args.output.exists() && (!args.force || args.to == SetFormat::Png) {
        let advice = if args.to == SetFormat::Png { "move it away first" } else { "say --force to replace it" };
        return exit::fail(exit::USAGE, format!("{output} is there already; {advice}"));
    }
    if args.quantize && args.to != SetFormat::Png {
        return exit::fail(exit::USAGE, "--quantize is about png; the other formats lose nothing");
    }
    let set = SyntheticSet::load(&data::set_file(&args.set)?).or_exit(exit::DATA)?;
    match args.to {
        SetFormat::Npz => set.save_npz(&args.output).or_exit(exit::DATA)?,
        SetFormat::Safetensors => set.save(&args.output).or_exit(exit::DATA)?,
        SetFormat::Png => {
            let n_rounded = set.save_png(&args.output, args.quantize).map_err(|error| match error {
                DataError::Rounds { .. } => {
                    exit::coded(exit::DATA, anyhow::anyhow!("{error}; say --quantize to round"))
                }
                other => exit::coded(exit::DATA, other),
            })?;
            if n_rounded > 0 {
                let total = set.images.len();
                ui.note(format!("note: {n_rounded} of {total} pixel values were rounded to multiples of 1/255"));
            }
        }
    }
    ui.out(format!("{output}: {} images of {}", set.labels.len(), set.header.dataset));
    Ok(())
}
