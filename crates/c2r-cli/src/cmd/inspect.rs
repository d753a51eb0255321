use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use c2r_base::{
    Subject,
    artifact::{self, TensorFile},
};
use c2r_data::{Dataset, Split, SyntheticSet};
use c2r_eval::AttackRecord;
use c2r_models::{TorchScript, checkpoint};
use serde_json::Value;
use tch::{CModule, Device, Kind, Tensor};

use crate::{
    exit::{self, OrExit},
    ui::Ui,
};

/// Images per class in the picture of a dataset.
const GRID_COLUMNS: usize = 10;
/// Longest text of a header or configuration that is printed whole, characters.
const LONGEST_TEXT: usize = 300;

/// Say what a file, a folder or a dataset is, and what looks wrong with it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  c2r inspect runs/first/synthetic.safetensors --grid first.png
  c2r inspect cifar10 --data DIR

It knows synthetic sets, checkpoints and other safetensors files, TorchScript models, attack reports, run
folders, folders of images and dataset names. Lines that start with `looks wrong` are guesses.")]
pub(crate) struct Args {
    /// A file, a folder, or a dataset: digits, cifar10, ..., folder:PATH
    #[arg(value_name = "FILE|DIR|DATASET")]
    what: String,

    /// Folder that holds the downloaded datasets
    #[arg(long, value_name = "DIR", env = "C2R_DATA")]
    data: Option<PathBuf>,

    /// Write a picture of the images, one row per class
    #[arg(long, value_name = "PNG")]
    grid: Option<PathBuf>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let report = inspect(&args)?;
    report.lines.iter().for_each(|line| ui.out(line));
    report.doubts.iter().for_each(|doubt| ui.out(format!("looks wrong: {doubt}")));
    if let Some(grid) = args.grid {
        ui.note(format!("wrote {}", grid.display()));
    }
    Ok(())
}

fn inspect(args: &Args) -> anyhow::Result<Report> {
    let path = Path::new(&args.what);
    let known = c2r_data::registry().iter().any(|spec| spec.name == args.what);
    let grid = args.grid.as_deref();
    let mut report = Report::default();
    let drawn = if args.what.starts_with("folder:") || (known && !path.exists()) {
        dataset(&mut report, &args.what, args.data.as_deref(), grid)?
    } else if path.is_dir() {
        folder(&mut report, path, grid)?
    } else if path.is_file() {
        file(&mut report, path, grid)?
    } else {
        let names: Vec<&str> = c2r_data::registry().iter().map(|spec| spec.name.as_str()).collect();
        let what = &args.what;
        return exit::fail(
            exit::USAGE,
            format!("`{what}` is no file, no folder and no dataset; datasets are {}, folder:PATH", names.join(", ")),
        );
    };
    if grid.is_some() && !drawn {
        return exit::fail(exit::USAGE, format!("--grid: {} holds no images to draw", args.what));
    }
    Ok(report)
}

/// What is printed, and what is doubtful.
#[derive(Default)]
struct Report {
    lines: Vec<String>,
    doubts: Vec<String>,
}

impl Report {
    fn title(&mut self, name: impl std::fmt::Display, kind: impl std::fmt::Display) {
        self.lines.push(format!("{name}: {kind}"));
    }

    /// One indented line, cut off where it is long; nothing if there is nothing to say.
    fn line(&mut self, name: &str, text: impl AsRef<str>) {
        let text = text.as_ref();
        if text.chars().count() > LONGEST_TEXT {
            let start: String = text.chars().take(LONGEST_TEXT).collect();
            self.lines.push(format!("  {name:<13} {start}... ({} bytes)", text.len()));
        } else if !text.is_empty() {
            self.lines.push(format!("  {name:<13} {text}"));
        }
    }

    fn doubt(&mut self, text: impl Into<String>) {
        self.doubts.push(text.into());
    }
}

/// Reads the dataset as every other command does, so what it refuses is refused here with the same words.
fn dataset(report: &mut Report, name: &str, data: Option<&Path>, grid: Option<&Path>) -> anyhow::Result<bool> {
    let Dataset { spec, train, test, notes } = c2r_data::load(name, data).or_exit(exit::DATA)?;
    report.title(&spec.title, format!("dataset `{}`", spec.name));
    report.line("images", format!("u8 {:?} (channels, height, width)", spec.shape()));
    report.line("classes", format!("{}: {}", spec.classes.len(), spec.classes.join(", ")));
    let mut seen = HashSet::new();
    for (name, split) in [("train", &train), ("test", &test)] {
        let sizes: Vec<usize> = (0..split.n_classes()).map(|class| split.class_positions(class).len()).collect();
        report.line(name, format!("{} images, {}, sha256 {}", split.len(), range_of_counts(&sizes), split.sha256()));
        if let Some(class) = sizes.iter().position(|&n| n == 0) {
            report.doubt(format!("{name}: class {class} (`{}`) has no image", spec.classes[class]));
        }
        let length = split.shape().iter().product::<i64>() as usize;
        let mut own = HashSet::new();
        let (mut repeated, mut shared) = (0, 0);
        for image in split.pixels().chunks_exact(length) {
            repeated += usize::from(!own.insert(image));
            shared += usize::from(seen.contains(image));
        }
        if repeated > 0 {
            report.doubt(format!("{name}: {repeated} images repeat another one of the split"));
        }
        if shared > 0 {
            report.doubt(format!("{name}: {shared} images are in the training split too"));
        }
        seen.extend(own);
    }
    report.line("mean, std", format!("{:?}, {:?} (for the model)", spec.mean, spec.std));
    report.line("tables use", format!("{} at linf {}", spec.model, spec.epsilon));
    report.line("licence", &spec.licence);
    notes.iter().for_each(|note| report.line("note", note));
    if let Some(grid) = grid {
        draw(&train, grid)?;
    }
    Ok(true)
}

fn draw(split: &Split, grid: &Path) -> anyhow::Result<()> {
    let chosen = split.subset_per_class(GRID_COLUMNS);
    let (images, _) = chosen.batch(&(0..chosen.len()).collect::<Vec<_>>(), Device::Cpu);
    let rows: Vec<Vec<usize>> = (0..chosen.n_classes()).map(|class| chosen.class_positions(class).to_vec()).collect();
    Ok(c2r_data::write_grid(grid, &images, &rows)?)
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
    let holds = |folder: &str| path.ends_with(folder) || path.join(folder).is_dir();
    let found: Vec<_> =
        c2r_data::registry().iter().filter(|spec| spec.folders.iter().any(|folder| holds(folder))).collect();
    if let [only] = found[..] {
        return dataset(report, &only.name, Some(path), grid);
    }
    if !found.is_empty() {
        report.title(path.display(), "data folder");
        for spec in found {
            report.line(&spec.name, format!("c2r inspect {} --data {}", spec.name, path.display()));
        }
        return Ok(false);
    }
    if path.join("train").is_dir() {
        return dataset(report, &format!("folder:{}", path.display()), None, grid);
    }
    exit::fail(
        exit::USAGE,
        format!(
            "{} is neither a run folder (run.json), nor a data folder (cifar-10-batches-bin/ and so on), nor a folder of images (train/CLASS/*.png)",
            path.display()
        ),
    )
}

fn file(report: &mut Report, path: &Path, grid: Option<&Path>) -> anyhow::Result<bool> {
    let mut start = [0u8; 16];
    let n = {
        use std::io::Read;
        let mut file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        file.read(&mut start).with_context(|| format!("cannot read {}", path.display()))?
    };
    let first_text = start[..n].iter().find(|byte| !byte.is_ascii_whitespace());
    if start.starts_with(b"PK") {
        torchscript(report, path)?;
        Ok(false)
    } else if first_text == Some(&b'{') {
        json(report, path)?;
        Ok(false)
    } else if start.get(8) == Some(&b'{') {
        let file = TensorFile::read(path).or_exit(exit::DATA)?;
        safetensors(report, path, &file, grid)
    } else {
        exit::fail(
            exit::USAGE,
            format!(
                "{} is neither safetensors, nor TorchScript, nor JSON; it starts with the bytes {:02x?}",
                path.display(),
                &start[..n.min(8)]
            ),
        )
    }
}

fn safetensors(report: &mut Report, path: &Path, file: &TensorFile, grid: Option<&Path>) -> anyhow::Result<bool> {
    if SyntheticSet::is_header(&file.header) {
        match SyntheticSet::load(path) {
            Ok(set) => {
                synthetic(report, path, &set);
                if let Some(grid) = grid {
                    set.grid_png(grid)?;
                }
                return Ok(true);
            }
            Err(error) => report.doubt(format!("{error}: other commands refuse this synthetic set")),
        }
    } else if file.header.get("format").is_some_and(|format| format == "c2r-model") {
        match checkpoint::load(path, Device::Cpu) {
            Ok((model, header)) => {
                report.title(path.display(), format!("checkpoint of {}", model.spec()));
                report.line("parameters", format!("{} in {} tensors", model.n_parameters(), file.tensors.len()));
                report.line("input", serde_json::to_string(model.input())?);
                texts(report, &header);
                for (name, tensor) in &file.tensors {
                    doubt_values(report, name, tensor);
                }
                return Ok(false);
            }
            Err(error) => {
                let reasons: Vec<String> = anyhow::Error::from(error).chain().map(ToString::to_string).collect();
                report.doubt(format!("{}: other commands refuse this checkpoint", reasons.join(": ")));
            }
        }
    }
    report.title(path.display(), format!("safetensors file with {} tensors", file.tensors.len()));
    texts(report, &file.header);
    for (name, tensor) in &file.tensors {
        report.line(name, describe(tensor));
        doubt_values(report, name, tensor);
        if tensor.dim() == 4 && matches!(tensor.size()[1], 1 | 3) && name.contains("image") {
            doubt_images(report, name, tensor);
        }
    }
    Ok(false)
}

fn synthetic(report: &mut Report, path: &Path, set: &SyntheticSet) {
    let header = &set.header;
    report.title(path.display(), format!("synthetic set of {}", header.dataset));
    report.line("made by", format!("{}, seed {}, {} iterations", header.method, header.seed, header.iterations));
    report.line("images", describe(&set.images));
    report.line(
        "labels",
        format!("{}, {} per class of {}", describe(&set.labels), header.images_per_class, header.classes),
    );
    let tiles = set.formation * set.formation * set.labels.size()[0];
    if set.formation > 1 {
        report.line("formation", format!("{0} x {0} mosaics: {tiles} training images", set.formation));
    }
    if let Some(soft) = &set.soft_labels {
        let confidence = soft.amax([1i64].as_slice(), false).mean(Kind::Double).double_value(&[]);
        report.line("soft labels", format!("{}, mean largest probability {confidence:.3}", describe(soft)));
    }
    report.line("extra storage", &header.extra_storage);
    report.line("mean, std", format!("{:?}, {:?} (for the model)", header.mean, header.std));
    report.line("data sha256", &header.data_sha256);
    let versions: Vec<String> = header.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    report.line("versions", versions.join(", "));
    report.line("config", header.config.to_string());
    doubt_images(report, "images", &set.images);
    match c2r_data::spec(&header.dataset) {
        Ok(spec) if spec.shape() != set.images.size()[1..] => {
            report.doubt(format!(
                "{} images are {:?}, these are {:?}",
                spec.name,
                spec.shape(),
                &set.images.size()[1..]
            ));
        }
        Ok(spec) if (&spec.mean, &spec.std) != (&header.mean, &header.std) => {
            report.doubt(format!("mean and std are not those of {}: {:?}, {:?}", spec.name, spec.mean, spec.std));
        }
        _ => {}
    }
}

fn torchscript(report: &mut Report, path: &Path) -> anyhow::Result<()> {
    let model = TorchScript::load(path, Device::Cpu).or_exit(exit::DATA)?;
    let module = CModule::load(path).with_context(|| format!("cannot load {}", path.display()))?;
    let parameters = module.named_parameters()?;
    let n: usize = parameters.iter().map(|(_, parameter)| parameter.numel()).sum();
    report.title(path.display(), "TorchScript model");
    report.line("parameters", format!("{n} in {} tensors", parameters.len()));
    let names: Vec<&str> = ["digits", "cifar10", "cifar100", "tiny-imagenet"]
        .into_iter()
        .filter(|name| {
            let spec = c2r_data::spec(name).expect("the registry has it");
            model.check(spec.shape(), spec.classes.len() as i64).is_ok()
        })
        .collect();
    report.line("classifies", names.join(", "));
    if names.is_empty() {
        report.doubt(
            "it is no classifier for digits, cifar10, cifar100 or tiny-imagenet (logits f32 [N, K] that differentiate)",
        );
    }
    parameters.iter().for_each(|(name, parameter)| doubt_values(report, name, parameter));
    Ok(())
}

fn json(report: &mut Report, path: &Path) -> anyhow::Result<()> {
    let value: Value = artifact::read_json(path).or_exit(exit::DATA)?;
    if value.get("stage").is_some() && value.get("config").is_some() {
        return run_record(report, path);
    }
    if value.get("subject").is_none() || value.get("attacks").is_none() {
        let keys: Vec<&str> =
            value.as_object().into_iter().flat_map(|object| object.keys().map(String::as_str)).collect();
        report.title(path.display(), "JSON that c2r does not know");
        report.line("keys", keys.join(", "));
        return Ok(());
    }
    let record = AttackRecord::read(path).or_exit(exit::DATA)?;
    report.title(path.display(), "attack report");
    subject(report, &record.subject);
    report.line("threat", format!("{} {}, {} test images", record.threat.norm, record.threat.epsilon, record.n));
    report.line("clean", percent(record.clean_accuracy));
    for entry in &record.attacks {
        let flags = if entry.flags.is_empty() { String::new() } else { format!(" [{}]", entry.flags.join(", ")) };
        report.line(&entry.attack, format!("{}{flags}", percent(entry.robust_accuracy)));
    }
    record.notes.iter().for_each(|note| report.line("note", note));
    record.flag_notes.into_iter().for_each(|note| report.doubt(note));
    let classes = c2r_data::spec(&record.subject.dataset).map_or(0, |spec| spec.classes.len());
    if classes > 0 && record.clean_accuracy * (classes as f64) < 1.5 {
        report.doubt("even without an attack the network is hardly better than guessing");
    }
    Ok(())
}

fn run_record(report: &mut Report, path: &Path) -> anyhow::Result<()> {
    let value: Value = artifact::read_json(path).or_exit(exit::DATA)?;
    let text = |name: &str| {
        value.get(name).map(|value| value.as_str().map_or(value.to_string(), str::to_owned)).unwrap_or_default()
    };
    report.title(path.display(), format!("run of c2r {}, {}", text("stage"), text("status")));
    for name in ["seconds", "device", "threads", "versions", "config", "summary"] {
        report.line(name, text(name));
    }
    Ok(())
}

fn subject(report: &mut Report, subject: &Subject) {
    let images = subject.images_per_class.map_or("all images".to_owned(), |n| format!("{n} images per class"));
    let Subject { dataset, method, profile, protocol, model, train_seed, .. } = subject;
    let profile = if profile.is_empty() { String::new() } else { format!(" ({profile})") };
    report.line("subject", format!("{model}, {protocol} on {method}{profile}, {dataset}, {images}, seed {train_seed}"));
    report.line("extra storage", &subject.extra_storage);
    subject.notes.iter().for_each(|note| report.line("note", note));
}

/// The texts of a header; a subject in words.
fn texts(report: &mut Report, header: &BTreeMap<String, String>) {
    for (name, text) in header {
        match serde_json::from_str::<Subject>(text) {
            Ok(parsed) if name == "subject" => subject(report, &parsed),
            _ => report.line(name, text),
        }
    }
}

fn percent(part: f64) -> String {
    format!("{:.2} %", 100.0 * part)
}

fn range_of_counts(counts: &[usize]) -> String {
    match (counts.iter().min(), counts.iter().max()) {
        (Some(low), Some(high)) if low == high => format!("{low} per class"),
        (Some(low), Some(high)) => format!("{low} to {high} per class"),
        _ => "no classes".to_owned(),
    }
}

/// Dtype, shape and, where there are values, their range.
fn describe(tensor: &Tensor) -> String {
    let kind = match tensor.kind() {
        Kind::Float => "f32".to_owned(),
        Kind::Double => "f64".to_owned(),
        Kind::Int64 => "i64".to_owned(),
        Kind::Uint8 => "u8".to_owned(),
        other => format!("{other:?}"),
    };
    if tensor.numel() == 0 {
        return format!("{kind} {:?}, no values", tensor.size());
    }
    let (low, high) = (tensor.min().double_value(&[]), tensor.max().double_value(&[]));
    format!("{kind} {:?}, {low} to {high}", tensor.size())
}

fn doubt_values(report: &mut Report, name: &str, tensor: &Tensor) {
    if tensor.is_floating_point() && tensor.isfinite().all().int64_value(&[]) == 0 {
        report.doubt(format!("{name} holds values that are not finite"));
    }
}

/// What goes wrong with stored images: normalized or 0..255 values, flat images, repeated images.
fn doubt_images(report: &mut Report, name: &str, images: &Tensor) {
    if images.numel() == 0 {
        return;
    }
    let (low, high) = (images.min().double_value(&[]), images.max().double_value(&[]));
    if images.kind() != Kind::Uint8 {
        if low < 0.0 {
            report.doubt(format!("{name}: values down to {low:.3}: normalized? c2r stores pixels in [0, 1]"));
        } else if high > 2.0 {
            report.doubt(format!("{name}: values up to {high:.1}: 0..255? c2r stores pixels in [0, 1]"));
        } else if high > 1.0 {
            report.doubt(format!("{name}: values up to {high:.3}, outside [0, 1]"));
        }
    }
    let flat = images.flatten(1, -1);
    let spread = flat.amax([1i64].as_slice(), false) - flat.amin([1i64].as_slice(), false);
    let constant = spread.eq(0.0).sum(Kind::Int64).int64_value(&[]);
    if constant > 0 {
        report.doubt(format!("{name}: {constant} images have one value everywhere"));
    }
    let (n, length) = (flat.size()[0] as usize, flat.size()[1] as usize);
    let values = flat.to_kind(Kind::Double).contiguous();
    let mut bytes = vec![0u8; n * length * 8];
    values.copy_data_u8(&mut bytes, n * length);
    let mut first: HashMap<&[u8], usize> = HashMap::new();
    let repeated =
        bytes.chunks_exact(length * 8).enumerate().filter(|(at, image)| *first.entry(image).or_insert(*at) != *at);
    let repeated = repeated.count();
    if repeated > 0 {
        report.doubt(format!("{name}: {repeated} of {n} images repeat another one exactly"));
    }
}

#[cfg(test)]
mod tests {
    use c2r_base::Seed;
    use c2r_data::{SCHEMA_VERSION, SyntheticHeader};
    use c2r_models::{Model, ModelInput};
    use serde_json::json;

    use super::*;

    fn report(what: &Path, grid: Option<&Path>) -> anyhow::Result<Report> {
        inspect(&Args { what: what.display().to_string(), data: None, grid: grid.map(Path::to_owned) })
    }

    /// Every expected text is on a line, and the doubts are exactly these.
    fn check(report: &Report, lines: &[&str], doubts: &[&str]) {
        let text = report.lines.join("\n");
        lines.iter().for_each(|line| assert!(text.contains(line), "{text}\nlacks {line}"));
        assert_eq!(report.doubts.len(), doubts.len(), "{:?}", report.doubts);
        doubts
            .iter()
            .for_each(|doubt| assert!(report.doubts.iter().any(|found| found.contains(doubt)), "{:?}", report.doubts));
    }

    fn synthetic_set() -> SyntheticSet {
        let spec = c2r_data::spec("digits").unwrap();
        SyntheticSet {
            images: Tensor::linspace(0.0, 1.0, 20 * 64, (Kind::Float, Device::Cpu)).view([20, 1, 8, 8]),
            labels: Tensor::arange(20, (Kind::Int64, Device::Cpu)).fmod(10),
            soft_labels: None,
            formation: 2,
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
                mean: spec.mean,
                std: spec.std,
                extra_storage: String::new(),
            },
        }
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
        check(&report(&path, None).unwrap(), &["80 training images", "xxx... ("], &[]);
        assert!(grid.is_file());

        set.images.get(3).copy_(&set.images.get(4));
        let _ = set.images.get(5).fill_(0.5);
        set.header.mean = vec![0.5];
        set.save(&path).unwrap();
        check(
            &report(&path, None).unwrap(),
            &[],
            &["1 of 20 images repeat", "1 images have one value", "mean and std"],
        );
        set.header.dataset = "cifar10".into();
        set.save(&path).unwrap();
        check(&report(&path, None).unwrap(), &[], &["1 of 20", "1 images", "cifar10 images are [3, 32, 32]"]);
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
        check(&change(4.0, -2.0), &["safetensors file with 2 tensors"], &[refused, "normalized?"]);
        check(&change(255.0, 0.0), &["images        f32 [20, 1, 8, 8], 0 to 255"], &[refused, "0..255?"]);
        check(&change(1.1, 0.0), &[], &[refused, "values up to 1.100, outside [0, 1]"]);
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
            attacks: vec![c2r_eval::AttackEntry {
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
            test_sha256: String::new(),
            flag_notes: vec!["pgd: 3 images have a zero gradient".into()],
            notes: vec![],
            versions: BTreeMap::new(),
            argv: vec![],
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
        check(&report(&path, None).unwrap(), &[], &[&format!("{name} holds values that are not finite")]);
        file.tensors.remove(&name);
        file.write(&path).unwrap();
        check(&report(&path, None).unwrap(), &["safetensors file"], &[&format!("`{name}` is missing")]);
    }

    #[test]
    fn datasets_and_folders() {
        let digits = report(Path::new("digits"), None).unwrap();
        let lines =
            ["UCI optical digits: dataset `digits`", "1438 images, 139 to 146 per class", "359 images", "CC BY 4.0"];
        check(&digits, &lines, &[]);
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in [("train/a/1.png", 10), ("train/a/2.png", 10), ("train/b/1.png", 30), ("test/b/1.png", 30)]
        {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::from_pixel(4, 4, image::Rgb([value; 3])).save(path).unwrap();
        }
        let doubts =
            ["train: 1 images repeat", "test: class 0 (`a`) has no image", "test: 1 images are in the training split"];
        check(&report(folder.path(), None).unwrap(), &["train         3 images, 1 to 2 per class"], &doubts);
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
        }
        let error = report(Path::new("no-such-thing"), None).err().unwrap();
        assert!(error.to_string().contains("cifar10") && exit::code_of(&error) == exit::USAGE);
    }
}
