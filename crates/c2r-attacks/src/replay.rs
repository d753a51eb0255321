//! Runs attacks step for step on recorded starts and draws, to compare them with another
//! implementation; the conformance tests are its users.
//!
//! Nothing here projects or judges. An evaluation goes through [`crate::evaluate`].

use c2r_base::{Classifier, Norm, ThreatModel};
use tch::{Kind, Tensor};

use crate::{
    attack::AttackBatch,
    attacks::{
        apgd::{Apgd, ApgdConfig, Phase},
        cw_l2::CwL2Config,
        deepfool,
        fab::{Fab, FabConfig},
        square::{SquareConfig, search},
    },
    error::{AttackError, ConfigError},
    options::LossKind,
    oracle::Oracle,
    registry::AttackConfig,
};

pub use crate::{
    attacks::{
        apgd::{checkpoints as apgd_checkpoints, oscillates as apgd_oscillates},
        cw_l2::clipped_margin,
        fab::{Nearest, project_on_hyperplane as fab_projection},
        iterative::next_momentum as momentum,
        square::window as square_window,
        windows::{SquareDraws, share as square_p, side as square_side},
    },
    draws::Draws,
};

/// Runs an attack with fixed steps (FGSM, BIM, PGD, the momentum family, TPGD, EOT-PGD, Jitter,
/// CW-Linf) from `start`, f32 `[N, C, H, W]`; returns the last images.
///
/// # Errors
/// [`AttackError`]; [`ConfigError::UnknownAttack`] if `config` is of another family.
pub fn gradient_attack(
    config: &AttackConfig,
    model: &dyn Classifier,
    batch: &AttackBatch<'_>,
    threat: &ThreatModel,
    start: &Tensor,
    draws: &mut Draws,
) -> Result<Tensor, AttackError> {
    let _no_grad = tch::no_grad_guard();
    let Some(attack) = config.iterative()? else {
        let (name, known) = (config.name().to_owned(), "attacks with fixed steps".to_owned());
        return Err(ConfigError::UnknownAttack { name, known }.into());
    };
    let mut oracle = Oracle::new(model, config.name(), batch.ids);
    let all: Vec<usize> = (0..batch.ids.len()).collect();
    attack.ascend(&mut oracle, batch, threat, &all, start, draws)
}

/// Images of a recorded run and what they reached.
#[derive(Debug)]
pub struct Best {
    /// f32 `[N, C, H, W]`, the images with the largest loss.
    pub images: Tensor,
    /// f32 `[N]`, their losses.
    pub losses: Tensor,
}

/// Runs Auto-PGD for `steps` steps from `start`, without stopping at success and with the first window of
/// the authors' code (`first-window-from-zero`).
///
/// * `loss`: [`LossKind::Ce`] or [`LossKind::Dlr`]; `aims`, i64 `[N]`, selects the targeted loss.
///
/// # Errors
/// [`AttackError`] if logits are not finite.
#[expect(clippy::too_many_arguments, reason = "a run without a configuration is all arguments")]
pub fn apgd(
    model: &dyn Classifier,
    images: &Tensor,
    labels: &Tensor,
    aims: Option<&Tensor>,
    loss: LossKind,
    norm: Norm,
    epsilon: f64,
    steps: u32,
    start: &Tensor,
) -> Result<Best, AttackError> {
    let _no_grad = tch::no_grad_guard();
    let rows: Vec<usize> = (0..images.size()[0] as usize).collect();
    let ids: Vec<u64> = rows.iter().map(|&row| row as u64).collect();
    let batch = AttackBatch { images, labels, ids: &ids, targets: None };
    let config = ApgdConfig { first_window_from_zero: true, ..ApgdConfig::default() };
    let attack = Apgd { config, loss, targets: None };
    let phase = Phase { norm, radius: epsilon, steps, warm: false, stop: false };
    let end = attack.run(&mut Oracle::new(model, "apgd", &ids), &batch, &rows, aims, start, phase)?;
    Ok(Best { images: end.best, losses: end.best_losses })
}

/// Runs FAB from the clean images, for the smallest perturbation.
///
/// * `aims`: i64 `[N]`, the class to walk towards; `None` for the nearest boundary.
///
/// # Errors
/// [`AttackError`] if logits are not finite.
pub fn fab(
    model: &dyn Classifier,
    images: &Tensor,
    labels: &Tensor,
    aims: Option<&Tensor>,
    threat: &ThreatModel,
    steps: u32,
) -> Result<Nearest, AttackError> {
    let _no_grad = tch::no_grad_guard();
    let rows: Vec<usize> = (0..images.size()[0] as usize).collect();
    let ids: Vec<u64> = rows.iter().map(|&row| row as u64).collect();
    let batch = AttackBatch { images, labels, ids: &ids, targets: None };
    let attack = Fab { config: FabConfig { steps, ..FabConfig::default() }, targets: None };
    let aims = aims.map(Tensor::shallow_clone);
    attack.walk(&mut Oracle::new(model, "fab", &ids), &batch, &rows, aims, threat, images.copy())
}

/// What a recorded Square run ended with.
#[derive(Debug)]
pub struct Searched {
    /// f32 `[N, C, H, W]`.
    pub images: Tensor,
    /// f32 `[N]`, logit margins.
    pub margins: Tensor,
    /// Forward passes of each sample.
    pub queries: Vec<u64>,
}

/// Runs Square on recorded windows.
///
/// # Errors
/// [`AttackError`] if logits are not finite.
pub fn square(
    config: &SquareConfig,
    model: &dyn Classifier,
    batch: &AttackBatch<'_>,
    threat: &ThreatModel,
    draws: &mut SquareDraws,
) -> Result<Searched, AttackError> {
    let _no_grad = tch::no_grad_guard();
    let mut oracle = Oracle::new(model, "square", batch.ids);
    let all: Vec<usize> = (0..batch.ids.len()).collect();
    let end = search(&mut oracle, batch, threat, config, &all, draws)?;
    let finished = oracle.finish(end.images);
    Ok(Searched { images: finished.images, margins: end.margins, queries: finished.queries })
}

/// One DeepFool step from logits, f32 `[N, K]`, and their Jacobian, f32 `[N, K, D]`: the class whose
/// linearized boundary is nearest, i64 `[N]`, and the shortest change onto it, f32 `[N, D]`.
pub fn deepfool_step(logits: &Tensor, jacobian: &Tensor, labels: &Tensor) -> (Tensor, Tensor) {
    let size = jacobian.size();
    let at = labels.view([-1, 1]);
    let differences = logits - logits.gather(1, &at, false);
    let own = jacobian.gather(1, &at.unsqueeze(2).expand([-1, 1, size[2]], false), false);
    let gradients = jacobian - own;
    let lengths = gradients.square().sum_dim_intlist([2i64].as_slice(), false, Kind::Float).sqrt();
    let distances = (differences.abs() / (lengths + 1e-12)).scatter_value(1, &at, f64::INFINITY);
    let chosen = distances.argmin(1, false);
    let pick = chosen.view([-1, 1]);
    let difference = differences.gather(1, &pick, false).squeeze_dim(1);
    let gradient = gradients.gather(1, &pick.unsqueeze(2).expand([-1, 1, size[2]], false), false);
    let step = deepfool::step_onto(&difference, &gradient.view([size[0], 1, 1, size[2]]), Norm::L2);
    (chosen, step.view([size[0], size[2]]))
}

/// Runs CW-L2 with torchattacks' stop over the whole batch.
///
/// # Errors
/// [`AttackError`] if logits are not finite.
pub fn cw_l2(config: &CwL2Config, model: &dyn Classifier, batch: &AttackBatch<'_>) -> Result<Nearest, AttackError> {
    let _no_grad = tch::no_grad_guard();
    let mut oracle = Oracle::new(model, "cw-l2", batch.ids);
    let c = Tensor::full([batch.ids.len() as i64], config.c, (Kind::Float, batch.images.device()));
    let (images, squared) = config.minimize(&mut oracle, batch, &c, true)?;
    Ok(Nearest { images, distances: squared.sqrt() })
}
