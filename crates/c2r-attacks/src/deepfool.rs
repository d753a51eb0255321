use c2r_base::{Classifier, Seed, ThreatModel};

use crate::{
    attack::{Attack, AttackBatch, AttackError, Family, Perturbed},
    config::*,
};

pub(crate) struct DeepFool {
    config: DeepFoolConfig,
}
impl DeepFool {
    pub(crate) fn new(config: DeepFoolConfig) -> Self {
        Self { config }
    }
}

impl Attack for DeepFool {
    fn name(&self) -> &str {
        "deepfool"
    }
    fn family(&self) -> Family {
        Family::MinimumNorm
    }
    fn check(&self, _: &ThreatModel, _: i64) -> Result<(), ConfigError> {
        Ok(())
    }
    fn perturb(
        &self,
        _: &dyn Classifier,
        _: &AttackBatch<'_>,
        _: &ThreatModel,
        _: Seed,
    ) -> Result<Perturbed, AttackError> {
        Err(AttackError::SelfCheck("not written yet".into()))
    }
}
