//! Several attacks in order, each on what the ones before it left.

use c2r_base::{Classifier, Norm, Passes, Seed, ThreatModel};
use serde_json::Value;

use crate::{
    active::Samples,
    attack::{Attack, AttackBatch, Family, Perturbed},
    error::{AttackError, ConfigError},
    oracle::Oracle,
    rows::{pick, positions, write_rows},
};

/// A suite as one attack. The driver runs its stages itself, to report them one by one.
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) options: Value,
    pub(crate) stages: Vec<Box<dyn Attack>>,
    /// The norms that its members' options are for; `None` for any.
    pub(crate) norms: Option<&'static [Norm]>,
}

impl Attack for Suite {
    fn name(&self) -> &str {
        &self.name
    }

    fn family(&self) -> Family {
        Family::Suite
    }

    fn check(&self, threat: &ThreatModel, classes: i64) -> Result<(), ConfigError> {
        let norm = threat.norm;
        if let Some(known) = self.norms.filter(|known| !known.contains(&norm)) {
            return Err(ConfigError::SuiteOfOtherNorm { suite: self.name.clone(), norm, known: known.to_vec() });
        }
        self.stages.iter().try_for_each(|stage| stage.check(threat, classes))
    }

    fn stages(&self) -> Option<&[Box<dyn Attack>]> {
        Some(&self.stages)
    }

    fn options(&self) -> Option<Value> {
        Some(self.options.clone())
    }

    fn perturb(
        &self,
        model: &dyn Classifier,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        seed: Seed,
    ) -> Result<Perturbed, AttackError> {
        let _no_grad = tch::no_grad_guard();
        let mut found = batch.images.copy();
        let mut open: Vec<usize> = (0..batch.ids.len()).collect();
        let mut queries = vec![0; batch.ids.len()];
        let mut repaired = vec![false; batch.ids.len()];
        let mut passes = Passes::default();
        for stage in &self.stages {
            let (samples, ids) = (Samples::of(batch, &open), pick(batch.ids, &open));
            let part = samples.batch(&ids);
            let proposal = stage.perturb(model, &part, threat, seed)?;
            proposal.check(stage.name(), &part)?;
            let judged = threat.project(part.images, &proposal.images);
            let mut judge = Oracle::new(model, stage.name(), &ids);
            let rows: Vec<usize> = (0..ids.len()).collect();
            let reached = part.reached(&judge.logits(&judged, &rows)?);
            write_rows(&mut found, &open, &judged);
            let judging = judge.finish(judged);
            for (row, (attacked, own)) in proposal.queries.iter().zip(&judging.queries).enumerate() {
                queries[open[row]] += attacked + own;
            }
            for (&sample, was_repaired) in open.iter().zip(&proposal.repaired) {
                repaired[sample] |= was_repaired;
            }
            passes += proposal.passes;
            passes += judging.passes;
            open = pick(&open, &positions(&reached.logical_not()));
            if open.is_empty() {
                break;
            }
        }
        Ok(Perturbed { images: found, queries, passes, repaired })
    }
}
