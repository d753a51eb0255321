//! `c2r inspect`: which kind of thing a path or name is.

mod dataset;
mod doubts;
mod report;
mod results;
mod tensors;

use std::path::{Path, PathBuf};

use c2r_base::artifact::TensorFile;
use c2r_data::{DataError, FileKind, SyntheticSet};
use c2r_files::{open, path_to_text, text_to_path};
use c2r_run::{
    arguments::any_text,
    exit::{self, OrExit},
    terminal::{Ui, count, counted},
};
use dataset::dataset;
use report::Report;
use results::{json_file, run_record, texts};
use serde_json::Value;
use tch::Device;
use tensors::{safetensors, set_or_doubt, synthetic, tensors, torchscript};

use crate::{data, overwrite, state_dict::StateDictArgs};

/// Describe a file, folder or dataset, and report what looks wrong
///
/// Reads synthetic sets, checkpoints, safetensors, .npy, .npz, files of torch.save (as data: nothing in them is run), TorchScript
/// models, attack reports, table.json, run folders, folders of images, and datasets by name.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  # A synthetic set, with a picture of it
  c2r inspect runs/first/synthetic.safetensors --grid first.png

  # Another project's set, compared with the dataset that it was distilled from
  c2r inspect res_DM_CIFAR10_ConvNet_10ipc.pt --dataset cifar10 --data DIR

  # A dataset
  c2r inspect cifar10 --data DIR --json

  # Does this state_dict fit the architecture?
  c2r inspect --state-dict net.pt --arch ConvNet-D3-W128-IN --dataset cifar10

Lines that start with `looks wrong` are guesses; docs/formats.md explains what each is based on.")]
pub(crate) struct Args {
    /// File, folder, or dataset: digits, cifar10, ... or folder:PATH
    #[arg(value_name = "FILE|DIR|DATASET", value_parser = any_text(), required_unless_present = "state_dict", conflicts_with = "state_dict")]
    what: Option<String>,

    #[command(flatten)]
    foreign: StateDictArgs,

    /// Compare images and labels with this dataset [default: the one that the file names]
    ///
    /// With --state-dict: take the shape of the images and the number of classes from it.
    #[arg(long, value_name = "NAME", value_parser = any_text())]
    dataset: Option<String>,

    /// Folder with the downloaded datasets; needed to check the labels against real images
    #[arg(long, value_name = "DIR", env = "C2R_DATA")]
    data: Option<PathBuf>,

    /// Write a picture of the images, one row per class
    #[arg(long, value_name = "PNG")]
    grid: Option<PathBuf>,

    /// Print only the configuration of a run folder or a distilled set, as TOML
    ///
    /// `c2r distill --config` takes that of a distillation. To compare two runs, compare what this prints for each.
    #[arg(long, conflicts_with_all = ["json", "grid"])]
    config: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let report = inspect(&args)?;
    let what = args.what.clone().or_else(|| Some(path_to_text(args.foreign.state_dict.as_ref()?).into_owned()));
    let what = what.unwrap_or_default();
    if args.config {
        let Some(configuration) = report.configuration else {
            let message = format!("--config: {what} is neither a run folder of c2r nor a set that c2r distilled");
            return exit::fail(exit::USAGE, message);
        };
        ui.text(configuration_text(configuration)?.trim_end());
    } else if args.json {
        ui.out(report.json(&what).to_string());
    } else {
        report.lines().iter().for_each(|line| ui.out(line));
        report.doubts.iter().for_each(|doubt| ui.out(format!("looks wrong: {doubt}")));
    }
    if let Some(grid) = args.grid {
        ui.note(format!("wrote {}", grid.display()));
    }
    Ok(())
}

/// A configuration as `--print-config` prints it, where nothing stands for what is absent.
fn configuration_text(mut configuration: Value) -> anyhow::Result<String> {
    fn without_nulls(value: &mut Value) {
        match value {
            Value::Object(object) => {
                object.retain(|_, value| !value.is_null());
                object.values_mut().for_each(without_nulls);
            }
            Value::Array(values) => values.iter_mut().for_each(without_nulls),
            _ => {}
        }
    }
    without_nulls(&mut configuration);
    Ok(toml::to_string(&configuration)?)
}

fn inspect(args: &Args) -> anyhow::Result<Report> {
    if let Some(grid) = &args.grid {
        overwrite::check("--grid", grid, overwrite::Kind::Picture)?;
    }
    let Some(what) = &args.what else {
        return state_dict(args);
    };
    let path = &text_to_path(what);
    let known = !matches!(c2r_data::spec(what), Err(DataError::UnknownDataset { .. }));
    let grid = args.grid.as_deref();
    if let Some(name) = &args.dataset {
        data::spec(name)?;
    }
    let mut report = Report::new(args.dataset.clone(), args.data.clone());
    if known && !path.exists() {
        c2r_data::spec(what).or_exit(exit::USAGE)?;
    }
    let drawn = if what.starts_with(data::FOLDER) || (known && !path.exists()) {
        dataset(&mut report, what, args.data.as_deref(), grid)?
    } else if path.is_dir() {
        folder(&mut report, path, grid)?
    } else if path.is_file() {
        file(&mut report, path, grid)?
    } else if path.exists() {
        // A pipe or a device, whose error says what to do.
        return open(path).map(|_| Report::new(None, None)).or_exit(exit::DATA);
    } else {
        let names: Vec<&str> = c2r_data::registry().iter().map(|spec| spec.name.as_str()).collect();
        return exit::fail(
            exit::USAGE,
            format!(
                "`{what}` is neither a file, nor a folder, nor a dataset; the datasets are {} and folder:PATH",
                names.join(", ")
            ),
        );
    };
    if grid.is_some() && !drawn {
        return exit::fail(exit::USAGE, format!("--grid cannot draw {what}: it does not contain images"));
    }
    Ok(report)
}

/// A network that PyTorch saved, for the images of the dataset that was named.
fn state_dict(args: &Args) -> anyhow::Result<Report> {
    let Some(name) = &args.dataset else {
        return exit::fail(exit::USAGE, "--state-dict needs --dataset, the dataset whose images the network takes");
    };
    let spec = data::spec(name)?;
    let (network, notes) = args.foreign.load(spec.shape(), Some(spec.classes.len()), Device::Cpu)?;
    let path = args.foreign.state_dict.as_deref().unwrap_or(Path::new(""));
    let mut report = Report::new(args.dataset.clone(), args.data.clone());
    report.title("state-dict", path.display(), format!("state_dict of {}", network.architecture()));
    report.line("parameters", count(network.n_parameters() as f64));
    report.line("input", format!("{:?}, {} classes ({name})", spec.shape(), spec.classes.len()));
    report.line("takes", args.foreign.expects());
    notes.iter().for_each(|note| report.line("note", note));
    for (name, tensor) in network.state() {
        doubts::values(&mut report, name, tensor);
    }
    Ok(report)
}

fn folder(report: &mut Report, path: &Path, grid: Option<&Path>) -> anyhow::Result<bool> {
    if path.join("run.json").is_file() {
        run_record(report, &path.join("run.json"))?;
        for name in ["synthetic.safetensors", "model.safetensors", "attack.json"] {
            let file_path = path.join(name);
            if file_path.is_file() && file(report, &file_path, if name.starts_with("synthetic") { grid } else { None })?
            {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    if SyntheticSet::is_png_folder(path) {
        return synthetic(report, path, &SyntheticSet::load(path).or_exit(exit::DATA)?, grid);
    }
    let contains = |folder: &str| path.ends_with(folder) || path.join(folder).is_dir();
    let datasets: Vec<_> =
        c2r_data::registry().iter().filter(|spec| spec.folders.iter().any(|folder| contains(folder))).collect();
    if let [only] = datasets[..] {
        return dataset(report, &only.name, Some(path), grid);
    }
    if !datasets.is_empty() {
        report.title("data-folder", path.display(), "data folder");
        for spec in datasets {
            report.line(&spec.name, format!("c2r inspect {} --data {}", spec.name, path.display()));
        }
        return Ok(false);
    }
    if path.join("train").is_dir() {
        return dataset(report, &format!("{}{}", data::FOLDER, path_to_text(path)), None, grid);
    }
    if let Some(name) = report.dataset.clone() {
        let spec = data::spec(&name)?;
        let folders = match c2r_data::read_class_folders(path, &spec, false) {
            Err(DataError::ClassNames { reason, .. }) => {
                report.doubt(format!("class order: expected {}", reason.replace("option `", "`c2r import --")));
                c2r_data::read_class_folders(path, &spec, true)
            }
            other => other,
        }
        .or_exit(exit::DATA)?;
        report.title("image-folder", path.display(), "images in a folder per class");
        report.line("classes", format!("{:?}", folders.order).to_lowercase());
        folders.notes.iter().for_each(|note| report.line("note", note));
        return tensors(report, &folders.file, grid);
    }
    exit::fail(
        exit::USAGE,
        format!(
            "{} is neither a run folder (run.json), nor a data folder (cifar-10-batches-bin/ and so on), nor a folder of \
             images (train/CLASS/*.png), nor a PNG folder of c2r (set.json); to read a folder CLASS/*.png, add --dataset NAME",
            path.display()
        ),
    )
}

fn file(report: &mut Report, path: &Path, grid: Option<&Path>) -> anyhow::Result<bool> {
    match FileKind::of(path).or_exit(exit::DATA)? {
        FileKind::TorchScript => torchscript(report, path).map(|()| false),
        FileKind::Json => json_file(report, path).map(|()| false),
        FileKind::Safetensors => {
            let file = TensorFile::read(path).or_exit(exit::DATA)?;
            safetensors(report, path, &file, grid)
        }
        kind @ (FileKind::Npy | FileKind::Npz | FileKind::Torch) => {
            let file = c2r_data::read_tensors(path).or_exit(exit::DATA)?;
            if SyntheticSet::is_header(&file.header) {
                return set_or_doubt(report, path, &file, grid);
            }
            let (name, words) = match kind {
                FileKind::Npy => ("npy", "array of NumPy"),
                FileKind::Npz => ("npz", "arrays of NumPy"),
                _ => ("torch", "file of torch.save"),
            };
            report.title(name, path.display(), format!("{words} with {}", counted(file.tensors.len(), "tensor")));
            texts(report, &file.header);
            tensors(report, &file, grid)
        }
        // The reader's error says what it is and what to do.
        FileKind::Pickle | FileKind::Empty => c2r_data::read_tensors(path).map(|_| false).or_exit(exit::DATA),
        FileKind::Png | FileKind::Jpeg => exit::fail(
            exit::USAGE,
            format!("{} is a single picture; `c2r inspect` reads folders of pictures", path.display()),
        ),
        _ => exit::fail(
            exit::DATA,
            format!(
                "{} is not a file that c2r reads: safetensors, NumPy, torch.save, TorchScript or JSON",
                path.display()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use c2r_attacks::AttackReport;
    use c2r_base::Seed;
    use c2r_data::{
        SCHEMA_VERSION, SyntheticHeader,
        arrays::{to_array, to_tensor},
    };
    use c2r_distill::{DistillConfig, METHODS, profiles};
    use c2r_eval::{AttackRecord, Table, table::CLEAN};
    use c2r_experiment::Subject;
    use c2r_files::{read_json, write_json};
    use c2r_models::{Model, ModelInput, checkpoint};
    use ndarray::Axis;
    use serde_json::json;
    use tch::{CModule, Device, Kind, Tensor};

    use super::*;

    fn args(what: &Path, grid: Option<&Path>) -> Args {
        let what = Some(what.display().to_string());
        let foreign = StateDictArgs { state_dict: None, arch: None, normalized: None };
        Args { what, foreign, dataset: None, data: None, grid: grid.map(Path::to_owned), config: false, json: false }
    }

    fn report(what: &Path, grid: Option<&Path>) -> anyhow::Result<Report> {
        inspect(&args(what, grid))
    }

    /// Every expected text is on a line, and the doubts are exactly these.
    fn check(report: &Report, lines: &[&str], doubts: &[&str]) {
        let text = report.lines().join("\n");
        lines.iter().for_each(|line| assert!(text.contains(line), "{text}\nlacks {line}"));
        assert_eq!(report.doubts.len(), doubts.len(), "{:?}", report.doubts);
        doubts
            .iter()
            .for_each(|doubt| assert!(report.doubts.iter().any(|found| found.contains(doubt)), "{:?}", report.doubts));
    }

    /// Two real digits of each class.
    fn synthetic_set() -> SyntheticSet {
        let digits = c2r_data::load("digits", None).unwrap();
        let chosen = digits.train.subset_per_class(2);
        SyntheticSet {
            images: chosen.images().mapv(|byte| f32::from(byte) / 255.0),
            labels: chosen.labels().to_owned(),
            soft_labels: None,
            formation: 1,
            header: SyntheticHeader {
                schema_version: SCHEMA_VERSION,
                dataset: "digits".into(),
                classes: 10,
                images_per_class: 2,
                method: "c2r".into(),
                seed: 7,
                iterations: 300,
                config: json!({"eta": 0.5, "long": "x".repeat(500)}),
                versions: BTreeMap::new(),
                data_sha256: "ab".into(),
                mean: digits.spec.mean.clone(),
                std: digits.spec.std.clone(),
                extra_storage: String::new(),
            },
        }
    }

    #[test]
    fn a_configuration_is_what_distill_takes() {
        let spec = c2r_data::spec("digits").unwrap();
        let (config, _) = DistillConfig::resolve_with(METHODS, profiles::profile("plus").unwrap(), &spec, &[]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let record =
            json!({"stage": "distill", "status": "finished", "config": {"distill": config, "dataset": "digits"}});
        write_json(&folder.path().join("run.json"), &record).unwrap();
        let found = report(folder.path(), None).unwrap().configuration.unwrap();
        let table: toml::Table = configuration_text(found).unwrap().parse().unwrap();
        let (read, _) = DistillConfig::resolve_with(METHODS, table, &spec, &[]).unwrap();
        assert_eq!(json!(read), json!(config));
    }

    #[test]
    fn synthetic_sets_and_their_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let (path, grid) = (folder.path().join("set.safetensors"), folder.path().join("set.png"));
        let mut set = synthetic_set();
        set.save(&path).unwrap();
        let lines = [
            "synthetic set of digits",
            "c2r, seed 7, 300 iterations",
            "f32 [20, 1, 8, 8], 0 to 1",
            "2 per class of 10",
        ];
        check(&report(&path, Some(&grid)).unwrap(), &lines, &[]);
        check(&report(&path, None).unwrap(), &["of 20 labels", "xxx... ("], &[]);
        assert!(grid.is_file());
        for name in ["set.npz", "set"] {
            let path = folder.path().join(name);
            if name == "set" {
                set.save_png(&path, false).map(drop).unwrap()
            } else {
                set.save_npz(&path).unwrap()
            };
            check(&report(&path, None).unwrap(), &lines, &[]);
        }
        let mut mosaics = synthetic_set();
        mosaics.formation = 2;
        mosaics.save(&path).unwrap();
        assert!(report(&path, None).unwrap().lines().join("").contains("80 training images"));

        // Mosaics of real digits: coarser than the test images, but not shuffled, unless they are.
        let train = c2r_data::load("digits", None).unwrap().train;
        let positions: Vec<usize> = (0..10).flat_map(|class| train.class_positions(class)[..8].to_vec()).collect();
        let digits = train.select(&positions);
        let pixels = to_tensor(digits.images()).to_kind(Kind::Float) / 255.0;
        let mut real = synthetic_set();
        real.formation = 2;
        real.images = to_array(&c2r_data::mosaic(&pixels, 2).unwrap()).unwrap();
        for (imported, shift, doubts) in
            [(false, 0, &[][..]), (true, 0, &[]), (false, 10, &["shuffled"]), (true, 10, &["shuffled"])]
        {
            let mut set = real.clone();
            set.labels = (0..20).map(|position| (position + shift) % 20 / 2).collect();
            set.header.config = if imported { json!({"imported": {"file": "x.pt"}}) } else { json!({}) };
            for set in [set.decoded(), set] {
                set.save(&path).unwrap();
                check(&report(&path, None).unwrap(), &["mosaics"], doubts);
            }
        }

        mosaics.header.config = json!({"imported": {"file": "x.pt"}});
        for (method, seed, made_by) in
            [("dm", 0, "dm, imported\n"), ("dm", 7, "dm, imported, seed 7\n"), ("imported", 0, "imported\n")]
        {
            (mosaics.header.method, mosaics.header.seed) = (method.into(), seed);
            mosaics.save(&path).unwrap();
            let text = report(&path, None).unwrap().lines().join("\n");
            let made_by = format!("made by       {made_by}");
            assert!(text.contains(&made_by) && !text.contains("iterations"), "{text}");
        }

        let fourth = set.images.index_axis(Axis(0), 4).to_owned();
        set.images.index_axis_mut(Axis(0), 3).assign(&fourth);
        set.images.index_axis_mut(Axis(0), 5).fill(0.5);
        set.header.mean = vec![0.5];
        set.save(&path).unwrap();
        check(
            &report(&path, None).unwrap(),
            &[],
            &["1 of 20 images repeat", "1 image has the same value everywhere", "mean and std"],
        );
        set.header.dataset = "cifar10".into();
        set.save(&path).unwrap();
        check(&report(&path, None).unwrap(), &[], &["1 of 20", "1 image has", "cifar10 images are [3, 32, 32]"]);
    }

    #[test]
    fn machines_get_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.safetensors");
        synthetic_set().save(&path).unwrap();
        let printed = report(&path, None).unwrap().json("set.safetensors");
        assert_eq!(printed["found"][0]["kind"], "synthetic-set");
        assert_eq!(printed["found"][0]["tensors"][0]["shape"], json!([20, 1, 8, 8]));
        assert_eq!(printed["found"][0]["tensors"][0]["range"], json!([0.0, 1.0]));
        assert_eq!(printed["looks_wrong"], json!([]));
    }

    /// A report on a file with these tensors, compared with `dataset`.
    fn on_tensors(dataset: &str, tensors: &[(&str, &Tensor)]) -> Report {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.safetensors");
        let tensors = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.contiguous())).collect();
        TensorFile { tensors, ..TensorFile::default() }.write(&path).unwrap();
        let dataset = Some(dataset.to_owned()).filter(|name| !name.is_empty());
        inspect(&Args { dataset, grid: Some(folder.path().join("grid.png")), ..args(&path, None) }).unwrap()
    }

    /// Smooth pictures with a little more red than blue, as CIFAR-10 has; `spread` is how much they differ in that.
    fn pictures(n: i64, spread: f64) -> Tensor {
        let range = |n: i64| Tensor::arange(n, (Kind::Float, Device::Cpu));
        let image = range(n).view([n, 1, 1, 1]);
        let place = range(32).view([1, 1, 32, 1]) / 9.0 + range(32).view([1, 1, 1, 32]) / 7.0;
        let colour = Tensor::from_slice(&[0.4914f32, 0.4822, 0.4465]).view([1, 3, 1, 1]);
        let tint = Tensor::from_slice(&[0.5f32, 0.0, -0.5]).view([1, 3, 1, 1]) * (&image * 2.0).sin() * spread;
        colour + tint + (place + image).sin() * 0.12
    }

    #[test]
    fn orders_of_channels() {
        let clean = pictures(100, 0.1);
        check(
            &on_tensors("cifar10", &[("images", &clean)]),
            &["channel order as in cifar10: red minus blue is 0.04"],
            &[],
        );
        let bytes = (&clean * 255.0).round().to_kind(Kind::Uint8);
        check(&on_tensors("cifar10", &[("images", &bytes)]), &["channel order as in cifar10"], &[]);
        let swapped = clean.flip([1]);
        let report = on_tensors("cifar10", &[("images", &swapped)]);
        check(&report, &[], &["blue, green, red? red minus blue is -0.04"]);
        assert!(report.doubts[0].ends_with("import with --bgr"), "{:?}", report.doubts);
        // Too few pictures that differ too much, no dataset to compare with, or grey.
        check(&on_tensors("cifar10", &[("images", &pictures(6, 0.6).flip([1]))]), &["channel order cannot tell"], &[]);
        let report = on_tensors("", &[("images", &swapped)]);
        check(&report, &[], &[]);
        assert!(!report.lines().join("").contains("channel order"));
    }

    #[test]
    fn layouts() {
        let clean = pictures(8, 0.1);
        let nhwc = clean.permute([0, 2, 3, 1]);
        check(&on_tensors("", &[("images", &clean)]), &["f32 [8, 3, 32, 32]"], &[]);
        check(&on_tensors("", &[("images", &nhwc)]), &["f32 [8, 32, 32, 3]"], &["has the channels last"]);
        let colourful = &clean + Tensor::from_slice(&[0.2f32, 0.0, -0.2]).view([1, 3, 1, 1]);
        check(&on_tensors("", &[("images", &colourful)]), &[], &[]);
        let misread = colourful.permute([0, 2, 3, 1]).contiguous().view([8, 3, 32, 32]);
        check(&on_tensors("", &[("images", &misread)]), &[], &["was [N, H, W, C] stored as [N, C, H, W]?"]);
        let noise = Tensor::arange(8 * 3072, (Kind::Double, Device::Cpu)).multiply_scalar(0.754_877_666).fmod(1.0);
        let noise = (noise * 1e4).fmod(1.0).to_kind(Kind::Float).view([8, 3, 32, 32]);
        check(&on_tensors("", &[("images", &noise)]), &[], &[]);
    }

    #[test]
    fn labels_of_all_kinds() {
        let (images, set_labels) = synthetic_set().decode(Device::Cpu);
        let with = |labels: &Tensor| on_tensors("digits", &[("images", &images), ("labels", labels)]);
        let (ascending, misfit) = ("in class order", "labels do not fit the images");
        let clean = with(&set_labels.sort(0, false).0);
        assert!(
            clean.lines().join("").contains("10 classes, 2 per class") && clean.lines().join("").contains(ascending)
        );
        check(&with(&set_labels), &["images and labels", "of 20 labels", "do not use --grouped"], &[]);
        check(&with(&set_labels.to_kind(Kind::Int)), &["i32 [20]"], &[]);
        check(&with(&(&set_labels + 1)), &[], &["the labels go from 1 to 10, but classes go from 0 to 9", misfit]);
        check(
            &with(&(&set_labels - 1)),
            &[],
            &["the labels go from -1 to 8, but digits has the classes 0 to 9", misfit],
        );
        check(&with(&(&set_labels + 3).fmod(10)), &[], &[misfit]);
        check(&with(&(9 - &set_labels)), &[], &["shuffled, or another class order?"]);
    }

    #[test]
    fn folders_in_another_class_order() {
        let order = |names: &[&str]| {
            let mut report = Report::default();
            doubts::class_order(&mut report, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
            report.doubts.join("\n")
        };
        assert_eq!(order(&["cat", "dog"]), "");
        assert_eq!(order(&["0", "1", "2"]), "");
        assert_eq!(order(&["00", "01", "10"]), "");
        assert!(order(&["0", "1", "10", "2"]).contains("sorted as text (0, 1, 10, 2, ...)"));
        let fruit = c2r_data::spec("imagefruit").unwrap();
        let mut sorted: Vec<&str> = fruit.wnids.iter().map(String::as_str).collect();
        assert_eq!(order(&sorted), "");
        sorted.sort_unstable();
        assert!(order(&sorted).contains("the classes of imagefruit in another order"));
    }

    /// Nothing that is committed as broken, or as valid, makes it panic.
    #[test]
    fn broken_files_of_every_kind() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
        let mut n = 0;
        for target in fs::read_dir(corpus).unwrap() {
            for file in fs::read_dir(target.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                if let Err(error) = report(&path, None) {
                    let message = format!("{error:#}");
                    assert!(message.contains(&*path.file_name().unwrap().to_string_lossy()), "{message}");
                }
                n += 1;
            }
        }
        assert!(n > 100, "{n}");
    }

    #[test]
    fn files_of_others() {
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../c2r-data/tests/files");
        let at = |name: &str, dataset: &str| {
            let dataset = Some(dataset.to_owned()).filter(|name| !name.is_empty());
            inspect(&Args { dataset, ..args(&files.join(name), None) })
        };
        let dc = at("dc.pt", "digits").unwrap();
        check(
            &dc,
            &["file of torch.save with 4 tensors", "data[0][0]    f32 [20, 1, 8, 8]"],
            &["data[0][0]: values down to", "data[1][0]: values down to"],
        );
        check(&at("plain.npz", "digits").unwrap(), &["arrays of NumPy", "labels fit"], &[]);
        check(&at("nhwc.npz", "digits").unwrap(), &["u8 [20, 8, 8, 1]"], &["x: [20, 8, 8, 1] has the channels last"]);
        check(&at("state_dict.pt", "").unwrap(), &["weight        f32 [3, 2]"], &[]);
        for (name, expected) in [("legacy.pt", "before 1.6"), ("call.pt", "will not run")] {
            let error = at(name, "").err().unwrap();
            assert!(format!("{error:#}").contains(expected) && exit::code_of(&error) == exit::DATA, "{error:#}");
        }
        let folder = tempfile::tempdir().unwrap();
        let png = folder.path().join("set");
        synthetic_set().save_png(&png, false).unwrap();
        fs::remove_file(png.join("set.json")).unwrap();
        let report = inspect(&Args { dataset: Some("digits".into()), ..args(&png, None) }).unwrap();
        check(&report, &["images in a folder per class", "labels fit"], &[]);
    }

    #[test]
    fn images_that_are_not_pixels() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.safetensors");
        synthetic_set().save(&path).unwrap();
        let change = |scale: f64, shift: f64| {
            let mut file = TensorFile::read(&path).unwrap();
            let images = file.tensors.remove("images").unwrap() * scale + shift;
            file.tensors.insert("images".into(), images);
            let changed = folder.path().join("changed.safetensors");
            file.write(&changed).unwrap();
            report(&changed, None).unwrap()
        };
        let refused = "other commands refuse this synthetic set";
        check(&change(4.0, -2.0), &["safetensors file with 2 tensors"], &[refused, "import it with --normalized"]);
        let of_255 = [refused, "from 0 to 255, import it with --of-255"];
        check(&change(255.0, 0.0), &["images        f32 [20, 1, 8, 8], 0 to 255"], &of_255);
        check(&change(1.1, 0.0), &[], &[refused, "values up to 1.100, but c2r stores pixels in [0, 1]; --clamp"]);
        check(&change(f64::NAN, 0.0), &[], &[refused, "not finite", "images repeat"]);
    }

    fn example_subject() -> Subject {
        Subject {
            dataset: "digits".into(),
            method: "c2r".into(),
            profile: "plus".into(),
            images_per_class: Some(10),
            distill_seed: Some(1),
            train_seed: 2,
            protocol: "pgd-at".into(),
            selection: Default::default(),
            model: "ConvNet-D3-W8-IN".into(),
            n_images: 100,
            extra_storage: String::new(),
            data_sha256: String::new(),
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn attack_reports() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attack.json");
        let threat = c2r_base::ThreatModel::untargeted(c2r_base::Norm::Linf, c2r_base::Epsilon::of_255(2.0));
        let mut record = AttackRecord {
            schema_version: AttackRecord::SCHEMA_VERSION,
            subject: example_subject(),
            threat,
            n: 8,
            clean_accuracy: 0.5,
            clean_seconds: 1.0,
            attacks: vec![c2r_eval::AttackScore {
                attack: "pgd".into(),
                norm: threat.norm,
                epsilon: threat.epsilon,
                robust_accuracy: 0.375,
                survivors: 3,
                n: 8,
                forward: 1,
                backward: 1,
                seconds: 1.0,
                flags: vec!["zero-gradient".into()],
                config: Value::Null,
                survived: None,
                margins: None,
            }],
            samples: None,
            attack_seed: 0,
            model_sha256: None,
            test_sha256: String::new(),
            subset: None,
            held_out: false,
            flag_notes: vec!["pgd: 3 images have a zero gradient".into()],
            notes: vec![],
            versions: BTreeMap::new(),
            precision: BTreeMap::new(),
            argv: vec![],
            evaluation: None,
        };
        record.write(&path).unwrap();
        let lines = [
            "attack report",
            "linf 2/255, 8 test images",
            "clean         50.00 %",
            "37.50 % [zero-gradient]",
            "pgd-at on c2r",
        ];
        check(&report(&path, None).unwrap(), &lines, &["3 images have a zero gradient"]);
        (record.clean_accuracy, record.attacks, record.flag_notes) = (0.125, vec![], vec![]);
        record.write(&path).unwrap();
        check(&report(&path, None).unwrap(), &["12.50 %"], &["hardly better than guessing"]);
    }

    #[test]
    fn tables_and_reports_with_every_image() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../c2r-eval/tests/it/golden/table.json");
        let table: Table = read_json(&golden).unwrap();
        let (section, row) = (&table.sections[0], &table.sections[0].rows[0]);
        let clean = row.cells.iter().find(|cell| cell.column == CLEAN).unwrap();
        let clean = format!("{} runs: clean {:.2}", row.runs.len(), clean.summary.mean);
        check(&report(&golden, None).unwrap(), &[": table `", &section.model, &row.label, &clean], &[]);

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let threat = c2r_base::ThreatModel::untargeted(c2r_base::Norm::Linf, c2r_base::Epsilon::of_255(2.0));
        let sample = |outcome| c2r_attacks::SampleOutcome {
            margin: if outcome == c2r_attacks::Outcome::Survived { 1.0 } else { -1.0 },
            outcome,
            prediction: 0,
            distance: 0.0,
            queries: 1,
            stages: 1,
        };
        let by = "fgsm".to_owned();
        let outcomes =
            [c2r_attacks::Outcome::Survived, c2r_attacks::Outcome::Broken { by }, c2r_attacks::Outcome::CleanError];
        let whole = AttackReport {
            schema_version: AttackReport::SCHEMA_VERSION,
            threat,
            mode: c2r_attacks::Mode::Suite,
            seed: Seed::new(3),
            batch_size: 8,
            classes: 2,
            labels: vec![0, 0, 0, 0],
            images_fingerprint: String::new(),
            targets: None,
            clean_predictions: vec![0, 0, 1, 1],
            clean_margins: vec![1.0, 1.0, -1.0, -1.0],
            clean_counts: Default::default(),
            clean_seconds: 0.0,
            check_seconds: 0.0,
            attacks: vec![c2r_attacks::AttackEntry {
                name: "fgsm".into(),
                config: None,
                stages: vec![],
                samples: [0, 1, 2, 2].map(|at: usize| sample(outcomes[at].clone())).to_vec(),
            }],
            flags: vec![],
            versions: BTreeMap::new(),
        };
        let evaluation = c2r_eval::Evaluation {
            model: "m.pt".into(),
            model_sha256: "ab".into(),
            tuned_operators: 0,
            as_is: false,
            inputs: "x.safetensors".into(),
            report: whole,
        };
        let context = c2r_eval::RecordContext {
            subject: None,
            model_sha256: None,
            test_sha256: "cd".into(),
            subset: None,
            held_out: false,
            notes: vec![],
            precision: BTreeMap::new(),
            argv: vec![],
        };
        let mut record = AttackRecord::from_evaluation(evaluation, context).unwrap();
        record.write(&path).unwrap();
        let lines = [
            "attack report with details of every image",
            "linf 2/255, 4 images",
            "clean         50.00 %",
            "fgsm          25.00 %",
            "seed          3",
            "model         m.pt",
        ];
        check(&report(&path, None).unwrap(), &lines, &[]);
        record.subject = Some(example_subject());
        record.write(&path).unwrap();
        let with_subject = ["pgd-at on c2r", "all attacks   25.00 %"];
        check(&report(&path, None).unwrap(), &[&lines[..], &with_subject].concat(), &[]);

        let mut damaged = serde_json::to_value(&record).unwrap();
        damaged["n"] = json!(5);
        write_json(&path, &damaged).unwrap();
        let error = report(&path, None).err().unwrap();
        assert!(error.to_string().contains("report.json") && exit::code_of(&error) == exit::DATA, "{error:#}");
    }

    #[test]
    fn torchscript_models() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.pt");
        for (side, line) in [(8, "classifies    digits"), (9, "classifies    none of digits, cifar10,")] {
            let weight = Tensor::ones([side * side, 10], (Kind::Float, Device::Cpu));
            let image = Tensor::zeros([2, 1, side, side], (Kind::Float, Device::Cpu));
            let mut forward = |inputs: &[Tensor]| vec![inputs[0].flatten(1, -1).matmul(&weight)];
            CModule::create_by_tracing("Net", "forward", &[image], &mut forward).unwrap().save(&path).unwrap();
            check(&report(&path, None).unwrap(), &["TorchScript model", line], &[]);
        }
    }

    #[test]
    fn checkpoints() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let input =
            ModelInput { channels: 3, height: 32, width: 32, n_classes: 10, mean: vec![0.5; 3], std: vec![0.25; 3] };
        let model = Model::new(&"ConvNet-D3-W8-IN".parse().unwrap(), &input, Seed::new(0), Device::Cpu).unwrap();
        let header = BTreeMap::from([("subject".to_owned(), serde_json::to_string(&example_subject()).unwrap())]);
        checkpoint::save(&path, &model, header).unwrap();
        let lines = [
            "checkpoint of ConvNet-D3-W8-IN",
            "ConvNet-D3-W8-IN, pgd-at on c2r (plus), digits, 10 images per class, seed 2",
            "note          a note",
        ];
        check(&report(&path, None).unwrap(), &lines, &[]);
        assert!(report(&path, Some(&folder.path().join("x.png"))).is_err());
        let mut file = TensorFile::read(&path).unwrap();
        let (name, tensor) = file.tensors.pop_first().unwrap();
        file.tensors.insert(name.clone(), tensor * f64::INFINITY);
        file.write(&path).unwrap();
        check(&report(&path, None).unwrap(), &[], &[&format!("{name} has values that are not finite")]);
        file.tensors.remove(&name);
        file.write(&path).unwrap();
        check(&report(&path, None).unwrap(), &["safetensors file"], &[&format!("`{name}` is missing")]);
    }

    #[test]
    fn datasets_and_folders() {
        let digits = report(Path::new("digits"), None).unwrap();
        let lines = [
            "UCI optical digits: dataset `digits`",
            "1,438 images, 139 to 146 per class",
            "359 images",
            "CC BY 4.0",
            "provenance    part of c2r",
        ];
        check(&digits, &lines, &[]);
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in [("train/a/1.png", 10), ("train/a/2.png", 10), ("train/b/1.png", 30), ("test/b/1.png", 30)]
        {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::from_pixel(4, 4, image::Rgb([value; 3])).save(path).unwrap();
        }
        let doubts = [
            "train: 1 of 3 images repeat",
            "test: class 0 (`a`) is empty",
            "test: 1 of 1 images are also in the training split",
        ];
        let lines = ["train         3 images, 1 to 2 per class", "provenance    unknown"];
        check(&report(folder.path(), None).unwrap(), &lines, &doubts);
        let grid = folder.path().join("grid.png");
        report(folder.path(), Some(&grid)).unwrap();
        assert_eq!(image::image_dimensions(grid).unwrap(), (2 * 66 + 2, 2 * 66 + 2));
        fs::create_dir(folder.path().join("cifar-10-batches-bin")).unwrap();
        let error = report(folder.path(), None).err().unwrap();
        assert!(format!("{error:#}").contains("data_batch_1.bin") && exit::code_of(&error) == exit::DATA, "{error:#}");
        fs::create_dir(folder.path().join("cifar-100-binary")).unwrap();
        check(&report(folder.path(), None).unwrap(), &["data folder", "c2r inspect cifar100 --data"], &[]);
    }

    #[test]
    fn run_folders_json_and_unknown_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("run.json"), r#"{"stage": "distill", "status": "running", "config": {"a": 1}}"#)
            .unwrap();
        check(&report(folder.path(), None).unwrap(), &["run of c2r distill, running", r#"{"a":1}"#], &[]);
        synthetic_set().save(&folder.path().join("synthetic.safetensors")).unwrap();
        check(&report(folder.path(), None).unwrap(), &["run of c2r distill", "synthetic set of digits"], &[]);
        let other = folder.path().join("other");
        fs::write(&other, r#"{"a": 1, "b": 2}"#).unwrap();
        check(&report(&other, None).unwrap(), &["JSON that c2r does not know", "a, b"], &[]);
        for bytes in [&b"text"[..], b"", b"PK broken", b"{", b"\x40\0\0\0\0\0\0\0{ broken"] {
            fs::write(&other, bytes).unwrap();
            let message = format!("{:#}", report(&other, None).err().unwrap());
            assert!(message.contains("other"), "{message}");
            assert_eq!(exit::code_of(&report(&other, None).err().unwrap()), exit::DATA, "{message}");
        }
        let error = report(Path::new("no-such-thing"), None).err().unwrap();
        assert!(error.to_string().contains("cifar10") && exit::code_of(&error) == exit::USAGE);
    }
}
