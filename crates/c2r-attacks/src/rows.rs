//! Rows of tensors: which, how many, and how they are taken and written.

use c2r_base::{Seed, host};
use tch::Tensor;

/// The smallest number of rows that is worth a forward pass: about 2 MiB of pixels. Attacks that try
/// several targets or neighbours of a sample put them in one pass up to this size or the batch's.
const ROW_BUDGET_VALUES: i64 = 1 << 19;

/// How many rows a pass may have for a batch of these images.
pub(crate) fn row_budget(images: &Tensor) -> usize {
    let size = images.size();
    let values: i64 = size[1..].iter().product();
    size[0].max(ROW_BUDGET_VALUES / values.max(1)).max(1) as usize
}

/// The seed of an attempt: restarts draw from streams of their own.
pub(crate) fn attempt_seed(seed: Seed, restart: u32) -> Seed {
    if restart == 0 { seed } else { seed.child("restart", u64::from(restart)) }
}

/// `mask` (bool `[N]`) as a list of the positions that are true.
pub(crate) fn positions(mask: &Tensor) -> Vec<usize> {
    where_true(host::to_vec::<bool>(mask))
}

/// The positions that are true.
pub(crate) fn where_true(mask: impl IntoIterator<Item = bool>) -> Vec<usize> {
    mask.into_iter().enumerate().filter_map(|(position, set)| set.then_some(position)).collect()
}

/// The entries of `list` at `positions`.
pub(crate) fn pick<T: Copy>(list: &[T], positions: &[usize]) -> Vec<T> {
    positions.iter().map(|&position| list[position]).collect()
}

/// An index tensor for `index_select` on `like`'s device.
pub(crate) fn index(positions: &[usize], like: &Tensor) -> Tensor {
    let positions: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
    host::send(&Tensor::from_slice(&positions), like.device())
}

/// Whether `rows` are the first `n`, in order.
pub(crate) fn are_all(rows: &[usize], n: i64) -> bool {
    rows.len() as i64 == n && rows.iter().enumerate().all(|(position, &row)| position == row)
}

/// Writes `values` to the rows `rows` of `into`.
pub(crate) fn write_rows(into: &mut Tensor, rows: &[usize], values: &Tensor) {
    if are_all(rows, into.size()[0]) {
        into.copy_(values);
    } else {
        let _ = into.index_copy_(0, &index(rows, into), values);
    }
}

/// Reshapes `[N]` to `[N, 1, 1, 1]`.
pub(crate) fn per_image(values: &Tensor) -> Tensor {
    values.view([-1, 1, 1, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_draws_from_streams_of_its_own() {
        let seeds: Vec<Seed> = (0..4).map(|restart| attempt_seed(Seed::new(5), restart)).collect();
        assert_eq!(seeds[0], Seed::new(5));
        assert!((1..4).all(|restart| !seeds[..restart].contains(&seeds[restart])), "{seeds:?}");
    }
}
