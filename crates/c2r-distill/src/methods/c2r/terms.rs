//! The terms of the loss that compare synthetic with real images.

use c2r_core::{
    crl::{Candidates, Contrast, class_means},
    queue::MemoryQueue,
};
use tch::{Kind, Tensor};

use super::{
    config::{Anchors, C2rConfig, RealCandidates},
    real::{Embedded, RealImages},
};

/// Mean of `values`, f32 `[N]`, each counting as much as its weight, f32 `[N]`.
pub(super) fn weighted_mean(values: &Tensor, weights: &Tensor) -> Tensor {
    (values * weights).sum(Kind::Float) / weights.sum(Kind::Float)
}

/// `L_DM`: distance of class means, by the variance of the real embeddings; and that variance.
pub(super) fn match_means(config: &C2rConfig, clean: &Embedded, real: &RealImages, n_classes: i64) -> (Tensor, Tensor) {
    let target = if config.matching.attacked { &real.attacked } else { &real.clean };
    let target = target.as_ref().expect("what is matched was embedded");
    let target = match &real.kept {
        Some(at) => {
            let [embeddings, labels] = [&target.embeddings, &target.labels].map(|rows| rows.index_select(0, at));
            &Embedded { embeddings, labels }
        }
        None => target,
    };
    let spread = target.embeddings.var_dim([0i64].as_slice(), true, false).sum(Kind::Float).clamp_min(1e-12);
    let (synthetic_means, synthetic_counts) = class_means(&clean.embeddings, &clean.labels, n_classes, None);
    let (real_means, real_counts) = class_means(&target.embeddings, &target.labels, n_classes, real.weights.as_ref());
    // A sub-batch in literal order may miss classes, weights may be 0 for a whole class: nothing to match there.
    let present = synthetic_counts.gt(0.0).logical_and(&real_counts.gt(0.0)).to_kind(Kind::Float);
    let distances = (real_means - synthetic_means).square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    let n_present = present.sum(Kind::Float).clamp_min(1.0);
    ((distances * &present).sum(Kind::Float) / n_present / &spread, spread)
}

/// `L_CRL` of the anchors that the configuration names, and how similar their nearest impostors are on average;
/// scalars.
///
/// * `perturbed`: embeddings of the companions of `clean`; `weights`, f32 `[M]`: how much each synthetic anchor counts,
///   all the same without.
pub(super) fn contrast(
    config: &C2rConfig,
    queue: Option<&MemoryQueue>,
    clean: &Embedded,
    perturbed: &Tensor,
    real: &RealImages,
    weights: Option<&Tensor>,
) -> (Tensor, Tensor) {
    let of = |anchors: &Embedded, companions: &Tensor, candidates: &[Candidates<'_>], weights: Option<&Tensor>| {
        let Embedded { embeddings, labels } = anchors;
        let far = queue.and_then(|queue| queue.nearest_impostors(embeddings, labels));
        let Contrast { loss, nearest_impostor } =
            config.crl.contrast(embeddings, labels, companions, candidates, far.as_ref());
        let loss = weights.map_or_else(|| loss.mean(Kind::Float), |weights| weighted_mean(&loss, weights));
        (loss, nearest_impostor.mean(Kind::Float))
    };
    let synthetic = || {
        fn side(side: &Option<Embedded>, wanted: bool) -> Option<&Embedded> {
            side.as_ref().filter(|_| wanted)
        }
        let candidates = config.objective.candidates;
        let candidates = [
            side(&real.clean, candidates == RealCandidates::Both),
            side(&real.attacked, candidates != RealCandidates::None),
        ];
        let candidates: Vec<Candidates<'_>> = candidates.into_iter().flatten().map(Embedded::candidates).collect();
        of(clean, perturbed, &candidates, weights)
    };
    let on_real = || {
        let anchors = real.clean.as_ref().expect("real anchors were embedded");
        let companions = &real.attacked.as_ref().expect("companions of real anchors were embedded").embeddings;
        let candidates = [clean.candidates(), Candidates { embeddings: perturbed, labels: &clean.labels }];
        of(anchors, companions, &candidates, None)
    };
    match config.objective.anchors {
        Anchors::Synthetic => synthetic(),
        Anchors::Real => on_real(),
        Anchors::Both => {
            let ((a, similarity), (b, _)) = (synthetic(), on_real());
            ((a + b) * 0.5, similarity)
        }
    }
}
