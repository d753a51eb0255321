use c2r_base::{Classifier, Seed, ThreatModel};

use crate::{
    attack::{Attack, AttackBatch, AttackError, Family, Perturbed},
    config::*,
};

pub(crate) struct CwL2 {
    config: CwL2Config,
}
impl CwL2 {
    pub(crate) fn new(config: CwL2Config) -> Self {
        Self { config }
    }
}

impl Attack for CwL2 {
    fn name(&self) -> &str {
        "cw-l2"
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
