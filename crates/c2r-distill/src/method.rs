//! What all methods have in common: the outer loop asks, a method answers.

use std::{collections::BTreeMap, fmt};

use c2r_models::Model;
use tch::Tensor;

use crate::{
    c2r::C2r,
    canvas::Canvas,
    config::{DistillConfig, MethodName},
    coreset::Coreset,
    distillation::DistillError,
    dm::Dm,
    gradient_matching::GradientMatching,
    passes::RunPasses,
    recovery::Recovery,
    setting::Setting,
    trajectory_matching::TrajectoryMatching,
};

/// What a method works on in one step.
#[derive(Debug)]
pub struct Turn<'a> {
    /// What it reads.
    pub setting: &'a Setting,
    /// The images it moves.
    pub canvas: &'a mut Canvas,
    /// The network that labels the images, where there is one and it is trained.
    pub teacher: Option<&'a Model>,
    /// Where it counts its passes through networks.
    pub passes: &'a mut RunPasses,
}

/// A way to fill a synthetic set.
///
/// The outer loop ([`crate::Distillation`]) prepares a method until it [`Method::is_prepared`], trains the
/// teacher where labels ask for one, and then asks for `iterations` updates. Between two calls
/// [`Method::state`] must hold everything that the method continues from: a run that is stopped there and
/// taken up again ends with the same bytes. All randomness comes from `setting.seed` by purpose and step.
pub trait Method: fmt::Debug {
    /// Units of preparation done and in all; none unless a method says so.
    fn preparation(&self, setting: &Setting) -> (u64, u64) {
        let _ = setting;
        (0, 0)
    }

    /// Whether updates can begin.
    fn is_prepared(&self, setting: &Setting) -> bool {
        let (done, total) = self.preparation(setting);
        done >= total
    }

    /// One unit of preparation, e.g. a training step. Returns its loss.
    ///
    /// # Errors
    /// [`DistillError`]; the run must then be taken up from its last saved state.
    ///
    /// # Panics
    /// In a method that has no [`Method::preparation`].
    fn prepare(&mut self, turn: &mut Turn<'_>) -> Result<f64, DistillError> {
        let _ = turn;
        unreachable!("a method without preparation is prepared")
    }

    /// Everything that its preparation depends on, apart from data, seed, model and `[teacher]`; `None` where no other run
    /// may take it over.
    fn prepared_from(&self, setting: &Setting) -> Option<serde_json::Value> {
        let _ = setting;
        None
    }

    /// One update of the images, by [`Canvas::descend`].
    ///
    /// # Errors
    /// As [`Method::prepare`].
    fn update(&mut self, turn: &mut Turn<'_>) -> Result<StepReport, DistillError>;

    /// Puts what it continues from into `into`.
    fn state(&self, into: &mut BTreeMap<String, Tensor>);

    /// Continues from [`Method::state`].
    ///
    /// # Errors
    /// [`DistillError::State`], naming what does not fit.
    fn load_state(&mut self, setting: &Setting, state: &BTreeMap<String, Tensor>) -> Result<(), DistillError>;

    /// What the method claims to change about the images, measured on its own networks; `None` where it claims
    /// nothing of the kind.
    ///
    /// # Errors
    /// [`DistillError::Data`] if the images cannot be decoded.
    fn claims(&self, setting: &Setting, canvas: &Canvas) -> Result<Option<Claims>, DistillError> {
        let _ = (setting, canvas);
        Ok(None)
    }
}

/// Numbers of one update of the synthetic images; losses are those before the update.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct StepReport {
    /// Updates done, this one included.
    pub iteration: u64,
    /// The whole loss, what the images descend.
    pub loss: f64,
    /// Distance to what is matched: class means (C²R, DM), gradients, parameters, feature statistics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matching: Option<f64>,
    /// Cross-entropy of the synthetic images, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub performance: Option<f64>,
    /// The robust term of C²R.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub robust: Option<f64>,
    /// 10, 50 and 90 % quantiles of the margin of the synthetic images under attack, in logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin_quantiles: Option<[f64; 3]>,
    /// The same of the real images of the iteration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub real_margin_quantiles: Option<[f64; 3]>,
    /// Mean cosine similarity of the anchors with their nearest impostor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impostor_similarity: Option<f64>,
    /// Learning rate of the unrolled training, where it is learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_lr: Option<f64>,
    /// Share of the companions of the run so far that were kept without a backward pass (early stop).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reused_share: Option<f64>,
    /// Backward passes of the run so far that PGD-10 would have needed more to make the same companions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backward_saved: Option<i64>,
    /// Passes of the run so far.
    pub passes: RunPasses,
}

/// What C²R claims to change, before the first and after the last update, on the networks of the pool as they
/// stand at the end.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Claims {
    /// 10, 50 and 90 % quantiles of the margin under attack, in logits, of the first images.
    pub margin_quantiles_before: [f64; 3],
    /// The same of the last images.
    pub margin_quantiles_after: [f64; 3],
    /// Mean cosine similarity of the first images with their nearest impostor among themselves and their
    /// companions.
    pub impostor_similarity_before: f64,
    /// The same of the last images.
    pub impostor_similarity_after: f64,
}

/// The method that a checked configuration asks for, before its first step.
pub(crate) fn build(config: &DistillConfig, setting: &Setting) -> Result<Box<dyn Method>, DistillError> {
    Ok(match config.method {
        MethodName::C2r => Box::new(C2r::new(setting)?),
        MethodName::RandomReal | MethodName::Herding | MethodName::KCenter => Box::new(Coreset::new(setting)?),
        MethodName::Dm => Box::new(Dm::new(setting)?),
        MethodName::GradientMatching => Box::new(GradientMatching::new(setting)?),
        MethodName::TrajectoryMatching => Box::new(TrajectoryMatching::new(setting)?),
        MethodName::Recovery => Box::new(Recovery::new(setting)?),
    })
}

/// 10, 50 and 90 % quantiles of f32 `[N]`.
pub(crate) fn quantiles(values: &Tensor) -> [f64; 3] {
    let levels = Tensor::from_slice(&[0.1f32, 0.5, 0.9]).to_device(values.device());
    let values = values.quantile(&levels, None::<i64>, false, "linear");
    [0, 1, 2].map(|index| values.double_value(&[index]))
}
