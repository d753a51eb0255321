//! `c2r.attack`.

use std::{
    ops::ControlFlow,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    sync::{atomic::Ordering, mpsc},
    thread,
    time::Duration,
};

use c2r_attacks::{
    AdversarialImages, Attack, AttackConfig, AttackError, AttackReport, Choice, EvaluateOptions, Event, Mode, Setting,
    evaluate_with, needs_gradient,
};
use c2r_base::{
    Classifier, Epsilon, Goal, LabelledImages, Norm, Seed, TargetRule, ThreatModel,
    artifact::{self, TensorFile},
};
use c2r_eval::{AttackRecord, Evaluation, RecordContext, doubts};
use pyo3::{
    exceptions::{PyRuntimeError, PyValueError},
    prelude::*,
};
use pyo3_tch::PyTensor;
use tch::Tensor;

use crate::{
    error::{Raised, caught, of_attack, panicked, runtime_error, value_error},
    memory::KeepMemory,
    model::{Callable, Loaded, Script, Stop},
    watch::{Watch, device, versions},
};

/// How often Ctrl-C is looked for while the model runs on other threads.
const POLL: Duration = Duration::from_millis(50);

/// What Python gives: `package/c2r/_attack.py` fills it.
#[derive(FromPyObject)]
pub(crate) struct Request {
    /// The callable; `None` for the file at `path`.
    model: Option<Py<PyAny>>,
    path: Option<PathBuf>,
    /// For the report.
    name: String,
    device: String,
    images: PyTensor,
    labels: PyTensor,
    attacks: Vec<String>,
    norm: String,
    eps: String,
    targets: Option<String>,
    /// With `given`: the target of each sample.
    target_classes: Option<Vec<i64>>,
    each: bool,
    batch_size: usize,
    seed: u64,
    workers: usize,
    self_check: bool,
    misclassified: bool,
    as_is: bool,
    options: Vec<(String, String)>,
    set: Vec<(String, String, String)>,
    /// Called with attack, samples done, samples in all and a text.
    progress: Option<Py<PyAny>>,
    /// `torch.autograd.grad`.
    grad: Py<PyAny>,
}

/// What Python gets: the attacked images by attack, whether each sample survived, and the report as JSON.
type Answer = (Vec<(String, Py<PyAny>)>, Vec<bool>, String);

#[pyfunction]
pub(crate) fn attack(py: Python<'_>, request: Request) -> PyResult<Answer> {
    caught("the attack", || evaluate(py, request))
}

fn evaluate(py: Python<'_>, request: Request) -> PyResult<Answer> {
    let Request { norm, eps, targets, .. } = &request;
    let norm: Norm = norm.parse().map_err(value_error)?;
    let epsilon = radius(eps)?;
    let goal = targets.as_deref().map(rule).transpose()?.map_or(Goal::Untargeted, Goal::Targeted);
    let threat = ThreatModel { norm, epsilon, goal };
    let (names, each, options) = (&request.attacks, request.each, &request.options);
    let setting = |(attack, option, value)| Setting { attack, option, value };
    let set = &request.set.into_iter().map(setting).collect::<Vec<_>>();
    let choice = Choice { names, norm, each, options, set };
    let configs = choice.configs().map_err(value_error)?;
    let mut attacks: Vec<Box<dyn Attack>> =
        configs.iter().map(AttackConfig::build).collect::<Result<_, _>>().map_err(value_error)?;
    let is_attacked = epsilon != Epsilon::ZERO;
    if !is_attacked {
        let clean = Choice { names: &["clean".to_owned()], norm, each: false, options: &[], set: &[] };
        let clean = clean.configs().map_err(value_error)?;
        attacks = clean.iter().map(AttackConfig::build).collect::<Result<_, _>>().map_err(value_error)?;
    }
    let (images, labels) = (request.images.shallow_clone(), request.labels.shallow_clone());
    let data = LabelledImages::new(images, labels).map_err(value_error)?;
    check_epsilon(&threat, data.image_shape())?;
    let mode = if request.each && is_attacked { Mode::Each } else { Mode::Suite };
    let (raised, stop) = (Raised::default(), Stop::default());
    let options = EvaluateOptions {
        seed: Seed::new(request.seed),
        batch_size: request.batch_size,
        mode,
        self_check: request.self_check && is_attacked,
        workers: request.workers.max(1),
        misclassified_too: request.misclassified && is_attacked,
        targets: request.target_classes,
        resume: None,
        stop: stop.clone(),
    };
    let device = device(&request.device)?;
    let (job, model_sha256, n_tuned) = match (request.model, &request.path) {
        (Some(model), _) => {
            let grad = request.grad;
            let callable = Callable { model, grad, device, raised: raised.clone(), stop: stop.clone() };
            (Model::Python(callable), String::new(), 0)
        }
        (None, Some(path)) => {
            let needs_gradient = attacks.iter().any(|attack| needs_gradient(attack.as_ref()));
            let sha256 = artifact::sha256_of_file(path).map_err(value_error)?;
            let (shape, as_is, stop) = (data.image_shape(), request.as_is, stop.clone());
            let Loaded { script, n_tuned } =
                py.allow_threads(|| Script::load(path, shape, as_is, needs_gradient, device, stop))?;
            (Model::Script(script), sha256, n_tuned)
        }
        (None, None) => return Err(PyValueError::new_err("neither a model nor a path")),
    };
    let images = AdversarialImages::new(&data, attacks.len(), mode);
    let job = Job { model: job, data, attacks, threat, options, images, watch: Watch(request.progress), raised, stop };
    let Finished { mut report, images, data } = job.run(py)?;
    report.versions.extend(versions());

    let mut notes = Vec::new();
    if data.n_clamped() > 0 {
        notes.push(format!("{} values outside [0, 1] by less than 1e-6 (rounding) were clamped", data.n_clamped()));
    }
    if !is_attacked {
        notes.push("a radius of 0 leaves nothing to attack: the result is that of the clean images".to_owned());
    }
    notes.extend(doubts::reaches_grey(&threat, data.image_shape()));
    notes.extend(choice.changed_suites(&configs));
    notes.extend(choice.idle(&configs, &threat));
    notes.extend(doubts::chance_level(&report));
    let robust = survived(&report);
    let evaluation = Evaluation {
        model: request.name,
        model_sha256,
        tuned_operators: n_tuned,
        as_is: request.as_is,
        inputs: "tensors in memory".to_owned(),
        report,
    };
    let context = RecordContext {
        subject: None,
        model_sha256: None,
        test_sha256: fingerprint(&data),
        subset: None,
        held_out: false,
        notes,
        precision: c2r_kernels::precision_names(device),
        argv: vec!["c2r.attack".to_owned()],
    };
    let record = AttackRecord::from_evaluation(evaluation, context)
        .map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    let named = |(config, set): (&AttackConfig, &Tensor)| {
        Ok((config.name().to_owned(), PyTensor(set.shallow_clone()).into_pyobject(py)?.unbind()))
    };
    let n_sets = if request.each { configs.len() } else { 1 };
    // Without an attack there is one set, of the clean images.
    let sets = configs.iter().zip(images.sets().iter().cycle()).take(n_sets).map(named).collect::<PyResult<_>>()?;
    Ok((sets, robust, serde_json::to_string(&record).map_err(runtime_error)?))
}

enum Model {
    Python(Callable),
    Script(Script),
}

/// One evaluation, ready to run on any thread.
struct Job {
    model: Model,
    data: LabelledImages,
    attacks: Vec<Box<dyn Attack>>,
    threat: ThreatModel,
    options: EvaluateOptions,
    images: AdversarialImages,
    watch: Watch,
    raised: Raised,
    stop: Stop,
}

struct Finished {
    report: AttackReport,
    images: AdversarialImages,
    data: LabelledImages,
}

impl Job {
    /// A callable that one thread asks is asked by the caller's, which has the caller's thread-local settings
    /// (streams, autocast). Everything else runs beside it, while it waits for Ctrl-C.
    fn run(self, py: Python<'_>) -> PyResult<Finished> {
        let (raised, stop) = (self.raised.clone(), self.stop.clone());
        let beside = self.options.workers > 1 || matches!(self.model, Model::Script(_));
        let finished = py.allow_threads(|| {
            let _kept = KeepMemory::new();
            if beside { self.run_beside(&raised, &stop) } else { self.run_caught() }
        });
        match (raised.take(), finished) {
            // Ctrl-C after the last pass.
            (Some(interrupt), Ok(Ok(_))) if stop.load(Ordering::Relaxed) => Err(interrupt),
            // The evaluation survives some exceptions, such as that of a model without gradients.
            (_, Ok(Ok(finished))) => Ok(finished),
            (Some(exception), _) => Err(exception),
            (None, Ok(Err(error))) => Err(of_attack(error)),
            (None, Err(panic)) => Err(panicked("the attack", panic.as_ref())),
        }
    }

    fn run_caught(self) -> thread::Result<Result<Finished, AttackError>> {
        panic::catch_unwind(AssertUnwindSafe(|| self.evaluate()))
    }

    fn run_beside(self, raised: &Raised, stop: &Stop) -> thread::Result<Result<Finished, AttackError>> {
        let (done, waits) = mpsc::channel();
        thread::scope(|scope| {
            let running = scope.spawn(move || {
                let finished = self.evaluate();
                // Nobody waits any more only where the other end has ended, too.
                let _ = done.send(());
                finished
            });
            while let Err(mpsc::RecvTimeoutError::Timeout) = waits.recv_timeout(POLL) {
                if let Err(interrupt) = Python::with_gil(|py| py.check_signals()) {
                    raised.keep(interrupt);
                    stop.store(true, Ordering::Relaxed);
                }
            }
            running.join()
        })
    }

    fn evaluate(self) -> Result<Finished, AttackError> {
        let Self { model, data, attacks, threat, options, mut images, watch, raised, .. } = self;
        let model: Box<dyn Classifier> = match model {
            Model::Python(callable) => Box::new(callable),
            Model::Script(script) => Box::new(script),
        };
        let report = evaluate_with(model.as_ref(), &data, &attacks, &threat, &options, &mut |event| {
            images.observe(event);
            if matches!(event, Event::Clean { .. }) {
                // The check of the model is over, which survives exceptions such as that of a model without gradients.
                raised.forget_survived();
            }
            let (name, done, total, text) = match event {
                Event::Clean { done, total } => ("clean", *done, *total, String::new()),
                Event::Started { attack, done, total, .. } => (*attack, *done, *total, String::new()),
                Event::Judged { entry, attack, done, total, report, .. } => {
                    let robust = 100.0 * report.attacks[*entry].robust_accuracy();
                    (*attack, *done, *total, format!("{robust:.1} % robust"))
                }
                _ => return ControlFlow::Continue(()),
            };
            match watch.tell(name, done as u64, total as u64, text) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    raised.keep(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        Ok(Finished { report, images, data })
    }
}

fn survived(report: &AttackReport) -> Vec<bool> {
    let all =
        |at: usize| report.attacks.iter().all(|attack| attack.samples[at].outcome == c2r_attacks::Outcome::Survived);
    report.clean_correct().enumerate().map(|(at, correct)| correct && all(at)).collect()
}

/// SHA-256 of the images and labels as a safetensors file.
fn fingerprint(data: &LabelledImages) -> String {
    let mut file = TensorFile::default();
    file.tensors.insert("images".to_owned(), data.images().shallow_clone());
    file.tensors.insert("labels".to_owned(), data.labels().shallow_clone());
    artifact::sha256_hex(&file.to_bytes())
}

/// The radius; zero too, as the first point of a curve.
fn radius(text: &str) -> PyResult<Epsilon> {
    let (above, below) = text.split_once('/').unwrap_or((text, "1"));
    let [above, below] = [above, below].map(|part| part.trim().parse::<f64>().unwrap_or(f64::NAN));
    if above == 0.0 && below > 0.0 {
        return Ok(Epsilon::ZERO);
    }
    text.parse().map_err(value_error)
}

/// Refuses 8 where 8/255 is meant.
fn check_epsilon(threat: &ThreatModel, shape: [i64; 3]) -> PyResult<()> {
    let epsilon = threat.epsilon;
    threat.norm.check_length(epsilon, shape).map_err(|error| {
        let advice = if error.counts_255ths {
            format!("write \"{epsilon}/255\" if it counts the 255 steps of 8-bit pixels")
        } else {
            "choose a smaller one".to_owned()
        };
        PyValueError::new_err(format!("eps {epsilon} reaches every image: {error}; {advice}"))
    })
}

fn rule(text: &str) -> PyResult<TargetRule> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| {
        PyValueError::new_err(format!(
            "targets must be next, random, least-likely or second-best, or a class for each image, not `{text}`"
        ))
    })
}
