//! Several attacks in order, each on what the ones before it left.

use c2r_base::{Classifier, Epsilon, Passes, Seed, ThreatModel};

use crate::{
    attack::{Attack, AttackBatch, AttackError, Family, Oracle, Perturbed, index, positions, reached},
    config::{
        ApgdConfig, ApgdTConfig, AttackConfig, ConfigError, CwLinfConfig, EOT_SAMPLES_RAND, FabConfig, FabTConfig,
        FgsmConfig, JitterConfig, PgdConfig, SquareConfig, SuiteConfig, VmiFgsmConfig,
    },
};

/// Restarts of the untargeted attacks in `autoattack-plus`. Croce & Hein 2020, their code.
const PLUS_RESTARTS: u32 = 5;
/// Step size of the iterative attacks in `paper-six`, in 255ths of the pixel range, at every epsilon.
/// DD-RobustBench, its attack table.
const PAPER_STEP_255: f64 = 2.0;
/// Neighbours of VMI-FGSM in `paper-six`. DD-RobustBench (torchattacks' default).
const PAPER_NEIGHBOURS: u32 = 5;

/// The suites by name.
pub(crate) fn named(name: &str) -> Option<AttackConfig> {
    let attacks = match name {
        "autoattack-standard" => vec![
            AttackConfig::ApgdCe(ApgdConfig::default()),
            AttackConfig::ApgdT(ApgdTConfig::default()),
            AttackConfig::FabT(FabTConfig { minimize: false, ..FabTConfig::default() }),
            AttackConfig::Square(SquareConfig::default()),
        ],
        "autoattack-plus" => {
            let many = ApgdConfig { restarts: PLUS_RESTARTS, ..ApgdConfig::default() };
            vec![
                AttackConfig::ApgdCe(many.clone()),
                AttackConfig::ApgdDlr(many),
                AttackConfig::Fab(FabConfig { restarts: PLUS_RESTARTS, minimize: false, ..FabConfig::default() }),
                AttackConfig::Square(SquareConfig::default()),
                AttackConfig::ApgdT(ApgdTConfig::default()),
                AttackConfig::FabT(FabTConfig { minimize: false, ..FabTConfig::default() }),
            ]
        }
        "autoattack-rand" => {
            let averaged = ApgdConfig { samples: EOT_SAMPLES_RAND, ..ApgdConfig::default() };
            vec![AttackConfig::ApgdCe(averaged.clone()), AttackConfig::ApgdDlr(averaged)]
        }
        "paper-six" => {
            let step_size = Some(Epsilon::of_255(PAPER_STEP_255));
            vec![
                AttackConfig::Fgsm(FgsmConfig::default()),
                AttackConfig::Pgd(PgdConfig { step_size, ..PgdConfig::default() }),
                AttackConfig::CwLinf(CwLinfConfig { step_size, ..CwLinfConfig::default() }),
                AttackConfig::VmiFgsm(VmiFgsmConfig {
                    step_size,
                    neighbours: PAPER_NEIGHBOURS,
                    ..VmiFgsmConfig::default()
                }),
                AttackConfig::Jitter(JitterConfig { step_size, ..JitterConfig::default() }),
                named("autoattack-standard").expect("defined above"),
            ]
        }
        _ => return None,
    };
    Some(AttackConfig::Suite(SuiteConfig { name: name.to_owned(), attacks }))
}

/// A suite as one attack. The driver runs its stages itself, to report them one by one.
pub(crate) struct Suite {
    name: String,
    stages: Vec<Box<dyn Attack>>,
}

impl Suite {
    pub(crate) fn new(name: String, stages: Vec<Box<dyn Attack>>) -> Self {
        Self { name, stages }
    }
}

impl Attack for Suite {
    fn name(&self) -> &str {
        &self.name
    }

    fn family(&self) -> Family {
        Family::Suite
    }

    fn check(&self, threat: &ThreatModel, classes: i64) -> Result<(), ConfigError> {
        self.stages.iter().try_for_each(|stage| stage.check(threat, classes))
    }

    fn stages(&self) -> Option<&[Box<dyn Attack>]> {
        Some(&self.stages)
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
        let mut passes = Passes::default();
        for stage in &self.stages {
            let at = index(&open, &found);
            let ids: Vec<u64> = open.iter().map(|&row| batch.ids[row]).collect();
            let images = batch.images.index_select(0, &at);
            let labels = batch.labels.index_select(0, &at);
            let targets = batch.targets.map(|targets| targets.index_select(0, &at));
            let part = AttackBatch { images: &images, labels: &labels, ids: &ids, targets: targets.as_ref() };
            let proposal = stage.perturb(model, &part, threat, seed)?;
            let judged = threat.project(&images, &proposal.images);
            let mut judge = Oracle::new(model, stage.name(), &ids);
            let rows: Vec<usize> = (0..ids.len()).collect();
            let logits = judge.logits(&judged, &rows)?;
            let judging = judge.finish(logits);
            for (row, (attacked, own)) in proposal.queries.iter().zip(&judging.queries).enumerate() {
                queries[open[row]] += attacked + own;
            }
            passes += proposal.passes;
            passes += judging.passes;
            let _ = found.index_copy_(0, &at, &judged);
            let left = reached(&judging.images, &labels, targets.as_ref()).logical_not();
            open = positions(&left).into_iter().map(|row| open[row]).collect();
            if open.is_empty() {
                break;
            }
        }
        Ok(Perturbed { images: found, queries, passes })
    }
}
