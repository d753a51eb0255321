use std::collections::BTreeMap;

use c2r_experiment::{Subset, SubsetOrder};
use sha2::{Digest, Sha256};

/// Seed of every class-balanced sample. It is the same for all runs, so that all networks are judged on the same images.
const SEED: u64 = 0;

/// Chooses `n` of the images that have these labels: what they are, and their positions in the order of the subset.
/// `None` where there are no more than `n`: then all images are used, in their own order.
///
/// * `labels`: one per image, `[N]`; images of one label are a class.
///
/// [`SubsetOrder::ClassBalanced`] is a fixed order of which every subset is the beginning, so the first 200 images are
/// among the first 1,000. In every subset the numbers of images of two classes differ by at most one, as long as both have
/// images left. An image's key is the SHA-256 of `c2r subset SEED POSITION` with decimal numbers. Within its class an image's
/// place is that of its key; the order of the subset is by place, then by key. The order depends on labels and positions only,
/// so it is the same on every machine, and can be computed in any language.
///
/// ```
/// use c2r_data::subset;
/// use c2r_experiment::SubsetOrder;
///
/// // Nine images, sorted by class.
/// let labels = [0, 0, 0, 1, 1, 1, 2, 2, 2];
/// let (_, positions) = subset(&labels, 3, SubsetOrder::ClassBalanced).unwrap();
/// let mut classes: Vec<i64> = positions.iter().map(|&position| labels[position]).collect();
/// classes.sort_unstable();
/// assert_eq!(classes, [0, 1, 2]);
/// assert_eq!(subset(&labels, 3, SubsetOrder::First).unwrap().1, [0, 1, 2]);
/// assert_eq!(subset(&labels, 9, SubsetOrder::ClassBalanced), None);
/// ```
pub fn subset(labels: &[i64], n: usize, order: SubsetOrder) -> Option<(Subset, Vec<usize>)> {
    let of = labels.len();
    if n >= of {
        return None;
    }
    let (seed, mut positions) = match order {
        SubsetOrder::ClassBalanced => (Some(SEED), class_balanced(labels)),
        SubsetOrder::First => (None, (0..n).collect()),
    };
    positions.truncate(n);
    Some((Subset { n, of, order, seed }, positions))
}

/// All positions, of which every beginning is balanced.
fn class_balanced(labels: &[i64]) -> Vec<usize> {
    let mut classes: BTreeMap<i64, Vec<([u8; 32], usize)>> = BTreeMap::new();
    for (position, &label) in labels.iter().enumerate() {
        let key = Sha256::digest(format!("c2r subset {SEED} {position}")).into();
        classes.entry(label).or_default().push((key, position));
    }
    let mut order = Vec::with_capacity(labels.len());
    for mut class in classes.into_values() {
        class.sort_unstable();
        order.extend(class.into_iter().enumerate().map(|(place, (key, position))| (place, key, position)));
    }
    order.sort_unstable();
    order.into_iter().map(|(_, _, position)| position).collect()
}
