//! What makes an evaluation doubtful besides the flags of its report, in words.

use c2r_attacks::AttackReport;
use c2r_base::ThreatModel;

/// How the note on a network that only guesses begins.
pub(crate) const GUESSING: &str = "doubtful: the clean accuracy is no better than guessing";
/// With fewer images, an accuracy near chance has no meaning.
const FEWEST: usize = 50;

/// A note on a radius that lets the attacker paint every image of `shape` (`[C, H, W]`) grey, so that no classifier can be
/// robust.
pub fn reaches_grey(threat: &ThreatModel, shape: [i64; 3]) -> Option<String> {
    let (epsilon, norm) = (threat.epsilon, threat.norm);
    (epsilon.value() >= norm.diameter(shape) / 2.0).then(|| {
        format!(
            "doubtful: an {norm} radius of {epsilon} turns every image into plain grey, so no classifier can be robust"
        )
    })
}

/// A note on a classifier that only guesses, most often because it gets images or labels that it does not expect.
pub fn chance_level(report: &AttackReport) -> Option<String> {
    let chance = 1.0 / report.classes as f64;
    (report.n() >= FEWEST && report.clean_accuracy() < 1.5 * chance).then(|| {
        format!(
            "{GUESSING} among {} classes; check that the model takes pixels in \
             [0, 1] (normalization belongs inside it) and that the labels are in its class order",
            report.classes
        )
    })
}

#[cfg(test)]
mod tests {
    use c2r_attacks::Mode;
    use c2r_base::{Epsilon, Norm};

    use super::*;
    use crate::from_report::tests::report;

    /// Half of the distance from black to white leads from both to grey.
    #[test]
    fn half_of_the_cube_reaches_grey() {
        let reaches = |norm: Norm, of_255: f64| {
            let threat = ThreatModel::untargeted(norm, Epsilon::of_255(of_255));
            reaches_grey(&threat, [1, 2, 2]).is_some()
        };
        assert!(reaches(Norm::Linf, 128.0) && !reaches(Norm::Linf, 127.0));
        // Four pixels of 0.5: the root of 4 * 0.25 is 1.
        assert!(reaches(Norm::L2, 255.0) && !reaches(Norm::L2, 254.0));
    }

    /// With two classes, guessing is right for half of the images, and less than three quarters is doubtful. Fewer than 50 images are
    /// never doubtful.
    #[test]
    fn near_chance_is_doubtful() {
        let doubtful = |right: usize, n: usize| {
            let mut report = report(Mode::Each);
            report.labels = vec![0; n];
            report.clean_predictions = (0..n).map(|image| i64::from(image >= right)).collect();
            chance_level(&report).is_some()
        };
        assert!(doubtful(50, 100) && doubtful(74, 100) && !doubtful(75, 100));
        assert!(doubtful(25, 50) && !doubtful(25, 49));
    }
}
