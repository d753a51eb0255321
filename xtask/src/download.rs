//! `cargo xtask download`: brings datasets to this machine, checked and whole, and says what is there.

mod fetch;
mod record;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use c2r_archive::{ArchiveError, ArchiveFormat, Limits, WORKSHOP};
use serde::Deserialize;

use crate::{checkout::Checkout, exit, install, process, ui};
use fetch::{Found, Patience, Promise, Source, Watch, size};
use record::Record;

/// Download datasets: resumed, checked and unpacked whole or not at all
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask download digits                    part of c2r; only checked
  cargo xtask download cifar10 --data ~/datasets
  cargo xtask download cifar10 --data ~/datasets --mirror file:///media/usb
  cargo xtask download --list --data ~/datasets
  cargo xtask download tiny-imagenet --data ~/datasets --verify

Addresses, sizes, hashes and licences stand in data/datasets.toml. The hashes come from third-party \
listings, not from the publishers. If a file has another one, both are shown; what came over the \
network is kept as NAME.rejected, a file of a --mirror folder stays where it is. --accept-sha256 \
takes it and records that in the folder and in every result. A server whose file has another length \
is not asked for it.
What is interrupted stays as NAME.part, and the same command goes on from there. The archive is \
removed once unpacked. --verify reads every unpacked file again. More: docs/datasets.md.")]
pub(crate) struct Args {
    /// digits, cifar10, cifar100, tiny-imagenet, imagenette, imagewoof
    #[arg(value_name = "NAME", required_unless_present = "list")]
    names: Vec<String>,

    /// Folder that holds, or will hold, the datasets
    #[arg(long, value_name = "DIR", env = "C2R_DATA")]
    data: Option<PathBuf>,

    /// Take the archives from here instead of their publishers: http(s)://HOST/PATH, file:///FOLDER or a folder
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,

    /// Which archive, where a dataset has several (imagenette) [default: the first in data/datasets.toml]
    #[arg(long, value_name = "FILE")]
    archive: Option<String>,

    /// Read what is there again and compare it with what was unpacked; download nothing
    #[arg(long, conflicts_with_all = ["list", "mirror", "archive", "accept_sha256"])]
    verify: bool,

    /// Show which datasets there are, what of them is here, how large, under which licence
    #[arg(long)]
    list: bool,

    /// Take the archive with this SHA-256 (64 hexadecimal digits), whatever data/datasets.toml promises
    #[arg(long, value_name = "HEX", value_parser = sha256_text)]
    accept_sha256: Option<String>,

    /// Give a connection up after so many seconds without a byte
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,

    /// Give a connection up that brings fewer bytes a second than this, taken over the time of --timeout
    #[arg(long, value_name = "BYTES", default_value_t = 1000)]
    min_speed: u64,

    /// Give up after so many failed tries in a row
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

/// What is read here of `data/datasets.toml`; c2r-data reads all of it, and its tests check it.
#[derive(Debug, Deserialize)]
struct Registry {
    dataset: Vec<Dataset>,
}

#[derive(Debug, Deserialize)]
struct Dataset {
    name: String,
    title: String,
    classes: Vec<String>,
    n_train: Option<u64>,
    n_test: Option<u64>,
    folders: Vec<String>,
    licence: String,
    homepage: String,
    #[serde(default)]
    embedded: Option<Embedded>,
    #[serde(default)]
    files: Vec<Archive>,
}

/// A file of this repository.
#[derive(Debug, Deserialize)]
struct Embedded {
    path: String,
    bytes: u64,
    sha256: String,
}

#[derive(Debug, Deserialize)]
struct Archive {
    name: String,
    url: String,
    bytes: Option<u64>,
    md5: Option<String>,
    sha256: Option<String>,
    folder: String,
}

impl Archive {
    fn promise(&self) -> Promise {
        Promise { bytes: self.bytes, md5: self.md5.clone(), sha256: self.sha256.clone() }
    }
}

/// The command.
pub(crate) fn run(args: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    let path = checkout.root().join("data/datasets.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let registry: Registry = toml::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
    let chosen: Vec<&Dataset> = if args.names.is_empty() {
        registry.dataset.iter().collect()
    } else {
        args.names.iter().map(|name| find(&registry, name)).collect::<anyhow::Result<_>>()?
    };
    if args.list {
        return list(&chosen, args.data.as_deref());
    }
    if chosen.len() > 1 && (args.accept_sha256.is_some() || args.archive.is_some()) {
        return Err(exit::usage("--accept-sha256 and --archive are about one dataset; name one"));
    }
    for dataset in chosen {
        if let Some(embedded) = &dataset.embedded {
            check_embedded(dataset, embedded, checkout)?;
        } else if args.verify {
            verify(dataset, data_folder(args)?)?;
        } else {
            download(dataset, args, data_folder(args)?)?;
        }
    }
    Ok(())
}

fn find<'a>(registry: &'a Registry, name: &str) -> anyhow::Result<&'a Dataset> {
    registry.dataset.iter().find(|dataset| dataset.name == name).ok_or_else(|| {
        let known: Vec<&str> = registry.dataset.iter().map(|dataset| dataset.name.as_str()).collect();
        exit::usage(format!("`{name}` is not a dataset; there are {}", known.join(", ")))
    })
}

fn data_folder(args: &Args) -> anyhow::Result<&Path> {
    args.data.as_deref().ok_or_else(|| exit::usage("which folder? Name one with `--data DIR` or C2R_DATA"))
}

fn check_embedded(dataset: &Dataset, embedded: &Embedded, checkout: &Checkout) -> anyhow::Result<()> {
    let found = fetch::inspect(&checkout.root().join(&embedded.path), &mut quiet_watch(&mut |_| {}))?;
    if (found.bytes, &found.sha256) != (embedded.bytes, &embedded.sha256) {
        let (path, promised) = (&embedded.path, &embedded.sha256);
        let message = format!("{path} was changed: SHA-256 {}, data/datasets.toml promises {promised}", found.sha256);
        return Err(exit::error(exit::DATA, message));
    }
    ui::note(format!(
        "{}: part of c2r ({}, {}, hash checked); nothing to download. Look at it with\n  c2r inspect {}",
        dataset.name,
        embedded.path,
        size(found.bytes),
        dataset.name
    ));
    Ok(())
}

fn quiet_watch(progress: &mut dyn FnMut(u64)) -> Watch<'_> {
    Watch { interrupted: &|| process::interrupts() > 0, progress }
}

fn archive<'a>(dataset: &'a Dataset, wanted: Option<&str>) -> anyhow::Result<&'a Archive> {
    let names = || dataset.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>().join(", ");
    match wanted {
        Some(wanted) => dataset.files.iter().find(|file| file.name == wanted).ok_or_else(|| {
            exit::usage(format!("{} has no archive `{wanted}`; there are: {}", dataset.name, names()))
        }),
        None => dataset.files.first().ok_or_else(|| {
            exit::usage(format!(
                "{} is not published as an archive: it is taken from your copy of ILSVRC-2012 ({}), in the folder {} of \
                 the data folder; docs/datasets.md says how it must look",
                dataset.name,
                dataset.homepage,
                dataset.folders.join(" or ")
            ))
        }),
    }
}

fn download(dataset: &Dataset, args: &Args, data: &Path) -> anyhow::Result<()> {
    let archive = archive(dataset, args.archive.as_deref())?;
    let source = match &args.mirror {
        Some(mirror) => Source::on_mirror(mirror, &archive.name)?,
        None => Source::Url(archive.url.clone()),
    };
    let format = ArchiveFormat::of_name(&archive.name)
        .with_context(|| format!("data/datasets.toml: {} is neither tar.gz nor zip", archive.name))?;
    fs::create_dir_all(data).map_err(fetch::disk).with_context(|| format!("cannot create {}", data.display()))?;
    let _lock = install::lock(&data.join(".c2r-download.lock"), "another download into this folder is at work")?;
    remove_unfinished(data)?;
    let folder = data.join(&archive.folder);
    if folder.exists() {
        let whence = match Record::read(&folder)? {
            Some(record) => format!("from {}; --verify reads it again", record.archive),
            None => "not from this command, so it was left alone".into(),
        };
        ui::note(format!("{}: {} is there already, {whence}", dataset.name, folder.display()));
        return Ok(());
    }

    let promise = archive.promise();
    let accepted = args.accept_sha256.as_ref().map(|hash| Promise { sha256: Some(hash.clone()), ..Promise::default() });
    let wanted = accepted.as_ref().unwrap_or(&promise);
    let (path, found) = fetch_archive(archive, &source, wanted, args, data)?;
    if !wanted.is_kept_by(&found) {
        return Err(rejected(dataset, archive, &source, wanted, &found, data, args));
    }

    let mut meter = ui::Progress::bytes(&format!("unpacking {}", archive.name), None);
    let unpacked = c2r_archive::unpack(
        format,
        &path,
        &archive.folder,
        &folder,
        &Limits::DATASET,
        |hidden, unpacked| {
            let record = Record::new(&dataset.name, &archive.name, &source.to_string(), &found, &promise, unpacked);
            record.write(hidden, unpacked)
        },
        &mut |bytes| {
            meter.set(bytes, "");
            process::interrupts() == 0
        },
    );
    meter.finish();
    let unpacked = unpacked.map_err(|error| match error {
        ArchiveError::Stopped => exit::error(
            exit::INTERRUPTED,
            format!("interrupted; {} is whole, and the same command unpacks it", path.display()),
        ),
        ArchiveError::Io { source, action, path } => {
            fetch::disk(source).context(format!("cannot {action} {}; nothing was left behind", path.display()))
        }
        refused => exit::error(exit::DATA, format!("{} was not unpacked: {refused}", path.display())),
    })?;
    if matches!(source, Source::Url(_)) {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    if accepted.is_some() && !promise.is_kept_by(&found) {
        ui::note(format!(
            "{}: the SHA-256 {} was accepted by hand, and the folder says so",
            archive.name, found.sha256
        ));
    }
    ui::note(format!(
        "{}: {} files, {} in {}\n  licence: {}\n  c2r inspect {} --data {}",
        dataset.name,
        unpacked.files.len(),
        size(unpacked.bytes()),
        folder.display(),
        dataset.licence,
        dataset.name,
        data.display()
    ));
    Ok(())
}

/// The archive on this machine, and what it is.
fn fetch_archive(
    archive: &Archive,
    source: &Source,
    wanted: &Promise,
    args: &Args,
    data: &Path,
) -> anyhow::Result<(PathBuf, Found)> {
    let part = part_path(archive, data);
    let rejected = rejected_path(archive, data);
    let total = archive.bytes.map(|bytes| format!(", {}", size(bytes))).unwrap_or_default();
    ui::note(format!("{}{total} from {source}", archive.name));
    let mut meter = ui::Progress::bytes(&archive.name, archive.bytes);
    let mut progress = |bytes| meter.set(bytes, "");
    let mut watch = quiet_watch(&mut progress);
    let url = match source {
        Source::File(path) => {
            let found = fetch::inspect(path, &mut watch)
                .map_err(|error| exit::error(code_or_data(&error), exit::message(&error)))?;
            return Ok((path.clone(), found));
        }
        Source::Url(url) => url,
    };
    if rejected.is_file() {
        if args.accept_sha256.is_some() && !part.exists() {
            fs::rename(&rejected, &part).with_context(|| format!("cannot rename {}", rejected.display()))?;
        } else {
            ui::note(format!("removing {}, which an earlier download rejected", rejected.display()));
            fs::remove_file(&rejected).with_context(|| format!("cannot remove {}", rejected.display()))?;
        }
    }
    let there = part.metadata().map_or(0, |data| data.len());
    if let (Some(bytes), Ok(free)) = (archive.bytes, fs4::available_space(data))
        && free < bytes.saturating_sub(there)
    {
        let (needed, data) = (size(bytes - there), data.display());
        return Err(exit::usage(format!("{} needs {needed}, and {} are free in {data}", archive.name, size(free))));
    }
    let patience = Patience {
        stall: Duration::from_secs(args.timeout),
        slowest: args.min_speed,
        window: Duration::from_secs(args.timeout),
        tries: args.tries,
        pause: PAUSE,
        longest_pause: LONGEST_PAUSE,
    };
    let found = fetch::download(url, &part, wanted, &patience, &mut watch);
    meter.finish();
    Ok((part, found?))
}

fn code_or_data(error: &anyhow::Error) -> u8 {
    match exit::code_of(error) {
        exit::UNEXPECTED => exit::DATA,
        code => code,
    }
}

fn part_path(archive: &Archive, data: &Path) -> PathBuf {
    data.join(format!("{}.part", archive.name))
}

fn rejected_path(archive: &Archive, data: &Path) -> PathBuf {
    data.join(format!("{}.rejected", archive.name))
}

/// Keeps a wrong file aside and says what was expected, what came, and how to take it all the same.
fn rejected(
    dataset: &Dataset,
    archive: &Archive,
    source: &Source,
    wanted: &Promise,
    found: &Found,
    data: &Path,
    args: &Args,
) -> anyhow::Error {
    let (kept, otherwise) = match source {
        Source::File(path) => (format!("It stays where it is, {}", path.display()), "nothing is unpacked"),
        Source::Url(_) => {
            let (part, aside) = (part_path(archive, data), rejected_path(archive, data));
            let kept = if fs::rename(&part, &aside).is_ok() { aside } else { part };
            (format!("It is kept as {}", kept.display()), "it is fetched again")
        }
    };
    let mut lines = vec![format!("{} from {source} is not the file that was promised", archive.name)];
    let mut compare = |what: &str, promised: Option<String>, found: &str| {
        if let Some(promised) = promised {
            lines.push(format!("  {what:<8} expected {promised}"));
            lines.push(format!("  {:<8} found    {found}", ""));
        }
    };
    compare("bytes", wanted.bytes.map(|bytes| bytes.to_string()), &found.bytes.to_string());
    compare("MD5", wanted.md5.clone(), &found.md5);
    compare("SHA-256", Some(wanted.sha256.clone().unwrap_or_else(|| "(not known)".into())), &found.sha256);
    if let Some(published) = wanted.bytes.filter(|&published| published != found.bytes) {
        lines.push(format!("It is {}.", fetch::other_length(found.bytes, published)));
    }
    let mirror = args.mirror.as_ref().map(|mirror| format!(" --mirror {mirror}")).unwrap_or_default();
    lines.push(format!(
        "{kept}. If you have reason to trust it, take it with\n  cargo xtask download {} --data {}{mirror} --archive {} \
         --accept-sha256 {}\nwhich records what was accepted; without that {otherwise}.",
        dataset.name,
        data.display(),
        archive.name,
        found.sha256
    ));
    exit::error(exit::DATA, lines.join("\n"))
}

/// Removes what killed commands left half unpacked; only under the lock.
fn remove_unfinished(data: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(data).with_context(|| format!("cannot read {}", data.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(WORKSHOP) {
            ui::note(format!("removing {}, left by a download that was killed", entry.path().display()));
            fs::remove_dir_all(entry.path()).with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// The folders of a dataset that are there.
fn folders_here<'a>(dataset: &'a Dataset, data: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
    dataset.folders.iter().map(|folder| data.join(folder)).filter(|folder| folder.is_dir())
}

fn verify(dataset: &Dataset, data: &Path) -> anyhow::Result<()> {
    let mut verified = 0;
    for folder in folders_here(dataset, data) {
        let Some(record) = Record::read(&folder)? else {
            ui::note(format!("{}: not from this command, so there is nothing to compare it with", folder.display()));
            continue;
        };
        let mut meter = ui::Progress::bytes(&format!("reading {}", folder.display()), Some(record.unpacked_bytes));
        let problems = record.differences(&folder, &mut quiet_watch(&mut |bytes| meter.set(bytes, "")));
        meter.finish();
        let problems = problems?;
        if !problems.is_empty() {
            let more = problems.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
            return Err(exit::error(
                exit::DATA,
                format!(
                    "{}: {} differences from what was unpacked\n  {}{more}\nremove the folder and download again",
                    folder.display(),
                    problems.len(),
                    problems[..problems.len().min(SHOWN)].join("\n  ")
                ),
            ));
        }
        ui::note(format!("{}: as it was unpacked from {}", folder.display(), record.origin()));
        verified += 1;
    }
    if verified == 0 {
        return Err(exit::error(
            exit::DATA,
            format!("{}: nothing in {} was downloaded by this command", dataset.name, data.display()),
        ));
    }
    Ok(())
}

fn list(datasets: &[&Dataset], data: Option<&Path>) -> anyhow::Result<()> {
    for dataset in datasets {
        let images = match (dataset.n_train, dataset.n_test) {
            (Some(train), Some(test)) => format!("{train} + {test} images, "),
            _ => String::new(),
        };
        let mut lines = vec![format!("{}: {}, {images}{} classes", dataset.name, dataset.title, dataset.classes.len())];
        let mut line = |name: &str, text: String| lines.push(format!("  {name:<9} {text}"));
        match (&dataset.embedded, data) {
            (Some(embedded), _) => line("here", format!("part of c2r: {} ({})", embedded.path, size(embedded.bytes))),
            (None, None) => line("here", "unknown: no `--data DIR` and no C2R_DATA".into()),
            (None, Some(data)) => here(dataset, data, &mut line)?,
        }
        for archive in &dataset.files {
            let bytes = archive.bytes.map_or("size not known".into(), size);
            line("archive", format!("{} ({bytes}): {}", archive.name, archive.url));
        }
        if dataset.files.is_empty() && dataset.embedded.is_none() {
            line("archive", "none: taken from your copy of ILSVRC-2012".into());
        }
        line("licence", dataset.licence.clone());
        line("about", dataset.homepage.clone());
        ui::out(lines.join("\n"));
    }
    Ok(())
}

fn here(dataset: &Dataset, data: &Path, line: &mut dyn FnMut(&str, String)) -> anyhow::Result<()> {
    let mut any = false;
    for folder in folders_here(dataset, data) {
        // All of ImageNet would take minutes to add up.
        let text = match Record::read(&folder)? {
            Some(record) => format!("{}, from {}", size(record.unpacked_bytes), record.origin()),
            None if dataset.files.iter().any(|archive| folder.ends_with(&archive.folder)) => {
                format!("{}, not from this command", size(record::bytes_below(&folder)?))
            }
            None => "not from this command".into(),
        };
        line("here", format!("{} ({text})", folder.display()));
        any = true;
    }
    for archive in &dataset.files {
        for (end, what) in [("part", "unfinished"), ("rejected", "with a wrong hash")] {
            let path = data.join(format!("{}.{end}", archive.name));
            if let Ok(found) = path.metadata() {
                line("here", format!("{} ({}, {what})", path.display(), size(found.len())));
                any = true;
            }
        }
    }
    if !any {
        let folder = dataset.files.first().map_or(&dataset.folders[0], |archive| &archive.folder);
        line("here", format!("no; it would be in {}", data.join(folder).display()));
    }
    Ok(())
}
