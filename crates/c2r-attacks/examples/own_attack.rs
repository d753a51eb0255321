//! An attack of your own, next to those of this crate.
//!
//! cargo run --release -p c2r-attacks --example own_attack
//!
//! Last line of the output: `broken: shift 1, pgd 1, autoattack-standard 1 of 2`

use c2r_attacks::{
    Attack, AttackBatch, AttackConfig, AttackError, ConfigError, EvaluateOptions, Family, Mode, Oracle, Outcome,
    Perturbed,
    c2r_base::{Classifier, ClassifierError, LabelledImages, Norm, Seed, ThreatModel},
    evaluate,
    tch::{Device, Kind, Tensor},
};

/// Five classes by brightness.
struct Brightness;

impl Classifier for Brightness {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        let bright = images.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
        let logits: Vec<Tensor> = (0..5).map(|class| -(&bright - f64::from(class) * 0.25).square() * 20.0).collect();
        Ok(Tensor::stack(&logits, 1))
    }

    fn device(&self) -> Device {
        Device::Cpu
    }
}

/// Makes the whole image brighter or darker, by at most epsilon, whichever lowers the margin most.
struct Shift {
    /// Shifts that are tried in each direction.
    tries: u32,
}

impl Attack for Shift {
    fn name(&self) -> &str {
        "shift"
    }

    fn family(&self) -> Family {
        Family::BlackBox
    }

    /// In every norm, and with targets, too: `goal_margin` heeds them. Without this, targeted goals are refused.
    fn check(&self, _: &ThreatModel, _: i64) -> Result<(), ConfigError> {
        Ok(())
    }

    fn perturb(
        &self,
        model: &dyn Classifier,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        _: Seed,
    ) -> Result<Perturbed, AttackError> {
        if self.tries == 0 {
            return Err(AttackError::failed(self.name(), "there is nothing to try"));
        }
        let mut oracle = Oracle::new(model, self.name(), batch.ids);
        let rows: Vec<usize> = (0..batch.ids.len()).collect();
        let mut best = batch.images.copy();
        let mut margin = batch.goal_margin(&oracle.logits(&best, &rows)?);
        for part in 1..=self.tries {
            let length = threat.epsilon.value() * f64::from(part) / f64::from(self.tries);
            for shift in [-length, length] {
                let shifted = threat.project(batch.images, &(batch.images + shift));
                let now = batch.goal_margin(&oracle.logits(&shifted, &rows)?);
                let better = now.lt_tensor(&margin);
                best = shifted.where_self(&better.view([-1, 1, 1, 1]), &best);
                margin = now.minimum(&margin);
            }
        }
        Ok(oracle.finish(best))
    }
}

#[expect(clippy::print_stdout, reason = "an example may print")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Two grey images, one in the middle of its class and one near a boundary.
    let grey = |value: f64| Tensor::full([1, 1, 8, 8], value, (Kind::Float, Device::Cpu));
    let data = LabelledImages::new(Tensor::cat(&[grey(0.25), grey(0.36)], 0), Tensor::from_slice(&[1i64, 1]))?;

    let mut attacks: Vec<Box<dyn Attack>> = vec![Box::new(Shift { tries: 4 })];
    let threat = ThreatModel::untargeted(Norm::Linf, "8/255".parse()?);
    for name in ["pgd", "autoattack-standard"] {
        // For a norm, because AutoAttack has other options in L1.
        attacks.push(AttackConfig::named_for(name, threat.norm)?.build()?);
    }
    let options = EvaluateOptions { mode: Mode::Each, ..EvaluateOptions::default() };
    let report = evaluate(&Brightness, &data, &attacks, &threat, &options)?;

    let failed = evaluate(&Brightness, &data, &[Box::new(Shift { tries: 0 })], &threat, &options);
    assert!(matches!(failed, Err(AttackError::Failed { .. })));

    let broken = report.attacks.iter().map(|entry| {
        let broken = entry.samples.iter().filter(|sample| matches!(sample.outcome, Outcome::Broken { .. })).count();
        format!("{} {broken}", entry.name)
    });
    println!("broken: {} of {}", broken.collect::<Vec<_>>().join(", "), data.len());
    Ok(())
}
