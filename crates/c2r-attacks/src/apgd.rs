use c2r_base::{Classifier, Seed, ThreatModel};

use crate::{
    attack::{Attack, AttackBatch, AttackError, Family, Perturbed},
    config::*,
};

#[derive(Clone, Copy)]
pub(crate) enum ApgdLoss {
    Ce,
    Dlr,
    DlrTargeted { targets: u32 },
}
pub(crate) struct Apgd {
    name: &'static str,
    config: ApgdConfig,
    loss: ApgdLoss,
}
impl Apgd {
    pub(crate) fn new(name: &'static str, config: ApgdConfig, loss: ApgdLoss) -> Self {
        Self { name, config, loss }
    }
}

impl Attack for Apgd {
    fn name(&self) -> &str {
        self.name
    }
    fn family(&self) -> Family {
        Family::Gradient
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
