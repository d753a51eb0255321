//! `cargo xtask download`: brings datasets to this machine. The work is done by `c2r-fetch`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use c2r_archive::WORKSHOP;
use c2r_experiment::{DataFile, DatasetEntry};
use c2r_fetch::{Archive, Event, Fault, FetchError, Patience, Record, Source, Watch, bytes_below, digests_of_file};
use c2r_files::FileError;
use c2r_run::{
    exit::{self, OrExit},
    signals, terminal as ui,
};
use c2r_setup::cache;

use crate::checkout::Checkout;

/// Download datasets, verify them and unpack them
///
/// An interrupted download stays as NAME.part, and the same command resumes it. The archive is removed once it is unpacked.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = include_str!("help/download.txt"))]
pub(crate) struct Args {
    /// Datasets: cifar10, cifar100, tiny-imagenet, imagenette, imagewoof (digits is built in)
    ///
    /// The other subsets of ImageNet need ImageNet itself, which you get from its publisher: docs/datasets.md.
    #[arg(value_name = "NAME", required_unless_present = "list")]
    names: Vec<String>,

    /// Folder for the datasets
    #[arg(long, value_name = "DIR", env = "C2R_DATA")]
    data: Option<PathBuf>,

    /// Get the archives from here instead of their publishers: http(s)://HOST/PATH, file:///FOLDER or a folder
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,

    /// Archive to take if a dataset has several (imagenette) [default: the first in data/datasets.toml]
    #[arg(long, value_name = "FILE")]
    archive: Option<String>,

    /// Download nothing; check that the files have not changed since they were unpacked
    #[arg(long, conflicts_with_all = ["list", "mirror", "archive", "accept_sha256"])]
    verify: bool,

    /// List the datasets with their size, licence and place on this machine
    #[arg(long)]
    list: bool,

    /// Accept an archive with this SHA-256 (64 hexadecimal digits) instead of the one in data/datasets.toml
    #[arg(long, value_name = "HEX", value_parser = sha256_text)]
    accept_sha256: Option<String>,

    /// Give up a connection after this many seconds without data
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,

    /// Give up a connection if its mean speed over --timeout seconds is below this many bytes per second
    #[arg(long, value_name = "BYTES", default_value_t = 1000)]
    min_speed: u64,

    /// Give up after this many failed attempts in a row
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    tries: u32,
}

/// The first wait between two tries.
const PAUSE: Duration = Duration::from_secs(1);
/// Longer than this no server is waited for.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// More differences than this are counted, not shown.
const SHOWN: usize = 20;

fn sha256_text(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("a SHA-256 has 64 hexadecimal digits".into())
}

/// The command.
pub(crate) fn run(args: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    let entries = DatasetEntry::read_all(&checkout.root().join(DatasetEntry::REGISTRY))?;
    let chosen: Vec<&DatasetEntry> = if args.names.is_empty() {
        entries.iter().collect()
    } else {
        args.names.iter().map(|name| find(&entries, name)).collect::<anyhow::Result<_>>()?
    };
    if args.list {
        return chosen.into_iter().try_for_each(|dataset| list(dataset, args.data.as_deref()));
    }
    if chosen.len() > 1 && (args.accept_sha256.is_some() || args.archive.is_some()) {
        return Err(exit::usage("--accept-sha256 and --archive need exactly one dataset; name one"));
    }
    let data = || {
        let data = args.data.as_deref();
        data.ok_or_else(|| exit::usage("name a folder for the datasets with `--data DIR` or C2R_DATA"))
    };
    for dataset in chosen {
        if dataset.embedded.is_some() {
            check_embedded(dataset, checkout)?;
        } else if args.verify {
            verify(dataset, data()?)?;
        } else {
            download(dataset, args, data()?)?;
        }
    }
    Ok(())
}

fn find<'a>(entries: &'a [DatasetEntry], name: &str) -> anyhow::Result<&'a DatasetEntry> {
    entries.iter().find(|dataset| dataset.name == name).ok_or_else(|| {
        let known: Vec<&str> = entries.iter().map(|dataset| dataset.name.as_str()).collect();
        exit::usage(format!("`{name}` is not a dataset; the datasets are {}", known.join(", ")))
    })
}

/// Calls `work` with a watch that shows its progress.
fn watched<T>(
    label: &str,
    total: Option<u64>,
    work: impl FnOnce(&mut Watch<'_>) -> Result<T, FetchError>,
) -> Result<T, FetchError> {
    let mut meter = ui::Progress::bytes(label, total);
    let on_event = &mut |event: Event<'_>| match event {
        Event::Progress(bytes) => meter.set(bytes, ""),
        Event::Resuming { bytes, part } => {
            ui::note(format!("resuming after {} in {}", size(bytes), part.display()));
        }
        Event::RemovingRejected(path) => {
            ui::note(format!("removing {}, which an earlier download rejected", path.display()));
        }
        Event::StartingOver => {
            ui::note("the file on the server has changed; downloading all of it again");
        }
        Event::Retrying { reason, attempt, tries, wait } => {
            ui::note(format!("{reason}; attempt {attempt} of {tries} follows in {}", ui::duration(wait)));
        }
        _ => {}
    };
    let result = work(&mut Watch { interrupted: &|| signals::requests() > 0, on_event });
    meter.finish();
    result
}

/// `34.5 MB`, or bytes where that would be 0.
fn size(bytes: u64) -> String {
    match bytes {
        0..100_000 => format!("{bytes} bytes"),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

fn check_embedded(dataset: &DatasetEntry, checkout: &Checkout) -> anyhow::Result<()> {
    let Some(embedded) = &dataset.embedded else { return Ok(()) };
    let (name, path, promised) = (&dataset.name, &embedded.path, &embedded.sha256);
    let found = watched(path, None, |watch| digests_of_file(&checkout.root().join(path), watch)).map_err(explain)?;
    if (found.bytes, &found.sha256) != (embedded.bytes, promised) {
        let found = found.sha256;
        let message = format!("{path} was changed: its SHA-256 is {found}, but data/datasets.toml has {promised}");
        return exit::fail(exit::DATA, message);
    }
    let size = size(found.bytes);
    ui::note(format!(
        "{name} is part of c2r ({path}, {size}, hash verified), so there is nothing to download. `c2r inspect {name}` describes it."
    ));
    Ok(())
}

fn choose<'a>(dataset: &'a DatasetEntry, wanted: Option<&str>) -> anyhow::Result<&'a DataFile> {
    let chosen = match wanted {
        Some(wanted) => dataset.files.iter().find(|file| file.name == wanted),
        None => dataset.files.first(),
    };
    chosen.ok_or_else(|| match wanted {
        Some(wanted) => {
            let names = dataset.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>().join(", ");
            exit::usage(format!("{} has no archive `{wanted}`; there are: {names}", dataset.name))
        }
        None => exit::usage(format!(
            "{} is not published as an archive: it is taken from your copy of ILSVRC-2012 ({}), in the folder {} of \
             the data folder; docs/datasets.md shows its layout",
            dataset.name,
            dataset.homepage,
            dataset.folders.join(" or ")
        )),
    })
}

fn download(dataset: &DatasetEntry, args: &Args, data: &Path) -> anyhow::Result<()> {
    let file = choose(dataset, args.archive.as_deref())?;
    let source = match &args.mirror {
        None => Source::Url(file.url.clone()),
        Some(mirror) => Source::on_mirror(mirror, &file.name).ok_or_else(|| {
            let problem = "neither http://, https://, file:///FOLDER nor a folder that exists";
            exit::usage(format!("--mirror {mirror}: {problem}"))
        })?,
    };
    c2r_files::create_folder(data).map_err(|error| explain(error.into()))?;
    let _lock = cache::lock(&data.join(".c2r-download.lock"), "another download into this folder is running")?;
    cache::remove_left(data, WORKSHOP, "a download")?;
    let archive = Archive { dataset, file, data };
    let (name, folder) = (&dataset.name, archive.folder());
    if c2r_files::is_empty_folder(&folder) {
        // Every command takes it for absent.
        let cannot = || format!("cannot replace the empty folder {}; remove it", folder.display());
        fs::remove_dir(&folder).with_context(cannot).or_exit(exit::USAGE)?;
    }
    if folder.exists() {
        let origin = match Record::read(&folder).map_err(explain)? {
            Some(record) => format!("from {}; --verify checks it", record.archive),
            None => "not downloaded by this command and left unchanged".into(),
        };
        ui::note(format!("{name}: {} exists already ({origin})", folder.display()));
        return Ok(());
    }
    let total = file.bytes.map(|bytes| format!(", {}", size(bytes))).unwrap_or_default();
    ui::note(format!("{}{total} from {source}", file.name));
    let patience = Patience {
        stall: Duration::from_secs(args.timeout),
        slowest: args.min_speed,
        window: Duration::from_secs(args.timeout),
        tries: args.tries,
        pause: PAUSE,
        longest_pause: LONGEST_PAUSE,
    };
    let fetched = watched(&file.name, file.bytes, |watch| {
        archive.fetch(&source, args.accept_sha256.as_deref(), &patience, watch)
    });
    let (path, found) = fetched.map_err(|error| match error {
        FetchError::Rejected { .. } => rejected(&error, &archive, args),
        other => explain(other),
    })?;
    let record =
        watched(&format!("unpacking {}", file.name), None, |watch| archive.unpack(&path, &source, &found, watch));
    let record = record.map_err(|error| match error {
        FetchError::Interrupted => {
            let message = format!("interrupted; {} is complete, and the same command unpacks it", path.display());
            exit::error(exit::INTERRUPTED, message)
        }
        other => explain(other),
    })?;
    if record.accepted_instead_of.is_some() {
        let (archive, hash) = (&record.archive, &record.sha256);
        ui::note(format!("{archive}: the SHA-256 {hash} was accepted by hand, and the folder records this"));
    }
    ui::note(format!(
        "{name}: {}, {} in {}\n  licence: {}\n  c2r inspect {name} --data {}",
        ui::counted(record.files as usize, "file"),
        size(record.unpacked_bytes),
        folder.display(),
        dataset.licence,
        data.display()
    ));
    Ok(())
}

/// An error with its exit code and what to do.
fn explain(error: FetchError) -> anyhow::Error {
    const ELSEWHERE: &str = "\n  download from another server with `--mirror URL`, or copy the file into a folder yourself \
                             and give `--mirror file:///FOLDER`";
    const LENGTH: &str = "\n  nothing was fetched, so its hash is not known. If you trust the file, and have its SHA-256 (64 \
                          digits) from a source that you trust, add\n    --accept-sha256 HEX\n  to the same command, \
                          which then accepts a file of any length";
    if let FetchError::Unfinished { part, bytes, of, cause } = error {
        let cause = explain(*cause);
        let of = of.map(|of| format!(" of {}", size(of))).unwrap_or_default();
        let kept = format!("{}{of} are kept in {}; the same command resumes there", size(bytes), part.display());
        return exit::error(exit::code_of(&cause), format!("{}\n  {kept}", exit::message(&cause)));
    }
    let code = match &error {
        FetchError::Interrupted => exit::INTERRUPTED,
        FetchError::DiskFull { .. } | FetchError::NoSpace { .. } => exit::USAGE,
        FetchError::File(FileError::Io { action, .. }) if *action != "read" => exit::UNEXPECTED,
        _ => exit::DATA,
    };
    let what_to_do = match &error {
        FetchError::Interrupted => "; run the same command again to resume".to_owned(),
        FetchError::Server { fault: Fault::Failing, .. } => {
            format!("; --timeout and --min-speed set how slow a server may be{ELSEWHERE}")
        }
        FetchError::Server { fault: Fault::Refusing, .. } => ELSEWHERE.to_owned(),
        FetchError::Length { .. } => LENGTH.to_owned(),
        _ => String::new(),
    };
    exit::error(code, exit::message(&error.into()) + &what_to_do)
}

/// What was expected, what came, and how to take it all the same.
fn rejected(error: &FetchError, archive: &Archive<'_>, args: &Args) -> anyhow::Error {
    let FetchError::Rejected { from, expected, found, kept, .. } = error else {
        return anyhow::Error::msg(error.to_string());
    };
    let (stays, otherwise) = match from {
        Source::File(_) => ("It stays where it is,", "nothing is unpacked"),
        Source::Url(_) => ("It is kept as", "it is fetched again"),
    };
    let mut lines = vec![error.to_string()];
    let mut compare = |what: &str, promised: Option<String>, found: &str| {
        if let Some(promised) = promised {
            lines.push(format!("  {what:<8} expected {promised}\n  {:<8} found    {found}", ""));
        }
    };
    compare("bytes", expected.bytes.map(|bytes| bytes.to_string()), &found.bytes.to_string());
    compare("MD5", expected.md5.clone(), &found.md5);
    compare("SHA-256", Some(expected.sha256.clone().unwrap_or_else(|| "(not known)".into())), &found.sha256);
    lines.extend(expected.length_difference(found).map(|difference| format!("It is {difference}.")));
    let mirror = args.mirror.as_ref().map(|mirror| format!(" --mirror {mirror}")).unwrap_or_default();
    lines.push(format!(
        "{stays} {}. If you have reason to trust it, accept it with\n  cargo xtask download {} --data {}{mirror} --archive {} \
         --accept-sha256 {}\nwhich records what was accepted; without that {otherwise}.",
        kept.display(),
        archive.dataset.name,
        archive.data.display(),
        archive.file.name,
        found.sha256
    ));
    exit::error(exit::DATA, lines.join("\n"))
}

/// The folders of a dataset that are there.
fn folders_here(dataset: &DatasetEntry, data: &Path) -> Vec<PathBuf> {
    let is_filled = |folder: &PathBuf| folder.is_dir() && !c2r_files::is_empty_folder(folder);
    dataset.folders.iter().map(|folder| data.join(folder)).filter(is_filled).collect()
}

fn verify(dataset: &DatasetEntry, data: &Path) -> anyhow::Result<()> {
    let mut verified = 0;
    for folder in folders_here(dataset, data) {
        let here = folder.display();
        let Some(record) = Record::read(&folder).map_err(explain)? else {
            ui::note(format!("{here}: not downloaded by this command, so it cannot be verified"));
            continue;
        };
        let problems = watched(&format!("reading {here}"), Some(record.unpacked_bytes), |watch| {
            record.differences(&folder, watch)
        });
        let problems = problems.map_err(explain)?;
        if !problems.is_empty() {
            let n = problems.len();
            let more = if n > SHOWN { format!("\n  and {} more", n - SHOWN) } else { String::new() };
            let shown = problems[..n.min(SHOWN)].join("\n  ");
            let remedy = "remove the folder and download the dataset again";
            let message = format!("{here}: {n} files differ from those that were unpacked\n  {shown}{more}\n{remedy}");
            return exit::fail(exit::DATA, message);
        }
        ui::note(format!("{here}: unchanged since it was unpacked from {}", record.origin()));
        verified += 1;
    }
    if verified == 0 {
        let (name, data) = (&dataset.name, data.display());
        return exit::fail(exit::DATA, format!("{name}: this command downloaded nothing into {data}"));
    }
    Ok(())
}

fn list(dataset: &DatasetEntry, data: Option<&Path>) -> anyhow::Result<()> {
    let images = match (dataset.n_train, dataset.n_test) {
        (Some(train), Some(test)) => format!("{} + {}, ", ui::count(train as f64), ui::counted(test, "image")),
        _ => String::new(),
    };
    let heading = format!("{}: {}, {images}{} classes", dataset.name, dataset.title, dataset.classes.len());
    let here = match (&dataset.embedded, data) {
        (Some(embedded), _) => vec![format!("part of c2r: {} ({})", embedded.path, size(embedded.bytes))],
        (None, None) => vec!["unknown; name the folder with --data DIR or C2R_DATA".into()],
        (None, Some(data)) => here(dataset, data)?,
    };
    let mut archives: Vec<String> = dataset
        .files
        .iter()
        .map(|file| format!("{} ({}): {}", file.name, file.bytes.map_or("size not known".into(), size), file.url))
        .collect();
    if archives.is_empty() && dataset.embedded.is_none() {
        archives.push("none; it is read from your copy of ILSVRC-2012".into());
    }
    ui::out(heading);
    let about = [("licence", vec![dataset.licence.clone()]), ("about", vec![dataset.homepage.clone()])];
    for (name, texts) in [("here", here), ("archive", archives)].into_iter().chain(about) {
        texts.iter().for_each(|text| ui::out(format!("  {name:<9} {text}")));
    }
    Ok(())
}

/// What of a dataset is in the data folder.
fn here(dataset: &DatasetEntry, data: &Path) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    for folder in folders_here(dataset, data) {
        let text = match Record::read(&folder).map_err(explain)? {
            Some(record) => format!("{}, from {}", size(record.unpacked_bytes), record.origin()),
            // All of ImageNet would take minutes to add up.
            None if dataset.files.iter().any(|file| folder.ends_with(&file.folder)) => {
                format!("{}, not downloaded by this command", size(bytes_below(&folder)?))
            }
            None => "not downloaded by this command".into(),
        };
        lines.push(format!("{} ({text})", folder.display()));
    }
    for file in &dataset.files {
        let archive = Archive { dataset, file, data };
        for (path, what) in [(archive.part(), "unfinished"), (archive.rejected(), "with a wrong hash")] {
            if let Ok(found) = fs::metadata(&path) {
                lines.push(format!("{} ({}, {what})", path.display(), size(found.len())));
            }
        }
    }
    if lines.is_empty() {
        let folder = dataset.files.first().map(|file| &file.folder).or(dataset.folders.first());
        let folder = folder.context("a dataset has a folder")?;
        lines.push(format!("not found; it would be in {}", data.join(folder).display()));
    }
    Ok(lines)
}
