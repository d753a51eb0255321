//! `c2r.distill`: the run of `c2r distill` on images in memory, with or without a run folder.

use std::{path::PathBuf, time::Instant};

use c2r_base::artifact::{self, TensorFile};
use c2r_data::{Dataset, SyntheticSet};
use c2r_distill::{DistillConfig, DistillEvent, Distillation, LabelKind, METHODS, folder, profiles};
use c2r_files::remove_if_present;
use c2r_run::{Environment, Place, Plan, Run, RunError, Status, process::peak_memory_mb};
use c2r_train::layers;
use pyo3::{exceptions::PyValueError, prelude::*};
use pyo3_tch::PyTensor;
use serde_json::json;
use tch::Device;

use crate::{
    error::{caught, runtime_error, value_error},
    memory::KeepMemory,
    sets::{self, Parts},
    watch::{Watch, device, versions},
};

/// Updates between lines of the log.
const LOG_EVERY: u64 = 10;

/// What Python gives: `package/c2r/_sets.py` fills it.
#[derive(FromPyObject)]
pub(crate) struct Request {
    /// Name of a known dataset, or what to call the images.
    name: String,
    data: Option<PathBuf>,
    /// None for a known dataset.
    images: Option<PyTensor>,
    labels: Option<PyTensor>,
    n_classes: usize,
    profile: String,
    /// `key=value` in TOML, in order.
    set: Vec<String>,
    run_dir: Option<PathBuf>,
    force: bool,
    checkpoint_seconds: f64,
    device: String,
    progress: Option<Py<PyAny>>,
}

#[pyfunction]
pub(crate) fn distill(py: Python<'_>, request: Request) -> PyResult<Parts> {
    let device = device(&request.device)?;
    let run = move || {
        let _kept = KeepMemory::new();
        Job::new(request, device)?.run()
    };
    Parts::of(&py.allow_threads(|| caught("the distillation", run))?)
}

struct Job {
    dataset: Dataset,
    config: DistillConfig,
    run_dir: Option<PathBuf>,
    force: bool,
    checkpoint_seconds: f64,
    device: Device,
    watch: Watch,
}

impl Job {
    fn new(request: Request, device: Device) -> PyResult<Self> {
        let Request { name, data, images, labels, n_classes, profile, set, run_dir, force, checkpoint_seconds, .. } =
            request;
        let dataset = match (images, labels) {
            (Some(images), Some(labels)) => sets::dataset(&name, &images, &labels, n_classes)?,
            _ => c2r_data::load(&name, data.as_deref()).map_err(value_error)?,
        };
        let table = profiles::profile(&profile).map_err(value_error)?;
        let parse = |text: &String| {
            layers::parse_assignment(text).ok_or_else(|| PyValueError::new_err(format!("`{text}` is not key=value")))
        };
        let changes: Vec<_> = set.iter().map(parse).collect::<PyResult<_>>()?;
        let (config, _) = DistillConfig::resolve_with(METHODS, table, &dataset.spec, &changes).map_err(value_error)?;
        let watch = Watch(request.progress);
        Ok(Self { dataset, config, run_dir, force, checkpoint_seconds, device, watch })
    }

    fn run(&self) -> PyResult<SyntheticSet> {
        let mut distillation =
            Distillation::new(self.config.clone(), &self.dataset, self.device).map_err(value_error)?;
        let Some(mut run) = self.open()? else {
            self.steps(&mut distillation, None)?;
            return distillation.synthetic_set(versions()).map_err(runtime_error);
        };
        let (file, state) = (run.0.file(folder::SET), run.0.file(folder::STATE));
        if run.1 == Status::Finished {
            return SyntheticSet::load(&file).map_err(value_error);
        }
        if run.1 == Status::Unfinished && state.exists() {
            let saved = TensorFile::read(&state).map_err(value_error)?;
            distillation.restore(&saved).map_err(value_error)?;
        } else {
            run.0.begin_again();
        }
        self.steps(&mut distillation, Some(&mut run.0))?;
        let set = distillation.synthetic_set(versions()).map_err(runtime_error)?;
        if let (LabelKind::Teacher, Some(teacher)) = (self.config.common.labels, distillation.teachers().next()) {
            c2r_models::checkpoint::save(&run.0.file(folder::TEACHER), teacher, Default::default())
                .map_err(runtime_error)?;
        }
        set.save(&file).map_err(runtime_error)?;
        let mut summary = json!({
            "synthetic_set": folder::SET,
            "sha256": artifact::sha256_of_file(&file).map_err(runtime_error)?,
            "iterations": distillation.iteration(),
            "seconds": run.0.seconds(),
            "peak_memory_mb": peak_memory_mb(),
            "passes": distillation.passes(),
            "claims": distillation.effect().map_err(runtime_error)?,
        });
        let kernels = c2r_kernels::cuda_state();
        if !kernels.is_empty() {
            summary["kernels"] = kernels.into();
        }
        run.0.finish(summary).map_err(runtime_error)?;
        remove_if_present(&state).map_err(runtime_error)?;
        Ok(set)
    }

    /// The run folder, if one is wanted: its record is that of the command.
    fn open(&self) -> PyResult<Option<(Run, Status)>> {
        let Some(path) = &self.run_dir else { return Ok(None) };
        let plan = Plan {
            stage: "distill",
            config: folder::record(&self.config, &self.dataset, self.device),
            results: [("distill".to_owned(), c2r_experiment::results::DISTILL)].into(),
            environment: Environment {
                versions: versions(),
                threads: tch::get_num_threads(),
                device: format!("{:?}", self.device),
                precision: c2r_kernels::precision_names(self.device),
            },
            outputs: Vec::new(),
            needed: folder::needed(&self.config),
            writes: folder::FILES,
        };
        Run::open(Place::folder(path), plan, self.force, || folder::discard(path)).map(Some).map_err(|error| {
            let advice = match error {
                RunError::Busy { .. } => "wait for it, or choose another run_dir",
                RunError::Unreadable { .. } => "delete it, or choose another run_dir",
                RunError::Different { .. } => "choose another run_dir, or discard the run with force=True",
                RunError::OtherResults { .. } => "make it again with force=True, or choose another run_dir",
                RunError::OtherCommand { .. } => "choose another run_dir, or delete this folder",
                RunError::NoRecord { .. } => "choose another run_dir, or delete them with force=True",
                RunError::Changed { .. } => "put it back, or make it again with force=True",
                other => return value_error(other),
            };
            PyValueError::new_err(format!("{error}; {advice}"))
        })
    }

    /// Runs to the end; saves the state on the way, and where Python interrupts.
    fn steps(&self, distillation: &mut Distillation, mut run: Option<&mut Run>) -> PyResult<()> {
        let mut log = run.as_ref().map(|run| run.log(distillation.iteration())).transpose().map_err(runtime_error)?;
        let mut saved = Instant::now();
        let mut text = String::new();
        while let Some(event) = distillation.step().map_err(runtime_error)? {
            // Numbers are read where they are logged: a read waits for the device.
            match event {
                DistillEvent::Preparation { done, total } | DistillEvent::Teacher { done, total }
                    if done % LOG_EVERY == 0 || done == total =>
                {
                    let teaches = matches!(event, DistillEvent::Teacher { .. });
                    let loss = distillation.training_loss().map_err(runtime_error)?;
                    let loss = loss.map_or_else(String::new, |loss| format!(", loss {loss:.3}"));
                    text = format!("{}{loss}", if teaches { "training the teacher" } else { "preparing" });
                }
                DistillEvent::Images { iteration } if iteration % LOG_EVERY == 0 || distillation.is_finished() => {
                    if let Some(report) = distillation.report().map_err(runtime_error)? {
                        if let Some(log) = &mut log {
                            log.line(&report).map_err(runtime_error)?;
                        }
                        text = format!("loss {:.3}", report.loss);
                    }
                }
                _ => {}
            }
            let (done, total) = distillation.progress();
            let told = self.watch.tell("distil", done, total, text.clone());
            let due = saved.elapsed().as_secs_f64() >= self.checkpoint_seconds && !distillation.is_finished();
            if let (Some(run), true) = (run.as_mut(), due || told.is_err()) {
                let state = distillation.state().map_err(runtime_error)?;
                state.write(&run.file(folder::STATE)).map_err(runtime_error)?;
                run.pause().map_err(runtime_error)?;
                saved = Instant::now();
            }
            told?;
        }
        Ok(())
    }
}
