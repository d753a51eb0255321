//! Attack a model of your own: three lines of arithmetic are enough.
//!
//! cargo run --release -p c2r-attacks --example own_model
//!
//! Last line of the output: `robust accuracy under 8/255: 50 %`

use c2r_attacks::{
    AttackConfig, EvaluateOptions,
    c2r_base::{Classifier, ClassifierError, LabelledImages, Norm, ThreatModel},
    evaluate,
    tch::{Device, Kind, Tensor},
};

/// Dark or bright?
struct Brightness;

impl Classifier for Brightness {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        let bright = images.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
        Ok(Tensor::stack(&[0.5 - &bright, bright - 0.5], 1))
    }

    fn device(&self) -> Device {
        Device::Cpu
    }
}

#[expect(clippy::print_stdout, reason = "an example may print")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Two grey images, one far from the boundary at 0.5 and one near it.
    let grey = |value: f64| Tensor::full([1, 1, 4, 4], value, (Kind::Float, Device::Cpu));
    let data = LabelledImages::new(Tensor::cat(&[grey(0.1), grey(0.48)], 0), Tensor::from_slice(&[0i64, 0]))?;

    let threat = ThreatModel::untargeted(Norm::Linf, "8/255".parse()?);
    let attacks = ["pgd", "square"]
        .map(|name| AttackConfig::named_for(name, threat.norm).and_then(|config| config.build()))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let report = evaluate(&Brightness, &data, &attacks, &threat, &EvaluateOptions::default())?;

    for entry in &report.attacks {
        println!("{}: {} of {} samples broken", entry.name, broken(entry), data.len());
    }
    println!("robust accuracy under {}: {:.0} %", threat.epsilon, 100.0 * report.robust_accuracy());
    Ok(())
}

fn broken(entry: &c2r_attacks::AttackEntry) -> usize {
    entry.samples.iter().filter(|sample| matches!(sample.outcome, c2r_attacks::Outcome::Broken { .. })).count()
}
