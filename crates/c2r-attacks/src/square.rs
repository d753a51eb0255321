use c2r_base::{Classifier, Seed, ThreatModel};

use crate::{
    attack::{Attack, AttackBatch, AttackError, Family, Perturbed},
    config::*,
};

pub(crate) struct Square {
    config: SquareConfig,
}
impl Square {
    pub(crate) fn new(config: SquareConfig) -> Self {
        Self { config }
    }
}

impl Attack for Square {
    fn name(&self) -> &str {
        "square"
    }
    fn family(&self) -> Family {
        Family::BlackBox
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
