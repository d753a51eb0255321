use c2r_base::{Classifier, Seed, ThreatModel};

use crate::{
    attack::{Attack, AttackBatch, AttackError, Family, Perturbed},
    config::*,
};

pub(crate) struct Fab {
    name: &'static str,
    config: FabTConfig,
    targets: Option<u32>,
}
impl Fab {
    pub(crate) fn new(name: &'static str, config: FabTConfig, targets: Option<u32>) -> Self {
        Self { name, config, targets }
    }
}

impl Attack for Fab {
    fn name(&self) -> &str {
        self.name
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
