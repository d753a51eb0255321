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
