//! A distillation method in someone else's crate.

use super::outside::{last_line, outside};

#[test]
fn a_crate_outside_adds_a_method_in_one_file() {
    let others = ["erased-serde", "serde", "tch"];
    let folder = outside("outside-method", &["c2r-data", "c2r-distill"], &others, &[("c2r-distill", "own_method")]);
    assert_eq!(last_line(&folder, "own_method"), "pixel-mean: 10 images, the loss fell");
}
