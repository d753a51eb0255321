//! Contrastive robustness loss (CRL): a sample's embedding is pulled to its adversarial companion and
//! its class, and pushed from its nearest impostors (docs/method.md, "Contrastive robustness loss").

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::queue::{QueueConfig, normalize_rows};

/// Options of the contrastive robustness loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CrlConfig {
    /// Temperature tau of the similarities, positive.
    pub temperature: f64,
    /// Where negatives come from besides the batch; absent means batch-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueConfig>,
}

/// A CRL configuration that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum CrlError {
    /// Zero, negative or not finite.
    #[error("crl.temperature must be positive, got {0}")]
    Temperature(f64),
    /// A queue that holds or returns nothing, or more than can be counted.
    #[error("crl.queue.{0} must be from 1 to {max}, got {1}", max = i32::MAX)]
    QueueSize(&'static str, usize),
    /// Outside `[0, 1)`.
    #[error("crl.queue.momentum must be in [0, 1), got {0}")]
    Momentum(f64),
}

/// What the contrastive loss finds about each anchor.
#[derive(Debug)]
pub struct Contrast {
    /// L_i, f32 `[M]`; the paper's L_CRL is its mean.
    pub loss: Tensor,
    /// Cosine similarity with the nearest candidate or impostor of another class, f32 `[M]` in `[-1, 1]`, detached;
    /// -1 for an anchor that no other class faces.
    pub nearest_impostor: Tensor,
}

/// Embeddings that an anchor is compared with.
#[derive(Debug)]
pub struct Candidates<'a> {
    /// f32 `[A, D]`.
    pub embeddings: &'a Tensor,
    /// i64 `[A]`.
    pub labels: &'a Tensor,
}

impl CrlConfig {
    /// Checks the options.
    ///
    /// # Errors
    /// [`CrlError`].
    pub fn validate(&self) -> Result<(), CrlError> {
        check_temperature(self.temperature)?;
        if let Some(queue) = &self.queue {
            for (key, size) in [("per-class", queue.per_class), ("top-k", queue.top_k)] {
                if !(1..=i32::MAX as usize).contains(&size) {
                    return Err(CrlError::QueueSize(key, size));
                }
            }
            if !(0.0..1.0).contains(&queue.momentum) {
                return Err(CrlError::Momentum(queue.momentum));
            }
        }
        Ok(())
    }

    /// The loss of each anchor:
    /// `L_i = -(1/|P(i)|) sum_{a in P(i)} log( exp(g_ia / tau) / sum_{b in A(i)} exp(g_ib / tau) )`.
    ///
    /// * `anchors`: f32 `[M, D]` with labels i64 `[M]`.
    /// * `companions`: f32 `[M, D]`, row i is the adversarial companion of anchor i.
    /// * `extra`: more candidates (real images, other views); members of an anchor's class are
    ///   positives, the others negatives. Pass detached embeddings where no gradient should flow.
    /// * `impostors`: embeddings of length 1, f32 `[M, k, D]`, and mask f32 `[M, k]` of
    ///   [`crate::queue::MemoryQueue::nearest_impostors`]; negatives of their own anchor only.
    ///
    /// A(i) holds every anchor but i itself, every companion, `extra` and row i of `impostors`; P(i) is
    /// its part of the same class and always holds the anchor's own companion. Similarities are
    /// cosines.
    ///
    /// # Panics
    /// If the temperature is not positive and finite ([`CrlConfig::validate`]).
    pub fn contrast(
        &self,
        anchors: &Tensor,
        labels: &Tensor,
        companions: &Tensor,
        extra: &[Candidates<'_>],
        impostors: Option<&(Tensor, Tensor)>,
    ) -> Contrast {
        check_temperature(self.temperature).unwrap_or_else(|error| panic!("{error}"));
        let n_anchors = anchors.size()[0];
        let unit_anchors = normalize_rows(anchors);
        let mut blocks = vec![unit_anchors.shallow_clone(), normalize_rows(companions)];
        let mut block_labels = vec![labels.shallow_clone(), labels.shallow_clone()];
        for candidates in extra {
            blocks.push(normalize_rows(candidates.embeddings));
            block_labels.push(candidates.labels.shallow_clone());
        }
        let candidates = Tensor::cat(&blocks, 0);
        let candidate_labels = Tensor::cat(&block_labels, 0);
        let similarity = unit_anchors.matmul(&candidates.transpose(0, 1)) / self.temperature;

        let own = Tensor::eye(n_anchors, (Kind::Bool, anchors.device()));
        let not_self = own.constant_pad_nd([0, candidates.size()[0] - n_anchors]).logical_not();
        let same_class = labels.unsqueeze(1).eq_tensor(&candidate_labels.unsqueeze(0));
        let positive = same_class.logical_and(&not_self);
        let mut all = similarity.masked_fill(&not_self.logical_not(), f64::NEG_INFINITY);
        let mut negatives = similarity.detach().masked_fill(&same_class, f64::NEG_INFINITY);
        if let Some((rows, found)) = impostors {
            let far = rows.matmul(&unit_anchors.unsqueeze(2)).squeeze_dim(2) / self.temperature;
            let far = far.masked_fill(&found.eq(0.0), f64::NEG_INFINITY);
            all = Tensor::cat(&[&all, &far], 1);
            negatives = Tensor::cat(&[negatives, far.detach()], 1);
        }
        let nearest = negatives.amax([1i64].as_slice(), false) * self.temperature;
        let log_total = all.logsumexp([1i64].as_slice(), false);
        let positive = positive.to_kind(Kind::Float);
        let n_positive = positive.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let loss =
            log_total - (similarity * positive).sum_dim_intlist([1i64].as_slice(), false, Kind::Float) / n_positive;
        Contrast { loss, nearest_impostor: nearest.clamp_min(-1.0) }
    }
}

fn check_temperature(temperature: f64) -> Result<(), CrlError> {
    if temperature.is_finite() && temperature > 0.0 { Ok(()) } else { Err(CrlError::Temperature(temperature)) }
}

/// Squared distance of clean and adversarial class means, summed over classes: the robust term of
/// earlier robust distillation, kept as the ablation of CRL:
/// `L_rob = sum_c || E[e(x_c)] - E[e(x~_c)] ||^2`.
///
/// * `embeddings`, `companions`: f32 `[M, D]`, row i of one belongs to row i of the other.
/// * `labels`: i64 `[M]` in `0..n_classes`.
/// * `weights`: how much each sample counts, f32 `[M]`, at least 0; all the same without.
///
/// Returns a scalar f32; classes without a sample add 0.
pub fn class_mean_alignment(
    embeddings: &Tensor,
    companions: &Tensor,
    labels: &Tensor,
    n_classes: i64,
    weights: Option<&Tensor>,
) -> Tensor {
    class_means(&(embeddings - companions), labels, n_classes, weights).0.square().sum(Kind::Float)
}

/// Mean embedding of each class.
///
/// * `embeddings`: f32 `[M, D]`; `labels`: i64 `[M]` in `0..n_classes`.
/// * `weights`: how much each sample counts, f32 `[M]`, at least 0; all the same without.
///
/// Returns f32 `[n_classes, D]` (zeros for a class without a sample, or whose weights are all 0) and the
/// sum of the weights, which is the number of samples without `weights`, f32 `[n_classes]`.
pub fn class_means(embeddings: &Tensor, labels: &Tensor, n_classes: i64, weights: Option<&Tensor>) -> (Tensor, Tensor) {
    // Not `one_hot`, which reads the labels to check them.
    let classes = Tensor::arange(n_classes, (Kind::Int64, labels.device()));
    let mut member = labels.unsqueeze(1).eq_tensor(&classes).to_kind(Kind::Float).transpose(0, 1);
    if let Some(weights) = weights {
        member *= weights.unsqueeze(0);
    }
    let counts = member.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    let divisor = counts.where_self(&counts.gt(0.0), &counts.ones_like());
    (member.matmul(embeddings) / divisor.unsqueeze(1), counts)
}

/// Cosine similarity of each anchor with its nearest impostor: the most similar candidate of another class.
///
/// * `anchors`: f32 `[M, D]`; `labels`: i64 `[M]`.
/// * `candidates`: what it is compared with; those of its own class do not count.
///
/// Returns f32 `[M]` in `[-1, 1]`, detached; -1 for an anchor that no other class faces.
pub fn nearest_impostor_similarity(anchors: &Tensor, labels: &Tensor, candidates: &[Candidates<'_>]) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let unit = normalize_rows(&anchors.detach());
    let mut nearest = Tensor::full([anchors.size()[0]], -1.0, (Kind::Float, anchors.device()));
    for Candidates { embeddings, labels: theirs } in candidates.iter().filter(|c| c.labels.numel() > 0) {
        let similarity = unit.matmul(&normalize_rows(&embeddings.detach()).transpose(0, 1));
        let same = labels.unsqueeze(1).eq_tensor(&theirs.unsqueeze(0));
        nearest = nearest.maximum(&similarity.masked_fill(&same, -1.0).amax([1i64].as_slice(), false));
    }
    nearest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[[f32; 2]]) -> Tensor {
        Tensor::from_slice(values.as_flattened()).view([values.len() as i64, 2])
    }

    fn config(temperature: f64) -> CrlConfig {
        CrlConfig { temperature, queue: None }
    }

    fn close(tensor: &Tensor, expected: &[f64]) {
        assert_eq!(tensor.size(), [expected.len() as i64]);
        for (index, expected) in expected.iter().enumerate() {
            let got = tensor.double_value(&[index as i64]);
            assert!((got - expected).abs() < 1e-5, "entry {index}: {got} instead of {expected}");
        }
    }

    /// Four samples in two classes on the axes, companions equal to their samples, tau = 1.
    ///
    /// Anchor 0 = (1,0), class 0. Candidates but itself: x1 = (0,1) class 0, x2 = (-1,0), x3 = (0,-1) class 1,
    /// companions (1,0), (0,1) class 0, (-1,0), (0,-1) class 1. Cosines: 0 -1 0 | 1 0 -1 0.
    /// Denominator: e + 4 + 2/e. Positives: x1 (0), x~0 (1), x~1 (0): mean similarity 1/3.
    #[test]
    fn four_samples_by_hand() {
        let anchors = rows(&[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]);
        let labels = Tensor::from_slice(&[0i64, 0, 1, 1]);
        let e = std::f64::consts::E;
        let expected = (e + 4.0 + 2.0 / e).ln() - 1.0 / 3.0;
        close(&config(1.0).contrast(&anchors, &labels, &anchors, &[], None).loss, &[expected; 4]);
        // Cosines do not depend on length.
        close(&config(1.0).contrast(&(&anchors * 7.0), &labels, &(&anchors * 0.1), &[], None).loss, &[expected; 4]);
    }

    /// Two samples of class 0 on the axes, one of class 1 across from the first, companions equal to their samples, tau = 1: the
    /// third anchor has one positive, its companion, and the others have three.
    #[test]
    fn each_anchor_divides_by_its_own_positives() {
        let anchors = rows(&[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]);
        let labels = Tensor::from_slice(&[0i64, 0, 1]);
        let e = std::f64::consts::E;
        let across = (e + 2.0 + 2.0 / e).ln();
        let expected = [across - 1.0 / 3.0, (e + 4.0).ln() - 1.0 / 3.0, across - 1.0];
        close(&config(1.0).contrast(&anchors, &labels, &anchors, &[], None).loss, &expected);
    }

    #[test]
    fn temperature_divides_the_similarities() {
        let anchors = rows(&[[1.0, 0.0], [0.0, 1.0]]);
        let labels = Tensor::from_slice(&[0i64, 1]);
        // Candidates of anchor 0: x1 (0), x~0 (1), x~1 (0); one positive.
        let expected = ((1.0f64 / 0.5).exp() + 2.0).ln() - 1.0 / 0.5;
        close(&config(0.5).contrast(&anchors, &labels, &anchors, &[], None).loss, &[expected; 2]);
    }

    #[test]
    fn extra_candidates_and_impostors_enter_the_denominator() {
        let anchors = rows(&[[1.0, 0.0]]);
        let labels = Tensor::from_slice(&[0i64]);
        let extra = rows(&[[0.0, 2.0], [-1.0, 0.0]]);
        let extra_labels = Tensor::from_slice(&[0i64, 1]);
        let candidates = [Candidates { embeddings: &extra, labels: &extra_labels }];
        let e = std::f64::consts::E;
        // Companion (1, positive), extra same class (0, positive), extra other class (-1).
        let expected = (e + 1.0 + 1.0 / e).ln() - 0.5;
        close(&config(1.0).contrast(&anchors, &labels, &anchors, &candidates, None).loss, &[expected]);
        // One impostor with cosine 1, one slot that holds nothing.
        let impostors =
            (rows(&[[1.0, 0.0], [0.0, 0.0]]).view([1, 2, 2]), Tensor::from_slice(&[1.0f32, 0.0]).view([1, 2]));
        let expected = (2.0 * e + 1.0 + 1.0 / e).ln() - 0.5;
        close(&config(1.0).contrast(&anchors, &labels, &anchors, &candidates, Some(&impostors)).loss, &[expected]);
    }

    #[test]
    fn gradients_reach_anchors_and_companions_and_no_further() {
        let anchors = rows(&[[1.0, 0.2], [0.3, 1.0], [-1.0, 0.1]]).set_requires_grad(true);
        let labels = Tensor::from_slice(&[0i64, 0, 1]);
        let companions = rows(&[[0.9, 0.1], [0.2, 1.1], [-1.1, 0.0]]).set_requires_grad(true);
        let contrast = config(0.1).contrast(&anchors, &labels, &companions, &[], None);
        assert!(!contrast.nearest_impostor.requires_grad());
        let loss = contrast.loss.mean(Kind::Float);
        for gradient in c2r_base::grad::gradients(&loss, &[&anchors, &companions]) {
            assert!(gradient.isfinite().all().int64_value(&[]) == 1);
            assert!(gradient.abs().max().double_value(&[]) > 1e-3);
        }
    }

    /// Two classes on two axes, companions equal to their anchors, tau = 1: each anchor's denominator is e + 2, so
    /// p = 1 / (e + 2) is the share of whatever has cosine 0. The gradient of a cosine of unit vectors with respect to
    /// one of them is the other, less its part along the first.
    ///
    /// L_0 moves x0 by p (x1 + x~1), x1 by p x0 and x~1 by p x0; L_1 does the same with the axes exchanged.
    #[test]
    fn gradients_by_hand() {
        let axes = || rows(&[[1.0, 0.0], [0.0, 1.0]]).set_requires_grad(true);
        let (anchors, companions) = (axes(), axes());
        let labels = Tensor::from_slice(&[0i64, 1]);
        let loss = config(1.0).contrast(&anchors, &labels, &companions, &[], None).loss.sum(Kind::Float);
        let found = c2r_base::grad::gradients(&loss, &[&anchors, &companions]);
        let p = 1.0 / (std::f64::consts::E + 2.0);
        close(&found[0].flatten(0, -1), &[0.0, 3.0 * p, 3.0 * p, 0.0]);
        close(&found[1].flatten(0, -1), &[0.0, p, p, 0.0]);

        // One anchor and its companion against a candidate of another class: it has a share of 1 / (e + 1).
        let (one, other) = (rows(&[[1.0, 0.0]]), rows(&[[0.0, 1.0]]).set_requires_grad(true));
        let candidates = [Candidates { embeddings: &other, labels: &labels.narrow(0, 1, 1) }];
        let loss = config(1.0).contrast(&one, &labels.narrow(0, 0, 1), &one, &candidates, None).loss.sum(Kind::Float);
        let found = c2r_base::grad::gradients(&loss, &[&other]).swap_remove(0);
        close(&found.flatten(0, -1), &[1.0 / (std::f64::consts::E + 1.0), 0.0]);
    }

    #[test]
    fn class_means_and_alignment_by_hand() {
        let clean = rows(&[[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]);
        let attacked = rows(&[[0.0, 0.0], [2.0, 2.0], [0.0, 2.0]]);
        let labels = Tensor::from_slice(&[0i64, 0, 2]);
        let (means, counts) = class_means(&clean, &labels, 3, None);
        assert_eq!(Vec::<f32>::try_from(means.flatten(0, -1)).unwrap(), [2.0, 0.0, 0.0, 0.0, 0.0, 5.0]);
        assert_eq!(Vec::<f32>::try_from(counts).unwrap(), [2.0, 0.0, 1.0]);
        let weights = Tensor::from_slice(&[1.0f32, 3.0, 0.0]);
        let (means, counts) = class_means(&clean, &labels, 3, Some(&weights));
        assert_eq!(Vec::<f32>::try_from(means.flatten(0, -1)).unwrap(), [2.5, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(Vec::<f32>::try_from(counts).unwrap(), [4.0, 0.0, 0.0]);
        // Only the ratio of weights counts, also where they sum to less than 1.
        let (means, _) = class_means(&clean, &labels, 3, Some(&(&weights * 0.125)));
        assert_eq!(Vec::<f32>::try_from(means.flatten(0, -1)).unwrap(), [2.5, 0.0, 0.0, 0.0, 0.0, 0.0]);
        // Class 0: (2,0) against (1,1) -> 2; class 2: (0,5) against (0,2) -> 9.
        let value = class_mean_alignment(&clean, &attacked, &labels, 3, None).double_value(&[]);
        assert!((value - 11.0).abs() < 1e-5, "{value}");
        // Weighted, the differences (1,0) and (1,-2) of class 0 have the mean (1,-1.5); class 2 weighs nothing.
        let value = class_mean_alignment(&clean, &attacked, &labels, 3, Some(&weights)).double_value(&[]);
        assert!((value - 3.25).abs() < 1e-5, "{value}");
    }

    #[test]
    fn the_nearest_impostor_is_of_another_class() {
        let anchors = rows(&[[1.0, 0.0], [0.0, 2.0]]);
        let labels = Tensor::from_slice(&[0i64, 1]);
        let others = rows(&[[5.0, 0.0], [3.0, 4.0], [-1.0, 0.0]]);
        let their_labels = Tensor::from_slice(&[0i64, 1, 1]);
        let candidates = [Candidates { embeddings: &others, labels: &their_labels }];
        // Anchor 0 faces (3, 4) and (-1, 0); anchor 1 faces (5, 0).
        close(&nearest_impostor_similarity(&anchors, &labels, &candidates), &[0.6, 0.0]);
        close(&nearest_impostor_similarity(&anchors, &labels, &[]), &[-1.0, -1.0]);
        // Across from the anchors, it is still the nearest.
        let across = rows(&[[1.0, 0.0], [-3.0, -4.0]]);
        let candidates_across = [Candidates { embeddings: &across, labels: &Tensor::from_slice(&[0i64, 2]) }];
        close(&nearest_impostor_similarity(&anchors, &labels, &candidates_across), &[-0.6, 0.0]);
        // The loss finds the same among its candidates, anchors and companions included, and in the queue.
        let companions = rows(&[[1.0, 0.0], [-1.0, 0.0]]);
        let nearest =
            |impostors| config(0.2).contrast(&anchors, &labels, &companions, &candidates, impostors).nearest_impostor;
        close(&nearest(None), &[0.6, 0.0]);
        let half = 0.5f32.sqrt();
        let rows = rows(&[[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [half, half]]).view([2, 2, 2]);
        let found = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0]).view([2, 2]);
        close(&nearest(Some(&(rows, found))), &[0.6, 0.5f64.sqrt()]);
        let alone = config(1.0).contrast(&anchors, &labels.zeros_like(), &anchors, &[], None).nearest_impostor;
        close(&alone, &[-1.0, -1.0]);
    }

    #[test]
    #[should_panic(expected = "crl.temperature must be positive, got 0")]
    fn a_temperature_of_0_has_no_loss() {
        let anchors = rows(&[[1.0, 0.0], [0.0, 1.0]]);
        let labels = Tensor::from_slice(&[0i64, 1]);
        let _ = config(0.0).contrast(&anchors, &labels, &anchors, &[], None);
    }

    #[test]
    fn options_are_checked() {
        assert_eq!(config(0.0).validate(), Err(CrlError::Temperature(0.0)));
        let queue = QueueConfig { per_class: 1, top_k: 0, projection: 0, momentum: 0.0 };
        assert_eq!(
            CrlConfig { temperature: 0.1, queue: Some(queue.clone()) }.validate(),
            Err(CrlError::QueueSize("top-k", 0))
        );
        let endless = QueueConfig { per_class: i64::MAX as usize, top_k: 1, ..queue.clone() };
        assert_eq!(
            CrlConfig { temperature: 0.1, queue: Some(endless) }.validate(),
            Err(CrlError::QueueSize("per-class", i64::MAX as usize))
        );
        let queue = QueueConfig { top_k: 1, momentum: 1.0, ..queue };
        assert_eq!(CrlConfig { temperature: 0.1, queue: Some(queue) }.validate(), Err(CrlError::Momentum(1.0)));
    }
}
