use c2r_base::host::send;
use tch::{Device, Kind, Tensor};

use crate::Split;

/// Bytes of pixels that a GPU keeps by default: CIFAR has 150 MB, Tiny ImageNet 1.2 GB.
const KEPT_BY_A_GPU: usize = 4 << 30;

/// Positions in a split, on the host and on the device that computes with their images.
#[derive(Debug)]
pub struct Rows {
    /// On the host.
    pub positions: Vec<usize>,
    /// The same on the device, i64 `[n]`.
    pub index: Tensor,
}

impl Rows {
    /// Sends `positions` to `device`, without waiting.
    pub fn send(positions: Vec<usize>, device: Device) -> Self {
        let index: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
        Self { index: send(&Tensor::from_slice(&index), device), positions }
    }

    /// `n` of them from `start` on; nothing is sent.
    pub fn part(&self, start: usize, n: usize) -> Self {
        Self {
            positions: self.positions[start..start + n].to_vec(),
            index: self.index.narrow(0, start as i64, n as i64),
        }
    }
}

impl Clone for Rows {
    /// The copy is the same tensor.
    fn clone(&self) -> Self {
        Self { positions: self.positions.clone(), index: self.index.shallow_clone() }
    }
}

/// A split of which a loop takes one batch after the other.
///
/// Where the device keeps the bytes, they and the labels are sent once, and batches are gathered there. Elsewhere a batch is
/// gathered on the host and sent without waiting for what is computed before it: the host prepares the next batch while the
/// device works.
#[derive(Debug)]
pub struct Batches {
    split: Split,
    device: Device,
    /// u8 `[N, C, H, W]` and i64 `[N]`.
    kept: Option<(Tensor, Tensor)>,
}

impl Batches {
    /// * `most_bytes`: what the device keeps at most; without, 4 GiB on a GPU, and nothing on the CPU, where the split has
    ///   the bytes already.
    pub fn new(split: &Split, device: Device, most_bytes: Option<usize>) -> Self {
        let most = most_bytes.unwrap_or(if device.is_cuda() { KEPT_BY_A_GPU } else { 0 });
        let [c, h, w] = split.shape();
        let images = split.images();
        let kept = (images.len() <= most).then(|| {
            let bytes = images.as_slice().expect("a split is contiguous");
            let bytes = Tensor::from_data_size(bytes, &[split.len() as i64, c, h, w], Kind::Uint8);
            let labels = Tensor::from_slice(&split.labels().to_vec());
            (bytes.to_device(device), labels.to_device(device))
        });
        Self { split: split.clone(), device, kept }
    }

    /// The split itself.
    pub const fn split(&self) -> &Split {
        &self.split
    }

    /// Positions of this split on its device.
    pub fn rows(&self, positions: Vec<usize>) -> Rows {
        Rows::send(positions, self.device)
    }

    /// What [`Split::batch`] gives at the same positions.
    ///
    /// # Panics
    /// If a position is not below [`Split::len`].
    pub fn batch(&self, rows: &Rows) -> (Tensor, Tensor) {
        match &self.kept {
            Some((bytes, labels)) => {
                (crate::split::to_pixels(&bytes.index_select(0, &rows.index)), labels.index_select(0, &rows.index))
            }
            None => self.split.batch(&rows.positions, self.device),
        }
    }
}

#[cfg(test)]
mod tests {
    use c2r_testkit::assert_same_bytes;

    use super::*;

    #[test]
    fn what_a_device_keeps_gives_the_same_batches() {
        let digits = crate::load("digits", None).unwrap().train;
        let n_bytes = digits.images().len();
        let order = Rows::send(vec![5, 0, 1437, 5, 9, 9, 2], Device::Cpu);
        let [kept, not_kept] = [n_bytes, n_bytes - 1].map(|most| Batches::new(&digits, Device::Cpu, Some(most)));
        assert!(kept.kept.is_some() && not_kept.kept.is_none());
        assert!(Batches::new(&digits, Device::Cpu, None).kept.is_none(), "the split has the bytes already");
        for (start, n) in [(0, 7), (2, 3), (6, 1)] {
            let rows = order.part(start, n);
            let (images, labels) = digits.batch(&order.positions[start..start + n], Device::Cpu);
            for batches in [&kept, &not_kept] {
                let (got, got_labels) = batches.batch(&rows);
                assert_same_bytes("images", &got, &images);
                assert_eq!(got_labels, labels);
            }
        }
    }
}
