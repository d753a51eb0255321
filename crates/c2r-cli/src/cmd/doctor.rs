mod profile;

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use c2r_base::native;
use c2r_data::{DatasetFormat, DatasetSpec};
use c2r_models::ModelSpec;
use c2r_run::{
    exit::{self, OrExit},
    terminal::{Ui, count, counted},
};
use profile::Profiled;
use serde::Serialize;
use tch::{Cuda, Device, Kind, Tensor};

use crate::{
    kernels::COST,
    run_dir,
    throughput::{self, Throughput},
};

/// Version of what `--json` prints.
const SCHEMA_VERSION: u32 = 1;
/// Seconds of each measurement of a profile, at least.
const PATIENCE: f64 = 2.0;
/// The batch size of the images per second in docs/performance.md.
const BATCH_SIZE: usize = 128;

/// Check libtorch, CUDA, threads and data, and suggest fixes
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  # What works on this machine, and which datasets are in DIR?
  c2r doctor --data DIR

  # How many images per second does a network handle?
  c2r doctor --throughput ConvNet-D3-W128-IN --input 3x32x32

  # What does a training step cost on the GPU?
  c2r doctor --profile train --model ConvNet-D3-W128-IN --input 3x32x32 --device cuda

For each step, --profile prints libtorch's operator calls, the values read back to the CPU (each stalls a GPU), and \
the tensors copied between CPU and device, with their size. It also prints the number of images sent forward and backward, \
the median and the mean time, and how much of the median the convolutions alone would take (docs/performance.md).")]
#[command(group = clap::ArgGroup::new("measured").multiple(true).args(["throughput", "profile"]))]
pub(crate) struct Args {
    /// Folder with the downloaded datasets
    #[arg(long, value_name = "DIR", env = "C2R_DATA")]
    data: Option<PathBuf>,

    /// Measure how many images per second this network handles (takes about 4 s)
    ///
    /// Measures three cases: forward passes, forward and backward passes to the pixels, and training steps.
    #[arg(long, value_name = "MODEL")]
    throughput: Option<ModelSpec>,

    /// Show what a step of a long command costs
    #[arg(long, value_name = "WHAT")]
    profile: Option<Profiled>,

    /// Network for --profile [default: the default network for the digits; with --input, ConvNet-D3-W128-IN]
    #[arg(long, value_name = "MODEL", requires = "profile")]
    model: Option<ModelSpec>,

    /// Shape of the images [default: 3x32x32; with --profile, that of the digits]
    ///
    /// With --profile, random images of this shape replace the digits.
    #[arg(long, value_name = "CxHxW", value_parser = parse_shape, requires = "measured")]
    input: Option<[i64; 3]>,

    /// Number of classes
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..), requires = "measured")]
    classes: u32,

    /// With --profile distill: real images per class [default: 16]; with train: images per step [default: 64]; with
    /// attack: images [default: 64]
    #[arg(long, value_name = "N", requires = "profile", value_parser = clap::value_parser!(u32).range(1..))]
    n: Option<u32>,

    /// Attacks for --profile attack, separated by commas
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        requires = "profile",
        default_value = "pgd,vmi-fgsm,apgd-ce,fab-t,square"
    )]
    attack: Vec<String>,

    /// For --profile distill: change one key of the profile `faithful` (repeatable)
    #[arg(long, value_name = "KEY=VALUE", requires = "profile")]
    set: Vec<String>,

    /// For --profile distill: write the inputs and losses of an update, to compare with another implementation
    #[arg(long, value_name = "FILE", requires = "profile")]
    write: Option<PathBuf>,

    /// With --profile: also write a timeline of each printed row into this folder, for the trace viewer Perfetto
    #[arg(long, value_name = "DIR", requires = "profile")]
    trace: Option<PathBuf>,

    /// Images per pass for --throughput
    #[arg(long, value_name = "N", default_value_t = BATCH_SIZE as u32, value_parser = clap::value_parser!(u32).range(1..), requires = "throughput")]
    batch_size: u32,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn parse_shape(text: &str) -> Result<[i64; 3], String> {
    let sides: Option<Vec<i64>> =
        text.split('x').map(|side| side.parse().ok().filter(|side| (1..=4096).contains(side))).collect();
    sides
        .and_then(|sides| <[i64; 3]>::try_from(sides).ok())
        .ok_or_else(|| "expected CHANNELSxHEIGHTxWIDTH, e.g. 3x32x32".to_owned())
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    schema_version: u32,
    /// c2r, its git revision, tch and the libtorch it was built for.
    versions: BTreeMap<String, String>,
    libtorch: Libtorch,
    threads: Threads,
    cuda: CudaState,
    /// Where c2r computes without `--device`.
    device: String,
    /// Float formats there, by what is computed in them.
    precision: BTreeMap<String, String>,
    data: Vec<DataState>,
    throughput: Option<ThroughputState>,
    /// What steps cost, for `--profile`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<profile::Row>,
    /// What became of c2r's own CUDA kernels, a line for each device and image size; empty without a GPU.
    kernels: Vec<String>,
    /// The lines among them of kernels that cannot be used.
    unusable_kernels: Vec<String>,
    /// What is wrong, each with what to do.
    problems: Vec<String>,
}

#[derive(Serialize)]
struct Libtorch {
    /// The version of the loaded library, where its folder has it.
    version: Option<String>,
    /// The loaded library, where the system lists it.
    path: Option<PathBuf>,
    mkldnn: bool,
    mkl: bool,
    openmp: bool,
}

#[derive(Serialize)]
struct Threads {
    /// Within one operation.
    used: i32,
    /// Cores that this process may use.
    cores: usize,
    /// Whether the user chose their number with `--threads`.
    #[serde(skip)]
    given: bool,
    /// Vectors of the processor that c2r's kernels use: AVX-512, AVX2 or none.
    vectors: &'static str,
}

#[derive(Serialize)]
struct CudaState {
    /// GPUs that libtorch sees.
    devices: i64,
    cudnn: bool,
    /// Whether an NVIDIA driver is installed.
    driver: bool,
    /// Why libtorch's CUDA part could not be loaded.
    load_error: Option<String>,
}

#[derive(Serialize)]
struct DataState {
    dataset: String,
    /// `embedded`, a folder, or nothing.
    found: Option<String>,
}

#[derive(Serialize)]
struct ThroughputState {
    model: String,
    input: [i64; 3],
    classes: u32,
    device: String,
    threads: i32,
    #[serde(flatten)]
    images_per_second: Throughput,
}

pub(crate) fn run(args: Args, threads_given: bool, device: Device, ui: &Ui) -> anyhow::Result<()> {
    let mut report = Report {
        schema_version: SCHEMA_VERSION,
        versions: run_dir::versions(),
        libtorch: libtorch(),
        threads: Threads {
            used: tch::get_num_threads(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            given: threads_given,
            vectors: c2r_kernels::vectors(),
        },
        cuda: cuda(),
        device: run_dir::device_name(device),
        precision: c2r_kernels::precision_names(device),
        data: data(args.data.as_deref()),
        throughput: None,
        profile: Vec::new(),
        kernels: Vec::new(),
        unusable_kernels: Vec::new(),
        problems: Vec::new(),
    };
    if let Some(model) = &args.throughput {
        report.throughput = Some(measure(model, &args, device)?);
    }
    if let Some(what) = args.profile {
        report.profile = profile::rows(what, &setting(&args, what, device)?)?;
    }
    // What was measured has used its own.
    let failures = if args.throughput.is_none() && args.profile.is_none() { try_kernels(device) } else { Vec::new() };
    report.kernels = c2r_kernels::cuda_state();
    report.unusable_kernels = c2r_kernels::cuda::unusable().into_iter().chain(failures).collect();
    report.problems = problems(&report, args.data.as_deref());
    if args.json {
        ui.text(serde_json::to_string_pretty(&report).context("the report cannot be written as JSON")?);
    } else {
        lines(&report).iter().for_each(|(subject, text)| ui.out(format!("{subject:<11}{text}")));
        if !report.profile.is_empty() {
            profile::table(&report.profile).into_iter().for_each(|line| ui.out(line));
        }
    }
    Ok(())
}

fn libtorch() -> Libtorch {
    let path = loaded_library("libtorch_cpu.so");
    let version = path.as_deref().and_then(|library| library.parent()?.parent()).and_then(version_of);
    Libtorch {
        version,
        path,
        mkldnn: tch::utils::has_mkldnn(),
        mkl: tch::utils::has_mkl(),
        openmp: tch::utils::has_openmp(),
    }
}

/// The file that a shared library of this process was loaded from; known on Linux only.
fn loaded_library(name: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    // The path follows five columns and may contain spaces.
    let paths = maps.lines().filter_map(|line| line.find('/').map(|start| PathBuf::from(&line[start..])));
    paths.into_iter().find(|path| path.file_name().is_some_and(|file| file == name))
}

/// The version of the libtorch in `folder`: in `build-version` (archives of pytorch.org), in `version.py` (the Python
/// package) or in a C++ header.
fn version_of(folder: &Path) -> Option<String> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    if let Some(text) = read("build-version") {
        return Some(text.trim().to_owned());
    }
    let python = read("version.py").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("__version__"))?.to_owned();
        Some(line.split(['\'', '"']).nth(1)?.to_owned())
    });
    python.or_else(|| {
        let headers = ["include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"];
        let text = headers.iter().find_map(|header| read(header).filter(|text| text.contains("_VERSION_MAJOR ")))?;
        let number = |part: &str| {
            let start = format!("#define TORCH_VERSION_{part} ");
            text.lines().find_map(|line| line.strip_prefix(&start)).map(|number| number.trim().to_owned())
        };
        Some(format!("{}.{}.{}", number("MAJOR")?, number("MINOR")?, number("PATCH")?))
    })
}

fn cuda() -> CudaState {
    let load_error = native::load_cuda().err();
    let driver =
        ["/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/dxg"].iter().any(|path| Path::new(path).exists());
    let devices = Cuda::device_count();
    CudaState { devices, cudnn: devices > 0 && Cuda::cudnn_is_available(), driver, load_error }
}

/// What the blocks of the usual networks read: ConvNets on images of 32x32, 28x28 and 64x64 pixels.
const BLOCK_INPUTS: [[i64; 3]; 7] =
    [[3, 32, 32], [8, 16, 16], [8, 8, 8], [1, 28, 28], [8, 14, 14], [3, 64, 64], [8, 32, 32]];

/// Runs a block on each of [`BLOCK_INPUTS`], forward and backward, so that its kernels are compiled and compared with libtorch's
/// operators, as by a first use. On a GPU only.
///
/// Returns what failed without libtorch's operators in its place.
fn try_kernels(device: Device) -> Vec<String> {
    if !device.is_cuda() {
        return Vec::new();
    }
    let failure = |&[channels, height, width]: &[i64; 3]| {
        let error = try_block([channels, height, width], device).err()?;
        Some(format!("a block on {channels}x{height}x{width}: {error}"))
    };
    BLOCK_INPUTS.iter().filter_map(failure).collect()
}

fn try_block([channels, height, width]: [i64; 3], device: Device) -> anyhow::Result<()> {
    const FILTERS: i64 = 8;
    let values = |shape: &[i64]| {
        let values = Tensor::f_linspace(-0.5, 0.5, shape.iter().product::<i64>(), (Kind::Float, device))?;
        anyhow::Ok(values.f_view(shape)?.f_set_requires_grad(true)?)
    };
    let (x, weight) = (values(&[2, channels, height, width])?, values(&[FILTERS, channels, 3, 3])?);
    let of_filters = values(&[FILTERS])?;
    let y = c2r_kernels::block(&x, (&weight, &of_filters), (&of_filters, &of_filters), 1e-5)?;
    Tensor::f_run_backward(&[y.f_sum(Kind::Float)?], &[&x, &weight], false, false)?;
    Ok(())
}

fn data(folder: Option<&Path>) -> Vec<DataState> {
    let find = |spec: &DatasetSpec| {
        if spec.format == DatasetFormat::Digits {
            return Some("embedded".to_owned());
        }
        Some(spec.folder_in(folder?)?.display().to_string())
    };
    c2r_data::registry().iter().map(|spec| DataState { dataset: spec.name.clone(), found: find(spec) }).collect()
}

fn problems(report: &Report, folder: Option<&Path>) -> Vec<String> {
    let mut problems = Vec::new();
    let Report { libtorch, cuda, threads: Threads { used, cores, given, .. }, .. } = report;
    let built_for = report.versions.get("libtorch").map_or("", String::as_str);
    if let (Some(version), Some(path)) = (&libtorch.version, &libtorch.path)
        && !version.starts_with(built_for)
    {
        problems.push(format!(
            "libtorch {version} was loaded from {}, but c2r was built for {built_for}: unset LD_LIBRARY_PATH, or run \
             `cargo xtask setup` and build c2r again",
            path.display()
        ));
    }
    if cuda.driver && cuda.load_error.is_some() {
        problems.push(
            "an NVIDIA driver is installed, but the CUDA part of libtorch cannot be loaded: run `cargo xtask setup \
             --cuda yes` and build c2r again"
                .to_owned(),
        );
    } else if cuda.driver && cuda.devices == 0 {
        problems.push(
            "an NVIDIA driver is installed and the CUDA part of libtorch is loaded, but no GPU is visible: check \
             `nvidia-smi` and CUDA_VISIBLE_DEVICES; the driver may be too old for CUDA 13"
                .to_owned(),
        );
    }
    match (*used as usize).cmp(cores) {
        Ordering::Less if !given => problems.push(format!(
            "{used} of {cores} cores are used: --threads {cores} uses all of them; ignore this if you set \
             OMP_NUM_THREADS or run several processes at once"
        )),
        Ordering::Greater => {
            problems
                .push(format!("{used} threads share {}: --threads {cores} is usually faster", counted(*cores, "core")));
        }
        Ordering::Less | Ordering::Equal => {}
    }
    problems.extend(
        report.unusable_kernels.iter().map(|kernel| format!("a CUDA kernel of c2r cannot be used, {COST}: {kernel}")),
    );
    let is_in_folder = |data: &DataState| data.found.as_deref().is_some_and(|found| found != "embedded");
    if let Some(folder) = folder {
        let shown = folder.display();
        if !folder.is_dir() {
            problems.push(format!("the data folder {shown} does not exist: check --data and C2R_DATA"));
        } else if !report.data.iter().any(is_in_folder) {
            problems
                .push(format!("c2r finds no dataset in {shown}: docs/datasets.md shows the folders that it looks for"));
        }
    }
    problems
}

fn measure(model: &ModelSpec, args: &Args, device: Device) -> anyhow::Result<ThroughputState> {
    let input = args.input.unwrap_or([3, 32, 32]);
    let [channels, height, width] = input;
    let mut spec = c2r_data::spec("digits")?;
    (spec.channels, spec.height, spec.width) = (channels, height, width);
    (spec.mean, spec.std) = (vec![0.5; channels as usize], vec![0.25; channels as usize]);
    spec.classes = (0..args.classes).map(|class| class.to_string()).collect();
    let images_per_second = throughput::measure(model, &spec, args.batch_size as usize, device)
        .with_context(|| format!("cannot run {model} on {channels}x{height}x{width} images"))
        .or_exit(exit::USAGE)?;
    Ok(ThroughputState {
        model: model.to_string(),
        input,
        classes: args.classes,
        device: run_dir::device_name(device),
        threads: tch::get_num_threads(),
        images_per_second,
    })
}

/// What `--profile` is to run on.
fn setting(args: &Args, what: Profiled, device: Device) -> anyhow::Result<profile::Setting> {
    let n = match (args.n, what) {
        (Some(n), _) => n as usize,
        (None, Profiled::Distill) => 16,
        (None, Profiled::Train | Profiled::Attack) => 64,
    };
    let (dataset, own) = match args.input {
        None => {
            let digits = c2r_data::load("digits", None)?;
            let own = digits.spec.model.parse()?;
            (digits, own)
        }
        Some(shape) => (profile::random_images(shape, args.classes as usize, n)?, ModelSpec::convnet(3, 128)),
    };
    if what != Profiled::Distill
        && let Some(option) =
            [("--set", !args.set.is_empty()), ("--write", args.write.is_some())].iter().find(|(_, given)| *given)
    {
        let option = option.0;
        return exit::fail(exit::USAGE, format!("{option} has no effect here: it goes with --profile distill"));
    }
    let (model, attacks) = (args.model.unwrap_or(own), args.attack.clone());
    if let Some(folder) = &args.trace {
        fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    let (sets, write, trace) = (args.set.clone(), args.write.clone(), args.trace.clone());
    Ok(profile::Setting { model, dataset, n, attacks, sets, write, trace, device, patience: PATIENCE })
}

/// The report for people: a subject and what is known of it.
fn lines(report: &Report) -> Vec<(&'static str, String)> {
    let Report { libtorch, threads, cuda, throughput, .. } = report;
    let version = |name: &str| report.versions.get(name).map_or("unknown", String::as_str);
    let parts = [("MKL", libtorch.mkl), ("oneDNN", libtorch.mkldnn), ("OpenMP", libtorch.openmp)];
    let parts: Vec<&str> = parts.into_iter().filter_map(|(name, present)| present.then_some(name)).collect();
    let parts = if parts.is_empty() { String::new() } else { format!(" with {}", parts.join(", ")) };
    let loaded = libtorch.version.as_deref().unwrap_or("unknown version");
    let path = libtorch.path.as_ref().map_or(String::new(), |path| format!(", from {}", path.display()));
    let gpus = match &cuda.load_error {
        _ if cuda.devices > 0 => {
            let n = counted(cuda.devices as usize, "GPU");
            format!("{n}, {} cuDNN", if cuda.cudnn { "with" } else { "without" })
        }
        Some(error) if cuda.driver => format!("not available: {error}"),
        Some(error) => format!("not available: {error} (and no NVIDIA driver is installed)"),
        None if cuda.driver => "loaded, but no GPU is visible".to_owned(),
        None => "loaded, but no NVIDIA driver is installed".to_owned(),
    };
    let mut lines = vec![
        ("c2r", format!("{} (git {}), tch {}", version("c2r"), version("git"), version("tch"))),
        ("libtorch", format!("{loaded}{parts}{path}")),
        ("threads", format!("{} on {}, vectors: {}", threads.used, counted(threads.cores, "core"), threads.vectors)),
        ("CUDA", gpus),
        ("device", report.device.clone()),
        (
            "precision",
            report.precision.iter().map(|(what, format)| format!("{what} {format}")).collect::<Vec<_>>().join(", "),
        ),
    ];
    lines.extend(report.kernels.iter().map(|kernel| ("kernels", kernel.clone())));
    let (present, missing): (Vec<&DataState>, Vec<_>) = report.data.iter().partition(|data| data.found.is_some());
    lines.extend(present.iter().map(|data| ("data", format!("{}: {}", data.dataset, data.found.as_ref().unwrap()))));
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|data| data.dataset.as_str()).collect();
        lines.push(("data", format!("not found: {} (name the folder with --data DIR or C2R_DATA)", names.join(", "))));
    }
    if let Some(ThroughputState { model, input, classes, device, images_per_second, .. }) = throughput {
        let ([channels, height, width], speed) = (input, images_per_second);
        lines.push((
            "throughput",
            format!(
                "{model} on {channels}x{height}x{width}, {classes} classes, batches of {}, {device}: {} images/s forward, {} with \
                 gradients of the pixels, {} in training",
                speed.batch_size,
                count(speed.forward),
                count(speed.input_gradient),
                count(speed.training)
            ),
        ));
    }
    lines.extend(report.problems.iter().map(|problem| ("problem", problem.clone())));
    if report.problems.is_empty() {
        lines.push(("problems", "none".to_owned()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Report {
        Report {
            schema_version: SCHEMA_VERSION,
            versions: BTreeMap::from([("libtorch".to_owned(), "2.11".to_owned())]),
            libtorch: Libtorch {
                version: Some("2.11.0+cu130".into()),
                path: Some("/lib/libtorch_cpu.so".into()),
                mkldnn: true,
                mkl: true,
                openmp: true,
            },
            threads: Threads { used: 4, cores: 4, given: false, vectors: "AVX2" },
            cuda: CudaState { devices: 0, cudnn: false, driver: false, load_error: Some("no such file".into()) },
            device: "cpu".into(),
            precision: BTreeMap::new(),
            data: data(None),
            throughput: None,
            profile: Vec::new(),
            kernels: Vec::new(),
            unusable_kernels: Vec::new(),
            problems: Vec::new(),
        }
    }

    #[test]
    fn every_problem_has_advice() {
        assert_eq!(problems(&healthy(), None), Vec::<String>::new(), "a CPU-only machine is healthy");
        let check = |part: &str, spoil: fn(&mut Report)| {
            let mut report = healthy();
            spoil(&mut report);
            let found = problems(&report, None);
            assert!(found.len() == 1 && found[0].contains(part), "{found:?}");
        };
        check("LD_LIBRARY_PATH", |report| report.libtorch.version = Some("2.9.1".into()));
        check("setup --cuda yes", |report| report.cuda.driver = true);
        check("CUDA_VISIBLE_DEVICES", |report| (report.cuda.driver, report.cuda.load_error) = (true, None));
        check("--threads 4 uses all of them", |report| report.threads.used = 1);
        let mut asked = healthy();
        (asked.threads.used, asked.threads.given) = (1, true);
        assert_eq!(problems(&asked, None), Vec::<String>::new(), "the user asked for one thread");
        check("8 threads share 4 cores", |report| report.threads.used = 8);
        check("no nvrtc", |report| report.unusable_kernels.push("cuda:0, features of 8x8: no nvrtc".into()));
        let none = problems(&healthy(), Some(Path::new("no/such/folder")));
        assert!(none[0].contains("C2R_DATA"), "{none:?}");
        let folder = tempfile::tempdir().unwrap();
        let empty = problems(&healthy(), Some(folder.path()));
        assert!(empty[0].contains("finds no dataset"), "{empty:?}");
    }

    /// On the CPU it is the same function with other kernels.
    #[test]
    fn blocks_run_on_what_the_usual_networks_read() {
        for shape in BLOCK_INPUTS {
            try_block(shape, Device::Cpu).unwrap();
        }
        assert!(try_kernels(Device::Cpu).is_empty());
    }

    #[test]
    fn data_folders_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let cifar = folder.path().join("cifar-10-batches-bin");
        fs::create_dir(&cifar).unwrap();
        for given in [folder.path(), &cifar] {
            let seen = data(Some(given));
            let of = |name: &str| seen.iter().find(|state| state.dataset == name).unwrap().found.clone();
            assert_eq!(of("digits").as_deref(), Some("embedded"));
            assert_eq!(of("cifar10"), Some(cifar.display().to_string()));
            assert_eq!(of("cifar100"), None);
        }
    }

    #[test]
    fn a_folder_has_its_version_in_one_of_three_places() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(version_of(root), None);
        let header = root.join("include/torch/headeronly/version.h");
        fs::create_dir_all(header.parent().unwrap()).unwrap();
        fs::write(
            &header,
            "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 11\n#define TORCH_VERSION_PATCH 0\n",
        )
        .unwrap();
        assert_eq!(version_of(root).as_deref(), Some("2.11.0"));
        fs::write(root.join("version.py"), "from typing import Optional\n__version__ = '2.11.0+cpu'\n").unwrap();
        assert_eq!(version_of(root).as_deref(), Some("2.11.0+cpu"));
        fs::write(root.join("build-version"), "2.10.0\n").unwrap();
        assert_eq!(version_of(root).as_deref(), Some("2.10.0"));
    }

    #[test]
    fn shapes_are_three_lengths() {
        assert_eq!(parse_shape("3x32x64"), Ok([3, 32, 64]));
        for wrong in ["3x32", "3x32x32x1", "ax2x2", "0x1x1", "", "3x32x99999"] {
            assert!(parse_shape(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_loaded_libtorch_is_found() {
        let path = loaded_library("libtorch_cpu.so").unwrap();
        assert!(path.is_file(), "{}", path.display());
    }
}
