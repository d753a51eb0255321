//! The terms of the loss that compare synthetic with real images.

use c2r_core::{
    crl::{Candidates, Contrast, class_means},
    queue::MemoryQueue,
};
use tch::{Kind, Tensor};

use super::{
    config::{Anchors, C2rConfig, Distance, RealCandidates},
    real::{Embedded, RealImages},
};

/// Mean of `values`, f32 `[N]`, each counting as much as its weight, f32 `[N]`.
pub(super) fn weighted_mean(values: &Tensor, weights: &Tensor) -> Tensor {
    (values * weights).sum(Kind::Float) / weights.sum(Kind::Float)
}

/// `L_DM`: mean distance of class means; and the variance of the real embeddings.
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
    let apart = real_means - synthetic_means;
    let sums = |of: Tensor| of.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    let n_present = present.sum(Kind::Float).clamp_min(1.0);
    let mean = |distances: Tensor| (distances * &present).sum(Kind::Float) / n_present;
    let distance = match config.objective.distance {
        Distance::ScaledL2 => mean(sums(apart.square())) / &spread,
        Distance::SquaredL1 => mean((sums(apart.abs()) * 0.5).square()),
    };
    (distance, spread)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Two images of class 0 and one of class 1 on the real side, one of each on the synthetic one.
    #[test]
    fn distances_of_class_means_by_hand() {
        let mut table = crate::profiles::profile("rome").unwrap();
        table["objective"].as_table_mut().unwrap().insert("robust-weight".into(), 1.0.into());
        let mut config: C2rConfig = table.try_into().unwrap();
        let embedded = |values: &[f32], labels: &[i64]| Embedded {
            embeddings: Tensor::from_slice(values).view([-1, 2]),
            labels: Tensor::from_slice(labels),
        };
        let real = RealImages {
            attacked: Some(embedded(&[0.0, 2.0, 2.0, 2.0, 1.0, 0.0], &[0, 0, 1])),
            clean: None,
            classes: vec![0, 0, 1],
            kept: None,
            weights: None,
            margins: None,
        };
        let synthetic = embedded(&[0.0, 0.0, 0.0, 1.0], &[0, 1]);
        // Means (1, 2) and (1, 0): at L1 distances 3 and 2, half of which is squared; at squared L2 distances 5 and 2.
        let (distance, spread) = match_means(&config, &synthetic, &real, 2);
        assert!((distance.double_value(&[]) - (1.5 * 1.5 + 1.0) / 2.0).abs() < 1e-6);
        // Sample variances of (0, 2, 1) and of (2, 2, 0): 1 and 4/3.
        assert!((spread.double_value(&[]) - 7.0 / 3.0).abs() < 1e-6);
        config.objective.distance = Distance::ScaledL2;
        let (distance, _) = match_means(&config, &synthetic, &real, 2);
        assert!((distance.double_value(&[]) - 3.5 / (7.0 / 3.0)).abs() < 1e-6);
    }
}
