//! A distillation method of one's own in one file: every image is pulled to the mean image of its class.
//!
//! cargo run --release -p c2r-distill --example own_method
//!
//! Last line of the output: `pixel-mean: 10 images, the loss fell`.

use std::{error::Error, sync::Arc};

use c2r_distill::{
    CommonConfig, ConfigError, Context, DistillConfig, DistillError, DistillEvent, Distillation, METHODS, Measured,
    Method, MethodConfig, MethodEntry, Step, Work, ranges,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// The line of the registry.
const PIXEL_MEAN: MethodEntry = MethodEntry {
    name: "pixel-mean",
    sections: &["pull"],
    augmented: &[],
    read: |sections| Ok(Arc::new(sections.read::<PixelMeanConfig>()?)),
};

/// The sections of the configuration that belong to the method: one, `[pull]`.
#[derive(Clone, Debug, Deserialize)]
struct PixelMeanConfig {
    pull: PullConfig,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PullConfig {
    weight: f64,
}

impl MethodConfig for PixelMeanConfig {
    fn entry(&self) -> &'static MethodEntry {
        &PIXEL_MEAN
    }

    fn sections(&self) -> Vec<(&'static str, &dyn erased_serde::Serialize)> {
        vec![("pull", &self.pull)]
    }

    fn validate(&self, _: &CommonConfig) -> Result<(), ConfigError> {
        Ok(ranges::positive("pull.weight", self.pull.weight)?)
    }

    /// No pass through a network.
    fn add_work(&self, _: &CommonConfig, _: usize, _: usize, _: &mut Work) {}

    fn build(&self, context: &Context) -> Result<Box<dyn Method>, DistillError> {
        let mean = |class: usize| {
            let (images, _) = context.data.batch(context.data.class_positions(class), context.device);
            images.mean_dim([0i64].as_slice(), false, Kind::Float)
        };
        let means: Vec<Tensor> = (0..context.n_classes()).map(mean).collect();
        Ok(Box::new(PixelMean { weight: self.pull.weight, means: Tensor::stack(&means, 0) }))
    }
}

/// The method in progress; it has no state beyond the images.
#[derive(Debug)]
struct PixelMean {
    weight: f64,
    /// f32 `[K, C, H, W]`.
    means: Tensor,
}

impl Method for PixelMean {
    fn update(&mut self, step: &mut Step<'_>) -> Result<Measured, DistillError> {
        let targets = self.means.index_select(0, step.images.targets());
        let (images, decoded) = step.images.tracked()?;
        let loss = tch::with_grad(|| (decoded - targets).square().mean(Kind::Float) * self.weight);
        let gradient = Tensor::run_backward(&[&loss], &[&images], false, false).swap_remove(0);
        step.descend(&gradient, &loss);
        Ok(Measured { loss, ..Measured::default() })
    }
}

const PROFILE: &str = r#"
profile = "pixel-mean"
method = "pixel-mean"
ipc = 1
iterations = 20
seed = 0
labels = "hard"
threat.norm = "linf"

[images]
init = "noise"
optimizer = "adam"
lr = 0.05
final-lr = 0.01
batch-per-class = 0

[pull]
weight = 1.0
"#;

#[expect(clippy::print_stdout, reason = "an example may print")]
fn main() -> Result<(), Box<dyn Error>> {
    let digits = c2r_data::load("digits", None)?;
    let methods = [METHODS, &[PIXEL_MEAN]].concat();
    let (config, _) = DistillConfig::resolve_with(&methods, PROFILE.parse()?, &digits.spec, &[])?;
    let mut run = Distillation::new(config, &digits, Device::Cpu)?;
    let mut losses = Vec::new();
    while let Some(event) = run.step()? {
        if let DistillEvent::Images { .. } = event {
            losses.extend(run.report()?.map(|report| report.loss));
        }
    }
    let set = run.synthetic_set(Default::default())?;
    let fell = losses.last() < losses.first();
    println!(
        "{}: {} images, the loss {}",
        set.header.method,
        set.labels.len(),
        if fell { "fell" } else { "did not fall" }
    );
    Ok(())
}
