//! How much work a configuration asks for, before any of it is done.

use crate::{
    config::{CompanionConfig, DistillConfig, Method, RobustTerm},
    pool::Pool,
};

/// Passes through the network that a distillation will make, in images.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Work {
    /// Forward only.
    pub forward: f64,
    /// Backward to the images (each follows a forward pass that is counted in `forward`).
    pub input_gradient: f64,
    /// Forward and backward to the parameters.
    pub training: f64,
}

/// Counts the passes of a whole run on `n_classes` classes and `n_train` training images.
///
/// Early stops are not foreseen: the count is an upper bound where companions are reused.
pub fn work(config: &DistillConfig, n_classes: usize, n_train: usize) -> Work {
    let (forward, backward) = match &config.companions {
        CompanionConfig::LsPgd(ls) => (1.0 + f64::from(ls.candidates), 1.0),
        CompanionConfig::Pgd(pgd) => (f64::from(pgd.steps) + 1.0, f64::from(pgd.steps)),
        CompanionConfig::Fgsm(_) => (2.0, 1.0),
    };
    let mut total = Work::default();
    let mut add_steps = |steps: f64| {
        let images = steps * config.pool.batch_size as f64;
        total.training += images;
        let attacked = if config.pool.adversarial { images } else { 0.0 };
        // Scoring an epoch attacks every training image once more.
        let epochs = images / n_train.max(1) as f64;
        let scored = if config.aac.pool.needs_scores() { epochs.ceil() * n_train as f64 } else { 0.0 };
        total.forward += (attacked + scored) * forward;
        total.input_gradient += (attacked + scored) * backward;
    };
    add_steps(config.teacher.as_ref().map_or(0, |teacher| teacher.steps) as f64);
    if config.method == Method::RandomReal {
        return total;
    }
    let iterations = config.iterations as f64;
    add_steps(Pool::steps_to_fill(&config.pool) as f64);
    add_steps(iterations * config.pool.steps_per_iteration as f64);

    let decoded = n_classes * config.ipc * (config.images.formation * config.images.formation) as usize;
    let batch = match config.images.batch_per_class {
        0 => decoded,
        per_class => (per_class * n_classes).min(decoded),
    } as f64;
    let real = (config.matching.real_per_class * n_classes) as f64;
    let crl = config.objective.robust == RobustTerm::Crl;
    let companions = config.objective.robust != RobustTerm::None || config.aac.synthetic.needs_scores();
    let views = if companions { 2.0 } else { 1.0 };
    total.forward += iterations * batch * (views + if companions { forward } else { 0.0 });
    total.input_gradient += iterations * batch * (views + if companions { backward } else { 0.0 });
    let attacked = config.matching.attacked || crl || config.aac.matching.needs_scores();
    let real_views = f64::from(u8::from(attacked)) + f64::from(u8::from(!config.matching.attacked || crl));
    total.forward += iterations * real * (real_views + if attacked { forward } else { 0.0 });
    total.input_gradient += iterations * real * if attacked { backward } else { 0.0 };
    total
}
