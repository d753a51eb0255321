//! The real images of an iteration.

use c2r_base::{Seed, host::to_vec};
use c2r_core::{crl::Candidates, curriculum::Curriculum, ls_pgd::PerturbationCache};
use c2r_data::Rows;
use c2r_models::Model;
use tch::Tensor;

use super::{config::C2rConfig, views::Views};
use crate::{
    config::Place,
    error::{DistillError, check_scores},
    method::Step,
    parts::companions::Attacked,
};

/// Embeddings f32 `[A, D]` with their labels i64 `[A]`.
#[derive(Debug)]
pub(super) struct Embedded {
    pub(super) embeddings: Tensor,
    pub(super) labels: Tensor,
}

impl Embedded {
    pub(super) const fn candidates(&self) -> Candidates<'_> {
        Candidates { embeddings: &self.embeddings, labels: &self.labels }
    }
}

/// The real images of an iteration, embedded without gradients; a view that nothing needs is absent.
#[derive(Debug)]
pub(super) struct RealImages {
    pub(super) attacked: Option<Embedded>,
    pub(super) clean: Option<Embedded>,
    /// Class of each image.
    pub(super) classes: Vec<i64>,
    /// Rows of the images whose class means are matched, i64; all of them without.
    pub(super) kept: Option<Tensor>,
    /// How much each image counts in its class mean.
    pub(super) weights: Option<Tensor>,
    /// Margins under attack, f32 `[A]`.
    pub(super) margins: Option<Tensor>,
}

impl RealImages {
    /// Attacks those at `rows` where anything needs that, and embeds them under the augmentation of the update.
    pub(super) fn new(
        config: &C2rConfig,
        rows: &Rows,
        model: &Model,
        cache: Option<&mut PerturbationCache>,
        step: &mut Step<'_>,
        seed: Seed,
        augmentation: &Views,
    ) -> Result<Self, DistillError> {
        let _no_grad = tch::no_grad_guard();
        let context = step.context;
        let positions = &rows.positions;
        let (images, labels) = context.real(rows);
        let classes: Vec<i64> = positions.iter().map(|&position| context.data.labels()[position]).collect();
        let augment = |images: Tensor| augmentation.augment(context, &images, &classes);
        let images = if augmentation.attack_after { augment(images) } else { images };
        let curriculum = &config.aac.matching;
        let (needs_attacked, needs_clean) = config.embeds_real();
        let mut views = Vec::new();
        let (mut kept, mut weights, mut margins) = (None, None, None);
        if needs_attacked || curriculum.needs_scores() {
            let clean = augmentation.to_attack(context, &images);
            let attacked = Attacked { images: &clean, labels: &labels, positions };
            let noise = seed.child("real", 0);
            let companions = context.attack(Place::Matching, model, attacked, noise, cache, step.passes)?;
            if curriculum.chooses() {
                let scores = to_vec::<f32>(&companions.scores);
                check_scores(&scores, step.images.iteration() + 1)?;
                let progress = step.images.progress();
                let order = curriculum.order(&scores, &classes, progress, &mut seed.stream("matching", 0));
                let order: Vec<i64> = order.into_iter().map(|at| at as i64).collect();
                kept = Some(context.indices(&order));
            }
            if matches!(curriculum, Curriculum::Weight(_)) {
                weights = Some(curriculum.weights(&companions.scores));
            }
            margins = Some(companions.margins);
            if needs_attacked {
                views.push(companions.images);
            }
        }
        if needs_clean {
            views.push(images);
        }
        step.passes.forward += (positions.len() * views.len()) as u64;
        let draw = augmentation.shared().filter(|_| !augmentation.attack_after);
        if draw.is_none() && !augmentation.attack_after {
            views = views.into_iter().map(augment).collect();
        }
        let embeddings = context.embed(model, &Tensor::cat(&views, 0), draw);
        let mut embedded = embeddings
            .split(positions.len() as i64, 0)
            .into_iter()
            .map(|embeddings| Embedded { embeddings, labels: labels.shallow_clone() });
        let attacked = if needs_attacked { embedded.next() } else { None };
        let clean = if needs_clean { embedded.next() } else { None };
        Ok(Self { attacked, clean, classes, kept, weights, margins })
    }
}
