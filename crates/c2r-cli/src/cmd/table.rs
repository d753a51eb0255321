mod origin;
mod unattacked;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::IsTerminal,
    path::{Path, PathBuf},
};

use anyhow::Context;
use c2r_base::artifact;
use c2r_data::SyntheticSet;
use c2r_eval::{
    Alike, EvalError, Experiment, NoCell, Source, Table, TableOptions, collect,
    table::{Picture, Row},
};
use c2r_experiment::Subgrid;
use c2r_files::text_to_path;
use c2r_run::arguments;
use image::RgbImage;
use origin::Sets;

use crate::{
    exit::{self, OrExit},
    overwrite::{self, Kind},
    ui::{self, Ui},
};

/// White pixels between two methods' pictures.
const GAP: u32 = 16;
/// A picture of all methods that would be wider or higher is not made, pixels.
const LARGEST_SIDE: u32 = 20_000;

/// Make a table from folders of attack reports
///
/// Reads every attack.json below the folders.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  # Print a table of your own runs
  c2r table runs/first

  # Compare every method with class-mean, one line per number
  c2r table runs/mine --baseline class-mean --format csv > cells.csv

  # An experiment of the paper: its labels, rows and published numbers
  c2r table runs/table2-quick --experiment data/paper/table2.toml --output-dir tables

docs/tables.md explains how to read a table. A run counts as missing if the experiment's grid (or your --seeds and \
--methods) includes it and no report of it was found.
Exit code 4: at the scale `paper`, a number is farther from the published one than the tolerance.")]
pub(crate) struct Args {
    #[command(flatten)]
    results: Results,

    /// Also write table.md, table.csv, table.json, table.tex and pictures of the synthetic images
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,

    /// Format to print
    #[arg(long, value_enum, default_value_t = TableFormat::Terminal)]
    format: TableFormat,

    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// What `--output-dir` gets besides pictures.
const FILES: [(&str, TableFormat); 4] = [
    ("table.md", TableFormat::Markdown),
    ("table.csv", TableFormat::Csv),
    ("table.json", TableFormat::Json),
    ("table.tex", TableFormat::Latex),
];

/// Which results, and what they are compared with.
#[derive(clap::Args)]
pub(crate) struct Results {
    /// Folders to search for attack.json
    #[arg(required = true, value_name = "FOLDER")]
    roots: Vec<PathBuf>,

    /// Experiment with labels, order of the rows and published numbers, e.g. data/paper/table2.toml
    #[arg(long, value_name = "FILE")]
    experiment: Option<PathBuf>,

    /// Scale of the experiment, e.g. quick, small or paper [default: from the folder's name, e.g. quick for table2-quick]
    ///
    /// With a known scale, the table also lists missing runs. At the scale `paper`, it also compares numbers with the
    /// published ones.
    #[arg(long, value_name = "NAME", requires = "experiment")]
    scale: Option<String>,

    /// Expect these seeds instead of the experiment file's
    ///
    /// They say which runs are missing. Results with other seeds stay in the table.
    #[arg(long, value_name = "N,..", value_delimiter = ',', requires = "experiment")]
    seeds: Vec<u64>,

    /// Expect these methods instead of the experiment file's; `all` means every method that the file lists at the scale `paper`
    ///
    /// They say which rows are missing, and the order of the rows. Results of other methods stay in the table.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', requires = "experiment")]
    methods: Vec<String>,

    /// Count as missing only rows of this part of the grid, e.g. dataset=cifar10,ipc=10,method=c2r,protocol=natural
    #[arg(long, value_name = "KEY=VALUE,..", requires = "experiment")]
    only: Vec<Subgrid>,

    /// Method to compare the others with, seed by seed [default: the experiment's]
    #[arg(long, value_name = "METHOD")]
    baseline: Option<String>,

    /// Call the method of all results below FOLDER this NAME (repeatable)
    ///
    /// Use it for runs of one method that you made with different settings, such as `--name runs/weak=c2r-weak`.
    #[arg(long, value_name = "FOLDER=NAME", value_parser = naming, conflicts_with = "experiment")]
    name: Vec<(PathBuf, String)>,

    /// Put networks of different architectures into one table, where each row names its network
    ///
    /// A row is then called `METHOD, NETWORK`, also in --baseline if one method has several networks.
    #[arg(long, conflicts_with = "experiment")]
    across_networks: bool,
}

impl Results {
    /// Reads the files and makes the table. What is returned beside it is as the files have it.
    pub(crate) fn table(&self) -> anyhow::Result<(Table, Vec<Source>)> {
        let mut experiment =
            self.experiment.as_deref().map(Experiment::read).transpose().map_err(|error| coded(error.into()))?;
        let by_name = experiment.as_ref().and_then(|experiment| scale_by_name(&self.roots, experiment));
        let scale = self.scale.clone().or(by_name.map(str::to_owned));
        if !(self.seeds.is_empty() && self.methods.is_empty() && self.only.is_empty()) {
            let Some((experiment, scale)) = experiment.as_mut().zip(scale.as_deref()) else {
                return exit::fail(exit::USAGE, "--seeds, --methods and --only are about a grid: name it with --scale");
            };
            let only = Subgrid::merge(self.only.clone());
            experiment.change_grid(scale, &self.seeds, &self.methods).map_err(|error| coded(error.into()))?;
            let grid = experiment.scale(scale).map_err(|error| coded(error.into()))?;
            grid.check_part(&only).map_err(|reason| exit::usage(format!("--only: {reason}")))?;
            experiment.ask_for(scale, only).map_err(|error| coded(error.into()))?;
        }
        let mut sources = collect(&self.roots).map_err(coded)?;
        Sets::default().check(&mut sources);
        let mut baseline = self.baseline.clone();
        let mut named = sources.clone();
        for (folder, name) in &self.name {
            name_method(&mut named, folder, name)?;
        }
        if self.across_networks {
            name_networks(&mut named, &mut baseline);
        }
        let options =
            TableOptions { experiment: experiment.as_ref(), scale: scale.as_deref(), baseline: baseline.as_deref() };
        Ok((Table::build(&named, &options).map_err(coded)?, sources))
    }
}

/// `FOLDER=NAME`.
fn naming(text: &str) -> Result<(PathBuf, String), String> {
    let (folder, name) = text.rsplit_once('=').ok_or("expected FOLDER=NAME")?;
    Ok((text_to_path(folder), arguments::name(name)?))
}

/// Gives the method of what lies below `folder` another name.
fn name_method(sources: &mut [Source], folder: &Path, name: &str) -> anyhow::Result<()> {
    let shown = folder.display();
    let whole = folder.canonicalize().with_context(|| format!("--name {shown}={name}")).or_exit(exit::USAGE)?;
    let mut below = sources.iter_mut().filter(|source| source.file.starts_with(&whole)).peekable();
    if below.peek().is_none() {
        let reason = format!("--name {shown}={name}: no attack.json of this table is below {shown}");
        return exit::fail(exit::USAGE, reason);
    }
    below.for_each(|source| name.clone_into(&mut source.record.subject.method));
    Ok(())
}

/// A table as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TableFormat {
    /// Drawn tables if they fit into the terminal, otherwise Markdown
    Terminal,
    /// Markdown tables
    Markdown,
    /// One line per number
    Csv,
    /// Everything, with the files of every number
    Json,
    /// For a document with the packages booktabs and graphicx
    #[value(alias = "tex")]
    Latex,
}

impl TableFormat {
    /// What a file of it is.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Terminal | Self::Markdown => Kind::Markdown,
            Self::Csv => Kind::Csv,
            Self::Json => Kind::Json,
            Self::Latex => Kind::Latex,
        }
    }

    pub(crate) fn render(self, table: &Table) -> anyhow::Result<String> {
        Ok(match self {
            Self::Terminal => table.terminal(terminal_width()),
            Self::Markdown => table.markdown(),
            Self::Csv => table.csv()?,
            Self::Json => table.json(),
            Self::Latex => table.latex(),
        })
    }
}

pub(crate) fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    for (name, format) in FILES {
        if let Some(folder) = &args.output_dir {
            overwrite::check("--output-dir:", &folder.join(name), format.kind())?;
        }
    }
    let (mut table, sources) = args.results.table()?;
    // An experiment says itself which of its rows are missing.
    if args.results.experiment.is_none()
        && let Some(note) = unattacked::note(&args.results.roots, &sources)
    {
        ui.note(note);
    }
    if let Some(folder) = &args.output_dir {
        table.pictures = pictures(&table, &sources, folder, ui)?;
        for (name, format) in FILES {
            let path = folder.join(name);
            artifact::write_atomically(&path, format.render(&table)?.as_bytes())?;
            ui.note(format!("wrote {}", path.display()));
        }
    }
    let format = if args.json { TableFormat::Json } else { args.format };
    ui.text(format.render(&table)?.trim_end());
    judge(&table)
}

/// Makes the network a part of the method's name, in the baseline, too, if it has only one.
fn name_networks(sources: &mut [Source], baseline: &mut Option<String>) {
    let mut of_baseline = BTreeSet::new();
    for source in sources {
        let subject = &mut source.record.subject;
        let name = format!("{}, {}", subject.method, subject.model);
        if baseline.as_ref() == Some(&subject.method) {
            of_baseline.insert(name.clone());
        }
        subject.method = name;
        "several networks".clone_into(&mut subject.model);
    }
    if of_baseline.len() == 1 {
        *baseline = of_baseline.pop_first();
    }
}

/// `cargo xtask reproduce` gives the results folder the names of the experiment and of the scale.
fn scale_by_name<'a>(roots: &[PathBuf], experiment: &'a Experiment) -> Option<&'a str> {
    let [root] = roots else { return None };
    let whole = root.canonicalize().ok()?;
    let scale = whole.file_name()?.to_str()?.strip_prefix(&experiment.name)?.strip_prefix('-')?;
    experiment.scales.keys().map(String::as_str).find(|known| *known == scale)
}

/// An error of the tables with the exit code it asks for and what to do about it.
fn coded(error: EvalError) -> anyhow::Error {
    let code = match &error {
        EvalError::Nothing(_)
        | EvalError::Record { .. }
        | EvalError::NotACell { .. }
        | EvalError::OtherNetwork { .. }
        | EvalError::Several(_)
        | EvalError::Artifact(_) => exit::DATA,
        _ => exit::USAGE,
    };
    match advice(&error) {
        Some(advice) => exit::coded(code, anyhow::anyhow!("{error}; {advice}")),
        None => exit::coded(code, error),
    }
}

fn advice(error: &EvalError) -> Option<String> {
    let text = match error {
        EvalError::Several(errors) => return errors.iter().find_map(advice),
        EvalError::Nothing(_) => "write one with `c2r attack --output FOLDER/attack.json`",
        EvalError::NotACell { why: NoCell::Inputs, .. } => {
            "run `c2r attack` again with `--dataset NAME` instead; images of your own are a dataset as `--dataset folder:PATH`"
        }
        EvalError::NotACell { .. } => "run the same `c2r attack` again with that option and --force",
        EvalError::TrainingData { other_number: true, .. } => {
            "give both the same `--train-per-class`, or make a table of each"
        }
        EvalError::TrainingData { .. } => "make a table of each",
        EvalError::Mixed { .. } => {
            "give `c2r table` the results of one table at a time; for `cargo xtask reproduce`, that is a folder such as \
             runs/table2-quick"
        }
        EvalError::TestImages { files, .. } => {
            let n = files.keys().next().unwrap_or(&0);
            return Some(format!(
                "attack all networks on the same images (`c2r attack --n-test {n}`, or all images without --n-test), or \
                 make a table of each"
            ));
        }
        EvalError::OneName { alike: Alike::Networks, .. } => {
            "attack again with a name for each (`c2r attack --method NAME`) or, if one method made them, with a seed for each \
             (`--train-seed N`)"
        }
        EvalError::OneName { alike: Alike::ImportedSets, .. } => {
            "import each with its own name or seed (`c2r import --method NAME --seed N`), then train and attack again"
        }
        EvalError::OneName { .. } => {
            "give each a name here (`c2r table --name FOLDER=NAME`), or before it is distilled (`c2r distill --name NAME`)"
        }
        EvalError::OtherNetwork { .. } => {
            "if it was trained again, attack it again at every radius (`c2r attack ... --output FILE --force`), or delete the \
             report of the earlier one"
        }
        EvalError::OneNetwork { .. } => {
            "leave one of them out; if their attacks are different, give both reports the same --train-seed"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

/// Columns of the terminal that stdout is, if it is one.
fn terminal_width() -> Option<usize> {
    let (width, _) = terminal_size::terminal_size()?;
    std::io::stdout().is_terminal().then_some(usize::from(width.0))
}

/// Exit code 4 where numbers are outside the tolerance.
pub(crate) fn judge(table: &Table) -> anyhow::Result<()> {
    let outside: Vec<String> = table
        .outside_tolerance()
        .filter_map(|(section, row, cell)| {
            let published = cell.published.as_ref()?;
            let size = row.images_per_class.map_or_else(|| "all".to_owned(), |count| count.to_string());
            Some(format!(
                "{} {} ipc {size} {} {}: {:.2}, published {:.2}",
                section.dataset, section.protocol, row.method, cell.column, cell.summary.mean, published.value
            ))
        })
        .collect();
    if outside.is_empty() {
        return Ok(());
    }
    let tolerance = table.experiment.as_ref().map_or(0.0, |experiment| experiment.tolerance);
    exit::fail(
        exit::OUTSIDE_TOLERANCE,
        format!(
            "{} numbers are farther than {tolerance} points from the published numbers:\n  {}",
            outside.len(),
            outside.join("\n  ")
        ),
    )
}

/// A synthetic set of a row: that of its first run whose set is there.
pub(crate) struct Shown {
    pub(crate) dataset: String,
    pub(crate) ipc: usize,
    /// Name of its picture, e.g. `grid-digits-ipc10-c2r.png`.
    pub(crate) file: String,
    pub(crate) label: String,
    set: PathBuf,
    /// The set, relative to the results folder.
    pub(crate) source: String,
}

impl Shown {
    /// What it is shown with: `digits, 10 images per class`.
    pub(crate) fn group(&self) -> String {
        format!("{}, {} per class", self.dataset, ui::counted(self.ipc, "image"))
    }

    /// Writes the picture.
    pub(crate) fn draw(&self, path: &Path) -> anyhow::Result<()> {
        SyntheticSet::load(&self.set).or_exit(exit::DATA)?.grid_png(path).map_err(anyhow::Error::from)
    }
}

/// The synthetic sets of a table, by dataset, images per class, and then in the order of the rows.
///
/// # Errors
/// If a set in the folder of a run is damaged.
pub(crate) fn synthetic_sets(table: &Table, sources: &[Source], ui: &Ui) -> anyhow::Result<Vec<Shown>> {
    let by_path: BTreeMap<&str, &Source> = sources.iter().map(|source| (source.path.as_str(), source)).collect();
    let mut sets = Sets::default();
    let mut rows: BTreeMap<(&str, usize), Vec<&Row>> = BTreeMap::new();
    for section in &table.sections {
        for row in &section.rows {
            let Some(ipc) = row.images_per_class.filter(|_| !row.undistilled) else { continue };
            let there = rows.entry((&section.dataset, ipc)).or_default();
            if !there.iter().any(|other| (&other.method, &other.profile) == (&row.method, &row.profile)) {
                there.push(row);
            }
        }
    }
    let mut shown = Vec::new();
    for ((dataset, ipc), rows) in rows {
        for row in &rows {
            let of_row = row.runs.iter().flat_map(|run| &run.files).filter_map(|file| by_path.get(file.as_str()));
            let mut found = None;
            for source in of_row {
                found = sets.find(source)?;
                if found.is_some() {
                    break;
                }
            }
            let Some((set, source)) = found else {
                ui.note(format!(
                    "note: no picture of {} ({dataset}, ipc {ipc}): neither the folders of its attack.json nor the two above \
                     have the synthetic.safetensors or distill/synthetic.safetensors that its networks were trained on",
                    row.method
                ));
                continue;
            };
            let several = rows.iter().filter(|other| other.method == row.method).count() > 1;
            let method = if several { format!("{}-{}", row.method, row.profile) } else { row.method.clone() };
            shown.push(Shown {
                dataset: dataset.to_owned(),
                ipc,
                file: format!("{}-{}.png", stem(dataset, ipc), file_name(&method)),
                label: row.label.clone(),
                set,
                source,
            });
        }
    }
    Ok(shown)
}

/// Beginning of the names of all pictures of a dataset at a size.
fn stem(dataset: &str, ipc: usize) -> String {
    format!("grid-{}-ipc{ipc}", file_name(dataset))
}

/// One picture per distilled method and size, and one with all methods side by side.
fn pictures(table: &Table, sources: &[Source], folder: &Path, ui: &Ui) -> anyhow::Result<Vec<Picture>> {
    let shown = synthetic_sets(table, sources, ui)?;
    let mut pictures = Vec::new();
    for group in shown.chunk_by(|a, b| (&a.dataset, a.ipc) == (&b.dataset, b.ipc)) {
        let (dataset, ipc) = (&group[0].dataset, group[0].ipc);
        for one in group {
            let path = folder.join(&one.file);
            one.draw(&path)?;
            ui.note(format!("wrote {}", path.display()));
        }
        if group.len() > 1 {
            let file = format!("{}.png", stem(dataset, ipc));
            let parts: Vec<PathBuf> = group.iter().map(|one| folder.join(&one.file)).collect();
            if side_by_side(&parts, &folder.join(&file))? {
                let labels: Vec<&str> = group.iter().map(|one| one.label.as_str()).collect();
                let labels = labels.join(", ");
                let caption = format!("{}, one row per class; from left to right: {labels}", group[0].group());
                pictures.push(Picture { file, caption, sources: group.iter().map(|one| one.source.clone()).collect() });
                continue;
            }
        }
        pictures.extend(group.iter().map(|one| Picture {
            file: one.file.clone(),
            caption: format!("{}, {}", one.group(), one.label),
            sources: vec![one.source.clone()],
        }));
    }
    Ok(pictures)
}

/// Letters, digits, `.`, `-` and `_` only.
fn file_name(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect()
}

/// Puts pictures beside each other. Returns false, and writes nothing, where the result would be too large to look at.
fn side_by_side(parts: &[PathBuf], path: &Path) -> anyhow::Result<bool> {
    let images: Vec<RgbImage> = parts
        .iter()
        .map(|part| Ok(image::open(part).with_context(|| format!("cannot read {}", part.display()))?.to_rgb8()))
        .collect::<anyhow::Result<_>>()?;
    let width = images.iter().map(RgbImage::width).sum::<u32>() + GAP * (images.len() as u32 - 1);
    let height = images.iter().map(RgbImage::height).max().unwrap_or(1);
    if width > LARGEST_SIDE || height > LARGEST_SIDE {
        return Ok(false);
    }
    let mut whole = RgbImage::from_pixel(width, height, image::Rgb([255, 255, 255]));
    let mut left = 0;
    for image in &images {
        image::imageops::replace(&mut whole, image, i64::from(left), 0);
        left += image.width() + GAP;
    }
    let mut bytes = std::io::Cursor::new(Vec::new());
    whole.write_to(&mut bytes, image::ImageFormat::Png)?;
    artifact::write_atomically(path, bytes.get_ref())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_stand_beside_each_other_on_white() {
        let folder = tempfile::tempdir().unwrap();
        let parts: Vec<PathBuf> = [(3, 2, [255u8, 0, 0]), (4, 5, [0, 0, 255])]
            .into_iter()
            .enumerate()
            .map(|(position, (width, height, colour))| {
                let path = folder.path().join(format!("{position}.png"));
                RgbImage::from_pixel(width, height, image::Rgb(colour)).save(&path).unwrap();
                path
            })
            .collect();
        let path = folder.path().join("whole.png");
        assert!(side_by_side(&parts, &path).unwrap());
        let whole = image::open(&path).unwrap().to_rgb8();
        assert_eq!(whole.dimensions(), (3 + GAP + 4, 5));
        assert_eq!(whole.get_pixel(2, 1).0, [255, 0, 0]);
        assert_eq!(whole.get_pixel(2, 2).0, [255, 255, 255]);
        assert_eq!(whole.get_pixel(3 + GAP, 4).0, [0, 0, 255]);
    }

    #[test]
    fn a_results_folder_names_its_scale() {
        let experiment = Experiment::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/paper/table2.toml"));
        let experiment = experiment.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str, expected: Option<&str>| {
            let root = folder.path().join(name);
            std::fs::create_dir_all(&root).unwrap();
            assert_eq!(scale_by_name(std::slice::from_ref(&root), &experiment), expected, "{name}");
            assert_eq!(scale_by_name(&[root.clone(), root], &experiment), None, "two folders have no one name");
        };
        check("table2-quick", Some("quick"));
        check("table2-paper", Some("paper"));
        check("table2-huge", None);
        check("table20-quick", None);
        check("quick", None);
    }

    #[test]
    fn a_group_of_pictures_counts_its_images() {
        let shown = |ipc| Shown {
            dataset: "digits".into(),
            ipc,
            file: String::new(),
            label: String::new(),
            set: PathBuf::new(),
            source: String::new(),
        };
        assert_eq!([1, 10].map(|ipc| shown(ipc).group()), ["digits, 1 image per class", "digits, 10 images per class"]);
    }

    #[test]
    fn file_names_are_plain() {
        assert_eq!(file_name("folder:/a b/ç"), "folder--a-b--");
        assert_eq!(file_name("tiny-imagenet"), "tiny-imagenet");
    }
}
