//! What a distillation method is: a configuration, which checks itself, knows its cost and builds the method, and the
//! method itself, which the run asks for one update after the other.

use std::{any::Any, fmt, sync::Arc};

use c2r_core::curriculum::Curriculum;
use c2r_models::Model;
use c2r_train::{
    Unread,
    layers::{self, KeyError},
    read,
    state::State,
};
use serde::de::DeserializeOwned;
use tch::{Kind, Tensor};
use toml::{Table, Value};

use crate::{
    config::{CommonConfig, MatchingConfig},
    context::Context,
    cost::Work,
    error::{ConfigError, DistillError},
    parts::images::SyntheticImages,
    passes::RunPasses,
};

/// A line of the registry of methods.
#[derive(Clone, Copy, Debug)]
pub struct MethodEntry {
    /// What `method` is in a configuration.
    pub name: &'static str,
    /// The sections of a configuration that it reads: of those that methods share, `pool` and `companions`, and its own, which
    /// must all be there, in the order in which they are written.
    pub sections: &'static [&'static str],
    /// Those of its own sections whose `dsa` is the dataset's unless they say otherwise.
    pub augmented: &'static [&'static str],
    /// Reads its own sections.
    pub read: fn(Sections) -> Result<Arc<dyn MethodConfig>, ConfigError>,
}

/// The sections that belong to one method, while they are read.
#[derive(Debug)]
pub struct Sections {
    /// The sections by name.
    pub table: Table,
    /// Images per class, from which some values follow.
    pub ipc: usize,
}

impl Sections {
    /// Gives a key of a section a value unless it has one.
    pub fn put_default(&mut self, section: &str, key: &str, value: impl Into<Value>) {
        if let Some(Value::Table(section)) = self.table.get_mut(section) {
            section.entry(key).or_insert(value.into());
        }
    }

    /// The sections as the fields of a type.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read<T: DeserializeOwned>(self) -> Result<T, KeyError> {
        layers::read(self.table)
    }
}

/// What a method asks of the rest of the configuration and of the run.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// It attacks images itself, and so needs `[companions]`.
    pub attacks: bool,
    /// It needs a `[teacher]` even where labels are hard.
    pub teacher: bool,
    /// Real images are chosen and then left as they are: it prepares, and never updates.
    pub selects: bool,
    /// An update can look at some of the images only (`images.batch-per-class`).
    pub takes_batches: bool,
    /// Real images of each class that one update takes.
    pub real_per_class: usize,
    /// It attacks pool, matched and synthetic images by `[attacks]`, and remembers perturbations (`companions.warm-start`).
    pub places: bool,
    /// In which order its networks and the teacher see real images.
    pub curriculum: Curriculum,
    /// Real images per training step of its networks, where that is not the pool's.
    pub training_batch: Option<usize>,
}

impl Needs {
    /// Those of a method that only matches real images.
    pub(crate) fn of_matching(matching: &MatchingConfig) -> Self {
        Self { attacks: matching.attacked, real_per_class: matching.real_per_class, ..Self::default() }
    }
}

/// The configuration of one method.
pub trait MethodConfig: Any + fmt::Debug + Send + Sync {
    /// Its line of the registry.
    fn entry(&self) -> &'static MethodEntry;

    /// Its own sections by name, in the order of [`MethodEntry::sections`].
    fn sections(&self) -> Vec<(&'static str, &dyn erased_serde::Serialize)>;

    /// What tables call the result of this configuration unless it has a name.
    fn label(&self) -> &'static str {
        self.entry().name
    }

    /// Checks everything that can be checked without data; what is common is checked already.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    fn validate(&self, common: &CommonConfig) -> Result<(), ConfigError> {
        let _ = common;
        Ok(())
    }

    /// What it asks of the rest of the configuration and of the run: nothing by default.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Keys that cannot act beside the others, or ask for more than is used, and why.
    fn idle(&self, common: &CommonConfig) -> Vec<(&'static str, &'static str)> {
        let _ = common;
        Vec::new()
    }

    /// What a user of this configuration should know before it runs.
    fn note(&self, common: &CommonConfig) -> Option<&'static str> {
        let _ = common;
        None
    }

    /// Adds the passes of a whole run on `n_classes` classes and `n_train` training images, without those of the teacher.
    fn add_work(&self, common: &CommonConfig, n_classes: usize, n_train: usize, total: &mut Work);

    /// The method before its first step.
    ///
    /// # Errors
    /// [`DistillError`], e.g. for a network that does not fit the images.
    fn build(&self, context: &Context) -> Result<Box<dyn Method>, DistillError>;
}

/// What a [`Watch`] calls the loss of a training step.
pub(crate) const TRAINING_LOSS: &str = "training loss of a network on real images";

/// Numbers that must be finite, still on the device: what each of them is, and at which step of its loop.
pub(crate) type Watch = Unread<(&'static str, u64)>;

/// What a method works on in one step.
#[derive(Debug)]
pub struct Step<'a> {
    /// What it reads.
    pub context: &'a Context,
    /// The images that it moves.
    pub images: &'a mut SyntheticImages,
    /// The network that labels the images, where there is one and it is trained.
    pub teacher: Option<&'a Model>,
    /// Where it counts its passes through networks.
    pub passes: &'a mut RunPasses,
    pub(crate) watch: &'a mut Watch,
    /// What [`Step::descend`] refused.
    pub(crate) refused: Option<String>,
}

impl Step<'_> {
    /// Moves the images against `gradient` by the configured rule.
    ///
    /// * `gradient`: of the loss by the stored images, of their shape; `loss`: its value, a scalar.
    ///
    /// A gradient or loss of another form moves nothing, and the step ends with [`DistillError::Broken`].
    ///
    /// Neither is read now. Where one of them is not finite, [`crate::Distillation::step`] or another of its functions returns
    /// [`DistillError::NotFinite`] later, and always before the state is saved or the run is finished.
    pub fn descend(&mut self, gradient: &Tensor, loss: &Tensor) {
        if let Err(reason) = self.images.check_gradient(gradient).and_then(|()| check_scalar("loss", loss)) {
            self.refused.get_or_insert(format!("`Step::descend` got {reason}"));
            return;
        }
        let at = self.images.iteration() + 1;
        self.watch.push(("distillation loss", at), loss);
        // A sum is finite if its terms are, unless it overflows, which is as bad.
        self.watch.push(("gradient of the images", at), &gradient.abs().sum(Kind::Double));
        self.images.descend(gradient);
    }
}

/// A method that fills a synthetic set.
///
/// The run ([`crate::Distillation`]) prepares a method until it [`Method::is_prepared`], trains the
/// teacher where labels ask for one, and then asks for `iterations` updates. Between two calls
/// [`Method::state`] must visit everything that the method continues from: a run that is stopped there and
/// resumed ends with the same bytes. All randomness comes from `context.seed` by purpose and step.
pub trait Method: fmt::Debug {
    /// Units of preparation done and in all; none by default.
    fn preparation(&self) -> (u64, u64) {
        (0, 0)
    }

    /// Whether updates can begin.
    fn is_prepared(&self) -> bool {
        let (done, total) = self.preparation();
        done >= total
    }

    /// One unit of preparation, e.g. a training step. A method that has preparation must say what it is.
    ///
    /// # Errors
    /// [`DistillError`]; the run must then be resumed from its last saved state.
    fn prepare(&mut self, step: &mut Step<'_>) -> Result<(), DistillError> {
        let (done, total) = self.preparation();
        let reason = format!("{done} of {total} units of preparation are done, and it has no `Method::prepare`");
        Err(DistillError::Broken { method: step.context.method, reason })
    }

    /// Everything that its preparation depends on, apart from data, seed, model and `[teacher]`; `None` where no other run
    /// can use it.
    fn prepared_from(&self, context: &Context) -> Option<serde_json::Value> {
        let _ = context;
        None
    }

    /// One update of the images, by one call of [`Step::descend`], and what it measured, of which the loss must be there.
    /// Nothing that it computes needs to be read.
    ///
    /// # Errors
    /// As [`Method::prepare`].
    fn update(&mut self, step: &mut Step<'_>) -> Result<Measured, DistillError>;

    /// The learning rate that it has learned for trainings on its images, which the set records; `None` where it learns
    /// none.
    fn learned_lr(&self) -> Option<f64> {
        None
    }

    /// Visits what it continues from.
    ///
    /// # Errors
    /// [`DistillError::State`], naming what does not fit.
    fn state(&mut self, context: &Context, state: &mut State<'_>) -> Result<(), DistillError> {
        let _ = (context, state);
        Ok(())
    }

    /// What the updates did to the images, measured on its own networks; `None` where it measures nothing.
    ///
    /// # Errors
    /// [`DistillError::Data`] if the images cannot be decoded.
    fn effect(&self, context: &Context, images: &SyntheticImages) -> Result<Option<Effect>, DistillError> {
        let _ = (context, images);
        Ok(None)
    }
}

/// What an update of the synthetic images measured, before it moved them, on the device: a [`StepReport`] that nobody has
/// read yet. Numbers are scalars; the loss must be set, the default has none.
#[derive(Debug, Default)]
pub struct Measured {
    /// The whole loss, what the images descend.
    pub loss: Tensor,
    /// Distance to what is matched: class means (C²R, DM), gradients, parameters, feature statistics.
    pub matching: Option<Tensor>,
    /// Cross-entropy of the synthetic images, in nats.
    pub performance: Option<Tensor>,
    /// The robust term of C²R.
    pub robust: Option<Tensor>,
    /// Margins of the synthetic images under attack, in logits, f32 `[N]`.
    pub margins: Option<Tensor>,
    /// The same of the real images of the iteration.
    pub real_margins: Option<Tensor>,
    /// Mean cosine similarity of the anchors with their nearest impostor.
    pub impostor_similarity: Option<Tensor>,
    /// Learning rate of the unrolled training, where it is learned.
    pub student_lr: Option<Tensor>,
}

/// Checks that there is one number; says what is there instead.
pub(crate) fn check_scalar(what: &str, value: &Tensor) -> Result<(), String> {
    if !value.defined() {
        return Err(format!("no {what}; it must be a scalar"));
    }
    if value.numel() != 1 {
        return Err(format!("a {what} of shape {:?}; it must be a scalar", value.size()));
    }
    Ok(())
}

impl Measured {
    /// Checks that [`Measured::report`] can read everything; says what is there instead.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_scalar("loss", &self.loss)?;
        let scalars = [
            ("matching", &self.matching),
            ("performance", &self.performance),
            ("robust", &self.robust),
            ("impostor_similarity", &self.impostor_similarity),
            ("student_lr", &self.student_lr),
        ];
        for (what, value) in scalars {
            value.as_ref().map_or(Ok(()), |value| check_scalar(what, value))?;
        }
        for (what, values) in [("margins", &self.margins), ("real_margins", &self.real_margins)] {
            let is_list = |values: &Tensor| values.defined() && values.dim() == 1 && values.numel() > 0;
            if !values.as_ref().is_none_or(is_list) {
                return Err(format!("no list of `{what}`; there must be one for each image"));
            }
        }
        Ok(())
    }

    /// Reads everything at once.
    pub(crate) fn report(&self) -> StepReport {
        let margins = [&self.margins, &self.real_margins].map(|margins| margins.as_ref().map(quantiles));
        let others = [&self.matching, &self.performance, &self.robust, &self.impostor_similarity, &self.student_lr];
        let all =
            [Some(&self.loss)].into_iter().chain(others.map(Option::as_ref)).chain(margins.iter().map(Option::as_ref));
        let all: Vec<Tensor> = all.flatten().map(Tensor::shallow_clone).collect();
        let mut values = read(&all).into_iter();
        let mut next = || values.next().expect("as many as were asked for");
        let loss = next();
        let [matching, performance, robust, impostor_similarity, student_lr] =
            others.map(|other| other.as_ref().map(|_| next()));
        let [margin_quantiles, real_margin_quantiles] =
            margins.map(|margins| margins.map(|_| [next(), next(), next()]));
        StepReport {
            loss,
            matching,
            performance,
            robust,
            impostor_similarity,
            student_lr,
            margin_quantiles,
            real_margin_quantiles,
            ..StepReport::default()
        }
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

/// What the updates did to the images, from before the first to after the last, on the networks of the pool as they
/// are at the end.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Effect {
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

/// 10, 50 and 90 % quantiles of f32 `[N]`, f32 `[3]`.
pub(crate) fn quantiles(values: &Tensor) -> Tensor {
    const LEVELS: [f32; 3] = [0.1, 0.5, 0.9];
    if values.numel() <= MOST_QUANTILE {
        let levels = Tensor::from_slice(&LEVELS).to_device(values.device());
        return values.quantile(&levels, None::<i64>, false, "linear");
    }
    sorted_quantiles(values, &LEVELS)
}

/// The most values that libtorch's `quantile` takes.
const MOST_QUANTILE: usize = 1 << 24;

/// Quantiles of any number of values, interpolated linearly.
fn sorted_quantiles(values: &Tensor, levels: &[f32]) -> Tensor {
    let (sorted, _) = values.flatten(0, -1).sort(0, false);
    let last = sorted.size()[0] - 1;
    let of_level = |&level: &f32| {
        let place = f64::from(level) * last as f64;
        let (below, above) = (sorted.get(place.floor() as i64), sorted.get((place.ceil() as i64).min(last)));
        &below + (&above - &below) * place.fract()
    };
    Tensor::stack(&levels.iter().map(of_level).collect::<Vec<_>>(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_many_values_are_those_of_few() {
        for n in [1, 2, 7, 1000] {
            let values = (Tensor::arange(n, (Kind::Float, tch::Device::Cpu)) * 0.754_877_7).fmod(1.0);
            let many = sorted_quantiles(&values, &[0.1, 0.5, 0.9]);
            assert!((many - quantiles(&values)).abs().max().double_value(&[]) < 1e-6, "{n}");
        }
    }
}
