//! Perturbation score: the hinge of a margin (the paper's section on margins; docs/method.md). The margin itself is
//! [`c2r_base::loss::margin`].

use tch::Tensor;

/// Hinge of a margin, `[1 - m]_+`: 0 from a margin of 1 up, 1 at the decision boundary.
///
/// At the end of an attack, `x + d`, it is the perturbation score `s(x) = [1 - g(x + d)]_+`: an estimate that depends on
/// the attack, not a certificate.
///
/// With `v_i = hinge(m_i)`, `argmax v = argmin m` and `max v = hinge(min m)`: lowering the largest hinge
/// is raising the smallest robust margin, wherever a hinge is positive.
pub fn hinge(margins: &Tensor) -> Tensor {
    (-margins + 1.0).clamp_min(0.0)
}

#[cfg(test)]
mod tests {
    use c2r_base::loss::margin;
    use proptest::prelude::*;
    use tch::{Kind, Tensor};

    use super::*;

    fn list(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
    }

    #[test]
    fn margin_of_known_logits() {
        let logits = Tensor::from_slice(&[2.0f32, 0.5, -1.0, 0.0, 3.0, 1.0]).view([2, 3]);
        let labels = Tensor::from_slice(&[0i64, 2]);
        assert_eq!(list(&margin(&logits, &labels)), [1.5, -2.0]);
        assert_eq!(list(&hinge(&margin(&logits, &labels))), [0.0, 3.0]);
    }

    #[test]
    fn margin_tracks_gradients() {
        let logits = Tensor::from_slice(&[2.0f32, 0.5, -1.0]).view([1, 3]).set_requires_grad(true);
        let value = margin(&logits, &Tensor::from_slice(&[0i64])).sum(Kind::Float);
        let gradient = c2r_base::grad::gradients(&value, &[&logits]).swap_remove(0);
        assert_eq!(list(&gradient.view([3])), [1.0, -1.0, 0.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        /// The identity of the paper: the worst hinge belongs to the smallest margin.
        #[test]
        fn worst_hinge_is_smallest_margin(margins in prop::collection::vec(-3.0f32..3.0, 1..20)) {
            let margins = Tensor::from_slice(&margins);
            let hinges = hinge(&margins);
            let smallest = margins.min();
            prop_assert_eq!(hinges.max(), hinge(&smallest));
            // Where every hinge is 0 all samples tie; otherwise the worst sample is the same one.
            if hinges.max().double_value(&[]) > 0.0 {
                let worst = hinges.argmax(0, false).int64_value(&[]);
                prop_assert_eq!(margins.double_value(&[worst]), smallest.double_value(&[]));
            }
        }
    }
}
