//! How much work a configuration asks for, before any of it is done.

use c2r_core::curriculum::Curriculum;

use crate::{
    config::{
        Anchors, CompanionConfig, DistillConfig, GradientsConfig, MethodName, PoolConfig, RealCandidates, RobustTerm,
    },
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
/// Early stops are not foreseen: the count is an upper bound where companions are reused. `config` is
/// resolved ([`DistillConfig::fill_in`]).
pub fn work(config: &DistillConfig, n_classes: usize, n_train: usize) -> Work {
    let mut total = Work::default();
    let decoded = (n_classes * config.ipc * (config.images.formation * config.images.formation) as usize) as f64;
    let iterations = config.iterations as f64;
    if let (Some(teacher), Some(pool)) = (&config.teacher, &config.pool) {
        let steps = teacher.steps as f64 * f64::from(teacher.count);
        total.add_training(config, pool, steps, n_train);
    }
    let real = config.matching.as_ref().map_or(0.0, |matching| (matching.real_per_class * n_classes) as f64);
    let attacks_real = config.matching.as_ref().is_some_and(|matching| matching.attacked);
    match config.method {
        MethodName::RandomReal => {}
        MethodName::Herding | MethodName::KCenter => {
            if let Some(pool) = &config.pool {
                total.add_training(config, pool, Pool::steps_to_fill(pool) as f64, n_train);
            }
            total.forward += n_train as f64;
        }
        MethodName::C2r => c2r(config, n_classes, n_train, &mut total),
        MethodName::Dm => {
            total.add_attacked(config, if attacks_real { iterations * real } else { 0.0 });
            total.forward += iterations * (real + decoded);
            total.input_gradient += iterations * decoded;
        }
        MethodName::GradientMatching => {
            total.add_attacked(config, if attacks_real { iterations * real } else { 0.0 });
            // Twice differentiated: a training pass and about as much again.
            total.training += iterations * (real + 2.0 * decoded);
            if let Some(GradientsConfig { outer: Some(outer), inner: Some(inner), .. }) = config.gradients {
                let learned = 1.0 - 1.0 / outer as f64;
                total.training += iterations * learned * inner as f64 * decoded;
            }
        }
        MethodName::TrajectoryMatching => {
            if let Some(experts) = &config.experts {
                let images = (experts.count as u64 * experts.epochs) as f64 * n_train as f64;
                total.training += images;
                total.add_attacked(config, if experts.adversarial { images } else { 0.0 });
            }
            if let Some(student) = &config.student {
                let batch = if student.batch_size == 0 { decoded } else { decoded.min(student.batch_size as f64) };
                total.training += iterations * student.steps as f64 * 2.0 * batch;
            }
        }
        MethodName::Recovery => {
            total.forward += n_train as f64 + iterations * decoded;
            total.input_gradient += iterations * decoded;
        }
    }
    total
}

impl Work {
    /// Companions of so many images.
    fn add_attacked(&mut self, config: &DistillConfig, images: f64) {
        let (forward, backward) = match &config.companions {
            Some(CompanionConfig::LsPgd(ls)) => (1.0 + f64::from(ls.candidates), 1.0),
            Some(CompanionConfig::Pgd(pgd)) => (f64::from(pgd.steps) + 1.0, f64::from(pgd.steps)),
            Some(CompanionConfig::Fgsm(_)) => (2.0, 1.0),
            None => (0.0, 0.0),
        };
        self.forward += images * forward;
        self.input_gradient += images * backward;
    }

    /// Training steps of a network as the pool makes them.
    fn add_training(&mut self, config: &DistillConfig, pool: &PoolConfig, steps: f64, n_train: usize) {
        let images = steps * pool.batch_size as f64;
        self.training += images * if pool.curvature.is_some() { 4.0 } else { 1.0 };
        // Scoring an epoch attacks every training image once more; weights come with the companions.
        let curriculum = config.aac.as_ref().map(|aac| &aac.pool);
        let scores = curriculum.is_some_and(|aac| aac.needs_scores() && !matches!(aac, Curriculum::Weight(_)));
        let weighs = curriculum.is_some_and(|aac| matches!(aac, Curriculum::Weight(_)));
        let epochs = images / n_train.max(1) as f64;
        self.add_attacked(config, if scores { epochs.ceil() * n_train as f64 } else { 0.0 });
        self.add_attacked(config, if pool.adversarial || weighs { images } else { 0.0 });
    }
}

fn c2r(config: &DistillConfig, n_classes: usize, n_train: usize, total: &mut Work) {
    let (Some(pool), Some(matching), Some(objective), Some(aac)) =
        (&config.pool, &config.matching, &config.objective, &config.aac)
    else {
        return;
    };
    let iterations = config.iterations as f64;
    total.add_training(config, pool, Pool::steps_to_fill(pool) as f64, n_train);
    let replaced = Pool::replacements(pool, config.iterations) * pool.min_steps;
    total.add_training(config, pool, iterations * pool.steps_per_iteration as f64 + replaced as f64, n_train);

    let decoded = n_classes * config.ipc * (config.images.formation * config.images.formation) as usize;
    let batch = match config.images.batch_per_class {
        0 => decoded,
        per_class => (per_class * n_classes).min(decoded),
    } as f64;
    let companions = objective.robust != RobustTerm::None || aac.synthetic.needs_scores();
    let views = if companions { 2.0 } else { 1.0 };
    total.forward += iterations * batch * views;
    total.input_gradient += iterations * batch * views;
    total.add_attacked(config, if companions { iterations * batch } else { 0.0 });
    // An epoch that has an order or a choice begins with scoring all of its images.
    let scored = aac.synthetic.needs_scores() && (batch < decoded as f64 || aac.synthetic.chooses());
    total.add_attacked(config, if scored { iterations * batch } else { 0.0 });

    let real = (matching.real_per_class * n_classes) as f64;
    let crl = objective.robust == RobustTerm::Crl;
    let anchors = crl && objective.anchors != Anchors::Synthetic;
    let queue = config.crl.as_ref().is_some_and(|crl| crl.queue.is_some());
    let attacked = matching.attacked || anchors || (crl && (objective.candidates != RealCandidates::None || queue));
    let clean = !matching.attacked || anchors || (crl && objective.candidates == RealCandidates::Both);
    total.forward += iterations * real * (f64::from(u8::from(attacked)) + f64::from(u8::from(clean)));
    total.add_attacked(config, if attacked || aac.matching.needs_scores() { iterations * real } else { 0.0 });
}
