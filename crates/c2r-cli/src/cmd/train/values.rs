//! Values of options of `c2r train`, and what a training costs and takes.

use c2r_distill::Work;
use c2r_experiment::Selection;
use c2r_train::{AdversarialLoss, Length, LrSchedule, Protocol, TrainConfig};
use clap::builder::TypedValueParser;

use crate::help;

pub(super) fn protocols() -> impl TypedValueParser<Value = Protocol> {
    help::one_of([
        (Protocol::Natural, "natural", "no attacks"),
        (Protocol::PgdAt, "pgd-at", "adversarial training with PGD"),
        (Protocol::Trades, "trades", "TRADES (arXiv:1901.08573)"),
        (Protocol::DdRobustbench, "dd-robustbench", "natural training with DD-RobustBench's epochs, rates and batches"),
    ])
}

pub(super) fn selections() -> impl TypedValueParser<Value = Selection> {
    help::one_of([
        (Selection::Last, "last", "the last step's"),
        (
            Selection::HeldOut,
            "held-out",
            "the most accurate one on a part of the real training images; a network of --dataset is not trained on that part, but the set of --synthetic may have been distilled from it",
        ),
        (
            Selection::BestTest,
            "best-test",
            "the most accurate one on the TEST images: optimistic, and labelled so everywhere",
        ),
    ])
}

/// A learning rate as the command line gives it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rate {
    /// The one that the set brings.
    Learned,
    /// This one.
    Of(f64),
}

/// What `--lr` and `--set lr=` take for [`Rate::Learned`].
pub(super) const LEARNED: &str = "learned";

pub(super) fn parse_rate(text: &str) -> Result<Rate, String> {
    match text.parse() {
        _ if text == LEARNED => Ok(Rate::Learned),
        Ok(rate) if rate > 0.0 => Ok(Rate::Of(rate)),
        _ => Err(format!("expected a positive number, such as 0.01, or `{LEARNED}`")),
    }
}

pub(super) fn parse_share(text: &str) -> Result<f64, String> {
    let share: Option<f64> = text.parse().ok().filter(|share| *share > 0.0 && *share < 1.0);
    share.ok_or_else(|| "expected a number between 0 and 1, such as 0.1".to_owned())
}

/// How long a network is trained on real images, for a note in tables: a reference is trained longer than the other rows.
pub(super) fn how_long(config: &TrainConfig, steps: u64, n_images: usize) -> String {
    let per_epoch = n_images.div_ceil(config.batch_size) as f64;
    let schedule = match &config.lr_schedule {
        LrSchedule::Constant => "constant".to_owned(),
        LrSchedule::HalfWay => "divided by 10 at half-time".to_owned(),
        LrSchedule::TenthAtEpochs(epochs) => format!("divided by 10 at each of the epochs {epochs:?}"),
        LrSchedule::Cosine => "falling to 0 on a cosine".to_owned(),
    };
    let epochs = format!("{:.1}", steps as f64 / per_epoch);
    let (epochs, lr) = (epochs.trim_end_matches(".0"), config.lr);
    format!("trained for {epochs} epochs ({steps} steps) at a learning rate of {lr}, {schedule}")
}

/// What training on `n` images sends through the network, without a teacher's labels.
pub(crate) fn work(config: &TrainConfig, n: usize) -> Work {
    let images = match config.length {
        Length::Epochs(epochs) => epochs as f64 * n as f64,
        Length::Steps(steps) => steps as f64 * config.batch_size.min(n) as f64,
    };
    let Some(adversarial) = &config.adversarial else {
        return Work { training: images, ..Work::default() };
    };
    let attacked = f64::from(adversarial.steps) * images;
    // TRADES trains on the clean images and on the attacked ones, and looks at the clean ones before it attacks.
    let (trained, looks) =
        if matches!(adversarial.loss, AdversarialLoss::Trades(_)) { (2.0 * images, images) } else { (images, 0.0) };
    Work { forward: attacked + looks, input_gradient: attacked, training: trained }
}
