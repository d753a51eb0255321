//! C²R, its ablations and its backbone: Li et al. 2026 (arXiv:2605.20606). docs/method.md has the
//! equations, and says where the paper is silent and what is ours.
//!
//! Here are the checks, the keys without effect and the cost; [`iteration`] has one iteration from top to bottom.

mod config;
mod iteration;
mod real;
mod terms;
mod views;

use std::sync::Arc;

use c2r_core::curriculum::Curriculum;
use c2r_train::ranges::{in_range, not_negative};
pub use config::{
    AacConfig, Anchors, C2rConfig, Distance, ObjectiveConfig, RealCandidates, Reduction, Remember, RobustTerm, Weighted,
};

use crate::{
    config::{CommonConfig, Place, PlaceConfig},
    context::Context,
    cost::Work,
    error::{ConfigError, DistillError},
    method::{Method, MethodConfig, MethodEntry, Needs, Sections},
    parts::pool::Pool,
};

/// C²R's line of the registry.
pub(crate) const ENTRY: MethodEntry = MethodEntry {
    name: "c2r",
    sections: &["pool", "companions", "matching", "objective", "crl", "aac"],
    augmented: &[],
    read: |mut sections: Sections| {
        let (weight, robust_weight) = config::loss_weights(sections.ipc);
        sections.put_default("objective", "weight", weight);
        sections.put_default("objective", "robust-weight", robust_weight);
        sections.put_default("objective", "eta", config::eta(sections.ipc));
        Ok(Arc::new(sections.read::<C2rConfig>()?))
    },
};

impl MethodConfig for C2rConfig {
    fn entry(&self) -> &'static MethodEntry {
        &ENTRY
    }

    fn sections(&self) -> Vec<(&'static str, &dyn erased_serde::Serialize)> {
        vec![("matching", &self.matching), ("objective", &self.objective), ("crl", &self.crl), ("aac", &self.aac)]
    }

    fn label(&self) -> &'static str {
        match self.objective.robust {
            RobustTerm::Crl => "c2r",
            RobustTerm::ClassMean => "class-mean",
            RobustTerm::None => "backbone",
        }
    }

    fn validate(&self, common: &CommonConfig) -> Result<(), ConfigError> {
        let Self { matching, objective, crl, aac } = self;
        matching.validate()?;
        not_negative("objective.weight", objective.weight)?;
        in_range((0.0..=1.0).contains(&objective.eta), "objective.eta", "in [0, 1]", objective.eta)?;
        let expected = "positive where matching.weight is 0, since nothing would be optimized";
        in_range(matching.weight > 0.0 || objective.weight > 0.0, "objective.weight", expected, objective.weight)?;
        not_negative("objective.robust-weight", objective.robust_weight)?;
        crl.validate()?;
        for (place, curriculum) in [("synthetic", &aac.synthetic), ("pool", &aac.pool), ("matching", &aac.matching)] {
            curriculum.validate().map_err(|reason| ConfigError::Curriculum { place, reason })?;
        }
        let conflict = |when, key, value, reason| {
            if when { Err(ConfigError::Conflict { key, value, reason }) } else { Ok(()) }
        };
        let is_order = |curriculum: &Curriculum| matches!(curriculum, Curriculum::Order(_));
        let weighs = matches!(aac.synthetic, Curriculum::Weight(_));
        conflict(
            aac.weighted == Weighted::Both && !weighs,
            "aac.weighted",
            "both",
            "aac.synthetic has no weights; set its mode to `weight`",
        )?;
        conflict(
            is_order(&aac.matching),
            "aac.matching",
            aac.matching.mode(),
            "class means are taken over the whole batch, so only a choice (`prefix`, `pace`) or weights can act",
        )?;
        conflict(
            matches!(aac.pool, Curriculum::Pace(_)) && common.pool.as_ref().is_some_and(|pool| pool.push_every > 0),
            "aac.pool",
            "pace",
            "with pool.push-every, networks are trained for no fixed number of steps, so the window has no end to move to",
        )?;
        let remembers = [Place::Synthetic, Place::Matching].map(|place| common.remembers_at(place));
        conflict(
            objective.attack_after_dsa && remembers != [false; 2],
            "objective.attack-after-dsa",
            "true",
            "with companions.warm-start, an attack would begin at the perturbation of a differently augmented image",
        )?;
        let apart = common.attacks.pool != common.attacks.matching;
        conflict(
            apart && remembers[1] && aac.remember != Remember::Synthetic,
            "aac.remember",
            if aac.remember == Remember::Both { "both" } else { "real" },
            "the places pool and matching share the perturbations of real images, but [attacks] attacks them differently",
        )?;
        conflict(
            is_order(&aac.synthetic) && common.images.batch_per_class == 0,
            "aac.synthetic",
            aac.synthetic.mode(),
            "with images.batch-per-class = 0 all images are in one batch, which has no order",
        )
    }

    fn needs(&self) -> Needs {
        let (real_per_class, curriculum) = (self.matching.real_per_class, self.aac.pool.clone());
        Needs { attacks: true, places: true, takes_batches: true, real_per_class, curriculum, ..Needs::default() }
    }

    fn idle(&self, common: &CommonConfig) -> Vec<(&'static str, &'static str)> {
        let Self { objective, aac, .. } = self;
        let remembers = common.remembers_at(Place::Synthetic) || common.remembers_at(Place::Matching);
        let mut idle = Vec::new();
        let mut note = |when: bool, keys: &[&'static str], reason| {
            if when {
                idle.extend(keys.iter().map(|&key| (key, reason)));
            }
        };
        note(!remembers, &["aac.remember"], "perturbations are remembered only with companions.warm-start = true");
        note(self.matching.weight == 0.0, &["objective.distance"], "matching.weight is 0");
        note(!self.matches(), &["aac.matching", "matching.attacked"], "matching.weight is 0");
        let counts = [objective.weight, objective.eta, objective.robust_weight].iter().all(|&share| share > 0.0);
        let matched = (self.matching.attacked || aac.matching.needs_scores()) && self.matches();
        let sees_real = self.anchors_real() || objective.candidates != RealCandidates::None || self.crl.queue.is_some();
        let at_matching = matched || (counts && self.contrasts() && sees_real);
        note(!at_matching, &["attacks.matching"], "no attack on a real image counts (matching, objective, crl.queue)");
        let entropy = objective.weight > 0.0 && objective.eta != 1.0;
        let scored = aac.synthetic.needs_scores() && (entropy || aac.synthetic.sorts());
        let at_synthetic = scored || (counts && objective.robust != RobustTerm::None);
        note(!at_synthetic, &["attacks.synthetic"], "no attack on a synthetic image counts (objective, aac.synthetic)");
        let at_pool = common.pool.as_ref().is_some_and(|pool| pool.adversarial) || aac.pool.needs_scores();
        let places = [(Place::Synthetic, at_synthetic), (Place::Pool, at_pool), (Place::Matching, at_matching)];
        let all_own = |is_own: fn(&PlaceConfig) -> bool| {
            places.iter().all(|&(place, attacked)| !attacked || common.attacks.at(place).is_some_and(is_own))
        };
        let reason = "every place where images are attacked has its own (attacks.PLACE)";
        note(all_own(|at| at.epsilon.is_some()), &["threat.epsilon"], reason);
        note(all_own(|at| at.companions.is_some()), &["companions"], reason);
        let remembered = (at_synthetic && aac.remember != Remember::Real)
            || ((at_matching || aac.pool.sorts()) && aac.remember != Remember::Synthetic);
        let keys = ["companions.warm-start", "companions.reuse"];
        note(!remembered, &keys, "no attacked image is among those that aac.remember names");
        let keys = ["crl", "objective.anchors", "objective.candidates"];
        note(!self.contrasts(), &keys, "objective.robust is not \"crl\"");
        let silent = "the robust term has no weight (objective.weight, objective.eta, objective.robust-weight)";
        note(self.contrasts() && !counts, &keys, silent);
        note(!counts, &["objective.robust"], silent);
        let on_real = self.contrasts() && objective.anchors == Anchors::Real;
        note(
            on_real && counts,
            &["objective.candidates"],
            "it is about synthetic anchors, and objective.anchors = \"real\" has none",
        );
        let is_absent = objective.robust == RobustTerm::None || objective.eta == 0.0 || objective.weight == 0.0;
        let reason = "there is no robust term (objective.robust, objective.eta, objective.weight)";
        note(is_absent, &["objective.robust-weight"], reason);
        let reason =
            "no robust term with a weight has synthetic anchors (objective.robust, objective.anchors, the weights)";
        note(is_absent || !counts || on_real, &["aac.weighted"], reason);
        note(objective.weight == 0.0, &["objective.eta"], "objective.weight is 0");
        let weighs = matches!(aac.synthetic, Curriculum::Weight(_)) && aac.weighted != Weighted::Both;
        note(
            weighs && !entropy,
            &["aac.synthetic"],
            "it weighs the cross-entropy, whose share (objective.eta, objective.weight) is 0",
        );
        let reason = "the share of the cross-entropy (objective.eta, objective.weight) is 0";
        note(!entropy, &["objective.by-accuracy"], reason);
        let whole = common.images.batch_per_class >= common.decoded_per_class();
        note(whole, &["images.batch-per-class"], "no class has more images, so every batch holds all of them");
        idle
    }

    fn note(&self, common: &CommonConfig) -> Option<&'static str> {
        let all = common.images.batch_per_class >= common.decoded_per_class();
        (all && matches!(self.aac.synthetic, Curriculum::Order(_))).then_some(
            "one batch (images.batch-per-class) holds all images, so their order (aac.synthetic) has no effect",
        )
    }

    fn add_work(&self, common: &CommonConfig, n_classes: usize, n_train: usize, total: &mut Work) {
        let iterations = common.iterations as f64;
        if let Some(pool) = &common.pool {
            let order = &self.aac.pool;
            total.add_training(common, pool, order, Pool::steps_to_fill(pool) as f64, n_train);
            let young = Pool::newcomers(pool, common.iterations) * pool.min_steps;
            let trained = Pool::trained_per_iteration(pool, common.iterations) * pool.steps_per_iteration;
            let grown = iterations * trained as f64 + young as f64;
            total.add_training(common, pool, order, grown, n_train);
        }
        let decoded = n_classes * common.decoded_per_class();
        let batch = match common.images.batch_per_class {
            0 => decoded,
            per_class => (per_class * n_classes).min(decoded),
        } as f64;
        let companions = self.attacks_synthetic();
        let views = if companions { 2.0 } else { 1.0 };
        total.forward += iterations * batch * views;
        total.input_gradient += iterations * batch * views;
        total.add_attacked(common, Place::Synthetic, if companions { iterations * batch } else { 0.0 });
        // An epoch that has an order or a choice begins with scoring all of its images.
        let curriculum = &self.aac.synthetic;
        let scores = curriculum.sorts() || (curriculum.needs_scores() && self.remembers_synthetic(common));
        let scored = scores && (batch < decoded as f64 || curriculum.chooses());
        total.add_attacked(common, Place::Synthetic, if scored { iterations * batch } else { 0.0 });

        let real = (self.matching.real_per_class * n_classes) as f64;
        let (attacked, clean) = self.embeds_real();
        total.forward += iterations * real * (f64::from(u8::from(attacked)) + f64::from(u8::from(clean)));
        let attacked = attacked || self.aac.matching.needs_scores();
        total.add_attacked(common, Place::Matching, if attacked { iterations * real } else { 0.0 });
    }

    fn build(&self, context: &Context) -> Result<Box<dyn Method>, DistillError> {
        Ok(Box::new(iteration::C2r::new(self.clone(), context)?))
    }
}
